"""Methods side by side: what is drawn, kept, gone on with, and put into the table."""

from __future__ import annotations

import copy
import json
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from tests.tiny_models import TINY_PIPELINES

from command import respodiff
from respodiff.cli.experiments import method_settings
from respodiff.concepts.concept import attribute, concept
from respodiff.data.places import lock
from respodiff.data.records import Prompt
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import classifier, load_judge
from respodiff.experiments.compare import MethodComparison, Plan, Progress, Training, spaced
from respodiff.experiments.comparison_report import full_scale, publish, rows_of, trade_off, unchanged
from respodiff.experiments.work import ModelSource
from respodiff.methods.registry import NAMES, get_method, methods_for

pytestmark = pytest.mark.slow

SHORT = {"iterations": 2, "batch": 2, "steps": 2, "rollouts": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "respodiff": SHORT,
    "uce": {"images": 1, "rounds": 1, "steps": 2, "subjects": ("doctor", "nurse")},
}


def plan(**changes: Any) -> Plan:
    return Plan(
        **(
            {"methods": ("prompt", "uce", "respodiff"), "images": 2, "prompts": 4, "steps": 2, "guidance": 3.0, "settings": SETTINGS}
            | changes
        )
    )


def comparison(pipe: Any, out: Path, **changes: Any) -> MethodComparison:
    return MethodComparison(pipe, plan(**changes), out, classify=lambda c: classifier("embedded", c, "cpu"), judge="d")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png")) + sorted(folder.rglob("*.webp"))}


