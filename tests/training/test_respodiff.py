"""Training against the paper's algorithm written out by hand on a tiny random UNet, and what must hold around it."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from tests.drawing import contexts
from tests.tiny_models import sd3
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.concepts.concept import concept as find_concept
from respodiff.methods.registry import get_method, load
from respodiff.pipelines.bottleneck import site_shape
from respodiff.pipelines.denoiser import Denoiser
from respodiff.training import respodiff as training
from respodiff.training.config import TrainConfig
from respodiff.training.objectives import mixture
from respodiff.training.respodiff import fit, forms, train
from respodiff.training.rollouts import Latents, Rollouts
from respodiff.training.state import adam_step, open_model, share_step

pytestmark = pytest.mark.slow

WOMAN = Concept("woman", "a woman", "a person", opposites=("a man",), attribute="gender")
UNSAFE = Concept("violence", "a scene", "a scene", "violence", "safety", preserve=("a person",))
TINY = {"iterations": 4, "batch": 3, "steps": 4, "rollouts": 3, "rollout_batch": 2, "refresh_every": 2}
AS_TRAINED: dict[str, Any] = {"rates": "absolute", "projection": 0.0}


def hooked(unet: Any, z: Tensor, t: Tensor, context: Tensor, delta: Tensor) -> Tensor:
    """e[d](z, y) by a hook of the test's own, independent of the library's."""
    handle = unet.mid_block.register_forward_hook(lambda _m, _a, h: h + delta)
    try:
        return unet(z, t, encoder_hidden_states=context).sample
    finally:
        handle.remove()


def pool_of(pipe: Any, concept: Concept, config: TrainConfig, delta: Tensor | None = None, number: int = 0) -> Latents:
    """The pool of a round that is steered by a constant."""
    steered = None if delta is None else {"mid_block": lambda _h, _t: delta}
    return Rollouts(open_model(pipe, config), [concept], config).pool(number, steered)[0]


def adam(p: Tensor, g: Tensor, lr: float, betas: tuple[float, float]) -> Tensor:
    """First Adam step from zero moments, written out: m^ = g, v^ = g^2."""
    m, v = (1 - betas[0]) * g, (1 - betas[1]) * g * g
    return p - lr * (m / (1 - betas[0])) / ((v / (1 - betas[1])).sqrt() + 1e-8)


@pytest.mark.parametrize(("preset", "sam"), [("paper", "own"), ("default", "own"), ("default", "shared")])
def test_one_step_of_each_module_matches_a_hand_written_one(tiny_pipe: Any, preset: str, sam: str) -> None:
    unet = tiny_pipe.unet
    config = TrainConfig.preset(preset, **TINY, **AS_TRAINED, sam=sam, ram_lr=0.05, sam_lr=0.02, sam_weight=0.7, preservation_weight=0.0)
    r, s = (x(torch.zeros(1), torch.zeros(1)).detach().requires_grad_() for x in forms(Denoiser(tiny_pipe), config))
    steering = r + s if config.rollout_modules == "both" else r
    batch = pool_of(tiny_pipe, WOMAN, config, steering.detach()).batch(0, 3)

    y, z, t = batch.y["encoder_hidden_states"], batch.z, batch.t
    loss_ram = (hooked(unet, z, t, y, r) - batch.e_tar).pow(2).mean()
    (g_r,) = torch.autograd.grad(loss_ram, r)
    new_r = adam(r.detach(), g_r, 0.05, config.betas)
    plain = unet(z, t, encoder_hidden_states=y).sample.detach()
    loss_sam = 0.7 * (hooked(unet, z, t, y, new_r + s) - plain).pow(2).mean()
    (g_s,) = torch.autograd.grad(loss_sam, s)

    record = next(train(tiny_pipe, WOMAN, config))
    assert (record.loss, record.loss_sam) == pytest.approx((loss_ram.item(), loss_sam.item()), rel=1e-4)
    made_r, made_s = record.module.ram, record.module.sam
    assert torch.allclose(made_r, new_r, atol=2e-4)
    certain = (g_s[0].abs() > 1e-6) & (g_r[0].abs() > 1e-6)  # below it the sign of a sum of floats decides
    assert certain.float().mean() > 0.5
    new_s = adam(s.detach(), g_s, 0.02, config.betas) if sam == "own" else s.detach() - 0.02 * g_s / (g_r.square().mean().sqrt() + 1e-8)
    assert torch.allclose(made_s[certain], new_s[0][certain], rtol=1e-3, atol=2e-4)
    assert not torch.allclose(made_r, r, atol=1e-2), "RAM did not move"
    assert not torch.allclose(made_s, s, atol=5e-3), "SAM did not move"


def test_lambda_counts_where_sam_is_divided_by_rams_second_moments(tiny_pipe: Any) -> None:
    def share(sam: str, weight: float) -> float:
        """|s| / |r| after training."""
        module = fit(tiny_pipe, WOMAN, TrainConfig.preset("default", **TINY, projection=0.0, sam=sam, sam_lr=0.006, sam_weight=weight))
        return (module.sam.norm() / module.ram.norm()).item()

    assert share("shared", 4.0) == pytest.approx(8 * share("shared", 0.5), rel=0.3)
    assert share("own", 4.0) == pytest.approx(share("own", 0.5), rel=0.1), "an Adam of its own divides lambda away"


def test_where_ram_has_no_gradient_sam_goes_no_further() -> None:
    r, s = (torch.zeros(2, requires_grad=True) for _ in "rs")
    adam_r, adam_s = (torch.optim.Adam([p], betas=(0.9, 0.99)) for p in (r, s))
    adam_step(adam_r, [0.1], (r * torch.tensor([2.0, 1e-12])).sum())
    share_step(adam_s, adam_r, [0.01], s.sum())
    assert torch.allclose(s, torch.full((2,), -0.01 / 2**0.5))


def test_preservation_is_part_of_rams_loss_and_measured_on_its_own_prompts(tiny_pipe: Any) -> None:
    unet = tiny_pipe.unet
    config = TrainConfig.preset("default", "safety", **TINY, **AS_TRAINED, ram_lr=0.2, preservation_weight=2.0, init_range=2.0)
    ram = forms(Denoiser(tiny_pipe), config)[0](torch.zeros(1), torch.zeros(1)).detach()
    batch = pool_of(tiny_pipe, UNSAFE, config, ram).batch(0, 3)
    assert batch.keep is not None
    person = contexts(tiny_pipe, ["a person"])
    assert torch.equal(batch.keep.y["encoder_hidden_states"][0], person[0])
    r = ram.clone().requires_grad_()
    loss = (hooked(unet, batch.z, batch.t, batch.y["encoder_hidden_states"], r) - batch.e_tar).pow(2).mean()
    kept = hooked(unet, batch.keep.z, batch.keep.t, batch.keep.y["encoder_hidden_states"], r)
    plain = unet(batch.keep.z, batch.keep.t, encoder_hidden_states=batch.keep.y["encoder_hidden_states"]).sample
    (g,) = torch.autograd.grad(loss + 2.0 * (kept - plain.detach()).pow(2).mean(), r)
    made = next(train(tiny_pipe, UNSAFE, config)).module
    assert torch.allclose(made.ram, adam(ram, g, config.ram_lr, config.betas)[0], atol=2e-3)
    assert not torch.allclose(
        made.ram,
        adam(
            ram,
            torch.autograd.grad((hooked(unet, batch.z, batch.t, batch.y["encoder_hidden_states"], r) - batch.e_tar).pow(2).mean(), r)[0],
            config.ram_lr,
            config.betas,
        )[0],
        atol=2e-3,
    )


def test_targets_of_a_pool_are_the_unmodified_models(tiny_pipe: Any) -> None:
    unet = tiny_pipe.unet
    embedded = dict(
        zip(
            ("", "a person", "a woman", "a man", "a scene", "violence"),
            contexts(tiny_pipe, ["", "a person", "a woman", "a man", "a scene", "violence"]),
            strict=True,
        )
    )

    def e(prompt: str, pool: Any) -> Tensor:
        z, t = pool.z, pool.t
        return unet(z, t, encoder_hidden_states=embedded[prompt].expand(len(z), -1, -1)).sample.detach()

    def made(concept: Concept, preset: str) -> Any:
        return pool_of(tiny_pipe, concept, TrainConfig.preset(preset, concept.kind, **{**TINY, "timesteps": "all"}))

    pool = made(WOMAN, "default")
    assert torch.allclose(pool.e_tar, e("a person", pool) + e("a woman", pool) - e("a man", pool), atol=1e-5)
    pool = made(WOMAN, "paper")
    assert torch.allclose(pool.e_tar, e("a woman", pool), atol=1e-5)
    pool = made(WOMAN, "official")
    assert torch.allclose(pool.e_tar, e("", pool) + 4 * (e("a woman", pool) - e("", pool)), atol=1e-4)
    pool = made(UNSAFE, "paper")
    assert torch.allclose(pool.e_tar, e("violence", pool) + 12 * (e("a scene", pool) - e("violence", pool)), atol=1e-4)
    pool = made(UNSAFE, "default")
    assert torch.allclose(pool.e_tar, 2 * e("a scene", pool) - e("violence", pool), atol=1e-5)


def test_rollouts_match_a_ddim_loop_with_the_steered_conditional_rows(tiny_pipe: Any) -> None:
    unet = tiny_pipe.unet
    config = TrainConfig.preset("paper", **{**TINY, "rollouts": 1, "timesteps": "all", "steps": 4, "timestep_labels": "sampler"})
    delta = torch.randn(1, *site_shape(unet), generator=torch.Generator().manual_seed(3))
    pool = pool_of(tiny_pipe, WOMAN, config, delta)
    z, labels = pool.z, pool.t
    scheduler = DDIMScheduler.from_config(tiny_pipe.scheduler.config)
    scheduler.set_timesteps(4)
    assert labels.tolist() == scheduler.timesteps.tolist()
    empty, person = contexts(tiny_pipe, ["", "a person"]).split(1)
    x = z[:1]
    for k, t in enumerate(scheduler.timesteps[:-1]):
        uncond = unet(x, t, encoder_hidden_states=empty).sample
        cond = hooked(unet, x, t, person, delta)
        x = scheduler.step(uncond + 3 * (cond - uncond), t, x).prev_sample.detach()
        assert torch.allclose(x, z[k + 1 : k + 2], atol=1e-4)


def test_released_label_is_too_noisy_by_the_published_amount(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("paper", steps=50, timesteps="all")
    pool = pool_of(tiny_pipe, WOMAN, config)
    assert pool.t.tolist() == [1000 - 20 * k for k in range(50)]


def test_last_keeps_one_latent_a_rollout_from_random_timesteps(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("paper", steps=50, iterations=5)
    pools = [pool_of(tiny_pipe, WOMAN, config, number=i) for i in range(5)]
    assert all(len(p.z) == 1 for p in pools)
    assert len({p.t.item() for p in pools}) > 2


def test_unet_stays_frozen_and_as_it_was(tiny_pipe: Any) -> None:
    unet = tiny_pipe.unet.requires_grad_(True)
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    for _ in train(tiny_pipe, WOMAN, TrainConfig.preset("default", **TINY)):
        assert not any(p.requires_grad for p in unet.parameters())
    assert all(p.requires_grad and p.grad is None for p in unet.parameters())
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())
    assert not unet.mid_block._forward_hooks
    unet.requires_grad_(False)


def test_forwards_are_those_the_model_saw(tiny_pipe: Any) -> None:
    seen = [0]
    handle = tiny_pipe.unet.conv_out.register_forward_pre_hook(lambda _m, a: seen.__setitem__(0, seen[0] + len(a[0])))
    try:
        for concept, changes in ((WOMAN, {}), (UNSAFE, {}), (WOMAN, {"sam_lr": 0.05})):
            seen[0] = 0
            *_, last = train(tiny_pipe, concept, TrainConfig.preset("default", concept.kind, **TINY, **changes))
            assert last.unet_forwards == seen[0] > 0, "a decoder that runs again counts as one"
    finally:
        handle.remove()


@pytest.mark.parametrize("preset", ["paper", "official", "default"])
def test_same_seed_gives_the_same_bits_and_another_seed_does_not(tiny_pipe: Any, preset: str) -> None:
    config = TrainConfig.preset(preset, **{**TINY, "sam_lr": 0.01})
    first, second = (fit(tiny_pipe, WOMAN, config) for _ in range(2))
    assert torch.equal(first.ram, second.ram) and torch.equal(first.sam, second.sam)
    other = fit(tiny_pipe, WOMAN, TrainConfig.preset(preset, **{**TINY, "sam_lr": 0.01, "seed": 1}))
    assert not torch.equal(first.ram, other.ram)


@pytest.mark.parametrize("sam", ["own", "shared"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_training_ends_at_the_same_bits(tiny_pipe: Any, stop: int, sam: str) -> None:
    config = TrainConfig.preset("default", **{**TINY, "sam_lr": 0.01, "sam": sam})
    *_, whole = train(tiny_pipe, WOMAN, config)
    for record in train(tiny_pipe, WOMAN, config):
        if record.iteration == stop:
            tensors = record.state.tensors()
            break
    *_, resumed = train(tiny_pipe, WOMAN, config, resume=tensors)
    assert torch.equal(whole.module.ram, resumed.module.ram) and torch.equal(whole.module.sam, resumed.module.sam)
    assert whole.unet_forwards == resumed.unet_forwards


def test_module_carries_gain_prompts_and_settings(tiny_pipe: Any, tmp_path: Any) -> None:
    config = TrainConfig.preset("default", **TINY)
    *_, last = train(tiny_pipe, WOMAN, config)
    assert torch.equal(last.module.ram, last.module.header.verdict["factor"] * last.state.tensors()["value.woman.ram.r"])
    found = load(last.module.save(tmp_path / "woman.safetensors")).header
    assert (found.concept, found.target, found.neutral, found.attribute) == ("woman", "a woman", "a person", "gender")
    assert found.train["iterations"] == 4 and found.base_digest and found.base_weights and found.resolution == (16, 16)


def test_without_sam_the_second_tensor_stays_zero(tiny_pipe: Any) -> None:
    assert fit(tiny_pipe, WOMAN, TrainConfig.preset("default", **TINY, sam_lr=0.0)).sam.abs().max() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations is 0; allowed: a whole number from 1 to 1,000,000"),
        ({"batch": -1}, "batch is -1"),
        ({"steps": 1}, "steps is 1; allowed: 2 to 999"),
        ({"ram_lr": float("nan")}, "ram_lr is nan; allowed: a number above 0"),
        ({"target_guidance": 0.0}, "target_guidance is 0.0"),
        ({"sam_weight": -0.5}, "sam_weight is -0.5; allowed: a number from 0 to"),
        ({"objective": "best"}, "objective is 'best'; allowed: guided, contrast"),
        ({"decay": "cosine"}, "decay is 'cosine'; allowed: constant, sqrt"),
        ({"timesteps": "some"}, "timesteps is 'some'; allowed: all, last"),
        ({"betas": (0.9,)}, "betas is"),
        ({"seed": -1}, "seed is -1"),
        ({"speed": 3}, "setting 'speed' is unknown; allowed: steps, "),
    ],
)
def test_settings_are_refused_with_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        TrainConfig.preset("default", **changes)


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ValueError, match="preset is 'best'; allowed: default, paper, official"):
        TrainConfig.preset("best")


def test_rates_of_the_scripts_are_for_their_concepts_not_for_other_ones_of_that_name() -> None:
    assert TrainConfig.preset("official", "man").sam_lr == 1e-4
    assert TrainConfig.preset("official", replace(find_concept("white"), neutral="someone")).ram_lr == 0.1
    assert TrainConfig.preset("official", replace(find_concept("white"), target="a white wall")).ram_lr == 0.01


def test_state_of_another_model_is_refused(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("default", **TINY)
    tensors = next(train(tiny_pipe, WOMAN, config)).state.tensors()
    other = {k: v[..., :2] if v.ndim == 3 else v for k, v in tensors.items()}
    with pytest.raises(ValueError, match="checkpoint has tensors of shape"):
        next(train(tiny_pipe, WOMAN, config, resume=other))


def test_mixture_recovers_the_shares_a_score_is_made_of() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(5, 4, 4, 4, generator=generator) for _ in range(3))
    assert torch.allclose(mixture(0.7 * a + 0.2 * b + 0.1 * c, [a, b, c]), torch.tensor([0.7, 0.2, 0.1]), atol=1e-5)
    assert mixture(a, [a]).tolist() == [1.0]


def test_several_opposites_are_weighted_by_what_the_neutral_prompt_draws(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    light = Concept("light", "a woman", "a person", opposites=("a man", "a doctor"))
    monkeypatch.setattr("respodiff.training.objectives.mixture", lambda *_: torch.tensor([0.2, 0.6, 0.2]))
    config = TrainConfig.preset("default", **{**TINY, "timesteps": "all"})
    pool = pool_of(tiny_pipe, light, config)
    e = {}
    for prompt in ("a person", "a woman", "a man", "a doctor"):
        context = contexts(tiny_pipe, [prompt]).expand(len(pool.z), -1, -1)
        e[prompt] = tiny_pipe.unet(pool.z, pool.t, encoder_hidden_states=context).sample.detach()
    expected = e["a person"] + e["a woman"] - (0.75 * e["a man"] + 0.25 * e["a doctor"])
    assert torch.allclose(pool.e_tar, expected, atol=1e-5)


def test_rates_are_multiples_of_the_rms_of_h(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("default", **TINY, projection=0.0, sam_lr=0.0, ram_lr=0.1)
    first = next(train(tiny_pipe, WOMAN, config))
    _, n, _, rms = first.state.tensors()["value.woman.norms"].tolist()
    model = Denoiser(tiny_pipe, guidance=3.0)
    seen: list[float] = []
    batch = pool_of(tiny_pipe, WOMAN, config).batch(0, 3)
    handle = tiny_pipe.unet.mid_block.register_forward_hook(lambda _m, _a, h: seen.append(h.pow(2).mean().sqrt().item()))
    model(batch.z, batch.t, batch.y)
    handle.remove()
    assert rms == pytest.approx(seen[0], rel=1e-4)
    moved = first.module.ram.abs()
    assert n == 1 and moved.median().item() == pytest.approx(0.1 * rms, rel=0.02), "the first step of Adam is the rate"
    absolute = next(train(tiny_pipe, WOMAN, TrainConfig.preset("default", **TINY, **AS_TRAINED, sam_lr=0.0, ram_lr=0.1)))
    assert absolute.module.ram.abs().median().item() == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("aim", [0.02, 0.05])
def test_the_module_reaches_the_projection_of_the_settings(tiny_pipe: Any, aim: float) -> None:
    """On latents of the test's own: r is scaled until it moves predictions as far along the target difference as was asked."""
    config = TrainConfig.preset("default", **{**TINY, "iterations": 20, "rollouts": 12, "refresh_every": 10}, projection=aim, sam_lr=0.0)
    module = fit(tiny_pipe, WOMAN, config)
    b = pool_of(tiny_pipe, WOMAN, replace(config, rollouts=24, seed=5), module.ram[None])
    y, unet = b.y["encoder_hidden_states"], tiny_pipe.unet
    e = unet(b.z, b.t, encoder_hidden_states=y).sample
    d, change = b.e_tar - e, hooked(unet, b.z, b.t, y, module.ram) - e
    assert ((change * d).sum() / d.square().sum()).item() == pytest.approx(aim, rel=0.3)
    assert module.header.verdict["reached"] == pytest.approx(aim, rel=0.05)
    half = hooked(unet, b.z, b.t, y, module.ram / 2) - e
    assert module.header.verdict["linearity"] == pytest.approx(((change * d).sum() / (2 * (half * d).sum())).item(), rel=0.1)


