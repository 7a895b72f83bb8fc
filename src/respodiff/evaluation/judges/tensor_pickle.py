"""Reads one array of numbers out of a pickle without running it.

A pickle is a program. This reader walks its opcodes, as text, with an interpreter that knows tuples, numbers, texts and bytes alone: a
"call" stays a note of what the file would have called, nothing is imported and nothing executed. The notes must then spell a numpy array
or a torch tensor; whatever else the file says is refused.
"""

from __future__ import annotations

import io
import math
import pickletools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 1 << 24
MAX_OPCODES = 500  # an array needs about 50; ends memo bombs

_RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_FROM_BUFFER = ("numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer")
_TENSOR, _STORAGE = "torch._utils _rebuild_tensor_v2", "torch.storage _load_from_bytes"
_NAMES = {*_RECONSTRUCT, *_FROM_BUFFER, _TENSOR, _STORAGE, "numpy ndarray", "numpy dtype", "_codecs encode", "collections OrderedDict"}

_PUSH_ARG = {"INT", "BININT", "BININT1", "BININT2", "LONG1", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES"}
_PUSH_ARG |= {"BINBYTES8", "BYTEARRAY8", "STRING", "SHORT_BINSTRING", "BINSTRING"}
_PUSH_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_SILENT = {"PROTO", "FRAME", "STOP"}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_MARK = object()
_BROKEN = (
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
    RuntimeError,
    StopIteration,
)


class Refused(ValueError):
    """What a pickle holds that an array of numbers does not."""


@dataclass(eq=False, repr=False)
class _Name:
    text: str


@dataclass(eq=False, repr=False)
class _Call:
    """What the file would have called, and the state it would have set."""

    name: str
    args: tuple[Any, ...]
    state: tuple[Any, ...] = ()


def read_array(data: bytes) -> NDArray[Any]:
    """The numpy array or torch tensor that a pickle spells: float16, float32 or float64, any shape.

    Raises:
        Refused: it spells anything else, or is cut short.
    """
    if len(data) > MAX_BYTES:
        raise Refused(f"has {len(data)} bytes, more than {MAX_BYTES}")
    try:
        return np.ascontiguousarray(_array(_Machine().run(data)))
    except Refused:
        raise
    except _BROKEN as error:
        raise Refused(f"is cut short or malformed ({type(error).__name__})") from None


class _Machine:
    """The few opcodes of an array, on a stack of plain values and notes. Nothing is compared or printed, so that no bomb unfolds."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for count, (opcode, arg, _) in enumerate(pickletools.genops(data)):
            if count >= MAX_OPCODES:
                raise Refused(f"has more than {MAX_OPCODES} opcodes")
            self._step(opcode.name, arg)
        if len(self.stack) != 1:
            raise Refused("holds more or less than one thing")
        return self.stack[0]

    def _step(self, opcode: str, arg: Any) -> None:
        stack = self.stack
        if opcode in _PUSH_ARG:
            stack.append(arg)
        elif opcode in _PUSH_CONSTANT:
            stack.append(_PUSH_CONSTANT[opcode])
        elif opcode in _PUT:
            self.memo[arg] = stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif opcode in _GET:
            stack.append(self.memo[arg])
        elif opcode == "MARK":
            stack.append(_MARK)
        elif opcode == "TUPLE":
            self._pack(next(n for n in range(len(stack)) if stack[-1 - n] is _MARK), marked=True)
        elif opcode in _TUPLES:
            self._pack(_TUPLES[opcode], marked=False)
        elif opcode in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(self._name(arg if opcode == "GLOBAL" else None))
        elif opcode in ("REDUCE", "BUILD"):
            self._call(opcode == "BUILD")
        elif opcode not in _SILENT:
            raise Refused(f"has the opcode {opcode}, which no array needs")

    def _pack(self, n: int, marked: bool) -> None:
        items = tuple(self.stack[len(self.stack) - n :])
        if len(items) != n:
            raise IndexError
        del self.stack[len(self.stack) - n - marked :]
        self.stack.append(items)

    def _name(self, text: str | None) -> _Name:
        if text is None:
            last, first = self.stack.pop(), self.stack.pop()
            text = f"{first} {last}" if isinstance(first, str) and isinstance(last, str) else "?"
        if text not in _NAMES:
            raise Refused(f"would import {text[:80]!r}")
        return _Name(text)

    def _call(self, build: bool) -> None:
        args, target = self.stack.pop(), self.stack[-1]
        if isinstance(args, tuple) and isinstance(target, _Call) and build:
            target.state = args
        elif isinstance(args, tuple) and isinstance(target, _Name) and not build:
            self.stack[-1] = _Call(target.text, args)
        else:
            raise Refused("would call or change what is no array")


def _array(note: Any) -> NDArray[Any]:
    """The array that a note spells; what does not fit raises."""
    if not isinstance(note, _Call):
        raise Refused("is no array of numbers")
    if note.name in _RECONSTRUCT:
        _, shape, dtype, fortran, data = note.state
        return _numbers(_bytes(data), _dtype(dtype), shape, "F" if fortran is True else "C")
    if note.name in _FROM_BUFFER:
        data, dtype, shape, order = note.args
        return _numbers(_bytes(data), _dtype(dtype), shape, "F" if order == "F" else "C")
    if note.name == _TENSOR:
        storage, offset, shape, stride = note.args[:4]
        if not isinstance(storage, _Call) or storage.name != _STORAGE or offset != 0:
            raise Refused("is no whole tensor")
        (data,) = storage.args
        return _tensor(_bytes(data), _shape(shape), stride)
    raise Refused("is no array of numbers")


def _numbers(data: bytes, dtype: np.dtype[Any], shape: Any, order: Any) -> NDArray[Any]:
    if math.prod(_shape(shape)) * dtype.itemsize != len(data):
        raise Refused(f"is an array whose {len(data)} bytes do not fill its shape")
    return np.frombuffer(data, dtype).reshape(shape, order=order).astype(dtype.newbyteorder("="))


def _shape(note: Any) -> tuple[int, ...]:
    if not isinstance(note, tuple) or not all(type(n) is int and n >= 0 for n in note) or len(note) > 8:
        raise Refused("is an array without a shape")
    return note


def _dtype(note: Any) -> np.dtype[Any]:
    if isinstance(note, _Call) and note.name == "numpy dtype" and note.args[0] in ("f2", "f4", "f8") and note.state[1] in ("<", ">"):
        found: np.dtype[Any] = np.dtype(note.state[1] + note.args[0])
        return found
    raise Refused("is an array of something else than float16, float32 or float64")


def _bytes(note: Any) -> bytes:
    if isinstance(note, _Call) and note.name == "_codecs encode":
        text, encoding = note.args
        note = text if encoding == "latin1" else None
    if isinstance(note, str):  # how protocols 0 to 2 write bytes
        return note.encode("latin1")
    if isinstance(note, (bytes, bytearray)):
        return bytes(note)
    raise Refused("is an array without bytes")


def _tensor(data: bytes, shape: tuple[int, ...], stride: Any) -> NDArray[Any]:
    """A tensor from its storage, which torch pickles as a file of its own inside the pickle."""
    storage = load_torch(io.BytesIO(data))
    if type(storage).__name__ != "TypedStorage":
        raise Refused("is a tensor without a storage")
    kinds = {"torch.float16": "<f2", "torch.float32": "<f4", "torch.float64": "<f8"}
    if str(storage.dtype) not in kinds:
        raise Refused("is a tensor of something else than float16, float32 or float64")
    if stride != tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))):
        raise Refused("is a tensor that is not contiguous")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the class of storage that its own files hold
        numbers = bytes(storage.untyped().tolist())
    return _numbers(numbers, np.dtype(kinds[str(storage.dtype)]), shape, "C")


def load_torch(file: Path | io.BytesIO) -> Any:
    """What a file of torch.save holds, by torch's own reader of weights, which runs no foreign code from version 2.6 on.

    Raises:
        ValueError: an older torch, or a file that holds more than weights.
    """
    import torch

    if tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6):
        raise Refused(f"needs torch 2.6 or newer to be read safely, this is {torch.__version__}: upgrade, or give a .safetensors file")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError and more
        reason = str(error).splitlines() or [type(error).__name__]
        raise Refused(f"holds more than weights, or is no file of torch.save ({reason[0][:100]})") from None
