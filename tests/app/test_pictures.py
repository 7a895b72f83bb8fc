"""Pairs of images, what is perceived in them, and the Python that does the same."""

from __future__ import annotations

import ast
import runpy
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from respodiff.app import pictures, trainings
from respodiff.app.pictures import SIDES, Wish
from respodiff.app.service import RUNS, Service, Stop
from respodiff.concepts.concept import concept as find_concept
from respodiff.data.records import image_id
from respodiff.data.run_folder import RunFolder
from respodiff.methods.registry import get_method
from respodiff.methods.weight_edits import WeightEditAdapter
from respodiff.pipelines.source import ModelSource
from respodiff.steering.adapter import header_of
from respodiff.training.config import TrainConfig

WISH = Wish("a doctor", "gender", images=4)


def drawn(service: Service, wish: Wish) -> tuple[Path, list[pictures.Pair]]:
    out = service.new_place(RUNS, wish.prompt)
    return out, list(pictures.draw(service, wish, out, threading.Event()))


def digests(out: Path) -> list[str]:
    return [r.digest for side in SIDES for r in RunFolder(out / side).records()]


def test_pairs_have_the_same_noise_and_keep_the_shares(make_service: Callable[..., Service]) -> None:
    service = make_service(batch=3)
    out, pairs = drawn(service, replace(WISH, shares=(3, 1)))
    assert [p.asked for p in pairs].count("woman") == 3 and all(p.unsteered.is_file() and p.steered.is_file() for p in pairs)
    plain, steered = (RunFolder(out / side).records() for side in SIDES)
    assert [r.id for r in plain] == [r.id for r in steered] and not plain[0].concepts
    assert len(set(digests(out))) == 8


def test_a_stopped_run_keeps_its_images_and_frees_its_folder(make_service: Callable[..., Service]) -> None:
    service, stop = make_service(batch=1), threading.Event()
    out = service.new_place(RUNS, "a")
    steps = pictures.draw(service, WISH, out, stop)
    next(steps)
    stop.set()
    assert list(steps) == [] and len(RunFolder(out / "steered").records()) == 1
    with RunFolder(out / "steered").lock():
        pass


@pytest.mark.parametrize(("pairs", "kept"), [(1, 2), (2, 4)])
def test_a_stop_inside_a_batch_leaves_equal_sides(make_service: Callable[..., Service], pairs: int, kept: int) -> None:
    """After one pair of two, and while the next unsteered batch is drawn."""
    service, stop = make_service(batch=2), threading.Event()
    out = service.new_place(RUNS, "a")
    steps = pictures.draw(service, replace(WISH, images=6), out, stop)
    seen = [next(steps) for _ in range(pairs)]
    if pairs == 1:
        stop.set()
    hook = service.pipe.unet.register_forward_pre_hook(lambda *_: stop.set())
    try:
        seen += steps
    finally:
        hook.remove()
    assert len(seen) == kept and [len(RunFolder(out / side).records()) for side in SIDES] == [kept, kept]


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"prompt": " "}, "prompt"),
        ({"choice": "shoes"}, "attribute"),
        ({"safety": ("fire",)}, "safety"),
        ({"scale": 99.0}, "scale"),
        ({"shares": (0.0, -1.0)}, "shares"),
        ({"shares": (0.0, 0.0)}, "shares"),
        ({"images": 0}, "images"),
        ({"prompt": "word " * 500}, "prompt"),
    ],
)
def test_bad_input_is_one_line(service: Service, changes: dict[str, Any], argument: str) -> None:
    with pytest.raises(ValueError, match=argument) as error:
        drawn(service, replace(WISH, **changes))
    assert "\n" not in str(error.value) and not any((service.out / RUNS).glob("*/*"))


def test_one_that_is_stopped_at_once_leaves_no_folder(service: Service) -> None:
    stop, out = threading.Event(), service.new_place(RUNS, "a")
    stop.set()
    assert list(pictures.draw(service, WISH, out, stop)) == [] and not out.exists()


@pytest.fixture
def judging(make_service: Callable[..., Service], tmp_path: Path) -> Service:
    """A judge that sees a woman in one of four images."""
    table = tmp_path / "table.csv"
    table.write_text("id,gender\n" + "".join(f"{image_id('a doctor', i)},{'man' if i else 'woman'}\n" for i in range(4)))
    return make_service(f"table:{table}")


def test_both_sides_are_measured_against_the_wanted_shares(judging: Service) -> None:
    wish = replace(WISH, shares=(100, 0))
    out, _ = drawn(judging, wish)
    found = pictures.perceived(judging, wish, out)
    share = "1 of 4: 25 % [5, 70]"
    assert found.rows[0] == {"seen": "woman", "unsteered": share, "steered": share} and found.n == 4
    assert found.devrat == "unsteered 0.75, steered 0.75" and pictures.asked(judging, wish) == "100 % woman, 0 % man"


def test_a_caption_is_what_the_judge_sees(judging: Service) -> None:
    wish = replace(WISH, shares=(100, 0))
    out, pairs = drawn(judging, wish)
    captions = pictures.perceived(judging, wish, out).captions
    assert sorted(captions["unsteered"][p.unsteered] for p in pairs) == ["man", "man", "man", "woman"]
    assert sorted(captions["steered"][p.steered] for p in pairs) == [*["asked woman, seen man"] * 3, "woman"]


