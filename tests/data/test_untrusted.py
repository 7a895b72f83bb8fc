"""Files from anywhere: paths that rows name stay inside of their folder, and nothing waits for a pipe or reads a device."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from painted import GENDER, WORDS, ColourJudge, paint
from respodiff.concepts.concept import Concept, is_unicode, load_concepts
from respodiff.data.import_images import import_folder
from respodiff.data.records import ImageRecord, parse_row
from respodiff.data.run_folder import RunFolder
from respodiff.data.tables import read_text
from respodiff.data.untrusted import confined, from_json, printable, read_json, shortened
from respodiff.evaluation.calibration import calibrate, read_confusion
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import Score
from respodiff.reports.run_report import report


@pytest.fixture
def alarm() -> Iterator[None]:
    """A test that waits for ever fails after 20 seconds."""

    def ring(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    found = paint(tmp_path / "run", [("cook", "woman", (0, 0, 0)), ("cook", "man", (1, 0, 0)), ("guard", "man", (1, 1, 0))])
    evaluate(found, ColourJudge(), [GENDER], vocabulary=WORDS)
    return found


def replace(file: Path, kind: str) -> None:
    """The file becomes a pipe, or a link to a device or to a file elsewhere."""
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    else:
        file.symlink_to(kind)


KINDS = ["fifo", "/dev/zero", "/etc/hostname"]


def test_only_regular_files_inside_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "images").mkdir(parents=True)
    (tmp_path / "runs.txt").write_text("beside, with a name that starts alike")
    (folder / "a.png").write_text("a")
    (folder / "alias.png").symlink_to(folder / "a.png")
    for name in ("a.png", "./a.png", "images/../a.png", "alias.png", str(folder / "a.png")):
        assert confined(folder, name).read_text() == "a"
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "out").symlink_to(tmp_path / "runs.txt")
    (folder / "loop").symlink_to(folder / "loop")
    for name in ("pipe", "images", "none.png", "loop", "x" * 5000):
        with pytest.raises(FileNotFoundError):
            confined(folder, name)
    for name in ("", ".", "..", "../runs.txt", "/etc/hostname", "zero", "out", "a\0b"):
        with pytest.raises(ValueError):
            confined(folder, name)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_none(run: RunFolder, kind: str, tmp_path: Path) -> None:
    replace(run.path / run.records()[0].file, kind)
    assert len(run.done()) == 2
    page = Path(report([run.path], tmp_path / "page.html")["page"]).read_text()
    assert page.count("data:image/webp") == 2
    found = evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    assert (found.n, found.unknown) == (3, 1)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["manifest.jsonl", "run.json", "scores/colour-01234567.json", "scores/colour-01234567.jsonl"])
def test_other_files_of_a_run_that_are_none(run: RunFolder, kind: str, name: str, tmp_path: Path) -> None:
    replace(run.path / name, kind)
    (run.path / ".run.json").unlink()  # the copy, which would do
    with pytest.raises((ValueError, OSError)):
        report([run.path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_that_are_none_are_made_anew(run: RunFolder, kind: str) -> None:
    vectors = run.path / "scores" / "colour-01234567.safetensors"
    replace(vectors, kind)
    judge = ColourJudge()
    evaluate(run, judge, [GENDER], vocabulary=WORDS)
    assert judge.seen == 3 and stat.S_ISREG(vectors.lstat().st_mode)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("kind", KINDS)
def test_tables_that_name_what_is_no_image(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").touch()
    replace(folder / "a.png", kind)
    (folder / "t.csv").write_text("file,prompt,gender\na.png,a cook,woman\n")
    with pytest.raises(ValueError, match=r"t\.csv, line 2: file 'a\.png'"):
        import_folder(folder, folder / "t.csv", tmp_path / "run")
    with pytest.raises(ValueError, match=r"t\.csv"):
        calibrate(folder / "t.csv", ColourJudge(), [GENDER])
    assert not (tmp_path / "run").exists()


# --- JSON and texts ---

DEEP = "[" * 100_000


def test_deep_nesting_is_an_error_of_ours(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(DEEP)
    for name, text in (("c.json", DEEP), ("c.toml", f"a = {DEEP}")):
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="confusion file"):
        read_confusion(tmp_path / "c.json")
    with pytest.raises(ValueError, match="concept file"):
        load_concepts(tmp_path / "c.toml")
    with run.manifest.open("a") as handle:
        handle.write(f'{{"id": {DEEP}\n')
    assert len(run.records()) == 3 and "line 4 is broken" in run.read()[1][0]
    (run.path / "scores" / "colour-01234567.jsonl").write_text(DEEP)
    with pytest.raises(ValueError, match="run 'respodiff evaluate"):
        report([run.path], tmp_path / "page.html")


def test_scores_that_have_changed_are_made_anew(run: RunFolder, tmp_path: Path) -> None:
    before, scores = evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS), run.path / "scores" / "colour-01234567.jsonl"
    scores.write_text(scores.read_text().replace('{"gender": "woman"}', '{"gender": "man"}'))
    with pytest.raises(ValueError, match="have changed"):
        report([run.path], tmp_path / "page.html")
    assert evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS) == before


def test_half_a_character_is_no_text() -> None:
    assert is_unicode("") and is_unicode("é\U0001f469") and not is_unicode("a\udc80")
    for change in ({"name": "\udc80"}, {"target": "a \udc80"}, {"negative": "\udc80"}):
        with pytest.raises(ValueError, match="half of a character"):
            Concept(**{"name": "n", "target": "t", **change})


RECORD = ImageRecord("a-0000", "images/a.png", "a doctor", "a", categories=("x",), margins={"gender": 1}, own_seed=3)


def test_a_record_comes_back() -> None:
    assert parse_row(json.dumps(dataclasses.asdict(RECORD) | {"newer": [1]}).encode()) == RECORD
    assert from_json(Score, {"id": "a", "score": 1, "problem": None}) == Score("a", score=1)


@pytest.mark.parametrize(
    "change",
    [
        *({"id": v} for v in (None, 3, ["a"], "x" * 300)),
        *({"steps": v} for v in ("2", 2.0, True, None)),
        *({"guidance": v} for v in ("7", None, False, [1.0])),
        *({"own_seed": v} for v in ([3], "3", {})),
        *({"modules": v} for v in ("ab", [1], None, {})),
        *({"margins": v} for v in ({"a": "b"}, [1], None)),
        *({"concepts": v} for v in ({"a": None}, "woman")),
        *({"scheduler": v} for v in (None, 5)),
    ],
)
def test_a_value_of_another_type_is_no_record(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(change))} (must be|has) "):
        parse_row(json.dumps(dataclasses.asdict(RECORD) | change).encode())


def test_a_long_value_is_not_repeated() -> None:
    with pytest.raises(ValueError) as caught:
        parse_row(json.dumps(dataclasses.asdict(RECORD) | {"group": ["x" * 10**6]}).encode())
    assert len(str(caught.value)) < 400
    text = shortened(f"group is {'y' * 10**6!r}; allowed: a, b; it's one of the model's own")
    assert len(text) < 300 and text.endswith("; allowed: a, b; it's one of the model's own")
    assert len(shortened("z" * 10**6)) < 1000
    assert shortened("group is 'short', \"it's\"") == "group is 'short', \"it's\""


def test_only_what_can_be_printed() -> None:
    assert printable("\x1b[2J\x1b[31;1mred\x1b[0m \x9b5mblink \x1b(B\a\b\0\r x\u202ey") == "red blink B x" + "y"
    assert (
        printable("[/big] [bold]hat[/bold]\n\té :smile: \U0001f469\u200d\U0001f52c")
        == "[/big] [bold]hat[/bold]\n\té :smile: \U0001f469\u200d\U0001f52c"
    )
    assert printable("a\ud800b").encode() == "a\ufffdb".encode()


@pytest.mark.usefixtures("alarm")
def test_a_device_is_no_table() -> None:
    with pytest.raises(ValueError, match="has more than"):
        read_text(Path("/dev/zero"))
