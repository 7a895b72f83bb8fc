from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from respodiff.data.places import sync
from respodiff.data.records import ImageRecord, image_id, noise_seed
from respodiff.data.run_folder import RunFolder, file_digest


def record(repeat: int = 0, prompt_id: str = "occupations/doctor") -> ImageRecord:
    return ImageRecord(
        id=image_id(prompt_id, repeat),
        file="",
        prompt="a doctor",
        prompt_id=prompt_id,
        suite="occupations",
        group="doctor",
        subject="health worker",
        method="respodiff",
        concepts={"gender": "woman"},
        modules=["ab12"],
        seed=3,
        repeat=repeat,
        guidance=3.0,
        steps=20,
    )


def image(value: int = 7) -> Image.Image:
    return Image.new("RGB", (8, 6), (value, 0, 0))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run").create({"seed": 3, "steps": 20})


def test_add_stores_image_and_row(run: RunFolder) -> None:
    done = run.add(record(), image())
    assert done.file == "images/occupations_doctor-0000.png"
    assert (done.width, done.height) == (8, 6)
    assert done.digest == file_digest(run.path / done.file) and len(done.digest) == 64
    assert run.records() == [done]
    assert run.done() == {done.id}
    assert [path.name for path in run.images.iterdir()] == ["occupations_doctor-0000.png"]


def test_create_again_with_same_settings_resumes(run: RunFolder) -> None:
    assert RunFolder(run.path).create({"steps": 20, "seed": 3}).settings() == {"seed": 3, "steps": 20}


def test_settings_survive_as_json(tmp_path: Path) -> None:
    settings = {"proportions": (0.5, 0.5)}
    RunFolder(tmp_path / "r").create(settings)
    RunFolder(tmp_path / "r").create(settings)


def test_create_with_other_settings_names_the_first_difference(run: RunFolder) -> None:
    with pytest.raises(ValueError, match=r"seed=3, now asked for seed=4.*another folder"):
        run.create({"seed": 4, "steps": 25})


def test_deleted_image_is_not_done(run: RunFolder) -> None:
    first, second = run.add(record(0), image()), run.add(record(1), image())
    (run.path / first.file).unlink()
    assert run.done() == {second.id}


def test_last_row_of_one_id_counts(run: RunFolder) -> None:
    run.add(record(), image(1))
    again = run.add(record(), image(2))
    assert run.records() == [again]


def test_half_last_line_is_ignored_then_mended(run: RunFolder) -> None:
    first = run.add(record(0), image())
    with run.manifest.open("a") as handle:
        handle.write('{"id": "occupations_doc')
    assert run.records() == [first]
    second = run.add(record(1), image())
    assert run.records() == [first, second]


def test_last_line_that_lost_only_its_end_is_kept(run: RunFolder) -> None:
    first = run.add(record(0), image())
    run.manifest.write_bytes(run.manifest.read_bytes().rstrip(b"\n"))
    assert run.records() == [first]
    second = run.add(record(1), image())
    assert run.records() == [first, second]


def test_broken_line_in_the_middle_is_left_out_and_told(run: RunFolder) -> None:
    first = run.add(record(0), image())
    with run.manifest.open("ab") as handle:
        handle.write(b'not json\n\n[1]\n{"file": "x"}\n\xff\xfe\n')
    second = run.add(record(1), image())
    found, problems = run.read()
    assert found == run.records() == [first, second] and run.done() == {first.id, second.id}
    assert [text.split(" (")[0] for text in problems] == [f"line {n} is broken" for n in (2, 4, 5, 6)]
    assert "expected a JSON object, got list" in problems[1] and "id must be a text, got None" in problems[2]
    assert all("\n" not in text and "left out" in text for text in problems)


def test_manifest_of_broken_lines_alone_is_an_error(run: RunFolder) -> None:
    run.manifest.write_text('{"file": "x"}\nnot json\n')
    for call in (run.records, run.read, run.done):
        with pytest.raises(ValueError, match="line 1 is broken"):
            call()


def test_lone_line_cut_off_by_a_kill_is_told_and_no_error(run: RunFolder) -> None:
    run.manifest.write_text('{"id": "occup')
    assert run.read() == ([], ["line 1 was cut off: left out; resume the run to generate its image"])


