"""RespoDiff, Algorithm 1 (arXiv 2509.15257).

    h            output of the UNet's mid block (h-space), or of the blocks that the setting ``site`` names
    r, s         RAM and SAM, added to h: one tensor each in the paper (`respodiff.steering.forms`), and one each at every site
    e[d](z, y)   noise prediction of the frozen model for latent z and prompt y, with d added to h
    e_tar        target score, made of the frozen model's predictions (`respodiff.training.objectives`)

    L_resp = E |e[r](z, y_neu)     - e_tar|^2                          updates r alone
    L_sem  = E |e[r + s](z, y_neu) - e(z, y_neu)|^2, times lambda      updates s alone, by an Adam of its own or by `share_step`
    z, t     from reverse diffusion of y_neu through the steered model (`respodiff.training.rollouts`); no gradient flows through it

Beside the paper, r also learns to leave the concept's ``preserve`` prompts y alone: mu E |e[r](z, y) - e(z, y)|^2. And both modules are
scaled in the end until r moves predictions as far along d = e_tar - e as is asked: E <e[r] - e, d> / E |d|^2 = ``projection``.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from respodiff.concepts.concept import Concept
from respodiff.concepts.concept import concept as find_concept
from respodiff.pipelines.bottleneck import Decoder, add_to_rows, channels_first, eager, frozen, run_with_decoder, shifted
from respodiff.pipelines.denoiser import Denoiser
from respodiff.pipelines.registry import Site
from respodiff.steering.adapter import header_of
from respodiff.steering.forms import FORMS, Form, load_form, make_form
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import Header
from respodiff.training.config import TrainConfig
from respodiff.training.diagnostics import MOST, module_with_verdict
from respodiff.training.objectives import preservation_loss, response_loss, semantic_loss
from respodiff.training.rollouts import Delta, Latents, Rollouts, mix_seed
from respodiff.training.state import StepRecord, Tensors, TrainState, adam_step, learning_rate, open_model, share_step


def train(
    pipe: Any,
    concept: Concept | str,
    config: TrainConfig | None = None,
    *,
    resume: Mapping[str, Tensor] | None = None,
    method: str = "respodiff",
) -> Iterator[StepRecord]:
    """Train one concept; yields a record after every iteration, the last one holds the finished module.

    Args:
        pipe: a diffusers pipeline. Its UNet is frozen while the generator lives, and left as it was.
        concept: prompts to train on, or the name of a built-in concept. config: default ``TrainConfig.preset("default", concept)``.
        resume: ``record.state.tensors()`` of an earlier run; from a finished one comes that one record, with losses of NaN.
        method: its name in the module's header.

    Raises:
        ValueError: for an unknown concept and for settings that the model or the concept cannot take, before anything is computed.
        RuntimeError: when training diverges, and for a module without effect (`respodiff.training.diagnostics.with_verdict`).
    """
    concept = find_concept(concept) if isinstance(concept, str) else concept
    config = config or TrainConfig.preset("default", concept)
    for record in train_together(pipe, [concept], config, resume=resume, method=method):
        yield replace(record, make=partial(lambda make: make()[concept.name], record.make))


def fit(pipe: Any, concept: Concept | str, config: TrainConfig | None = None) -> ConceptModule:
    """Train to the end and give the module: `train` without the loop."""
    (last,) = deque(train(pipe, concept, config), maxlen=1)
    module: ConceptModule = last.module
    return module


def train_together(
    pipe: Any, concepts: Sequence[Concept], config: TrainConfig, *, resume: Mapping[str, Tensor] | None = None, method: str = "respodiff"
) -> Iterator[StepRecord]:
    """Algorithm 1 for concepts that share a neutral prompt, on the same latents; a record's module is a dictionary of one for each name."""
    model = open_model(pipe, config, config.site)
    checkpoints = model.spec.model == "transformer" and getattr(model.model, "gradient_checkpointing", False)
    if checkpoints and FORMS[config.form].reads_h:  # hooks at its blocks are not called again; those of a UNet checkpoint their parts alone
        raise ValueError(f"form is {config.form!r}, which reads h, beside gradient checkpointing of a transformer; take one of them")
    learners = {c.name: Learner.new(model, config) for c in concepts}
    values = {f"{name}.{k}": v for name, x in learners.items() for k, v in x.values.items()}

    def verdict(modules: dict[str, ConceptModule]) -> dict[str, ConceptModule]:
        found = {c.name: module_with_verdict(model, c, modules[c.name]) for c in concepts}
        return {name: _with_reach(module, learners[name], config) for name, module in found.items()}

    state = TrainState(model, config, values, [adam for x in learners.values() for adam in (x.adam_r, x.adam_s)], verdict=verdict)
    state.restore(resume)
    with frozen(model.model), eager(model.model):
        headers = {c.name: header_of(pipe, method, c, config, site=model.site, resolution=model.size) for c in concepts}
        make = partial(_modules, headers, config, _suffixes(model, config))
        rollouts = Rollouts(model, concepts, config)
        if state.iteration >= config.iterations:
            yield state.record(make)

        for batches in state.batches(lambda number, start: rollouts.pool(number, _delta(learners, start, config)), config.refresh_every):
            losses = []
            for (name, x), b in zip(learners.items(), batches, strict=True):
                # RAM: an Adam step on r for L_resp, and for what is to be preserved
                e_r, h, decode = _predict(model, b, x.ram)
                l_resp = response_loss(e_r, b.e_tar)
                l_keep = preservation_loss(_predict(model, b.keep, x.ram)[0], b.keep.e_tar, config.preservation_weight) if b.keep else 0.0
                rates = [learning_rate(config, state.iteration) * unit for site, own in x.at.items() for unit in own.units(h[site], config)]
                adam_step(x.adam_r, [config.ram_lr * rate for rate in rates], l_resp + l_keep)

                # SAM: a step on s for lambda L_sem, with r as it now is; only the part after h runs again
                d, l_sem = {site: x.ram(site, h[site], b.t).detach() for site in x.at}, 0.0
                if config.trains_sam and b.e_neu is not None:
                    loss = semantic_loss(decode(x.both), b.e_neu, config.sam_weight)
                    if config.sam == "own":
                        adam_step(x.adam_s, [config.sam_lr * rate for rate in rates], loss)
                    else:
                        share_step(x.adam_s, x.adam_r, [config.sam_lr * rate for rate in rates], loss)
                    l_sem = loss.item()

                if (longer := max(_measure(own.norms, h[site], d[site]) for site, own in x.at.items())) > MOST:
                    raise state.diverged(f"RAM of {name!r} is {longer:.3g} times as long as h", state.iteration + 1)
                losses.append((l_resp.item(), l_sem))
            if config.projection and state.iteration + 1 == config.iterations:
                now = {k: v.detach() for k, v in values.items()}
                fresh = rollouts.pool(config.iterations, _delta(learners, now, config), n=max(FRESH, len(concepts)))
                for x, b in zip(learners.values(), fresh, strict=True):
                    x.reached.copy_(torch.tensor(_reach(model, x, b, config), dtype=torch.float64))
            yield state.finish(make, *map(fmean, zip(*losses, strict=True)))


