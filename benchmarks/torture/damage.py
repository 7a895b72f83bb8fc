"""Damages module files and run folders, and reads them again."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tests.drawing import draw
from tests.painted import GENDER, WORDS, ColourJudge, paint
from tests.tiny_models import sd

from benchmarks.torture.trials import ODD, Tally, Wrong, as_text, changed, damaged, write
from respodiff import steer
from respodiff.cli.models import contents
from respodiff.concepts.concept import Concept
from respodiff.data.run_folder import RunFolder, file_digest
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.scored_run import load_scored_run
from respodiff.methods.registry import get_method, load
from respodiff.pipelines.bottleneck import site_shape
from respodiff.pipelines.registry import backbone
from respodiff.reports.run_report import report
from respodiff.steering.adapter import Adapter
from respodiff.steering.forms import make_form
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import HEADER_KEY, Header, checksum, digest_of

WOMAN = Concept("woman", "a woman", "a person", attribute="gender")


# --- module files ---


def originals(pipe: Any, place: Path) -> list[tuple[bytes, Adapter]]:
    """A module of each form, and adapters of methods with and without tensors: their files, and what these hold."""
    generator, shape = torch.Generator().manual_seed(0), site_shape(backbone(pipe))
    made: list[Adapter] = []
    for form in ("constant", "channel", "mlp", "conv"):
        ram, sam = (make_form(form, shape, init_range=1.0, generator=generator) for _ in range(2))
        made.append(ConceptModule.of(ram, sam, Header.of(WOMAN, base_model="tiny", h_norm=3.0, train={"steps": 3, "lr": 0.1})))
    quick = get_method("prompt")
    made.append(quick.adapter(Header.of(WOMAN, method="prompt", site="", train=json.loads(json.dumps(vars(quick.settings(WOMAN)))))))
    return [(adapter.save(place / "m.safetensors").read_bytes(), adapter) for adapter in made]


def parts_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    """JSON header of a safetensors file, and its tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def joined(header: str, tensors: bytes) -> bytes:
    return len(header.encode()).to_bytes(8, "little") + header.encode() + tensors


def mutated(data: bytes, adapter: Adapter, rng: random.Random) -> tuple[bytes, bool]:
    """A damaged module file, and whether its author has put matching digests into it."""
    how = rng.choice(["bytes", "bytes", "header", "tensors", "forged"])
    if how == "bytes":
        return damaged(data, rng), False
    outer, tensors = parts_of(data)
    inner = json.loads(outer["__metadata__"][HEADER_KEY])
    if how == "header":
        outer["__metadata__"][HEADER_KEY] = as_text(inner, rng)
    elif how == "tensors":
        names = [name for name in outer if name != "__metadata__"]
        if names and rng.random() < 0.7:
            about = outer[rng.choice(names)]
            about.update(
                rng.choice([{"dtype": t} for t in ("F4", "F16", "BF16", "I32", "F64", "C64", "?", 3)] + [{"shape": about["shape"][::-1]}])
            )
        else:
            outer = changed(outer, rng)
    elif isinstance(inner := changed({k: v for k, v in inner.items() if k not in ("checksum", "digest")}, rng), dict):
        noise = damaged(tensors, rng) + tensors
        tensors = noise[: len(tensors)] if rng.random() < 0.5 else tensors
        with suppress(Exception):  # of a header that has no digest
            fields: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in inner.items() if k != "scale"}
            held = safetensors.torch.load(joined(json.dumps(outer), tensors))
            inner["digest"] = digest_of(Header(**fields), held, inner.get("scale", 1.0))
        outer["__metadata__"][HEADER_KEY] = json.dumps(inner | {"checksum": checksum(inner)})
    return joined(json.dumps(outer), tensors), how == "forged"


def modules(place: Path, rng: random.Random, n: int) -> Tally:
    """Every file that is read holds the original's header and tensors; others are refused. Forged ones may be read, and then work."""
    tally, pipe = Tally(), sd()
    known, path = originals(pipe, place), place / "m.safetensors"
    for i in range(n):
        data, adapter = known[i % len(known)]
        broken, forged = mutated(data, adapter, rng)
        write(path, broken)
        tally.attempt(f"module {i}", lambda adapter=adapter, forged=forged: _read(path, adapter, pipe if forged else None))  # type: ignore[misc]
    return tally


