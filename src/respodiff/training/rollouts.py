"""Where training latents come from: reverse diffusion of the neutral prompt through the steered model, kept as a pool.

The paper rolls one latent per step to one random timestep (`timesteps="last"`, a pool of one batch, refreshed every step). A pool of whole
trajectories (`timesteps="all"`) gives ``steps`` latents for the price of two rollouts to the middle, and its targets are computed once,
because they come from the unmodified model alone. A new pool takes the place of the old one every ``refresh_every`` iterations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.pipelines.bottleneck import shifted
from respodiff.pipelines.denoiser import Condition, Denoiser, join, repeat
from respodiff.training.config import TrainConfig
from respodiff.training.objectives import TARGETS, opposed


@dataclass(frozen=True)
class Pool:
    """Training latents of one round.

    Attributes:
        columns: z, target and (where SAM or the objective needs it) neutral (P, C, H, W), t (P,): latents, scores and labels.
        kept: z, plain (Q, C, H, W), t (Q,) and the condition (context (Q, T, D), ...) of the prompts to preserve; empty if there are none.
        neutral: condition of the neutral prompt.
        forwards: UNet evaluations that making it took.
    """

    columns: dict[str, Tensor]
    kept: dict[str, Tensor]
    neutral: Condition
    seed: int
    forwards: int

    def batch(self, iteration: int, size: int) -> dict[str, Tensor]:
        """A batch of ``size`` latents (and as many to preserve); which ones depends on the seed and the iteration alone."""
        out = _pick(self.columns, mix_seed(self.seed, 1, iteration), size)
        out |= repeat(self.neutral, len(out["z"]))
        if self.kept:
            out |= {f"keep_{k}": v for k, v in _pick(self.kept, mix_seed(self.seed, 3, iteration), size).items()}
        return out


def _pick(columns: dict[str, Tensor], seed: int, size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    n = len(columns["z"])
    i = torch.randperm(n, generator=generator)[:size] if size <= n else torch.randint(n, (size,), generator=generator)
    return {k: v[i.to(v.device)] for k, v in columns.items()}


class Rollouts:
    """Makes pools for one concept on one pipeline."""

    def __init__(self, denoiser: Denoiser, concept: Concept, config: TrainConfig) -> None:
        self.denoiser, self.config = denoiser, config
        # eta = 0 throughout.
        self.scheduler = denoiser.sampler(config.steps)
        if config.timestep_labels == "official" and not isinstance(self.scheduler, DDIMScheduler):
            raise ValueError(
                f"timestep_labels is 'official', which counts DDIM steps; {type(self.scheduler).__name__} has others: use timestep_labels=sampler"
            )
        self.target, self.needs = TARGETS[config.objective]
        prompts = {
            "neutral": [concept.neutral],
            "target": [concept.target],
            "negative": [concept.negative],
            "opposite": concept.opposites or (concept.negative or concept.neutral,),
            "empty": ("",),
            "preserve": concept.preserve if config.preservation_weight else (),
        }
        self.conditions = {role: denoiser.encode(group) for role, group in prompts.items()}
        self.forwards = 0

    @torch.no_grad()
    def pool(self, number: int, delta: Any) -> Pool:
        """The pool of round ``number``; rollouts of the neutral prompt are steered by ``delta`` (1, C, H, W)."""
        config, seed = self.config, mix_seed(self.config.seed, 0, number)
        self.forwards = 0
        sources = self._sources(delta)
        # Neutral rollouts make up the remainder where the sources do not divide the number evenly.
        parts = [config.rollouts // len(sources) + (i < config.rollouts % len(sources)) for i in range(len(sources))]
        rolled = [self._roll(n, mix_seed(seed, 2, i), c, d) for i, ((c, d), n) in enumerate(zip(sources, parts, strict=True)) if n]
        z, t = (torch.cat(column) for column in zip(*rolled, strict=True))
        columns, kept = {"z": z, "t": t, **self._scored(z, t)}, self._kept(seed)
        return Pool(columns, kept, self.conditions["neutral"][0], seed, self.forwards)

    def _sources(self, delta: Any) -> list[tuple[Condition, Any]]:
        """Prompt and what steers it of every rollout of a round: the neutral prompt first, then each other one unsteered."""
        neutral = self.conditions["neutral"][0]
        others = ("target", "opposite") if self.config.rollout_prompts == "all" else ()
        return [(neutral, delta), *((c, None) for role in others for c in self.conditions[role] if not _equal(c, neutral))]

    def _kept(self, seed: int) -> dict[str, Tensor]:
        """Unsteered latents of the prompts to preserve and their plain scores."""
        parts = []
        prompts = self.conditions["preserve"]
        for i, c in enumerate(prompts):
            z, t = self._roll(max(1, self.config.rollouts // len(prompts)), mix_seed(seed, 4, i), c, None)
            plain = self.predict_all(z, t, c)
            parts.append({"z": z, "t": t, "plain": plain.float(), **repeat(c, len(z))})
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]} if parts else {}

    def _predict(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.forwards += len(z)
        return self.denoiser(z, t, condition if len(condition["context"]) == len(z) else repeat(condition, len(z)))

    def _roll(self, n: int, seed: int, condition: Condition, delta: Any) -> tuple[Tensor, Tensor]:
        """Latents (P, C, H, W) and labels (P,) of ``n`` rollouts: of every step, or of one random step."""
        parts = [
            self.roll_batch(min(self.config.rollout_batch, n - i), mix_seed(seed, i), condition, delta)
            for i in range(0, n, self.config.rollout_batch)
        ]
        z, t = (torch.cat(column) for column in zip(*parts, strict=True))
        return z, t

    def roll_batch(self, n: int, seed: int, condition: Condition, delta: Any) -> tuple[Tensor, Tensor]:
        """`_roll` of few enough: with ``keep`` all, latents of the first step of every rollout, then of the second, ..."""
        config, scheduler = self.config, self.scheduler
        generator = torch.Generator().manual_seed(seed)
        denoiser = self.denoiser
        if not isinstance(scheduler, DDIMScheduler):
            denoiser.restart(scheduler, config.steps)
        noise = torch.randn(n, *denoiser.latent, generator=generator).to(denoiser.device, denoiser.dtype) * getattr(
            scheduler, "init_noise_sigma", 1.0
        )
        # Paper: k ~ U{0 .. steps - 2}, k = 0 leaves pure noise.
        stop = int(torch.randint(config.steps - 1, (1,), generator=generator)) if config.timesteps == "last" else config.steps - 1
        latents, labels = [], []
        for k, t, z in self.walk(noise, generator, condition, delta):
            if config.timesteps == "all" or k == stop:
                latents.append(z)
                labels.append(self._label(k, t).expand(n))
            if k == stop:
                break
        return torch.cat(latents), torch.cat(labels)

    def walk(
        self, z: Tensor, generator: torch.Generator, condition: Condition, delta: Any = None, away: Condition | None = None
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Reverse diffusion from noise z (B, C, H, W): step k, its timestep and latent before every step; then (steps, 0, z_0).

        ``delta`` is what `steering` takes. ``away`` takes the place of the empty prompt in guidance.
        """
        config, denoiser, n = self.config, self.denoiser, len(z)
        guided = denoiser.guides and config.rollout_guidance != 1
        conditions = join([away or self.conditions["empty"][0]] * guided * n + [condition] * n)
        more = {"generator": generator} if isinstance(self.scheduler, LCMScheduler) else {}
        rows = slice(n * guided, n * guided + n)
        for k, t in enumerate(self.scheduler.timesteps):
            yield k, t, z
            with self.steering(delta, rows):
                e = self._predict(torch.cat([z, z]) if guided else z, t.expand(n * (1 + guided)), conditions)
            if guided:
                uncond, cond = e.chunk(2)
                e = uncond + config.rollout_guidance * (cond - uncond)
            z = self.scheduler.step(e, t, z, **more).prev_sample
        yield config.steps, torch.zeros_like(self.scheduler.timesteps[0]), z

    def steering(self, delta: Any, rows: slice) -> AbstractContextManager[None]:
        """What is active while a rollout calls the model: ``delta`` (1, C, H, W) added to h of its conditional ``rows``; None is nothing."""
        return shifted(self.denoiser.model, lambda _h: None if delta is None else (delta, rows), self.denoiser.site)

    def _label(self, k: int, t: Tensor) -> Tensor:
        """The timestep that a latent is labelled with: the sampler's own, or the released code's 1000 - k (1000 / steps), which is
        up to 19 too noisy on a 50-step schedule and starts outside the trained range."""
        if self.config.timestep_labels == "sampler":
            return t.reshape(1)
        total = self.scheduler.config.num_train_timesteps
        return torch.tensor([total - k * (total // self.config.steps)], device=t.device, dtype=t.dtype)

    def _scored(self, z: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Targets of RAM, and neutral scores if SAM or the objective reads them; the unmodified model's, so computed once."""
        config = self.config
        needs = set(self.needs) | ({"neutral"} if config.trains_sam else set())
        if config.objective == "guided" and config.target_guidance == 1:
            needs.discard("negative")  # cancels at guidance 1
        found = {role: [self.predict_all(z, t, c).float() for c in self.conditions[role]] for role in sorted(needs)}
        scores = {role: columns[0] for role, columns in found.items()}
        if len(opposites := found.get("opposite", [])) > 1:
            scores["opposite"] = opposed(scores["neutral"], scores["target"], opposites)
        out = {"target": self.target(scores, config.target_guidance)}
        return out | ({"neutral": scores["neutral"]} if "neutral" in scores else {})

    def predict_all(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noise predictions of latents (N, C, H, W) with labels t (N,), a bounded number of them at a time."""
        size = self.config.rollout_batch
        return torch.cat([self._predict(a, b, condition) for a, b in zip(z.split(size), t.split(size), strict=True)])


def _equal(a: Condition, b: Condition) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


def mix_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, so that no two purposes share a stream."""
    value = 0
    for n in numbers:
        value = (value * 6364136223846793005 + n + 1442695040888963407) % (1 << 63)
    return value
