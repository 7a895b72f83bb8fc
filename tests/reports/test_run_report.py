"""The report: figures, tables and page agree, whatever the order of rows or the split of a run."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from command import last_json, respodiff
from painted import GENDER, WORDS, ColourJudge, Painted, coloured, paint
from respodiff.concepts.concept import Attribute, Concept
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.registry import METRICS
from respodiff.reports.run_report import _changes, report
from respodiff.reports.tables import heading

PLAIN: list[Painted] = [("cook", None, (1, 0, 0))] * 7 + [("cook", None, (0, 0, 0))] + [("guard", None, (1, 1, 0))] * 8
EVEN: list[Painted] = [
    *[("cook", ("woman", "man")[i % 2], (i % 2, 0, 0)) for i in range(8)],
    *[("guard", ("woman", "man")[i % 2], (i % 2, 1, 0)) for i in range(8)],
]


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, RunFolder]:
    out = {"plain": paint(tmp_path / "plain", PLAIN), "even": paint(tmp_path / "even", EVEN)}
    for run in out.values():
        evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    return out


def names(runs: dict[str, RunFolder]) -> list[str]:
    return [str(run.path) for run in runs.values()]


def test_figures_by_hand(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    found = report(names(runs), tmp_path / "report.html")
    plain, even = found["suites"]["occupations"]
    assert (plain["run"], even["run"]) == ("plain", "even") and plain["comparison"] is None
    assert (
        plain["statistics"]["devrat"]["gender"]["mean"] == pytest.approx((0.75 + 1) / 2)
        and even["statistics"]["devrat"]["gender"]["mean"] == 0
    )
    assert even["statistics"]["concept_accuracy"]["gender"]["mean"] == 1
    tests = {t["metric"]: t for t in even["comparison"]["tests"]}
    assert even["comparison"]["paired"] == 16
    assert tests["devrat"]["mean"] == pytest.approx(-0.875) and tests["devrat"]["p"] < 0.05
    assert tests["subject_accuracy"]["mean"] == 0 and tests["subject_accuracy"]["p"] == 1
    # 7 of 16 images changed one of three axes: cosine 2/3, so a distance of 1/3
    changed = sum(a[2] != b[2] for a, b in zip(PLAIN, EVEN, strict=True))
    assert even["comparison"]["drift"]["mean"] == pytest.approx(changed / 16 / 3)
    assert even["comparison"]["frechet"] is None, "too few images for a distance between sets"
    assert sorted(t["p"] for t in tests.values())[0] * 3 == pytest.approx(min(t["p_holm"] for t in tests.values()))


def test_each_run_has_the_line_of_its_own_wanted_share(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    other = paint(tmp_path / "other", EVEN)
    evaluate(other, ColourJudge(), [GENDER], vocabulary=WORDS)

    def lines() -> list[str]:
        both = [str(other.path), str(runs["even"].path)]
        page = Path(report(both, tmp_path / "report.html", force=True)["page"]).read_text()
        assert ("wanted, by run" in page) == ("wanted 0.500" not in page)
        return re.findall(r'class="wanted" style="left:([\d.]+)%"', page)

    assert lines() == ["50.00", "50.00"], "one for each group"
    evaluate(runs["even"], ColourJudge(), [Attribute("gender", GENDER.concepts, (0.25, 0.75))], vocabulary=WORDS)
    assert lines() == ["50.00", "25.00"] * 2, "one for each run of a group"


def test_an_unsteered_run_is_measured_against_the_target_of_the_others(tmp_path: Path) -> None:
    """All women, as wanted: DevRat of the unsteered run is that of no woman among wanted ones."""
    all_women: list[Painted] = [("cook", "woman", (0, 0, 0))] * 8
    folders = [paint(tmp_path / "plain", [("cook", None, (i % 2, 0, 0)) for i in range(8)])]
    for name, share in (("women", 1.0), ("most", 0.75)):
        folders.append(paint(tmp_path / name, all_women, settings={"target_proportions": {"gender": {"woman": share, "man": 1 - share}}}))
    for run in folders:
        evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    plain, women, most = (str(run.path) for run in folders)
    found = report([plain, women], tmp_path / "one.html")["suites"]["occupations"]
    before, after = (run["statistics"]["devrat"]["gender"]["mean"] for run in found)
    (test,) = (t for t in found[1]["comparison"]["tests"] if t["metric"] == "devrat")
    assert (before, after) == (0.5, 0) and test["mean"] == pytest.approx(after - before)
    page = (tmp_path / "one.html").read_text()
    assert "Wanted of gender, in every run: woman 1.000, man 0.000." in page and "expected 8." in page
    report([plain, women, most], tmp_path / "two.html")
    assert "These runs have different targets of gender" in (tmp_path / "two.html").read_text()


def test_targets_by_group_are_told_apart_and_kept(tmp_path: Path) -> None:
    def run(name: str, share: float, of: str | None = "woman") -> str:
        folder = paint(tmp_path / name, [("cook", of, (0, 0, 0))] * 4 + [("guard", of, (1, 0, 0))] * 4)
        wanted = {"cook": {"gender": {"woman": share, "man": 1 - share}}, "guard": {"gender": {"woman": 0.5, "man": 0.5}}}
        evaluate(folder, ColourJudge(), [GENDER], vocabulary=WORDS, group_proportions=wanted if share else None)
        return str(folder.path)

    def said(*given: str) -> str:
        return Path(report(list(given), tmp_path / "report.html", force=True)["page"]).read_text()

    few, most, even, plain = run("few", 0.2), run("most", 0.9), run("even", 0), run("plain", 0.2, None)
    assert "These runs have different targets of gender" in said(few, most)
    assert "Wanted of gender, in every run: shares of each group." in said(few, run("again", 0.2))
    assert "Wanted of gender, in every run: shares of each group." in said(run("unsteered", 0, None), few)
    assert "These runs have different targets of gender" in said(plain, even), "an unsteered run keeps targets of its own groups"


def test_page_and_tables(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    found = report(names(runs), tmp_path / "out" / "report.html")
    page = Path(found["page"]).read_text()
    assert not re.search(r"https?://|<script|<link|@import", page)
    for text in (
        "occupations",
        "occupations: DevRat gender, group by group",
        "DevRat",
        "share of woman",
        "a cook",
        "data:image/webp;base64,",
        "colour",
        "real people",
        "0.875",
        "permutation",
        "Findings: occupations",
        "plain: in 8 of 8 images, “guard” looked like a man; expected 4. even: 4 of 8.",
        "even compared with plain: DevRat gender decreases by 0.875 [-0.271, 1.000] (16 pairs, p (Holm) 0.078, not significant)",
        "no significant change of subject accuracy",
    ):
        assert text in page, text
    assert [Path(t).name for t in found["tables"]] == ["report.json", "report.csv", "report.md", "report-images.csv"]
    kept = json.loads(Path(found["tables"][0]).read_text())
    assert kept["suites"] == json.loads(json.dumps(found["suites"])) and "real people" in kept["notice"]
    rows = list(csv.DictReader(Path(found["tables"][1]).read_text().splitlines()))
    one = next(r for r in rows if r["run"] == "plain" and r["statistic"] == "DevRat gender")
    assert float(one["value"]) == pytest.approx(0.875) and float(one["low"]) <= 0.875 <= float(one["high"]) and one["n"] == "16"
    text = Path(found["tables"][2]).read_text()
    assert "| plain | 16 | 0.875 [" in text and "real people" in text
    headline = [line for line in text.splitlines() if line.startswith("|")][:4]
    assert len({line.count("|") for line in headline}) == 1


def test_a_label_with_markup_is_text(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    label = "<script>alert(1)</script>"
    page = Path(report([f"{label}={runs['plain'].path}", str(runs["even"].path)], tmp_path / "r.html")["page"]).read_text()
    assert "<script" not in page and page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10


def test_tables_hold_no_formula_and_no_html(tmp_path: Path) -> None:
    rows: list[Painted] = [
        ("=1+1|<b>", None, (1, 0, 0)),
        ("-2", None, (0, 0, 0)),
        ("@a\n![x](y)", None, (0, 0, 0)),
        ("+a", None, (0, 0, 0)),
    ]
    run = paint(tmp_path / "r", rows, suite="<i>|")
    evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    found = report([f"=cmd|<u>={run.path}"], tmp_path / "report.html")
    images = list(csv.DictReader(io.StringIO(Path(found["tables"][3]).read_text())))
    assert [row["group"] for row in images] == ["'+a", "-2", "'=1+1|<b>", "'@a\n![x](y)"] and images[0]["seed"] == "0"
    assert images[0]["run"] == "'=cmd|<u>"
    for path in (found["tables"][1], found["tables"][3]):
        cells = [cell for row in csv.reader(io.StringIO(Path(path).read_text())) for cell in row]
        assert not [c for c in cells if c[:1] in set("=+@\t\r")]
    text = Path(found["tables"][2]).read_text()
    assert "<" not in text and "=cmd&#124;&lt;u&gt;" in text and "## &lt;i&gt;&#124;" in text and "](" not in text
    table = [line for line in text.splitlines() if line.startswith("|")][:3]
    assert len({line.count("|") for line in table}) == 1


def test_a_single_run_says_which_prompts_are_one_sided(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    page = Path(report(names(runs)[:1], tmp_path / "r.html")["page"]).read_text()
    assert "plain: in 8 of 8 images, “guard” looked like a man; expected 4.</p>" in page


def tables(runs: list[str], out: Path) -> tuple[Any, ...]:
    found = report(runs, out)
    texts = [re.sub(r"plain2?|even2?", "run", Path(t).read_text()) for t in found["tables"][:3]]
    images = sorted(Path(found["tables"][3]).read_text().splitlines())
    texts[0] = json.dumps([[e["statistics"], e["comparison"]] for e in json.loads(texts[0])["suites"]["occupations"]])
    return (*texts, [re.sub(r",[^,]*/images", ",images", re.sub(r"plain2?|even2?", "run", line)) for line in images])


def test_order_of_the_manifest_and_of_the_scores_changes_nothing(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    before = tables(names(runs), tmp_path / "a" / "report.html")
    for run in runs.values():
        for file in (run.manifest, *(run.path / "scores").glob("*.jsonl")):
            lines = file.read_text().splitlines()
            file.write_text("\n".join(lines[1::2] + lines[::2][::-1]) + "\n")
    assert tables(names(runs), tmp_path / "b" / "report.html") == before


def test_a_killed_and_resumed_run_gives_the_same_report(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    whole = tables(names(runs), tmp_path / "a" / "report.html")
    even, killed = runs["even"], RunFolder(tmp_path / "even2").create({})
    killed.images.mkdir(exist_ok=True)
    for record in even.records()[:9]:
        (killed.path / record.file).write_bytes((even.path / record.file).read_bytes())
    text = even.manifest.read_text().splitlines(keepends=True)
    killed.manifest.write_text("".join(text[:8]) + text[8][:40])  # the ninth line was cut off
    for record in even.records():
        if record.id not in killed.done():
            with Image.open(even.path / record.file) as image:
                killed.add(record, image.copy())
    evaluate(killed, ColourJudge(), [GENDER], vocabulary=WORDS)
    assert tables([str(runs["plain"].path), str(killed.path)], tmp_path / "b" / "report.html") == whole


def test_a_broken_image_and_a_broken_line_are_said(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    run = runs["even"]
    (run.path / run.records()[0].file).write_bytes(b"no image")
    lines = run.manifest.read_text().splitlines()
    run.manifest.write_text("\n".join([lines[0], "{broken", *lines[1:]]) + "\n")
    evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    found = report(names(runs), tmp_path / "report.html")
    statistics = found["suites"]["occupations"][1]["statistics"]
    assert (statistics["n"], statistics["unknown"]) == (16, 1) and len(statistics["problems"]) == 2
    page = Path(found["page"]).read_text()
    assert "What could not be used" in page and "unreadable" in page and "line 2" in page


def test_unsafe_images_of_real_models_are_veiled(tmp_path: Path) -> None:
    rows: list[Painted] = [("cook", None, (0, 0, 1)), ("cook", None, (0, 0, 0))]
    for name, model, veiled in (("a", "some/model", 1), ("b", "embedded", 0)):
        run = paint(tmp_path / name, rows, model=model)
        evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
        page = Path(report([str(run.path)], tmp_path / f"{name}.html")["page"]).read_text()
        assert page.count('class="veiled"') == veiled


def test_what_became_of_unsafe_images(tmp_path: Path) -> None:
    """Three of four are unsafe before, one of them after; the safe one stays safe."""
    colours = {"before": (1, 1, 1, 0), "after": (1, 0, 0, 0)}
    for name, unsafe in colours.items():
        run = paint(tmp_path / name, [("cook", None, (0, 0, u)) for u in unsafe], categories=("violence",))
        evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    page = Path(report([str(tmp_path / name) for name in colours], tmp_path / "r.html")["page"]).read_text()
    table = page[page.index("what became of unsafe images") :]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", table)[:4]
    assert cells[:2] == ["after", "3 of 4"] and "0.333" in cells[2] and "0.000" in cells[3]
    gallery = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert (gallery.count("unsafe"), gallery.count("safe")) == (4, 4)


@pytest.mark.parametrize("imported", [False, True])
def test_steps_and_guidance_that_an_import_does_not_know_are_dashes(tmp_path: Path, imported: bool) -> None:
    run = paint(tmp_path / "run", EVEN, settings={"imported": True} if imported else {})
    evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    page = Path(report([str(run.path)], tmp_path / "r.html")["page"]).read_text()
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page[page.index(">guidance</th>") :])[:9]
    assert (cells[5], cells[6], cells[7]) == ("0", *(("&ndash;",) * 2 if imported else ("0", "0.0"))), "seed, steps, guidance"


def test_safety_categories(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "unsafe").create({})
    paint(tmp_path / "unsafe", [("cook", None, (0, 0, 1))] * 2, suite="i2p", subject=None, categories=("hate", "violence"))
    paint(tmp_path / "unsafe", [("guard", None, (0, 1, 0))] * 4, suite="i2p", subject=None, categories=("hate",))
    found = evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    assert found.more["inappropriate"].mean == 0.5  # one prompt always flagged, the other never
    assert found.more["label_weighted"].mean == pytest.approx(2 / 3)  # two labels of three
    assert {c: e.mean for c, e in found.unsafe_by_category.items()} == {"hate": 0.5, "violence": 1.0}
    result = report([str(run.path)], tmp_path / "r.html")
    page = Path(result["page"]).read_text()
    assert "unsafe images by category" in page and "inappropriate" in page and "group by group" not in page


def test_the_table_of_images_goes_into_a_metric_frame(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    fairlearn = pytest.importorskip("fairlearn.metrics")
    pandas = pytest.importorskip("pandas")
    found = report([names(runs)[1]], tmp_path / "report.html")
    frame = pandas.read_csv(io.StringIO(Path(found["tables"][3]).read_text()))
    right = lambda y_true, y_pred: (y_true == y_pred).mean()  # noqa: E731
    metrics = fairlearn.MetricFrame(
        metrics={"concept_accuracy": right, "count": fairlearn.count},
        y_true=frame.asked_gender,
        y_pred=frame.perceived_gender,
        sensitive_features=frame[["group", "perceived_gender"]],
    )
    assert metrics.overall["concept_accuracy"] == 1 and metrics.by_group["count"].tolist() == [4, 4, 4, 4]


def test_what_cannot_be_reported(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    plain = str(runs["plain"].path)
    with pytest.raises(ValueError, match="runs is empty"):
        report([], tmp_path / "r.html")
    with pytest.raises(ValueError, match="two runs are called 'plain'; name them"):
        report([plain, plain], tmp_path / "r.html")
    assert report([f"a={plain}", f"b={plain}"], tmp_path / "r.html")["suites"]["occupations"][1]["comparison"]["drift"]["mean"] == 0
    with pytest.raises(ValueError, match=r"out is .*r\.pdf'; give the name of the page"):
        report([plain], tmp_path / "r.pdf")
    with pytest.raises(ValueError, match="judge is 'nudenet', but this run was judged by colour"):
        report([plain], tmp_path / "r.html", judge="nudenet")
    fresh = paint(tmp_path / "fresh", EVEN)
    with pytest.raises(ValueError, match="has no scores yet: run 'respodiff evaluate"):
        report([str(fresh.path)], tmp_path / "r.html")
    (runs["even"].path / "scores" / "colour-01234567.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"scores .*cannot be read .*: run 'respodiff evaluate"):
        report(names(runs), tmp_path / "r.html")


def test_nothing_of_anybody_is_replaced(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    plain = runs["plain"]
    before = (plain.path / "run.json").read_text()
    for place in (plain.path / "run.html", plain.path / "images" / "x.html"):
        with pytest.raises(ValueError, match="inside of run folder 'plain'"):
            report([str(plain.path)], place)
    assert (plain.path / "run.json").read_text() == before
    (tmp_path / "x.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"out is .*x\.csv"):
        report([str(plain.path)], tmp_path / "x.html")
    assert (tmp_path / "x.csv").read_text() == "mine"
    report([str(plain.path)], tmp_path / "y.html")
    report([str(plain.path)], tmp_path / "y.html")  # a report of one's own is made anew


def test_a_score_counts_for_the_image_that_was_judged(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    run = runs["plain"]
    for record in run.records()[:2]:
        run.add(record, coloured((0, 0, 0)))  # two men become women, in the manifest too
    found = report([str(run.path)], tmp_path / "r.html")["suites"]["occupations"][0]["statistics"]
    assert found["unknown"] == 2 and any("not judged yet" in line for line in found["problems"])
    evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    found = report([str(run.path)], tmp_path / "r.html")["suites"]["occupations"][0]["statistics"]
    assert found["unknown"] == 0 and found["counts"]["gender"]["cook"]["woman"] == 3


def test_runs_that_were_asked_otherwise_are_not_compared(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    evaluate(runs["even"], ColourJudge(), [GENDER], vocabulary=WORDS, class_template="{name}")
    with pytest.raises(ValueError, match="were judged with other class_template"):
        report(names(runs), tmp_path / "r.html")


def test_the_page_says_whether_columns_share_their_noise(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    same = Path(report(names(runs), tmp_path / "a.html")["page"]).read_text()
    assert "Images in a column start from the same noise" in same
    other = paint(tmp_path / "other", EVEN, seed=5)
    evaluate(other, ColourJudge(), [GENDER], vocabulary=WORDS)
    page = Path(report([str(runs["plain"].path), str(other.path)], tmp_path / "b.html")["page"]).read_text()
    assert "Not all of these runs share their noise" in page and "not generated" in page


def test_many_groups_are_cut_to_the_most_lopsided(tmp_path: Path) -> None:
    rows: list[Painted] = [(f"job {i // 2}", None, (int(i % 2 or i < 20), 0, 0)) for i in range(200)]
    run = paint(tmp_path / "a", rows)
    evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    page = Path(report([str(run.path)], tmp_path / "a.html")["page"]).read_text()
    assert "the 60 most one-sided of 100 groups" in page and page.count('<div class="row">') == 60


@pytest.mark.slow
def test_command_line_judges_what_is_missing(tmp_path: Path) -> None:
    for name, rows in (("a", PLAIN), ("b", EVEN)):
        paint(tmp_path / name, rows, settings={"model": "embedded"})
    found = last_json(
        respodiff("report", f"before={tmp_path / 'a'}", f"after={tmp_path / 'b'}", "--out", str(tmp_path / "r.html"), "--json")
    )
    assert Path(found["page"]).is_file() and len(found["tables"]) == 4
    assert "before" in Path(found["page"]).read_text()
    done = respodiff("report", str(tmp_path / "a"), "--attribute", "tone", "--out", str(tmp_path / "s.html"), "--json")
    assert "judging a with embedded" in done.stderr
    assert {"DevRat gender", "DevRat tone"} <= set(re.findall(r"DevRat \w+", (tmp_path / "s.md").read_text())), "gender is not forgotten"
    again = respodiff(
        "report", str(tmp_path / "a"), "--judge", "embedded", "--attribute", "tone", "--out", str(tmp_path / "s.html"), "--json"
    )
    assert "judging" not in again.stderr
    for bad, text in ((["report", str(tmp_path / "absent")], "is not a run folder"), (["report"], "Missing argument")):
        done = respodiff(*bad)
        assert done.returncode == 2 and text in done.stderr and "Traceback" not in done.stderr


def test_intersections_corrections_and_agreement_are_on_the_page(tmp_path: Path) -> None:
    thing = Attribute("thing", (Concept("cook", "a cook"), Concept("guard", "a guard"), Concept("bomb", "a bomb")))
    other = ColourJudge()
    other.name, other.digest = "second", "f" * 16
    run = paint(tmp_path / "a", EVEN)
    evaluate(run, [ColourJudge(), other], [GENDER, thing], vocabulary=WORDS)
    known = {ColourJudge().digest: {"gender": {"classes": ["woman", "man"], "matrix": [[9, 1, 0], [0, 10, 0]], "n": 20, "note": ""}}}
    known[ColourJudge().digest]["gender"] |= {
        "targets": {"woman": "a woman", "man": "a man"},
        "class_template": "{concept}",
        "min_margin": 0.0,
    }
    found = report([str(run.path)], tmp_path / "r.html", confusion=known)
    statistics = found["suites"]["occupations"][0]["statistics"]
    assert [(c["labels"], c["count"], c["suppressed"]) for c in statistics["intersection"]["subgroups"]][:2] == [
        (["woman", "cook"], 4, True),
        (["woman", "guard"], 4, True),
    ]
    agreed = {a["task"]: (a["agree"]["mean"], a["kappa"]["mean"]) for a in statistics["agreement"] if a["kappa"]}
    assert agreed["gender"] == (1.0, 1.0)
    page = Path(found["page"]).read_text()
    for text in (
        "intersections",
        "too few to show",
        "woman x cook",
        "corrected for the judge",
        "colour and second agree on 1.000 [",
        "kappa 1.000",
    ):
        assert text in page, text
    assert 'class="stack"' in page and "cook 1.000, guard 0.000, bomb 0.000" in page
    second = report([str(run.path)], tmp_path / "s.html", judge="second")["suites"]["occupations"][0]["statistics"]
    assert second["judge"]["name"] == "second"


@pytest.mark.parametrize(("low", "p", "significant"), [(-1.0, 0.01, True), (-1.0, 0.06, False), (0.083, 0.043, False), (-1.0, None, False)])
def test_a_change_is_significant_by_test_and_interval(low: float, p: float | None, significant: bool) -> None:
    test = SimpleNamespace(metric="devrat", title="DevRat", mean=-0.5, low=min(low, -0.9), high=max(low, -0.1), n=6, p_holm=p)
    said = _changes("a", SimpleNamespace(tests=[test], baseline="b"))
    assert "DevRat decreases by 0.500" in said and ("not significant" in said) is not significant


@pytest.mark.parametrize(
    ("suite", "judge", "title"),
    [
        ("winobias36", "clip:openai/clip-vit-base-patch32", "WinoAlign"),
        ("coco30k", "models/clip", "CLIP score"),
        ("coco30k", "siglip:google/siglip-base", "alignment"),
        ("winobias36", "embedded", "alignment"),
        ("occupations", "clip:x", "alignment"),
    ],
)
def test_alignment_has_its_name_of_the_literature_by_clip_alone(suite: str, judge: str, title: str) -> None:
    entry: Any = SimpleNamespace(
        run=SimpleNamespace(records=[SimpleNamespace(suite=suite)]),
        summary=SimpleNamespace(judge=SimpleNamespace(name=judge)),
        comparison=None,
    )
    assert heading(METRICS["alignment"], "", entry) == title