def _read(path: Path, original: Adapter, forged_on: Any) -> None:
    told, found = None, load(path)
    told = contents(path)
    if forged_on is not None:
        found.check(forged_on)
        try:
            with steer(forged_on, found):
                draw(forged_on)
        except RuntimeError as error:
            if "NaN or infinite" not in str(error):  # what is said of a module that explodes
                raise
        return
    same = found.tensors.keys() == original.tensors.keys() and all(torch.equal(t, original.tensors[k]) for k, t in found.tensors.items())
    if not same or found.header != original.header or found.weight != original.weight or told["digest"] != original.digest:
        raise Wrong("it is read as another module")


# --- run folders ---

COLOURS = [("cook", "woman", (0, 0, 0)), ("cook", "man", (1, 0, 0)), ("guard", "man", (1, 1, 0)), ("guard", "woman", (0, 1, 1))]


def stranger(path: Path, rng: random.Random, elsewhere: Path) -> None:
    """Something else in a file's place: a pipe, a device, a folder, a link to another place, or nothing."""
    path.unlink()
    how = rng.choice(["fifo", "/dev/zero", "/dev/stdin", "folder", "elsewhere", "loop", "gone"])
    if how == "fifo":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how != "gone":
        path.symlink_to({"elsewhere": elsewhere, "loop": path}.get(how, how))


def break_file(path: Path, rng: random.Random, elsewhere: Path) -> None:
    """One of: damaged bytes, a stranger in its place, or JSON with another value."""
    how = rng.choice(["bytes", "stranger", "json"])
    if how == "stranger":
        stranger(path, rng, elsewhere)
    elif how == "json" and path.suffix in (".json", ".jsonl"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        at = rng.randrange(len(lines))
        lines[at] = rng.choice([as_text(json.loads(lines[at]), rng), json.dumps(rng.choice(ODD)), lines[at] + "\n" + lines[at]])
        path.write_text("\n".join(lines) + "\n")
    else:
        write(path, damaged(path.read_bytes(), rng))


def run_folders(place: Path, rng: random.Random, n: int) -> Tally:
    """A damaged run is read, evaluated, reported and gone on with: labels of untouched images stay, nobody else's file changes."""
    tally, run = Tally(), paint(place / "whole", COLOURS * 3)
    evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    labels = {r.digest: (r.id, label) for r, label in zip(*_labels(run), strict=True)}
    elsewhere = write(place / "elsewhere.json", b'{"not": "ours"}')
    files = sorted(p.relative_to(run.path) for p in run.path.rglob("*") if p.is_file())
    weights = [1 if p.parts[0] == "images" else 6 for p in files]
    for i in range(n):
        broken = Path(shutil.copytree(run.path, place / f"run{i}"))
        for file in dict.fromkeys(rng.choices(files, weights, k=rng.choice([1, 1, 2]))):
            if (broken / file).is_file():
                break_file(broken / file, rng, elsewhere)
        steps: list[tuple[str, Callable[[], Any]]] = [
            ("report", lambda broken=broken: report([broken], place / "report" / "page.html")),  # type: ignore[misc]
            ("evaluate", lambda broken=broken: evaluate(broken, ColourJudge(), [GENDER], vocabulary=WORDS)),  # type: ignore[misc]
            ("labels", lambda broken=broken: _check(broken, labels)),  # type: ignore[misc]
            ("resume", lambda broken=broken: RunFolder(broken).create({}).done()),  # type: ignore[misc]
        ]
        for what, step in steps:
            tally.attempt(f"{what} of run folder {i}", step)
        if elsewhere.read_bytes() != b'{"not": "ours"}':
            tally.fail("replaced", f"run folder {i}")
        shutil.rmtree(broken)
        shutil.rmtree(place / "report", ignore_errors=True)
    return tally


def _labels(run: RunFolder) -> tuple[list[Any], list[str]]:
    found = load_scored_run(run)
    return list(found.records), found.labels("gender")


def _check(folder: Path, labels: dict[str, tuple[str, str]]) -> None:
    """An image that is as it was has its own label; every other one is unknown."""
    for record, label in zip(*_labels(RunFolder(folder)), strict=True):
        file = folder / record.file
        whole = file.is_file() and not file.is_symlink() and file_digest(file) in labels
        if label != "unknown" and (not whole or labels[file_digest(file)][1] != label):
            raise Wrong(f"{record.id} is {label!r}")
