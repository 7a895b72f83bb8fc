"""What all verbs share: the application, the opening of models, progress and the last line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text
from typer.core import TyperCommand

from respodiff import _plugins
from respodiff._device import AUTO, chosen_device
from respodiff.cli.run_file import takes_config, with_place, write
from respodiff.data.untrusted import printable, shortened
from respodiff.pipelines.source import ModelSource

Function = TypeVar("Function", bound=Callable[..., Any])


class Verb(TyperCommand):
    """A verb whose help names what other packages add, where its flags have ``<methods>``, ``<judges>``, ``<suites>`` or ``<pipelines>``."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for flag in self.params:
            text = getattr(flag, "help", None) or ""
            for kind in (kind for kind in _plugins.KINDS if f"<{kind}>" in text):
                added = ", ".join(_plugins.names(kind))
                text = text.replace(f"<{kind}>", f"; by other packages: {added}" if added else "")
                flag.help = text  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> None:
        """Run the verb, and write what it was given beside what it has made."""
        try:
            out = super().invoke(ctx)
        except ValueError as error:
            raise ValueError(with_place(ctx, str(error))) from error
        if out:
            write(ctx, out)


class Verbs(typer.Typer):
    """The application; every command is a `Verb` and takes ``--config``."""

    def command(self, name: str | None = None, **more: Any) -> Callable[[Function], Function]:
        register = super().command(name, cls=Verb, **more)

        def decorate(verb: Function) -> Function:
            register(takes_config(verb))
            return verb

        return decorate


app = Verbs(
    name="respodiff",
    help="Make a text-to-image diffusion model fair and safe: train a concept, steer a pipeline, measure the images.",
    epilog="Start with: respodiff demo --out demo",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


class PlainConsole(Console):
    """Prints names and prompts as they are: no markup, and no control characters or escape sequences."""

    def __init__(self, stderr: bool = False, **more: Any) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False, **more)

    def render_str(self, text: str, **more: Any) -> Text:
        return super().render_str(printable(text), **more)

    def message(self, label: str, text: str, style: str = "") -> None:
        """One line, whatever the text holds, without most of a long value."""
        self.print(f"{label}:", style=style, end=" ")
        self.print(shortened(" ".join(text.split())), soft_wrap=True)


class Description(ProgressColumn):
    """What a bar is about."""

    def render(self, task: Task) -> Text:
        return Text(printable(task.description))


words = PlainConsole(stderr=True)


def open_model(model: ModelSource) -> Any:
    """A pipeline from the flags, named on stderr; ValueError for a device that is not there."""
    from respodiff.pipelines.identity import precision
    from respodiff.pipelines.registry import backbone

    model = replace(model, device=chosen_device(model.device))
    check_device(model.device)
    pipe = model.load()
    more = f", offload {model.offload}" * (model.offload != "none") + "".join(f", lora {text}" for text in model.lora)
    words.print(f"model {model.source}, device {model.device}, dtype {precision(backbone(pipe))}{more}", soft_wrap=True)
    return pipe


def check_device(device: str) -> None:
    """ValueError if this machine does not have it, with the reason."""
    if device in (AUTO, "cpu"):
        return
    import torch

    try:
        torch.zeros(1, device=device).item()  # a number that can be read back, which the meta device has none of
    except (RuntimeError, AssertionError) as error:
        if not device.startswith("cuda"):
            reason = "PyTorch has no such device here"
        elif torch.version.cuda is None:
            reason = f"PyTorch {torch.__version__} is built without CUDA; install a CUDA build from pytorch.org"
        elif not torch.cuda.is_available():
            reason = "PyTorch sees no NVIDIA driver or no GPU; 'nvidia-smi' must list one"
        else:
            reason = f"this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}"
        raise ValueError(f"--device is {device!r}, which is not available: {reason}; or use --device cpu") from error


def peak_mib(device: str) -> float | None:
    """Most memory this process has held, in MiB: of the accelerator if one is used, else resident memory; None where nothing tells (Windows)."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def progress(percent: bool = False) -> Progress:
    """Bar on stderr with time spent and time remaining; silent when stderr is not a terminal."""
    count = TextColumn("{task.percentage:>3.0f}%") if percent else MofNCompleteColumn()
    columns = (Description(), BarColumn(), count, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, console=words, transient=True, disable=not words.is_terminal)


def follow(steps: Iterator[Any], *, quiet: bool = False) -> Any:
    """Go through steps (what, done, total) with a bar, and give what a generator of them returns.

    Where stderr is no terminal, each kind of step is named once, unless ``quiet``.
    """
    said: set[str] = set()
    with progress(percent=True) as bar:
        task = bar.add_task("starting", total=None)
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            bar.update(task, description=step.what, completed=step.done, total=step.total)
            if step.what not in said and not (quiet or words.is_terminal):
                words.print(step.what)
                said.add(step.what)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for the console; the first column is text, the others are numbers, which are never cut; text is folded only where both do not fit."""
    cells = list(zip(columns, *rows, strict=True))
    longest = [max((len(word) for cell in column for word in cell.split()), default=0) for column in cells[1:]]
    room = PlainConsole().width - sum(n + 3 for n in longest) - 4
    names = Column(columns[0], overflow="fold", no_wrap=max(map(len, cells[0])) <= room)
    numbers = (Column(name, justify="right", overflow="fold", min_width=n) for name, n in zip(columns[1:], longest, strict=True))
    out = Table(names, *numbers, title=title)
    for row in rows:
        out.add_row(*row)
    return out


def finish(result: dict[str, Any], text: str, as_json: bool, shown: Table | None = None) -> None:
    """Say what was done: one JSON line on stdout (a table goes to stderr), or words."""
    out = PlainConsole()
    if shown is not None:
        (words if as_json else out).print(shown)
    if as_json:
        print(json.dumps(result), flush=True)
    else:
        out.print(text, soft_wrap=True)