def test_a_response_that_is_not_linear_is_a_warning(
    tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    config = TrainConfig.preset("default", **TINY, sam_lr=0.0, projection=0.02)
    for linearity, told in ((0.8, 0), (1.2, 0), (0.7, 1), (1.3, 1)):
        monkeypatch.setattr("respodiff.training.respodiff._reach", lambda *_, x=linearity: (1.0, 0.02, x))
        recwarn.clear()
        module = fit(tiny_pipe, WOMAN, config)
        assert module.header.verdict["linearity"] == linearity
        assert sum("not linear" in str(w.message) for w in recwarn.list) == told


def test_no_projection_makes_ram_longer_than_the_limit(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("default", **TINY, sam_lr=0.0, projection=50.0, max_relative_norm=0.2)
    with pytest.warns(UserWarning, match=r"module 'woman' reaches a projection of .* for 50: max_relative_norm 0\.2 limits it"):
        module = fit(tiny_pipe, WOMAN, config)
    assert module.relative_norm == pytest.approx(0.2, rel=1e-4)


def test_rams_length_does_not_depend_on_sam(tiny_pipe: Any) -> None:
    alone, both = (fit(tiny_pipe, WOMAN, TrainConfig.preset("default", **TINY, sam_lr=rate)) for rate in (0.0, 0.006))
    assert torch.equal(alone.ram, both.ram), "RAM's loss never sees SAM, and neither may its length"
    assert both.sam.norm() > 0.01 * both.ram.norm()


def test_a_sam_that_is_faster_than_ram_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^sam_lr is 0\.006; allowed: at most ram_lr, 0\.002"):
        TrainConfig.preset("default", ram_lr=0.002)
    assert not TrainConfig.preset("default", ram_lr=0.002, sam_weight=0.0).trains_sam


def test_records_keep_what_they_saw(tiny_pipe: Any) -> None:
    records = list(train(tiny_pipe, WOMAN, TrainConfig.preset("default", **TINY)))
    assert not torch.equal(records[0].module.ram, records[-1].module.ram)


def test_ram_alone_is_alone_also_from_a_random_start(tiny_pipe: Any) -> None:
    assert fit(tiny_pipe, WOMAN, TrainConfig.preset("paper", **TINY, sam_lr=0.0)).sam.abs().max() == 0


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, PNDMScheduler])
def test_rollouts_are_ddim_without_clipping_whatever_the_pipelines_scheduler(tiny_pipe: Any, scheduler: Any) -> None:
    config = TrainConfig.preset("default", **TINY)
    expected = pool_of(tiny_pipe, WOMAN, config).z
    kept = {k: v for k, v in tiny_pipe.scheduler.config.items() if k != "clip_sample"}
    tiny_pipe.scheduler = scheduler.from_config(kept)
    assert not Denoiser(tiny_pipe).sampler(4).config.clip_sample
    assert torch.allclose(pool_of(tiny_pipe, WOMAN, config).z, expected, atol=1e-5)


