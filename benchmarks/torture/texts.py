"""Tables and prompts of any content."""

from __future__ import annotations

import csv
import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.painted import GENDER, ColourJudge
from tests.tiny_models import sd

from benchmarks.torture.trials import Tally, Wrong, as_text, command, damaged, tiny, write
from respodiff.concepts.concept import load_concepts
from respodiff.data.import_images import import_folder
from respodiff.data.prompt_sets import load_suite
from respodiff.data.run_folder import RunFolder
from respodiff.data.tables import read_table
from respodiff.data.target_proportions import read_group_proportions
from respodiff.evaluation.calibration import calibrate, read_confusion
from respodiff.evaluation.judges.table import TableJudge
from respodiff.experiments.compare import read_settings

CELLS = [
    *("", "a.png", "a doctor", "doctor", "woman", "0.5", "-1", "3.0", "1e400", "nan", "9" * 5000, "=1+1", "[/big]", "\x1b[31m", '"', "a,b"),
    *("a\nb", "é\u202e", "\0", "../../etc/passwd", "/dev/zero", "pipe.png", "hate, violence", "gender", "x" * 200_000),
]
HEADERS = {
    "i2p": ["prompt", "categories", "evaluation_seed", "evaluation_guidance", "width", "height"],
    "coco30k": ["prompt", "image_id", "evaluation_seed"],
    "shares": ["group", "alternative", "share", "attribute"],
    "import": ["file", "prompt", "prompt_id", "repeat", "seed", "guidance", "steps", "concept:gender", "categories"],
    "judge": ["file", "gender", "subject", "unsafe"],
    "calibrate": ["file", "gender"],
}
TOML = (
    b'[hat]\nneutral = "a person"\nconcepts = { bare = "a person without a hat", hat = "a person with a hat" }\nproportions = [0.7, 0.3]\n'
)
SETTINGS = b'[fairness.slider]\nrank = 2\n[fairness."slider:rank 1"]\nrank = 1\nscale = 0.5\n'
MATRIX = {"classes": ["woman", "man"], "targets": {"woman": "a", "man": "b"}, "class_template": "{concept}", "min_margin": 0.0, "n": 8}
CONFUSION: Any = {"0123456789abcdef": {"gender": {**MATRIX, "matrix": [[3, 1, 0], [0, 4, 0]]}}}


def a_table(kind: str, rng: random.Random) -> bytes:
    """A table with the columns of a reader, and cells of any kind; now and then damaged."""
    columns = [c for c in HEADERS[kind] if rng.random() < 0.95]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator=rng.choice(["\n", "\r\n", "\r"]))
    writer.writerow(columns)
    fitting = {"file": "a.png", "share": "0.5", "group": "doctor", "gender": "woman", "alternative": "woman", "prompt": "a doctor"}
    for _ in range(rng.randrange(6)):
        writer.writerow([fitting.get(c, "") if rng.random() < 0.7 else rng.choice(CELLS) for c in columns])
    data = rng.choice([b"", b"", b"\xef\xbb\xbf"]) + buffer.getvalue().encode()
    return damaged(data, rng) if data and rng.random() < 0.4 else data


def _shares(path: Path) -> None:
    found = read_group_proportions(path, {"gender": ["woman", "man"]}, ["doctor", "nurse"])
    if any(abs(sum(row["gender"].values()) - 1) > 1e-6 or min(row["gender"].values()) < 0 for row in found.values()):
        raise Wrong(f"shares are {found}")


def _prompts(name: str, path: Path) -> None:
    """Every prompt is a cell of the table, word for word, and no two have one id."""
    prompts = load_suite(name, path=path).prompts
    texts = {row["prompt"].strip() for _, row in read_table(path, ("prompt",))}
    if not {p.text for p in prompts} <= texts or len({p.id for p in prompts}) < len(prompts):
        raise Wrong("prompts are other than those of the table")


def _imported(path: Path, out: Path) -> None:
    run = import_folder(path.parent / "images", path, out)
    if any((run.path / r.file).read_bytes() != (path.parent / "images" / "a.png").read_bytes() for r in run.records()):
        raise Wrong("another file was imported")


