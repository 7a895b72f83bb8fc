"""The preset ``official`` against the steps of the authors' scripts, written out here from their equations, on tiny SD, SDXL and v-prediction UNets.

One iteration of the scripts, with r and s random at the start and y_neu, y_tar, y_neg prompts:

    k ~ U{0 .. 48}; z after k of 50 DDIM steps (eta 0) of y_neu at guidance 3, r + s added on the conditional half; label t = 1000 - 20 k
    fairness: e_tar = e0 + 4 (e(y_tar) - e0)         safety: e_tar = e(y_neg) + 12 (e(y_neu) - e(y_neg))
    r <- Adam on mean (e[r](y_neu) - e_tar)^2        s <- Adam on lambda mean (e[r + s](y_neu) - e(y_neu))^2, with the new r
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import train
from respodiff.training.rollouts import mix_seed
from tiny_models import sd, sd_v, sdxl

pytestmark = pytest.mark.slow

ITERATIONS = 3
WOMAN = Concept("woman", "a woman", "a person", opposites=("a man",), attribute="gender")
VIOLENCE = Concept("violence", "a scene", "a scene", "violence", "safety")


@torch.no_grad()
def arguments(pipe: Any, prompt: str) -> dict[str, Any]:
    """What the pipeline gives its UNet beside latents and timestep."""
    if not hasattr(pipe, "text_encoder_2"):
        ids = pipe.tokenizer(prompt, padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt").input_ids
        return {"encoder_hidden_states": pipe.text_encoder(ids)[0]}
    context, _, pooled, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    if not prompt:  # SDXL takes zeros for no prompt
        context, pooled = torch.zeros_like(context), torch.zeros_like(pooled)
    size = float(pipe.unet.config.sample_size * pipe.vae_scale_factor)
    return {
        "encoder_hidden_states": context,
        "added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.tensor([[size, size, 0, 0, size, size]])},
    }


@contextmanager
def added(unet: Any, delta: Tensor | None) -> Iterator[None]:
    handle = unet.mid_block.register_forward_hook(lambda _m, _a, h: h if delta is None else h + delta)
    yield
    handle.remove()


def scripts(pipe: Any, concept: Concept, config: TrainConfig, r: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """r and s after some iterations of the scripts."""
    unet, r, s = pipe.unet, r.clone().requires_grad_(), s.clone().requires_grad_()
    prompts = {"neutral": concept.neutral, "target": concept.target, "negative": concept.negative}
    given = {role: arguments(pipe, text) for role, text in prompts.items()}
    nothing = arguments(pipe, "")

    def e(z: Tensor, t: Any, y: dict[str, Any], delta: Tensor | None = None) -> Tensor:
        with added(unet, delta):
            return unet(z, t, **y).sample

    adam_r, adam_s = (torch.optim.Adam([p], lr) for p, lr in ((r, config.ram_lr), (s, config.sam_lr)))
    for i in range(ITERATIONS):
        generator = torch.Generator().manual_seed(mix_seed(mix_seed(mix_seed(config.seed, 0, i), 2, 0), 0))  # the library's numbers
        z = torch.randn(1, *unet_latent(pipe), generator=generator)
        k = int(torch.randint(49, (1,), generator=generator))
        scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
        scheduler.set_timesteps(50)
        with torch.no_grad():
            for t in scheduler.timesteps[:k]:
                e0 = e(z, t, nothing)
                z = scheduler.step(e0 + 3 * (e(z, t, given["neutral"], r + s) - e0), t, z).prev_sample
            t = torch.tensor(1000 - 20 * k)
            plain = e(z, t, given["neutral"])
            if concept.kind == "fairness":
                e_tar = e(z, t, nothing) + 4 * (e(z, t, given["target"]) - e(z, t, nothing))
            else:
                bad = e(z, t, given["negative"])
                e_tar = bad + 12 * (plain - bad)
        adam_r.zero_grad()
        (e(z, t, given["neutral"], r) - e_tar).pow(2).mean().backward()
        adam_r.step()
        adam_s.zero_grad()
        (config.sam_weight * (e(z, t, given["neutral"], r.detach() + s) - plain).pow(2).mean()).backward()
        adam_s.step()
    return r.detach(), s.detach()


def unet_latent(pipe: Any) -> tuple[int, int, int]:
    size = pipe.unet.config.sample_size
    return pipe.unet.config.in_channels, size, size


@pytest.mark.parametrize("concept", [WOMAN, VIOLENCE], ids=["fairness", "safety"])
@pytest.mark.parametrize("make", [sd, sd_v, sdxl], ids=["sd", "v-prediction", "sdxl"])
def test_the_official_preset_takes_the_steps_of_the_scripts(make: Any, concept: Concept) -> None:
    pipe = make()
    config = TrainConfig.preset("official", concept, iterations=ITERATIONS)
    started = next(train(pipe, concept, TrainConfig.preset("official", concept, iterations=1, ram_lr=1e-12, sam_lr=1e-12))).module
    with torch.random.fork_rng():
        pipe.unet.requires_grad_(False)
        r, s = scripts(pipe, concept, config, started.ram[None], started.sam[None])
    *_, last = train(pipe, concept, config)
    for name, found, start, expected in (("RAM", last.module.ram, started.ram, r[0]), ("SAM", last.module.sam, started.sam, s[0])):
        moved = (expected - start).norm()
        assert moved > 0
        assert (found - expected).norm() <= 1e-3 * moved, (
            f"{name} differs by {((found - expected).norm() / moved).item():.1e} of what moved"
        )