def test_negative_prompt_beside_a_target_takes_part(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("default", **TINY)
    plain, negative = (fit(tiny_pipe, Concept("x", "a woman", "a person", text), config) for text in ("", "a man"))
    assert not torch.equal(plain.ram, negative.ram)
    assert torch.equal(negative.ram, fit(tiny_pipe, Concept("x", "a woman", "a person", opposites=("a man",)), config).ram)


def test_bfloat16_trains_with_float32_modules_and_float16_is_refused(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("default", **TINY)
    exact = fit(tiny_pipe, WOMAN, config)
    tiny_pipe.unet.to(torch.bfloat16)
    rough = fit(tiny_pipe, WOMAN, config)
    assert rough.ram.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(rough.ram.flatten(), exact.ram.flatten(), 0) > 0.5
    tiny_pipe.unet.to(torch.float16)
    with pytest.raises(ValueError, match=r"dtype is float16.*float32 or bfloat16"):
        next(train(tiny_pipe, WOMAN, config))


def test_divergence_is_said_at_once(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "response_loss", lambda e, target: (e - target).sum() * float("inf"))
    config = TrainConfig.preset("default", **{**TINY, "iterations": 50})
    with pytest.raises(RuntimeError, match=r"iteration \d+: training diverged; lower ram_lr"):
        fit(tiny_pipe, WOMAN, config)


@pytest.mark.parametrize("rate", [1e3, 1e6, 1e12])
def test_a_rate_that_diverges_is_said_at_the_first_update(tiny_pipe: Any, rate: float) -> None:
    config = TrainConfig.preset("default", **TINY, ram_lr=rate)
    with pytest.raises(RuntimeError, match=r"RAM of 'woman' is \S+ times as long as h at iteration 1: .*lower ram_lr"):
        next(train(tiny_pipe, WOMAN, config))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"projection": 1e6, "max_relative_norm": 1e6}, "training diverged; lower ram_lr, which is 0.06, projection, sam_lr or sam_weight"),
        ({"sam_weight": 1e9}, "training diverged; lower ram_lr, which is 0.06, projection, sam_lr or sam_weight"),
        ({"ram_lr": 1e-9, "sam_lr": 0.0}, "has an effect of .*, which is none; raise ram_lr, which is 1e-09, or iterations"),
        ({"form": "mlp", "ram_lr": 1e3}, "training diverged; lower ram_lr, which is 1000"),
    ],
)
def test_a_module_of_no_effect_or_too_much_is_refused_and_its_state_kept(tiny_pipe: Any, changes: dict[str, Any], said: str) -> None:
    config = TrainConfig.preset("default", **{**TINY, **changes})
    with pytest.raises(RuntimeError, match=said) as error:
        for record in train(tiny_pipe, WOMAN, config):
            last = record
    assert "\n" not in str(error.value)
    if config.form == "constant":
        assert last.iteration == 3, "the fourth is not given out"
        with pytest.raises(RuntimeError, match=said):
            next(train(tiny_pipe, WOMAN, config, resume=last.state.tensors()))


