"""The ranking of sites on tiny models, where a single block is made to read the prompt."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch
from tests.tiny_models import sd, sd3
from tests.tiny_transformers import pixart
from torch import Tensor

from respodiff.concepts.concept import Attribute, Concept
from respodiff.concepts.concept import attribute as find_attribute
from respodiff.pipelines.denoiser import Denoiser
from respodiff.pipelines.registry import backbone, candidates
from respodiff.training import sites as ranking
from respodiff.training.rollouts import mix_seed, predict, roll_batch
from respodiff.training.sites import HALF, STEP, STEPS, rank_sites

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "SUBJECTS", ("a doctor", "a nurse", "a cook"))


def deaf(pipe: Any, but: str) -> Any:
    """The pipeline with a model of which one block alone reads the prompt."""
    for name, module in backbone(pipe).named_modules():
        if name.endswith("attn2") and not name.startswith(f"{but}."):
            torch.nn.init.zeros_(module.to_out[0].weight)
            torch.nn.init.zeros_(module.to_out[0].bias)
    return pipe


def last_block_reads() -> Any:
    up = ("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")
    return deaf(sd(down_block_types=("DownBlock2D",) * 3, up_block_types=up), "up_blocks.2")


@pytest.mark.parametrize("make", [sd, sd3])
def test_every_candidate_is_ranked_once_and_the_same_again(make: Any) -> None:
    pipe = make()
    found = rank_sites(pipe, "gender", 3)
    assert sorted(s.site for s in found.scores) == sorted(candidates(pipe)) and len(found.scores) == (7 if make is sd else 3)
    assert [s.cosine for s in found.scores] == sorted((s.cosine for s in found.scores), reverse=True)
    assert all(i.low <= i.mean <= i.high for s in found.scores for i in (s.readable, s.along, s.against))
    assert found == rank_sites(pipe, "gender", 3) and found.scores != rank_sites(pipe, "gender", 4).scores
    assert found.chance == 0.5 and 100 < found.unet_forwards < 700
    assert not [m for m in backbone(pipe).modules() if m._forward_hooks]


@pytest.mark.parametrize(
    ("make", "site"), [(last_block_reads, "up_blocks.2"), (lambda: deaf(pixart(), "transformer_blocks.2"), "transformer_blocks.2")]
)
def test_the_block_that_alone_reads_the_prompt_is_first(make: Any, site: str) -> None:
    first, *others = rank_sites(make(), "gender").scores
    assert first.site == site and first.along.mean > 0.1 and first.cosine > 0.1
    assert all(s.along.mean == s.against.mean == s.cosine == 0 for s in others), "no shift is found where h does not depend on the prompt"


def test_along_and_against_are_those_of_a_loop_by_hand(tiny_pipe: Any) -> None:
    unet, model = tiny_pipe.unet, Denoiser(tiny_pipe, guidance=3.0)
    y = model.encode(["a person", "a woman", "a man"])
    z, t = roll_batch(model, 2 * HALF, mix_seed(0, 0), y[0], STEPS)
    z, t = z.view(STEPS, 2 * HALF, *z.shape[1:]), t.view(STEPS, 2 * HALF)
    seen: list[Tensor] = []
    handle = unet.mid_block.register_forward_hook(lambda _m, _a, h: seen.append(h))
    for condition in y:
        predict(model, z[:, :HALF].flatten(0, 1), t[:, :HALF].flatten(), condition, 100)
    handle.remove()
    u = seen[1].mean(0) - seen[2].mean(0)
    u = u / u.norm() * seen[0].flatten(1).norm(dim=1).mean() * STEP
    z, t = z[:, HALF:], t[:, HALF:]

    def e(condition: Any, i: int) -> Tensor:
        return predict(model, z[:, i], t[:, i], condition, 100)

    along, against = [], []
    for i in range(HALF):
        d, plain = e(y[1], i) - e(y[2], i), e(y[0], i)
        changes = []
        for sign in (1, -1):
            with unet.mid_block.register_forward_hook(lambda _m, _a, h, sign=sign: h + sign * u):
                changes.append(sign * (e(y[0], i) - plain) / STEP)
        c, both = torch.cat(changes), torch.cat([d, d])
        along.append(float((c * both).sum() / both.square().sum()))
        against.append(float((c - along[-1] * both).norm() / both.norm()))
    found = {s.site: s for s in rank_sites(tiny_pipe, "gender").scores}["mid_block"]
    assert found.along.mean == pytest.approx(sum(along) / HALF, rel=1e-3)
    assert found.against.mean == pytest.approx(sum(against) / HALF, rel=1e-3)


def test_readable_is_what_other_subjects_tell() -> None:
    shape, g = (6, 2, 3, 2, 40), torch.Generator().manual_seed(0)
    noise, sign = torch.randn(shape, generator=g), torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1)
    shared = noise + 3 * sign * torch.randn(40, generator=g) + 9 * torch.randn(6, 1, 1, 1, 40, generator=g)
    assert ranking._accuracies(shared) == [1.0] * 6, "one direction for all subjects, whatever they are"
    own = [fmean(ranking._accuracies(noise + 3 * sign * torch.randn(6, 1, 1, 1, 40, generator=g))) for _ in range(50)]
    assert 0.4 < fmean(own) < 0.6, "a direction of each subject's own is not told from others"
    assert ranking._accuracies(torch.zeros(shape)) == [0.5] * 6


def test_refusals(tiny_pipe: Any) -> None:
    same = Attribute("x", (Concept("a", "a dog", opposites=("a dog",)), Concept("b", "a dog", opposites=("a dog",))))
    with pytest.raises(ValueError, match="are the same to this model"):
        rank_sites(tiny_pipe, same)
    with pytest.raises(ValueError, match="must share one"):
        rank_sites(tiny_pipe, Attribute("x", (Concept("a", "a dog"), Concept("b", "a cat", "an animal"))))
    with pytest.raises(ValueError, match="float16"):
        rank_sites(tiny_pipe.to(torch.float16), find_attribute("gender"))
