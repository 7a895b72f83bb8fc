"""``respodiff push`` and ``pull``: modules on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from typer import Argument, Option

from respodiff._device import AUTO
from respodiff.cli.console import app, finish
from respodiff.cli.options import Device, Dtype, Force, Json, Seed, to_path

FIGURES = "Judged run folder of these files, for the card's figures; repeat, also for an unsteered run to compare with."
BASE = "Hub id of the base model, where the files name a folder."


@app.command(epilog="Example: respodiff push modules --to me/gender --license openrail --figures runs/even --private")
def push(
    sources: Annotated[list[Path], Argument(help="Module files, or folders of them.", show_default=False)],
    to: Annotated[str, Option(help="Repository, made if absent.", metavar="OWNER/NAME")],
    license: Annotated[str, Option(help="Licence of the files, as the hub calls it: apache-2.0, openrail, ...", metavar="ID")],
    private: Annotated[bool, Option("--private", help="Make the repository private.")] = False,
    figures: Annotated[list[Path] | None, Option(help=FIGURES, metavar="RUN")] = None,
    base_model: Annotated[str, Option(help=BASE, metavar="OWNER/NAME")] = "",
    dry_run: Annotated[bool, Option("--dry-run", help="Write what would go up to --out, and send nothing.")] = False,
    out: Annotated[Path | None, Option(help="Folder of --dry-run. (default push)", metavar="DIR", parser=to_path)] = None,
    force: Force = False,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Upload module files and a model card to the Hugging Face hub, and nothing else that is in their folder.

    The card replaces a README.md that is there; the hub keeps its history. JSON keys: repo; url, null in a dry run; folder, that of a dry
    run or null; files, the names of all that goes up; modules: [{file, concept, digest}]; figures, the number of runs in the card.
    """
    from respodiff.data.places import check_out, new_file
    from respodiff.data.run_folder import write_atomic
    from respodiff.experiments.model_card import figures_of, is_card, model_card
    from respodiff.steering.hub import CARD, SUFFIX, check_repo, publish
    from respodiff.steering.serialization import read_file
    from respodiff.steering.shipped import files_of

    if out and not dry_run:
        raise ValueError(f"--out {str(out)!r} is given without --dry-run; give both, or neither")
    place = out or Path("push")
    check_repo(to)
    found: dict[str, Path] = {}
    for file in (file for source in sources for file in files_of(source)):
        if not file.is_file():
            raise ValueError(f"module {str(file)!r} is no file, folder or shipped module; give one")
        if file.suffix != SUFFIX:
            raise ValueError(f"file {str(file)!r} does not end in {SUFFIX}, so that nobody could load it from the hub; rename it")
        if file.name in found:
            raise ValueError(f"two files are called {file.name!r}: {found[file.name]} and {file}; rename one")
        found[file.name] = file
    held = {name: read_file(file, "np") for name, file in found.items()}  # what is no module, or damaged, is refused
    measured = [figures_of(run, {name: str(stored.digest) for name, stored in held.items()}) for run in figures or ()]
    card = model_card(to, held, license=license, base_model=base_model, figures=measured)

    def write(folder: Path) -> None:
        for name, file in found.items():
            with new_file(folder / name) as partial:
                copyfile(file, partial)
        write_atomic(folder / CARD, str(card))

    sizes = {name: file.stat().st_size for name, file in found.items()} | {CARD: len(str(card).encode())}
    url = None
    if dry_run:
        check_out(place, lambda folder: is_card(folder / CARD), force=force)
        write(place)
    else:
        with TemporaryDirectory() as sent:
            write(Path(sent))
            url = publish(sent, to, private=private)
    modules = [{"file": name, "concept": stored.header.concept, "digest": stored.digest} for name, stored in held.items()]
    result: dict[str, Any] = {"repo": to, "url": url, "folder": str(place) if dry_run else None, "files": [*sizes], "modules": modules}
    lines = [f"{name:<32}{size:>14,} bytes" for name, size in sizes.items()]
    lines.append(f"{place}: what would go up to {to}" if dry_run else f"{url}: {len(sizes)} files; read them with --module {to}")
    finish(result | {"figures": len(measured)}, "\n".join(lines), as_json)


@app.command(epilog="Example: respodiff pull me/gender --out modules")
def pull(
    source: Annotated[str, Argument(help="OWNER/NAME, with @REVISION and :FILE behind it where needed.", show_default=False)],
    out: Annotated[Path, Option(help="Folder to write to.", metavar="DIR", parser=to_path)],
    force: Force = False,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Download module files and their model card from the Hugging Face hub, and nothing else. Each file is checked first.

    JSON keys: repo; revision, the commit; folder; modules: [{file, concept, digest, base_model}]; card, a path, or null where there is none.
    """
    from respodiff.data.places import check_out, new_file
    from respodiff.experiments.model_card import is_card
    from respodiff.steering.hub import CARD, HubId, fetch
    from respodiff.steering.serialization import read_file, read_header

    files = fetch(source)
    wanted, snapshot = HubId.of(source), files[0].parent
    assert wanted is not None  # fetch says so
    modules = []
    for file in files:
        header, *_, digest = read_file(file, "np")
        modules.append({"file": str(out / file.name), "concept": header.concept, "digest": digest, "base_model": header.base_model})
        check_out(out / file.name, read_header, force=force)
    card = snapshot / CARD
    if card.is_file():
        check_out(out / CARD, is_card, force=force)
    for file in (*files, *([card] if card.is_file() else [])):
        with new_file(out / file.name) as partial:
            copyfile(file, partial)
    result: dict[str, Any] = {"repo": wanted.repo, "revision": snapshot.name, "folder": str(out), "modules": modules}
    result |= {"card": str(out / CARD) if card.is_file() else None}
    finish(
        result, "\n".join([*(f"{m['file']}: {m['concept']!r}, digest {m['digest']}" for m in modules), f"commit {snapshot.name}"]), as_json
    )
