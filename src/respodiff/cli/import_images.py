"""``respodiff import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from respodiff.cli.console import Json, app, finish, words


@app.command(name="import", epilog="Example: respodiff import images --csv images.csv --out runs/theirs --method theirs")
def import_(
    folder: Annotated[Path, typer.Argument(help="Folder of images made by any tool.", show_default=False)],
    table: Annotated[
        Path,
        typer.Option("--csv", help="Table with the columns file and prompt; see docs/suites.md for the optional ones.", metavar="FILE"),
    ],
    out: Annotated[Path, typer.Option("--out", help="Run folder; images that it already holds are skipped.", metavar="DIR")],
    method: Annotated[str, typer.Option("--method", help="Name of the method, where the table has none.", metavar="NAME")] = "imported",
    as_json: Json = False,
) -> None:
    """Make a run folder of somebody else's images, to be measured and reported like one of our own."""
    from respodiff.data.import_images import import_folder

    problems: list[str] = []
    run = import_folder(folder, table, out, method=method, problems=problems)
    for text in problems:
        words.print(f"warning: {text}", soft_wrap=True, markup=False)
    n = len(run.records())
    finish({"run": str(out), "images": n, "problems": problems}, f"{out}: {n} images; next: respodiff evaluate {out}", as_json)
