"""Provides training latents: reverse diffusion of the neutral prompt through the steered model, kept as a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import islice

import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.pipelines.bottleneck import Decoder, channels_first, run_with_decoder, shifted
from respodiff.pipelines.denoiser import Condition, Denoiser, alike, join, repeat
from respodiff.training.config import RolloutConfig, TrainConfig
from respodiff.training.objectives import TARGETS, opposed

KEPT_BYTES = 1 << 30
"""Most memory that h and skips of a pool may take; a pool that needs more runs the encoder again in every step."""

Delta = Mapping[str, Callable[[Tensor, Tensor], Tensor]]
"""Site -> (h, t) -> what is added to h, (1 or B, C, H, W)."""


@dataclass(frozen=True)
class Latents:
    """Latents with what the frozen model predicts there: the pool of a round, or a batch of it.

    Attributes:
        z: (P, C, H, W). t: timesteps (P,). y: condition of P rows.
        e_tar: (P, C, H, W), what the trained model should predict. e_neu: e(z, y_neu), where SAM or the target reads it.
        keep: latents of the prompts to preserve, with the frozen model's own predictions as ``e_tar``; None if there are none.
        seed: of a pool's batches.
        decoder: h and skips of e_neu, so that a step need not run the encoder; None where e_neu is not read or `KEPT_BYTES` are not enough.
    """

    z: Tensor
    t: Tensor
    y: Condition
    e_tar: Tensor
    e_neu: Tensor | None = None
    keep: Latents | None = None
    seed: int = 0
    decoder: Decoder | None = None

    def batch(self, iteration: int, size: int) -> Latents:
        """``size`` latents, and as many to preserve; which ones depends on the seed and the iteration alone."""
        keep = self.keep and self.keep.pick(mix_seed(self.seed, 3, iteration), size)
        return replace(self.pick(mix_seed(self.seed, 1, iteration), size), keep=keep)

    def pick(self, seed: int, size: int) -> Latents:
        """``size`` of them without ``keep``, all different if there are as many."""
        generator, n = torch.Generator().manual_seed(seed), len(self.z)
        drawn = torch.randperm(n, generator=generator)[:size] if size <= n else torch.randint(n, (size,), generator=generator)
        return self.rows(drawn.to(self.z.device))

    def rows(self, i: Tensor) -> Latents:
        """Those at the places i (N,), without ``keep``."""
        e_neu = None if self.e_neu is None else self.e_neu[i]
        y, decoder = {k: v[i] for k, v in self.y.items()}, self.decoder and self.decoder.rows(i)
        return Latents(self.z[i], self.t[i], y, self.e_tar[i], e_neu, decoder=decoder)

    @classmethod
    def join(cls, parts: Sequence[Latents]) -> Latents:
        """Latents, conditions and targets of all of them in order."""
        z, t, e_tar = (torch.cat([getattr(p, k) for p in parts]) for k in ("z", "t", "e_tar"))
        return cls(z, t, join([p.y for p in parts]), e_tar)


class Pools(list[Latents]):
    """A pool for each of several concepts: the same latents with targets of their own."""

    def batch(self, iteration: int, size: int) -> list[Latents]:
        """A batch for each concept, all of the same latents."""
        return [pool.batch(iteration, size) for pool in self]


class Rollouts:
    """Makes the pools of one concept, or of several alternatives that share neutral prompt, latents and scores.

    A pool is rolled out anew for every round.
    """

    def __init__(self, model: Denoiser, concepts: Sequence[Concept], config: TrainConfig) -> None:
        self.model, self.config, self.sampler = model, config, model.sampler(config.steps)
        if config.timestep_labels == "official" and not isinstance(self.sampler, DDIMScheduler):
            raise ValueError(
                f"timestep_labels is 'official', which counts DDIM steps; {type(self.sampler).__name__} has others: use timestep_labels=sampler"
            )
        self.roles, first = [prompts_by_role(c) for c in concepts], concepts[0]
        alternatives = sorted({text for roles in self.roles for role in ("target", "opposite") for text in roles[role]})
        prompts = list({first.neutral, *alternatives, *first.preserve, *(roles["negative"][0] for roles in self.roles)})
        self.conditions = dict(zip(prompts, model.encode(prompts), strict=True))
        self.neutral = self.conditions[first.neutral]
        for c in concepts:
            role = "negative" if c.kind == "safety" else "target"
            if all(torch.equal(self.conditions[getattr(c, role)][k], v) for k, v in self.neutral.items()):
                raise ValueError(
                    f"{role} prompt {getattr(c, role)!r} of concept {c.name!r} is the same to this model as its neutral prompt "
                    f"{c.neutral!r}; give another"
                )
        self.preserve = [self.conditions[text] for text in first.preserve] if config.preservation_weight else []
        self.read = {*TARGETS[config.objective][1], *(("neutral",) if config.trains_sam or config.projection else ())}
        if config.objective == "guided" and config.target_guidance == 1:
            self.read.discard("negative")  # cancels
        self.scored = sorted({text for roles in self.roles for role in self.read for text in roles[role]})

    @torch.no_grad()
    def pool(
        self, number: int, delta: Delta | None = None, active: Callable[[], AbstractContextManager[object]] = nullcontext, n: int = 0
    ) -> Pools:
        """The pools of round ``number``. Rollouts of the neutral prompt are steered by ``delta``, or by whatever ``active`` makes.

        With ``n`` there are that many rollouts to measure on: all timesteps of each, and nothing to preserve.
        """
        seed = mix_seed(self.config.seed, 0, number)
        with active():
            rolled = self._roll(
                n or self.config.rollouts, mix_seed(seed, 2, 0), self.neutral, delta, last=not n and self.config.timesteps == "last"
            )
        found = self._scored(*rolled)
        roll = partial(self._roll, last=self.config.timesteps == "last")
        keep = None if n else preserved(self.model, self.preserve, self.config, seed, roll)
        scores = dict(zip(self.scored, found.e_tar.unbind(1), strict=True))
        return Pools(replace(found, e_tar=self._target(roles, scores), keep=keep, seed=seed) for roles in self.roles)

    def _roll(self, n: int, seed: int, y: Condition, delta: Delta | None = None, *, last: bool) -> tuple[Tensor, Tensor]:
        """`rollout`, labelled with the sampler's timesteps, or with the scripts' 1000 - k (1000 / steps): up to 19 too noisy at 50 steps."""
        z, t = rollout(self.model, n, seed, y, self.config, delta, last)
        if self.config.timestep_labels == "official":
            total = self.sampler.config.num_train_timesteps
            k = (self.sampler.timesteps[None] == t[:, None]).int().argmax(1)
            t = (total - k * (total // self.config.steps)).to(t.dtype)
        return z, t

    def _scored(self, z: Tensor, t: Tensor) -> Latents:
        """The latents with e(z, y) (P, N, C, H, W) of the N prompts that a target or SAM reads as ``e_tar``."""
        neutral, size, decoder = self.roles[0]["neutral"][0], self.config.rollout_batch, None
        scores = {text: predict(self.model, z, t, self.conditions[text], size) for text in self.scored if text != neutral}
        if neutral in self.scored:
            scores[neutral], decoder = encode(self.model, z, t, self.neutral, size, KEPT_BYTES // len(z))
        e = torch.stack([scores[text] for text in self.scored], 1)
        return Latents(z, t, repeat(self.neutral, len(z)), e, scores.get(neutral), decoder=decoder)

    def _target(self, roles: Mapping[str, Sequence[str]], scores: Mapping[str, Tensor]) -> Tensor:
        """e_tar of one concept."""
        found = {role: scores[roles[role][0]] for role in self.read}
        if len(opposites := roles["opposite"]) > 1 and "opposite" in self.read:
            found["opposite"] = opposed(found["neutral"], found["target"], [scores[text] for text in opposites])
        return TARGETS[self.config.objective][0](found, self.config.target_guidance)


def prompts_by_role(concept: Concept) -> dict[str, tuple[str, ...]]:
    """The prompts of each role of `respodiff.training.objectives`."""
    opposites = concept.opposites or (concept.negative or concept.neutral,)
    return {"neutral": (concept.neutral,), "target": (concept.target,), "negative": (concept.negative,), "opposite": opposites}


Roll = Callable[[int, int, Condition], tuple[Tensor, Tensor]]
"""(how many, seed, condition) -> latents and timesteps of unsteered rollouts."""


def preserved(model: Denoiser, prompts: Sequence[Condition], config: RolloutConfig, seed: int, roll: Roll) -> Latents | None:
    """Latents of the prompts to preserve, from ``config.rollouts`` rollouts of all together; None without prompts."""
    if not prompts:
        return None
    parts = []
    for i, y in enumerate(prompts):
        z, t = roll(max(1, config.rollouts // len(prompts)), mix_seed(seed, 4, i), y)
        parts.append(Latents(z, t, repeat(y, len(z)), predict(model, z, t, y, config.rollout_batch)))
    return Latents.join(parts)


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
    away, t = away or model.empty, t.expand(n)
    apart = twice and not alike(away, y)  # two calls then
    rows = slice(n * (twice and not apart), None)
    with ExitStack() as stack:
        e0 = model(z, t, repeat(away, n)) if apart else None
        for site, of in (delta or {}).items():
            stack.enter_context(shifted(model.model, partial(_of_rows, of, rows, t[:1][0]), site))
        conditions = repeat(y, n) if rows.start == 0 else join([repeat(away, n), repeat(y, n)])
        e = model(z if rows.start == 0 else torch.cat([z, z]), t if rows.start == 0 else torch.cat([t, t]), conditions)
    if not twice:
        return e
    e0, e = (e0, e) if e0 is not None else e.chunk(2)
    return e0 + model.guidance * (e - e0)


def _of_rows(of: Callable[[Tensor, Tensor], Tensor], rows: slice, t: Tensor, h: Tensor) -> tuple[Tensor, slice]:
    return of(channels_first(h[rows]).float(), t), rows


@torch.no_grad()
def predict(model: Denoiser, z: Tensor, t: Tensor, y: Condition, size: int) -> Tensor:
    """e(z, y) (P, C, H, W) in float32 of latents z at timesteps t (P,), ``size`` at a time."""
    return torch.cat([model(a, b, repeat(y, len(a))) for a, b in zip(z.split(size), t.split(size), strict=True)]).float()


@torch.no_grad()
def encode(model: Denoiser, z: Tensor, t: Tensor, y: Condition, size: int, limit: int) -> tuple[Tensor, Decoder | None]:
    """`predict`, and the decoder of all latents; None for a transformer, and where it takes more than ``limit`` bytes a latent."""
    found, decoders = [], []
    for a, b in zip(z.split(size), t.split(size), strict=True):
        e, _, decode = run_with_decoder(model.model, partial(model, a, b, repeat(y, len(a))), site=model.site)
        found.append(e)
        if isinstance(decode, Decoder) and decode.nbytes <= limit * len(a):
            decoders.append(decode)
    return torch.cat(found).float(), Decoder.join(decoders) if len(decoders) == len(found) else None


def equal_parts(n: int, k: int) -> list[int]:
    """n in k parts that differ by at most 1, the larger ones first."""
    return [n // k + (i < n % k) for i in range(k)]


def mix_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, so that no two purposes share a stream."""
    return reduce(lambda seed, n: (seed * 6364136223846793005 + n + 1442695040888963407) % (1 << 63), numbers, 0)
