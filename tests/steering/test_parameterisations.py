"""Forms of what is added to h, against their equations written out, and the states and files that hold them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from respodiff.methods.sdisc import without_mean
from respodiff.steering.convert import to_released
from respodiff.steering.fuse import channel_delta
from respodiff.steering.hub import Bundle
from respodiff.steering.module import HEADER_KEY, ConceptModule, Header, load
from respodiff.steering.parameterisations import FORMS, Values, binned, constant, delta, form_of, length, lowrank
from respodiff.training.config import TrainConfig
from respodiff.training.state import TrainState

HEADER = Header("woman", "a woman", "a person", attribute="gender")
C, H, W, K, RANK = 6, 2, 3, 4, 2


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def module_of(form: str, seed: int = 0) -> ConceptModule:
    """A random module of a form, RAM and SAM both."""
    shape = {"channel": (C, 1, 1), "binned": (K, C, H, W)}.get(form, (C, H, W))
    maps = {k: randn(C, RANK, seed=seed + i) for i, k in enumerate(("ram_a", "ram_b", "sam_a", "sam_b"), 2)} if form == "lowrank" else {}
    return ConceptModule(randn(*shape, seed=seed), randn(*shape, seed=seed + 1), HEADER, maps)


# --- the equations ---


def test_a_constant_is_the_same_whatever_h_and_t_are() -> None:
    values = Values(randn(1, C, H, W))
    for seed, t in ((1, 0), (2, 999)):
        assert torch.equal(constant(values, randn(5, C, H, W, seed=seed), torch.tensor(t)), values.r)


@pytest.mark.parametrize(("t", "expected"), [(0, 0), (249, 0), (250, 1), (499, 1), (500, 2), (749, 2), (750, 3), (999, 3), (1000, 3)])
def test_a_bin_holds_its_part_of_the_timesteps(t: int, expected: int) -> None:
    r = torch.arange(K).view(K, 1, 1, 1) * torch.ones(K, C, H, W)
    assert binned(Values(r), torch.zeros(1, C, H, W), torch.tensor(t)).unique().tolist() == [expected]


def test_every_row_gets_the_bin_of_its_own_timestep() -> None:
    r = randn(K, C, H, W)
    found = binned(Values(r), torch.zeros(3, C, H, W), torch.tensor([999, 0, 300]))
    assert torch.equal(found, torch.stack([r[3], r[0], r[1]]))


def test_lowrank_is_a_matrix_product_at_every_position() -> None:
    r, a, b, h = randn(1, C, H, W), randn(C, RANK, seed=1), randn(C, RANK, seed=2), randn(5, C, H, W, seed=3)
    found = lowrank(Values(r, a, b), h, torch.tensor(7))
    for n in range(5):
        for y in range(H):
            for x in range(W):
                expected = r[0, :, y, x] + (a @ b.T) @ h[n, :, y, x]
                assert torch.allclose(found[n, :, y, x], expected, atol=1e-5)


def test_lowrank_of_an_image_stream_maps_every_token() -> None:
    r, a, b, h = randn(1, C, 1, 1), randn(C, RANK, seed=1), randn(C, RANK, seed=2), randn(2, 7, C, seed=3)
    found = lowrank(Values(r, a, b), h, torch.tensor(7))
    assert found.shape == (2, C, 7, 1)
    for token in range(7):
        assert torch.allclose(found[1, :, token, 0], r[0, :, 0, 0] + (a @ b.T) @ h[1, token], atol=1e-5)


def test_lowrank_can_push_less_where_h_is_already_there() -> None:
    u = torch.zeros(C, 1)
    u[2] = 1
    values = Values(3 * u.view(1, C, 1, 1), -u, u)  # towards 3 in channel 2
    near, far = torch.zeros(1, C, H, W), torch.zeros(1, C, H, W)
    near[:, 2], far[:, 2] = 3, -3
    assert delta(values, near, torch.tensor(0)).abs().max() == 0
    assert delta(values, far, torch.tensor(0))[:, 2].unique().tolist() == [6]


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("second", FORMS)
def test_sums_and_scales_are_of_what_is_added(first: str, second: str) -> None:
    if "channel" in (first, second) and first != second:
        with pytest.raises(ValueError, match="shape differs"):
            _ = module_of(first) + module_of(second)
        return
    a, b, h = module_of(first), module_of(second, seed=10), randn(3, C, H, W, seed=20)
    both = a + b.scale(-0.5)
    for t in (torch.tensor(3), torch.tensor(990)):
        expected = delta(a.values, h, t) - 0.5 * delta(b.values, h, t)
        assert torch.allclose(delta(both.values, h, t).expand(3, -1, H, W), expected.expand(3, -1, H, W), atol=1e-4)


def test_bins_of_another_number_cannot_be_added() -> None:
    other = ConceptModule(randn(2, C, H, W), randn(2, C, H, W), HEADER)
    with pytest.raises(ValueError, match="number of time bins differs: 'woman' has 4, 'woman' has 2"):
        _ = module_of("binned") + other


def test_length_is_of_the_longest_bin_and_where_h_is_read_the_mean_over_a_batch() -> None:
    r = torch.zeros(3, C, H, W)
    r[1, 0, 0, 0], r[2, 0, 0, 0] = -5, 4
    assert length(Values(r)) == 5
    values, h = module_of("lowrank").part("ram"), randn(4, C, H, W, seed=9)
    expected = sum(lowrank(values, h[i : i + 1], torch.tensor(0)).norm().item() for i in range(4)) / 4
    assert length(values, h, torch.tensor(0)) == pytest.approx(expected, rel=1e-5)


# --- the start ---


@pytest.mark.parametrize("form", FORMS)
def test_every_form_starts_by_adding_nothing(form: str) -> None:
    config = TrainConfig(form=form, sam_lr=0.1)  # type: ignore[arg-type]
    state = TrainState(config, (C, 1, 1) if config.flat else (C, H, W), torch.device("cpu"))
    for values in state.values.values():
        assert form_of(values) == form and len(values.r) == (4 if form == "binned" else 1)
        assert delta(values, randn(2, C, H, W), torch.tensor(500)).abs().max() == 0
    if form == "lowrank":
        assert not torch.equal(state.values["ram"].b, state.values["sam"].b)  # type: ignore[arg-type]
        assert state.values["ram"].b.std().item() == pytest.approx(C**-0.5, rel=0.6)  # type: ignore[union-attr]


def test_sam_that_is_not_trained_has_no_maps() -> None:
    assert TrainState(TrainConfig(form="lowrank"), (C, H, W), torch.device("cpu")).values["sam"].a is None


# --- modules and files ---


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> Path:
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[HEADER_KEY])
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    change(tensors, header)
    save_file(tensors, path, metadata={HEADER_KEY: json.dumps(header)})
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_file_holds_its_form_and_comes_back_bit_identical(form: str, tmp_path: Path) -> None:
    module = module_of(form)
    path = module.save(tmp_path / "woman.safetensors")
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()[HEADER_KEY])["form"] == form
    found = load(path)
    assert (found.form, found.digest, found.shape) == (form, module.digest, module.shape)
    assert all(torch.equal(a, b) for a, b in zip(found.values.named.values(), module.values.named.values(), strict=True))
    assert found.digest != module_of(form, seed=5).digest


def test_a_file_of_an_earlier_version_names_no_form_and_is_read(tmp_path: Path) -> None:
    module = module_of("constant")
    path = rewrite(module.save(tmp_path / "m.safetensors"), lambda _tensors, header: header.pop("form"))
    assert load(path).digest == module.digest and load(path).form == "constant"


def test_a_form_that_the_tensors_are_not_of_is_refused(tmp_path: Path) -> None:
    path = module_of("binned").save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"m\.safetensors' names form 'constant', but its tensors are of form 'binned'"):
        load(rewrite(path, lambda _tensors, header: header.update(form="constant")))
    with pytest.raises(
        ValueError, match=r"names form \['mlp'\], but this version knows constant, channel, binned, lowrank; update respodiff"
    ):
        load(rewrite(path, lambda _tensors, header: header.update(form=["mlp"])))


def test_a_map_that_was_tampered_with_or_lost_is_refused(tmp_path: Path) -> None:
    path = module_of("lowrank").save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"m\.safetensors' is damaged"):
        load(rewrite(path, lambda tensors, _header: tensors["sam_b"].add_(1)))
    with pytest.raises(ValueError, match="does not hold a module: map 'ram_b' has shape"):
        load(rewrite(path, lambda tensors, _header: tensors.pop("ram_a")))


def test_without_sam_resize_and_channels_keep_the_form() -> None:
    h = randn(2, C, H, W, seed=8)
    for form in FORMS:
        module = module_of(form)
        alone = module.without_sam()
        assert alone.form == form and torch.equal(
            delta(alone.values, h, torch.tensor(600)), delta(module.part("ram"), h, torch.tensor(600))
        )
    for form in ("binned", "lowrank"):
        assert module_of(form).resize(4, 5).shape == (C, 4, 5) and module_of(form).resize(4, 5).form == form
        flat = module_of(form).channels()
        assert flat.form == form and torch.allclose(flat.ram, module_of(form).ram.mean((-2, -1), keepdim=True))


@pytest.mark.parametrize("form", ["binned", "lowrank"])
def test_what_a_constant_alone_can_be_used_for_is_refused_in_one_line(form: str, tmp_path: Path) -> None:
    module = module_of(form)
    with pytest.raises(
        ValueError, match=f"module 'woman' has form '{form}'; a bias adds the same .*train with --preset neutral --set form=channel"
    ):
        channel_delta(module.channels())
    with pytest.raises(ValueError, match=f"module 'woman' has form '{form}'; the released code knows constants alone"):
        to_released(module, tmp_path / "out.pt")
    with pytest.raises(ValueError, match=f"module 'woman' has form '{form}'; a mean direction can be taken of constants alone"):
        without_mean([module_of("constant"), module])
    assert not list(tmp_path.iterdir())
    assert f"| mid_block | {form} |" in Bundle([module]).card()
