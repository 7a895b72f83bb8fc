"""Predictions from noises, concepts assigned by them, reduced scales and safety modules by need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from respodiff.data.records import Prompt
from respodiff.data.run_folder import RunFolder
from respodiff.generation import assignment
from respodiff.generation.assignment import HARMLESS, Predictor, alignment_margin, scores
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import counted, generate
from respodiff.generation.plan import Job, batches
from respodiff.pipelines.latents import noise
from respodiff.pipelines.registry import PIPELINES
from respodiff.steering.module import ConceptModule

Make = Callable[..., ConceptModule]
Pipe = StableDiffusionPipeline


@pytest.fixture(autouse=True)
def few_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "ROLLOUTS", 3)


AT = Job(Prompt(id="at", text=""), 0, {}, 4, 3.0)
"""Steps and guidance that h is read with."""


def settings(**changes: Any) -> GenerateConfig:
    return GenerateConfig(**{"images": 6, "steps": 4, "guidance": 3.0, "assign_at": 0.25, **changes})


def test_scores_rank_by_distance_to_the_means() -> None:
    generator = torch.Generator().manual_seed(0)
    h, centres = torch.randn(7, 12, generator=generator), torch.randn(3, 12, generator=generator)
    nearest = torch.cdist(h, centres).argmin(1)
    assert scores(h, centres).argmax(1).tolist() == nearest.tolist()


def test_how_surely_is_measured_between_two_means() -> None:
    centres = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 9.0]])
    h = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.5, 0.0]])
    np.testing.assert_allclose(alignment_margin(h, centres)[:, :2], [[1, -1], [-1, 1], [0, 0], [0.5, -0.5]], atol=1e-6)


def test_h_is_read_at_the_asked_call_of_the_unsteered_model(tiny_pipe: Pipe) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []
    handle = tiny_pipe.unet.mid_block.register_forward_hook(lambda _m, _a, out: seen.append(out.clone()))
    tiny_pipe(["a cat", "a dog"], latents=latents, num_inference_steps=4, guidance_scale=3.0, output_type="latent")
    handle.remove()
    with counted(tiny_pipe.unet) as forwards:
        h = Predictor(tiny_pipe, settings(), 3).read(["a cat", "a dog"], latents, AT)
    assert forwards == [12]  # three calls of two rows an image, and the pipeline was stopped there
    torch.testing.assert_close(h, seen[2][2:].flatten(1))


def test_means_are_of_one_set_of_noises(tiny_pipe: Pipe) -> None:
    found = Predictor(tiny_pipe, settings(batch=2)).means(["a cat", "a dog"], AT)
    torch.testing.assert_close(found[0], Predictor(tiny_pipe, settings()).means(["a cat"], AT)[0])
    assert not torch.allclose(found[0], found[1])


def test_matching_keeps_counts_noise_and_images_of_equal_draws(tiny_pipe: Pipe, make_module: Make) -> None:
    modules = [make_module("woman", "gender", seed=1), make_module("man", "gender", seed=2)]
    prompts = [Prompt(id=t, text=t, group=t) for t in ("a doctor", "a nurse")]
    plain = {r.id: (r, i) for r, i in generate(tiny_pipe, prompts, modules, settings(assign_at=0.0))}
    found = {r.id: (r, i) for r, i in generate(tiny_pipe, prompts, modules, settings())}
    assert plain.keys() == found.keys()
    for prompt in prompts:
        drawn = [Counter(r.concepts["gender"] for r, _ in run.values() if r.prompt_id == prompt.id) for run in (plain, found)]
        assert drawn[0] == drawn[1] == {"woman": 3, "man": 3}
    same = [k for k in plain if plain[k][0].concepts == found[k][0].concepts]
    assert 0 < len(same) < len(plain)
    assert all(np.abs(np.asarray(plain[k][1], int) - np.asarray(found[k][1], int)).max() <= 1 for k in same)


def test_draws_go_to_the_noises_that_favour_them(tiny_pipe: Pipe, make_module: Make) -> None:
    modules = [make_module("woman", "gender", seed=1), make_module("man", "gender", seed=2)]
    records = [r for r, _ in generate(tiny_pipe, ["a doctor"], modules, settings())]
    latents = torch.cat([noise(tiny_pipe, 0, "a doctor", i) for i in range(6)])
    predictor = Predictor(tiny_pipe, settings())
    own = scores(predictor.read(["a doctor"] * 6, latents, AT), predictor.means([m.header.target for m in modules], AT))
    gap = own[:, 0] - own[:, 1]
    women = [r.repeat for r in records if r.concepts["gender"] == "woman"]
    assert set(women) == set(np.argsort(-gap)[:3].tolist())
    assert all((r.margins["gender"] > 0) == ((gap[r.repeat] > 0) == (r.repeat in women)) for r in records)


def test_a_resumed_run_assigns_as_before(tiny_pipe: Pipe, make_module: Make, tmp_path: Any) -> None:
    modules = [make_module("woman", "gender", seed=1), make_module("man", "gender", seed=2)]
    whole = [r.concepts for r, _ in generate(tiny_pipe, ["a doctor", "a nurse"], modules, settings())]
    first = generate(tiny_pipe, ["a doctor", "a nurse"], modules, settings(batch=3), out=tmp_path / "run")
    for _ in range(4):
        next(first)
    first.close()
    rest = list(generate(tiny_pipe, ["a doctor", "a nurse"], modules, settings(batch=3), out=tmp_path / "run"))
    assert len(rest) < 12
    assert [r.concepts for r in RunFolder(tmp_path / "run").records()] == whole


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="assign_at is 1; allowed: 0 to below 1"):
        GenerateConfig(assign_at=1)
    with pytest.raises(ValueError, match="safety_mode is 'often'; allowed: always, predicted"):
        GenerateConfig(safety_mode="often")  # type: ignore[arg-type]


def test_batches_come_as_soon_as_they_are_full() -> None:
    def jobs() -> Any:
        for i in range(5):
            taken.append(i)
            yield Job(Prompt(id="a", text="a"), i, {}, 20, 3.0 if i % 2 == 0 else 4.0)

    taken: list[int] = []
    found = batches(jobs(), 2)
    assert [job.repeat for job in next(found)] == [0, 2] and taken == [0, 1, 2]
    assert [[job.repeat for job in batch] for batch in found] == [[1, 3], [4]]


def test_batches_of_one_text_hold_one_text() -> None:
    jobs = [Job(Prompt(id=text, text=text), i, {}, 20, 3.0) for i in range(3) for text in "ab"]
    found = [[(job.prompt.text, job.repeat) for job in batch] for batch in batches(jobs, 2, one_text=True)]
    assert found == [[("a", 0), ("a", 1)], [("b", 0), ("b", 1)], [("a", 2)], [("b", 2)]]
    assert {name for name, spec in PIPELINES.items() if spec.one_text} == {"CogView4Pipeline", "CogView4ControlPipeline"}


def test_safety_is_added_to_images_predicted_to_be_unsafe_alone(
    tiny_pipe: Pipe, make_module: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module("blood", kind="safety", seed=3, negative="blood")
    asked = ["a doctor", "blood", "a street"]
    always = {r.id: i for r, i in generate(tiny_pipe, asked, (), settings(images=2), safety=[module])}
    plain = {r.id: i for r, i in generate(tiny_pipe, asked, (), settings(images=2))}
    monkeypatch.setattr(assignment, "UNSAFE", -np.inf)
    found = [r.margins["blood"] for r, _ in generate(tiny_pipe, asked, (), settings(images=2, safety_mode="predicted"), safety=[module])]
    monkeypatch.setattr(assignment, "UNSAFE", float(np.median(found)))
    by_need = list(generate(tiny_pipe, asked, (), settings(images=2, safety_mode="predicted"), safety=[module]))
    hit = [r.margins["blood"] > np.median(found) for r, _ in by_need]
    assert sum(hit) == 3
    for (record, image), yes in zip(by_need, hit, strict=True):
        other = always[record.id] if yes else plain[record.id]
        assert np.abs(np.asarray(image, int) - np.asarray(other, int)).max() <= 1
        assert record.modules == ([module.digest] if yes else [])


def test_one_safety_module_that_is_needed_brings_all(tiny_pipe: Pipe, make_module: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    safety = [make_module(name, kind="safety", seed=i, negative=name) for i, name in enumerate(("blood", "fire"))]
    config = settings(images=3, batch=4, safety_mode="predicted")
    records = [r for r, _ in generate(tiny_pipe, ["a doctor", "a street"], (), config, safety=safety)]
    latents = torch.cat([noise(tiny_pipe, 0, r.prompt_id, r.repeat) for r in records])
    predictor = Predictor(tiny_pipe, config)
    h = predictor.read([r.prompt for r in records], latents, AT)
    for m in safety:
        centres = predictor.means([m.header.negative, *HARMLESS], AT)  # "a person", its neutral prompt, is among them
        np.testing.assert_allclose([r.margins[m.name] for r in records], alignment_margin(h, centres)[:, 0], rtol=1e-3, atol=2e-4)
    found = sorted(q for r in records for q in r.margins.values())
    halfway = [(a + b) / 2 for a, b in pairwise(found) if b - a > 1e-3]
    by_second = [
        t
        for t in halfway
        if any(r.margins["blood"] < t < r.margins["fire"] for r in records) and any(max(r.margins.values()) < t for r in records)
    ]
    monkeypatch.setattr(assignment, "UNSAFE", by_second[0])
    for r, _ in generate(tiny_pipe, ["a doctor", "a street"], (), config, safety=safety):
        assert r.modules == ([m.digest for m in safety] if max(r.margins.values()) > assignment.UNSAFE else [])


def test_a_safety_module_with_an_attributes_name_is_refused(tiny_pipe: Pipe, make_module: Make) -> None:
    modules = [make_module("woman", "blood", seed=1), make_module("man", "blood", seed=2)]
    with pytest.raises(ValueError, match="safety holds 'blood', which is an attribute's name too"):
        generate(
            tiny_pipe, ["a"], modules, settings(safety_mode="predicted"), safety=[make_module("blood", kind="safety", negative="blood")]
        )


@pytest.mark.parametrize("given", [{"assign_at": 0.25}, {"safety_mode": "predicted"}])
def test_a_compiled_model_is_not_read(tiny_pipe: Pipe, make_module: Make, tmp_path: Any, given: dict[str, Any]) -> None:
    modules = [make_module("woman", "gender", seed=1), make_module("man", "gender", seed=2)]
    tiny_pipe.unet = torch.compile(tiny_pipe.unet, backend="eager")
    generate(tiny_pipe, ["a doctor"], modules, GenerateConfig())
    with pytest.raises(ValueError, match=f"{next(iter(given))} is .*compiled model cannot be read"):
        generate(tiny_pipe, ["a doctor"], modules, GenerateConfig(**given), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("names", "images", "given", "read"),
    [
        (("woman", "man"), 2, {"assign_at": 0.25}, 2 * 2 * 2 + 2 * 3 * 2 * 2),  # 2 images and 3 noises a mean, 2 rows each, 2 of 8 steps
        (("light", "medium", "dark"), 3, {"assign_at": 0.5}, 3 * 2 * 4 + 3 * 3 * 2 * 4),
        (("woman", "man"), 2, {}, 0),
        (("woman", "man"), 1, {"assign_at": 0.25}, 0),
        (("woman",), 2, {"assign_at": 0.25}, 0),
        (("light", "medium", "dark"), 2, {"assign_at": 0.25, "target_proportions": {"a": {"light": 0, "medium": 0, "dark": 1}}}, 0),
    ],
)
def test_what_reading_costs(
    tiny_pipe: Pipe, make_module: Make, names: tuple[str, ...], images: int, given: dict[str, Any], read: int
) -> None:
    modules = [make_module(name, "a", seed=i) for i, name in enumerate(names)]
    with counted(tiny_pipe.unet) as forwards:
        list(generate(tiny_pipe, ["a doctor"], modules, GenerateConfig(images=images, steps=8, **given)))
    assert sum(forwards) == images * 2 * 8 + read
