"""Audits by hand, on images that say by their colour what is in them; and the command, killed and gone on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from command import last_json, respodiff
from painted import GENDER, WORDS, ColourJudge, Painted, paint
from respodiff.cli import experiments, generate, train
from respodiff.concepts.concept import Attribute, Concept
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.audit import AttributeBias, MostDeviant, audit, stated_prompts, to_train
from respodiff.evaluation.evaluate import judge_all
from respodiff.evaluation.judges import FlagJudge
from respodiff.evaluation.metrics.fairness import bias_band, expected_devrat_random
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.experiments.audit import labels_from_texts, suggested
from respodiff.pipelines.source import ModelSource
from respodiff.reports.audit_report import lines, write

JOB = Attribute("job", (Concept("cook", "a cook"), Concept("guard", "a guard")))
HAT = Attribute("hat", (Concept("bare", "a person without"), Concept("hat", "a person with a hat")))
"""Words that the judge does not know: it takes the first of two zeros every time."""
ALL = (HAT, JOB, GENDER)


def rows(group: str, men: int, n: int = 16) -> list[Painted]:
    """Images of which some are men, and every second a guard."""
    return [(group, None, (i < men, i % 2, 0)) for i in range(n)]


def judged(folder: Path, painted: list[Painted], attributes: tuple[Attribute, ...] = ALL, **record: Any) -> ScoredRun:
    return judge_all(paint(folder, painted, **record), ColourJudge(), attributes, vocabulary=WORDS)


@pytest.fixture
def run(tmp_path: Path) -> ScoredRun:
    return judged(tmp_path / "run", [*rows("mechanic", 16), *rows("nurse", 1), *rows("writer", 9)])


@pytest.fixture
def stated(tmp_path: Path) -> ScoredRun:
    """Four images of every concept's own prompt, as a model would draw them that knows women, men, cooks and guards."""
    colours = {"a woman": (0, 0, 0), "a man": (1, 0, 0), "a cook": (0, 0, 0), "a guard": (0, 1, 0)}
    painted = [(p.group, None, colours.get(p.group, (0, 0, 0))) for p in stated_prompts(ALL) for _ in range(4)]
    return judged(tmp_path / "stated", painted, subject=None, suite="stated")


def test_prompts_are_ranked_by_the_least_bias_that_all_intervals_allow(run: ScoredRun) -> None:
    found = audit(run, None, [JOB, GENDER])
    assert len(found.ranking) == 6 and found.summary.n == 48
    first, second, third, *rest = found.ranking
    assert [(r.attribute, r.prompt) for r in (first, second, third)] == [
        ("gender", "mechanic"),
        ("gender", "nurse"),
        ("gender", "writer"),
    ]
    each = bias_band([0, 16], [0.5, 0.5], 1 - 0.05 / 6)
    assert (first.devrat.mean, first.devrat.low, first.devrat.high) == (each.mean, each.low, each.high) and each.mean == 1
    assert first.devrat.random == pytest.approx(expected_devrat_random([16], 2)) and first.counts == {"woman": 0, "man": 16}
    assert first.most_deviant == MostDeviant("man", 1.0, 0.5) and second.most_deviant.concept == "woman"
    assert first.p == pytest.approx(2 * 0.5**16) and first.p_holm == pytest.approx(6 * 2 * 0.5**16)
    assert second.p_holm == pytest.approx(5 * 2 * 17 * 0.5**16), "the second of six tests counts five times"
    assert [r.biased for r in found.ranking] == [True, True, False, False, False, False]
    assert {r.attribute for r in rest} == {"job"} and all(r.devrat.mean == 0 for r in rest)


def test_attributes_are_ranked_by_how_far_they_are_above_their_floor(run: ScoredRun) -> None:
    gender, job = audit(run, None, [JOB, GENDER]).attributes
    assert (gender.attribute, gender.biased, job.attribute, job.biased) == ("gender", True, "job", False)
    assert gender.devrat.mean == pytest.approx((1 + 14 / 16 + 2 / 16) / 3)
    assert gender.above_random == pytest.approx(gender.devrat.mean - expected_devrat_random([16] * 3, 2)) and job.above_random < 0
    assert gender.proportions["man"].mean == pytest.approx(26 / 48) and gender.judge_validity is None
    assert gender.p_holm < 0.001 and job.p_holm == 1


