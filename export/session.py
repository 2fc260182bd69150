"""ONNX Runtime sessions on the CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from compressor.errors import CompressorError, one_line

Array = np.ndarray[Any, Any]


class Session:
    """An ONNX graph, ready to answer on the CPU; several threads may ask at once.

    Args:
        threads: within one operation; None leaves the choice to ONNX Runtime.
        weights: bytes of the files that the graph refers to, by name; they are read where they lie, so that sessions
            share them. None: ONNX Runtime reads the files itself.
        prepacked: bring matrices into the order that the processor likes. Each session has a copy of its own then;
            without, one that is given `weights` takes next to no memory of its own, and is slower.

    Attributes:
        inputs: names of what the graph reads.

    Raises:
        CompressorError: the file is missing or no ONNX model.
    """

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        *,
        weights: Mapping[str, Array] | None = None,
        prepacked: bool = True,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        if not prepacked:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if weights:
            options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
            buffers = list(weights.values())
            options.add_external_initializers_from_files_in_memory(list(weights), buffers, [len(b) for b in buffers])
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own for each kind of fault
            raise CompressorError(f"{path} cannot be opened: {one_line(error)}") from error
        # ONNX Runtime reads them at every run, and does not keep them alive.
        self._weights = weights
        self.inputs = tuple(node.name for node in self._session.get_inputs())

    def run(self, inputs: Mapping[str, Array]) -> Array:
        """Logits [B, outputs] for token ids and masks [B, n], whatever else the inputs hold."""
        logits: Array = self._session.run(["logits"], {name: inputs[name] for name in self.inputs})[0]
        return logits
