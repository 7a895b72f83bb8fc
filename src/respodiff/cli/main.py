"""The command line: one verb per noun. Flags and JSON keys are a contract with other people's scripts.

With ``--json`` the last line of stdout is one JSON object and everything else goes to stderr. Exit codes: 0 done, 1 asked for something
that failed (nothing lost), 2 bad arguments.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from respodiff.cli import audit, compare, demo, evaluate, generate, import_images, models, train  # noqa: F401  (they register their verbs)
from respodiff.cli.console import Device, Dtype, Json, Seed, app, finish, open_model, words


@app.command(epilog="Example: respodiff inspect woman.safetensors")
def inspect(
    module: Annotated[Path, typer.Argument(help="A module file.", show_default=False)],
    model: Annotated[str, typer.Option("--model", help="Also check the module against this model.", metavar="MODEL")] = "",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say what is in a module file: prompts, base model, form, shape, window of timesteps, norm of both tensors."""
    from respodiff.methods.registry import load

    m, found = load(module), []
    if model:
        found = m.check(open_model(model, device, dtype))
    names = ("method", "concept", "target", "neutral", "negative", "kind", "attribute", "base_model")
    result = {**{k: getattr(m.header, k) for k in names}, **m.describe(), "digest": m.digest, "library": m.header.library}
    lines = [f"{k:<12}{v}" for k, v in result.items()]
    lines += ["train       " + ", ".join(f"{k} {v}" for k, v in m.settings.items()), *(f"warning     {w}" for w in found)]
    finish({**result, "train": dict(m.settings), "warnings": found}, "\n".join(lines), as_json)


def main() -> None:
    """Entry point: errors become one line on stderr and an exit code."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(format="%(message)s")
    warnings.showwarning = lambda message, category, *_rest, **_more: (
        words.print(f"warning: {message}", soft_wrap=True, markup=False) if category is UserWarning else None
    )
    _quiet()
    try:
        code = app(standalone_mode=False)  # what Typer made an exit code of it gives back; of Ctrl-C, in newer versions, 130
        if code == 130:
            raise KeyboardInterrupt
        sys.exit(code)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except (ValueError, OSError, RuntimeError) as error:
        _fail(error, 2 if isinstance(error, ValueError) else 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped; what was written so far is kept (train goes on with --resume, generate and audit with the same command)", 1)
    except Exception as error:
        if not hasattr(error, "format_message"):  # not one of click's usage errors
            _unexpected(error)
        elif type(error).__name__ != "NoArgsIsHelpError":  # a bare "respodiff" has already printed its help
            _fail(error.format_message(), 2)


def _unexpected(error: Exception) -> None:
    """A fault of ours: one line for users, the traceback for whoever looks into it."""
    if os.environ.get("RESPODIFF_TRACEBACK") == "1":
        raise error
    _fail(f"unexpected {type(error).__name__}: {error}; set RESPODIFF_TRACEBACK=1 to see where, and please report it", 1)


def _quiet() -> None:
    """Notices of the libraries below are not for users of this one; said before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def _fail(error: object, code: int) -> None:
    text = " ".join(str(error).split()) or type(error).__name__
    words.print("[red]error:[/]", end=" ")
    words.print(text, markup=False, soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
