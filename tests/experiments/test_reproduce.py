"""The tables of the paper: their plans, their costs, and each of them from end to end on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import PNDMScheduler
from PIL import Image

from command import last_json, respodiff
from respodiff.cli.reproduce import NAMES
from respodiff.data.import_images import import_folder
from respodiff.data.run_folder import RunFolder
from respodiff.data.shards import Shard
from respodiff.evaluation.judges import FeatureJudge, FlagJudge, classifier, judge_folder, load_judge
from respodiff.experiments.compare import method_of
from respodiff.experiments.paper_tables import PaperTable, tables
from respodiff.experiments.reproduce import Reproduction, cost, publish
from respodiff.methods import sld
from respodiff.methods.registry import load
from tiny_models import sdxl

pytestmark = pytest.mark.slow


TRAINED: dict[str, Callable[[Any], int]] = {  # evaluations per sample that an adapter takes, by each method's loop
    "sdisc": lambda c: 2 * c.rollouts * c.steps + c.iterations * c.batch,
    "fdf": lambda c: c.iterations * 3 * 2 * c.batch * c.steps,
    "bact": lambda c: 2 * c.rollouts * c.steps,
    "esd-u": lambda c: c.rollouts * (2 * (c.steps - 1) + 2 * c.steps) + c.iterations * c.batch,
}


def test_plans_are_those_of_the_paper() -> None:
    found = tables()
    assert {source.partition(":")[0] for source in found["safety"].judges} == {"nudenet", "q16", "clip", "inception"}
    assert all(table.judges[0].startswith("clip:") for table in found.values() if table.kind == "fairness")
    assert tuple(found) == NAMES
    assert [row.published["devrat"] for row in found["gender"].rows] == [0.68, 0.17, 0.40, 0.57, 0.14]
    assert [row.published["unsafe"] for row in found["safety"].rows] == [0.27, 0.20, 0.32, 0.16]
    steered = {row.name: row.instead and row.instead.negative for row in found["safety"].rows}
    assert steered == {"SD": None, "SLD": sld.TEXT, "ESD": "nudity", "RespoDiff": None}
    for table in found.values():
        assert (table.images in (5, 30) and table.rows[0].method == "plain") or table.rows[0].name == "RAM only"
        for row in table.rows:
            assert not set(row.published) - {"devrat", "alignment", "unsafe", "fid", "clip"}
            if row.method in TRAINED:
                spent = TRAINED[row.method](method_of(row.method).settings(table.kind, **row.settings))
                assert spent == pytest.approx(row.train_forwards, rel=0.02), "the authors' budget"
            if row.method == "respodiff-paper":
                changed = {"RAM only": {"sam_lr": 0.0}, "lambda 4": {"sam_weight": 4.0}}.get(row.name, {})
                changed |= {"form": row.name.partition(" ")[0].lower()[:4].strip()} if row.name.endswith("module") else {}
                assert dict(row.settings) == changed, "nothing else differs from preset paper"
    assert {name for table in found.values() for name in table.attributes} == {"gender", "race"}


def test_a_fraction_takes_its_part_of_everything() -> None:
    whole, part = tables()["gender"], tables(fraction=0.01)["gender"]
    assert (whole.part(180, 30), part.part(180, 30), part.part(30_000, 1)) == ((180, 30), (14, 4), (300, 1))
    assert tables(fraction=1e-6)["safety"].part(4702, 5) == (1, 4)
    assert [row.settings.get("iterations") for row in part.rows] == [None, 25, 100, 2, 50]
    assert [row.settings.get("rollouts") for row in part.rows] == [None, 10, None, 15, 1]
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match="fraction"):
            tables(fraction=wrong)


def test_the_twin_of_every_table_has_suites_and_attributes_of_the_embedded_model() -> None:
    for table in tables(embedded=True).values():
        assert table.suite in ("occupations", "unsafe") and table.captions in ("", "general") and table.steps is table.guidance is None
        assert not table.scheduler and not table.judges
        assert not [row.name for row in table.rows if row.method in ("sdisc", "fdf", "bact", "esd-u") and row.settings], "their own budgets"
        assert set(table.attributes) <= {"gender", "tone"} and not any(row.published for row in table.rows)


@pytest.mark.parametrize(
    ("name", "images"), [("gender", 5 * (180 * 30 + 30_000)), ("safety", 4 * (4702 * 5 + 30_000)), ("composition", 2 * 5400)]
)
def test_what_a_table_costs_is_said_without_a_model_or_a_file(name: str, images: int) -> None:
    command = ["reproduce", name, "--model", "somebody/model", "--out", "nowhere", "--dry-run"]
    found = last_json(respodiff(*command, "--json"))
    assert found["images"] == images and found["unet_forwards"] == found["training_forwards"] + found["drawing_forwards"]
    assert all(set(row) == {"name", "measured", "published"} for row in found["rows"]) and not found["rows"][0]["measured"]
    assert found["drawing_forwards"] >= images * 100 and not Path("nowhere").exists()
    told = respodiff(*command, "--images-per-second", "0.5", "--fraction", "0.1")
    assert told.returncode == 0 and "hours at 0.5 images a second" in told.stdout
    assert respodiff(*command[:-1], "--images-per-second", "0.5").returncode == 2, "it would be ignored"
    twin = last_json(respodiff("reproduce", name, "--model", "embedded", "--out", "nowhere", "--dry-run", "--json"))
    assert twin["training_forwards"] is None and "embedded" in twin["table"] and twin["images"] > 0
    smaller = last_json(respodiff(*command, "--fraction", "0.01", "--json"))
    assert smaller["images"] < images / 20 and smaller["training_forwards"] == round(found["training_forwards"] * 0.01)


def test_an_adapter_of_all_alternatives_is_trained_once() -> None:
    whole = cost(tables()["gender"], {"suite": (180, 30)}, 50)["training_forwards"]
    assert whole == 2 * 80_000 + 30_240_000 + 150_000 + 2 * 280_000
    assert cost(tables(fraction=0.01)["gender"], {"suite": (180, 30)}, 50)["training_forwards"] == whole // 100
    assert cost(tables()["safety"], {}, 50)["training_forwards"] == 52_000 + 2 * 84_000, "ESD has one concept of its own"


def test_images_of_a_prompt_are_balanced_in_one_batch(tiny_pipe: Any, tmp_path: Path) -> None:
    table = replace(tables()["gender"], captions="")
    made = Reproduction(tiny_pipe, table, tmp_path / "run", classify=lambda c: classifier("embedded", c, "cpu"), judge="d")
    assert {run.config.batch for run in made.runs() if run.out.name == "suite"} == {12, 30}, "of BAct all 30"


@pytest.fixture
def short() -> Callable[..., PaperTable]:
    """A table, or its twin, with a prompt or two, and trainings of one iteration."""
    budgets: dict[str, dict[str, Any]] = {
        "respodiff-paper": {"iterations": 1, "steps": 2},
        "sdisc": {"iterations": 1, "steps": 2},
        "fdf": {"iterations": 1, "steps": 2},
        "bact": {"iterations": 1, "steps": 2, "rollouts": 4},
        "esd-u": {"iterations": 1, "steps": 2},
    }

    def of(name: str, twin: bool = True) -> PaperTable:
        table = replace(tables(embedded=twin, fraction=0.01 if twin else 1e-5)[name], steps=2, guidance=3.0)
        return replace(table, rows=tuple(replace(r, settings={**r.settings, **budgets.get(r.method, {})}) for r in table.rows))

    return of


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_every_table_runs_from_end_to_end(name: str, short: Callable[..., PaperTable], tiny_pipe: Any, tmp_path: Path) -> None:
    table, judge = short(name), load_judge("embedded")
    pipe = sdxl() if name.startswith("sdxl") else tiny_pipe
    made = Reproduction(pipe, table, tmp_path / "run", classify=lambda c: classifier("embedded", c, "cpu"), judge="d")
    assert list(made.run())
    found = publish(made, [judge], n_bootstrap=100)
    assert [row["name"] for row in found["rows"]] == [row.name for row in table.rows]
    for row in found["rows"]:
        assert set(row["measured"]) == set(row["published"]) == set(table.figures)
        for figure, value in row["measured"].items():
            assert figure == "fid" or value["low"] <= value["mean"] <= value["high"], figure
    first = made.parts["suite"]
    assert found["images"] == len(table.rows) * sum(len(part.prompts) * part.images for part in made.parts.values())
    assert len(RunFolder(made.folder(table.rows[0], "suite")).records()) == len(first.prompts) * first.images
    page = (tmp_path / "run" / "reproduce.html").read_text()
    assert table.title in page and all(row.name in page for row in table.rows) and "mean nothing" in page
    assert json.loads((tmp_path / "run" / "reproduce.json").read_text())["rows"] == json.loads(json.dumps(found["rows"]))
    again = Reproduction(pipe, table, tmp_path / "run", judge="d")
    assert [p for p in again.run() if p.what.startswith(("training", "building"))] == [] and publish(again, [judge], n_bootstrap=100)[
        "rows"
    ] == found["rows"]


class Pixels(FeatureJudge):
    """Stands for Inception: an image is its pixels at 2 x 2."""

    name, version, digest = "inception", "1", "f" * 16

    def features(self, images: Any) -> Any:
        return np.stack([np.asarray(image.convert("RGB").resize((2, 2)), dtype=np.float32).ravel() for image in images])


class Bright(FlagJudge):
    """Stands for NudeNet or Q16: an image is unsafe if most of it is bright, or dark."""

    version, digest, threshold, rule = "1", "e" * 16, 0.5, "half of it"

    def __init__(self, name: str, dark: bool) -> None:
        self.name, self.dark, self.digest = name, dark, str(int(dark)) * 16

    def score_batch(self, images: Any) -> list[float]:
        bright = [float(np.asarray(image.convert("L")).mean()) / 255 for image in images]
        return [1 - x if self.dark else x for x in bright]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_the_suites_and_budgets_of_the_paper_run_from_end_to_end(
    name: str, short: Callable[..., PaperTable], tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WinoBias, I2P and COCO from files, race, the authors' settings of peers, in two shards; the twins have others."""
    monkeypatch.setattr("respodiff.evaluation.comparison.MIN_IMAGES", 2)
    monkeypatch.setattr("respodiff.evaluation.comparison.MIN_PROMPTS", 2)
    (tmp_path / "coco.csv").write_text("image_id,prompt\n" + "".join(f"{n},a boat and {n} birds\n" for n in range(5)))
    (tmp_path / "i2p.csv").write_text("prompt,categories,evaluation_seed,evaluation_guidance,width,height\na fight,violence,1,7,512,512\n")
    table, paths = short(name, twin=False), {"coco30k": str(tmp_path / "coco.csv"), "i2p": str(tmp_path / "i2p.csv")}
    pipe, clip = sdxl() if name.startswith("sdxl") else tiny_pipe, load_judge(str(judge_folder("embedded")))
    judges = [clip, Pixels(), *([Bright("nudenet", True), Bright("q16", False)] if name == "safety" else [])]
    made = Reproduction(pipe, table, tmp_path / "run", paths=paths, classify=lambda c: classifier("embedded", c, "cpu"), judge="d")
    assert {part.prompts[0].suite for part in made.parts.values()} == {table.suite, *([table.captions] if table.captions else [])}
    assert [training.plan.attribute for training in made.trainings.values()] == [*table.attributes] or name == "safety"
    for shard in (Shard(0, 2), Shard(1, 2)):
        list(made.run(shard))
    real = None
    if table.captions:
        noise = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
        (folder := tmp_path / "images").mkdir()
        for n, pixels in enumerate(noise):
            Image.fromarray(pixels).save(folder / f"{n}.png")
        (tmp_path / "t.csv").write_text("file,prompt\n" + "".join(f"{n}.png,a boat and {n} birds\n" for n in range(4)))
        real = import_folder(folder, tmp_path / "t.csv", tmp_path / "real").path
    found = publish(made, judges, real=real, n_bootstrap=100)
    for row in found["rows"]:
        assert set(row["measured"]) == set(table.figures) and all(m["n"] > 0 for m in row["measured"].values())
        assert "fid" not in table.figures or row["measured"]["fid"]["mean"] > 0
        assert name != "safety" or row["measured"]["unsafe"]["mean"] == 1, "an image is bright or dark, and either is unsafe"
    (about,) = (note for note in found["notes"] if "judges" in note)
    assert "not given" not in about
    if name == "safety":
        (training,) = made.trainings.values()
        held = {v: [load(file).header.negative for file in training.adapters(v)] for v in training.names[1:]}
        assert held == {"sld-medium:SLD": [sld.TEXT], "esd-u:ESD": ["nudity"], "respodiff-paper:RespoDiff": ["violence", "sexual"]}
    assert sum(row.note in note for row in table.rows if row.note for note in found["notes"]) == 2 * (name == "safety")


