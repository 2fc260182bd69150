"""The weights that all sizes of a family share: one file a precision, of which every size reads leading parts.

A size keeps the first heads and neurons of a layer, so the first rows of some matrices and the first columns of others.
Those that lose rows are stored as PyTorch has them, those that lose columns are stored transposed: either way what a
size keeps lies together, at the beginning. An ONNX graph refers to it by offset and length, whatever the size.
The files are safetensors; nothing in them says that ONNX graphs read them too. Imports no torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from compressor.errors import CompressorError

Array = np.ndarray[Any, Any]
# Endings of the names of tensors in graphs: a matrix [K, N], the scales [N] of an int8 one, its zero points [N], and a
# vector as [1, N].
TRANSPOSED = ".transposed"
SCALE = ".scale"
ZERO = ".zero"
ROW = ".row"
_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "I8": np.dtype(np.int8), "I64": np.dtype(np.int64)}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: offset counts from the file's beginning, in bytes."""

    shape: tuple[int, ...]
    type: np.dtype[Any]
    offset: int

    def leading(self, rows: int | None) -> "Stored":
        """Its first rows, or all of it."""
        return self if rows is None else Stored((rows, *self.shape[1:]), self.type, self.offset)

    @property
    def row(self) -> "Stored":
        """A vector as a matrix of one row."""
        return Stored((1, *self.shape), self.type, self.offset)

    @property
    def bytes(self) -> int:
        """How many it takes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.type.itemsize


def write_weights(tensors: Mapping[str, Array], path: Path) -> dict[str, Stored]:
    """Write a weights file and say where each tensor lies in it."""
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    return read_index(path)


def read_index(path: Path) -> dict[str, Stored]:
    """Where each tensor of a weights file lies.

    Raises:
        CompressorError: the file is missing, cut off or no safetensors file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        index = {
            name: Stored(tuple(entry["shape"]), _TYPES[entry["dtype"]], 8 + length + entry["data_offsets"][0])
            for name, entry in header.items()
        }
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CompressorError(f"{path} cannot be read as a weights file: {error}") from error
    end = max((stored.offset + stored.bytes for stored in index.values()), default=0)
    if path.stat().st_size != end:
        raise CompressorError(f"{path} has {path.stat().st_size} bytes, and its header speaks of {end}: it was cut off")
    return index


def read_weights(path: Path) -> dict[str, Array]:
    """The parameters of a super-network, as PyTorch has them, from the fp32 file.

    Raises:
        CompressorError: the file is missing, cut off or no safetensors file.
    """
    read_index(path)
    return {
        name.removesuffix(TRANSPOSED): value.T if name.endswith(TRANSPOSED) else value
        for name, value in load_file(path).items()
    }
