"""Forms of RAM and SAM against their equations written out by hand."""

from __future__ import annotations

import pytest
import torch

from respodiff.steering.forms import FORMS, Constant, Form, load_form, make_form

SHAPE = (6, 2, 3)
H, T = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 10.0, 500.0, 999.0])


def filled(name: str) -> Form:
    """A form with random weights."""
    form = make_form(name, SHAPE, generator=torch.Generator().manual_seed(1))
    for i, p in enumerate(form.parameters()):
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return form


@pytest.mark.parametrize("name", FORMS)
def test_a_form_starts_at_zero_and_learns(name: str) -> None:
    form = make_form(name, SHAPE, generator=torch.Generator().manual_seed(0))
    assert form(H, T).abs().max() == 0 and type(form) is FORMS[name]
    (form(H, T) - 1).square().mean().backward()
    assert max(p.grad.abs().max() for p in form.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("name", FORMS)
def test_scaled_multiplies_the_offset_and_leaves_the_form_alone(name: str) -> None:
    form = filled(name)
    before = form(H, T)
    assert torch.allclose(form.scaled(-2.5)(H, T), -2.5 * before, atol=1e-4) and before.abs().max() > 0.1
    assert torch.equal(form(H, T), before)


@pytest.mark.parametrize("name", FORMS)
def test_a_form_comes_back_from_its_state_dict(name: str) -> None:
    form = filled(name)
    found = load_form(name, form.state_dict())
    assert torch.equal(found(H, T), form(H, T)) and type(found) is type(form)


def test_constants_are_a_tensor_from_the_generator() -> None:
    wanted = (torch.rand(SHAPE, generator=torch.Generator().manual_seed(3)) * 2 - 1) * 0.5
    form = make_form("constant", SHAPE, init_range=0.5, generator=torch.Generator().manual_seed(3))
    assert isinstance(form, Constant) and torch.equal(form.r, wanted) and torch.equal(form(H, T), wanted[None])
    assert make_form("channel", SHAPE)(H, T).shape == (1, 6, 1, 1)


def test_mlp_reads_the_mean_of_h_and_conv_every_position() -> None:
    state = filled("mlp").state_dict()
    rates = torch.exp(-torch.log(torch.tensor(1000.0)) * torch.arange(16) / 16)
    time = torch.cat([(T[:, None] * rates).sin(), (T[:, None] * rates).cos()], 1)

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        hidden = torch.cat([x, time], 1) @ state["down.weight"].T + state["down.bias"]
        return (hidden * hidden.sigmoid()) @ state["up.weight"].T + state["up.bias"]

    unit = H / torch.stack([h.square().mean().sqrt() for h in H])[:, None, None, None]
    mlp, conv = load_form("mlp", state)(H, T), load_form("conv", state)(H, T)
    assert mlp.shape == (4, 6, 1, 1) and torch.allclose(mlp[..., 0, 0], by_hand(unit.mean((2, 3))), atol=1e-3)
    assert conv.shape == (4, *SHAPE) and torch.allclose(conv[:, :, 1, 2], by_hand(unit[:, :, 1, 2]), atol=1e-3)


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_what_reads_h_knows_nothing_of_its_size(name: str) -> None:
    form = filled(name)
    assert torch.allclose(form(100 * H, T), form(H, T), atol=1e-4)
    assert [[id(p) for p in form.parts[unit]] for unit in (False, True)] == [
        [id(form.get_parameter(f"{part}.{n}")) for n in ("weight", "bias")] for part in ("down", "up")
    ]
    assert list(make_form("constant", SHAPE).parts) == [True]


def test_one_timestep_serves_all_images() -> None:
    form = filled("conv")
    assert torch.allclose(form(H, torch.tensor(500.0)), form(H, torch.full((4,), 500.0)), atol=1e-5)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="form is 'spline'; allowed: constant, channel, mlp, conv"):
        make_form("spline", SHAPE)
    for name in FORMS:
        with pytest.raises(ValueError, match=f"form '{name}' cannot be made of the tensors x"):
            load_form(name, {"x": torch.zeros(1)})


def test_the_first_timestep_of_flow_matching_is_the_last_one_of_training() -> None:
    form = filled("mlp")
    assert torch.equal(form(H, torch.tensor([1000.0])), form(H, torch.tensor([999.0])))