def test_what_the_judge_cannot_tell_is_no_finding(run: ScoredRun, stated: ScoredRun) -> None:
    found = audit(run, stated, ALL)
    gender, _, hat = found.attributes
    assert hat.attribute == "hat" and hat.devrat.mean == 1, "it answers the same every time"
    assert not hat.biased and hat.judge_validity.mean == 0.5 and not hat.judge_validity.beyond_chance
    told = gender.judge_validity
    assert (told.mean, told.n, told.beyond_chance, told.enough) == (1.0, 8, True, True)
    assert [r.attribute for r in found.ranking[-3:]] == ["hat"] * 3 and not any(r.biased for r in found.ranking[-3:])
    assert to_train(found.attributes) == ["woman", "man"]
    assert audit(run, None, ALL).attributes[0].attribute == "hat", "unchecked it would come first"


def test_shares_of_ones_own_are_what_bias_is_from(tmp_path: Path) -> None:
    wanted = Attribute("gender", GENDER.concepts, (0.25, 0.75))
    found = audit(judged(tmp_path / "r", rows("guard", 12), (wanted,)), None, [wanted])
    assert found.ranking[0].devrat.mean == 0 and found.ranking[0].p == 1
    assert found.attributes[0].wanted == {"woman": 0.25, "man": 0.75}


def test_a_product_is_trained_by_its_parts_where_these_are_biased(run: ScoredRun) -> None:
    one = audit(run, None, [GENDER]).attributes[0]

    def row(name: str, biased: bool, *concepts: str) -> AttributeBias:
        return replace(one, attribute=name, biased=biased, concepts=dict.fromkeys(concepts, ""))

    ranked = [row("a*b", True, "x*u", "y*u"), row("a", True, "x", "y"), row("c", False, "z")]
    assert to_train(ranked) == ["x*u", "y*u"], "b is not among the findings, and a's modules would be in the way"
    assert to_train([*ranked, row("b", True, "u", "v")]) == ["x", "y", "u", "v"]


def test_unknown_is_counted_and_in_no_share(tmp_path: Path) -> None:
    folder = paint(tmp_path / "r", rows("guard", 16))
    (folder.path / folder.records()[0].file).unlink()
    found = audit(judge_all(folder, ColourJudge(), [GENDER], vocabulary=WORDS), None, [GENDER])
    assert (found.summary.unknown, found.ranking[0].devrat.n, found.ranking[0].unknown) == (1, 15, 1)
    assert "1 image missing" in found.problems[0]


def test_page_and_console_say_the_same(run: ScoredRun, stated: ScoredRun, tmp_path: Path) -> None:
    found = replace(audit(run, stated, ALL), suggest=("respodiff train --concept woman",), command="respodiff audit")
    said = "\n".join(lines(found))
    assert "gender: mean DevRat 0.667" in said and "2 of 3 prompts shown to be biased" in said
    assert "mechanic: man 16 of 16 (wanted 0.500), DevRat 1.000 [" in said and "hat: mean DevRat" in said
    assert "judge not valid, what a prompt states is seen in 0.500" in said and "respodiff train --concept woman" in said
    page = write(tmp_path / "audit.html", found, run).read_text()
    for text in (
        "gender: man 16 of 16 (wanted 0.500)",
        "judge not valid",
        "respodiff train --concept woman",
        "Bonferroni",
        "48 images",
    ):
        assert text in page
    assert page.count("<img") == 3 * 12 and "https://" not in page
    assert (
        "gender (on 2 of 3 prompts taken by themselves). In 16 of 16 images, “mechanic” looked like a man; expected 8. Not shown to be recognised by this judge: hat."
        in page
    )
    assert "<pre>respodiff train --concept woman</pre>" in page and "<h3>mechanic</h3>" in page and "gender: woman</span>" in page
    assert "gender, all 3 prompts" in page and "hat, all" not in page and "hat: bare" not in page, "its figures mean nothing"
    kept = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert {"attribute", "prompt", "devrat", "low", "high"} <= set(kept["ranking"][0]) and kept["ranking"][0]["devrat"] == 1.0


