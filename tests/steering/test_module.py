from __future__ import annotations

import json
import math
import os
import pickle
import random
import resource
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.drawing import apart, close, draw, same
from tests.tiny_models import sd, sd3

from command import last_json, respodiff
from respodiff.concepts.concept import Concept
from respodiff.methods.registry import load
from respodiff.pipelines.bottleneck import site_shape
from respodiff.pipelines.registry import backbone
from respodiff.steering.adapter import header_of
from respodiff.steering.convert import to_official
from respodiff.steering.fuse import channel_delta
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import FORMAT, HEADER_KEY, Header, checksum, read_file, read_header, tensor_digest
from respodiff.steering.steer import steer
from respodiff.training.config import TrainConfig

Make = Callable[..., ConceptModule]


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> Path:
    """Save the file again after ``change(tensors, header)``, as a program would that knows of checksums."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[HEADER_KEY])
        tensors = {k: file.get_tensor(k) for k in ("ram.r", "sam.r")}
    change(tensors, header)
    header["checksum"] = checksum({k: v for k, v in header.items() if k != "checksum"})
    save_file(tensors, path, metadata={HEADER_KEY: json.dumps(header)})
    return path


# --- save and load ---


def test_a_saved_module_comes_back_bit_identical(make_module: Make, tmp_path: Path) -> None:
    module = make_module(
        "woman",
        attribute="gender",
        seed=4,
        negative="a man",
        base_model="embedded",
        base_digest="ab",
        base_weights="cd",
        resolution=(128, 96),
        train={"steps": 300, "lr": 0.01, "window": [0.2, 0.8]},
        library="1.2",
    )
    found = load(module.save(tmp_path / "deep" / "er" / "woman.safetensors"))
    assert torch.equal(found.ram, module.ram) and torch.equal(found.sam, module.sam)
    assert found.header == module.header
    assert found.digest == module.digest
    assert (found.name, found.shape) == ("woman", (64, 4, 4))


def test_saving_leaves_one_file_and_replaces_an_older_one(make_module: Make, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    make_module(seed=1).save(path)
    make_module(seed=2).save(str(path))
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert torch.equal(load(path).ram, make_module(seed=2).ram)


def test_views_and_shared_tensors_can_be_saved(make_module: Make, tmp_path: Path) -> None:
    both = torch.randn(4, 4, 64).permute(2, 0, 1)
    module = ConceptModule.of(both, both, make_module().header)
    found = load(module.save(tmp_path / "m.safetensors"))
    assert torch.equal(found.ram, both) and torch.equal(found.sam, both)


def test_the_digest_tells_values_shapes_and_roles_apart(make_module: Make) -> None:
    module = make_module()
    assert module.digest == make_module().digest
    assert module.digest != make_module(seed=1).digest
    assert module.digest != ConceptModule.of(module.sam, module.ram, module.header).digest
    assert tensor_digest(torch.zeros(2, 3)) != tensor_digest(torch.zeros(3, 2))


# --- operations ---


def test_delta_is_the_sum_of_both(make_module: Make) -> None:
    module = make_module()
    assert torch.equal(module.delta, module.ram + module.sam)


@pytest.mark.parametrize("scale", [0.0, 0.5, -1.0, 2])
def test_scale(make_module: Make, scale: float) -> None:
    module = make_module()
    before = module.ram.clone()
    scaled = module.scale(scale)
    assert torch.equal(scaled.ram, module.ram * scale) and torch.equal(scaled.sam, module.sam * scale)
    assert scaled.header == module.header and torch.equal(module.ram, before)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_scale_refuses_what_is_not_finite(make_module: Make, scale: float) -> None:
    with pytest.raises(ValueError, match=f"scale is {scale}; allowed: any finite number"):
        make_module().scale(scale)


# --- refusals of tensors ---


def test_tensors_that_make_no_module() -> None:
    header, good = Header("x", "an x", "a y"), torch.zeros(64, 4, 4)
    with pytest.raises(ValueError, match=r"form 'constant' cannot be made of the tensors r \(64, 4\)"):
        ConceptModule.of(torch.zeros(64, 4), good, header)
    with pytest.raises(ValueError, match=r"form 'constant' cannot be made of the tensors r \(1, 64, 4, 4\)"):
        ConceptModule.of(good, good[None], header)
    with pytest.raises(ValueError, match=r"ram has shape \(64, 4, 4\), but sam \(64, 2, 2\)"):
        ConceptModule.of(good, torch.zeros(64, 2, 2), header)
    for bad in (math.nan, math.inf):
        broken = good.clone()
        broken[3, 1, 2] = bad
        with pytest.raises(ValueError, match=r"'sam\.r' holds NaN or infinite values"):
            ConceptModule.of(good, broken, header)


# --- refusals of files ---


@pytest.fixture
def saved(make_module: Make, tmp_path: Path) -> Path:
    return make_module().save(tmp_path / "woman.safetensors")


def test_no_such_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors' does not exist; train one with: respodiff train"):
        load(tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match="is a folder without a module file"):
        load(tmp_path)


def test_a_module_file_can_be_read_by_whom_the_umask_allows(make_module: Make, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = make_module().save(tmp_path / "woman.safetensors")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train", 3, "train = 3; allowed: an object"),
        ("verdict", 3, "verdict = 3; allowed: an object"),
        ("concept", 3, "concept = 3; allowed: a text"),
        ("resolution", 7, "resolution = 7; allowed: a list"),
        ("negative", None, "negative = None; allowed: a text"),
        ("kind", "fairnesr", "kind = 'fairnesr'; allowed: fairness, safety, attribute"),
    ],
)
def test_a_header_with_a_value_of_the_wrong_type_is_refused(saved: Path, key: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=f"woman.safetensors' has a header with {said}"):
        load(rewrite(saved, lambda tensors, header: header.update({key: value})))


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved: Path, keep: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(ValueError, match=r"woman\.safetensors' is truncated or not a safetensors file"):
        load(saved)


def test_a_file_of_another_tool_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"unet.to_q.lora_A.weight": torch.zeros(4, 4)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lora\.safetensors' is a safetensors file of something else"):
        load(path)
    save_file({"ram": torch.zeros(64, 4, 4), "sam": torch.zeros(64, 4, 4)}, path)
    with pytest.raises(ValueError, match="it has no respodiff header"):
        load(path)


def test_a_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    proof = tmp_path / "executed"

    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (proof,)

    path = tmp_path / "woman.safetensors"
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        load(path)
    torch.save({"ram": Malicious()}, path)
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        load(path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Malicious()))
    assert proof.exists(), "the pickle must be one that does something when loaded"


def test_a_tampered_tensor_is_refused(saved: Path) -> None:
    def tamper(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
        tensors["sam.r"][0, 0, 0] += 1

    with pytest.raises(ValueError, match=r"woman\.safetensors' is damaged: its header says digest [0-9a-f]{16}, its content has"):
        load(rewrite(saved, tamper))


def test_a_missing_digest_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="its header says digest None"):
        load(rewrite(saved, lambda tensors, header: header.pop("digest")))


def test_no_flipped_bit_of_the_header_is_read_as_another_header(saved: Path, make_module: Make) -> None:
    data, expected = bytearray(saved.read_bytes()), make_module()
    flips = random.Random(0).sample(range(8 * 8, 8 * (8 + int.from_bytes(data[:8], "little"))), 300)
    for bit in [*flips, 8 * data.index(b"fairness") + 56]:  # the last makes it "fairnesr"
        data[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(data)
        with suppress(ValueError):
            found = load(saved)
            assert found.header == expected.header and found.digest == expected.digest, bit
        data[bit // 8] ^= 1 << bit % 8


def test_a_newer_format_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=f"format 'respodiff-2'; this version reads {FORMAT!r}: update respodiff"):
        load(rewrite(saved, lambda tensors, header: header.update(format="respodiff-2")))


@pytest.mark.parametrize("key", ["concept", "target", "neutral"])
def test_a_header_without_a_needed_key_is_refused(saved: Path, key: str) -> None:
    with pytest.raises(ValueError, match=f"has a header without {key!r}"):
        load(rewrite(saved, lambda tensors, header: header.pop(key)))


def test_an_unknown_header_key_is_a_warning(saved: Path, make_module: Make) -> None:
    rewrite(saved, lambda tensors, header: header.update(flavour="new"))
    with pytest.warns(UserWarning, match=r"header keys \['flavour'\] are unknown to this version and ignored"):
        assert load(saved).header == make_module().header


@pytest.mark.parametrize("text", ["{", "3", "null"])
def test_a_header_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"ram": torch.zeros(1, 1, 1), "sam": torch.ones(1, 1, 1)}, path, metadata={HEADER_KEY: text})
    with pytest.raises(ValueError, match=r"m\.safetensors' has a broken header"):
        load(path)


def test_tensors_of_the_wrong_shape_name_the_file(saved: Path) -> None:
    def flatten(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
        tensors["ram.r"] = tensors["ram.r"].flatten(1)

    with pytest.raises(ValueError, match=r"woman\.safetensors' is damaged"):
        load(rewrite(saved, flatten))


def test_a_folder_that_cannot_be_written(make_module: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match=r"x\.safetensors' cannot be written .*choose a folder that is writable"):
        make_module().save(tmp_path / "file" / "x.safetensors")
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(OSError, match="cannot be written"):
        make_module().save(tmp_path / "taken.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken.safetensors"], "no half file is left"


# --- files of anywhere ---


def as_file(path: Path, header: dict[str, Any], dtype: str = "F32", shape: tuple[int, ...] = (1, 1, 1), size: int = 4) -> Path:
    """A safetensors file of one tensor whose content is a hole; ``size`` is that of the tensor in bytes."""
    about = {"__metadata__": {HEADER_KEY: header if isinstance(header, str) else json.dumps(header | {"checksum": checksum(header)})}}
    text = json.dumps(about | {"ram.r": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    return path


@pytest.mark.parametrize(("method", "form"), [("respodiff", "constant"), ("slider", "")])
def test_a_huge_file_is_refused_by_its_size(method: str, form: str, tmp_path: Path) -> None:
    header = {"format": FORMAT, "concept": "c", "target": "t", "neutral": "n", "method": method, "form": form}
    path = as_file(tmp_path / "m.safetensors", header, shape=(1024, 1024, 4096), size=16 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (load, ConceptModule.load, lambda p: read_file(p, "np"), read_header):
        with pytest.raises(ValueError, match=r"has 17,\d+,\d+,\d+ bytes; allowed: up to"):
            read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


@pytest.mark.parametrize(("dtype", "size"), [("F4", 2), ("F8_E4M3", 4), ("BF16", 8), ("C64", 32), ("BOOL", 4), ("I64", 32), ("F16", 8)])
@pytest.mark.parametrize("framework", ["pt", "np"])
def test_other_types_of_tensors_are_refused(dtype: str, size: int, framework: Any, tmp_path: Path) -> None:
    header = {"format": FORMAT, "concept": "c", "target": "t", "neutral": "n", "form": "constant"}
    with pytest.raises(ValueError, match=f"tensors of type {dtype}; allowed: F32"):
        read_file(as_file(tmp_path / "m.safetensors", header, dtype, (4,), size), framework)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": ' * 50_000, '{"format": "respodiff-1", "train": ' + '{"a":' * 50_000])
def test_a_deeply_nested_header_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken header"):
        load(as_file(tmp_path / "m.safetensors", text))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [10**400, math.inf, math.nan, "1", None])
@pytest.mark.parametrize("key", ["scale", "h_norm"])
def test_a_number_of_the_header_is_one(key: str, value: Any, tmp_path: Path) -> None:
    header = {"format": FORMAT, "concept": "c", "target": "t", "neutral": "n", "form": "constant", key: value}
    with pytest.raises(ValueError, match=f"header with {key} = .*; allowed: a number"):
        load(as_file(tmp_path / "m.safetensors", header))


def test_a_header_says_what_the_base_computed_in(tiny_pipe: Any, make_module: Callable[..., ConceptModule], tmp_path: Path) -> None:
    concept = Concept("woman", "a woman", "a person")
    for dtype, said in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        tiny_pipe.unet.to(dtype)
        made = make_module()
        header = header_of(tiny_pipe, "respodiff", concept, TrainConfig(), site=made.header.site, form=made.header.form)
        file = ConceptModule(header, made.tensors).save(tmp_path / f"{said}.safetensors")
        assert read_header(file).base_precision == said == last_json(respodiff("inspect", str(file), "--json"))["base_precision"]
    kind = {"quantization_method": lambda self: "nf4"}
    tiny_pipe.unet.register_to_config(quantization_config=type("Config", (), kind)())
    assert header_of(tiny_pipe, "respodiff", concept, TrainConfig()).base_precision == "nf4, bfloat16"
    assert header_of(tiny_pipe, "respodiff", concept, TrainConfig()).base_digest == read_header(file).base_digest


def test_a_file_without_that_key_is_read(make_module: Callable[..., ConceptModule], tmp_path: Path) -> None:
    file = make_module().save(tmp_path / "new.safetensors")
    with safe_open(file, "pt") as opened:
        values, tensors = json.loads(opened.metadata()[HEADER_KEY]), {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
    del values["base_precision"], values["checksum"]
    save_file(tensors, file, metadata={HEADER_KEY: json.dumps(values | {"checksum": checksum(values)})})
    assert load(file).header.base_precision == "" and load(file).digest == make_module().digest


# --- several sites ---

SITES = {sd: ("down_blocks.1", "mid_block", "up_blocks.0"), sd3: ("transformer_blocks.0", "transformer_blocks.2")}


def at_sites(pipe: Any, sites: tuple[str, ...]) -> ConceptModule:
    """A random module of those sites."""
    generator, model = torch.Generator().manual_seed(0), backbone(pipe)
    ram, sam = ({s: torch.randn(site_shape(model, site=s), generator=generator) for s in sites} for _ in range(2))
    return ConceptModule.of(ram, sam, Header("woman", "a woman", "a person"))


def by_hand(delta: torch.Tensor, which: int) -> Callable[..., Any]:
    """A hook that adds to the second of two rows, which is the conditional one."""

    def hook(_module: Any, _args: Any, out: Any) -> Any:
        h = (out if isinstance(out, torch.Tensor) else out[which]).clone()
        h[1] += delta if h.ndim == 4 else delta.flatten()
        return h if isinstance(out, torch.Tensor) else (h, out[1]) if which == 0 else (out[0], h)

    return hook


@pytest.mark.parametrize("make", SITES)
def test_a_module_of_several_sites_shifts_each_of_them(make: Any, tmp_path: Path) -> None:
    pipe, sites = make(), SITES[make]
    m = at_sites(pipe, sites)
    loaded = load(m.save(tmp_path / "m.safetensors"))
    assert loaded.header == m.header and loaded.digest == m.digest and loaded.sites == sites
    assert all(torch.equal(loaded.at(s).ram, m.at(s).ram) and torch.equal(loaded.at(s).sam, m.at(s).sam) for s in sites)
    plain = draw(pipe)
    with steer(pipe, m.scale(0.0)):
        same(draw(pipe), plain, "a zero module")
    with steer(pipe, loaded):
        steered = draw(pipe)
    with steer(pipe, [[m.at(s) for s in sites]]):
        close(draw(pipe), steered, "a module for each site", 1e-6)
    with ExitStack() as stack:
        for site in sites:
            hook = by_hand(m.at(site).delta, 0 if "down" in site else 1)
            stack.enter_context(backbone(pipe).get_submodule(site).register_forward_hook(hook))
        close(draw(pipe), steered, "by hand", 1e-5)
    for site in sites:
        with steer(pipe, m.at(site)):
            assert apart(draw(pipe), steered) > 1e-4 and apart(draw(pipe), plain) > 1e-4, f"{site} is not all, and acts"
    same(draw(pipe), plain, "afterwards")


def test_what_a_module_of_several_sites_refuses(make_module: Make, tmp_path: Path) -> None:
    pipe, c = sd(), torch.ones(32, 4, 4)
    m = at_sites(pipe, ("mid_block", "up_blocks.0"))
    with pytest.raises(ValueError, match=r"acts at mid_block,up_blocks\.0; take what it is at one of them, module\.at\(site\)"):
        _ = m.delta
    with pytest.raises(ValueError, match=r"acts at mid_block,up_blocks\.0, not at 'attic'"):
        m.at("attic")
    with pytest.raises(ValueError, match="equal"):
        ConceptModule.of({"mid_block": c}, {"up_blocks.0": c}, m.header)
    with pytest.raises(ValueError, match="is of none of its sites"):
        replace(m, header=replace(m.header, site="mid_block"))
    with pytest.raises(ValueError, match="cannot be made of the tensors nothing"):
        replace(make_module(), header=replace(make_module().header, site="mid_block,up_blocks.0"))
    with pytest.raises(ValueError, match=r"trained at site 'up_blocks\.7', this pipeline is steered at 'down_blocks\.0, "):
        ConceptModule.of({"up_blocks.7": c}, {"up_blocks.7": c}, m.header).check(pipe)
    with pytest.raises(ValueError, match=r"has 32 channels, the bottleneck of model .* has 16"):
        ConceptModule.of({"up_blocks.2": c}, {"up_blocks.2": c}, m.header).check(pipe)
    unnamed = ConceptModule.of(c, c, replace(m.header, site="up_blocks.0"))
    with pytest.raises(ValueError, match=r"trained at site 'up_blocks\.0', this pipeline is steered at 'mid_block'"):
        unnamed.check(pipe)
    named = ConceptModule.of({"up_blocks.0": c}, {"up_blocks.0": c}, m.header)
    assert named.check(pipe) == [] and named.digest != unnamed.digest, "a site that was chosen is part of the digest"
    assert torch.equal(named.channels().at("up_blocks.0").ram, torch.ones(32, 1, 1)) and m.channels().sites == m.sites
    for chosen in (m, named, unnamed):
        with pytest.raises(ValueError, match="fusing is for the mid block"):
            channel_delta([chosen.channels()])
        with pytest.raises(ValueError, match="knows the mid block alone"):
            to_official(chosen, tmp_path / "m.pt")


def test_the_mean_over_positions_of_a_chosen_site_keeps_its_relative_norm(make_module: Make) -> None:
    one = make_module(h_norm=2.0)
    chosen = ConceptModule.of({"mid_block": one.ram}, {"mid_block": one.sam}, replace(one.header, site=""))
    assert chosen.channels().relative_norm == pytest.approx(one.channels().relative_norm)
