"""Q16 with the embedded CLIP model and made-up vectors; and pickles that must be refused without being run."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from respodiff.evaluation import judges
from respodiff.evaluation.judges import ClipJudge, FlagJudge
from respodiff.evaluation.judges.q16 import Q16, convert_q16, read_prompts
from respodiff.evaluation.judges.tensor_pickle import read_array

VECTORS = np.random.default_rng(0).standard_normal((2, 192)).astype(np.float16)
LABELLED = Path(__file__).parents[2] / "data" / "labelled"


@pytest.fixture(scope="module")
def clip() -> ClipJudge:
    return ClipJudge.load()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [Image.open(LABELLED / name) for name in ("0004.webp", "0095.webp", "0286.webp", "0332.webp")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded CLIP model in a folder of its own."""
    return Path(shutil.copytree(judges.judge_folder("embedded"), tmp_path / "clip"))


def saved(thing: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer, **options)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8"])
def test_arrays_of_every_protocol_are_read(protocol: int, dtype: str) -> None:
    wanted = VECTORS.astype(dtype)
    for array in (wanted, np.asfortranarray(wanted)):
        found = read_array(pickle.dumps(array, protocol))
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == wanted.dtype.newbyteorder("=")


def test_the_module_name_of_older_numpy_and_the_published_size() -> None:
    data = pickle.dumps(np.zeros((2, 768), np.float16), 3).replace(b"numpy._core", b"numpy.core")
    assert len(data) == 3231  # bytes of the published prompts.p
    assert read_array(data).shape == (2, 768)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_tensors_of_every_protocol_are_read(protocol: int) -> None:
    np.testing.assert_array_equal(read_array(pickle.dumps(torch.from_numpy(VECTORS), protocol)), VECTORS)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_files_of_torch_save_are_read(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write(tmp_path / "prompts.p", saved(torch.from_numpy(VECTORS), **options))
    np.testing.assert_array_equal(read_prompts(path), VECTORS)


def test_convert(tmp_path: Path) -> None:
    source = write(tmp_path / "prompts.p", pickle.dumps(VECTORS, 3))
    out = convert_q16(source, tmp_path / "prompts.safetensors")
    np.testing.assert_array_equal(load_file(out)["prompts"], VECTORS)
    np.testing.assert_array_equal(read_prompts(out), VECTORS)
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        convert_q16(source, tmp_path / "prompts.bin")


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
    "objects": pickle.dumps(np.array([[1, "a"]], dtype=object), 3),
    "integers": pickle.dumps(np.zeros((2, 3), dtype=np.int64), 3),
    "own class": pickle.dumps(VECTORS.view(Wrapped), 3),
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
        read_prompts(path)
    assert "\n" not in str(caught.value)
    assert not ran and not (tmp_path / "PWNED").exists()


def test_a_refusal_names_what_the_file_would_import(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"would import '(posix|nt) system'"):
        read_prompts(write(tmp_path / "prompts.p", EVIL["os.system"]))


def test_an_older_torch_reads_no_torch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "prompts.p", saved(torch.from_numpy(VECTORS)))
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ValueError, match=r"needs torch 2\.6 or newer"):
        read_prompts(path)


@pytest.mark.parametrize("array", [VECTORS[0], np.zeros((3, 4), np.float32), np.zeros((2, 4), np.float32), VECTORS * np.float16(np.nan)])
def test_vectors_that_cannot_be(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="allowed: two finite vectors"):
        read_prompts(write(tmp_path / "prompts.p", pickle.dumps(array, 3)))


def test_safetensors_without_prompts(tmp_path: Path) -> None:
    save_file({"other": VECTORS}, tmp_path / "prompts.safetensors")
    with pytest.raises(ValueError, match="has no readable tensor 'prompts'"):
        read_prompts(tmp_path / "prompts.safetensors")
    with pytest.raises(ValueError, match="has no readable tensor 'prompts'"):
        read_prompts(write(tmp_path / "broken.safetensors", b"nothing"))


def test_probability_is_the_softmax_of_scaled_cosines(clip: ClipJudge, images: list[Image.Image]) -> None:
    judge = Q16(clip, VECTORS, "q16:here", "0")
    p = torch.nn.functional.normalize(torch.from_numpy(VECTORS).float(), dim=-1)
    wanted = (100 * torch.from_numpy(clip.embed_images(images)) @ p.T).softmax(-1)[:, 1]
    np.testing.assert_allclose(judge.scores(images), wanted.numpy(), atol=1e-5)
    assert isinstance(judge, FlagJudge) and judge.threshold == 0.5 and "0.5 or more" in judge.rule


def test_text_vectors_flag_what_they_say(clip: ClipJudge, images: list[Image.Image]) -> None:
    judge = Q16(clip, clip.embed_texts(["a cloud with rain", "a dagger"]) * 22, "q16:here", "0")
    scores = judge.scores([images[3], images[2]])
    assert scores[0] is not None and scores[1] is not None and scores[0] < 0.5 < scores[1]


@pytest.mark.filterwarnings("ignore:judge q16")
def test_a_broken_image_is_unknown(clip: ClipJudge, images: list[Image.Image]) -> None:
    buffer = io.BytesIO()
    images[0].save(buffer, "png")
    judge = Q16(clip, VECTORS, "q16:here", "0")
    whole = judge.scores(images[:2])
    scores = judge.scores([images[0], Image.open(io.BytesIO(buffer.getvalue()[:3000])), images[1], Image.new("RGB", (0, 5))])
    assert scores[1] is None and scores[3] is None
    np.testing.assert_allclose([scores[0], scores[2]], whole, atol=1e-5)


def test_sources(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no prompts file"):
        judges.load(f"q16:{folder}")
    beside = write(folder.parent / "prompts.p", pickle.dumps(VECTORS, 3))
    found = judges.load(f"q16:{folder}")
    assert isinstance(found, Q16) and found.name == f"q16:{folder}" and len(found.digest) == 16
    assert judges.load(f"q16:{folder.parent}").digest == judges.load(f"q16:{beside}").digest == found.digest
    convert_q16(beside, folder / "prompts.safetensors")
    assert judges.load(f"q16:{folder}").digest == found.digest  # where the vectors come from makes no difference
    save_file({"prompts": VECTORS * 2}, folder / "prompts.safetensors")
    assert judges.load(f"q16:{folder}").digest != found.digest


def test_wrong_sources(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither a folder nor a file"):
        judges.load("q16:/no/such/folder")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a file"):
        judges.load("q16")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"0 folders with a config\.json"):
        judges.load(f"q16:{tmp_path / 'empty'}")
    write(folder / "prompts.p", pickle.dumps(VECTORS[:, :100], 3))
    with pytest.raises(ValueError, match=r"allowed: \(2, 192\) for this CLIP model"):
        judges.load(f"q16:{folder}")
