"""ONNX Runtime sessions on the CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from compressor.errors import CompressorError, one_line

Array = np.ndarray[Any, Any]


def open_session(path: Path, threads: int | None = None) -> Any:
    """A session on the CPU.

    Args:
        threads: within one operation; None leaves the choice to ONNX Runtime.

    Raises:
        CompressorError: the file is missing or no ONNX model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own for each kind of fault
        raise CompressorError(f"{path} cannot be opened: {one_line(error)}") from error


def run_session(session: Any, inputs: Mapping[str, Array]) -> Array:
    """Logits [B, outputs] for token ids and masks [B, n], whatever else the inputs hold."""
    names = [node.name for node in session.get_inputs()]
    logits: Array = session.run(["logits"], {name: inputs[name] for name in names})[0]
    return logits