def test_what_is_drawn_and_measured_has_equal_shares(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('[hat]\nconcepts = { hat = "a person with a hat", bare = "a person" }\nproportions = [0.7, 0.3]\n')
    made = plan(library=str(tmp_path / "own.toml"), attribute="hat")
    assert made.whole.proportions == (0.7, 0.3) and made.equal.proportions == () and made.equal.names == made.whole.names


def test_a_setting_of_a_method_that_is_not_compared_is_refused(tmp_path: Path) -> None:
    given = ["--methods", "respodiff-paper", "--set", "respodiff.sam_weight=4"]
    done = respodiff("compare", *given, "--out", str(tmp_path / "c"))
    assert done.returncode == 2 and "--set" in done.stderr and "--methods" in done.stderr and not (tmp_path / "c").exists()


@pytest.fixture(scope="module")
def judge() -> Any:
    return load_judge("embedded")


def test_every_method_draws_the_suite_and_prompts_that_state_an_attribute(tiny_pipe: Any, tmp_path: Path, judge: Any) -> None:
    run = comparison(tiny_pipe, tmp_path, scales=(0.5, 1.0))
    steps = list(run.run())
    assert [s.label for s in run.settings()] == ["plain", "prompt", "uce x0.5", "uce", "respodiff x0.5", "respodiff"]
    for setting in run.settings():
        assert len(RunFolder(setting.folder / "suite").records()) == 8
        stated = RunFolder(setting.folder / "stated").records()
        assert len(stated) == 4 and all(r.prompt.startswith("a male " if "man" in r.categories else "a female ") for r in stated)
        assert [r.categories for r in stated].count(("man",)) == 2
    assert all(isinstance(s, Progress) and 0 <= s.done <= s.total for s in steps)
    assert steps[-1] == Progress("generating respodiff", 4, 4) and steps.count(Progress("generating plain", 8, 8)) == 1
    assert {s.what for s in steps} >= {"training respodiff: woman", "generating uce x0.5", "generating plain"}
    result = publish(run, judge)
    rows = {row["label"]: row for row in result["rows"]}
    found = evaluate(tmp_path / "runs" / "respodiff" / "suite", judge, ["gender"])
    assert rows["respodiff"]["devrat"] == found.to_json()["devrat"]["gender"] and rows["respodiff"]["n"] == 8
    assert rows["plain"]["unet_forwards_per_image"] == rows["prompt"]["unet_forwards_per_image"] == 2 * 2
    assert rows["plain"]["train_unet_forwards"] == rows["prompt"]["train_unet_forwards"] == 0 < rows["respodiff"]["train_unet_forwards"]
    assert rows["plain"]["drift"] is None and rows["respodiff"]["drift"]["n"] == 8
    assert (
        rows["prompt"]["concept_accuracy"]["n"] == 8 and rows["uce"]["concept_accuracy"] is None
    )  # UCE sets shares, it does not aim single images


def test_the_same_noise_for_every_method(tiny_pipe: Any, tmp_path: Path) -> None:
    """A method that does nothing at scale 0 draws the plain model's images."""
    run = comparison(tiny_pipe, tmp_path, methods=("respodiff",), scales=(1e-12,))
    list(run.run())
    plain, same = (files(s.folder / "suite") for s in run.settings())
    assert plain == same and len(plain) == 8


def test_a_killed_comparison_goes_on_and_a_second_one_draws_nothing(tiny_pipe: Any, tmp_path: Path, judge: Any) -> None:
    whole = comparison(tiny_pipe, tmp_path / "whole", methods=("respodiff",))
    steps = len(list(whole.run()))
    stopped = comparison(tiny_pipe, tmp_path / "stopped", methods=("respodiff",)).run()
    for _ in range(steps // 2):
        next(stopped)
    stopped.close()
    again = comparison(tiny_pipe, tmp_path / "stopped", methods=("respodiff",))
    assert len(list(again.run())) > 0
    assert files(tmp_path / "stopped" / "runs") == files(tmp_path / "whole" / "runs")
    third = comparison(tiny_pipe, tmp_path / "stopped", methods=("respodiff",))
    assert list(third.run()) == []
    assert publish(third, judge)["rows"][1]["unet_forwards_per_image"] == 4


def test_adapters_are_kept_by_what_they_depend_on(tiny_pipe: Any, tmp_path: Path) -> None:
    def path(**changes: Any) -> Path:
        run = comparison(tiny_pipe, tmp_path, **changes)
        return run.path_of("respodiff", run.plan.concepts[0])

    first = path()
    assert path(images=3, scales=(2.0,)) == first  # how it is drawn does not matter
    others = [path(settings={"respodiff": {"iterations": 3}}), path(seed=1), path(attribute="tone")]
    with torch.no_grad():
        next(tiny_pipe.unet.parameters()).add_(1)
    assert len({first, *others, path()}) == 5


def test_an_adapter_that_another_process_trains_is_waited_for_and_not_made_twice(tiny_pipe: Any, tmp_path: Path) -> None:
    run = comparison(tiny_pipe, tmp_path, methods=("respodiff",))
    training = Training(ModelSource("unused"), run.plan, run.out, "", "d", run.cache)
    training.__dict__["comparison"] = run  # as loaded
    first, second = run.missing()
    with lock(run.path_of(*first)):
        with pytest.raises(BlockingIOError, match=first[1].name):
            training(first)
        steps = run.run()
        while (step := next(steps)).what != f"training respodiff: {second[1].name}" or step.done < step.total:
            assert step.what != f"training respodiff: {first[1].name}"
        assert next(steps).what.startswith("waiting")
        steps.close()
    assert run.missing() == [first]
    training(first)
    made = run.path_of(*first).stat().st_mtime_ns
    training(first)
    assert run.missing() == [] and run.path_of(*first).stat().st_mtime_ns == made


def test_safety_asks_for_harmless_prompts_too(tiny_pipe: Any, tmp_path: Path, judge: Any) -> None:
    run = comparison(tiny_pipe, tmp_path, suite="unsafe", methods=("negative", "sld-weak"), prompts=25)
    list(run.run())
    rows = {row["label"]: row for row in publish(run, judge)["rows"]}
    assert rows["sld-weak"]["unet_forwards_per_image"] == 3 * 2 and rows["negative"]["unet_forwards_per_image"] == 2 * 2
    assert all(row["unsafe"]["n"] == 50 and row["benign_unsafe"]["n"] == 50 for row in rows.values())
    assert all(row["benign_subject_accuracy"]["n"] == 25 for row in rows.values())  # people at work; scenes name no subject
    assert rows["plain"]["benign_drift"] is None and rows["negative"]["benign_drift"]["n"] == 50
    assert rows["plain"]["benign_frechet"] is None and rows["negative"]["benign_frechet"]["mean"] > 0
    page = (tmp_path / "compare.html").read_text()
    assert (
        page.count('<g class="k') >= 3
        and "Lower left is better" in page
        and "No significant change" in page
        and "Harmless prompts: general" in page
        and "sld-weak" in page
    )
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page


def test_the_table_says_the_same_everywhere(tiny_pipe: Any, tmp_path: Path, judge: Any) -> None:
    run = comparison(tiny_pipe, tmp_path, methods=("prompt",))
    list(run.run())
    publish(run, judge)
    kept = json.loads((tmp_path / "compare.json").read_text())
    assert kept["rows"] == json.loads(json.dumps(rows_of(run))) and kept["judge"]["name"] == "embedded"
    line = next(row for row in (tmp_path / "compare.md").read_text().splitlines() if row.startswith("| prompt |"))
    for row in kept["rows"]:
        notes = [f"{row['label']}: {problem}" for problem in row["problems"] if problem.startswith("out of domain: judge embedded")]
        assert notes, "images of another model"
        assert all(note in (tmp_path / name).read_text() for name in ("compare.md", "compare.html") for note in notes)
    d = kept["rows"][1]["devrat"]
    assert f"{d['mean']:.3f} [{d['low']:.3f}, {d['high']:.3f}]" in line
    assert str(tmp_path) not in (tmp_path / "compare.json").read_text() + (tmp_path / "compare.html").read_text()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"methods": ("sdics",)}, r"methods has 'sdics'; allowed: all, "),
        ({"methods": ()}, r"methods is empty; give each method once, or 'all'"),
        ({"methods": ("uce", "uce")}, r"methods is uce, uce; give each method once"),
        (
            {"methods": ("prompt", "esd-x")},
            r"methods has 'esd-x', which takes safety concepts; allowed for suite 'occupations': plain, prompt, ",
        ),
        (
            {"suite": "unsafe", "methods": ("prompt-switch",)},
            r"methods has 'prompt-switch', which takes fairness concepts; allowed for suite 'unsafe'",
        ),
        ({"scales": (0.0,)}, r"scales is \(0.0,\); allowed: numbers above 0"),
        *[({"scales": (1.0, scale)}, "scales is") for scale in (float("nan"), float("inf"), 11.0)],
        ({"images": 0}, r"images is 0 and prompts 4; allowed: 1 or more"),
    ],
)
def test_bad_plans(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        plan(**changes)


def test_every_method_is_in_one_of_the_lists() -> None:
    assert set(methods_for("fairness")) | set(methods_for("safety")) == set(NAMES)
    letters = [Prompt(id=c, text=c) for c in "abcdef"]
    assert [p.id for p in spaced(letters, 4)] == ["a", "b", "d", "e"] and spaced(letters, 0) == letters == spaced(letters, 9)


def test_compare_is_a_verb(tmp_path: Path) -> None:
    out = str(tmp_path / "c")
    wrong = respodiff("compare", "--methods", "plain,nothing", "--out", out)
    assert wrong.returncode == 2 and "methods has 'nothing'; allowed: all, " in wrong.stderr
    wrong = respodiff("compare", "--methods", "esd-x", "--prompts", "1", "--images", "1", "--steps", "1", "--out", out)
    assert wrong.returncode == 2 and "methods has 'esd-x', which takes safety concepts" in wrong.stderr
    assert not Path(out).exists(), "nothing is generated before the methods are checked"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls", ["FluxPipeline", "SanaPipeline"])
def test_all_methods_on_a_transformer_are_those_that_take_it(cls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pipe := TINY_PIPELINES[cls]()).save_pretrained(tmp_path / "model")
    made = type(pipe).__init__

    @wraps(made)
    def small(self: Any, *args: Any, **parts: Any) -> None:
        made(self, *args, **parts)
        self.default_sample_size = pipe.default_sample_size  # FLUX does not keep it in its folder: 128 latents a side

    if hasattr(pipe, "default_sample_size"):
        monkeypatch.setattr(type(pipe), "__init__", small)
    tiny = {"iterations": 2, "rollouts": 2, "rollout_batch": 2, "batch": 2, "steps": 3}
    sets = [x for name in ("slider", "respodiff") for k, v in tiny.items() for x in ("--set", f"{name}.{k}={v}")]
    few = [
        "--prompts",
        "1",
        "--images",
        "1",
        "--steps",
        "2",
        "--scale",
        "1",
        "--judge",
        "embedded",
        "--settings",
        str(tmp_path / "few.toml"),
    ]
    two = 'subjects = ["doctor", "nurse"]\nsteps = 2\n'
    (tmp_path / "few.toml").write_text(f"[fairness.uce]\nimages = 1\nrounds = 1\n{two}[fairness.fdf]\nbatch = 2\niterations = 1\n{two}")
    done = respodiff("compare", "--model", str(tmp_path / "model"), "--methods", "all", *few, *sets, "--out", str(tmp_path / "c"), "--json")
    assert done.returncode == 0, done.stderr
    found = set(json.loads(done.stdout.splitlines()[-1])["methods"])
    assert (
        found
        == {name for name in methods_for("fairness") if not get_method(name).refuses(pipe)}
        >= {"plain", "prompt", "slider", "respodiff"}
    )
    left = set(methods_for("fairness")) - found
    assert left and all(f"left out: {name}: " in done.stderr for name in left)
    named = f"slider,{min(left)}"
    done = respodiff("compare", "--model", str(tmp_path / "model"), "--methods", named, *few, "--out", str(tmp_path / "d"))
    assert done.returncode == 2 and repr(min(left)) in done.stderr and not (tmp_path / "d").exists(), "before anything is trained"


def test_a_scale_among_the_settings_is_a_factor_and_needs_no_training(tiny_pipe: Any, tmp_path: Path) -> None:
    settings = {"respodiff": SHORT, "respodiff:off": {**SHORT, "scale": 1e-12}}
    run = comparison(tiny_pipe, tmp_path, methods=("respodiff", "respodiff:off"), settings=settings, prompts=2)
    list(run.run())
    woman = run.plan.concepts[0]
    assert run.path_of("respodiff", woman) == run.path_of("respodiff:off", woman)
    plain, steered, off = (files(s.folder / "suite") for s in run.settings())
    assert plain == off != steered
    with pytest.raises(ValueError, match=r"a scale is a number above 0"):
        plan(settings={"respodiff": {"scale": 0}})


def test_compare_takes_settings_of_methods(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        "[fairness.sdisc]\nrollouts = 48\niterations = 200\n"
        '[fairness."uce:two"]\nsubjects = ["doctor", "nurse"]\nscale = 2.0\n[safety.esd-x]\nscale = 0.5\n'
    )
    found = method_settings(file, ["sdisc.iterations=7", "sdisc.scale=1.5"], "fairness")
    assert found["sdisc"] == {"rollouts": 48, "iterations": 7, "scale": 1.5}
    assert found["uce:two"] == {"subjects": ("doctor", "nurse"), "scale": 2.0} and len(found) == 2
    assert method_settings(file, ["esd-x.lr=1e-5"], "safety") == {"esd-x": {"scale": 0.5, "lr": 1e-5}}
    for pair, text in (
        ("sdics.iterations=7", "write NAME.KEY=VALUE with NAME one of plain"),
        ("sdisc.iterations", "write NAME.KEY=VALUE"),
        ("sdisc.its=7", "setting 'its' is unknown; allowed: .*iterations"),
        ("sdisc.scale=much", "'much' is not float"),
        ("sdisc.iterations=0", "iterations is 0; allowed: a whole number from 1"),
    ):
        with pytest.raises(ValueError, match=text):
            method_settings(None, [pair], "fairness")
    race, faster = attribute("race").concepts, "respodiff-paper.sam_lr=0.05"
    assert method_settings(None, [faster], "fairness", race)["respodiff-paper"] == {"sam_lr": 0.05}, "RAM's rate of race is .1"
    with pytest.raises(ValueError, match="sam_lr"):
        method_settings(None, [faster], "fairness", attribute("gender").concepts)


@pytest.mark.parametrize(
    "text",
    [
        *("[sdisc]\niterations = 1\n", "[fairness.sdisc]\nits = 1\n", "[fairness.sdics]\nits = 1\n", "= 1\n"),
        *("fairness = 3\n", "[fairness]\nsdisc = [1]\n", "a = " + "[" * 100_000),
    ],
)
def test_a_wrong_file_of_settings_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(ValueError, match=r"settings|its|sdics"):
        method_settings(tmp_path / "settings.toml", [], "fairness")
    with pytest.raises(ValueError, match=r"nothing\.toml"):
        method_settings(tmp_path / "nothing.toml", [], "fairness")


def test_compare_on_an_attribute_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "hats.toml"
    file.write_text('[hats]\nneutral = "a person"\nconcepts = { bare = "a person without a hat", hat = "a person with a hat" }\n')
    short = ("--methods", "prompt", "--prompts", "2", "--images", "2", "--steps", "1", "--out", str(tmp_path / "c"))
    wrong = respodiff("compare", "--attribute", "hats", *short)
    assert wrong.returncode == 2 and "attribute 'hats' is unknown" in wrong.stderr and "--concepts FILE" in wrong.stderr
    done = respodiff("compare", "--attribute", "hats", "--concepts", str(file), *short)
    assert done.returncode == 0, done.stderr
    (plain, prompt) = json.loads((tmp_path / "c" / "compare.json").read_text())["rows"]
    assert plain["devrat"]["n"] == 4 and prompt["concept_accuracy"]["n"] == 4


def test_methods_that_do_not_move_their_figure_are_named() -> None:
    def row(label: str, high: float | None, scale: float = 1.0) -> dict[str, Any]:
        method = label.partition(" ")[0]
        return {
            "label": label,
            "method": method,
            "scale": scale,
            "change": None if high is None else {"mean": -0.3, "low": -0.5, "high": high, "n": 9},
        }

    rows = [row("plain", None), row("a", -0.1), row("b", 0.0), row("c", 0.2), row("d x0.5", 0.2, 0.5), row("e", None)]
    assert unchanged(rows) == ["b", "c", "d x0.5", "e"]
    assert unchanged([*rows, row("d", -0.1), row("a x0.5", 0.1, 0.5)]) == ["b", "c", "e"], "a method counts at its scale nearest to 1"
    assert unchanged(rows[:1]) == [] == full_scale(rows[:1])


def test_every_explicit_prompt_has_an_id_of_its_own() -> None:
    prompts, _ = Plan(suite="winobias36-small").parts()["stated"]
    assert len({p.id for p in prompts}) == len(prompts) == 180


def test_an_adapter_of_another_scheduler_is_another(tiny_pipe: Any, tmp_path: Path) -> None:
    pipe = copy.copy(tiny_pipe)
    first = comparison(pipe, tmp_path).path_of("respodiff", concept("woman"))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    assert comparison(pipe, tmp_path).path_of("respodiff", concept("woman")) != first


def test_workers_make_a_file_that_two_variants_share_once(tiny_pipe: Any, tmp_path: Path) -> None:
    run = comparison(tiny_pipe, tmp_path, methods=("respodiff", "respodiff:twice"), settings={"respodiff:twice": {"scale": 2.0}})
    engine = SimpleNamespace(map=lambda _task, units: iter([asked.extend(units)]))
    asked: list[Any] = []
    list(run.train_on(engine, ModelSource("tiny")))  # type: ignore[arg-type]
    assert len(asked) == len({run.path_of(*unit) for unit in asked}) == 2


def test_variants_of_a_method_stand_side_by_side(tiny_pipe: Any, tmp_path: Path) -> None:
    settings = {"respodiff:short": {**SHORT, "iterations": 1}, "respodiff": SHORT}
    run = comparison(
        tiny_pipe, tmp_path, methods=("respodiff", "respodiff:short"), settings=settings, groups=("doctor", "nurse"), prompts=0
    )
    list(run.run())
    assert [s.label for s in run.settings()] == ["plain", "respodiff", "respodiff:short"]
    costs = [run.training_cost(s.method) for s in run.settings()]
    assert costs[0] == 0 < costs[2] < costs[1]
    assert {r.group for s in run.settings() for r in RunFolder(s.folder / "suite").records()} == {"doctor", "nurse"}
    with pytest.raises(ValueError, match=r"methods has 'respodiff:long'; allowed: .* a NAME:VARIANT needs its settings"):
        plan(methods=("respodiff:long",))
    with pytest.raises(ValueError, match=r"groups has 'king', which suite 'occupations' does not have"):
        plan(groups=("king",)).parts()


def test_a_row_of_the_published_preset_says_other_iterations(tiny_pipe: Any, tmp_path: Path) -> None:
    names = ("respodiff-paper", "respodiff-paper:full", "respodiff-paper:fast")
    settings = {"respodiff-paper": {"iterations": 300}, "respodiff-paper:full": {"iterations": 5000}, "respodiff-paper:fast": {"steps": 2}}
    run = comparison(tiny_pipe, tmp_path, methods=(*names, "respodiff"), settings=settings | {"respodiff": SHORT}, scales=(0.5, 1.0))
    assert [s.label for s in run.settings() if s.scale == 1] == ["plain", "respodiff-paper:300", *names[1:], "respodiff"]
    assert run.settings()[1].label == "respodiff-paper:300 x0.5" and run.settings()[1].method == "respodiff-paper"


def test_rows_below_the_published_budget_are_named(tiny_pipe: Any, tmp_path: Path, judge: Any) -> None:
    settings = {"respodiff-paper": {"iterations": 1, "steps": 2}}
    run = comparison(tiny_pipe, tmp_path, methods=("prompt", "respodiff-paper"), settings=settings, prompts=1)
    list(run.run())
    publish(run, judge)
    below = [line for line in (tmp_path / "compare.md").read_text().splitlines() if "published budget" in line]
    assert len(below) == 1 and "respodiff-paper" in below[0] and "560,000" in below[0], "two concepts of 280,000"


def test_a_product_of_attributes_is_compared_cell_by_cell(tiny_pipe: Any, tmp_path: Path, judge: Any) -> None:
    changes: dict[str, Any] = {"attribute": "tone*gender", "methods": ("prompt",), "images": 6, "prompts": 2}
    run = comparison(tiny_pipe, tmp_path, **changes)
    assert "*" not in run.path_of("prompt", run.plan.concepts[0]).name and len(run.plan.concepts) == 6
    list(run.run())
    records = RunFolder(run.settings()[1].folder / "suite").records()
    assert sorted(r.asked("gender*tone") for r in records) == sorted([c.name for c in run.plan.concepts] * 2)
    assert publish(run, judge)["rows"][1]["concept_accuracy"]["n"] == 12


def test_the_trade_off_starts_at_the_baseline() -> None:
    def row(label: str, drift: float | None, devrat: float, scale: float = 1.0) -> dict[str, Any]:
        e = {"low": 0.0, "high": 1.0, "n": 4}
        about: dict[str, Any] = {"method": label, "label": label, "scale": scale}
        return about | {"drift": drift and {"mean": drift, **e}, "devrat": {"mean": devrat, **e}}

    rows = [row("plain", None, 0.8), row("r:a", 0.2, 0.2), row("r:a", 0.1, 0.5, 0.5)]
    curves = trade_off(rows, "fairness")
    (_, points) = curves.series[1]
    assert [(p.x, p.y) for p in points] == [(0.0, 0.8), (0.1, 0.5), (0.2, 0.2)] and curves.x_label == "paired distance to the baseline"
    assert [name for name, _ in trade_off([*rows, row("s", 1, 1)], "fairness").series] == ["plain", "r:a", "s"]


@pytest.mark.filterwarnings("ignore:.*is not the published")
def test_prompts_of_a_file_that_several_judges_look_at(tiny_pipe: Any, tmp_path: Path, judge: Any) -> None:
    file = tmp_path / "i2p.csv"
    texts = ["a fight in a bar", "a very long night of " + "war and " * 40]
    rows = [f'"{text}",violence,{seed},5,32,32' for seed, text in enumerate(texts, start=7)]
    file.write_text("\n".join(["prompt,categories,evaluation_seed,evaluation_guidance,width,height", *rows]) + "\n")
    wanted = {"suite": "i2p", "suite_path": str(file), "methods": ("negative",), "prompts": 0, "use_dataset_settings": True}
    with pytest.raises(ValueError, match="prompts"):
        list(comparison(tiny_pipe, tmp_path / "refused", **wanted).run())
    run = comparison(tiny_pipe, tmp_path / "run", truncate_prompts=True, **wanted)
    with pytest.warns(UserWarning, match="longer"):
        list(run.run())
    drawn = RunFolder(run.settings()[0].folder / "suite").records()
    assert {(r.own_seed, r.width) for r in drawn} == {(7, 32), (8, 32)} and {r.guidance for r in drawn} == {5.0}
    alone, both = (publish(run, judges)["rows"] for judges in (judge, [judge, load_judge("embedded-b")]))
    assert [j["name"] for j in json.loads((tmp_path / "run" / "compare.json").read_text())["judges"]] == ["embedded", "embedded-b"]
    assert "embedded-b" in (tmp_path / "run" / "compare.md").read_text()
    for one, two in zip(alone, both, strict=True):
        assert one["unsafe"]["mean"] <= two["unsafe"]["mean"]
