"""RespoDiff, Algorithm 1 (arXiv 2509.15257).

    h            output of the UNet's mid block (h-space)
    r, s         RAM and SAM, added to h: one tensor each in the paper (`respodiff.steering.forms`)
    e[d](z, y)   noise prediction of the frozen model for latent z and prompt y, with d added to h
    e_tar        target score, made of the frozen model's predictions (`respodiff.training.objectives`)

    L_resp = E |e[r](z, y_neu)     - e_tar|^2                          updates r alone
    L_sem  = E |e[r + s](z, y_neu) - e(z, y_neu)|^2, times lambda      updates s alone
    z, t     from reverse diffusion of y_neu through the steered model (`respodiff.training.rollouts`); no gradient flows through it

Beside the paper, r also learns to leave the concept's ``preserve`` prompts y alone: mu E |e[r](z, y) - e(z, y)|^2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from respodiff._version import __version__
from respodiff.concepts.concept import Concept
from respodiff.concepts.concept import concept as find_concept
from respodiff.pipelines.bottleneck import add_to_rows, channels_first, eager, frozen, run_with_decoder
from respodiff.pipelines.denoiser import Denoiser
from respodiff.pipelines.loading import config_digest, model_name, weights_digest
from respodiff.steering.forms import Form, load_form, make_form
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import Header
from respodiff.training.config import TrainConfig
from respodiff.training.objectives import preservation_loss, response_loss, semantic_loss
from respodiff.training.rollouts import Delta, Latents, Rollouts
from respodiff.training.state import StepRecord, Tensors, TrainState, adam_step, learning_rate, open_model


def train(
    pipe: Any,
    concept: Concept | str,
    config: TrainConfig | None = None,
    *,
    resume: Mapping[str, Tensor] | None = None,
    method: str = "respodiff",
) -> Iterator[StepRecord]:
    """Train one concept; yields a record after every iteration, the last one holds the finished module.

    Resumed from a run that is already finished it yields that one record, with losses of NaN.

    Args:
        pipe: a diffusers pipeline (`load_pipeline`). Its UNet is frozen while the generator lives, and left as it was.
        concept: prompts to train on, or the name of a built-in concept.
        config: settings; default ``TrainConfig.preset("default", concept)``.
        resume: ``record.state.tensors()`` of an earlier run with the same settings.
        method: name that the module's header gives as its method.

    Raises:
        ValueError: for an unknown concept and for settings that the model or the concept cannot take, before anything is computed.
        RuntimeError: when the loss is no longer finite.
    """
    concept = find_concept(concept) if isinstance(concept, str) else concept
    config = config or TrainConfig.preset("default", concept)
    model = open_model(pipe, config)
    r, s = forms(model, config)
    adam_r, adam_s = (torch.optim.Adam(d.parameters(), betas=config.betas) for d in (r, s))
    norms = torch.zeros(3, dtype=torch.float64)
    state = TrainState(model, config, {**_named("ram", r), **_named("sam", s), "norms": norms}, [adam_r, adam_s])
    if resume is not None:
        state.restore(resume)
    with frozen(model.model), eager(model.model):
        make = partial(_module, module_header(model, concept, config, method), config)
        rollouts = Rollouts(model, concept, config)
        if state.iteration >= config.iterations:
            yield state.record(make)

        for b in state.batches(lambda number, start: rollouts.pool(number, _delta(r, s, start, config)), config.refresh_every):
            rate = learning_rate(config, state.iteration)

            # RAM: an Adam step on r for L_resp, and for what is to be preserved
            e_r, decoder = _predict(model, b, r)
            loss_r = response_loss(e_r, b.e_tar)
            loss_keep = preservation_loss(_predict(model, b.keep, r)[0], b.keep.e_tar, config.preservation_weight) if b.keep else 0.0
            adam_step(adam_r, config.ram_lr * rate, loss_r + loss_keep)

            # SAM: an Adam step on s for lambda L_sem, with r as it now is; only the part after the bottleneck runs again
            h, loss_s = channels_first(decoder.h).float(), 0.0
            d_r = r(h, b.t).detach()
            if config.trains_sam and b.e_neu is not None:
                e_rs = decoder(add_to_rows(decoder.h, d_r + s(h, b.t), slice(None)))
                loss = semantic_loss(e_rs.float(), b.e_neu, config.sam_weight)
                adam_step(adam_s, config.sam_lr * rate, loss)
                model.forwards, loss_s = model.forwards + len(e_rs), loss.item()

            norms += torch.tensor([_norm(h, d_r), 1, 0])
            norms[2] = sum(row.norm().item() for row in d_r) / len(d_r)
            yield state.finish(make, loss_r.item(), loss_s)


def fit(pipe: Any, concept: Concept | str, config: TrainConfig | None = None) -> ConceptModule:
    """Train to the end and give the module: `train` without the loop."""
    (last,) = deque(train(pipe, concept, config), maxlen=1)
    module: ConceptModule = last.module
    return module


def forms(model: Denoiser, config: TrainConfig) -> tuple[Form, Form]:
    """r and s at their start, on the model's device; s adds nothing where SAM is not trained."""
    generator = torch.Generator().manual_seed(config.seed)
    ranges = (config.init_range, config.init_range * config.trains_sam)
    r, s = (make_form(config.form, model.shape, init_range=x, generator=generator).to(model.device) for x in ranges)
    return r, s


