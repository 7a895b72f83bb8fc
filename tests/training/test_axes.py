"""The axes of training against their equations written out on a tiny random UNet: forms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.drawing import draw as tiny_draw
from tests.tiny_models import flux, lcm, sd3, sd_v, sdxl
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.methods.base import method
from respodiff.pipelines.bottleneck import observed, site_module, site_shape
from respodiff.pipelines.denoiser import Denoiser, repeat
from respodiff.pipelines.text_encoding import encode_prompts
from respodiff.steering.parameterisations import Values, at
from respodiff.steering.steer import steer
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import TrainState, fit, step, train
from respodiff.training.rollouts import Rollouts

WOMAN = Concept("woman", "a woman", "a person", opposites=("a man",), attribute="gender")
UNSAFE = Concept("violence", "a scene", "a scene", "violence", "safety")
TINY: dict[str, Any] = {"iterations": 4, "batch": 3, "steps": 4, "rollouts": 3, "rollout_batch": 3, "refresh": 2}
FORMS: list[dict[str, Any]] = [{"form": "channel"}, {"form": "binned", "bins": 2}, {"form": "lowrank", "map_rank": 3}]


@contextmanager
def hook(unet: Any, added: Any) -> Iterator[None]:
    """Adds what ``added`` makes of h, by a hook of the test's own."""
    handle = unet.mid_block.register_forward_hook(lambda _m, _a, h: h + added(h))
    try:
        yield
    finally:
        handle.remove()


def predicted(unet: Any, batch: dict[str, Tensor], added: Any, prefix: str = "") -> Tensor:
    with hook(unet, added):
        return unet(batch[f"{prefix}z"], batch[f"{prefix}t"], encoder_hidden_states=batch[f"{prefix}context"]).sample


def adam(p: Tensor, g: Tensor, lr: float, betas: tuple[float, float]) -> Tensor:
    """First Adam step from zero moments, written out."""
    m, v = (1 - betas[0]) * g, (1 - betas[1]) * g * g
    return p - lr * (m / (1 - betas[0])) / ((v / (1 - betas[1])).sqrt() + 1e-8)


def prepared(pipe: Any, concept: Concept = WOMAN, **changes: Any) -> tuple[TrainConfig, TrainState, dict[str, Tensor]]:
    config = TrainConfig.preset("neutral", concept.kind, **{**TINY, "mu": 0.0, **changes})
    shape = site_shape(pipe.unet)
    state = TrainState(config, (shape[0], 1, 1) if config.flat else shape, pipe.unet.device)
    return config, state, Rollouts(Denoiser(pipe), concept, config).pool(0, state.round_start).batch(0, 3)


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, atol=2e-3)


# --- forms ---


def test_a_step_of_the_binned_form_moves_the_bins_of_its_latents_alone(tiny_pipe: Any) -> None:
    config, state, batch = prepared(tiny_pipe, form="binned", bins=2, sam_lr=0.02)
    batch["t"] = torch.tensor([900, 510, 990])  # all in the second half
    r, s = (torch.zeros(2, *site_shape(tiny_pipe.unet), requires_grad=True) for _ in "rs")
    (g,) = torch.autograd.grad((predicted(tiny_pipe.unet, batch, lambda _h: r[[1, 1, 1]]) - batch["target"]).pow(2).mean(), r)
    new = adam(r.detach(), g, config.ram_lr, config.betas)
    plain = predicted(tiny_pipe.unet, batch, lambda _h: 0)
    batch["neutral"] = plain
    loss = config.lam * (predicted(tiny_pipe.unet, batch, lambda _h: new[[1, 1, 1]] + s[[1, 1, 1]]) - plain).pow(2).mean()
    (g_s,) = torch.autograd.grad(loss, s)
    step(Denoiser(tiny_pipe), config, state, batch)
    assert close(state.ram, new) and close(state.sam, adam(s.detach(), g_s, 0.02, config.betas))
    assert state.ram[0].abs().max() == 0 and state.ram[1].abs().max() > 0.1 and state.sam[1].abs().max() > 0.01


