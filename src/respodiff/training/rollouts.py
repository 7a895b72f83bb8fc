"""Provides training latents: reverse diffusion of the neutral prompt through the steered model, kept as a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice

import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.pipelines.bottleneck import channels_first, shifted
from respodiff.pipelines.denoiser import Condition, Denoiser, join, repeat
from respodiff.training.config import RolloutConfig, TrainConfig
from respodiff.training.objectives import TARGETS, opposed

Delta = Callable[[Tensor, Tensor], Tensor]
"""(h, t) -> what is added to h, (1 or B, C, H, W)."""


@dataclass(frozen=True)
class Latents:
    """Latents with what the frozen model predicts there: the pool of a round, or a batch of it.

    Attributes:
        z: (P, C, H, W). t: timesteps (P,). y: condition of P rows.
        e_tar: (P, C, H, W), what the trained model should predict. e_neu: e(z, y_neu), where SAM or the target reads it.
        keep: latents of the prompts to preserve, with the frozen model's own predictions as ``e_tar``; None if there are none.
        seed: of a pool's batches.
    """

    z: Tensor
    t: Tensor
    y: Condition
    e_tar: Tensor
    e_neu: Tensor | None = None
    keep: Latents | None = None
    seed: int = 0

    def batch(self, iteration: int, size: int) -> Latents:
        """``size`` latents, and as many to preserve; which ones depends on the seed and the iteration alone."""
        keep = self.keep and self.keep.pick(mix_seed(self.seed, 3, iteration), size)
        return replace(self.pick(mix_seed(self.seed, 1, iteration), size), keep=keep)

    def pick(self, seed: int, size: int) -> Latents:
        """``size`` of them without ``keep``, all different if there are as many."""
        generator, n = torch.Generator().manual_seed(seed), len(self.z)
        drawn = torch.randperm(n, generator=generator)[:size] if size <= n else torch.randint(n, (size,), generator=generator)
        i = drawn.to(self.z.device)
        e_neu = None if self.e_neu is None else self.e_neu[i]
        return Latents(self.z[i], self.t[i], {k: v[i] for k, v in self.y.items()}, self.e_tar[i], e_neu)


class Rollouts:
    """Makes the pools of one concept."""

    def __init__(self, model: Denoiser, concept: Concept, config: TrainConfig) -> None:
        self.model, self.config, self.sampler = model, config, model.sampler(config.steps)
        if config.timestep_labels == "official" and not isinstance(self.sampler, DDIMScheduler):
            raise ValueError(
                f"timestep_labels is 'official', which counts DDIM steps; {type(self.sampler).__name__} has others: use timestep_labels=sampler"
            )
        prompts: dict[str, tuple[str, ...]] = {role: (getattr(concept, role),) for role in ("neutral", "target", "negative")}
        prompts["opposite"] = concept.opposites or (concept.negative or concept.neutral,)
        prompts["preserve"] = concept.preserve if config.preservation_weight else ()
        self.conditions = {role: model.encode(group) for role, group in prompts.items()}
        (self.neutral,) = self.conditions["neutral"]

    @torch.no_grad()
    def pool(self, number: int, delta: Delta | None = None, active: Callable[[], AbstractContextManager[object]] = nullcontext) -> Latents:
        """The pool of round ``number``. Rollouts of the neutral prompt are steered by ``delta``, or by whatever ``active`` makes."""
        config, seed, parts, sources = self.config, mix_seed(self.config.seed, 0, number), [], [self.neutral]
        if config.rollout_prompts == "all":
            others = self.conditions["target"] + self.conditions["opposite"]
            sources += [c for c in others if not all(torch.equal(c[k], self.neutral[k]) for k in c)]
        for i, (y, n) in enumerate(zip(sources, equal_parts(config.rollouts, len(sources)), strict=True)):
            if n:
                with nullcontext() if i else active():
                    parts.append(self._roll(n, mix_seed(seed, 2, i), y, None if i else delta))
        z, t = (torch.cat(column) for column in zip(*parts, strict=True))
        e_tar, e_neu = self._scores(z, t)
        keep = preserved(self.model, self.conditions["preserve"], config, seed, self._roll)
        return Latents(z, t, repeat(self.neutral, len(z)), e_tar, e_neu, keep, seed)

    def _roll(self, n: int, seed: int, y: Condition, delta: Delta | None = None) -> tuple[Tensor, Tensor]:
        """`rollout`, labelled with the sampler's timesteps, or with the scripts' 1000 - k (1000 / steps): up to 19 too noisy at 50 steps."""
        z, t = rollout(self.model, n, seed, y, self.config, delta, self.config.timesteps == "last")
        if self.config.timestep_labels == "official":
            total = self.sampler.config.num_train_timesteps
            k = (self.sampler.timesteps[None] == t[:, None]).int().argmax(1)
            t = (total - k * (total // self.config.steps)).to(t.dtype)
        return z, t

    def _scores(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """e_tar, and e_neu if SAM or the objective reads it."""
        config, (target, roles) = self.config, TARGETS[self.config.objective]
        needs = {*roles, "neutral"} if config.trains_sam else {*roles}
        if config.objective == "guided" and config.target_guidance == 1:
            needs.discard("negative")  # cancels
        found = {role: [predict(self.model, z, t, c, config.rollout_batch) for c in self.conditions[role]] for role in sorted(needs)}
        scores = {role: columns[0] for role, columns in found.items()}
        if len(opposites := found.get("opposite", [])) > 1:
            scores["opposite"] = opposed(scores["neutral"], scores["target"], opposites)
        return target(scores, config.target_guidance), scores.get("neutral")


Roll = Callable[[int, int, Condition], tuple[Tensor, Tensor]]
"""(how many, seed, condition) -> latents and timesteps of unsteered rollouts."""


def preserved(model: Denoiser, prompts: Sequence[Condition], config: RolloutConfig, seed: int, roll: Roll) -> Latents | None:
    """Latents of the prompts to preserve, from ``config.rollouts`` rollouts of all together; None without prompts."""
    if not prompts:
        return None
    parts = []
    for i, y in enumerate(prompts):
        z, t = roll(max(1, config.rollouts // len(prompts)), mix_seed(seed, 4, i), y)
        parts.append((z, t, repeat(y, len(z)), predict(model, z, t, y, config.rollout_batch)))
    zs, ts, ys, es = zip(*parts, strict=True)
    return Latents(torch.cat(zs), torch.cat(ts), join(ys), torch.cat(es))


def rollout(
    model: Denoiser, n: int, seed: int, y: Condition, config: RolloutConfig, delta: Delta | None = None, last: bool = False
) -> tuple[Tensor, Tensor]:
    """Latents (P, C, H, W) and timesteps (P,) of ``n`` rollouts of prompt y: of every step, or only the ``last`` of a random number."""
    size = config.rollout_batch
    parts = [roll_batch(model, min(size, n - i), mix_seed(seed, i), y, config.steps, delta, last) for i in range(0, n, size)]
    return torch.cat([z for z, _ in parts]), torch.cat([t for _, t in parts])


@torch.no_grad()
def roll_batch(
    model: Denoiser, n: int, seed: int, y: Condition, steps: int, delta: Delta | None = None, last: bool = False
) -> tuple[Tensor, Tensor]:
    """`rollout` in one batch: the latents of the first step of every rollout, then of the second, ..."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, *model.latent, generator=generator).to(model.device, model.dtype)
    # Paper: k ~ U{0 .. steps - 2}, k = 0 leaves pure noise.
    stop = int(torch.randint(steps - 1, (1,), generator=generator)) if last else steps - 1
    kept = list(islice(reverse_diffusion(model, noise, y, delta, steps=steps, generator=generator), stop + 1))[-1 if last else 0 :]
    return torch.cat([z for _, _, z in kept]), torch.cat([t.expand(n) for _, t, _ in kept])


