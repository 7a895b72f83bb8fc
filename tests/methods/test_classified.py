"""FDF and BAct, which learn from a classifier of images: their equations written out, and what holds around them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from tests.tiny_models import TINY_PIPELINES, sd_v
from torch import Tensor

from method_tools import MAKE, WOMAN, close, latents, noise
from respodiff.concepts.concept import Concept
from respodiff.data.run_folder import RunFolder
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.methods import fdf as fdf_module
from respodiff.methods.bact import BalancingAdapter, balanced, bin_of, labelled_images
from respodiff.methods.base import decoded
from respodiff.methods.fdf import Subjects, images_loss, sampler_factors, transported
from respodiff.methods.lora import start
from respodiff.methods.registry import get_method
from respodiff.pipelines.denoiser import Denoiser
from respodiff.steering.adapter import header_of
from respodiff.training.rollouts import mix_seed
from respodiff.training.state import open_model

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {"iterations": 3, "steps": 3, "subjects": ("doctor", "nurse")}
MORE: dict[str, dict[str, Any]] = {"fdf": {"batch": 4, "lr": 0.05}, "bact": {"batch": 6, "rollouts": 6, "lr": 0.05}}


def tiny(name: str, **changes: Any) -> Any:
    return get_method(name).settings(**{**TINY, **MORE[name], **changes})


def classify(images: Tensor) -> Tensor:
    """Linear in the pixels, and never of one mind: logits relative to the batch's mean."""
    g = torch.Generator().manual_seed(3)
    logits = (images - 0.5).flatten(1) @ torch.randn(images[0].numel(), 2, generator=g)
    return 0.1 * (logits - logits.mean(0).detach())


def test_bad_input_is_one_line(plain_sd: Any) -> None:
    alone = Concept("hat", "a person with a hat")
    for name in ("fdf", "bact"):
        kind = get_method(name)
        for call, said in (
            (lambda kind=kind: kind.fit(plain_sd, WOMAN), "needs a classifier of images for fairness concepts"),
            (lambda kind=kind: kind.fit(plain_sd, alone, classify=classify), "concept 'hat' has no alternatives"),
            (lambda kind=kind, name=name: kind.fit(plain_sd, WOMAN, tiny(name), classify=lambda p: torch.zeros(len(p), 3)), r"classify gave \(\d, 3\)"),
            (lambda kind=kind: kind.settings(subjects=()), r"subjects is \(\); allowed: one text or more"),
            (lambda kind=kind: kind.settings(draw="x"), "draw is 'x'"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=said) as error:
                call()
            assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"uncertain is 0\.5; allowed: 0 to below 0\.5"):
        tiny("fdf", uncertain=0.5)
    pipe = sd_v()
    pipe.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="the model predicts neither noise, nor v, nor the velocity of flow matching"):
        get_method("fdf").fit(pipe, WOMAN, tiny("fdf"), classify=classify)


# --- FDF ---


def test_targets_of_two_labels_are_binomial_tails() -> None:
    first = torch.tensor([0.9, 0.2, 0.6, 0.55, 0.05, 0.7, 0.31, 0.8])
    q = transported(torch.stack([first, 1 - first], 1), 4000, 0)
    rank = (-first).argsort().argsort().numpy()  # 0 is the likeliest
    wanted = 1 - binom.cdf(rank, len(first), 0.5)  # more than ``rank`` labels of the first kind
    assert np.abs(q[:, 0].numpy() - wanted).max() < 0.03 and torch.allclose(q.sum(1), torch.ones(8))