def test_a_step_of_the_lowrank_form_matches_a_hand_written_one(tiny_pipe: Any) -> None:
    config, state, batch = prepared(tiny_pipe, form="lowrank", map_rank=3, map_rate=0.5, sam_lr=0.02)
    ram, sam = state.values.values()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for v in (ram, sam):
            v.a.copy_(0.3 * torch.randn(v.a.shape, generator=generator))  # type: ignore[union-attr]
    (r, a, b), (s, c, d) = ([t.detach().clone().requires_grad_() for t in v.named.values()] for v in (ram, sam))
    channels = len(a)

    def added(r: Tensor, a: Tensor, b: Tensor) -> Any:
        return lambda h: r + torch.einsum("ck,dk,ndyx->ncyx", a, b, h)

    loss = (predicted(tiny_pipe.unet, batch, added(r, a, b)) - batch["target"]).pow(2).mean()
    rates = (1, 0.5, 0.5 / channels)
    new = [
        adam(p.detach(), g, config.ram_lr * rate, config.betas)
        for p, g, rate in zip((r, a, b), torch.autograd.grad(loss, (r, a, b)), rates, strict=True)
    ]
    batch["neutral"] = predicted(tiny_pipe.unet, batch, lambda _h: 0)
    first, second = added(*new), added(s, c, d)
    loss = config.lam * (predicted(tiny_pipe.unet, batch, lambda h: first(h) + second(h)) - batch["neutral"]).pow(2).mean()
    grads = torch.autograd.grad(loss, (s, c, d))
    others = [adam(p.detach(), g, 0.02 * rate, config.betas) for p, g, rate in zip((s, c, d), grads, rates, strict=True)]
    step(Denoiser(tiny_pipe), config, state, batch)
    for found, expected, before in zip((*ram.named.values(), *sam.named.values()), (*new, *others), (r, a, b, s, c, d), strict=True):
        assert close(found, expected) and not torch.equal(found, before)


@pytest.mark.parametrize("changes", FORMS)
def test_every_form_trains_resumes_and_makes_a_module_of_its_form(tiny_pipe: Any, changes: dict[str, Any]) -> None:
    config = TrainConfig.preset("neutral", **TINY, sam_lr=0.01, **changes)
    for record in train(tiny_pipe, WOMAN, config):
        if record.iteration == 3:
            tensors = record.state.tensors()
        whole = record
    *_, resumed = train(tiny_pipe, WOMAN, config, resume=tensors)
    assert whole.module.digest == resumed.module.digest and whole.unet_forwards == resumed.unet_forwards
    assert whole.module.form == changes["form"] and whole.module.delta.abs().max() > 0


