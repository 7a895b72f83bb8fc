from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import respodiff
from painted import GENDER, WORDS, ColourJudge, coloured, paint
from respodiff.concepts.concept import Attribute, Concept
from respodiff.data.records import ImageRecord
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import FlagJudge
from respodiff.evaluation.metrics.fairness import expected_devrat_random
from respodiff.evaluation.metrics.shares import wilson
from respodiff.evaluation.registry import METRICS
from respodiff.evaluation.score_files import ScoreFiles

COOKS = [
    ("cook", "woman", (0, 0, 0)),
    ("cook", "woman", (1, 0, 0)),
    ("cook", "man", (1, 0, 0)),
    ("cook", "man", (1, 1, 0)),
]
GUARDS = [("guard", None, (1, 1, 0)), ("guard", None, (1, 1, 1))]


def test_numbers_by_hand(tmp_path: Path) -> None:
    found = evaluate(paint(tmp_path / "r", COOKS + GUARDS), ColourJudge(), [GENDER], vocabulary=WORDS)
    assert (found.n, found.unknown) == (6, 0)
    # cooks: 1 woman, 3 men -> DevRat .5; guards: 2 men -> 1
    assert found.devrat["gender"].mean == pytest.approx(0.75)
    assert found.devrat["gender"].random == pytest.approx(expected_devrat_random([4, 2], 2))
    by = found.devrat_by["gender"]
    assert {g: d.mean for g, d in by.items()} == {"cook": 0.5, "guard": 1.0}
    assert (
        by["cook"].random == pytest.approx(expected_devrat_random([4], 2))
        and by["cook"].low < 0.5 < by["cook"].high
        and by["guard"].low < 1
    )
    assert found.devrat["gender"].low <= 0.75 <= found.devrat["gender"].high
    shares = {g: {c: e.mean for c, e in row.items()} for g, row in found.proportions_by["gender"].items()}
    assert shares == {"cook": {"woman": 0.25, "man": 0.75}, "guard": {"woman": 0.0, "man": 1.0}}
    assert found.counts["gender"]["cook"] == {"woman": 1, "man": 3, "unknown": 0}
    # only the four cooks were asked for a concept, one woman came out a man
    assert found.concept_accuracy["gender"] == wilson(3, 4)
    assert found.subject_accuracy.mean == pytest.approx(5 / 6)
    assert found.alignment.mean == pytest.approx(100 * 3**-0.5 * 5 / 6)
    assert found.unsafe.mean == pytest.approx(1 / 6)
    assert (found.judge.name, found.judge.digest) == ("colour", "0123456789abcdef")
    assert "say nothing about real people" in found.notice
    kept = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert kept["devrat"]["gender"] == dataclasses.asdict(found.devrat["gender"]) and "more" not in kept
    assert kept["judges"][0]["name"] == "colour" and set(METRICS) - {m.name for m in METRICS.values() if not m.value} <= set(kept)


def test_shares_that_the_run_was_made_for_are_what_it_is_held_against(tmp_path: Path) -> None:
    paint(tmp_path / "r", COOKS)
    (tmp_path / "r" / "run.json").write_text(json.dumps({"target_proportions": {"gender": {"woman": 0.25, "man": 0.75}}}))
    found = evaluate(tmp_path / "r", ColourJudge(), [GENDER], vocabulary=WORDS)
    assert found.devrat["gender"].mean == 0
    assert found.unsafe_by == {"cook": 0.0}
    assert found.subject_accuracy.low <= found.subject_accuracy.mean <= found.subject_accuracy.high
    assert found.alignment.low <= found.alignment.mean <= found.alignment.high


