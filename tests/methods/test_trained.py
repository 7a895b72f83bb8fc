"""Slider, SDisc and ESD: one step of each against its equation written out."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tests.tiny_models import sd, sd_v
from torch import Tensor

from method_tools import MAN, VIOLENCE, WOMAN, close, latents
from respodiff.concepts.concept import Concept
from respodiff.methods.concept_slider import rollouts
from respodiff.methods.esd import phrase_pools, trained_names
from respodiff.methods.lora import layers, low_rank, start
from respodiff.methods.registry import get_method
from respodiff.methods.sdisc import own_images
from respodiff.pipelines.denoiser import Denoiser
from respodiff.steering.module import ConceptModule
from respodiff.training.config import OptimizerConfig, TrainConfig
from respodiff.training.rollouts import mix_seed
from respodiff.training.state import fit_tensors, open_model

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {"iterations": 3, "batch": 2, "steps": 3, "rollouts": 3, "rollout_batch": 2}
MORE: dict[str, dict[str, Any]] = {"slider": {"lr": 0.05, "refresh_every": 2}, "esd-x": {"lr": 1e-2}, "esd-u": {"lr": 1e-3}}


def concept_for(name: str) -> Concept:
    return VIOLENCE if name.startswith("esd") else WOMAN


def tiny(name: str, **changes: Any) -> Any:
    return get_method(name).settings(concept_for(name).kind, **{**TINY, **MORE.get(name, {}), **changes})


def adam(p: Tensor, g: Tensor, lr: float, decay: float = 0.0) -> Tensor:
    """First AdamW step from zero moments: m^ = g, v^ = g^2."""
    return p * (1 - lr * decay) - lr * g / (g.abs() + 1e-8)


def test_a_state_that_cannot_be_resumed_is_refused(plain_sd: Any) -> None:
    with pytest.raises(ValueError, match="resume has no 'counters'"):
        next(iter(get_method("slider").train(plain_sd, WOMAN, tiny("slider"), resume={})))
    with pytest.raises(ValueError, match="trains weights of the model, whose state is not kept; train anew"):
        next(iter(get_method("esd-x").train(plain_sd, VIOLENCE, tiny("esd-x"), resume={})))


# --- slider ---


def test_the_first_slider_step_by_hand(plain_sd: Any) -> None:
    config = tiny("slider", target_guidance=3.0, where="cross", weight_decay=0.1, alpha=2.0)
    unet, rate = plain_sd.unet, 0.05
    values = start(unet, 4, "cross", 0)
    assert {k.rpartition(".")[0] for k in values} == {n for n in dict(unet.named_modules()) if ".attn2.to_" in n and n[-1] in "qkv0"}
    names = sorted({k.rpartition(".")[0] for k in values})
    b = {n: values[f"{n}.b"].clone().requires_grad_() for n in names}
    batch = rollouts(open_model(plain_sd, config), WOMAN, config)(0, values).batch(0, 2)
    context = {p: plain_sd.encode_prompt(p, "cpu", 1, False)[0].expand(2, -1, -1) for p in ("a person", "a woman", "a man")}
    with torch.no_grad():
        e = {p: unet(batch.z, batch.t, encoder_hidden_states=y).sample for p, y in context.items()}
    target = e["a person"] + 3.0 * (e["a woman"] - e["a man"])
    assert close(target, batch.e_tar, 1e-4)
    # W + (alpha / rank) B A in place of W, as a weight, not as a hook.
    params = {f"{n}.weight": unet.get_submodule(n).weight + 2.0 / 4 * b[n] @ values[f"{n}.a"] for n in names}
    found = torch.func.functional_call(unet, params, (batch.z, batch.t, context["a person"])).sample
    loss = (found - target).pow(2).mean()
    loss.backward()
    record = next(iter(get_method("slider").train(plain_sd, WOMAN, config)))
    assert record.loss == pytest.approx(loss.item(), rel=1e-4)
    for n in names:
        g = b[n].grad
        assert g is not None
        wanted, made = adam(torch.zeros_like(g), g, rate), record.module.tensors[f"{n}.b"]
        margin = g.abs() > 1e-6  # below it the sign of a sum of floats decides
        assert torch.allclose(made[margin], wanted[margin], atol=2e-3)
        assert torch.allclose(record.module.tensors[f"{n}.a"], values[f"{n}.a"] * (1 - rate * 0.1), atol=1e-5), "no gradient at B = 0"


def test_a_slider_in_effect_is_a_change_of_weights(plain_sd: Any) -> None:
    made = get_method("slider").fit(plain_sd, WOMAN, tiny("slider"))
    found = latents(plain_sd, ["a nurse"], made.scale(1.5))
    for name, layer in layers(plain_sd.unet).items():
        layer.weight.data += 1.5 * 0.25 * made.tensors[f"{name}.b"] @ made.tensors[f"{name}.a"]
    assert close(found, latents(plain_sd, ["a nurse"]), 1e-3)


def test_low_rank_is_two_products() -> None:
    x, a, b = torch.randn(2, 3, 5), torch.randn(2, 5), torch.randn(4, 2)
    assert torch.allclose(low_rank(torch.nn.Linear(5, 4), x, a, b), torch.einsum("or,ri,nti->nto", b, a, x), atol=1e-5)


def test_later_rollouts_are_drawn_with_the_slider_in_effect(plain_sd: Any) -> None:
    config = tiny("slider", rollouts=1)  # of the neutral prompt
    values = {k: v + (0.5 if k.endswith(".b") else 0.0) for k, v in start(plain_sd.unet, 4, "all", 0).items()}
    pool = rollouts(open_model(plain_sd, config), WOMAN, config)
    one, other = pool(0, start(plain_sd.unet, 4, "all", 0)), pool(0, values)
    first = one.t == one.t.max()
    assert torch.equal(one.z[first], other.z[first]), "the same noise"
    assert not close(one.z[~first], other.z[~first], 1e-3)


# --- SDisc ---


@pytest.mark.parametrize("make", [sd, sd_v])
def test_images_are_noised_as_the_equation_says(make: Any) -> None:
    pipe, config = make(), tiny("sdisc", rollouts=1)
    images = own_images(open_model(pipe, config), WOMAN, config)
    b = images.batch(0, 4)
    abar = pipe.scheduler.alphas_cumprod[b.t].view(-1, 1, 1, 1)
    signal, part = abar.sqrt(), (1 - abar).sqrt()
    noise = (b.z - signal * images.x) / part
    assert len(set(b.t.tolist())) == 4 and noise.std().item() == pytest.approx(1.0, abs=0.1)
    assert close(b.e_tar, noise if make is sd else signal * noise - part * images.x, 1e-3)


def test_the_first_sdisc_step_by_hand(plain_sd: Any) -> None:
    config = tiny("sdisc")
    batch = own_images(open_model(plain_sd, config), WOMAN, config).batch(0, 2)
    context = plain_sd.encode_prompt("a person", "cpu", 1, False)[0].expand(2, -1, -1)
    c = torch.zeros(1, 32, 4, 4, requires_grad=True)
    handle = plain_sd.unet.mid_block.register_forward_hook(lambda _m, _a, h: h + c)
    loss = (plain_sd.unet(batch.z, batch.t, encoder_hidden_states=context).sample - batch.e_tar).pow(2).mean()
    handle.remove()
    (g,) = torch.autograd.grad(loss, c)
    record = next(iter(get_method("sdisc").train(plain_sd, WOMAN, config)))
    assert record.loss == pytest.approx(loss.item(), rel=1e-4)
    margin = g[0].abs() > 1e-7
    assert (
        torch.allclose(record.module.ram[margin], adam(torch.zeros_like(g), g, 0.1)[0][margin], atol=2e-2)
        and record.module.sam.abs().max() == 0
    )


def test_the_images_are_those_of_the_pipeline(plain_sd: Any) -> None:
    config = tiny("sdisc", rollouts=2, rollout_guidance=4.0)
    model = open_model(plain_sd, config)
    found = own_images(model, WOMAN, config)
    z = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(mix_seed(mix_seed(0, 5, 0), 0)))
    assert close(found.x, latents(plain_sd, ["a woman"] * 2, steps=3, guidance=4.0, start=z), 1e-3) and model.forwards == 3 * 2 * 2
    unsafe = own_images(model, VIOLENCE, config)
    assert close(unsafe.x, latents(plain_sd, ["a scene"] * 2, steps=3, guidance=4.0, start=z, negative_prompt=["violence"] * 2), 1e-3)


def test_sdisc_of_a_v_model_and_settings_that_it_has_not() -> None:
    assert isinstance(get_method("sdisc").fit(sd_v(), MAN, tiny("sdisc")), ConceptModule)
    with pytest.raises(ValueError, match=r"setting 'sam_lr' is unknown; method 'sdisc' has: "):
        tiny("sdisc", sam_lr=0.1)


# --- ESD ---


def test_what_each_variant_trains(plain_sd: Any) -> None:
    everything = dict(plain_sd.unet.named_parameters())
    x, u = (set(trained_names(plain_sd.unet, name)) for name in ("esd-x", "esd-u"))
    assert x == {n for n in everything if "attn2" in n} and not x & u
    assert {n for n in everything if "norm" not in n} - x == u


@pytest.mark.parametrize("name", ["esd-x", "esd-u"])
def test_the_first_esd_step_by_hand(plain_sd: Any, name: str) -> None:
    config, unet = tiny(name, target_guidance=1.5), plain_sd.unet
    batch = phrase_pools(open_model(plain_sd, config), VIOLENCE, config)[0].batch(0, 2)
    context = {p: plain_sd.encode_prompt(p, "cpu", 1, False)[0].expand(2, -1, -1) for p in ("", "violence")}
    with torch.no_grad():
        e = {p: unet(batch.z, batch.t, encoder_hidden_states=y).sample for p, y in context.items()}
    target = e["violence"] - 1.5 * (e["violence"] - e[""])
    params = {n: p.detach().clone().requires_grad_() for n, p in unet.named_parameters() if n in trained_names(unet, name)}
    found = torch.func.functional_call(unet, params, (batch.z, batch.t, context["violence"])).sample
    loss = (found - target).pow(2).mean()
    loss.backward()
    record = next(iter(get_method(name).train(plain_sd, VIOLENCE, config)))
    assert record.loss == pytest.approx(loss.item(), rel=1e-4)
    made = record.module.tensors
    assert made.keys() == params.keys()
    for n, p in params.items():
        assert p.grad is not None
        margin = p.grad.abs() > 1e-5
        assert torch.allclose(made[n][margin], -config.lr * p.grad.sign()[margin], atol=config.lr * 0.05)


def test_several_phrases_take_turns(plain_sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Concept("unsafe", "a scene", "a scene", "violence, blood", "safety")
    seen: list[Tensor] = []
    predict = Denoiser.__call__

    def record(self: Denoiser, z: Tensor, t: Tensor, y: Any) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(y["encoder_hidden_states"])
        return predict(self, z, t, y)

    monkeypatch.setattr(Denoiser, "__call__", record)
    get_method("esd-x").fit(plain_sd, both, tiny("esd-x"))
    for found, text in zip(seen, ("violence", "blood", "violence"), strict=True):
        assert close(found, plain_sd.encode_prompt(text, "cpu", 1, False)[0].expand(2, -1, -1))


def test_esd_refuses_half_precision(plain_sd: Any) -> None:
    with pytest.raises(ValueError, match=r"dtype is torch.bfloat16; steps of 5e-05 are lost in it: train esd-x in float32"):
        get_method("esd-x").fit(plain_sd.to(torch.bfloat16), VIOLENCE)


def test_settings_that_make_no_sense_are_refused() -> None:
    for changes, said in (({"rank": 0}, "rank is 0"), ({"alpha": 0.0}, "alpha is 0.0"), ({"where": "some"}, "where is 'some'")):
        with pytest.raises(ValueError, match=said):
            get_method("slider").settings(**changes)


def test_the_defaults_are_those_of_the_documentation() -> None:
    wanted: dict[str, dict[str, Any]] = {
        "slider": {"rank": 4, "alpha": 1.0, "target_guidance": 2.0, "iterations": 200, "lr": 2e-3, "batch": 12, "decay": "sqrt", "where": "all"},
        "sdisc": {"lr": 0.1, "batch": 8, "rollouts": 96, "iterations": 400, "steps": 16, "decay": "constant"},
        "esd-x": {"target_guidance": 2.0, "lr": 5e-5, "iterations": 200, "batch": 4, "preservation_weight": 0.0},
        "fdf": {"batch": 12, "steps": 10, "iterations": 60, "lr": 1e-3, "uncertain": 0.2, "where": "cross", "weight_decay": 0.01},
        "bact": {"rollouts": 288, "steps": 20, "gamma": 5.0},
        "uce": {"lam": 0.5, "edit_weight": 1.0, "keep_weight": 1.0, "images": 10, "steps": 20, "rounds": 30, "tolerance": 0.05},
    }  # fmt: skip
    for name, values in wanted.items():
        found = get_method(name).settings()
        assert {k: getattr(found, k) for k in values} == values
    for kind in ("fairness", "safety"):
        own, paper = get_method("respodiff").settings(kind), get_method("respodiff-paper").settings(kind)
        assert own == TrainConfig.preset("default", kind) and paper == TrainConfig.preset("paper", kind)


# --- verdicts ---


def smaller(name: str, **changes: Any) -> Any:
    return tiny(name, **{**changes, "iterations": 2})


@pytest.mark.filterwarnings("ignore:.*away from its target")
@pytest.mark.parametrize("name", ["slider", "sdisc", "esd-x", "esd-u"])
def test_what_trains_ends_with_a_verdict(plain_sd: Any, name: str) -> None:
    found = get_method(name).fit(plain_sd, concept_for(name), smaller(name)).header.verdict
    assert found.keys() == {"effect", "projection", "relative_norm"}
    assert found["effect"] > 1e-3 and 0 < found["relative_norm"] < 10


@pytest.mark.parametrize("rate", [1e3, 1e6, 1e12, 1e-12])
@pytest.mark.parametrize("name", ["slider", "sdisc", "esd-x", "esd-u"])
def test_what_diverged_or_has_no_effect_is_no_adapter(plain_sd: Any, name: str, rate: float) -> None:
    said = f"training diverged; lower lr, which is {rate:g}" if rate > 1 else f"; raise lr, which is {rate:g}"
    with pytest.raises(RuntimeError, match=said.replace("+", r"\+")) as error:
        get_method(name).fit(plain_sd, concept_for(name), smaller(name, lr=rate))
    assert "\n" not in str(error.value)


def test_relative_norm_of_low_rank_changes_by_hand(plain_sd: Any) -> None:
    made = get_method("slider").fit(plain_sd, WOMAN, smaller("slider"))
    found = layers(plain_sd.unet).items()
    change = torch.cat([(0.25 * made.tensors[f"{n}.b"] @ made.tensors[f"{n}.a"]).flatten() for n, _ in found])
    weights = torch.cat([layer.weight.flatten() for _, layer in found])
    assert made.header.verdict["relative_norm"] == pytest.approx((change.norm() / weights.norm()).item(), rel=1e-3)


@pytest.mark.parametrize(("name", "kind"), [("slider", ValueError), ("sdisc", RuntimeError)])
def test_prompts_that_are_the_same_to_the_model_are_refused(plain_sd: Any, name: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="the same to this model"):
        get_method(name).fit(plain_sd, Concept("x", "a person", "a person"), smaller(name))


def test_a_training_that_changes_nothing_is_refused(plain_sd: Any) -> None:
    model, config, start = Denoiser(plain_sd), OptimizerConfig(iterations=2), {"x": torch.zeros(3)}

    class Nothing:
        def batch(self, *_: int) -> None:
            return None

    def loss(values: Any, _batch: Any, factor: float = 0.0) -> float:
        (found := factor * values["x"].sum()).backward()
        return found.item()

    def run(factor: float) -> list[Any]:
        return list(fit_tensors(model, start, lambda *_: Nothing(), partial(loss, factor=factor), config, dict))

    with pytest.raises(RuntimeError, match=r"training changed nothing; raise lr, which is 0\.001"):
        run(0.0)
    assert run(1.0)[-1].module["x"].abs().min() > 0