@pytest.mark.filterwarnings("ignore")
def test_a_killed_training_of_a_row_goes_on(
    short: Callable[..., PaperTable], tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = short("ablation")
    table = replace(table, rows=(replace(table.rows[0], settings={**table.rows[0].settings, "iterations": 5}),))
    monkeypatch.setattr("respodiff.experiments.compare.SAVE_EVERY", 0.0)
    whole = Reproduction(tiny_pipe, table, tmp_path / "whole")
    (training,) = whole.trainings.values()
    assert len(list(training.train_missing())) == 2 * 5
    cut = Reproduction(tiny_pipe, table, tmp_path / "cut")
    (stopped,) = cut.trainings.values()
    progress = stopped.train_missing()
    assert [next(progress).done for _ in range(3)] == [1, 2, 3]
    progress.close()
    (kept,) = (tmp_path / "cut" / "adapters").glob(".*.unfinished")
    (again,) = Reproduction(tiny_pipe, table, tmp_path / "cut").trainings.values()
    assert [p.done for p in again.train_missing()] == [4, 5, *range(1, 6)] and not kept.exists()
    for name in again.names[1:]:
        for a, b in zip(training.adapters(name), again.adapters(name), strict=True):
            assert load(a).digest == load(b).digest
        assert training.training_cost(name) == again.training_cost(name)


def test_modules_of_a_composition_act_at_their_factors(short: Callable[..., PaperTable], tiny_pipe: Any, tmp_path: Path) -> None:
    made = Reproduction(tiny_pipe, short("composition"), tmp_path, judge="d")
    for training in made.trainings.values():
        list(training.train_missing())
    plain, steered = made.runs()
    assert plain.modules == [] and sorted({m.weight for m in steered.modules}) == [0.4, 0.6]
    assert {m.header.attribute for m in steered.modules} == {"gender", "tone"} and len(steered.modules) == 5


@pytest.mark.filterwarnings("ignore")
def test_a_fid_says_what_it_needs(short: Callable[..., PaperTable], tiny_pipe: Any, tmp_path: Path) -> None:
    table = short("gender")
    made = Reproduction(tiny_pipe, replace(table, rows=table.rows[:1]), tmp_path / "run", judge="d")
    list(made.run())
    notes = publish(made, [load_judge("embedded")], n_bootstrap=100)["notes"]
    assert any("--real" in note and "inception" in note for note in notes)
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (tmp_path / "t.csv").write_text("file,prompt\na.png,a boat\n")
    real = import_folder(folder, tmp_path / "t.csv", tmp_path / "real").path
    notes = publish(made, [load_judge("embedded")], real=real, n_bootstrap=100)["notes"]
    assert any("inception" in note and "--real" not in note for note in notes)


def test_the_verb_on_a_folder(tiny_pipe: Any, tmp_path: Path) -> None:
    tiny_pipe.scheduler = PNDMScheduler.from_config(tiny_pipe.scheduler.config)
    tiny_pipe.save_pretrained(tmp_path / "model")
    command = [
        "reproduce",
        "sdxl-gender",
        "--model",
        str(tmp_path / "model"),
        "--judge",
        "embedded",
        "--fraction",
        "0.0002",
        "--steps-are-none",
    ]
    assert respodiff(*command, "--out", str(tmp_path / "run")).returncode == 2
    done = last_json(respodiff(*command[:-1], "--out", str(tmp_path / "run"), "--json"))
    assert done["table"].startswith("Gender") and [row["name"] for row in done["rows"]] == ["SDXL", "RespoDiff"]
    assert done["rows"][0]["published"]["devrat gender"] == 0.72 and done["unet_forwards"] > 0
    assert [note.partition(":")[0] for note in done["notes"] if "published budget" in note] == ["RespoDiff"]
    run = json.loads((tmp_path / "run" / "runs" / "sdxl" / "suite" / "run.json").read_text())
    assert [run[key] for key in ("scheduler", "steps", "guidance")] == ["DDIMScheduler", 50, 7.5], "as published, whatever the folder has"
    refused = respodiff("reproduce", "genders", "--out", str(tmp_path / "new"))
    assert refused.returncode == 2 and "gender" in refused.stderr and not (tmp_path / "new").exists()