FRESH, NOISE, MISSED, NONLINEAR = 4, 1e-6, 0.2, 0.25
"""Rollouts on which the projection is measured (none that RAM was trained on); what is float noise of it; largest |projection / asked - 1| and
|linearity - 1| without a warning."""


Offset = Callable[[Site, Tensor, Tensor], Tensor]
"""(site, h, t) -> what is added to h there, (1 or B, C, H, W)."""


class AtSite(NamedTuple):
    """r and s at one site, and the norms of `_measure`. ``suffix``: of the names of what is saved."""

    r: Form
    s: Form
    norms: Tensor
    suffix: str

    def units(self, h: Tensor, config: TrainConfig) -> list[float]:
        """What the rates are multiples of, for each of `Form.parts`: the RMS of h over the batches so far where it has a unit, else 1."""
        sums = self.norms.tolist()
        rms = float(sums[3] / sums[1]) if sums[1] else _rms(h)
        return [rms if has_unit and config.rates == "relative" else 1.0 for has_unit in self.r.parts]

    def limit(self, config: TrainConfig) -> float:
        """Factor at which r has the largest norm of the settings."""
        sums, n, norm, _ = self.norms.tolist()
        return float(config.max_relative_norm * sums / n / max(norm, 1e-12))

    @property
    def values(self) -> Tensors:
        """What is saved of it."""
        parts = (self.r.named_parameters(f"ram{self.suffix}"), self.s.named_parameters(f"sam{self.suffix}"))
        return {**dict(parts[0]), **dict(parts[1]), f"norms{self.suffix}": self.norms}