def test_without_an_attribute_none_is_counted(judging: Service) -> None:
    wish = Wish("a doctor", images=2)
    out, _ = drawn(judging, wish)
    assert pictures.perceived(judging, wish, out) == pictures.Seen() and "evaluate" not in pictures.script(judging, wish)


def test_downloads_are_named_after_the_folder(service: Service) -> None:
    out, pairs = drawn(service, WISH)
    zipped, code = pictures.download(service, WISH, out, len(pairs))
    assert (zipped.stem, code.stem) == (out.name, out.name)
    with zipfile.ZipFile(zipped) as file:
        names = file.namelist()
    assert all(name.startswith(f"{out.name}/") for name in names) and f"{out.name}/{code.name}" in names


def test_code_of_a_stopped_run_makes_what_was_made(service: Service) -> None:
    assert "in islice(images, 2):" in pictures.script(service, WISH, 2) and "images=4" in pictures.script(service, WISH, 2)
    assert "islice" not in pictures.script(service, WISH, 4)


def test_code_holds_the_text_as_it_is(service: Service) -> None:
    text = 'a \U0001f469 with "quotes" and a \\'
    compiled = ast.parse(pictures.script(service, replace(WISH, prompt=text), 4))
    assert text in {node.value for node in ast.walk(compiled) if isinstance(node, ast.Constant)}


def test_two_visitors_at_once_get_what_each_would_alone(service: Service) -> None:
    concept = trainings.concept_of("a person with a hat")
    config = TrainConfig(iterations=4, steps=4, rollouts=2, rollout_batch=2, batch=2, refresh_every=2)

    def module() -> Any:
        *_, last = trainings.follow(service, concept, config, Stop())
        assert last.file
        return last.file.read_bytes()

    alone, (out, _) = module(), drawn(service, WISH)
    together: list[Any] = []
    other = threading.Thread(target=lambda: together.append(module()))
    other.start()
    again = [drawn(service, WISH)[0] for _ in range(3)]
    other.join()
    assert together == [alone] and all(digests(folder) == digests(out) for folder in again)


def test_pictures_are_drawn_while_a_long_training_goes_on(service: Service) -> None:
    stop, started = Stop(), threading.Event()
    config = TrainConfig(iterations=5000, steps=4, rollouts=2, rollout_batch=2, batch=2, refresh_every=2)

    def training() -> None:
        for _ in trainings.follow(service, trainings.concept_of("a person with a hat"), config, stop):
            started.set()

    other = threading.Thread(target=training)
    other.start()
    try:
        assert started.wait(120) and len(drawn(service, WISH)[1]) == 4
        assert other.is_alive(), "nobody waited for its end"
    finally:
        stop.set()
        other.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    "wish",
    [
        Wish("a doctor", "gender", (3, 1), 1.2, ("violence",), True, 5, 2),
        Wish('a "hat" maker', "hat", images=2),
        Wish("a doctor", "gender", images=6),  # stopped
    ],
)
def test_the_script_makes_the_same_images(
    make_service: Callable[..., Service],
    embedded: Any,
    wish: Wish,
    tmp_path: Path,
    make_module: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hat = make_module("hat", shape=_shape(embedded), scale=0.1).save(tmp_path / "hat.safetensors")
    service = replace(make_service("embedded"), pipe=embedded, source=ModelSource("embedded"), given=(hat,))
    out, stop, pairs = service.new_place(RUNS, wish.prompt), threading.Event(), list[pictures.Pair]()
    for pair in pictures.draw(service, wish, out, stop):
        pairs.append(pair)
        if len(pairs) == 2:
            stop.set()
    rows, text = pictures.perceived(service, wish, out), pictures.script(service, wish, len(pairs))
    assert len(pairs) == min(wish.images, service.batch) and rows.devrat and len(text.splitlines()) <= 14
    (tmp_path / "same.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("same.py")
    assert digests(tmp_path) == digests(out)
    assert f"'{wish.choice if wish.choice == 'gender' else 'concept'}'" in capsys.readouterr().out


def _shape(pipe: Any) -> tuple[int, int, int]:
    from respodiff.methods.registry import load

    return tuple(load("woman").ram.shape[-3:])  # type: ignore[attr-defined, return-value]


def test_a_local_pipeline_is_loaded_as_it_was(service: Service) -> None:
    source = ModelSource("my model", "cuda", "bfloat16", safety_checker=False, variant="fp16", trains=True)
    text = pictures.script(replace(service, source=source), WISH)
    wanted = 'load_pipeline("my model", device="cuda", torch_dtype="bfloat16", safety_checker=False, variant="fp16", trains=True)'
    assert wanted in text and "evaluate" not in text


def test_an_adapter_of_a_whole_attribute_asks_for_equal_shares_and_no_concept(
    make_service: Callable[..., Service], tiny_pipe: Any, tmp_path: Path
) -> None:
    service = make_service(judge="embedded")
    concept = replace(find_concept("woman"), name="gender")
    header = header_of(tiny_pipe, "uce", concept, get_method("uce").settings(), kind="attribute")
    service.given = (*service.given, file := WeightEditAdapter(header, {}).save(tmp_path / "uce.safetensors"))
    (label,) = [name for name, choice in service.choices().items() if not choice.concepts]
    choice, wish = service.choices()[label], replace(WISH, choice=label)
    assert choice.attribute.names == ("woman", "man") and choice.sources == (str(file),)
    assert pictures.shares(service, wish) == {} and "target_proportions" not in pictures.settings(service, wish)[1]