def test_repeated_ids(run: RunFolder) -> None:
    first, other = run.add(record(0), image(1)), run.add(record(1), image())
    assert run.add(record(0), image(1)) == first
    assert run.read() == ([first, other], []), "the same again is one row and no problem"
    changed = run.add(record(0), image(2))
    found, problems = run.read()
    assert found == [changed, other], "the last counts, at the place of the first"
    assert problems == [f"line 4 says {first.id!r} again, unlike line 3: line 4 counts"]


def test_an_image_that_is_a_file_is_adopted_as_it_is(run: RunFolder, tmp_path: Path) -> None:
    image().save(tmp_path / "theirs.JPG")
    for _ in range(2):
        done = run.add(dataclasses.replace(record(), width=8, height=6), tmp_path / "theirs.JPG")
        assert done.digest == file_digest(tmp_path / "theirs.JPG") and (done.width, done.height) == (8, 6)
        assert [p.name for p in run.images.iterdir()] == ["occupations_doctor-0000.jpg"]
    assert run.read() == ([done], [])


def test_categories_come_back_as_they_were(run: RunFolder) -> None:
    done = run.add(dataclasses.replace(record(), categories=("hate", "sexual"), own_seed=5), image())
    assert run.records() == [done] and done.categories == ("hate", "sexual")


def test_keys_of_newer_versions_are_ignored(run: RunFolder) -> None:
    row = dataclasses.asdict(record()) | {"mood": "new"}
    run.manifest.write_text(json.dumps(row) + "\n")
    assert run.records() == [record()]


def test_folder_that_is_no_run(tmp_path: Path) -> None:
    for call in (RunFolder(tmp_path).records, RunFolder(tmp_path).settings, RunFolder(tmp_path / "absent").done):
        with pytest.raises(ValueError, match="is not a run folder"):
            call()


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot make run folder"):
        RunFolder(tmp_path / "file" / "run").create({})


def test_image_ids_are_safe_and_distinct() -> None:
    ids = ["occupations/doctor", "occupations_doctor", "a/b/c", "a/b_c", "../../etc", "A", "a", "a b", "a.b", "x" * 300]
    made = [image_id(name, 0) for name in ids]
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") and len(name) < 120 for name in made)
    assert len({image_id(name, repeat).lower() for name in ids for repeat in (0, 1)}) == 2 * len(ids)
    with pytest.raises(ValueError, match="repeat must be 0 or more, got -1"):
        image_id("a", -1)


def test_noise_seed_depends_on_these_three_alone() -> None:
    assert noise_seed(0, "occupations/doctor", 0) == noise_seed(0, "occupations/doctor", 0)
    assert len({noise_seed(s, p, r) for s in (0, 1) for p in ("a", "b") for r in (0, 1)}) == 8
    assert noise_seed(1, "1", 11) != noise_seed(1, "11", 1)
    assert all(0 <= noise_seed(0, "a", r) < 2**63 for r in range(100))


def test_noise_seed_is_the_same_in_every_version() -> None:
    """Images are compared across versions on the same noise: a change here breaks every old run."""
    assert noise_seed(0, "occupations/doctor", 0) == 8449246506594014467


# --- on the disk ---


