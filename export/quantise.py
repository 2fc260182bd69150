"""Matrices as int8."""

import numpy as np

from compressor.export.weights import Array


def quantise(matrix: Array, reduced: bool) -> tuple[Array, Array]:
    """A matrix as int8 with a scale for each row: symmetric, the largest number of a row becomes 127.

    Signed weights run more than twice as fast as unsigned ones on processors with VNNI.

    Args:
        matrix: [N, K]; rows are output channels, or words.
        reduced: use 7 bits, for processors on which 8 overflow (`machine.int8_overflows`).

    Returns:
        int8 [N, K] and scales [N], float32; their product is within half a scale of the matrix.
    """
    largest = 63 if reduced else 127
    scales = np.abs(matrix).max(axis=1).astype(np.float32) / np.float32(largest)
    scales[scales == 0] = 1  # A row of zeros.
    return np.rint(matrix / scales[:, None]).astype(np.int8), scales
