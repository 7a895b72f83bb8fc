from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from command import last_json, respodiff
from respodiff.data.import_images import import_folder
from respodiff.data.prompt_sets import suite
from respodiff.data.run_folder import RunFolder, file_digest

HEADER = "file,prompt,prompt_id,suite,group,subject,seed,repeat,method,guidance,steps,categories,width,concept:gender,concept:tone"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Images of another tool: a.png, b.JPG, and c.webp in a subfolder."""
    folder = tmp_path / "theirs"
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.JPG", "sub/c.webp")):
        Image.new("RGB", (8, 6 + i), (40 * i, 0, 0)).save(folder / name)
    return folder


def table(folder: Path, *lines: str, header: str = "file,prompt") -> Path:
    path = folder.parent / "table.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_all_columns(theirs: Path, tmp_path: Path) -> None:
    csv = table(
        theirs,
        'a.png,"a doctor, smiling",occupations/doctor,occupations,doctor,health worker,7,3,uce,7.5,50,hate|sexual,9,woman,',
        header=HEADER,
    )
    run = import_folder(theirs, csv, tmp_path / "run")
    (found,) = run.records()
    assert (found.id, found.file, found.prompt) == ("occupations_doctor-0003", "images/occupations_doctor-0003.png", "a doctor, smiling")
    assert (found.suite, found.group, found.subject, found.method) == ("occupations", "doctor", "health worker", "uce")
    assert (found.own_seed, found.repeat, found.guidance, found.steps) == (7, 3, 7.5, 50)
    assert (found.categories, found.concepts) == (("hate", "sexual"), {"gender": "woman"})
    assert (found.width, found.height) == (8, 6), "of the image, not of the table"
    assert found.digest == file_digest(theirs / "a.png") == file_digest(run.path / found.file)


def test_file_and_prompt_are_enough_and_formats_stay(theirs: Path, tmp_path: Path) -> None:
    csv = table(theirs, "a.png,a doctor", "./b.JPG,a doctor", "sub/c.webp,a nurse")
    run = import_folder(theirs, csv, tmp_path / "run", method="theirs")
    found = run.records()
    assert [r.repeat for r in found] == [0, 1, 0] and [Path(r.file).suffix for r in found] == [".png", ".jpg", ".webp"]
    assert {(r.prompt_id, r.group, r.method) for r in found} == {("a doctor", "a doctor", "theirs"), ("a nurse", "a nurse", "theirs")}
    assert run.done() == {r.id for r in found} and not list(run.images.glob("*.tmp"))
    assert [r.id for r in import_folder(theirs, csv, tmp_path / "again", method="theirs").records()] == [r.id for r in found]


def test_an_import_into_a_run_that_is_being_written_is_refused(theirs: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").lock(), pytest.raises(OSError):
        import_folder(theirs, table(theirs, "a.png,a doctor"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_cut_off_import_goes_on(theirs: Path, tmp_path: Path) -> None:
    csv = table(theirs, "a.png,a doctor", "b.JPG,a doctor")
    run = import_folder(theirs, csv, tmp_path / "run")
    before = run.records()
    run.manifest.write_bytes(run.manifest.read_bytes().splitlines(keepends=True)[0])
    assert import_folder(theirs, csv, tmp_path / "run").records() == before
    assert sorted(p.name for p in run.images.iterdir()) == sorted(Path(r.file).name for r in before)
    with pytest.raises(ValueError, match="was made with table_digest="):
        import_folder(theirs, table(theirs, "a.png,a nurse"), tmp_path / "run")


def test_unreadable_image_is_kept_and_told(theirs: Path, tmp_path: Path) -> None:
    (theirs / "broken.png").write_bytes(b"no image")
    csv = table(theirs, "a.png,a doctor", "broken.png,a doctor")
    with pytest.warns(UserWarning, match=r"1 of 2 images cannot be read, first 'broken.png': kept, a judge counts them as unknown"):
        run = import_folder(theirs, csv, tmp_path / "run")
    assert [(r.width, r.height) for r in run.records()] == [(8, 6), (0, 0)]
    assert (run.path / run.records()[1].file).read_bytes() == b"no image"


@pytest.mark.parametrize(
    ("header", "lines", "said"),
    [
        ("image,prompt", ["a.png,a doctor"], r"table.csv has no column 'file'; found: image, prompt"),
        ("file,prompt", [], r"table.csv has no row; give one row per image"),
        ("file,prompt", ["d.png,a doctor", "a.png,a doctor"], r"line 2: file 'd.png' is not in .*: give the folder"),
        ("file,prompt", ["../table.csv,a doctor"], r"line 2: file '\.\./table\.csv' is outside"),
        ("file,prompt", ["/etc/hostname,a doctor"], r"is outside of"),
        ("file,prompt", ["link.png,a doctor"], r"is outside of"),
        ("file,prompt", [",a doctor"], r"line 2: file '' is outside"),
        ("file,prompt", ["a.png,"], r"line 2: prompt is empty"),
        ("file,prompt", ["a.png,a doctor", "a.png,a nurse"], r"lines 2 and 3 are both file 'a.png': leave one out"),
        ("file,prompt,repeat", ["a.png,a doctor,1", "b.JPG,a doctor,1"], r"lines 2 and 3 are both image 1 of prompt 'a doctor'"),
        ("file,prompt,repeat", ["a.png,a doctor,-1"], r"table\.csv, line 2: repeat is -1; allowed: 0 or more"),
        ("file,prompt,seed", ["a.png,a doctor,x"], r"line 2: seed is 'x'; allowed: a whole number"),
    ],
)
def test_bad_tables_are_refused_before_anything_is_written(theirs: Path, tmp_path: Path, header: str, lines: list[str], said: str) -> None:
    (theirs / "link.png").symlink_to(tmp_path / "table.csv")
    with pytest.raises(ValueError, match=said) as caught:
        import_folder(theirs, table(theirs, *lines, header=header), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder is '.*nowhere', which is no folder"):
        import_folder(tmp_path / "nowhere", tmp_path / "t.csv", tmp_path / "run")


def test_the_verb(theirs: Path, tmp_path: Path) -> None:
    (theirs / "broken.png").write_bytes(b"no image")
    csv = table(theirs, "a.png,a doctor", "broken.png,a nurse")
    run = tmp_path / "run"
    done = respodiff("import", str(theirs), "--csv", str(csv), "--out", str(run), "--method", "theirs", "--json")
    assert last_json(done) == {"run": str(run), "images": 2} and "1 of 2 images cannot be read" in done.stderr
    assert {r.method for r in RunFolder(run).records()} == {"theirs"} and json.loads((run / "run.json").read_text())["imported"] is True
    assert "next: respodiff evaluate" in respodiff("import", str(theirs), "--csv", str(csv), "--out", str(run), "--method", "theirs").stdout
    done = respodiff("import", str(theirs), "--csv", "none.csv", "--out", str(run))
    assert done.returncode == 2 and "none.csv" in done.stderr and done.stderr.count("\n") == 1
    assert "Example: respodiff import" in respodiff("import", "--help").stdout


@pytest.mark.filterwarnings("ignore:.*is not the published", "ignore:coco1k wants")
def test_images_of_coco_belong_to_captions_by_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "val" / "sub").mkdir(parents=True)
    for name in ("COCO_val2014_000000000042.jpg", "sub/000000000007.png", "COCO_val2014_000000000099.jpg"):
        Image.new("RGB", (8, 8), (40, 0, 0)).save(tmp_path / "val" / name)
    captions = tmp_path / "c.csv"
    captions.write_text("image_id,prompt\n42,A boat.\n7,A lake.\n")
    command = ["import", str(tmp_path / "val"), "--suite", "coco30k", "--suite-path", str(captions), "--out", str(tmp_path / "run")]
    assert last_json(respodiff(*command, "--json"))["images"] == 2
    found = {r.prompt_id: r for r in RunFolder(tmp_path / "run").records()}
    assert found["coco30k/000000000042"].prompt == "A boat." and found["coco30k/000000000007"].group == "captions"
    source = tmp_path / "val" / "COCO_val2014_000000000042.jpg"
    assert found["coco30k/000000000042"].digest == file_digest(source) and suite("coco30k", path=captions)[0].id == "coco30k/000000000042"
    captions.write_text("image_id,prompt\n42,A boat.\n42,A ship.\n")
    assert last_json(respodiff(*command[:-1], str(tmp_path / "two"), "--json"))["images"] == 2, "two captions of one image"
    for text, told in (("image_id,prompt\n42,A boat.\n43,A house.\n", "000000000043"), ("prompt\nA boat.\n", "image_id")):
        captions.write_text(text)
        refused = respodiff(*command[:-1], str(tmp_path / "new"))
        assert refused.returncode == 2 and told in refused.stderr and not (tmp_path / "new").exists()
    for both in (["--csv", str(captions)], ["--suite", "i2p"]):
        assert respodiff(*command, *both).returncode == 2
