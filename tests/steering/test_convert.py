"""Made-up files of exactly the released shapes and key names; malicious and broken ones among them."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.tiny_models import sd
from torch import Tensor, nn

from respodiff.concepts.concept import Concept, concept
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.methods.registry import load
from respodiff.steering.convert import RAM_KEY, SAM_KEY, convert, read_tensors, to_official

WOMAN = concept("woman")
BASE = "CompVis/stable-diffusion-v1-4"
N = 1280 * 8 * 8


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {RAM_KEY: torch.rand(N, 10, generator=generator), SAM_KEY: torch.rand(N, 10, generator=generator)}


@pytest.fixture(scope="module")
def released(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("authors") / "unet.pth"
    torch.save(OrderedDict(weights), path)
    return path


def written(folder: Path, content: Any, name: str = "unet.pth", **how: Any) -> Path:
    torch.save(content, folder / name, **how)
    return folder / name


# --- released RespoDiff files ---


@pytest.mark.parametrize(("name", "column"), [("woman", 0), ("man", 1), ("violence", 7)])
def test_a_concept_is_its_column_of_both_weights(released: Path, weights: dict[str, Tensor], name: str, column: int) -> None:
    m = convert(released, concept(name), base_model=BASE)
    assert m.shape == (1280, 8, 8) and m.name == name and m.method == "respodiff"
    assert torch.equal(m.ram.flatten(), weights[RAM_KEY][:, column]) and torch.equal(m.sam.flatten(), weights[SAM_KEY][:, column])
    assert m.header.base_model == BASE and m.header.target == concept(name).target
    assert m.header.train["converted"] == {
        "file": "unet.pth",
        "ram_key": RAM_KEY,
        "sam_key": SAM_KEY,
        "column": column,
        "geometry": [1280, 8, 8],
    }


def test_the_module_is_what_the_linear_layer_gives_for_a_one_hot(released: Path, weights: dict[str, Tensor]) -> None:
    layer = nn.Linear(10, N, bias=False)
    layer.weight.data = weights[RAM_KEY]
    one_hot = torch.zeros(1, 10)
    one_hot[0, 1] = 1.0
    m = convert(released, concept("man"), base_model=BASE)
    assert torch.equal(m.ram[None], layer(one_hot).view(1, 1280, 8, 8))


def test_converted_modules_are_saved_and_go_back(released: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    m = load(convert(released, WOMAN, base_model=BASE).save(tmp_path / "woman.safetensors"))
    back = torch.load(to_official(m, tmp_path / "woman.pt"), weights_only=True)
    assert list(back) == [RAM_KEY, SAM_KEY] and back[RAM_KEY].shape == (N, 10)
    assert torch.equal(back[RAM_KEY][:, 0], weights[RAM_KEY][:, 0]) and back[RAM_KEY][:, 1:].abs().max() == 0
    again = convert(tmp_path / "woman.pt", WOMAN, base_model=BASE)
    assert torch.equal(again.ram, m.ram) and torch.equal(again.sam, m.sam)
    with pytest.raises(ValueError, match="--column is 10; allowed: 0 to 9"):
        to_official(m, tmp_path / "x.pt", column=10)


def test_the_column_that_two_concepts_share_has_to_be_named(released: Path) -> None:
    with pytest.raises(ValueError, match="column 3 of official files is used for old and white; say which it is with --column"):
        convert(released, concept("white"), base_model=BASE)
    assert convert(released, concept("white"), base_model=BASE, column=3).name == "white"


def test_other_forms_of_the_same_file(weights: dict[str, Tensor], released: Path, tmp_path: Path) -> None:
    delta = convert(released, WOMAN, base_model=BASE).delta
    forms = {
        "old format": written(tmp_path, weights, "old.pth", _use_new_zipfile_serialization=False),
        "half": written(tmp_path, {k: v.half() for k, v in weights.items()}, "half.pt"),
        "prefix": written(tmp_path, {f"unet.{k}": v for k, v in weights.items()}, "prefix.pt"),
    }
    save_file(weights, tmp_path / "unet.safetensors")
    forms["safetensors"] = tmp_path / "unet.safetensors"
    for form, path in forms.items():
        found = convert(path, WOMAN, base_model=BASE)
        assert torch.equal(found.delta, delta) == (form != "half"), form
        assert torch.allclose(found.ram.flatten(), weights[RAM_KEY][:, 0], atol=1e-3)


# --- SDisc ---


def sdisc(folder: Path, columns: int = 8, numbers: int = N) -> tuple[Path, Tensor]:
    """A file as SDisc's code saves it, and its one tensor: no bias, no SAM."""
    values = torch.rand(numbers, columns, generator=torch.Generator().manual_seed(1))
    return written(folder, OrderedDict({RAM_KEY: values}), f"sdisc-{columns}.pth"), values