def tables(place: Path, rng: random.Random, n: int) -> Tally:
    """Tables and files of concepts, settings and errors: what they say is taken as it stands, or they are refused."""
    tally, path, out = Tally(), place / "table.csv", place / "imported"
    (place / "images").mkdir()
    for folder in (place, place / "images"):
        Image.new("RGB", (4, 4), (255, 0, 0)).save(folder / "a.png")
        os.mkfifo(folder / "pipe.png")
    readers: dict[str, tuple[Callable[[], bytes], Callable[[], Any]]] = {
        "i2p": (lambda: a_table("i2p", rng), lambda: _prompts("i2p", path)),
        "coco30k": (lambda: a_table("coco30k", rng), lambda: _prompts("coco30k", path)),
        "shares": (lambda: a_table("shares", rng), lambda: _shares(path)),
        "import": (lambda: a_table("import", rng), lambda: _imported(path, out)),
        "judge": (lambda: a_table("judge", rng), lambda: TableJudge.load(f"table:{path}")),
        "calibrate": (lambda: a_table("calibrate", rng), lambda: calibrate(path, ColourJudge(), [GENDER])),
        "concepts": (lambda: odd_toml(TOML, rng), lambda: load_concepts(path)),
        "settings": (lambda: odd_toml(SETTINGS, rng), lambda: read_settings(path, "fairness")),
        "confusion": (lambda: as_text(CONFUSION, rng).encode(), lambda: read_confusion(path)),
    }
    for i in range(n):
        kind = list(readers)[i % len(readers)]
        make, read = readers[kind]
        write(path, make())
        tally.attempt(f"{kind} {i}", read)
        shutil.rmtree(out, ignore_errors=True)
    return tally


def odd_toml(text: bytes, rng: random.Random) -> bytes:
    """A TOML file that is damaged, or has another value."""
    if rng.random() < 0.5:
        return damaged(text, rng)
    values = (b"[" * 50_000, b"3", b"[[1], 'a']", b"{ a = 1 }", b"inf", b"'[/big]'", b"1e400", b"''", b"[]", b"9" * 5000)
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = rng.choice([lines[at].split(b" = ")[0] + b" = ", b"[fairness]\nx = ", b"odd = "]) + rng.choice(values)
    return b"\n".join(lines)


def prompts(place: Path, rng: random.Random, n: int) -> Tally:
    """Images of any text: its row says the text as it was given, the command goes on with what is there, and no escape is printed."""
    tally, pipe = Tally(), sd()
    odd = st.text(max_size=40) | st.text("[]/\\x1b\x9b\a\0\u202e=+-@|<>&'\"\\n\t. aé😀", max_size=30) | st.text(st.characters(), max_size=8)

    @settings(max_examples=n, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(
            odd | st.sampled_from(["[/big]", "../../x", "\x1b[2J", "\ud800", "a" * 300, "-h", "--", "%s", "{}"]), min_size=1, max_size=2
        )
    )
    def trial(texts: list[str]) -> None:
        out = place / "run"
        shutil.rmtree(out, ignore_errors=True)
        flags = [f"--prompt={text}" for text in texts]
        call = ("generate", *flags, "--images", "1", "--steps", "1", "--out", str(out))
        tally.attempt(f"prompts {texts!a}", lambda: drawn(call, texts, out))

    def drawn(call: tuple[str, ...], texts: list[str], out: Path) -> None:
        try:
            command(*call)
        except ValueError:
            if out.exists():
                raise Wrong("it is refused after something was written") from None
            raise
        rows = RunFolder(out).records()
        if [r.prompt for r in rows] != texts or any(Path(r.file).parent != Path("images") for r in rows):
            raise Wrong(f"rows are of {[r.prompt for r in rows]!a}")
        if "0 images generated" not in command(*call).stdout:
            raise Wrong("images that are there are generated again")

    with tiny(pipe):
        trial()
    return tally