class Learner(NamedTuple):
    """r and s of one concept at each site, their optimisers, and what `_reach` found."""

    at: dict[Site, AtSite]
    adam_r: torch.optim.Adam
    adam_s: torch.optim.Adam
    reached: Tensor

    @classmethod
    def new(cls, model: Denoiser, config: TrainConfig) -> Learner:
        """At their start."""
        at = {
            site: AtSite(*forms(model, config, i), torch.zeros(4, dtype=torch.float64), suffix)
            for i, (site, suffix) in enumerate(zip(model.sites, _suffixes(model, config), strict=True))
        }
        groups = (
            [{"params": some} for d in ds for some in d.parts.values()] for ds in zip(*((x.r, x.s) for x in at.values()), strict=True)
        )
        adam_r, adam_s = (torch.optim.Adam(group, betas=config.betas) for group in groups)
        return cls(at, adam_r, adam_s, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))

    def ram(self, site: Site, h: Tensor, t: Tensor, factor: float = 1.0) -> Tensor:
        """What RAM adds, times a factor."""
        offset: Tensor = self.at[site].r(h, t)
        return offset if factor == 1 else factor * offset

    def both(self, site: Site, h: Tensor, t: Tensor) -> Tensor:
        """What RAM and SAM add; no gradient reaches RAM."""
        offset: Tensor = self.at[site].r(h, t).detach() + self.at[site].s(h, t)
        return offset

    def limit(self, config: TrainConfig) -> float:
        """Factor at which r has the largest norm of the settings at one of its sites, and none larger."""
        return min(own.limit(config) for own in self.at.values())

    @property
    def values(self) -> Tensors:
        """What is saved of it."""
        return {**{k: v for own in self.at.values() for k, v in own.values.items()}, "reached": self.reached}


def forms(model: Denoiser, config: TrainConfig, number: int = 0) -> tuple[Form, Form]:
    """r and s of a site at their start, on the model's device; s adds nothing where SAM is not trained."""
    generator = torch.Generator().manual_seed(mix_seed(config.seed, 6, number) if number else config.seed)
    ranges, shape = (config.init_range, config.init_range * config.trains_sam), model.shapes[model.sites[number]]
    r, s = (make_form(config.form, shape, init_range=x, generator=generator).to(model.device) for x in ranges)
    return r, s


def _suffixes(model: Denoiser, config: TrainConfig) -> list[str]:
    """What the names of tensors have at each site: the site, if it was chosen."""
    return [f".{site}" * bool(config.site) for site in model.sites]


def _of(part: str, values: Tensors) -> Tensors:
    return {k.removeprefix(f"{part}."): v for k, v in values.items() if k.startswith(f"{part}.")}


def _predict(model: Denoiser, b: Latents, d: Offset) -> tuple[Tensor, dict[Site, Tensor], Callable[[Offset], Tensor]]:
    """e[d](z, y) in float32; h (B, C, H, W) of each site; and what gives e[d'](z, y) for another d'.

    What follows the first site runs again, with hooks at the others.
    """
    first, *later = model.sites
    seen: dict[Site, Tensor] = {}

    def delta(site: Site, d: Offset, h: Tensor) -> Tensor:
        x = channels_first(h).float()
        seen.setdefault(site, x.detach())
        return d(site, x, b.t)

    def everywhere(site: Site, d: Offset, h: Tensor) -> tuple[Tensor, slice]:
        return delta(site, d, h), slice(None)

    @contextmanager
    def at_later(d: Offset) -> Iterator[None]:
        with ExitStack() as stack:
            for site in later:
                stack.enter_context(shifted(model.model, partial(everywhere, site, d), site))
            yield

    def decode(d: Offset) -> Tensor:
        model.forwards += len(h) * isinstance(rerun, Decoder)  # a whole call counts itself
        with at_later(d):
            return rerun(add_to_rows(h, delta(first, d, h), slice(None))).float()

    rerun: Callable[[Tensor], Tensor]
    if b.decoder:  # the pool keeps what the encoder gave
        h, rerun = b.decoder.h, b.decoder
        e = decode(d)
    else:
        with at_later(d):
            e, h, rerun = run_with_decoder(model.model, lambda: model(b.z, b.t, b.y), partial(delta, first, d), first)
    return e.float(), seen, decode


def _delta(learners: Mapping[str, Learner], start: Tensors, config: TrainConfig) -> Delta:
    """What steers the rollouts of a round: r, or r + s, as they were when it began; of several concepts each steers an equal part."""

    def delta(site: Site, h: Tensor, t: Tensor) -> Tensor:
        found = []
        for (name, learner), rows in zip(learners.items(), h.tensor_split(len(learners)), strict=True):
            own, x = _of(name, start), learner.at[site]
            d: Tensor = functional_call(x.r, _of(f"ram{x.suffix}", own), (rows, t))
            d = d + functional_call(x.s, _of(f"sam{x.suffix}", own), (rows, t)) if config.rollout_modules == "both" else d
            found.append(d.expand(len(rows), *d.shape[1:]))
        return torch.cat(found)

    return {site: partial(delta, site) for site in next(iter(learners.values())).at}


