"""The arrays that the program computes with, and memory that compiled code may read."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Weights = list[Array]  # a kernel (inputs, units) and a bias (units,) for each layer, in turn
Arrays = Mapping[str, npt.NDArray[Any]]  # the state of an object
ALIGNMENT = 64  # bytes


def aligned_buffer(shape: tuple[int, ...]) -> Array:
    """A float32 array of zeros that begins at a multiple of 64 bytes.

    XLA's code reads its inputs with instructions that crash at any other address, and NumPy
    promises no more than 16.
    """
    size = math.prod(shape)
    memory = np.zeros(size + ALIGNMENT // 4, np.float32)
    start = -memory.ctypes.data % ALIGNMENT // 4
    return memory[start : start + size].reshape(shape)