OURS = ("woman", "man", "young", "old", "white", "black", "asian", "sexual")
THEIRS = ("female", "male", "young", "old", "whiterace", "blackrace", "asianrace", "antisexual")


@pytest.mark.parametrize(("name", "column"), [(name, i) for names in (OURS, THEIRS) for i, name in enumerate(names)])
def test_a_concept_of_the_released_sdisc_file_is_its_column(tmp_path: Path, name: str, column: int) -> None:
    path, values = sdisc(tmp_path)
    m = convert(path, Concept(name, "x", "y"), base_model=BASE)
    assert m.method == "sdisc" and m.form == "constant" and m.sam.abs().max() == 0
    assert torch.equal(m.ram.flatten(), values[:, column])


def test_alternatives_of_one_sdisc_file_are_generated_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("respodiff.steering.convert.CHANNELS", 32)
    path, _ = sdisc(tmp_path, numbers=32 * 4 * 4)
    files = [convert(path, concept(name), base_model="tiny").save(tmp_path / f"{name}.safetensors") for name in ("woman", "man")]
    modules = [load(file) for file in files]
    assert [m.shape for m in modules] == [(32, 4, 4)] * 2
    rows = [record for record, _ in generate(sd(), ["a doctor"], modules, GenerateConfig(images=2, steps=1))]
    assert {record.concepts["gender"] for record in rows} == {"woman", "man"}


def test_of_a_hundred_columns_those_are_known_that_the_authors_script_names(tmp_path: Path) -> None:
    path, values = sdisc(tmp_path, 100, 1280)
    found = [convert(path, Concept(name, "x", "y"), base_model=BASE).ram.flatten() for name in OURS[:4]]
    assert torch.equal(torch.stack(found, 1), values[:, :4])
    with pytest.raises(ValueError, match="concept 'asian' has no known column among 100; known: woman, man, young, old; give --column N"):
        convert(path, concept("asian"), base_model=BASE)
    assert torch.equal(convert(path, concept("asian"), base_model=BASE, column=9).ram.flatten(), values[:, 9])