def test_one_draw_is_the_cheapest_of_all_assignments() -> None:
    p = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
    q = transported(p, 1, 7)
    labels = np.random.default_rng(7).integers(3, size=5)
    costs = {o: sum(((p[i].numpy() - np.eye(3)[labels[j]]) ** 2).sum() for i, j in enumerate(o)) for o in itertools.permutations(range(5))}
    found = sum(((p[i].numpy() - np.eye(3)[int(q[i].argmax())]) ** 2).sum() for i in range(5))
    assert found == pytest.approx(min(costs.values())) and sorted(q.argmax(1).tolist()) == sorted(labels.tolist())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_gradient_is_that_of_the_sampling_loop_written_out(plain_sd: Any, guidance: float) -> None:
    config = tiny("fdf", rollout_guidance=guidance, stay=0.7, uncertain=0.4, where="cross")
    denoiser, unet, g = open_model(plain_sd, config), plain_sd.unet, torch.Generator().manual_seed(5)
    values = {k: v.requires_grad_() for k, v in start(unet, config.rank, "cross", 0).items()}
    for k, v in values.items():
        if k.endswith(".b"):
            v.data = 0.3 * torch.randn(v.shape, generator=g)
    images = Subjects(denoiser, config, classify).pool(0, values)
    b = {k: v.detach().clone().requires_grad_() for k, v in values.items() if k.endswith(".b")}
    names = [k[:-2] for k in b]
    params = {f"{n}.weight": unet.get_submodule(n).weight.detach() + 0.25 * b[f"{n}.b"] @ values[f"{n}.a"].detach() for n in names}
    scheduler = denoiser.sampler(3)
    abar, alphas, times = scheduler.alphas_cumprod, scheduler.alphas, [int(t) for t in scheduler.timesteps]
    a = [math.sqrt(abar[t]) * math.sqrt(1 - abar[t]) / (1 - alphas[t].item()) for t in times]
    a = [x / math.prod(a) ** (1 / 3) for x in a]
    z, plain_z, y, empty = images.z[0], images.z[0], images.y["encoder_hidden_states"], denoiser.empty["encoder_hidden_states"]
    texts = torch.cat([empty] * 4 * (guidance > 1) + [y] * 4)

    def predicted(x: Tensor, t: int, weights: dict[str, Tensor]) -> Tensor:
        e = torch.func.functional_call(unet, weights, (torch.cat([x, x]) if guidance > 1 else x, t, texts)).sample
        return e.chunk(2)[0] + guidance * (e.chunk(2)[1] - e.chunk(2)[0]) if guidance > 1 else e

    for i, t in enumerate(times):
        later = abar[times[i + 1]] if i < 2 else scheduler.final_alpha_cumprod
        assert close(images.z[i], z, 1e-3)
        e = predicted(z.detach(), t, params)
        e.register_hook(lambda gradient, by=a[i]: gradient * by)
        z = later.sqrt() * (z - (1 - abar[t]).sqrt() * e) / abar[t].sqrt() + (1 - later).sqrt() * e
        with torch.no_grad():
            plain = predicted(plain_z, t, {})
        plain_z = later.sqrt() * (plain_z - (1 - abar[t]).sqrt() * plain) / abar[t].sqrt() + (1 - later).sqrt() * plain
    logits = classify((plain_sd.vae.decode(z / plain_sd.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1))
    q = transported(logits.softmax(1), fdf_module.DRAWS, mix_seed(0, 6, 0) % (1 << 32))
    loss, counted_ = torch.zeros(()), 0
    for i in range(4):
        target, margin = int(q[i].argmax()), bool(q[i].max() >= 0.6)
        if margin:
            loss, counted_ = loss - logits[i].log_softmax(0)[target] / 4, counted_ + 1
        w = 1.0 if margin and target == int(logits[i].argmax()) else 0.2
        loss = loss + 0.7 * w * (z[i] - plain_z[i]).square().mean() / 4
    assert counted_ >= 2, "the test is of something"
    loss.backward()
    images_loss(denoiser, config, values, images)
    for k, v in b.items():
        found = values[k].grad
        assert found is not None and v.grad is not None
        assert torch.allclose(found, v.grad, atol=2e-3 * float(v.grad.abs().max()) + 1e-7), k


def test_the_first_step_without_adjustment_is_the_samplers_derivative() -> None:
    pipe = MAKE["sd"]()
    scheduler = Denoiser(pipe).sampler(4)
    z, es = torch.tensor(0.3, dtype=torch.float64), [torch.tensor(0.1 * i, dtype=torch.float64, requires_grad=True) for i in range(4)]
    for t, e in zip(scheduler.timesteps, es, strict=True):
        z = scheduler.step(e, t, z).prev_sample
    wanted = torch.stack(torch.autograd.grad(z, es))
    abar, alphas = scheduler.alphas_cumprod.double(), scheduler.alphas.double()
    a = torch.stack([(abar[t] * (1 - abar[t])).sqrt() / (1 - alphas[t]) for t in scheduler.timesteps])
    assert torch.allclose(sampler_factors(scheduler), wanted * a / a.log().mean().exp(), rtol=1e-4)


def test_a_prediction_of_v_gets_the_gradient_of_the_noise_that_it_means() -> None:
    noise_of, v_of = (Denoiser(MAKE["sd"]()).sampler(4), Denoiser(sd_v()).sampler(4))
    x, v, t = torch.randn(()), torch.randn((), requires_grad=True), v_of.timesteps
    abar = v_of.alphas_cumprod[t]
    for i in range(4):
        e = (
            abar[i].sqrt() * v + (1 - abar[i]).sqrt() * x
        )  # of x = sqrt(abar) x_0 + sqrt(1 - abar) e and v = sqrt(abar) e - sqrt(1 - abar) x_0
        (slope,) = torch.autograd.grad(e, v)
        assert sampler_factors(v_of)[i].item() == pytest.approx((sampler_factors(noise_of)[i] * slope).item())


def test_factors_of_flow_matching_are_the_samplers_derivative() -> None:
    sampler, other = (Denoiser(pipe).sampler(3) for pipe in [TINY_PIPELINES["SanaPipeline"]()] * 2)
    z, es = torch.tensor([0.3], dtype=torch.float64), [torch.full((1,), 0.1 * i, dtype=torch.float64, requires_grad=True) for i in range(3)]
    for t, e in zip(other.timesteps, es, strict=True):
        z = other.step(e, t, z).prev_sample
    assert torch.allclose(sampler_factors(sampler), torch.cat(torch.autograd.grad(z.sum(), es)), rtol=1e-4)


@pytest.mark.parametrize("cls", ["SanaPipeline", "PixArtSigmaPipeline", "HunyuanDiTPipeline"])
def test_cross_attention_of_a_transformer_is_trained(cls: str) -> None:
    pipe = TINY_PIPELINES[cls]()
    made = get_method("fdf").fit(pipe, WOMAN, tiny("fdf", iterations=1), classify=classify)
    changed = {key.rpartition(".")[0] for key in made.tensors if made.tensors[key].abs().max() > 0 and key.endswith(".b")}
    assert changed == {name for name, _ in pipe.transformer.named_modules() if ".attn2.to_" in name and name[-1] in "qkv0"}


def test_images_are_decoded_as_the_pipeline_does(pipe: Any) -> None:
    z = noise(pipe, 2) * 0.1
    call = {"num_inference_steps": 2, "guidance_scale": 1.0}
    found = decoded(pipe, latents(pipe, ["x"] * 2, steps=2, guidance=1.0, start=z))
    wanted = pipe(["x"] * 2, latents=z, output_type="pt", **call).images
    assert close(found.clamp(0, 1), wanted, 1e-3)


# --- BAct ---


def test_guidance_of_two_images_by_hand() -> None:
    g = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((3, 5), (2, 5), (2,)))
    found = balanced(x, w, b, 0.8)
    p = (x @ w.T + b).softmax(1)
    mean = p.mean(0)
    slope = 4 * (mean - 0.5)
    gradient = torch.zeros_like(x)
    for i in range(3):
        for k in range(2):
            gradient[i] += slope[k] / 3 * p[i, k] * (w[k] - (p[i][:, None] * w).sum(0))
    size = sum((w[k] - (w[0] + w[1]) / 2).square().sum() for k in range(2)) / 2
    assert torch.allclose(found, x - 0.8 * 3 * gradient / size)
    after = (found @ w.T + b).softmax(1).mean(0)
    assert (after - 0.5).abs().max() < (mean - 0.5).abs().max()