def test_values_that_are_not_finite_after_the_last_update_are_refused(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = training.adam_step, [0]

    def broken(adam: Any, *rest: Any) -> None:
        real(adam, *rest)
        calls[0] += 1
        if calls[0] == 4:
            adam.param_groups[0]["params"][0].data[0, 0, 0] = float("nan")

    monkeypatch.setattr(training, "adam_step", broken)
    found: list[Any] = []
    with pytest.raises(RuntimeError, match=r"'woman\.ram\.r' holds NaN .* at iteration 4: training diverged; lower ram_lr"):
        for record in train(tiny_pipe, WOMAN, TrainConfig.preset("default", **TINY, sam_lr=0.0)):
            found.append(record)
    tensors = found[-1].state.tensors()
    assert tensors["counters"][0] == 3 and all(t.isfinite().all() for t in tensors.values()), "the state before it is kept"


@pytest.mark.parametrize(
    ("concept", "role"),
    [
        (Concept("x", "a person", "a person", opposites=("a man",)), "target"),
        (Concept("x", "A  Person", "a person"), "target"),
        (Concept("x", "a scene", "a scene", "a scene", "safety"), "negative"),
    ],
)
def test_a_target_that_is_the_neutral_prompt_is_refused_before_the_work(
    tiny_pipe: Any, concept: Concept, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Denoiser, "__call__", None)
    with pytest.raises(ValueError, match=f"^{role} prompt .* of concept 'x' is the same to this model as its neutral prompt"):
        next(train(tiny_pipe, concept, TrainConfig.preset("default", concept.kind, **TINY)))


@pytest.mark.parametrize("concept", [WOMAN, UNSAFE])
def test_the_header_holds_the_verdict_also_of_a_resumed_run(tiny_pipe: Any, concept: Concept) -> None:
    config = TrainConfig.preset("default", concept.kind, **TINY)
    *before, last = train(tiny_pipe, concept, config)
    found = last.module.header.verdict
    assert found.keys() == {"effect", "projection", "relative_norm", "factor", "reached", "linearity"} and found["effect"] > 0.05
    assert found["relative_norm"] == last.module.relative_norm and not before[-1].module.header.verdict
    (again,) = train(tiny_pipe, concept, config, resume=last.state.tensors())
    assert again.module.header == last.module.header and again.unet_forwards == last.unet_forwards


def test_resume_of_the_paper_preset(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("paper", iterations=5, steps=5)
    *_, whole = train(tiny_pipe, WOMAN, config)
    for record in train(tiny_pipe, WOMAN, config):
        if record.iteration == 3:
            tensors = record.state.tensors()
            break
    *_, resumed = train(tiny_pipe, WOMAN, config, resume=tensors)
    assert torch.equal(whole.module.ram, resumed.module.ram) and torch.equal(whole.module.sam, resumed.module.sam)


TINY_PAPER = {"iterations": 4, "steps": 4}


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("place", ["before RAM", "after RAM", "before SAM", "after SAM", "after both"])
def test_an_interrupt_anywhere_in_an_iteration_leaves_a_state_to_resume_from_exactly(
    tiny_pipe: Any, preset: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = TINY_PAPER if preset == "paper" else {**TINY, "steps": 3, "sam_lr": 0.01}
    config = TrainConfig.preset(preset, **changes)
    *_, whole = train(tiny_pipe, WOMAN, config)
    real, calls = {name: getattr(training, name) for name in ("adam_step", "share_step")}, [0]
    when, which = place.split()

    def stopped(name: str, *args: Any) -> None:
        calls[0] += 1
        here = calls[0] == (6 if which == "SAM" else 5)  # the third iteration, RAM's or SAM's half
        if here and when == "before":
            raise KeyboardInterrupt
        real[name](*args)
        if (here and when == "after" and which != "both") or (which == "both" and calls[0] == 6):
            raise KeyboardInterrupt

    for name in real:
        monkeypatch.setattr(training, name, partial(stopped, name))
    with pytest.raises(KeyboardInterrupt):
        for record in train(tiny_pipe, WOMAN, config):
            last = record
    tensors = last.state.tensors()
    assert int(tensors["counters"][0]) == 2 and torch.equal(tensors["value.woman.ram.r"], last.module.ram)
    for name, step in real.items():
        monkeypatch.setattr(training, name, step)
    for _ in range(2):  # twice: resuming does not change what it is given
        *_, resumed = train(tiny_pipe, WOMAN, config, resume=tensors)
        assert torch.equal(whole.module.ram, resumed.module.ram) and torch.equal(whole.module.sam, resumed.module.sam)
        assert whole.unet_forwards == resumed.unet_forwards
        assert torch.equal(whole.state.tensors()["value.woman.norms"], resumed.state.tensors()["value.woman.norms"])


def test_a_finished_run_that_is_resumed_gives_its_module(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("default", **TINY)
    *_, whole = train(tiny_pipe, WOMAN, config)
    (again,) = train(tiny_pipe, WOMAN, config, resume=whole.state.tensors())
    assert again.module.digest == whole.module.digest and again.iteration == 4


def test_a_resume_that_holds_no_run_is_refused(tiny_pipe: Any) -> None:
    with pytest.raises(ValueError, match=r"resume has no 'counters'; give record\.state\.tensors\(\)"):
        next(train(tiny_pipe, WOMAN, TrainConfig.preset("default", **TINY), resume={}))


@pytest.mark.parametrize("name", ["iterations", "batch", "steps", "refresh_every", "seed", "ram_lr", "preservation_weight"])
@pytest.mark.parametrize("value", ["3", None, True, 2.5])
def test_settings_of_the_wrong_type_are_refused(name: str, value: object) -> None:
    if value == 2.5 and name in ("ram_lr", "preservation_weight"):
        return
    with pytest.raises(ValueError, match=rf"^{name} is .*; allowed: "):
        TrainConfig(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^betas is "):
        TrainConfig(betas=value)  # type: ignore[arg-type]


PRESETS: dict[str, dict[str, Any]] = {
    # The table of docs/training.md, written out.
    "default": {
        "iterations": 40, "batch": 6, "objective": "contrast", "target_guidance": 1, "rates": "relative", "ram_lr": 0.06, "sam_lr": 0.006, "sam": "shared",
        "sam_weight": 0.5, "preservation_weight": 1, "projection": 0.9, "max_relative_norm": 0.6, "betas": (0.9, 0.99), "decay": "sqrt", "init_range": 0, "steps": 6,
        "timestep_labels": "sampler", "rollouts": 30, "rollout_batch": 30, "timesteps": "all", "refresh_every": 20, "rollout_guidance": 3,
        "rollout_modules": "ram", "seed": 0,
    },
    "paper": {
        "iterations": 5000, "batch": 1, "objective": "guided", "target_guidance": 1, "rates": "absolute", "ram_lr": 0.01, "sam_lr": 0.001, "sam": "own",
        "sam_weight": 0.5, "preservation_weight": 0, "projection": 0, "max_relative_norm": 0.6, "betas": (0.9, 0.999), "decay": "constant", "init_range": 0.316, "steps": 50,
        "timestep_labels": "official", "rollouts": 1, "rollout_batch": 1, "timesteps": "last", "refresh_every": 1, "rollout_guidance": 3,
        "rollout_modules": "ram", "seed": 0,
    },
}  # fmt: skip
PRESETS["official"] = {**PRESETS["paper"], "target_guidance": 4, "sam_weight": 1, "rollout_modules": "both"}
SAFETY: dict[str, dict[str, Any]] = {
    "default": {"projection": 0.4},
    "paper": {"target_guidance": 12, "sam_lr": 0.0001, "iterations": 1500},
    "official": {"target_guidance": 12, "sam_lr": 0.0001, "iterations": 5000},
}


@pytest.mark.parametrize("preset", ["default", "paper", "official"])
def test_presets_hold_the_published_numbers(preset: str) -> None:
    others = {"site": (), "height": 0, "width": 0, "form": "constant"}
    assert asdict(TrainConfig.preset(preset)) == others | PRESETS[preset]
    assert asdict(TrainConfig.preset(preset, "safety")) == {**PRESETS[preset], **SAFETY[preset], **others}


@pytest.mark.parametrize("modules", ["ram", "both"])
def test_later_rollouts_are_steered_by_the_modules_that_the_setting_names(
    tiny_pipe: Any, modules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    real = Rollouts.pool

    def pool(self: Rollouts, number: int, delta: Any) -> Any:
        seen.append(delta["mid_block"](torch.zeros(1), torch.zeros(1)).clone())
        return real(self, number, delta)

    monkeypatch.setattr(Rollouts, "pool", pool)
    config = TrainConfig.preset("default", **TINY, **AS_TRAINED, sam="own", sam_lr=0.05, rollout_modules=modules)
    records = list(train(tiny_pipe, WOMAN, config))
    assert len(seen) == 2 and seen[0].abs().max() == 0
    after = records[1].module  # the second of two iterations: what the second round starts from
    assert after.sam.abs().max() > 0.01
    assert torch.allclose(seen[1][0], after.ram + after.sam if modules == "both" else after.ram)


def test_second_adam_step_with_falling_rate_matches_a_hand_written_one(tiny_pipe: Any) -> None:
    unet = tiny_pipe.unet
    config = TrainConfig.preset("default", **TINY, **AS_TRAINED, ram_lr=0.2, sam_lr=0.0)
    (b1, b2), r = config.betas, torch.zeros(1, *site_shape(unet))
    rollouts = pool_of(tiny_pipe, WOMAN, config, r)
    m = v = torch.zeros_like(r)
    for i in range(2):
        batch, x = rollouts.batch(i, 3), r.clone().requires_grad_()
        loss = (hooked(unet, batch.z, batch.t, batch.y["encoder_hidden_states"], x) - batch.e_tar).pow(2).mean()
        (g,) = torch.autograd.grad(loss, x)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        rate = 0.2 * (1 - i / 4) ** 0.5
        r = r - rate * (m / (1 - b1 ** (i + 1))) / ((v / (1 - b2 ** (i + 1))).sqrt() + 1e-8)
    second = next(x for x in train(tiny_pipe, WOMAN, config) if x.iteration == 2)
    assert torch.allclose(second.module.ram, r, atol=2e-3)
    assert second.module.ram.abs().max() > 0.3, "two steps of the full rate and of .87 of it"


def test_random_start_fills_its_range_and_both_tensors_differ(tiny_pipe: Any) -> None:
    ram, sam = (x(torch.zeros(1), torch.zeros(1)) for x in forms(Denoiser(tiny_pipe), TrainConfig.preset("paper")))
    for tensor in (ram, sam):
        assert -0.316 <= tensor.min() < -0.31 and 0.31 < tensor.max() <= 0.316
        assert tensor.mean().abs() < 0.03 and tensor.std().item() == pytest.approx(0.316 / 3**0.5, rel=0.1)
    assert not torch.equal(ram, sam)


@pytest.mark.parametrize(
    ("concept", "rates"),
    [
        ("woman", (1e-2, 1e-3, 1)),
        ("man", (1e-2, 1e-4, 1)),
        ("asian", (1e-1, 1e-2, 0.3)),
        ("white", (1e-1, 1e-2, 0.3)),
        ("violence", (1e-2, 1e-4, 1)),
        ("sexual", (1e-2, 1e-4, 1)),
        ("old", (1e-2, 1e-3, 1)),
        (UNSAFE, (1e-2, 1e-4, 1)),
    ],
)
def test_presets_of_the_authors_have_the_rates_of_each_concept(concept: Any, rates: tuple[float, ...]) -> None:
    config = TrainConfig.preset("official", concept)
    assert (config.ram_lr, config.sam_lr, config.sam_weight) == rates and config.iterations == 5000
    assert TrainConfig.preset("official", concept, sam_lr=0.005).sam_lr == 0.005
    paper = TrainConfig.preset("paper", concept)
    assert (paper.ram_lr, paper.sam_lr, paper.sam_weight) == (*rates[:2], 0.5), "rates are the scripts', lambda is the text's"
    assert get_method("respodiff-paper").settings(concept) == paper


def test_a_concept_may_be_given_by_name(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("default", **TINY)
    assert torch.equal(fit(tiny_pipe, "woman", config).ram, fit(tiny_pipe, find_concept("woman"), config).ram)
    with pytest.raises(ValueError, match="concept 'wman' is unknown; known: woman, man") as error:
        fit(tiny_pipe, "wman", config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("rates", "of_h"), [("relative", True), ("absolute", False)])
def test_the_last_layer_of_a_form_that_reads_h_moves_in_units_of_h(tiny_pipe: Any, rates: Any, of_h: bool) -> None:
    """The first step of Adam moves every number by its rate."""
    changes = {**AS_TRAINED, "iterations": 1, "form": "mlp", "ram_lr": 0.002, "sam_lr": 0.0, "rates": rates}
    config = TrainConfig.preset("default", **{**TINY, **changes})
    (record,) = train(tiny_pipe, WOMAN, config)
    moved = record.state.tensors()
    first = Rollouts(open_model(tiny_pipe, config), [WOMAN], config).pool(0, None)[0].batch(0, config.batch)
    seen: list[Tensor] = []
    hook = tiny_pipe.unet.mid_block.register_forward_hook(lambda _m, _a, h: seen.append(h))
    with torch.no_grad():
        tiny_pipe.unet(first.z, first.t, encoder_hidden_states=first.y["encoder_hidden_states"])
    hook.remove()
    unit = seen[0].square().mean().sqrt().item() if of_h else 1.0
    assert moved["value.woman.ram.up.bias"].abs().median().item() == pytest.approx(0.002 * unit, rel=0.05)
    assert not of_h or abs(unit - 1) > 0.1, "else nothing is told apart"


@pytest.mark.parametrize("form", ["mlp", "conv"])
def test_forms_that_read_h_train_with_the_same_loop(tiny_pipe: Any, form: str) -> None:
    config = TrainConfig.preset("default", **{**TINY, "iterations": 6, "refresh_every": 6}, form=form, ram_lr=0.002, sam_lr=0.0002)
    records = list(train(tiny_pipe, WOMAN, config))
    assert records[-1].loss < records[0].loss
    tensors = records[2].state.tensors()
    *_, resumed = train(tiny_pipe, WOMAN, config, resume=tensors)
    whole = records[-1].state.tensors()
    assert all(torch.equal(whole[k], v) for k, v in resumed.state.tensors().items() if k != "counters")
    assert whole["value.woman.sam.up.weight"].abs().max() > 0 and whole["value.woman.ram.up.weight"].abs().max() > 0


# --- chosen sites ---


@pytest.mark.parametrize("sam", ["own", "shared"])
def test_a_first_step_at_two_sites_matches_a_hand_written_one(tiny_pipe: Any, sam: str) -> None:
    unet, sites = tiny_pipe.unet, ("mid_block", "up_blocks.0")
    changes = {**AS_TRAINED, "site": sites, "ram_lr": 0.05, "sam_lr": 0.02, "sam": sam, "init_range": 0.3}
    config = TrainConfig.preset("default", **TINY, **changes)
    r, s = zip(*(forms(Denoiser(tiny_pipe, sites=sites), config, i) for i in (0, 1)), strict=True)
    r, s = ([x(torch.zeros(1), torch.zeros(1)).detach().requires_grad_() for x in forms_] for forms_ in (r, s))
    steered = {site: lambda _h, _t, x=x: x.detach() for site, x in zip(sites, r, strict=True)}
    batch = Rollouts(open_model(tiny_pipe, config, sites), [WOMAN], config).pool(0, steered)[0].batch(0, 3)

    def e(*deltas: Tensor) -> Tensor:
        hooks = [unet.get_submodule(n).register_forward_hook(lambda _m, _a, h, d=d: h + d) for n, d in zip(sites, deltas, strict=True)]
        out: Tensor = unet(batch.z, batch.t, encoder_hidden_states=batch.y["encoder_hidden_states"]).sample
        for hook in hooks:
            hook.remove()
        return out

    loss = (e(*r) - batch.e_tar).pow(2).mean()
    g_r = torch.autograd.grad(loss, r)
    new_r = [adam(x.detach(), g, 0.05, config.betas) for x, g in zip(r, g_r, strict=True)]
    plain = unet(batch.z, batch.t, encoder_hidden_states=batch.y["encoder_hidden_states"]).sample
    g_s = torch.autograd.grad(0.5 * (e(*(a + b for a, b in zip(new_r, s, strict=True))) - plain).pow(2).mean(), s)
    record = next(train(tiny_pipe, WOMAN, config))
    assert record.loss == pytest.approx(loss.item(), rel=1e-4)
    assert record.module.sites == sites and set(record.module.tensors) == {f"{p}.{s}.r" for p in ("ram", "sam") for s in sites}
    for i, site in enumerate(sites):
        certain = (g_s[i][0].abs() > 1e-6) & (g_r[i][0].abs() > 1e-6)
        assert certain.float().mean() > 0.5
        assert torch.allclose(record.module.at(site).ram[certain], new_r[i][0][certain], atol=1e-3)
        shared = s[i].detach() - 0.02 * g_s[i] / (g_r[i].square().mean().sqrt() + 1e-8)
        new_s = adam(s[i].detach(), g_s[i], 0.02, config.betas) if sam == "own" else shared
        assert torch.allclose(record.module.at(site).sam[certain], new_s[0][certain], atol=1e-3)


@pytest.mark.parametrize("form", ["constant", "channel", "conv"])
def test_several_sites_train_and_resume(tiny_pipe: Any, form: str) -> None:
    changes: dict[str, Any] = {"site": ("up_blocks.0", "down_blocks.0", "mid_block"), "form": form}
    changes |= {"ram_lr": 0.002, "sam_lr": 0.002, "projection": 0.0} if form == "conv" else {}
    config = TrainConfig.preset("default", **TINY, **changes)
    records = list(train(tiny_pipe, WOMAN, config))
    module = records[-1].module
    assert module.header.site == "down_blocks.0,mid_block,up_blocks.0", "in the order of a forward pass"
    assert module.header.h_norm == 0 and module.relative_norm is None and module.header.verdict["relative_norm"] > 0
    *_, resumed = train(tiny_pipe, WOMAN, config, resume=records[1].state.tensors())
    assert resumed.module.digest == module.digest
    assert not tiny_pipe.unet.mid_block._forward_hooks and module.check(tiny_pipe) == []


def test_the_default_site_by_name_trains_the_same_tensors(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("default", **TINY)
    named, unnamed = fit(tiny_pipe, WOMAN, replace(config, site=("mid_block",))), fit(tiny_pipe, WOMAN, config)
    assert torch.equal(named.ram, unnamed.ram) and torch.equal(named.sam, unnamed.sam) and named.digest != unnamed.digest
    assert named.relative_norm == unnamed.relative_norm is not None and set(named.tensors) == {"ram.mid_block.r", "sam.mid_block.r"}


def test_a_site_that_the_model_has_not_is_refused_with_those_that_it_has(tiny_pipe: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^site is 'attic', which this UNet2DConditionModel has not; allowed: down_blocks\.0, down_blocks\.1, mid"
    ):
        next(train(tiny_pipe, WOMAN, TrainConfig.preset("default", site=("mid_block", "attic"))))
    for bad in (("a", "a"), ("a,b",), ("",), ["mid_block"]):
        with pytest.raises(ValueError, match=r"^site is "):
            TrainConfig.preset("default", site=bad)


def test_forwards_of_a_transformer_are_those_the_model_saw() -> None:
    pipe, seen = sd3(), [0]
    pipe.transformer.register_forward_pre_hook(lambda _m, _a, k: seen.__setitem__(0, seen[0] + len(k["hidden_states"])), with_kwargs=True)
    *_, last = train(pipe, WOMAN, TrainConfig.preset("default", **TINY, sam_lr=0.05, site=("transformer_blocks.0", "transformer_blocks.2")))
    assert last.unet_forwards == seen[0] > 0


def test_forms_that_read_h_are_refused_beside_gradient_checkpointing_of_a_transformer(tiny_pipe: Any) -> None:
    pipe = sd3()
    for model in (pipe.transformer, tiny_pipe.unet):
        model.enable_gradient_checkpointing()
    config = TrainConfig.preset("default", **TINY, form="conv", projection=0.0)
    with pytest.raises(ValueError, match=r"^form is 'conv'"):
        next(train(pipe, WOMAN, config))
    next(train(tiny_pipe, WOMAN, config))