# --- what is not clear is refused with what was found ---


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds nothing; needed: one controlnet.fc1.weight"),
        ({"x": torch.zeros(3, 3)}, r"holds x \(3, 3\); needed: one controlnet.fc1.weight"),
        ({f"{part}.{RAM_KEY}": torch.zeros(1280, 10) for part in ("a", "b")}, r"holds a.controlnet.fc1.weight \(1280, 10\), b"),
        ({RAM_KEY: torch.zeros(640, 10), SAM_KEY: torch.zeros(1280, 10)}, r"RAM and SAM have shapes \[\(640, 10\), \(1280, 10\)\]"),
        ({RAM_KEY: torch.zeros(1280)}, r"have shapes \[\(1280,\)\]; allowed: one shape \(C H W, columns\)"),
        ({RAM_KEY: torch.zeros(1280 * 3, 8)}, "a column has 3840 numbers, which is not 1280 x 1 x 1"),
        ({RAM_KEY: torch.zeros(640, 8)}, "a column has 640 numbers, which is not 1280 x 0 x 0"),
        ({RAM_KEY: torch.zeros(1280, 7)}, "concept 'woman' has no known column among 7; known: none; give --column N"),
        ({RAM_KEY: torch.zeros(1280, 10)}, "concept 'woman' has no known column among 10; known: none; give --column N"),
        ({RAM_KEY: torch.full((1280, 8), float("nan"))}, "holds NaN"),
    ],
)
def test_wrong_contents_are_one_clear_line(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        convert(written(tmp_path, tensors), WOMAN, base_model=BASE)
    assert "\n" not in str(error.value)


def test_larger_images_have_a_larger_square(tmp_path: Path) -> None:
    values = torch.rand(1280 * 32, generator=torch.Generator().manual_seed(0))
    module = convert(written(tmp_path, {RAM_KEY: values.repeat_interleave(32)[:, None]}), WOMAN, base_model=BASE, column=0)
    assert module.shape == (1280, 32, 32) and torch.equal(module.ram[:, :, 7], values.reshape(1280, 32))


def test_a_concept_without_a_known_column_is_refused(released: Path) -> None:
    with pytest.raises(ValueError, match="concept 'tall' has no known column among 10; known: woman, man"):
        convert(released, Concept("tall", "a tall person"), base_model=BASE)
    with pytest.raises(ValueError, match="--column is 12; allowed: 0 to 9"):
        convert(released, WOMAN, base_model=BASE, column=12)


# --- broken and malicious files ---


class Bomb:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("how", ["plain pickle", "zip", "old format", "inside", "state"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    trap = tmp_path / "executed"
    path = tmp_path / "evil.pth"
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(Bomb(trap)))
    elif how == "zip":
        torch.save(Bomb(trap), path)
    elif how == "old format":
        torch.save({RAM_KEY: Bomb(trap)}, path, _use_new_zipfile_serialization=False)
    elif how == "inside":
        torch.save({RAM_KEY: torch.zeros(1280, 10), "more": [Bomb(trap)]}, path)
    else:
        torch.save(nn.Linear(10, 1280), path)
    with pytest.raises(
        ValueError, match=r"holds more than tensors, and was refused; nothing in it was executed|truncated or not a checkpoint"
    ):
        read_tensors(path)
    assert not trap.exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, 0.5, 0.99])
def test_a_truncated_file_is_one_clear_line(weights: dict[str, Tensor], tmp_path: Path, keep: float) -> None:
    for name, new in (("new.pth", True), ("old.pth", False)):
        path = written(tmp_path, {k: v[:2560].clone() for k, v in weights.items()}, name, _use_new_zipfile_serialization=new)
        data = path.read_bytes()
        path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
        with pytest.raises(ValueError, match=r"truncated or not a checkpoint|holds more than tensors") as error:
            read_tensors(path)
        assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "bad.safetensors").write_bytes(b"\x10" * 50)
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as z:
        z.writestr("a/data.pkl", "no")
    for name in ("text.pth", "bad.safetensors", "zip.pth"):
        with pytest.raises(ValueError, match=r"truncated or not|holds more than tensors"):
            read_tensors(tmp_path / name)
    with pytest.raises(ValueError, match="holds a list; needed: a dictionary of tensors"):
        read_tensors(written(tmp_path, [torch.zeros(2)], "list.pt"))
    with pytest.raises(FileNotFoundError, match=r"absent\.pth' does not exist"):
        read_tensors(tmp_path / "absent.pth")


def test_a_module_of_one_number_a_channel_has_no_place_in_it(released: Path, tmp_path: Path) -> None:
    module = convert(released, WOMAN, base_model=BASE).channels()
    with pytest.raises(ValueError, match="one number a channel"):
        to_official(module, tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()
