"""Q16's pickle becomes safetensors; pickles that hold anything else are refused without being run."""

from __future__ import annotations

import builtins
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from respodiff.steering.convert import convert_q16

VECTORS = np.random.default_rng(0).standard_normal((2, 192)).astype(np.float16)


def saved(thing: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer, **options)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("vectors", [VECTORS, np.asfortranarray(VECTORS)])
def test_vectors_become_safetensors(vectors: Any, old: bool, tmp_path: Path) -> None:
    data = pickle.dumps(vectors, 3)
    source = write(tmp_path / "prompts.p", data.replace(b"numpy._core", b"numpy.core") if old else data)
    assert convert_q16(source, tmp_path / "prompts.safetensors") == {"prompts": (2, 192)}
    found = load_file(tmp_path / "prompts.safetensors")["prompts"]
    np.testing.assert_array_equal(found, VECTORS)
    assert found.dtype == np.float16


def test_the_published_size(tmp_path: Path) -> None:
    data = pickle.dumps(np.zeros((2, 768), np.float16), 3).replace(b"numpy._core", b"numpy.core")
    assert len(data) == 3231  # bytes of the published prompts.p
    assert convert_q16(write(tmp_path / "prompts.p", data), tmp_path / "out.safetensors") == {"prompts": (2, 768)}


def test_wrong_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^out is"):
        convert_q16(write(tmp_path / "prompts.p", pickle.dumps(VECTORS, 3)), tmp_path / "prompts.bin")
    with pytest.raises(FileNotFoundError, match="prompts file"):
        convert_q16(tmp_path / "none.p", tmp_path / "prompts.safetensors")


class Reduced:
    """Pickles to a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def bomb() -> bytes:
    """A tuple of tuples, each twice the one before: short to write, 2**400 items to visit."""
    return b"\x80\x04)" + b"\x94".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(200)).join([b"\x94", b"."])


def long_bomb() -> bytes:
    return b"\x80\x04)" + b"\x94" * 100_000 + b"."


def huge_shape() -> bytes:
    return pickle.dumps(VECTORS, 3).replace(b"K\x02K\xc0\x86", b"J\xff\xff\xff\x7fK\xc0\x86")


class Wrapped(np.ndarray):
    """An array class of the file's own."""


EVIL: dict[str, bytes] = {
    "os.system": pickle.dumps(Reduced(os.system, "touch PWNED"), 3),
    "os.system, text protocol": pickle.dumps(Reduced(os.system, "touch PWNED"), 0),
    "os.system, protocol 4": pickle.dumps(Reduced(os.system, "touch PWNED"), 4),
    "eval": pickle.dumps(Reduced(builtins.eval, "open('PWNED', 'w')"), 3),
    "exec in an array": pickle.dumps((VECTORS, Reduced(builtins.exec, "open('PWNED', 'w')")), 4),
    "call by stack": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
    "INST": b"(S'touch PWNED'\nios\nsystem\n.",
    "getattr": b"cbuiltins\ngetattr\n(cos\nenviron\nS'x'\ntR.",
    "allowed name, wrong use": b"\x80\x03c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00latin1\x86R.",
    "torch load inside": pickle.dumps(Reduced(torch.storage._load_from_bytes, saved(Reduced(os.system, "touch PWNED"))), 3),
    "storage that is a program": pickle.dumps(
        Reduced(
            torch._utils._rebuild_tensor_v2,
            Reduced(torch.storage._load_from_bytes, saved(Reduced(os.system, "touch PWNED"), _use_new_zipfile_serialization=False)),
            0,
            (2, 192),
            (192, 1),
            False,
            (),
        ),
        3,
    ),
    "torch.save of a program": saved(Reduced(os.system, "touch PWNED")),
    "old torch.save of a program": saved(Reduced(os.system, "touch PWNED"), _use_new_zipfile_serialization=False),
    "bomb": bomb(),
    "long bomb": long_bomb(),
    "huge shape": huge_shape(),
    "cut short": pickle.dumps(VECTORS, 3)[:-700],
    "cut short, new": pickle.dumps(VECTORS, 4)[:200],
    "no end": pickle.dumps(VECTORS, 3)[:-1],
    "empty": b"",
    "text": b"these are no numbers",
    "a list": pickle.dumps([1.0, 2.0], 3),
    "a dictionary": pickle.dumps({"a": 1}, 3),
    "other protocol": pickle.dumps(VECTORS, 2),
    "newer protocol": pickle.dumps(VECTORS, 4),
    "three vectors": pickle.dumps(np.zeros((3, 4), np.float16), 3),
    "float32": pickle.dumps(VECTORS.astype("f4"), 3),
    "array and a program": pickle.dumps(VECTORS, 3)[:-1] + pickle.dumps(Reduced(os.system, "touch PWNED"), 3)[2:],
    "big-endian": pickle.dumps(VECTORS.astype(">f4"), 3),
    "objects": pickle.dumps(np.array([[1, "a"]], dtype=object), 3),
    "integers": pickle.dumps(np.zeros((2, 3), dtype=np.int64), 3),
    "own class": pickle.dumps(VECTORS.view(Wrapped), 3),
    "state of a class": b"\x80\x02cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.",
    "slots of a class": b"\x80\x02c_codecs\nencode\nN}X\x08\x00\x00\x00__init__K\x01s\x86b.",
    "huge array": b"\x80\x02cnumpy\nndarray\n\x8a\x08" + b"\xff" * 7 + b"\x00\x85\x85R.",
    "name with dots": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    "persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "extension": b"\x80\x02\x82\x01.",
}


@pytest.mark.parametrize("what", EVIL)
def test_everything_else_is_refused_and_nothing_is_run(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran: list[Any] = []
    for module, name in ((os, "system"), (builtins, "eval"), (pickle, "loads"), (pickle, "load")):
        monkeypatch.setattr(module, name, lambda *args, **_: ran.append(args))
    path = write(tmp_path / "prompts.p", EVIL[what])
    with pytest.raises(ValueError, match=r"prompts file prompts\.p was refused and nothing in it was run") as caught:
        convert_q16(path, tmp_path / "out.safetensors")
    assert "\n" not in str(caught.value)
    assert not ran and not (tmp_path / "PWNED").exists() and not (tmp_path / "out.safetensors").exists()