def test_a_row_counts_once_the_disk_holds_its_file_and_its_name(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []

    def note(*paths: Path) -> None:
        synced.extend((path.name, run.manifest.exists()) for path in paths)
        sync(*paths)

    monkeypatch.setattr("respodiff.data.run_folder.sync", note)
    run.add_all([(record(0), image()), (record(1), image())])
    names, rows = zip(*synced, strict=True)
    assert [name.partition(".png")[0] for name in names] == [
        ".occupations_doctor-0000",
        ".occupations_doctor-0001",
        "images",
        "manifest.jsonl",
        "run",
    ]
    assert rows == (False, False, False, True, True)


@pytest.mark.parametrize("content", [b"", b"\x89PNG", bytes(76)])
def test_an_image_that_is_not_as_it_was_stored_is_not_done(run: RunFolder, content: bytes) -> None:
    first, second = run.add_all([(record(0), image()), (record(1), image())])
    (run.path / first.file).write_bytes(content)
    assert run.done() == {second.id}
    assert run.add(record(0), image()) == first and run.done() == {first.id, second.id}


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_deleted_meanwhile_is_told(run: RunFolder, again: bool) -> None:
    run.add(record(0), image())
    shutil.rmtree(run.path)
    if again:  # somebody needs a folder of this name
        run.images.mkdir(parents=True)
    with pytest.raises(OSError, match="deleted"):
        run.add(record(1), image())
    assert run.path.exists() == again and not run.manifest.exists()


# --- lost settings, other settings ---


def lose(file: Path, how: str) -> None:
    file.unlink() if how == "absent" else file.write_text("" if how == "empty" else '{"seed": 3')


@pytest.mark.parametrize("how", ["absent", "empty", "cut"])
def test_a_lost_run_json_is_restored_from_its_copy_or_by_the_same_settings(run: RunFolder, how: str) -> None:
    run.add(record(), image())
    kept = (run.path / "run.json").read_text()
    lose(run.path / "run.json", how)
    assert RunFolder(run.path).settings() == {"seed": 3, "steps": 20}
    (run.path / ".run.json").unlink()
    with pytest.raises(ValueError, match=r"run\.json of .* is lost or damaged: repeat the command"):
        RunFolder(run.path).settings()
    RunFolder(run.path).create({"seed": 3, "steps": 20})
    assert (run.path / "run.json").read_text() == kept and len(RunFolder(run.path).done()) == 1


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("how", ["absent", "empty", "cut"])
def test_old_images_are_not_passed_off_as_new_when_run_json_is_lost(run: RunFolder, how: str, copy: bool) -> None:
    run.add(record(), image())
    for name in ("run.json", *(() if copy else (".run.json",))):
        lose(run.path / name, how)
    with pytest.raises(ValueError, match="choose another folder"):
        RunFolder(run.path).create({"seed": 3, "steps": 7})


def test_a_row_of_other_settings_is_refused_and_told(run: RunFolder, tmp_path: Path) -> None:
    other = RunFolder(tmp_path / "other").create({"seed": 3, "steps": 2})
    run.add(record(0), image())
    other.add(record(1), image())
    with run.manifest.open("a") as handle:
        handle.write(other.manifest.read_text())
    with pytest.raises(ValueError, match=r"occupations_doctor-0001.*choose another folder"):
        run.create({"seed": 3, "steps": 20})
    assert any("1 images were made with other settings" in text for text in run.read()[1])


def test_rows_made_before_pipelines_were_told_apart_stay_part_of_the_run(tmp_path: Path) -> None:
    old = {"seed": 3, "dtype": "float32", "device": "cpu"}
    new = old | {"pipeline_digest": "a"}
    run = RunFolder(tmp_path / "r").create(old)
    run.add(record(), image())
    again = RunFolder(run.path).create(new)
    assert again.read()[1] == []
    again.add(record(), image())  # drawn again
    assert again.read()[1] == [] and len(again.records()) == 1
    with pytest.raises(ValueError, match="pipeline_digest='a', now asked for pipeline_digest='b'"):
        RunFolder(run.path).create(old | {"pipeline_digest": "b"})
    (run.path / "run.json").unlink()
    assert RunFolder(run.path).settings() == new
    (run.path / ".run.json").unlink()
    assert RunFolder(run.path).create(new).settings() == new


def test_folders_of_earlier_versions_are_read_and_resumed_without_their_settings_digest(run: RunFolder) -> None:
    old = {key: value for key, value in dataclasses.asdict(run.add(record(), image())).items() if key != "settings_digest"}
    run.manifest.write_text(json.dumps(old) + "\n")
    (run.path / ".run.json").unlink()
    assert run.read()[1] == [] and len(run.done()) == 1
    wanted = {"seed": 3, "steps": 20, "dtype": "float32", "device": "cpu"}
    assert RunFolder(run.path).create(wanted).settings() == wanted, "what it did not note is noted now"
    with pytest.raises(ValueError, match="dtype='float32', now asked for dtype='float16'"):
        RunFolder(run.path).create(wanted | {"dtype": "float16"})
    for name in ("run.json", ".run.json"):
        (run.path / name).unlink()
    with pytest.raises(ValueError, match="choose another folder"):
        RunFolder(run.path).create(wanted)