def test_bins_of_timesteps() -> None:
    assert [int(bin_of(torch.tensor(t), 20)) for t in (0, 1, 49, 50, 951, 999)] == [0, 0, 0, 1, 19, 19]


def test_the_first_step_of_the_heads_by_hand(plain_sd: Any) -> None:
    config = tiny("bact")
    hs, times, labels = labelled_images(open_model(plain_sd, config), config, classify).batch(0, 6)
    record = next(iter(get_method("bact").train(plain_sd, WOMAN, config, classify=classify)))
    assert record.loss == pytest.approx(math.log(2)), "heads of zeros are of no mind"
    scale = hs.square().mean().sqrt()
    gradient = torch.zeros(3, 2, hs.shape[1])
    for h, t, label in zip(hs, times, labels, strict=True):
        for k in range(2):
            gradient[int(t) * 3 // 1000, k] += (0.5 - float(int(label) == k)) * h / scale / 6
    margin = gradient.abs() > 1e-4
    assert torch.allclose(record.module.tensors["weight"][margin], -0.05 * gradient.sign()[margin], atol=1e-3)
    assert record.module.tensors["scale"].item() == pytest.approx(scale.item())


def test_what_is_recorded_is_h_of_the_conditional_rows(plain_sd: Any) -> None:
    config = tiny("bact", rollouts=2)
    model = open_model(plain_sd, config)
    found = labelled_images(model, config, classify)
    assert found.h.shape == (2, 3, 32 * 4 * 4) and model.forwards == 2 * 3 * 2
    seen: list[Tensor] = []
    handle = plain_sd.unet.mid_block.register_forward_hook(lambda _m, _a, h: seen.append(h[1].flatten()))
    z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(mix_seed(mix_seed(0, 7, 0), 1)))
    latents(plain_sd, ["image of nurse"], steps=3, guidance=3.0, start=z)
    handle.remove()
    assert close(found.h[1], torch.stack(seen), 1e-3)


