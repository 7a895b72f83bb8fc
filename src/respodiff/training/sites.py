"""Ranks the blocks that a model can be steered at, from its predictions alone: no image, no judge, no training.

Notation: h is the output of a block, e(y) the noise prediction for prompt y, a_1..a_K the prompts of an attribute's alternatives, and
d_k = e(a_k) - mean over j != k of e(a_j) the direction of alternative k.

    readable   share of latents whose alternative is told from h, under a prompt that does not name it
    along      <c, d> / |d|^2             c = (e[x u](neutral) - e(neutral)) / x: the change by a shift of h of the length of h,
    against    |c - along d| / |d|        from a shorter one, in the direction u of the mean difference of h between the alternatives' prompts

Latents for ``readable`` come from rollouts of subjects with the concept's words ("a female doctor"), and h from the subject alone ("a doctor"):
the text is the same for all alternatives, so that only the latent can tell them apart. What tells them is found on the other subjects. u is
found on other rollouts of the neutral prompt than those that c and d are measured on. All are relative: no number depends on a model's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from respodiff.concepts.concept import Attribute, Concept
from respodiff.concepts.concept import attribute as find_attribute
from respodiff.concepts.prompt_editing import rewriting, rewritten
from respodiff.pipelines.bottleneck import channels_first, eager, shifted, site_module, stream
from respodiff.pipelines.denoiser import Denoiser
from respodiff.pipelines.registry import Site, candidates
from respodiff.training.config import RolloutConfig
from respodiff.training.diagnostics import SAME, SUBJECTS
from respodiff.training.rollouts import mix_seed, predict, roll_batch
from respodiff.training.state import open_model

STEPS, PER, HALF = 4, 2, 4
"""Steps of a rollout; rollouts of a subject with a concept; rollouts that u is found on, and as many to measure on."""
STEP = 0.25
"""Length x of the shift, as a part of the norm of h: about half of what the default preset trains."""
SIDE = 8
"""Positions of h that ``readable`` tells apart, a side."""


@dataclass(frozen=True)
class Interval:
    """A mean of n values with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float], least: float = -math.inf, most: float = math.inf) -> Interval:
        """By Student's t, from independent values, cut to a range."""
        mean, wide = fmean(values), float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
        return cls(mean, max(least, mean - wide), min(most, mean + wide), len(values))


@dataclass(frozen=True)
class SiteScore:
    """What is measured of one site; see the module's head."""

    site: str
    readable: Interval
    along: Interval
    against: Interval

    @property
    def cosine(self) -> float:
        """Of the angle between the change and the direction, -1 to 1: 0 where a shift changes nothing."""
        size = math.hypot(self.along.mean, self.against.mean)
        return self.along.mean / size if size else 0.0


@dataclass(frozen=True)
class SiteRanking:
    """All candidates, the best first; ``chance``: what ``readable`` is where h tells nothing; ``unet_forwards``: evaluations per sample."""

    scores: tuple[SiteScore, ...]
    chance: float
    unet_forwards: int


@torch.no_grad()
def rank_sites(pipe: Any, attribute: Attribute | str, seed: int = 0) -> SiteRanking:
    """Every site of a pipeline, by the cosine of the change that a shift there makes with the direction of the alternatives.

    Args:
        attribute: an attribute, or the name of a built-in one or an intersection.

    Raises:
        ValueError: for an unknown attribute, alternatives that do not share a neutral prompt or are the same to the model, a model in
            float16, and prompts that are too long.
    """
    chosen = find_attribute(attribute) if isinstance(attribute, str) else attribute
    if len(neutrals := {c.neutral for c in chosen.concepts}) > 1:
        raise ValueError(
            f"attribute {chosen.name!r} has the neutral prompts {', '.join(sorted(neutrals))}; its alternatives must share one"
        )
    model = open_model(pipe, RolloutConfig(), candidates(pipe))
    with eager(model.model):
        moved, read = _moved(model, chosen.concepts, seed), _read(model, chosen.concepts, seed)
    scores = (SiteScore(site, Interval.of(read[site], 0, 1), Interval.of(moved[site][0]), Interval.of(moved[site][1], 0)) for site in read)
    return SiteRanking(tuple(sorted(scores, key=lambda s: -s.cosine)), 1 / len(chosen.concepts), model.forwards)


def _read(model: Denoiser, concepts: Sequence[Concept], seed: int) -> dict[Site, list[float]]:
    """Share of latents of each subject whose alternative is that of the nearest mean of the other subjects'."""
    words = [rewriting(c.target, c.neutral) for c in concepts]
    found: dict[Site, list[Tensor]] = {site: [] for site in model.sites}
    for i, subject in enumerate(SUBJECTS):
        (alone,) = model.encode([subject])
        for y in model.encode([rewritten(subject, *own) for own in words]):
            z, t = roll_batch(model, PER, mix_seed(seed, 1, i), y, STEPS)  # the noise is that of the other alternatives
            with _watched(model, lambda site, h: found[site].append(_coarse(h, model.shapes[site][1:] == (1, 1)))):
                predict(model, z[PER:], t[PER:], alone, len(z))  # pure noise shows nothing
    return {site: _accuracies(torch.stack(x).view(len(SUBJECTS), len(concepts), STEPS - 1, PER, -1)) for site, x in found.items()}