def test_the_limit_of_the_lowrank_form_is_of_what_it_adds_to_h(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("neutral", **{**TINY, "refresh": 4}, form="lowrank", gain=1e4, limit=0.5)
    *_, last = train(tiny_pipe, WOMAN, config)
    pool = Rollouts(Denoiser(tiny_pipe), WOMAN, config).pool(0, torch.zeros(1, *site_shape(tiny_pipe.unet)))
    batch, seen = pool.batch(3, 3), []
    predicted(tiny_pipe.unet, batch, lambda h: seen.append(h) or 0)
    (r, a, b), h = last.module.values.named.values(), seen[0]
    lengths = (r + torch.einsum("ck,dk,ndyx->ncyx", a, b, h)).flatten(1).norm(dim=1)
    assert lengths.mean().item() == pytest.approx(0.5 * last.h_norm, rel=1e-3)


def test_rollouts_of_later_rounds_are_steered_by_the_form(tiny_pipe: Any) -> None:
    config, state, _ = prepared(tiny_pipe, form="binned", bins=2, rollout_prompts="neutral", rollout_guidance=1.0, rollouts=1)
    with torch.no_grad():
        state.ram.normal_(0, 3, generator=torch.Generator().manual_seed(1))
    state.begin(config)
    rollouts = Rollouts(Denoiser(tiny_pipe), WOMAN, config)
    pool = rollouts.pool(1, state.round_start)
    person, z = encode_prompts(tiny_pipe, ["a person"]), pool.columns["z"]
    for k, t in enumerate(rollouts.scheduler.timesteps[:-1]):
        with hook(tiny_pipe.unet, lambda _h, t=t: state.ram[int(t >= 500)]):
            e = tiny_pipe.unet(z[k : k + 1], t, encoder_hidden_states=person).sample
        assert torch.allclose(rollouts.scheduler.step(e, t, z[k : k + 1]).prev_sample, z[k + 1 : k + 2], atol=1e-4)


def test_a_bin_that_no_step_falls_into_is_refused_before_anything_is_computed(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("neutral", **TINY, form="binned", bins=8)
    with pytest.raises(ValueError, match=r"bins is 8, but none of the 4 steps of a rollout falls into bin 1 \(timesteps 125 to 249\)"):
        next(train(tiny_pipe, WOMAN, config))


@pytest.mark.parametrize("make", [sd3, flux])
def test_transformers_train_a_map_of_every_token(make: Any) -> None:
    pipe = make()
    d = Denoiser(pipe)
    values = Values(
        *(
            torch.randn(s, generator=torch.Generator().manual_seed(i))
            for i, s in enumerate(((1, *d.shape), (d.shape[0], 2), (d.shape[0], 2)))
        )
    )
    z, t = torch.randn(2, *d.latent, generator=torch.Generator().manual_seed(9)), torch.tensor([900.0, 100.0])
    condition = repeat(d.encode(["a person"])[0], 2)
    found, _ = observed(d.model, lambda: d(z, t, condition), at(values, t), d.site)
    added = lambda h: values.r.flatten() + h @ values.b @ values.a.T  # noqa: E731
    handle = site_module(d.model, d.site).register_forward_hook(lambda _m, _a, out: (out[0], out[1] + added(out[1])))
    expected = d(z, t, condition)
    handle.remove()
    assert torch.allclose(found, expected, atol=1e-4) and not torch.allclose(found, d(z, t, condition), atol=1e-3)
    module = fit(pipe, WOMAN, TrainConfig.preset("neutral", **{**TINY, "iterations": 2}, form="lowrank", sam_lr=0.1))
    assert module.form == "lowrank" and module.shape == d.shape and all(t.abs().max() > 0 for t in module.maps.values())


@pytest.mark.parametrize("make", [lcm, sdxl, sd_v])
def test_other_unets_train_the_forms_and_draw_with_them(make: Any) -> None:
    pipe = make()
    for changes in ({"form": "binned", "bins": 2}, {"form": "lowrank"}, {"form": "binned", "bins": 2, "spatial": "no"}):
        config = TrainConfig.preset("neutral", **{**TINY, "iterations": 2}, sam_lr=0.1, **changes)
        module = fit(pipe, WOMAN, config)
        plain = tiny_draw(pipe)
        with steer(pipe, module):
            assert not torch.equal(tiny_draw(pipe), plain)
        assert module.form == changes["form"] and (module.shape[1:] == (1, 1)) == ("spatial" in changes)


# --- what makes no sense ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "mlp"}, "form is 'mlp'; allowed: constant, channel, binned, lowrank"),
        ({"form": "binned", "bins": 1}, "bins is 1; allowed: a whole number of at least 2"),
        ({"bins": 8}, "bins is 8, which form 'constant' does not read; leave it out, or set form=binned"),
        ({"form": "binned", "map_rank": 2}, "map_rank is 2, which form 'binned' does not read; leave it out, or set form=lowrank"),
        ({"form": "lowrank", "map_rank": 0}, "map_rank is 0; allowed: a whole number of at least 1"),
        ({"form": "lowrank", "map_rate": 0.0}, "map_rate is 0.0; allowed: a finite number above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.preset("neutral", **changes)


@pytest.mark.parametrize(
    ("name", "concept", "changes", "message"),
    [
        ("slider", WOMAN, {"form": "lowrank"}, "form is 'lowrank', which method 'slider' does not take; leave it out"),
        ("esd-x", UNSAFE, {"form": "channel"}, "form is 'channel', which method 'esd-x' does not take; leave it out"),
    ],
)
def test_other_methods_refuse_what_they_would_ignore(
    tiny_pipe: Any, name: str, concept: Concept, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        next(method(name).train(tiny_pipe, concept, method(name).settings(concept.kind, **changes)))


def test_sdisc_takes_the_forms(tiny_pipe: Any) -> None:
    sdisc = method("sdisc")
    settings = sdisc.settings(iterations=2, batch=2, steps=3, rollouts=3, rollout_batch=3, form="binned", bins=8)
    found: Any = sdisc.fit(tiny_pipe, WOMAN, settings)
    assert found.form == "binned" and found.delta.abs().max() > 0
