"""Cells of the table about training."""

from __future__ import annotations

import torch
from tests.contracts.cell import TINY, WOMAN, Maker, close, quietly, same, seen
from tests.drawing import draw

from respodiff import TrainConfig, fit, steer, train
from respodiff.pipelines.denoiser import Denoiser
from respodiff.pipelines.registry import backbone, spec_of


def training(make: Maker) -> str:
    """Conditions are those that the pipeline gives its model; a module comes out, the model is as before; not square as well."""
    pipe = make()
    model = backbone(pipe)
    with seen(pipe) as calls:
        draw(pipe, steps=1)
    told = calls[0][1]
    added = told.get("added_cond_kwargs") or {}
    given = {
        "context": told["encoder_hidden_states"],
        "pooled": told.get("pooled_projections", added.get("text_embeds")),
        "time_ids": added.get("time_ids"),
    }
    passes = len(given["context"])
    row = spec_of(pipe).passes.index("cond") if passes > 1 else 0
    mine = Denoiser(pipe).encode(["a doctor", ""])
    for name, value in mine[0].items():
        close(value, given[name][row : row + 1], name)
    if passes > 1:
        for name, value in mine[1].items():
            close(value, given[name][spec_of(pipe).passes.index("uncond")][None], f"{name} of the empty prompt")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for changes in ({}, {"height": 48, "width": 64}, {"form": "channel"}, {"sam_lr": 0.1}):
        *_, last = train(pipe, WOMAN, TrainConfig(**TINY, **changes))
        m = last.module
        assert m.ram.abs().max() > 0 and m.header.site == spec_of(pipe).site(model)
        assert (m.sam.abs().max() > 0) == ("sam_lr" in changes)
        with quietly(), steer(pipe, m):
            draw(pipe)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(h._forward_hooks or h._forward_pre_hooks for h in model.modules())
    kind = pipe.scheduler.config.get("prediction_type", "velocity")
    return f"{type(Denoiser(pipe).sampler(4)).__name__.removesuffix('Scheduler')}, {kind}"


def checkpointing(make: Maker) -> str:
    """Gradient checkpointing gives the same module."""
    pipe = make()
    plain = fit(pipe, WOMAN, TrainConfig(**TINY))
    backbone(pipe).enable_gradient_checkpointing()
    backbone(pipe).train()
    again = fit(pipe, WOMAN, TrainConfig(**TINY))
    close(again.ram, plain.ram, "with checkpointing", 1e-4)
    return ""


def compiled_training(make: Maker) -> str:
    """Training on a compiled model runs the model itself."""
    pipe = make()
    plain = fit(pipe, WOMAN, TrainConfig(**TINY))
    backbone(pipe).compile(backend="eager")
    same(fit(pipe, WOMAN, TrainConfig(**TINY)).ram, plain.ram, "trained in place")
    setattr(pipe, spec_of(pipe).model, torch.compile(backbone(pipe), backend="eager"))
    same(fit(pipe, WOMAN, TrainConfig(**TINY)).ram, plain.ram, "trained wrapped")
    return "on the uncompiled model"
