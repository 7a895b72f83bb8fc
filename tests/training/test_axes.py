"""The axes of training against their equations written out on a tiny random UNet: forms, objectives, replayed pools, contexts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.drawing import draw as tiny_draw
from tests.tiny_models import flux, lcm, sd3, sd_v, sdxl
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.concepts.prompt_editing import in_contexts
from respodiff.methods.base import get_method
from respodiff.pipelines.bottleneck import run_with_decoder, site_module, site_shape
from respodiff.pipelines.denoiser import Denoiser, repeat
from respodiff.pipelines.text_encoding import encode_prompts
from respodiff.steering.parameterisations import Values, delta_at
from respodiff.steering.steer import steer
from respodiff.training.config import TrainConfig
from respodiff.training.objectives import blended, response_loss
from respodiff.training.replay import Replay, merged
from respodiff.training.respodiff import TrainState, fit, step, train
from respodiff.training.rollouts import Pool, Rollouts

WOMAN = Concept("woman", "a woman", "a person", opposites=("a man",), attribute="gender")
UNSAFE = Concept("violence", "a scene", "a scene", "violence", "safety")
TINY: dict[str, Any] = {"iterations": 4, "batch": 3, "steps": 4, "rollouts": 3, "rollout_batch": 3, "refresh_every": 2}
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
    config = TrainConfig.preset("neutral", concept.kind, **{**TINY, "preservation_weight": 0.0, **changes})
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
    loss = config.sam_weight * (predicted(tiny_pipe.unet, batch, lambda _h: new[[1, 1, 1]] + s[[1, 1, 1]]) - plain).pow(2).mean()
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
    loss = config.sam_weight * (predicted(tiny_pipe.unet, batch, lambda h: first(h) + second(h)) - batch["neutral"]).pow(2).mean()
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
    config = TrainConfig.preset("neutral", **{**TINY, "refresh_every": 4}, form="lowrank", train_scale=1e4, max_relative_norm=0.5)
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
    found, _ = run_with_decoder(d.model, lambda: d(z, t, condition), delta_at(values, t), d.site)
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
    for changes in ({"form": "binned", "bins": 2}, {"form": "lowrank"}, {"form": "binned", "bins": 2, "per_channel": True}):
        config = TrainConfig.preset("neutral", **{**TINY, "iterations": 2}, sam_lr=0.1, **changes)
        module = fit(pipe, WOMAN, config)
        plain = tiny_draw(pipe)
        with steer(pipe, module):
            assert not torch.equal(tiny_draw(pipe), plain)
        assert module.form == changes["form"] and (module.shape[1:] == (1, 1)) == ("per_channel" in changes)


# --- objectives ---


def test_shared_is_one_tensor_that_gets_both_losses_in_turn(tiny_pipe: Any) -> None:
    config, state, batch = prepared(tiny_pipe, modules="shared", sam_lr=0.05, lam=0.7, init_range=0.3)
    unet, r = tiny_pipe.unet, state.ram.detach().clone().requires_grad_()
    (g,) = torch.autograd.grad((predicted(unet, batch, lambda _h: r) - batch["target"]).pow(2).mean(), r)
    between = adam(r.detach(), g, config.ram_lr, config.betas).requires_grad_()
    plain = predicted(unet, batch, lambda _h: 0)
    (g,) = torch.autograd.grad(0.7 * (predicted(unet, batch, lambda _h: between) - plain).pow(2).mean(), between)
    losses = step(Denoiser(tiny_pipe), config, state, batch)
    assert close(state.ram, adam(between.detach(), g, 0.05, config.betas)) and losses[1] > 0
    assert not torch.allclose(state.ram, between, atol=0.01), "the second loss did not reach it"
    assert state.sam.abs().max() == 0


def test_shared_resumes_to_the_same_bits_and_differs_from_two(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("neutral", **TINY, modules="shared", sam_lr=0.05)
    for record in train(tiny_pipe, WOMAN, config):
        if record.iteration == 3:
            tensors = record.state.tensors()
        whole = record
    *_, resumed = train(tiny_pipe, WOMAN, config, resume=tensors)
    assert whole.module.digest == resumed.module.digest and whole.module.sam.abs().max() == 0
    assert not torch.equal(fit(tiny_pipe, WOMAN, TrainConfig.preset("neutral", **TINY, sam_lr=0.05)).ram, whole.module.ram)


@pytest.mark.parametrize("lam", [0.5, 1.0, 4.0])
def test_the_gradient_of_the_blended_target_is_that_of_both_losses(lam: float) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target, neutral = (torch.randn(2, 4, 3, 3, generator=generator) for _ in range(3))
    prediction.requires_grad_()
    both = (prediction - target).pow(2).mean() + lam * (prediction - neutral).pow(2).mean()
    one = response_loss(prediction, blended(target, neutral, lam), lam)
    (a,), (b,) = torch.autograd.grad(both, prediction), torch.autograd.grad(one, prediction)
    assert torch.allclose(a, b, atol=1e-6) and a.abs().max() > 0.01


def test_targets_of_a_blended_pool_and_what_a_blend_of_the_plain_score_equals(tiny_pipe: Any) -> None:
    def pool(**changes: Any) -> Any:
        config = TrainConfig.preset("neutral", **TINY, **changes)
        return Rollouts(Denoiser(tiny_pipe), WOMAN, config).pool(0, torch.zeros(1, *site_shape(tiny_pipe.unet)))

    found = pool(objective="guided", target_guidance=4.0, blend=0.5).columns
    empty, person, woman = (
        tiny_pipe.unet(found["z"], found["t"], encoder_hidden_states=c.expand(len(found["z"]), -1, -1)).sample.detach()
        for c in encode_prompts(tiny_pipe, ["", "a person", "a woman"]).split(1)
    )
    assert torch.allclose(found["target"], (empty + 4 * (woman - empty) + 0.5 * person) / 1.5, atol=1e-4)
    plain = pool(objective="guided", target_guidance=1.0, blend=0.5).columns["target"]
    assert torch.allclose(plain, pool(objective="shift", target_guidance=1 / 1.5).columns["target"], atol=1e-5)


def test_a_blended_step_weighs_preservation_as_beside_both_losses(tiny_pipe: Any) -> None:
    concept = Concept("woman", "a woman", "a person", preserve=("a scene",))
    changes = {"objective": "guided", "target_guidance": 2.0, "blend": 1.5, "preservation_weight": 2.0, "init_range": 0.5}
    config, state, batch = prepared(tiny_pipe, concept, **changes)
    unet, r = tiny_pipe.unet, state.ram.detach().clone().requires_grad_()
    empty, person, woman = (
        unet(batch["z"], batch["t"], encoder_hidden_states=c.expand(3, -1, -1)).sample.detach()
        for c in encode_prompts(tiny_pipe, ["", "a person", "a woman"]).split(1)
    )
    e = predicted(unet, batch, lambda _h: r)
    loss = (e - (empty + 2 * (woman - empty))).pow(2).mean() + 1.5 * (e - person).pow(2).mean()
    loss = loss + 2.0 * (predicted(unet, batch, lambda _h: r, "keep_") - batch["keep_plain"]).pow(2).mean()
    (g,) = torch.autograd.grad(loss, r)
    step(Denoiser(tiny_pipe), config, state, batch)
    assert close(state.ram, adam(r.detach(), g, config.ram_lr, config.betas))


# --- rollouts ---


@dataclass
class Told:
    """A source that remembers what it was told; the latents of pool n are all n."""

    seen: list[tuple[int, Any]]

    def pool(self, number: int, delta: Any) -> Pool:
        self.seen.append((number, delta))
        z = torch.full((2, 1), float(number))
        return Pool({"z": z, "t": z[:, 0]}, {}, {"context": torch.zeros(1, 1, 1)}, number, 10)


class Counter:
    """A learner whose state is its number of iterations."""

    def __init__(self, keep: int) -> None:
        self.iteration, self.forwards, self.keep, self.rounds = 0, 0, keep, [-1]

    def begin(self, _config: Any) -> None:
        self.rounds = [*self.rounds, self.iteration][-self.keep :]


def test_replay_keeps_the_last_pools_each_rolled_out_with_what_was_trained_then() -> None:
    config, source, state = TrainConfig(iterations=9, refresh_every=2, replay=3), Told([]), Counter(3)
    pools, found = Replay(source, config), []
    for i in range(9):
        state.iteration = i
        found.append(sorted(pools.examples(state).columns["z"][:, 0].tolist()))  # type: ignore[arg-type, attr-defined]
    assert found[::2] == [[0, 0], [0, 0, 1, 1], [0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 3, 3], [2, 2, 3, 3, 4, 4]]
    assert found[1::2] == found[:-1:2]
    assert source.seen[1:] == [(1, 2), (2, 4), (3, 6), (4, 8)] and state.forwards == 50


def test_a_resumed_replay_rebuilds_its_pools_and_counts_none_twice() -> None:
    config, source, state = TrainConfig(iterations=9, refresh_every=2, replay=3), Told([]), Counter(3)
    state.iteration, state.rounds, state.forwards = 7, [2, 4, 6], 40
    found = Replay(source, config).examples(state)  # type: ignore[arg-type]
    assert source.seen == [(1, 2), (2, 4), (3, 6)] and state.forwards == 40
    assert found.columns["z"][:, 0].tolist() == [1, 1, 2, 2, 3, 3]  # type: ignore[attr-defined]


def test_one_pool_is_handed_on_as_it_is() -> None:
    pool = Told([]).pool(0, None)
    assert merged([pool]) is pool


@pytest.mark.parametrize("changes", [{}, {"form": "lowrank"}])
@pytest.mark.parametrize("stop", [2, 5])
def test_a_replayed_run_resumes_to_the_same_bits(tiny_pipe: Any, stop: int, changes: dict[str, Any]) -> None:
    config = TrainConfig.preset("neutral", **{**TINY, "iterations": 6, "replay": 2, **changes})
    for record in train(tiny_pipe, WOMAN, config):
        if record.iteration == stop:
            tensors = record.state.tensors()
        whole = record
    *_, resumed = train(tiny_pipe, WOMAN, config, resume=tensors)
    assert whole.module.digest == resumed.module.digest and whole.unet_forwards == resumed.unet_forwards
    replaced = fit(tiny_pipe, WOMAN, TrainConfig.preset("neutral", **{**TINY, "iterations": 6, **changes}))
    assert replaced.digest != whole.module.digest


# --- contexts ---


def test_prompts_are_rewritten_into_their_context() -> None:
    own, doctor, nurse = in_contexts(WOMAN, ("a doctor", "a photo of a nurse"))
    assert own is WOMAN
    assert (doctor.neutral, doctor.target, doctor.opposites) == ("a doctor", "a female doctor", ("a male doctor",))
    assert (nurse.target, nurse.opposites) == ("a photo of a female nurse", ("a photo of a male nurse",))
    _, street = in_contexts(UNSAFE, ("a street",))
    assert (street.neutral, street.target, street.negative) == ("a street", "a street", "a street, violence")
    with pytest.raises(ValueError, match="contexts holds 'a person', in which concept 'woman' says nothing new"):
        in_contexts(WOMAN, ("a person",))


def test_latents_of_every_context_have_its_targets_and_its_neutral_prompt(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("neutral", **{**TINY, "rollouts": 9}, contexts=("a doctor", "a nurse"))
    pool = Rollouts(Denoiser(tiny_pipe), WOMAN, config).pool(0, torch.zeros(1, *site_shape(tiny_pipe.unet)))
    assert torch.bincount(pool.columns["which"]).tolist() == [12, 12, 12], "3 rollouts of 4 steps each"
    words = [
        ("a person", "a woman", "a man"),
        ("a doctor", "a female doctor", "a male doctor"),
        ("a nurse", "a female nurse", "a male nurse"),
    ]
    for k, prompts in enumerate(words):
        mine = pool.columns["which"] == k
        z, t = pool.columns["z"][mine], pool.columns["t"][mine]
        neutral, target, opposite = (
            tiny_pipe.unet(z, t, encoder_hidden_states=c.expand(len(z), -1, -1)).sample.detach()
            for c in encode_prompts(tiny_pipe, prompts).split(1)
        )
        assert torch.allclose(pool.columns["target"][mine], neutral + target - opposite, atol=1e-5)
    batch, known = pool.batch(0, 36), encode_prompts(tiny_pipe, [p[0] for p in words])
    order = torch.cdist(batch["z"].flatten(1), pool.columns["z"].flatten(1)).argmin(1)
    assert torch.equal(batch["context"], known[pool.columns["which"][order]])


def test_single_rollouts_cycle_through_the_contexts(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("paper", iterations=6, steps=4, contexts=("a doctor", "a nurse"))
    rollouts = Rollouts(Denoiser(tiny_pipe), WOMAN, config)
    zero = torch.zeros(1, *site_shape(tiny_pipe.unet))
    assert [rollouts.pool(i, zero).columns["which"].tolist() for i in range(4)] == [[0], [1], [2], [0]]


def test_contexts_give_one_module_with_the_concepts_own_prompts(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("neutral", **TINY, contexts=("a doctor",))
    module = fit(tiny_pipe, WOMAN, config)
    assert (module.header.neutral, module.header.target) == ("a person", "a woman")
    assert tuple(module.header.train["contexts"]) == ("a doctor",)
    assert module.digest != fit(tiny_pipe, WOMAN, TrainConfig.preset("neutral", **TINY)).digest


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
        ({"modules": "three"}, "modules is 'three'; allowed: two, shared"),
        ({"modules": "shared"}, "modules is 'shared', but sam_lr is 0 and sam_weight 0.5: there is no second loss"),
        ({"modules": "shared", "sam_lr": 0.1, "sam_weight": 0.0}, "modules is 'shared', but sam_lr is 0.1 and sam_weight 0"),
        ({"blend": -1.0}, "blend is -1.0; allowed: a finite number of at least 0"),
        ({"blend": 0.5, "objective": "guided", "sam_lr": 0.1}, "blend is 0.5, but sam_lr is 0.1 and sam_weight 0.5: .* set sam_lr=0"),
        ({"blend": 1.0}, "blend is 1 with objective 'contrast', .* set target_guidance=0.5 instead, or objective=guided"),
        ({"replay": 0}, "replay is 0; allowed: a whole number of at least 1"),
        ({"replay": 3}, "replay is 3, but refresh_every 100 of 100 iterations makes one pool; set refresh_every lower"),
        ({"contexts": "a doctor"}, "contexts is 'a doctor'; allowed: prompts such as"),
        ({"contexts": ("a doctor", " ")}, "contexts is .*; allowed: prompts such as"),
        ({"contexts": ("a doctor", "a doctor")}, "contexts holds 'a doctor' twice"),
        ({"contexts": ("a doctor", "a nurse"), "rollouts": 2}, "contexts holds 2 prompts beside .* 2 rollouts x 1 pools do not reach"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.preset("neutral", **changes)


@pytest.mark.parametrize(
    ("name", "concept", "changes", "message"),
    [
        ("slider", WOMAN, {"form": "lowrank"}, "form is 'lowrank', which method 'slider' does not take; it has contexts of them"),
        ("slider", WOMAN, {"blend": 1.0, "objective": "guided"}, "blend is 1.0, which method 'slider' does not take"),
        ("slider", WOMAN, {"replay": 2, "refresh_every": 10}, "replay is 2, which method 'slider' does not take"),
        ("sdisc", WOMAN, {"contexts": ("a doctor",)}, "contexts is .*, which method 'sdisc' does not take; it has form, bins"),
        ("esd-x", UNSAFE, {"form": "channel"}, "form is 'channel', which method 'esd-x' does not take; leave it out"),
    ],
)
def test_other_methods_refuse_what_they_would_ignore(
    tiny_pipe: Any, name: str, concept: Concept, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        next(get_method(name).train(tiny_pipe, concept, get_method(name).settings(concept.kind, **changes)))


def test_sdisc_takes_the_forms_and_the_slider_the_contexts(tiny_pipe: Any) -> None:
    small = {"iterations": 2, "batch": 2, "steps": 3, "rollouts": 3, "rollout_batch": 3}
    sdisc, slider = get_method("sdisc"), get_method("slider")
    found: Any = sdisc.fit(tiny_pipe, WOMAN, sdisc.settings(**small, form="binned", bins=8))
    assert found.form == "binned" and found.delta.abs().max() > 0
    a, b = (slider.fit(tiny_pipe, WOMAN, slider.settings(**small, contexts=c)) for c in ((), ("a doctor",)))
    assert a.digest != b.digest and any(not torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)  # type: ignore[union-attr]