def module_header(model: Denoiser, concept: Concept, config: Any, method: str = "respodiff") -> Header:
    """The header of a module that a method trains with these settings."""
    return Header.of(
        concept,
        base_model=model_name(model.pipe),
        base_digest=config_digest(model.model),
        base_weights=weights_digest(model.model),
        site=model.site,
        resolution=model.size,
        train=asdict(config),
        library=__version__,
        method=method,
    )


def _named(name: str, form: Form) -> Tensors:
    return {f"{name}.{k}": p for k, p in form.named_parameters()}


def _predict(model: Denoiser, b: Latents, d: Form) -> tuple[Tensor, Any]:
    """e[d](z, y) in float32, and what runs the part after the bottleneck again."""
    e, decoder = run_with_decoder(model.model, lambda: model(b.z, b.t, b.y), lambda h: d(channels_first(h).float(), b.t), model.site)
    return e.float(), decoder


def _delta(r: Form, s: Form, start: Tensors, config: TrainConfig) -> Delta:
    """What steers the rollouts of a round: r, or r + s, as they were when it began."""
    ram, sam = ({k.removeprefix(part): v for k, v in start.items() if k.startswith(part)} for part in ("ram.", "sam."))
    first: Callable[[Tensor, Tensor], Tensor] = lambda h, t: functional_call(r, ram, (h, t))  # noqa: E731
    return first if config.rollout_modules == "ram" else lambda h, t: first(h, t) + functional_call(s, sam, (h, t))


def _norm(h: Tensor, d: Tensor) -> float:
    """Mean norm of h (B, C, H, W); at one position where d is the same at all, so that it can be compared with the norm of d."""
    spread = h[0].numel() / d[0].numel()
    return float(h.flatten(1).norm(dim=1).mean().item() / spread**0.5)


def _module(header: Header, config: TrainConfig, values: Tensors) -> ConceptModule:
    """The module, times the training scale. The limit looks at RAM alone, or it would undo what SAM does."""
    scale, (h, n, norm) = config.train_scale, values["norms"].tolist()
    if config.max_relative_norm:
        scale = min(scale, config.max_relative_norm * (h / n) / max(norm, 1e-12))
    states = ({k.removeprefix(part): v for k, v in values.items() if k.startswith(part)} for part in ("ram.", "sam."))
    ram, sam = (load_form(config.form, state).scaled(scale) for state in states)
    return ConceptModule.of(ram, sam, replace(header, h_norm=h / n))
