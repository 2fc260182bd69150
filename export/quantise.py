"""Matrices as int8."""

import platform

import numpy as np
import torch

from compressor.export.weights import Array


def quantise(matrix: Array, reduced: bool) -> tuple[Array, Array]:
    """A matrix as int8 with a scale for each row: symmetric, the largest number of a row becomes 127.

    Signed weights run more than twice as fast as unsigned ones on processors with VNNI.

    Args:
        matrix: [N, K]; rows are output channels, or words.
        reduced: use 7 bits (see `needs_reduced_range`).

    Returns:
        int8 [N, K] and scales [N], float32; their product is within half a scale of the matrix.
    """
    largest = 63 if reduced else 127
    scales = np.abs(matrix).max(axis=1).astype(np.float32) / np.float32(largest)
    scales[scales == 0] = 1  # A row of zeros.
    return np.rint(matrix / scales[:, None]).astype(np.int8), scales


def needs_reduced_range() -> bool:
    """Whether int8 products can overflow here: x86 without VNNI adds pairs of products in 16 bits."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and not torch.cpu._is_vnni_supported()
