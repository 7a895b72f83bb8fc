"""Converts the vectors of Q16 from their published pickle into a safetensors file, without running the pickle.

A pickle is a program. The reader below lets it import nothing: the few names that an array of numpy needs stand for the classes of
this file, which only keep what they are given. Any other name is refused.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

MAX_BYTES = 1 << 24


class _Dtype:
    """What the pickle says of a dtype: its kind and byte order."""

    order = "<"

    def __init__(self, kind: Any, *_: Any) -> None:
        self.kind = kind

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class _Array:
    """What the pickle says of an array: shape, dtype, order and bytes."""

    shape: Any = None
    dtype: Any = None
    fortran: Any = False
    data: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state


STANDS_FOR = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STANDS_FOR:
            raise ValueError(f"it would import {f'{module} {name}'[:80]!r}")
        return STANDS_FOR[module, name]


def read_array(data: bytes) -> NDArray[Any]:
    """The numpy array in a pickle of protocol 3 or 4: float16, float32 or float64, little-endian, of any shape.

    Raises:
        ValueError: the pickle holds anything else, or is cut short. Nothing in it is executed in any case.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has {len(data)} bytes, more than {MAX_BYTES}")
    try:
        found = _Reader(io.BytesIO(data)).load()
    except ValueError:
        raise
    except Exception as error:  # a malformed pickle raises from many families
        raise ValueError(f"it is cut short or malformed ({type(error).__name__})") from None
    if type(found) is not _Array or type(found.dtype) is not _Dtype:
        raise ValueError("it is no array of numbers")
    dtype, shape = found.dtype, found.shape
    if dtype.kind not in ("f2", "f4", "f8") or dtype.order != "<":
        raise ValueError("it is an array of something else than little-endian float16, float32 or float64")
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 8:
        raise ValueError("it is an array without a shape")
    kind = np.dtype(dtype.kind)
    if type(found.data) is not bytes or math.prod(shape) * kind.itemsize != len(found.data):
        raise ValueError("it is an array whose bytes do not fill its shape")
    return np.frombuffer(found.data, kind).reshape(shape, order="F" if found.fortran is True else "C").copy()


def convert_q16(path: str | Path, out: str | Path) -> tuple[int, ...]:
    """Writes the vectors of Q16's ``prompts.p`` as a safetensors file with one tensor ``prompts``, and returns their shape (2, D).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that holds anything but two vectors, or a new name that does not end in .safetensors.
    """
    path, out = Path(path).expanduser(), Path(out).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"prompts file {str(path)!r} does not exist; give prompts.p of ml-research/Q16 (data/ViT-L-14)")
    if out.suffix != ".safetensors":
        raise ValueError(f"out is {str(out)!r}; allowed: a name that ends in .safetensors; give prompts.safetensors")
    try:
        vectors = read_array(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"prompts file {path.name} was refused and nothing in it was run: {error}; allowed: one numpy array (2, D) of floats; "
            "download it again from ml-research/Q16"
        ) from None
    if vectors.ndim != 2 or len(vectors) != 2:
        raise ValueError(f"prompts file {path.name} holds an array {vectors.shape}; allowed: two vectors (2, D)")
    save_file({"prompts": vectors}, out)
    return vectors.shape