def _measure(norms: Tensor, h: Tensor, d: Tensor) -> float:
    """Keeps the sum of mean norms of h, their number, the norm of r, here d, and the sum of the RMS of h; gives |r| / |h|.

    Where r is one vector, the norm of h is that at one position.
    """
    positions = h[0].numel() / d[0].numel()
    norms[0] += h.flatten(1).norm(dim=1).mean().item() / positions**0.5
    norms[1] += 1
    norms[2] = sum(row.norm().item() for row in d) / len(d)
    norms[3] += _rms(h)
    return (norms[2] * norms[1] / norms[0]).item()


def _rms(h: Tensor) -> float:
    return h.square().mean().sqrt().item()


@torch.no_grad()
def _reach(model: Denoiser, x: Learner, b: Latents, config: TrainConfig) -> tuple[float, float, float]:
    """Factor on the modules at which p = E <e[r] - e, d> / E |d|^2 over latents is ``projection``, d = e_tar - e; p there, measured; linearity.

    Two proportional steps from 1, no further than the limit on |r|; a direction that leads nowhere, or away from the target, is not made longer.
    Linearity, on every second latent, is p / 2p', p' of half the factor: 1 is a linear response, 0 a p' of nothing.
    """
    parts, some = ([b.rows(i) for i in torch.arange(0, len(b.z), step, device=b.z.device).split(config.rollout_batch)] for step in (1, 2))
    size = max(_along([part.e_tar for part in parts], parts).sum().item(), 1e-30)
    first = [_predict(model, part, x.ram) for part in parts]
    along, factor = _along([e for e, *_ in first], parts), 1.0
    for _ in range(2):
        found = along.sum().item() / size
        longer = min(factor * config.projection / found, x.limit(config)) if found > NOISE else min(factor, x.limit(config))
        if longer == factor:
            break
        factor = longer
        along = _along([decode(partial(x.ram, factor=factor)) for *_, decode in first], parts)
    half = _along([_predict(model, part, partial(x.ram, factor=factor / 2))[0] for part in some], some).sum().item()
    linearity = along[::2].sum().item() / (2 * half) if abs(half) > NOISE * size else 0.0
    return factor, along.sum().item() / size, linearity


def _along(predictions: Sequence[Tensor], parts: Sequence[Latents]) -> Tensor:
    """<p - e, d> (P,) for a prediction p of every latent of some batches, d = e_tar - e; of e_tar it is |d|^2."""
    found = []
    for e, b in zip(predictions, parts, strict=True):
        assert b.e_neu is not None
        found.append(((e - b.e_neu) * (b.e_tar - b.e_neu)).flatten(1).sum(1))
    return torch.cat(found)


def _with_reach(module: ConceptModule, x: Learner, config: TrainConfig) -> ConceptModule:
    """The module with what `_reach` found in its verdict; a warning where the projection is not what was asked or the response not linear."""
    if not config.projection:
        return module
    factor, reached, linearity = x.reached.tolist()
    why = ""
    if abs(linearity - 1) > NONLINEAR:
        why = f"the response is not linear (half of it reaches {reached / (2 * linearity) if linearity else 0:.2g}); lower projection"
    if abs(reached - config.projection) > MISSED * config.projection:
        why = why or "the response is not linear; lower projection"
        if reached <= 0:
            why = "it leads away from the target; train it for longer"
        elif factor >= x.limit(config):
            why = f"max_relative_norm {config.max_relative_norm:g} limits it"
    if why:
        warnings.warn(f"module {module.name!r} reaches a projection of {reached:.2g} for {config.projection:g}: {why}", stacklevel=2)
    figures = {"factor": factor, "reached": reached, "linearity": linearity}
    return replace(module, header=replace(module.header, verdict={**module.header.verdict, **figures}))


def _modules(headers: Mapping[str, Header], config: TrainConfig, suffixes: Sequence[str], values: Tensors) -> dict[str, ConceptModule]:
    """The modules, times the factor; the norm of h is that of a single site."""
    found = {}
    for name, header in headers.items():
        own = _of(name, values)
        scale = own["reached"][0].item()
        ram, sam = (
            {x.removeprefix("."): load_form(config.form, _of(f"{part}{x}", own)).scaled(scale) for x in suffixes} for part in ("ram", "sam")
        )
        h, n, *_ = own[f"norms{suffixes[0]}"].tolist()
        found[name] = ConceptModule.of(ram, sam, replace(header, h_norm=h / n if len(suffixes) == 1 else 0.0))
    return found
