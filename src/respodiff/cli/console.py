"""What all verbs of the command line share: the application, common flags, progress, the last line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

app = typer.Typer(
    name="respodiff",
    help="Make a text-to-image diffusion model fair and safe: train a concept, steer a pipeline, measure the images.",
    epilog="Start with: respodiff demo --out demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
words = Console(stderr=True, highlight=False)


def given_path(text: str) -> Path:
    """A path from a flag; an empty one would mean the current folder, which nobody asked for."""
    if not text.strip():
        raise typer.BadParameter(f"it is {text!r}; give the name of a file or folder")
    return Path(text)


Json = Annotated[bool, typer.Option("--json", help="Last line of stdout is one JSON object; words go to stderr.")]
Model = Annotated[str, typer.Option("--model", help="'embedded', a diffusers folder, or a hub id.", metavar="MODEL")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps.", metavar="NAME")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.", metavar="NAME")]
Seed = Annotated[int, typer.Option("--seed", help="Everything random follows from it.", min=0)]
Concepts = Annotated[Path | None, typer.Option("--concepts", help="TOML file with concepts of your own.", metavar="FILE")]


def open_model(model: str, device: str, dtype: str) -> Any:
    """A pipeline from the flags; ValueError for a device or dtype that is not there."""
    import diffusers
    import torch

    from respodiff.pipelines.loading import load_pipeline

    no_loading_bars()
    diffusers.utils.logging.disable_progress_bar()

    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in dtypes:
        raise ValueError(f"--dtype is {dtype!r}; allowed: {', '.join(dtypes)}")
    check_device(device)
    return load_pipeline(model, device=device, dtype=dtypes[dtype])


def check_device(device: str) -> None:
    """ValueError if this machine does not have it."""
    import torch

    try:
        torch.zeros(1, device=device).item()  # a number that can be read back, which the meta device has none of
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device is {device!r}, which this machine does not have; allowed here: cpu or an accelerator of yours"
        ) from error


def progress() -> Progress:
    """Bar on stderr with time spent and time remaining; silent when stderr is not a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=words, transient=True, disable=not words.is_terminal)


def no_loading_bars() -> None:
    """Models load in a second; a bar for each of their parts would bury our own lines."""
    import transformers

    transformers.utils.logging.disable_progress_bar()


def finish(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Say what was done: one JSON line on stdout, or words."""
    if as_json:
        print(json.dumps(result), flush=True)
    else:
        Console(highlight=False).print(text, soft_wrap=True, markup=False)
