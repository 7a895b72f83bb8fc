"""Target proportions by group of prompts: from the table to the draw, and what DevRat measures then."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import last_json, respodiff
from painted import GENDER, WORDS, ColourJudge, paint
from respodiff.cli import generate as cli_generate
from respodiff.data.records import Prompt
from respodiff.data.run_folder import RunFolder
from respodiff.data.target_proportions import read_group_proportions
from respodiff.evaluation.comparison import compare
from respodiff.evaluation.evaluate import evaluate, judge_all
from respodiff.evaluation.metrics.fairness import dev_rat, expected_devrat_random, mean_dev_rat
from respodiff.evaluation.metrics.paired import devrat_test
from respodiff.evaluation.scored_run import load_scored_run
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate

HEAD = "group,alternative,share\n"
GROUPS, NAMES = ["doctor", "nurse", "chef"], {"gender": ("woman", "man")}


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "shares.csv"
    path.write_text(text, encoding="utf-8")
    return path


# --- the table ---


def test_a_table_is_read(tmp_path: Path) -> None:
    path = table(tmp_path, "alternative,share,group\nwoman,0.3,doctor\nman,.7,doctor\nwoman,1,nurse\n")
    with pytest.warns(UserWarning, match=r"shares\.csv has no shares for 1 of the groups \(chef\)"):
        found = read_group_proportions(path, NAMES, GROUPS)
    assert found == {"doctor": {"gender": {"woman": 0.3, "man": 0.7}}, "nurse": {"gender": {"woman": 1.0}}}


@pytest.mark.filterwarnings("ignore:.*has no shares for")
def test_an_attribute_is_named_where_it_must_be(tmp_path: Path) -> None:
    both = {"gender": ("woman", "man"), "gender3": ("woman", "man", "nonbinary")}
    path = table(
        tmp_path, "group,attribute,alternative,share\ndoctor,gender3,woman,0.5\ndoctor,gender3,nonbinary,0.5\ndoctor,gender,man,1\n"
    )
    found = read_group_proportions(path, both, GROUPS)
    assert found["doctor"] == {"gender3": {"woman": 0.5, "nonbinary": 0.5}, "gender": {"man": 1.0}}
    with pytest.raises(ValueError, match=r"line 2: 'woman' is of gender and of gender3; add a column 'attribute'"):
        read_group_proportions(table(tmp_path, HEAD + "doctor,woman,1\n"), both, GROUPS)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("doctor,woman,0.3\ndoctor,man,0.6\n", r"shares\.csv, line 2: shares of gender for group 'doctor' sum to 0\.9; they must sum to 1"),
        ("doctor,woman,1\npilot,woman,1\n", r"line 3: group 'pilot' is unknown; the prompts have doctor, nurse, chef"),
        ("doctor,woman,.5\ndoctor,robot,.5\n", r"line 3: alternative 'robot' is unknown; allowed: woman, man"),
        ("doctor,woman,.5\ndoctor,woman,.5\n", r"line 3: 'woman' of group 'doctor' is said twice"),
        ("doctor,woman,half\n", r"line 2: share is 'half'; allowed: a finite number"),
        (f"doctor,woman,{10**400}\n", r"line 2: share is '1000.*; allowed: a finite number"),
        ("doctor,woman,-0.5\ndoctor,man,1.5\n", r"line 2: share is '-0\.5'; allowed: a number from 0 to 1"),
        ("doctor,woman,\n", r"line 2: share is ''; allowed: a number from 0 to 1"),
        ("", r"has no rows; give group,alternative,share"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path: Path, rows: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_group_proportions(table(tmp_path, HEAD + rows), NAMES, GROUPS)


def test_a_wrong_attribute_is_named(tmp_path: Path) -> None:
    path = table(tmp_path, "group,attribute,alternative,share\ndoctor,sex,woman,1\n")
    with pytest.raises(ValueError, match="line 2: alternative 'woman' of attribute 'sex' is unknown; allowed: woman, man"):
        read_group_proportions(path, NAMES, GROUPS)


# --- drawing ---


@pytest.fixture
def three(make_module: Callable[..., Any]) -> list[Any]:
    return [make_module(n, "gender3", seed=i) for i, n in enumerate(("woman", "man", "nonbinary"))]


def drawn(pipe: Any, modules: list[Any], images: int, **changes: Any) -> dict[str, Counter[str]]:
    prompts = [Prompt(id=f"o/{g}", text=f"a {g}", group=g) for g in GROUPS]
    config = GenerateConfig(images=images, steps=1, **changes)
    out: dict[str, Counter[str]] = {g: Counter() for g in GROUPS}
    for record, _ in generate(pipe, prompts, modules, config):
        out[record.group].update(record.concepts.values())
    return out


def test_every_group_is_drawn_by_its_own_shares(tiny_pipe: Any, three: list[Any]) -> None:
    own = {"doctor": {"gender3": {"woman": 0.5, "man": 0.25, "nonbinary": 0.25}}, "nurse": {"gender3": {"nonbinary": 1.0}}}
    found = drawn(tiny_pipe, three, 4, group_proportions=own, target_proportions={"gender3": {"woman": 0.75, "man": 0.25}})
    assert found["doctor"] == {"woman": 2, "man": 1, "nonbinary": 1}
    assert found["nurse"] == {"nonbinary": 4}
    assert found["chef"] == {"woman": 3, "man": 1}, "a group without its own has the run's"
    random = drawn(tiny_pipe, three, 4, group_proportions=own, policy="random")
    assert random["nurse"] == {"nonbinary": 4} and sum(random["chef"].values()) == 4


def test_three_alternatives_come_out_exact(tiny_pipe: Any, three: list[Any]) -> None:
    assert all(set(c.values()) == {2} and len(c) == 3 for c in drawn(tiny_pipe, three, 6).values())


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"pilot": {"gender3": {"woman": 1.0}}}, "group_proportions has group 'pilot', which no prompt is of"),
        ({"nurse": {"gender3": {"woman": 0.9}}}, r"group 'nurse': shares sum to 0\.9"),
        ({"nurse": {"tone": {"dark": 1.0}}}, "group 'nurse': proportions are given for 'tone', but no concept of it is steered"),
    ],
)
def test_wrong_shares_of_a_group_are_refused(tiny_pipe: Any, three: list[Any], own: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        drawn(tiny_pipe, three, 4, group_proportions=own)


def test_from_the_command_line(tiny_pipe: Any, make_module: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_generate, "open_model", lambda *_: tiny_pipe)
    modules = [str(make_module(n, "gender", seed=i).save(tmp_path / f"{n}.st")) for i, n in enumerate(("woman", "man"))]
    command = ["generate", "--prompt", "a nurse", "--prompt", "a chef", "--images", "4", "--steps", "1", "--json"]
    command += [
        "--module",
        modules[0],
        "--module",
        modules[1],
        "--group-proportions",
        str(table(tmp_path, HEAD + "a nurse,woman,.25\na nurse,man,.75\n")),
    ]
    done = respodiff(*command, "--out", str(tmp_path / "run"))
    last_json(done)
    assert "has no shares for 1 of the groups (a chef)" in done.stderr
    run = RunFolder(tmp_path / "run")
    counts = {g: Counter(r.concepts["gender"] for r in run.records() if r.group == g) for g in ("a nurse", "a chef")}
    assert counts == {"a nurse": {"woman": 1, "man": 3}, "a chef": {"woman": 2, "man": 2}}
    assert run.settings()["group_proportions"] == {"a nurse": {"gender": {"woman": 0.25, "man": 0.75}}}
    table(tmp_path, HEAD + "a nurse,woman,.3\n")
    refused = respodiff(*command, "--out", str(tmp_path / "other"))
    assert refused.returncode == 2 and "shares.csv, line 2: shares of gender for group 'a nurse' sum to 0.3" in refused.stderr
    assert refused.stderr.count("\n") == 1 and not (tmp_path / "other").exists()


# --- measuring ---


def test_devrat_against_each_groups_own_target_by_hand() -> None:
    counts, proportions = [[3, 1], [1, 3], [2, 2]], [[0.75, 0.25], [0.75, 0.25], [0.5, 0.5]]
    each = [0.0, (0.75 - 0.25) / 0.75, 0.0]
    assert dev_rat(counts, proportions) == pytest.approx(each)
    assert dev_rat(
        [
            [0, 4],
            [
                4,
                0,
            ],
        ],
        [[0.9, 0.1], [0.2, 0.8]],
    ) == pytest.approx([1.0, 1.0]), "all of what is wanted least"
    found = mean_dev_rat(counts, proportions=proportions, n_bootstrap=200)
    assert found.mean == pytest.approx(sum(each) / 3) and found.low < found.mean < found.high
    turned = mean_dev_rat([counts[i] for i in (2, 0, 1)], proportions=[proportions[i] for i in (2, 0, 1)], n_bootstrap=200)
    assert turned == found, "the order of the groups has no influence"
    assert mean_dev_rat(counts, proportions=[0.75, 0.25]) == mean_dev_rat(counts, proportions=[[0.75, 0.25]] * 3)
    assert expected_devrat_random([5, 2], 2, [[1.0, 0.0], [0.5, 0.5]]) == pytest.approx((0.0 + 0.5) / 2)
    with pytest.raises(ValueError, match="proportions must be"):
        mean_dev_rat(counts, proportions=proportions[:2])
    with pytest.raises(ValueError, match="sum to 1"):
        dev_rat(counts, [[0.75, 0.25], [0.75, 0.35], [0.5, 0.5]])


def test_pairs_are_tested_against_each_groups_own_target() -> None:
    proportions = [[0.75, 0.25], [0.25, 0.75]]
    labels = np.array([["w", "w", "w", "m", "w", "m", "m", "m"], ["m", "m", "m", "m", "w", "m", "m", "m"]])
    groups = ["a"] * 4 + ["b"] * 4
    found = devrat_test(labels[1], labels[0], groups, ["w", "m"], proportions=proportions, n_bootstrap=100).difference
    assert found.mean == pytest.approx(0.5)
    turned = devrat_test(labels[1][::-1], labels[0][::-1], groups[::-1], ["w", "m"], proportions=proportions, n_bootstrap=100).difference
    assert turned == found


RED, BLACK = (1, 0, 0), (0, 0, 0)


def test_a_run_is_held_against_the_shares_of_its_groups(tmp_path: Path) -> None:
    own = {"cook": {"gender": {"woman": 0.75, "man": 0.25}}}
    rows = [("cook", None, c) for c in (BLACK, BLACK, BLACK, RED)] + [("guard", None, c) for c in (BLACK, BLACK, BLACK, RED)]
    run = paint(tmp_path / "run", rows, settings={"group_proportions": own})
    found = evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS, n_bootstrap=100)
    by = {g: d.mean for g, d in found.devrat_by["gender"].items()}
    assert by == pytest.approx({"cook": 0.0, "guard": 0.5}) and found.devrat["gender"].mean == pytest.approx(0.25)
    header = json.loads(next((tmp_path / "run" / "scores").glob("*.json")).read_text())
    assert header["group_proportions"] == {"gender": {"cook": {"woman": 0.75, "man": 0.25}}}

    plain = paint(tmp_path / "plain", rows)
    assert evaluate(plain, ColourJudge(), [GENDER], vocabulary=WORDS, n_bootstrap=100).devrat["gender"].mean == pytest.approx(0.5)
    given = {g: {"gender": {"woman": 0.75, "man": 0.25}} for g in ("cook", "guard")}
    found = evaluate(plain, ColourJudge(), [GENDER], vocabulary=WORDS, n_bootstrap=100, group_proportions=given)
    assert found.devrat["gender"].mean == pytest.approx(0.0)
    assert load_scored_run(plain).wanted("gender", "guard") == {"woman": 0.75, "man": 0.25}
    with pytest.raises(ValueError, match=r"group_proportions of gender for group 'cook': shares sum to 0\.5"):
        evaluate(plain, ColourJudge(), [GENDER], vocabulary=WORDS, group_proportions={"cook": {"gender": {"woman": 0.5}}})


def test_two_runs_are_compared_on_the_second_runs_targets(tmp_path: Path) -> None:
    own = {"guard": {"gender": {"woman": 0.25, "man": 0.75}}}
    before = paint(tmp_path / "a", [("cook", None, BLACK)] * 4 + [("guard", None, BLACK)] * 4)
    after = paint(
        tmp_path / "b",
        [("cook", None, c) for c in (RED, RED, BLACK, BLACK)] + [("guard", None, c) for c in (RED, RED, RED, BLACK)],
        settings={"group_proportions": own},
    )
    a, b = (judge_all(run, ColourJudge(), [GENDER], vocabulary=WORDS) for run in (before, after))
    test = compare(a, b).tested("devrat", "gender")
    assert test is not None and test.mean == pytest.approx(0.0 - (1.0 + 1.0) / 2), "cook 1 to 0, and guard 1 to 0 by its own proportions"


def test_a_table_of_shares_for_evaluate(tmp_path: Path) -> None:
    paint(tmp_path / "run", [("cook", None, BLACK)] * 3)
    wrong = table(tmp_path, HEAD + "pilot,woman,1\n")
    done = respodiff("evaluate", str(tmp_path / "run"), "--group-proportions", str(wrong))
    assert (
        done.returncode == 2 and "line 2: group 'pilot' is unknown; the prompts have cook" in done.stderr and done.stderr.count("\n") == 1
    )