# --- the command ---

COMMAND = ["audit", "--prompt", "a cook", "--prompt", "a guard", "--attributes", "gender", "--images", "3", "--validation-images", "1"]


@pytest.fixture
def tiny(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A model of random weights and a judge of colours; counts calls of the model."""
    calls = [0]
    tiny_pipe.unet.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    monkeypatch.setattr(experiments, "open_model", lambda *_: tiny_pipe)
    monkeypatch.setattr(experiments, "load_judges", lambda *_: [ColourJudge()])
    return calls


def test_a_killed_audit_goes_on(tiny: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*COMMAND, "--steps", "1", "--batch", "1"]
    whole = last_json(respodiff(*command, "--out", str(tmp_path / "whole"), "--json"))
    assert tiny == [8], "2 prompts x 3, and one of each of two concepts"
    real, added = RunFolder.add_all, [0]

    def killed(self: RunFolder, *given: Any) -> Any:
        added[0] += 1
        if added[0] == 5:
            raise KeyboardInterrupt
        return real(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "add_all", killed)
        done = respodiff(*command, "--out", str(tmp_path / "cut"))
    assert done.returncode == 1 and "audit with the same command" in done.stderr and tiny == [13]
    again = last_json(respodiff(*command, "--out", str(tmp_path / "cut"), "--json"))
    assert tiny == [17], "the image that was being kept is drawn again, and the three that were not"
    for key in ("ranking", "attributes", "problems", "images_required"):
        assert again[key] == whole[key]
    assert last_json(respodiff(*command, "--out", str(tmp_path / "cut"), "--json"))["ranking"] == whole["ranking"] and tiny == [17]
    assert json.loads((tmp_path / "cut" / "audit.json").read_text())["ranking"] == whole["ranking"]
    assert (tmp_path / "cut" / "audit.html").is_file()


def test_another_attribute_needs_no_other_images(tiny: list[int], tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[job]\nconcepts = { cook = "a cook", guard = "a guard" }\n')
    last_json(respodiff(*COMMAND, "--steps", "1", "--batch", "1", "--out", str(tmp_path / "a"), "--json"))
    more = ["--attributes", "gender,job", "--concepts", str(own), "--steps", "1", "--batch", "1", "--out", str(tmp_path / "a"), "--json"]
    found = last_json(respodiff(*COMMAND[:5], *COMMAND[7:], *more))
    assert tiny == [8 + 2] and {r["attribute"] for r in found["ranking"]} == {"gender", "job"} and len(found["ranking"]) == 4
    assert any("1 images of every concept's own prompt are too few to show that the judge recognises" in line for line in found["problems"])
    assert any(
        "3 images a prompt are too few to show any single prompt to be biased (4 questions" in line and "--images 8" in line
        for line in found["problems"]
    )


def test_long_prompts_are_cut_off_where_that_is_asked(tiny: list[int], tmp_path: Path) -> None:
    command = ["audit", "--prompt", "a cook " * 99, "--attributes", "gender", "--images", "2", "--validation-images", "0", "--steps", "1"]
    done = respodiff(*command, "--out", str(tmp_path / "a"))
    assert done.returncode == 2 and "--truncate-prompts" in done.stderr and tiny == [0] and not (tmp_path / "a").exists()
    found = last_json(respodiff(*command, "--truncate-prompts", "--out", str(tmp_path / "a"), "--json"))
    assert len(found["ranking"]) == 1 and json.loads((tmp_path / "a" / "run" / "run.json").read_text())["truncate_prompts"]


def test_too_few_images_are_said_of_the_attributes_that_need_more(tiny: list[int], tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[sort]\nconcepts = { cook = "a cook", guard = "a guard", flower = "a tulip" }\n')
    command = [
        *COMMAND[:5],
        "--attributes",
        "gender,sort",
        "--concepts",
        str(own),
        "--images",
        "6",
        "--validation-images",
        "0",
        "--steps",
        "1",
    ]
    found = last_json(respodiff(*command, "--out", str(tmp_path / "a"), "--json"))
    assert {a["attribute"]: a["images_required"] for a in found["attributes"]} == {"gender": 8, "sort": 5} and found["images_required"] == 8
    assert any("6 images a prompt are too few to show any single prompt to be biased for gender (4" in line for line in found["problems"])


def test_suggested_commands_can_be_run(
    run: ScoredRun, tmp_path: Path, make_module: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = audit(run, None, [JOB, GENDER])
    config = experiments.GenerateConfig(images=16, policy="none", steps=20, guidance=3.0, truncate_prompts=True)
    where = {"suite": "", "prompt": ["a cook"], "prompts": None}
    *trainings, drawing, report = suggested(
        found,
        tmp_path,
        config,
        where,
        model=ModelSource("my model", variant="fp16", lora=("a.safetensors:0.5",)),
        concepts=None,
        judge="embedded",
    )
    seen: list[Any] = []
    monkeypatch.setattr(train, "open_model", lambda *given: given)
    monkeypatch.setattr(train, "Checkpoint", lambda out, *_: SimpleNamespace(out=out, check_out=lambda *_: None))
    done = dict.fromkeys(("iterations", "seconds", "unet_forwards", "loss_first", "loss_last"), 0.0)
    about = {"file": "", "concept": "", "effect": None, "relative_norm": None, "projection": None}
    monkeypatch.setattr(train, "_trained", lambda chosen, files, *_: (seen.append((chosen[0].name, files[0])) or [about], done))
    monkeypatch.setattr(generate, "open_model", lambda *given: given)
    monkeypatch.setattr(generate, "_draw", lambda *given: seen.append(given) or {"images": 0, "skipped": 0, "images_per_second": 0.0})
    for i, command in enumerate(trainings):
        assert respodiff(*shlex.split(command)[1:]).returncode == 0
        name, out = seen[-1]
        make_module(name, "gender", seed=i).save(out)
    assert [name for name, _ in seen] == ["woman", "man"]
    assert respodiff(*shlex.split(drawing)[1:]).returncode == 0
    run, (model,), *_ = seen[-1]
    assert run.config.truncate_prompts
    assert (run.out, run.prompts, [m.name for m in run.modules], run.config.images, model.source, model.variant, model.lora) == (
        tmp_path / "steered",
        ["a cook"],
        ["woman", "man"],
        16,
        "my model",
        "fp16",
        ("a.safetensors:0.5",),
    )
    assert shlex.split(report)[:4] == ["respodiff", "report", f"plain={tmp_path / 'run'}", f"steered={tmp_path / 'steered'}"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--attributes", "gender,colour"], "attribute 'colour' is unknown"),
        (["--attributes", "gender,gender"], "--attributes has 'gender' twice"),
        (["--prompts", "absent.txt"], "'absent.txt' cannot be read"),
        (["--judge", "table:absent.csv"], "absent.csv"),
    ],
)
def test_refusals_come_before_anything_is_drawn(more: list[str], said: str, tmp_path: Path) -> None:
    done = respodiff("audit", *more, cwd=tmp_path)
    assert done.returncode in (1, 2) and said in done.stderr and done.stderr.count("\n") == 1 and not (tmp_path / "audit").exists()


def test_a_judge_that_tells_no_attribute_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = type("Flags", (FlagJudge,), {"name": "nudenet"})()
    monkeypatch.setattr(experiments, "load_judges", lambda *_: [flags])
    done = respodiff("audit", "--judge", "nudenet", "--out", "audit", cwd=tmp_path)
    assert done.returncode == 2 and "--judge is nudenet, which tells no attributes" in done.stderr and not (tmp_path / "audit").exists()


def test_the_validity_of_a_judge_is_measured_if_it_looks_at_images() -> None:
    kinds = {kind: labels_from_texts([SimpleNamespace(kind="flags"), SimpleNamespace(kind=kind)]) for kind in ("texts", "answers", "table")}
    assert kinds == {"texts": True, "answers": True, "table": False}
