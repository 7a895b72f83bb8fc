"""Files from anywhere: paths that rows name stay inside of their folder, and nothing waits for a pipe or reads a device."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from painted import GENDER, WORDS, ColourJudge, paint
from respodiff.data.import_images import import_folder
from respodiff.data.run_folder import RunFolder
from respodiff.data.untrusted import confined
from respodiff.evaluation.calibration import calibrate
from respodiff.evaluation.evaluate import evaluate
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
