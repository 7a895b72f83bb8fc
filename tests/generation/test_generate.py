from __future__ import annotations

import logging
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from respodiff.data.records import ImageRecord, Prompt
from respodiff.data.run_folder import RunFolder
from respodiff.data.shards import Shard
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import counted, generate
from respodiff.pipelines.identity import weights_digest
from respodiff.pipelines.latents import noise
from respodiff.pipelines.loading import sampling_settings
from respodiff.steering.module import ConceptModule

Make = Callable[..., ConceptModule]
Pipe = StableDiffusionPipeline


def settings(**changes: Any) -> GenerateConfig:
    return GenerateConfig(**{"images": 4, "steps": 2, "guidance": 3.0, **changes})


def draw(pipe: Pipe, prompts: Sequence[Prompt | str], *args: Any, **kwargs: Any) -> dict[str, tuple[ImageRecord, Image.Image]]:
    return {record.id: (record, image) for record, image in generate(pipe, prompts, *args, **kwargs)}


def same_images(a: dict[str, tuple[ImageRecord, Image.Image]], b: dict[str, tuple[ImageRecord, Image.Image]]) -> bool:
    """Equal but for the last step of rounding to 8 bits."""
    return a.keys() == b.keys() and all(apart(a[k][1], b[k][1]) <= 1 for k in a)