def test_scores_file(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", COOKS + GUARDS)
    evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    rows = [json.loads(line) for line in (run.path / "scores" / "colour-01234567.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [record.id for record in run.records()]
    assert rows[3] == {
        "id": "occupations_cook-0003",
        "labels": {"gender": "man"},
        "subject": "guard",
        "subject_correct": False,
        "unsafe": False,
        "score": None,
        "alignment": 0.0,
        "problem": None,
        "judge": "colour",
        "judge_digest": "0123456789abcdef",
        "digest": run.records()[3].digest,
    }
    assert not list(run.path.rglob("*.tmp"))
    header = json.loads((run.path / "scores" / "colour-01234567.json").read_text())
    assert header["judge"] == "colour" and header["attributes"] == {"gender": {"woman": "a woman", "man": "a man"}}


def test_keys_of_a_newer_version_are_no_damage(tmp_path: Path) -> None:
    run = paint(tmp_path / "run", [("cook", "woman", (0, 0, 0))])
    before = evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    (file,) = (run.path / "scores").glob("*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "newer": 1}))
    assert evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS).to_json() == before.to_json()


def test_order_of_the_manifest_does_not_matter(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", COOKS)
    before = evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    lines = run.manifest.read_text().splitlines()
    run.manifest.write_text("\n".join(reversed(lines)) + "\n")
    assert evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS) == before


def test_images_that_cannot_be_judged_are_unknown(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", COOKS + GUARDS)
    first, second, third, *_ = run.records()
    (run.path / first.file).write_bytes(b"no image")
    (run.path / second.file).unlink()
    Image.new("RGB", (4, 4), (255, 255, 255)).save(run.path / third.file)
    found = evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    assert (found.n, found.unknown) == (6, 3)
    assert found.counts["gender"]["cook"] == {"woman": 0, "man": 1, "unknown": 3}
    assert found.devrat["gender"].mean == 1.0
    assert found.concept_accuracy["gender"].n == 1
    rows = [json.loads(line) for line in (run.path / "scores" / "colour-01234567.jsonl").read_text().splitlines()]
    assert [row["problem"] for row in rows[:4]] == ["unreadable", "missing", "changed", None]
    assert rows[0]["labels"] == {"gender": "unknown"} and rows[0]["unsafe"] is None


def test_what_could_not_be_used_is_said(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", COOKS)
    first, second, *_ = run.records()
    (run.path / first.file).write_bytes(b"no image")
    (run.path / second.file).unlink()
    found = evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    assert found.problems == (
        f"1 image missing, e.g. {second.id}: counted as unknown",
        f"1 image unreadable, e.g. {first.id}: counted as unknown",
    )


def test_blank_images_are_told_and_neither_safe_nor_a_man(tmp_path: Path) -> None:
    run, judge = paint(tmp_path / "r", COOKS), ColourJudge()
    for i, record in enumerate(run.records()[:2]):
        run.add(record, Image.new("RGB", (4, 4 + i)))
    for again in range(2):
        found = evaluate(run, judge, [GENDER], vocabulary=WORDS)
        assert (found.n, found.unknown, found.unsafe.n, found.counts["gender"]["cook"]["unknown"]) == (4, 2, 2, 2)
        assert found.problems[-1] == f"2 images blank, e.g. {run.records()[0].id}: counted as unknown" and judge.seen == 2, again
    (both,) = evaluate(run, [judge, Flagger()], [GENDER], vocabulary=WORDS).agreement
    assert both.agree.n == 2, "two judges agree on nothing where neither could judge"


def test_a_duplicate_id_is_said_and_the_rest_is_scored(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", COOKS)
    lines = run.manifest.read_text().splitlines()
    twice = {**json.loads(lines[0]), "prompt": "a cooking person", "digest": "0" * 64}
    run.manifest.write_text("\n".join([json.dumps(twice), *lines]) + "\n")
    found = evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    assert found.n == 4 and found.unknown == 0
    assert len(found.problems) == 1 and run.records()[0].id in found.problems[0]


def test_an_image_is_looked_at_once(tmp_path: Path) -> None:
    run, judge = paint(tmp_path / "r", COOKS + GUARDS), ColourJudge()
    first = evaluate(run, judge, [GENDER], vocabulary=WORDS)
    assert judge.seen == 6
    assert evaluate(run, judge, [GENDER], vocabulary=WORDS) == first and judge.seen == 6
    Image.new("RGB", (4, 4), (255, 255, 255)).save(run.path / run.records()[0].file)  # changed: not judged, old vector not used
    assert evaluate(run, judge, [GENDER], vocabulary=WORDS).unknown == 1 and judge.seen == 6
    (run.path / "scores" / "colour-01234567.safetensors").write_bytes(b"broken")
    assert evaluate(run, judge, [GENDER], vocabulary=WORDS).unknown == 1 and judge.seen == 11


class Flagger(FlagJudge):
    """Flags by the amount of blue; fails on white images."""

    name, version, digest, threshold, rule = "blueness", "1", "f" * 16, 0.5, "blue images"
    seen = 0

    def scores(self, images):  # type: ignore[no-untyped-def]
        self.seen += len(images)
        return [None if image.getpixel((0, 0)) == (255, 255, 255) else image.getpixel((0, 0))[2] / 255 for image in images]


def test_several_judges_side_by_side(tmp_path: Path) -> None:
    rows = [("cook", None, (0, 0, 0)), ("cook", None, (0, 0, 1)), ("guard", None, (1, 1, 1)), ("guard", None, (1, 0, 0))]
    found = evaluate(paint(tmp_path / "r", rows), [ColourJudge(), Flagger()], [GENDER], vocabulary=WORDS)
    assert found.judge.name == "colour"
    assert [(j.name, j.rule) for j in found.judges] == [("colour", None), ("blueness", "blue images")]
    # a judge that flags by a threshold is there, so its flags count: one of the three that it could tell
    assert found.unsafe.mean == pytest.approx(1 / 3) and found.unsafe.n == 3
    agree = {a.task: a for a in found.agreement}
    assert agree["unsafe"].judges == ("colour", "blueness") and agree["unsafe"].agree.mean == pytest.approx(3 / 4)


def test_a_killed_judge_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("respodiff.evaluation.score_files.BATCH", 2)
    run, judge = paint(tmp_path / "r", [("cook", None, (0, 0, i % 2)) for i in range(6)]), Flagger()
    for i, record in enumerate(run.records()):  # six different files
        image = coloured((0, 0, 255 * (i % 2)), (4 + i, 4))
        run.add(record, image)
    real = judge.scores

    def dies(images):  # type: ignore[no-untyped-def]
        if judge.seen >= 4:
            raise KeyboardInterrupt
        return real(images)

    judge.scores = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, [judge, ColourJudge()], [GENDER], vocabulary=WORDS)
    judge.scores = real  # type: ignore[method-assign]
    found = evaluate(run, [judge, ColourJudge()], [GENDER], vocabulary=WORDS)
    assert judge.seen == 6 and found.unsafe.mean == 0.5
    assert not list((run.path / "scores").glob("*.progress"))


class Fragile(ColourJudge):
    """Breaks down on images with green in them."""

    def embed_images(self, images):  # type: ignore[no-untyped-def]
        if any(image.getpixel((0, 0))[1] for image in images):
            raise RuntimeError("a layer overflowed")
        return super().embed_images(images)


def test_one_image_that_breaks_the_judge_costs_that_image(tmp_path: Path) -> None:
    found = evaluate(paint(tmp_path / "r", COOKS), Fragile(), [GENDER], vocabulary=WORDS)
    assert (found.n, found.unknown) == (4, 1) and "failed" in found.problems[0]
    with pytest.raises(RuntimeError, match=r"judge colour failed on all 2 images \(RuntimeError: a layer overflowed\)"):
        evaluate(paint(tmp_path / "s", [("guard", None, (0, 1, i)) for i in range(2)]), Fragile(), [GENDER], vocabulary=WORDS)


def test_two_processes_do_not_judge_one_run_with_one_judge(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", COOKS)
    with ScoreFiles(run, "colour-01234567").lock(), pytest.raises(OSError):
        evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    assert not list((run.path / "scores").iterdir())
    evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    with ScoreFiles(run, "colour-01234567").lock():
        assert evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS).n == 4, "what is scored is read"


def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", COOKS)
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png")
    lines = [json.loads(line) for line in run.manifest.read_text().splitlines()]
    lines[0] |= {"file": "../other.png", "digest": ""}
    lines[1] |= {"file": str(tmp_path / "other.png"), "digest": ""}
    run.manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    assert found.unknown == 2 and found.problems[0].startswith("2 images outside")


def test_rows_of_wrong_types_are_left_out_with_a_line(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", COOKS)
    bad = [{"repeat": "two"}, {"group": None}, {"categories": [[1]]}, {"subject": 5}, {"concepts": {"gender": 3}}]
    good = run.manifest.read_text()
    for change in bad:
        lines = good.splitlines()
        lines[1] = json.dumps(json.loads(lines[1]) | change)
        run.manifest.write_text("\n".join(lines) + "\n")
        found = evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
        assert found.n == 3 and "line 2" in found.problems[0] and next(iter(change)) in found.problems[0]
    (run.path / "run.json").write_text('{"target_proportions": [1]}')
    with pytest.raises(ValueError, match=r"run\.json has target_proportions \[1\]; allowed: attribute -> concept -> number"):
        evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)


def test_what_was_asked_before_is_kept(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", COOKS)
    other = Attribute("job", (Concept("cook", "a cook"), Concept("guard", "a guard")))
    evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    assert set(evaluate(run, ColourJudge(), [other], vocabulary=WORDS).devrat) == {"job"}
    header = json.loads((run.path / "scores" / "colour-01234567.json").read_text())
    assert set(header["attributes"]) == {"gender", "job"}


def test_one_image_a_group_gives_no_devrat(tmp_path: Path) -> None:
    found = evaluate(
        paint(tmp_path / "r", [("cook", None, (0, 0, 0)), ("guard", None, (1, 0, 0))]), ColourJudge(), [GENDER], vocabulary=WORDS
    )
    assert found.devrat == {"gender": None} and "hold one image" in found.problems[0]
    assert found.proportions["gender"]["man"].mean == 0.5


def test_labels_from_a_table(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", COOKS)
    ids = [record.id for record in run.records()]
    (tmp_path / "t.csv").write_text("id,gender\n" + "".join(f"{i},woman\n" for i in ids[:3]))
    table = "table:" + str(tmp_path / "t.csv")
    assert evaluate(run, [Flagger(), ColourJudge(), table], [GENDER], vocabulary=WORDS).judge.name == "colour"
    assert evaluate(run, [table, ColourJudge()], [GENDER], vocabulary=WORDS).judge.name == "table:t.csv", "the first that gives labels"
    alone = evaluate(run, "table:" + str(tmp_path / "t.csv"), [GENDER])
    assert alone.judge.name == "table:t.csv"
    assert alone.counts["gender"]["cook"] == {"woman": 3, "man": 0, "unknown": 1}
    assert alone.alignment is None and alone.subject_accuracy is None


def test_what_an_annotator_has_not_labelled_is_no_answer(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", [("cook", "woman", (0, 0, 0)), ("cook", "man", (1, 0, 0))] * 4)
    files = [r.file for r in run.records()]
    (tmp_path / "t.csv").write_text(f"file,gender,unsafe\n{files[0]},woman,no\n{files[1]},man,\n{files[2]},,no\n")
    found = evaluate(run, [f"table:{tmp_path / 't.csv'}", ColourJudge()], [GENDER], vocabulary=WORDS)
    accuracy = found.concept_accuracy["gender"]
    assert accuracy is not None and (accuracy.mean, accuracy.n) == (1.0, 2)
    assert {a.task: (a.agree.mean, a.agree.n) for a in found.agreement} == {"gender": (1.0, 2), "unsafe": (1.0, 2)}
    assert sum(found.counts["gender"]["cook"].values()) == 7, "two labels, five images without a row; an empty cell is in none"


def test_an_image_that_one_of_two_flagging_judges_could_not_judge_is_in_no_share(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", [("cook", None, (0, 0, 1)), ("cook", None, (0, 0, 0)), ("cook", None, (1, 1, 1))])
    other = Flagger()
    other.name, other.digest = "all", "e" * 16
    other.scores = lambda images: [1.0 for _ in images]  # type: ignore[method-assign]
    found = evaluate(run, [Flagger(), other], [], vocabulary=WORDS)
    assert found.unsafe.n == 2, "the white image, which one cannot judge and the other flags, is left out"


def test_near_ties_can_count_as_unknown(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", COOKS)
    assert evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS, min_margin=99).counts["gender"]["cook"]["unknown"] == 4
    assert evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS, min_margin=50).counts["gender"]["cook"]["unknown"] == 0
    with pytest.raises(ValueError, match="min_margin is -1"):
        evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS, min_margin=-1)


def test_known_errors_of_the_judge_are_taken_back_out(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", COOKS)  # 1 woman and 3 men seen
    known = {ColourJudge().digest: {"gender": {"classes": ["woman", "man"], "matrix": [[50, 50, 0], [0, 100, 0]], "n": 200, "note": ""}}}
    known[ColourJudge().digest]["gender"] |= {
        "targets": {"woman": "a woman", "man": "a man"},
        "class_template": "{concept}",
        "min_margin": 0.0,
    }
    found = evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS, confusion=known)
    assert found.proportions["gender"]["woman"].mean == 0.25
    assert found.corrected["gender"]["woman"].mean == pytest.approx(0.5)  # half of all women are taken for men
    assert evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS).corrected == {"gender": None}
    asked = evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS, confusion=known, class_template="the image of {concept}")
    assert asked.corrected == {"gender": None}, "errors were counted for other class template"
    known[ColourJudge().digest]["gender"]["matrix"] = [[50, 50, 0], [50, 50, 0]]
    useless = evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS, confusion=known)
    assert useless.corrected == {"gender": None} and "not corrected" in useless.problems[0], "said, and the rest is there"
    assert useless.devrat["gender"] is not None


def test_cut_off_image_is_unreadable(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", COOKS)
    path = run.path / run.records()[0].file
    path.write_bytes(path.read_bytes()[:60])
    assert evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS).unknown == 1


def test_nothing_judged_gives_null_not_zero(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", COOKS)
    for record in run.records():
        (run.path / record.file).unlink()
    found = evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    assert found.unknown == 4
    for key in ("subject_accuracy", "alignment", "unsafe"):
        assert getattr(found, key) is None
    assert found.devrat["gender"] is None and found.concept_accuracy["gender"] is None
    assert found.proportions_by["gender"] == {"cook": {"woman": None, "man": None}}


def test_nothing_asked_gives_null(tmp_path: Path) -> None:
    found = evaluate(paint(tmp_path / "r", GUARDS, subject=None), ColourJudge(), [GENDER], vocabulary=WORDS)
    assert found.concept_accuracy["gender"] is None
    assert found.subject_accuracy is None
    assert found.alignment is not None


def test_wanted_shares_of_the_attribute_count(tmp_path: Path) -> None:
    wanted = Attribute("gender", GENDER.concepts, (0.25, 0.75))
    found = evaluate(paint(tmp_path / "r", COOKS), ColourJudge(), [wanted], vocabulary=WORDS)
    assert found.devrat["gender"].mean == pytest.approx(0.0)
    assert found.devrat["gender"].random == pytest.approx(expected_devrat_random([4], 2, (0.25, 0.75)))


def test_errors_that_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run folder"):
        evaluate(tmp_path, ColourJudge(), [GENDER])
    with pytest.raises(ValueError, match="has no images yet"):
        evaluate(RunFolder(tmp_path / "empty").create({}), ColourJudge(), [GENDER])
    run = paint(tmp_path / "r", [("cook", "robot", (0, 0, 0))])
    with pytest.raises(ValueError, match="asked for gender 'robot', but attribute 'gender' has woman, man"):
        evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    with pytest.raises(ValueError, match="attribute 'height' is unknown"):
        evaluate(run, ColourJudge(), ["height"])


@pytest.mark.slow
def test_embedded_judge_end_to_end(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r").create({})
    data = Path(__file__).parents[1] / "data" / "labelled"
    for i, (file, group) in enumerate([("0023.webp", "office"), ("0141.webp", "office"), ("0286.webp", "knives")]):
        asked = {"gender": "woman"}
        record = ImageRecord(id=f"{i}", file="", prompt="a person", prompt_id="x", group=group, concepts=asked)
        with Image.open(data / file) as image:
            run.add(record, image.convert("RGB"))
    found = evaluate(str(run.path), "embedded", ["gender", "tone"])
    assert found.counts["gender"]["office"] == {"woman": 1, "man": 1, "unknown": 0}
    assert set(found.devrat) == {"gender", "tone"}
    assert found.concept_accuracy["tone"] is None
    assert found.unsafe.mean == pytest.approx(1 / 3)
    assert found.judge.name == "embedded" and len(found.judge.digest) == 16
    assert respodiff.evaluate(run.path, respodiff.load_judge("embedded"), ["gender", "tone"]).to_json() == found.to_json()


@pytest.mark.slow
def test_measuring_does_not_import_the_making_side() -> None:
    code = (
        "import sys\n"
        "import respodiff.evaluation.evaluate, respodiff.reports.run_report, respodiff.data.prompt_sets\n"
        "respodiff.evaluation.judges.load_judge()\n"
        "bad = [m for m in sys.modules if m.split('.')[0] == 'diffusers' or m in "
        "('respodiff.training.respodiff', 'respodiff.steering.steer', 'respodiff.generation.generate', 'respodiff.pipelines.loading')]\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_stand_for_objects(tmp_path: Path) -> None:
    run = paint(tmp_path / "r", COOKS)
    by_name = evaluate(run, ColourJudge(), "gender", vocabulary=WORDS)
    assert by_name == evaluate(run, ColourJudge(), GENDER, vocabulary=WORDS) == evaluate(run, ColourJudge(), ["gender"], vocabulary=WORDS)
    with pytest.raises(ValueError, match="attribute 'gendre' is unknown; known: ") as raised:
        evaluate(run, ColourJudge(), "gendre", vocabulary=WORDS)
    assert "\n" not in str(raised.value)


def test_intervals_stay_within_the_possible_range(tmp_path: Path) -> None:
    run = paint(tmp_path / "two", [("cook", None, (0, 0, 0)), ("guard", None, (1, 0, 0))])
    found = evaluate(run, ColourJudge(), "gender", vocabulary=WORDS).alignment
    assert found is not None and (found.low, found.high) == (-100, 100), "two prompts say next to nothing"
