"""Where training latents come from: reverse diffusion of the neutral prompt through the steered model, kept as a pool.

The paper rolls one latent per step to one random timestep (`timesteps="last"`, a pool of one batch, refreshed every step). A pool of whole
trajectories (`timesteps="all"`) gives ``steps`` latents for the price of two rollouts to the middle, and its targets are computed once,
because they come from the unmodified model alone. `respodiff.training.replay` says when a pool is made, and which are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.concepts.prompt_editing import in_contexts
from respodiff.pipelines.bottleneck import shifted
from respodiff.pipelines.denoiser import Condition, Denoiser, join, repeat
from respodiff.steering.parameterisations import TIMESTEPS, bin_of, delta_at
from respodiff.training.config import TrainConfig
from respodiff.training.objectives import TARGETS, blended, opposed


@dataclass(frozen=True)
class Pool:
    """Training latents of one round.

    Attributes:
        columns: z, target and (where SAM or the objective needs it) neutral (P, C, H, W), t (P,): latents, scores and labels; of several
            neutral prompts also which (P,), the row of each latent's.
        kept: z, plain (Q, C, H, W), t (Q,) and the condition (context (Q, T, D), ...) of the prompts to preserve; empty if there are none.
        neutral: condition of the neutral prompts, a row each.
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
        which = out.pop("which", None)
        out |= repeat(self.neutral, len(out["z"])) if which is None else {k: v[which] for k, v in self.neutral.items()}
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
        self.contexts = [self._encoded(c) for c in in_contexts(concept, config.contexts)]
        self.conditions = {**self.contexts[0], "empty": denoiser.encode(("",))}
        self.conditions["preserve"] = denoiser.encode(concept.preserve if config.preservation_weight else ())
        if config.form == "binned" and type(self).pool is Rollouts.pool:  # other examples have timesteps of their own
            self._refuse_idle_bins(config.bins)
        self.forwards = 0

    def _refuse_idle_bins(self, bins: int) -> None:
        """ValueError for a bin that no step of a rollout falls into: its tensor would stay as it started."""
        seen = {int(bin_of(self._label(k, t), bins)) for k, t in enumerate(self.scheduler.timesteps)}
        if idle := sorted(set(range(bins)) - seen):
            raise ValueError(
                f"bins is {bins}, but none of the {self.config.steps} steps of a rollout falls into bin {idle[0]} (timesteps "
                f"{-(-idle[0] * TIMESTEPS // bins)} to {-(-(idle[0] + 1) * TIMESTEPS // bins) - 1}); set bins lower, or steps higher"
            )

    def _encoded(self, concept: Concept) -> dict[str, list[dict[str, Tensor]]]:
        """Conditions of the prompts of a concept by role."""
        opposites = concept.opposites or (concept.negative or concept.neutral,)
        prompts = {"neutral": [concept.neutral], "target": [concept.target], "negative": [concept.negative], "opposite": opposites}
        return {role: self.denoiser.encode(group) for role, group in prompts.items()}

    @torch.no_grad()
    def pool(self, number: int, delta: Any) -> Pool:
        """The pool of round ``number``; rollouts of the neutral prompts are steered by ``delta``, (1, C, H, W) or `Values`."""
        config, seed = self.config, mix_seed(self.config.seed, 0, number)
        self.forwards = 0
        sources = self._sources(number, delta)
        # Neutral rollouts make up the remainder where the sources do not divide the number evenly.
        parts = [config.rollouts // len(sources) + (i < config.rollouts % len(sources)) for i in range(len(sources))]
        rolled = [(k, *self._roll(n, mix_seed(seed, 2, i), c, d)) for i, ((k, c, d), n) in enumerate(zip(sources, parts, strict=True)) if n]
        found = []
        for k in sorted({k for k, _, _ in rolled}):  # all latents of one context together
            z, t = (torch.cat(column) for column in zip(*((z, t) for other, z, t in rolled if other == k), strict=True))
            which = {"which": torch.full_like(t, k, dtype=torch.long)} if len(self.contexts) > 1 else {}
            found.append({"z": z, "t": t, **which, **self._scored(z, t, self.contexts[k])})
        columns = {name: torch.cat([f[name] for f in found]) for name in found[0]} if len(found) > 1 else found[0]
        return Pool(columns, self._kept(seed), join([c["neutral"][0] for c in self.contexts]), seed, self.forwards)

    def _sources(self, number: int, delta: Any) -> list[tuple[int, Condition, Any]]:
        """Context, prompt and what steers it of every rollout of a round: neutral prompts first, beginning with another context every
        round, so that few rollouts reach all of them in turn; then the others, once each."""
        count, config = len(self.contexts), self.config
        order = [(number * config.rollouts + i) % count for i in range(count)]
        sources: list[tuple[int, Condition, Any]] = [(k, self.contexts[k]["neutral"][0], delta) for k in order]
        for role in ("target", "opposite") if config.rollout_prompts == "all" else ():
            sources += [(k, c, None) for k in order for c in self.contexts[k][role] if not _equal(c, self.contexts[k]["neutral"][0])]
        return sources

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
            with self.steering(delta_at(delta, t), rows):
                e = self._predict(torch.cat([z, z]) if guided else z, t.expand(n * (1 + guided)), conditions)
            if guided:
                uncond, cond = e.chunk(2)
                e = uncond + config.rollout_guidance * (cond - uncond)
            z = self.scheduler.step(e, t, z, **more).prev_sample
        yield config.steps, torch.zeros_like(self.scheduler.timesteps[0]), z

    def steering(self, delta: Any, rows: slice) -> AbstractContextManager[None]:
        """What is active while a rollout calls the model: ``delta`` (1, C, H, W), or what it makes of h, added to h of its conditional
        ``rows``; None is nothing."""

        def of(h: Tensor) -> tuple[Tensor, slice] | None:
            return None if delta is None else (delta(h[rows]) if callable(delta) else delta, rows)

        return shifted(self.denoiser.model, of, self.denoiser.site)

    def _label(self, k: int, t: Tensor) -> Tensor:
        """The timestep that a latent is labelled with: the sampler's own, or the released code's 1000 - k (1000 / steps), which is
        up to 19 too noisy on a 50-step schedule and starts outside the trained range."""
        if self.config.timestep_labels == "sampler":
            return t.reshape(1)
        total = self.scheduler.config.num_train_timesteps
        return torch.tensor([total - k * (total // self.config.steps)], device=t.device, dtype=t.dtype)

    def _scored(self, z: Tensor, t: Tensor, conditions: Mapping[str, Sequence[Condition]]) -> dict[str, Tensor]:
        """Targets of RAM, and neutral scores if SAM or the objective reads them; the unmodified model's, so computed once."""
        config, conditions = self.config, {**self.conditions, **conditions}
        needs = set(self.needs) | ({"neutral"} if config.trains_sam or config.blend else set())
        if config.objective == "guided" and config.target_guidance == 1:
            needs.discard("negative")  # cancels at guidance 1
        found = {role: [self.predict_all(z, t, c).float() for c in conditions[role]] for role in sorted(needs)}
        scores = {role: columns[0] for role, columns in found.items()}
        if len(opposites := found.get("opposite", [])) > 1:
            scores["opposite"] = opposed(scores["neutral"], scores["target"], opposites)
        target = self.target(scores, config.target_guidance)
        out = {"target": blended(target, scores["neutral"], config.blend) if config.blend else target}
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
