"""Trains preset ``paper`` at its whole budget on the embedded model; its rollouts run in bfloat16, compiled, which takes half the time.

``python -m benchmarks.paper --concept woman --preset paper --out woman.safetensors``: flags are those of ``respodiff train``. Rollouts are 96 %
of the evaluations; no gradient flows through them. All else is float32. One thread a process: on 2 cores run two of them.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.provenance import ROOT
from respodiff.cli.main import main
from respodiff.concepts.concept import Concept
from respodiff.methods.registry import load
from respodiff.pipelines.denoiser import Condition, Denoiser, join
from respodiff.training import rollouts
from respodiff.training.config import TrainConfig

FILES = ROOT / "benchmarks" / "data" / "paper"
"""Modules of preset ``paper`` at its whole budget."""
TOLERANCE = 0.05
"""Largest relative error of a compiled prediction."""


class Compiled:
    """`respodiff.training.rollouts.guided` of one latent at a time for a RAM that does not read h, in bfloat16."""

    def __init__(self, model: Denoiser) -> None:
        self.model, self.offset, self.unet = model, torch.zeros(1, *model.shape), copy.deepcopy(model.model).requires_grad_(False)
        self.unet.mid_block.register_forward_hook(lambda _module, _inputs, h: torch.cat([h[:1], h[1:] + self.offset]))
        self.run = torch.compile(self.unet, dynamic=False)

    @torch.no_grad()
    def __call__(self, z: Tensor, t: Tensor, y: Condition, delta: Any = None) -> Tensor:
        (of,) = delta.values() if delta else [lambda h, _: torch.zeros_like(h)]  # one site
        self.offset.copy_(of(self.offset, t))
        with torch.autocast("cpu", torch.bfloat16):
            e = self.run(torch.cat([z, z]), t.expand(2), join([self.model.empty, y])["encoder_hidden_states"], return_dict=False)[0].float()
        self.model.forwards += 2
        guided: Tensor = e[:1] + self.model.guidance * (e[1:] - e[:1])
        return guided


def checked(exact: Any) -> Any:
    """``exact``, the original, for the first calls, compared with `Compiled`; from then on the latter."""
    made: list[Compiled] = []
    seen: list[float] = []

    def guided(model: Denoiser, z: Tensor, t: Tensor, y: Condition, delta: Any = None, away: Any = None) -> Tensor:
        if len(z) != 1 or away is not None:
            plain: Tensor = exact(model, z, t, y, delta, away)
            return plain
        if not made:
            made.append(Compiled(model))
        found: Tensor = made[0](z, t, y, delta)
        if len(seen) < 200:
            model.forwards -= 2
            right = exact(model, z, t, y, delta)
            seen.append(((found - right).norm() / right.norm()).item())
            if seen[-1] > TOLERANCE:
                raise RuntimeError(f"a compiled prediction is {seen[-1]:.3g} off; allowed: {TOLERANCE}")
            if len(seen) == 200:
                print(
                    f"relative error of compiled predictions, n = 200: mean {sum(seen) / 200:.4f}, largest {max(seen):.4f}", file=sys.stderr
                )
        return found

    return guided


def file_of(concept: Concept, weights: str) -> Path:
    """The file of `FILES` for a concept, trained on the UNet of digest ``weights``.

    ValueError where there is none, or where it was trained for another concept, on other weights or with other settings than preset ``paper`` has.
    """
    file = FILES / f"{concept.name}.safetensors"
    if not file.is_file():
        raise ValueError(f"{file} is missing; train it: python -m benchmarks.paper --concept {concept.name} --preset paper --out {file}")
    header = load(file).header
    wanted = json.loads(json.dumps(dataclasses.asdict(TrainConfig.preset("paper", concept))))
    wanted |= {"concept": concept.name, "target": concept.target, "neutral": concept.neutral, "negative": concept.negative}
    found = {"site": []} | dict(header.train) | {key: getattr(header, key) for key in ("concept", "target", "neutral", "negative")}
    wanted, found = wanted | {"base_weights": weights}, found | {"base_weights": header.base_weights}
    if wrong := [key for key in wanted if found.get(key) != wanted[key]]:
        raise ValueError(f"{file} has {wrong[0]} = {found.get(wrong[0])!r}, preset 'paper' here {wanted[wrong[0]]!r}; train it anew")
    return file


if __name__ == "__main__":
    import torch._inductor.config as inductor

    torch.set_num_threads(1)
    inductor.freezing = True
    rollouts.guided = checked(rollouts.guided)
    sys.argv.insert(1, "train")
    main()