def apart(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


@contextmanager
def first_calls(pipe: Pipe) -> Iterator[dict[str, Tensor]]:
    """Input of the UNet and of its first up block at the first call, pass-major as they come."""
    seen: dict[str, Tensor] = {}

    def keep(key: str) -> Callable[..., None]:
        return lambda _m, args, kwargs: None if key in seen else seen.update({key: (args[0] if args else kwargs[key]).clone()})

    handles = [
        pipe.unet.register_forward_pre_hook(keep("sample"), with_kwargs=True),
        pipe.unet.up_blocks[0].register_forward_pre_hook(keep("hidden_states"), with_kwargs=True),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture
def gender(make_module: Make) -> list[ConceptModule]:
    return [make_module("woman", "gender"), make_module("man", "gender", seed=1)]


@pytest.fixture
def tone(make_module: Make) -> list[ConceptModule]:
    return [make_module(name, "tone", seed=10 + i) for i, name in enumerate(("light", "medium", "dark"))]


# --- noise ---


def test_an_image_is_the_same_whatever_the_batch(tiny_pipe: Pipe, gender: list[ConceptModule]) -> None:
    runs = [draw(tiny_pipe, ["a doctor", "a nurse", "a chef"], gender, settings(batch=b)) for b in (1, 3, 12)]
    assert len(runs[0]) == 12
    assert same_images(runs[0], runs[1]) and same_images(runs[0], runs[2])
    images = [image for _, image in runs[0].values()]
    assert all(apart(a, b) > 1 for i, a in enumerate(images) for b in images[:i]), "no two images are the same"


def test_an_image_does_not_depend_on_the_other_prompts_of_the_run(tiny_pipe: Pipe, gender: list[ConceptModule]) -> None:
    together = draw(tiny_pipe, ["a nurse", "a doctor"], gender, settings())
    alone = draw(tiny_pipe, ["a doctor"], gender, settings())
    assert same_images({k: together[k] for k in alone}, alone)
    assert {k: together[k][0] for k in alone} == {k: r for k, (r, _) in alone.items()}


def test_the_noise_is_the_same_across_concepts_and_policies(tiny_pipe: Pipe, gender: list[ConceptModule], make_module: Make) -> None:
    violence = make_module("violence", kind="safety", seed=7)
    runs: list[tuple[list[ConceptModule], dict[str, Any]]] = [
        ([], {}),
        (gender, {}),
        (gender, {"policy": "random"}),
        (gender, {"policy": "none"}),
        (gender[:1], {"scale": 0.3, "guidance": 1.0}),
    ]
    starts = []
    for safety in ([], [violence]):
        for modules, changes in runs:
            with first_calls(tiny_pipe) as seen:
                draw(tiny_pipe, ["a doctor"], modules, settings(steps=1, **changes), safety=safety)
            starts.append(seen["sample"][-4:])
    assert all(torch.equal(s, starts[0]) for s in starts)
    expected = torch.cat([noise(tiny_pipe, 0, "a doctor", i) for i in range(4)])
    assert torch.equal(starts[0], expected), "DDIM starts from unscaled noise"


def test_noise_depends_on_seed_prompt_and_repeat(tiny_pipe: Pipe) -> None:
    base = noise(tiny_pipe, 0, "doctor", 0)
    assert base.shape == (1, 4, 8, 8) and base.dtype == torch.float32
    assert torch.equal(noise(tiny_pipe, 0, "doctor", 0), base)
    for other in ((1, "doctor", 0), (0, "nurse", 0), (0, "doctor", 1)):
        assert not torch.equal(noise(tiny_pipe, *other), base)


def test_the_global_random_state_is_neither_read_nor_written(tiny_pipe: Pipe, gender: list[ConceptModule]) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = draw(tiny_pipe, ["a doctor"], gender, settings())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same_images(one, draw(tiny_pipe, ["a doctor"], gender, settings()))


def test_schedulers_that_draw_noise_at_every_step_are_repeatable_too(tiny_pipe: Pipe) -> None:
    tiny_pipe.scheduler = DDPMScheduler.from_config(tiny_pipe.scheduler.config)
    runs = [draw(tiny_pipe, ["a doctor"], (), settings(batch=b, steps=3)) for b in (1, 4)]
    assert same_images(*runs)
    other = draw(tiny_pipe, ["a doctor"], (), settings(seed=1, steps=3))
    assert not same_images(runs[0], other)


# --- what is drawn and how it is steered ---


def test_exact_policy_draws_equal_numbers_and_applies_what_the_record_says(tiny_pipe: Pipe, gender: list[ConceptModule]) -> None:
    plain = draw(tiny_pipe, ["a doctor"], (), settings())
    steered = draw(tiny_pipe, ["a doctor"], gender, settings())
    assert Counter(r.concepts["gender"] for r, _ in steered.values()) == {"woman": 2, "man": 2}
    digests = {m.name: m.digest for m in gender}
    for module in gender:
        alone = draw(tiny_pipe, ["a doctor"], [module], settings())
        for key, (record, image) in steered.items():
            assert record.modules == [digests[record.concepts["gender"]]]
            close = apart(image, alone[key][1]) <= 1
            assert close == (record.concepts["gender"] == module.name)
    assert not same_images(plain, steered)


def test_every_prompt_has_draws_of_its_own(tiny_pipe: Pipe, gender: list[ConceptModule]) -> None:
    found = draw(tiny_pipe, [f"a doctor {i}" for i in range(12)], gender, settings(images=1, steps=1))
    assert {r.concepts["gender"] for r, _ in found.values()} == {"woman", "man"}


def test_no_policy_draws_plain_images(tiny_pipe: Pipe, gender: list[ConceptModule]) -> None:
    plain = draw(tiny_pipe, ["a doctor"], (), settings())
    none = draw(tiny_pipe, ["a doctor"], gender, settings(policy="none"))
    assert {k: r for k, (r, _) in none.items()} == {k: r for k, (r, _) in plain.items()}
    assert all(apart(none[k][1], plain[k][1]) == 0 for k in plain)
    assert {r.method for r, _ in plain.values()} == {"plain"}


def test_shares_are_followed(tiny_pipe: Pipe, gender: list[ConceptModule]) -> None:
    found = draw(tiny_pipe, ["a doctor"], gender, settings(target_proportions={"gender": {"woman": 0.75, "man": 0.25}}))
    assert Counter(r.concepts["gender"] for r, _ in found.values()) == {"woman": 3, "man": 1}


def test_two_attributes_are_crossed(tiny_pipe: Pipe, gender: list[ConceptModule], tone: list[ConceptModule]) -> None:
    found = draw(tiny_pipe, ["a doctor"], [*gender, *tone], settings(images=6))
    cells = Counter((r.concepts["gender"], r.concepts["tone"]) for r, _ in found.values())
    assert len(cells) == 6 and set(cells.values()) == {1}
    digests = {m.name: m.digest for m in (*gender, *tone)}
    assert all(r.modules == [digests[c] for c in r.concepts.values()] for r, _ in found.values())


def test_safety_modules_are_added_to_whatever_was_drawn(tiny_pipe: Pipe, gender: list[ConceptModule], make_module: Make) -> None:
    violence, config = make_module("violence", kind="safety", seed=7), settings(steps=1, scale=0.5, safety_scale=2.0)
    with first_calls(tiny_pipe) as plain:
        draw(tiny_pipe, ["a doctor"], (), config)
    with first_calls(tiny_pipe) as seen:
        found = draw(tiny_pipe, ["a doctor"], gender, config, safety=[violence])
    by_name = {m.name: m for m in gender}
    for i, (record, _) in enumerate(found.values()):
        assert set(record.concepts) == {"gender"}, "a safety module is no alternative to draw from"
        drawn = by_name[record.concepts["gender"]]
        assert record.modules == [drawn.digest, violence.digest]
        shift = seen["hidden_states"][4 + i] - plain["hidden_states"][4 + i]
        assert torch.allclose(shift, 0.5 * drawn.delta + 2.0 * violence.delta, atol=1e-5)


def test_what_is_given_as_safety_is_never_dropped(tiny_pipe: Pipe, gender: list[ConceptModule]) -> None:
    found = draw(tiny_pipe, ["a doctor"], (), settings(), safety=gender[:1])
    assert all(r.modules == [gender[0].digest] and r.concepts == {} for r, _ in found.values())


def test_the_pipeline_is_not_hooked_between_images(tiny_pipe: Pipe, gender: list[ConceptModule]) -> None:
    for _ in generate(tiny_pipe, ["a doctor"], gender, settings(batch=2)):
        assert not tiny_pipe.unet.mid_block._forward_hooks


# --- the record ---


def test_the_record_says_all_that_was_asked_for(tiny_pipe: Pipe, gender: list[ConceptModule]) -> None:
    tiny_pipe.register_to_config(_name_or_path="someone/model")
    prompt = Prompt("occupations/doctor", "a photo of a doctor", suite="occupations", group="doctor", subject="health worker")
    config = settings(images=2, seed=5, guidance=2.5, scale=0.7)
    found = list(draw(tiny_pipe, [prompt], gender, config).values())
    for i, (record, image) in enumerate(found):
        assert record == ImageRecord(
            id=f"occupations_doctor-000{i}",
            file="",
            prompt="a photo of a doctor",
            prompt_id="occupations/doctor",
            suite="occupations",
            group="doctor",
            subject="health worker",
            method="respodiff",
            concepts=record.concepts,
            modules=[next(m.digest for m in gender if m.name == record.concepts["gender"])],
            scale=0.7,
            seed=5,
            repeat=i,
            guidance=2.5,
            steps=2,
            scheduler="DDIMScheduler",
            model="someone/model",
            model_digest=weights_digest(tiny_pipe.unet),
            width=16,
            height=16,
        )
        assert image.size == (16, 16)


# --- the run folder ---


def digests(folder: Path) -> dict[str, str]:
    return {r.id: r.digest for r in RunFolder(folder).records()}


def test_images_land_in_the_run_folder_with_their_records(tiny_pipe: Pipe, gender: list[ConceptModule], tmp_path: Path) -> None:
    yielded = [record for record, _ in generate(tiny_pipe, ["a doctor", "a nurse"], gender, settings(), out=tmp_path / "run")]
    assert RunFolder(tmp_path / "run").records() == yielded
    assert len(list((tmp_path / "run" / "images").iterdir())) == 8
    assert all((tmp_path / "run" / r.file).is_file() and r.digest for r in yielded)


@pytest.fixture
def whole(tiny_pipe: Pipe, gender: list[ConceptModule], tmp_path: Path) -> dict[str, str]:
    """Digests of an uninterrupted run of two prompts."""
    list(generate(tiny_pipe, ["a doctor", "a nurse"], gender, settings(), out=tmp_path / "whole"))
    return digests(tmp_path / "whole")


def test_an_interrupted_run_is_finished_to_the_same_folder(
    tiny_pipe: Pipe, gender: list[ConceptModule], tmp_path: Path, whole: dict[str, str]
) -> None:
    first = generate(tiny_pipe, ["a doctor", "a nurse"], gender, settings(batch=1), out=tmp_path / "part")
    done = [next(first)[0].id for _ in range(3)]
    first.close()  # type: ignore[attr-defined]
    rest = [r.id for r, _ in generate(tiny_pipe, ["a doctor", "a nurse"], gender, settings(batch=1), out=tmp_path / "part")]
    assert len(rest) == 5 and not set(rest) & set(done)
    list(generate(tiny_pipe, ["a doctor", "a nurse"], gender, settings(batch=1), out=tmp_path / "once"))
    assert digests(tmp_path / "part") == digests(tmp_path / "once")
    assert digests(tmp_path / "part").keys() == whole.keys()
    assert {r.id: r.concepts for r in RunFolder(tmp_path / "part").records()} == {
        r.id: r.concepts for r in RunFolder(tmp_path / "whole").records()
    }


def test_a_run_may_be_finished_with_another_batch_size(
    tiny_pipe: Pipe, gender: list[ConceptModule], tmp_path: Path, whole: dict[str, str]
) -> None:
    first = generate(tiny_pipe, ["a doctor", "a nurse"], gender, settings(batch=4), out=tmp_path / "part")
    for _ in range(3):
        next(first)
    first.close()  # type: ignore[attr-defined]
    assert len(list(generate(tiny_pipe, ["a doctor", "a nurse"], gender, settings(batch=2), out=tmp_path / "part"))) == 4
    for key in whole:
        a, b = (Image.open(tmp_path / run / "images" / f"{key}.png") for run in ("part", "whole"))
        assert apart(a, b) <= 1


def test_a_finished_run_is_left_alone(tiny_pipe: Pipe, gender: list[ConceptModule], tmp_path: Path, whole: dict[str, str]) -> None:
    with counted(tiny_pipe.unet) as calls:
        assert list(generate(tiny_pipe, ["a doctor", "a nurse"], gender, settings(), out=tmp_path / "whole")) == []
    assert calls == [0]
    assert digests(tmp_path / "whole") == whole


@pytest.mark.parametrize("how", ["absent", "empty", "cut", "zeros"])
def test_a_broken_image_is_drawn_again(
    tiny_pipe: Pipe, gender: list[ConceptModule], tmp_path: Path, whole: dict[str, str], how: str
) -> None:
    lost = sorted(whole)[2]
    file = tmp_path / "whole" / "images" / f"{lost}.png"
    good = file.read_bytes()
    file.write_bytes({"absent": b"", "empty": b"", "cut": good[:-9], "zeros": bytes(len(good))}[how])
    if how == "absent":
        file.unlink()
    again = [r.id for r, _ in generate(tiny_pipe, ["a doctor", "a nurse"], gender, settings(), out=tmp_path / "whole")]
    assert again == [lost]
    assert digests(tmp_path / "whole").keys() == whole.keys() == RunFolder(tmp_path / "whole").done()


@pytest.mark.parametrize("changes", [{"guidance": 2.0}, {"seed": 1}, {"images": 5}, {"steps": 3}, {"safety_scale": 0.5}], ids=str)
def test_a_folder_of_other_settings_is_refused(
    tiny_pipe: Pipe, gender: list[ConceptModule], tmp_path: Path, whole: dict[str, str], changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"was made with {next(iter(changes))}=.*choose another folder"):
        generate(tiny_pipe, ["a doctor"], gender, settings(**changes), out=tmp_path / "whole")


def test_a_folder_of_other_modules_is_refused(
    tiny_pipe: Pipe, gender: list[ConceptModule], tmp_path: Path, whole: dict[str, str], make_module: Make
) -> None:
    with pytest.raises(ValueError, match="was made with modules="):
        generate(tiny_pipe, ["a doctor"], [gender[0], make_module("man", "gender", seed=2)], settings(), out=tmp_path / "whole")


def test_dtype_and_device_count_as_settings(tiny_pipe: Pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(generate(tiny_pipe, ["a doctor"], (), settings(images=1), out=tmp_path))
    assert RunFolder(tmp_path).settings().items() >= {"dtype": "float32", "device": "cpu"}.items()
    with monkeypatch.context() as other, pytest.raises(ValueError, match="device='cpu', now asked for device='meta'"):
        other.setattr(type(tiny_pipe), "_execution_device", torch.device("meta"))
        generate(tiny_pipe, ["a doctor"], (), settings(images=1), out=tmp_path)
    tiny_pipe.unet.to(torch.float16)
    with pytest.raises(ValueError, match="dtype='float32', now asked for dtype='float16'"):
        generate(tiny_pipe, ["a doctor"], (), settings(images=1), out=tmp_path)


def test_images_of_other_settings_are_not_taken_over_when_run_json_is_lost(tiny_pipe: Pipe, tmp_path: Path) -> None:
    list(generate(tiny_pipe, ["a doctor"], (), settings(steps=2), out=tmp_path))
    for name in ("run.json", ".run.json"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"lost its run\.json"):
        generate(tiny_pipe, ["a doctor"], (), settings(steps=3), out=tmp_path)
    assert list(generate(tiny_pipe, ["a doctor"], (), settings(steps=2), out=tmp_path)) == []
    assert RunFolder(tmp_path).settings()["steps"] == 2


def test_a_second_writer_is_told_and_a_stopped_one_makes_room(tiny_pipe: Pipe, tmp_path: Path) -> None:
    first = generate(tiny_pipe, ["a doctor"], (), settings(batch=1), out=tmp_path / "run")
    next(first)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for writer in (
        lambda: generate(tiny_pipe, ["a doctor"], (), settings(), out=tmp_path / "run"),
        RunFolder(tmp_path / "run").lock().__enter__,
    ):
        with pytest.raises(OSError, match=rf"process {os.getpid()} "):
            writer()
    with pytest.raises(OSError):
        generate(tiny_pipe, ["a doctor"], (), settings(), out=tmp_path / "run", shard=Shard(0, 2))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    first.close()
    rest = generate(tiny_pipe, ["a doctor"], (), settings(batch=1), out=tmp_path / "run")
    assert rest.left == 3 and len(list(rest)) == 3 and rest.left == 0
    assert not [path.name for path in tmp_path.rglob("*") if path.suffix in (".lock", ".tmp")]


def test_shards_write_side_by_side_and_no_shard_twice(tiny_pipe: Pipe, tmp_path: Path) -> None:
    runs = [generate(tiny_pipe, ["a doctor", "a nurse"], (), settings(batch=1), out=tmp_path, shard=Shard(i, 2)) for i in range(2)]
    for run in runs:
        next(run)
    for shard in (Shard(1, 2), Shard(0, 1)):
        with pytest.raises(OSError):
            generate(tiny_pipe, ["a doctor", "a nurse"], (), settings(batch=1), out=tmp_path, shard=shard)
    assert [len(list(run)) for run in runs] == [3, 3]


# --- refusals, all before anything is drawn ---


def refused(pipe: Pipe, message: str, prompts: Sequence[Prompt | str], *args: Any, **kwargs: Any) -> None:
    with counted(pipe.unet) as calls, pytest.raises(ValueError, match=message):
        generate(pipe, prompts, *args, **kwargs)
    assert calls == [0]


def test_prompts_that_make_no_sense_are_refused(tiny_pipe: Pipe) -> None:
    refused(tiny_pipe, "there is no prompt; give at least one", [])
    refused(tiny_pipe, "prompt '' is empty; give a text", ["a doctor", ""])
    refused(tiny_pipe, "holds half of a character", ["a doctor", "a \udc80"])
    refused(tiny_pipe, "prompt 'blank' is empty", [Prompt("blank", " \n")])
    refused(tiny_pipe, "prompt 'a doctor' is given twice", ["a doctor", "a nurse", "a doctor"])
    refused(tiny_pipe, r"prompt 'doctor doctor.*has 42 tokens; this model takes 32", ["a nurse", " ".join(["doctor"] * 40)])


def test_more_steps_than_the_scheduler_has_are_refused_before_anything_is_written(tiny_pipe: Pipe, tmp_path: Path) -> None:
    refused(tiny_pipe, "steps is 2000; allowed: 1 to 999, which is", ["a doctor"], (), settings(steps=2000), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_text_under_two_ids_is_two_prompts(tiny_pipe: Pipe) -> None:
    assert len(draw(tiny_pipe, [Prompt("one", "a doctor"), Prompt("two", "a doctor")], (), settings(images=1))) == 2


def test_two_modules_of_one_concept_are_refused(tiny_pipe: Pipe, gender: list[ConceptModule], make_module: Make) -> None:
    refused(tiny_pipe, "two modules are called 'woman'; give each concept once", ["a doctor"], [*gender, gender[0]])
    violence = make_module("violence", kind="safety")
    refused(tiny_pipe, "two modules are called 'violence'", ["a doctor"], (), settings(), safety=[violence, violence])


def test_shares_of_what_is_not_steered_are_refused(tiny_pipe: Pipe, gender: list[ConceptModule]) -> None:
    refused(
        tiny_pipe,
        "proportions are given for 'tone'.*known: gender",
        ["a doctor"],
        gender,
        settings(target_proportions={"tone": {"dark": 1.0}}),
    )
    refused(tiny_pipe, "proportions name 'women'", ["a doctor"], gender, settings(target_proportions={"gender": {"women": 1.0}}))


def test_a_run_folder_that_cannot_be_made_is_refused(tiny_pipe: Pipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match=r"run.*choose another"):
        generate(tiny_pipe, ["a doctor"], out=tmp_path / "file" / "run")


def test_an_exploding_module_leaves_no_image(tiny_pipe: Pipe, make_module: Make, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="'boom' at scale 1 "):
        draw(tiny_pipe, ["a doctor"], [make_module("boom", scale=1e30)], settings(), out=tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert not list(run.records()) and not list(run.images.iterdir())


@pytest.mark.parametrize("name", ["images", "steps", "batch"])
@pytest.mark.parametrize("value", [0, -3, 2.5, math.nan])
def test_counts_must_be_whole_and_positive(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; allowed: a whole number from 1 to "):
        GenerateConfig(**{name: value})  # type: ignore[arg-type]


def test_a_negative_scale_is_taken() -> None:
    assert GenerateConfig(scale=-1.0, guidance=0.0).scale == -1.0


# --- a data set's own settings, and long prompts ---


def own(name: str, **changes: Any) -> Prompt:
    return Prompt(name, f"a {name}", categories=("hate", "sexual"), **{"seed": 7, "guidance": 5.0, "height": 16, "width": 16, **changes})


def test_own_settings_are_used_and_recorded(tiny_pipe: Pipe) -> None:
    prompts = [
        own("lake"),
        own("boat", guidance=2.0, height=24, width=30),
        own("pier"),
        own("bird", guidance=None, width=None),
        Prompt("fox", "a fox"),
    ]
    calls: list[tuple[int, float, tuple[int, ...]]] = []
    tiny_pipe.unet.register_forward_pre_hook(
        lambda _m, args, kwargs: calls.append((len(args[0]) // 2, tiny_pipe.guidance_scale, tuple(args[0].shape[2:]))), with_kwargs=True
    )
    found = [record for record, _ in generate(tiny_pipe, prompts, (), settings(images=2, steps=1, use_dataset_settings=True))]
    assert calls == [(4, 5.0, (8, 8)), (2, 2.0, (12, 16)), (4, 3.0, (8, 8))], "a batch is of one guidance and one size"
    by_id = {r.id: r for r in found}
    assert len(by_id) == 10
    told = {
        p: {(r.own_seed, r.guidance, r.height, r.width, r.categories) for r in found if r.prompt_id == p}
        for p in ("lake", "boat", "bird", "fox")
    }
    assert told == {
        "lake": {(7, 5.0, 16, 16, ("hate", "sexual"))},
        "boat": {(7, 2.0, 24, 32, ("hate", "sexual"))},
        "bird": {(7, 3.0, 16, 16, ("hate", "sexual"))},
        "fox": {(None, 3.0, 16, 16, ())},
    }


def test_own_seed_draws_the_latent_as_other_tools_do(tiny_pipe: Pipe) -> None:
    with first_calls(tiny_pipe) as seen:
        draw(tiny_pipe, [own("lake", height=16, width=32)], (), settings(images=2, steps=1, use_dataset_settings=True))
    expected = [torch.randn(1, 4, 8, 16, generator=torch.Generator("cpu").manual_seed(7 + repeat)) for repeat in (0, 1)]
    assert torch.equal(seen["sample"][-2:], torch.cat(expected))


def test_own_seed_matches_the_pipeline_called_by_hand(tiny_pipe: Pipe) -> None:
    (found,) = draw(tiny_pipe, [own("lake")], (), settings(images=1, use_dataset_settings=True)).values()
    by_hand = tiny_pipe("a lake", num_inference_steps=2, guidance_scale=5.0, generator=torch.Generator("cpu").manual_seed(7)).images[0]
    assert apart(found[1], by_hand) <= 1


def test_own_settings_are_ignored_unless_asked_for(tiny_pipe: Pipe) -> None:
    (plain,) = draw(tiny_pipe, [Prompt("lake", "a lake")], (), settings(images=1, steps=1)).values()
    (record, image) = next(iter(draw(tiny_pipe, [own("lake", height=32)], (), settings(images=1, steps=1)).values()))
    assert apart(image, plain[1]) == 0 and (record.own_seed, record.guidance, record.height) == (None, 3.0, 16)


def test_own_settings_that_cannot_be_followed_are_told_once(tiny_pipe: Pipe) -> None:
    prompts = [own("lake", guidance=255.0), own("boat", guidance=0.5), own("pier", guidance=20.0), own("bird", height=9000)]
    with pytest.warns(UserWarning) as told:
        found = draw(tiny_pipe, prompts, (), settings(images=1, steps=1, use_dataset_settings=True))
    assert [str(w.message) for w in told] == [
        "2 of 4 prompts ask for guidance outside 1 to 20: the run's 3 is used",
        "1 of 4 prompts ask for a side outside 1 to 2048 pixels: the model's own size is used",
    ]
    assert sorted((r.prompt_id, r.guidance) for r, _ in found.values()) == [("bird", 5.0), ("boat", 3.0), ("lake", 3.0), ("pier", 20.0)]
    with pytest.warns(UserWarning, match="no prompt brings any"):
        generate(tiny_pipe, ["a lake"], (), settings(use_dataset_settings=True))


def test_long_prompts_are_cut_when_asked_for(tiny_pipe: Pipe, caplog: pytest.LogCaptureFixture) -> None:
    long = [" ".join([name] * 40) for name in ("doctor", "nurse")]
    logger = logging.getLogger(type(tiny_pipe).__module__)
    before = list(logger.filters)
    refused(tiny_pipe, "truncate_prompts=True", long, (), settings())
    with pytest.warns(UserWarning, match="2 of 3 prompts are longer than the model reads: their ends are cut off") as told:
        found = draw(tiny_pipe, [*long, "a chef"], (), settings(images=1, steps=1, batch=1, truncate_prompts=True))
    assert len(told) == 1 and "truncated" not in caplog.text
    assert logger.filters == before, "diffusers' logger is as it was"
    assert [r.prompt for r, _ in found.values()] == [*long, "a chef"]


def test_a_folder_of_other_settings_is_not_resumed(tiny_pipe: Pipe, tmp_path: Path) -> None:
    list(generate(tiny_pipe, ["a doctor"], (), settings(images=1, steps=1), out=tmp_path))
    for changes, more in (({"use_dataset_settings": True}, {}), ({"truncate_prompts": True}, {}), ({}, {"suite_digest": "ab12"})):
        key = next(iter({**changes, **more}))
        with pytest.raises(ValueError, match=rf"was made with {key}="), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            generate(tiny_pipe, ["a doctor"], (), settings(images=1, steps=1, **changes), out=tmp_path, **more)


def test_the_digest_of_the_suite_travels_with_the_run(tiny_pipe: Pipe, tmp_path: Path) -> None:
    generate(tiny_pipe, ["a doctor"], (), settings(), out=tmp_path / "run", suite_digest="ab12")
    assert RunFolder(tmp_path / "run").settings()["suite_digest"] == "ab12"


def test_names_of_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="truncate_prompts is 'trim'; allowed: True, False"):
        GenerateConfig(truncate_prompts="trim")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="use_dataset_settings is 'yes'; allowed: True, False"):
        GenerateConfig(use_dataset_settings="yes")  # type: ignore[arg-type]


# --- small parts ---


def test_modules_of_no_attribute_are_alternatives_of_one(tiny_pipe: Pipe, make_module: Make, gender: list[ConceptModule]) -> None:
    found = draw(tiny_pipe, ["a doctor"], [make_module("hat"), *gender, make_module("scarf")], settings(steps=1))
    assert {(r.concepts["concept"], r.concepts["gender"]) for r, _ in found.values()} == {
        (a, b) for a in ("hat", "scarf") for b in ("woman", "man")
    }


@pytest.mark.parametrize(("guidance", "passes"), [(3.0, 2), (1.0, 1)])
def test_counted_counts_samples_through_the_unet(tiny_pipe: Pipe, guidance: float, passes: int) -> None:
    with counted(tiny_pipe.unet) as calls:
        draw(tiny_pipe, ["a doctor"], (), settings(guidance=guidance, steps=3, batch=3))
    assert calls == [4 * 3 * passes]
    draw(tiny_pipe, ["a doctor"], (), settings())
    assert calls == [4 * 3 * passes], "it stops on exit"


def test_a_folder_of_other_prompts_is_refused_and_of_fewer_goes_on(tiny_pipe: Pipe, tmp_path: Path) -> None:
    doctor = Prompt("jobs/x", "a doctor")
    list(generate(tiny_pipe, [doctor], (), settings(images=1), out=tmp_path))
    kept = digests(tmp_path)
    others: list[Prompt | str] = ["a nurse", Prompt("jobs/x", "a nurse"), Prompt("jobs/y", "a doctor")]
    for other in others:
        with pytest.raises(ValueError, match=r"out is .* holds images of 'a doctor', none of these prompts: .* choose another folder"):
            generate(tiny_pipe, [other], (), settings(images=1), out=tmp_path)
    assert digests(tmp_path) == kept
    assert [r.prompt for r, _ in generate(tiny_pipe, ["a nurse", doctor], (), settings(images=1), out=tmp_path)] == ["a nurse"]


@pytest.mark.parametrize("change", [{"seed": 8}, {"guidance": 5.0}, {"group": "nurse"}, {"subject": "nurse"}, {"categories": ("hate",)}])
def test_a_folder_of_prompts_with_other_settings_of_their_own_is_refused(tiny_pipe: Pipe, tmp_path: Path, change: dict[str, Any]) -> None:
    doctor = Prompt("jobs/x", "a doctor", group="doctor", subject="doctor", seed=7, guidance=4.0)
    config = settings(images=1, guidance=None, use_dataset_settings=True)
    list(generate(tiny_pipe, [doctor], (), config, out=tmp_path))
    with pytest.raises(ValueError, match="another seed, guidance, group, subject or categories"):
        generate(tiny_pipe, [replace(doctor, **change)], (), config, out=tmp_path)
    assert generate(tiny_pipe, [doctor], (), config, out=tmp_path).left == 0


def test_a_safety_module_among_the_alternatives_is_refused(tiny_pipe: Pipe, gender: list[ConceptModule], make_module: Make) -> None:
    with pytest.raises(ValueError, match=r"modules holds 'violence', which is a safety module; give it as safety="):
        generate(tiny_pipe, ["a doctor"], [*gender, make_module("violence", kind="safety")], settings())


def test_an_attribute_with_one_module_is_warned_of(tiny_pipe: Pipe, gender: list[ConceptModule], make_module: Make) -> None:
    with pytest.warns(UserWarning, match=r"'woman' is the only module of attribute 'gender': every image is steered to it"):
        generate(tiny_pipe, ["a doctor"], gender[:1], settings())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(tiny_pipe, ["a doctor"], gender, settings())
        generate(tiny_pipe, ["a doctor"], gender[:1], settings(policy="none"))
        generate(tiny_pipe, ["a doctor"], gender[:1], settings(target_proportions={"gender": {"woman": 1.0}}))
        generate(tiny_pipe, ["a doctor"], [make_module("hat")], settings())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("policy", "50/50"),
        ("scale", 40),
        ("safety_scale", -10.5),
        ("scale", math.nan),
        ("guidance", math.inf),
        ("guidance", -0.5),
        ("steps", 0),
        ("batch", 1.5),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {value!r}; allowed: "):
        GenerateConfig(**{name: value})


def test_steps_and_guidance_are_the_models_own_unless_given(tiny_pipe: Pipe, tmp_path: Path) -> None:
    assert sampling_settings(tiny_pipe) == (50, 7.5) and sampling_settings(tiny_pipe, 3, 1.0) == (3, 1.0)
    generate(tiny_pipe, ["a doctor"], (), GenerateConfig(), out=tmp_path)
    found = RunFolder(tmp_path).settings()
    assert (found["steps"], found["guidance"]) == (50, 7.5)
    tiny_pipe.register_to_config(_name_or_path="embedded")
    assert sampling_settings(tiny_pipe, guidance=0.0) == (8, 0.0)


def test_text_in_place_of_a_list_and_file_in_place_of_a_module(tiny_pipe: Pipe) -> None:
    with pytest.raises(ValueError, match="prompts is the text 'a doctor'; give a list"):
        generate(tiny_pipe, "a doctor", [], settings())
    with pytest.raises(ValueError, match=r"adapter is 'woman.safetensors'.*respodiff\.load"):
        generate(tiny_pipe, ["a doctor"], ["woman.safetensors"], settings())  # type: ignore[list-item]


def test_safety_checker_that_would_black_out_images_is_said(tiny_pipe: Pipe) -> None:
    tiny_pipe.safety_checker = object()
    with pytest.warns(UserWarning, match="safety checker"):
        generate(tiny_pipe, ["a doctor"], [], settings())
    tiny_pipe.safety_checker = None


def test_a_run_that_cannot_be_drawn_leaves_no_folder(tiny_pipe: Pipe, make_module: Make, tmp_path: Path) -> None:
    wrong = make_module("woman", shape=(32, 4, 4))
    for modules, safety in (([wrong], []), ([], [wrong])):
        with pytest.raises(ValueError, match=r"'woman' has 32 channels, the bottleneck .* has 64"):
            generate(tiny_pipe, ["a doctor"], modules, settings(), safety=safety, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_image_takes_other_settings(tiny_pipe: Pipe, tmp_path: Path) -> None:
    generate(tiny_pipe, ["a doctor"], (), settings(steps=3), out=tmp_path / "run", suite_digest="ab")
    (tmp_path / "run" / "images" / ".a_doctor.png.1-ab.tmp").touch()  # killed in its first image
    list(generate(tiny_pipe, ["a doctor"], (), settings(images=1), out=tmp_path / "run"))
    assert RunFolder(tmp_path / "run").settings()["steps"] == 2
    with pytest.raises(ValueError, match="was made with steps=2"):
        generate(tiny_pipe, ["a doctor"], (), settings(images=1, steps=3), out=tmp_path / "run")


def test_an_empty_run_json_of_a_folder_without_an_image_is_replaced(tiny_pipe: Pipe, tmp_path: Path) -> None:
    generate(tiny_pipe, ["a doctor"], (), settings(steps=3), out=tmp_path)
    (tmp_path / "run.json").write_text("")
    assert len(list(generate(tiny_pipe, ["a doctor"], (), settings(images=1), out=tmp_path))) == 1
    assert RunFolder(tmp_path).settings()["steps"] == 2


@pytest.mark.parametrize("kept", ["manifest.jsonl", "run.json"])
def test_a_folder_that_may_be_somebodys_is_not_made_anew(tiny_pipe: Pipe, tmp_path: Path, kept: str) -> None:
    generate(tiny_pipe, ["a doctor"], (), settings(steps=3), out=tmp_path)
    if kept == "run.json":
        (tmp_path / kept).write_text('{"imported": true}')
    else:
        (tmp_path / kept).touch()
    with pytest.raises(ValueError, match="was made with"):
        generate(tiny_pipe, ["a doctor"], (), settings(), out=tmp_path)


def test_noise_repeats_with_the_lower_half_of_the_seed_as_documented() -> None:
    def start(seed: int) -> Tensor:
        return torch.randn(4, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(start(7), start(7 + (5 << 32))), "PyTorch now reads the whole seed: say so in rows.noise_seed"
    assert not torch.equal(start(7), start(8))


# --- size ---


def test_a_run_has_a_size_of_its_own(tiny_pipe: Pipe, tmp_path: Path) -> None:
    config = GenerateConfig(images=1, steps=1, height=24, width=8)
    [(record, image)] = generate(tiny_pipe, ["a doctor"], [], config, out=tmp_path / "a")
    assert image.size == (record.width, record.height) == (8, 24)
    settings = RunFolder(tmp_path / "a").settings()
    assert settings["height"] == 24 and settings["width"] == 8
    list(generate(tiny_pipe, ["a doctor"], [], GenerateConfig(images=1, steps=1), out=tmp_path / "b"))
    assert not {"height", "width"} & RunFolder(tmp_path / "b").settings().keys(), "as in folders of earlier versions"
    with pytest.raises(ValueError, match="height is 25"):
        generate(tiny_pipe, ["a doctor"], [], GenerateConfig(images=1, height=25))
    with pytest.raises(ValueError, match="width is 4096"):
        GenerateConfig(width=4096)
    own = Prompt("p", "a doctor", group="g", height=16, width=16)
    [(_, image)] = generate(tiny_pipe, [own], [], GenerateConfig(images=1, steps=1, height=24, width=8, use_dataset_settings=True))
    assert image.size == (16, 16), "the data set's own size comes first"