def test_an_image_that_is_drawn_again_is_balanced_with_those_beside_it(plain_sd: Any, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(2)
    tensors = {"weight": torch.randn(4, 2, 512, generator=g) / 400, "bias": torch.randn(4, 2, generator=g), "scale": torch.tensor([0.5])}
    made = BalancingAdapter(header_of(plain_sd, "bact", WOMAN, get_method("bact").settings(steps=4, gamma=3.0)), tensors)
    config = GenerateConfig(images=3, steps=2, guidance=3.0, batch=4)
    run = RunFolder(tmp_path / "run")
    list(generate(plain_sd, ["a doctor"], [made], config, out=run.path))
    digests = {r.id: r.digest for r in run.records()}
    (run.path / run.records()[1].file).unlink()
    for prompts in (["a doctor"], ["a doctor", "a nurse"]):  # more prompts move no border of a batch
        list(generate(plain_sd, prompts, [made], config, out=run.path))
        records, problems = run.read()
        assert not problems and {r.id: r.digest for r in records}.items() >= digests.items()


def test_in_effect_h_of_each_prompt_is_balanced_on_its_own(plain_sd: Any) -> None:
    g = torch.Generator().manual_seed(2)
    tensors = {"weight": torch.randn(4, 2, 512, generator=g) / 400, "bias": torch.randn(4, 2, generator=g), "scale": torch.tensor([0.5])}
    config = get_method("bact").settings(steps=4, gamma=3.0)
    made = BalancingAdapter(header_of(plain_sd, "bact", WOMAN, config), tensors)
    seen: dict[str, Tensor] = {}

    def before(_m: Any, _a: Any, h: Tensor) -> None:
        seen.setdefault("before", h.clone())

    def after(_m: Any, _a: Any, kwargs: dict[str, Any]) -> None:
        seen.setdefault("after", kwargs["hidden_states"].clone())

    handles = [
        plain_sd.unet.mid_block.register_forward_hook(before),
        plain_sd.unet.up_blocks[0].register_forward_pre_hook(after, with_kwargs=True),
    ]
    prompts = ["a doctor", "a nurse", "a doctor", "a nurse", "a doctor"]
    latents(plain_sd, prompts, [made, made, made, made, None], steps=4)
    for handle in handles:
        handle.remove()
    wanted = seen["before"].clone()
    b = int(plain_sd.scheduler.timesteps[0]) * 4 // 1000
    for images in ([0, 2], [1, 3]):
        rows = [5 + i for i in images]
        x = (wanted[rows].flatten(1) / 0.5).requires_grad_()
        p = (x @ tensors["weight"][b].T + tensors["bias"][b]).softmax(1).mean(0)
        (2 * (p - 0.5) ** 2).sum().backward()
        assert x.grad is not None
        size = (tensors["weight"][b][0] - tensors["weight"][b][1]).square().sum() / 4
        wanted[rows] = ((x - 3.0 * 2 * x.grad / size) * 0.5).detach().view(2, 32, 4, 4)
    assert close(seen["after"], wanted, 1e-5) and not close(seen["after"], seen["before"], 1e-3)
    assert torch.equal(seen["after"][:5], seen["before"][:5]) and torch.equal(seen["after"][9], seen["before"][9])
    with pytest.warns(UserWarning, match="bact balances images of one prompt in one batch, and here is one alone"):
        latents(plain_sd, ["a doctor"], made)
    wrong = BalancingAdapter(made.header, {**tensors, "weight": torch.zeros(4, 2, 9)})
    with pytest.raises(ValueError, match="bact 'woman' is for h of 9 numbers, this image size has 512; train it for this size"):
        latents(plain_sd, ["a doctor"] * 2, wrong)


def test_start_of_the_low_rank_changes_does_nothing(plain_sd: Any) -> None:
    values = start(plain_sd.unet, 3, "all", 1)
    assert all(v.abs().max() == 0 for k, v in values.items() if k.endswith(".b"))
    one = values["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.a"]
    assert one.shape == (3, 32) and one.std().item() == pytest.approx(32**-0.5, rel=0.3)