@torch.no_grad()
def reverse_diffusion(
    model: Denoiser,
    z: Tensor,
    y: Condition,
    delta: Delta | None = None,
    *,
    steps: int,
    generator: torch.Generator | None = None,
    away: Condition | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Reverse diffusion (eta 0) of prompt y from noise z (B, C, H, W), steered by ``delta``, at the guidance of the model.

    Gives step k, its timestep and the latent before every step; then (steps, 0, z_0).
    """
    sampler = model.sampler(steps)
    more = {"generator": generator} if isinstance(sampler, LCMScheduler) else {}
    for k, t in enumerate(sampler.timesteps):
        yield k, t, z
        z = sampler.step(guided(model, z, t, y, delta, away), t, z, **more).prev_sample
    yield steps, torch.zeros_like(sampler.timesteps[0]), z


def guided(model: Denoiser, z: Tensor, t: Tensor, y: Condition, delta: Delta | None = None, away: Condition | None = None) -> Tensor:
    """e0 + w (e[delta](z, y) - e0), w the model's guidance (or 1 if it uses none), e0 the prediction for the empty prompt or ``away``."""
    n, twice = len(z), model.guides and model.guidance != 1
    rows, conditions = slice(n * twice, None), join([away or model.empty] * n * twice + [y] * n)
    with ExitStack() as stack:
        if delta:
            stack.enter_context(shifted(model.model, lambda h: (delta(channels_first(h[rows]).float(), t), rows), model.site))
        e = model(torch.cat([z, z]) if twice else z, t.expand(n * (1 + twice)), conditions)
    return e[:n] + model.guidance * (e[n:] - e[:n]) if twice else e


@torch.no_grad()
def predict(model: Denoiser, z: Tensor, t: Tensor, y: Condition, size: int) -> Tensor:
    """e(z, y) (P, C, H, W) in float32 of latents z at timesteps t (P,), ``size`` at a time."""
    return torch.cat([model(a, b, repeat(y, len(a))) for a, b in zip(z.split(size), t.split(size), strict=True)]).float()


def equal_parts(n: int, k: int) -> list[int]:
    """n in k parts that differ by at most 1, the larger ones first."""
    return [n // k + (i < n % k) for i in range(k)]


def mix_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, so that no two purposes share a stream."""
    return reduce(lambda seed, n: (seed * 6364136223846793005 + n + 1442695040888963407) % (1 << 63), numbers, 0)
