"""ONNX Runtime sessions on the CPU."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from compressor.errors import CompressorError, one_line

Array = np.ndarray[Any, Any]


@cache
def _share_working_memory() -> None:
    """Have one arena for the intermediate results of all thrifty sessions; ONNX Runtime keeps it for the process."""
    where = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(where, None)


class Session:
    """An ONNX graph, ready to answer on the CPU; several threads may ask at once.

    Args:
        threads: within one operation; None leaves the choice to ONNX Runtime.
        weights: bytes of the files that the graph refers to, by name; they are read where they lie, so that sessions
            share them. None: ONNX Runtime reads the files itself.
        thrifty: take next to no memory beside `weights`. Otherwise a session has a copy of its matrices in the order
            that the processor likes, which is faster, and keeps memory of its own to work in.

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
        thrifty: bool = False,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        if thrifty:
            _share_working_memory()
            options.add_session_config_entry("session.use_env_allocators", "1")
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
