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

    def __init__(self, kind: Any, *_: Any) -> None:
        self.kind, self.order = kind, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class _Array:
    """What the pickle says of an array: shape, dtype, order and bytes."""

    def __init__(self, *_: Any) -> None:
        self.shape = self.dtype = self.fortran = self.data = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state


class _Buffer(_Array):
    """An array as protocol 5 writes it."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        self.shape, self.dtype, self.fortran, self.data = shape, dtype, order == "F", data


class _Text:
    """Bytes as protocols 0 to 2 write them: as text in latin1."""

    def __init__(self, text: Any, encoding: Any) -> None:
        self.data = text.encode("latin1") if type(text) is str and encoding == "latin1" else None

    def __setstate__(self, state: Any) -> None:
        raise ValueError("it would change a text")


STANDS_FOR = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("numpy._core.numeric", "_frombuffer"): _Buffer,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Text,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STANDS_FOR:
            raise ValueError(f"it would import {f'{module} {name}'[:80]!r}")
        return STANDS_FOR[module, name]


def read_array(data: bytes) -> NDArray[Any]:
    """The numpy array in a pickle: float16, float32 or float64 of any shape, in native byte order.

    Raises:
        ValueError: the pickle holds anything else, or is cut short. Nothing in it is executed in any case.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has {len(data)} bytes, more than {MAX_BYTES}")
    try:
        found = _Reader(io.BytesIO(data), encoding="latin1").load()
    except ValueError:
        raise
    except Exception as error:  # a malformed pickle raises from many families
        raise ValueError(f"it is cut short or malformed ({type(error).__name__})") from None
    if type(found) not in (_Array, _Buffer):
        raise ValueError("it is no array of numbers")
    return _numbers(found)


def _numbers(array: Any) -> NDArray[Any]:
    dtype, shape, data = array.dtype, array.shape, array.data
    if type(dtype) is not _Dtype or dtype.kind not in ("f2", "f4", "f8") or dtype.order not in ("<", ">"):
        raise ValueError("it is an array of something else than float16, float32 or float64")
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 8:
        raise ValueError("it is an array without a shape")
    raw = data.data if type(data) is _Text else data.encode("latin1") if type(data) is str else data
    kind = np.dtype(dtype.order + dtype.kind)
    if not isinstance(raw, bytes | bytearray) or math.prod(shape) * kind.itemsize != len(raw):
        raise ValueError("it is an array whose bytes do not fill its shape")
    found = np.frombuffer(raw, kind).reshape(shape, order="F" if array.fortran is True else "C")
    return np.ascontiguousarray(found.astype(kind.newbyteorder("=")))


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