def _coarse(h: Tensor, flat: bool) -> Tensor:
    """h (B, C, H, W) as (B, N) with a few positions, or the mean over all where a module has one number a channel."""
    height, width = (1, 1) if flat else (min(SIDE, n) for n in h.shape[2:])
    return adaptive_avg_pool2d(h, (height, width)).flatten(1).cpu()


def _accuracies(x: Tensor) -> list[float]:
    """Of h (subjects, alternatives, steps, rollouts, N) the accuracy for each subject."""
    x = x / x.square().mean((0, 1, 3, 4), keepdim=True).sqrt().clamp(min=1e-12)
    x = x - x.mean((1, 3), keepdim=True)  # of what a subject's alternatives share
    out, truth = [], torch.arange(x.shape[1])[:, None, None]
    for s in range(len(x)):
        means = torch.cat([x[:s], x[s + 1 :]]).mean((0, 2, 3))
        nearest = (x[s] @ means.T - means.square().sum(1) / 2).argmax(-1)
        out.append((nearest == truth).float().mean().item())
    return out


def _moved(model: Denoiser, concepts: Sequence[Concept], seed: int) -> dict[Site, tuple[list[float], list[float]]]:
    """``along`` and ``against`` of each site, for each rollout."""
    neutral, *targets = model.encode([concepts[0].neutral, *(c.target for c in concepts)])
    z, t = roll_batch(model, 2 * HALF, mix_seed(seed, 0), neutral, STEPS)
    first = torch.arange(len(z), device=z.device) % (2 * HALF) < HALF
    shifts = _shifts(model, z[first], t[first], neutral, targets)
    z, t = z[~first], t[~first]
    e_neu, *e = (predict(model, z, t, y, len(z)) for y in (neutral, *targets))
    d = _against_the_others(e)
    if any(x.norm() <= SAME * e_neu.norm() for x in d):
        raise ValueError(f"the prompts {', '.join(repr(c.target) for c in concepts)} are the same to this model; give other alternatives")
    out = {}
    for site, own in shifts.items():
        sums = torch.zeros(3, HALF, device=z.device)
        for shift, direction in zip(own, d, strict=True):
            with shifted(model.model, partial(_everywhere, shift), site):
                c = (predict(model, z, t, neutral, len(z)) - e_neu) / STEP
            sums += torch.stack([_of_rollouts(x) for x in (c * direction, direction.square(), c.square())])
        along, squares = (sums[0] / sums[1], sums[2] / sums[1])
        out[site] = along.tolist(), (squares - along.square()).clamp(min=0).sqrt().tolist()
    return out


def _shifts(model: Denoiser, z: Tensor, t: Tensor, neutral: Any, targets: Sequence[Any]) -> dict[Site, list[Tensor]]:
    """STEP times as long as h under the neutral prompt, for each alternative: (1, C, H, W), zero where h does not depend on the alternative."""
    means: list[dict[Site, Tensor]] = []
    lengths: dict[Site, float] = {}

    def mean(site: Site, h: Tensor) -> None:
        shape = model.shapes[site]
        own = h.mean((0, 2, 3))[:, None, None] if shape[1:] == (1, 1) else h.mean(0)
        means[-1][site] = own
        lengths.setdefault(site, (h.flatten(1).norm(dim=1).mean() * (own.numel() / h[0].numel()) ** 0.5).item())

    for y in (neutral, *targets):  # the neutral prompt first: its lengths are kept
        means.append({})
        with _watched(model, mean):
            predict(model, z, t, y, len(z))
    out = {}
    for site in model.sites:
        differences, length = _against_the_others([m[site] for m in means[1:]]), lengths[site]
        norms = [u.norm().item() for u in differences]
        out[site] = [u[None] * (STEP * length / n if n > SAME * length else 0.0) for u, n in zip(differences, norms, strict=True)]
    return out


def _against_the_others(x: Sequence[Tensor]) -> list[Tensor]:
    """Each less the mean of the others."""
    whole = torch.stack(list(x)).sum(0)
    return [one - (whole - one) / (len(x) - 1) for one in x]


def _of_rollouts(x: Tensor) -> Tensor:
    """Sums (HALF,) of (steps * HALF, C, H, W) over all but the rollout."""
    return x.flatten(1).sum(1).view(-1, HALF).sum(0)


def _everywhere(shift: Tensor, _h: Tensor) -> tuple[Tensor, slice]:
    return shift, slice(None)


@contextmanager
def _watched(model: Denoiser, seen: Callable[[Site, Tensor], None]) -> Iterator[None]:
    """While active, h (B, C, H, W) in float32 of every call is shown, site by site."""

    def hook(site: Site, _module: Any, _args: Any, output: Any) -> None:
        seen(site, channels_first(stream(output, site)).float())

    with ExitStack() as stack:
        for site in model.sites:
            stack.enter_context(site_module(model.model, site).register_forward_hook(partial(hook, site)))
        yield
