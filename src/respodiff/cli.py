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

from respodiff import cli_generate, cli_models, cli_train, demo  # noqa: F401  (they register their verbs)
from respodiff.console import Concepts, Device, Dtype, Json, Seed, app, check_device, finish, no_loading_bars, open_model, shown, words


@app.command(epilog="Example: respodiff inspect woman.safetensors")
def inspect(
    module: Annotated[Path, typer.Argument(help="A module file.", show_default=False)],
    model: Annotated[str, typer.Option("--model", help="Also check the module against this model.", metavar="MODEL")] = "",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say what is in a module file: prompts, base model, shape, size of both tensors."""
    from respodiff.module_file import load

    found: list[str] = []
    m = load(module)
    if model:
        from respodiff.steering import misfits

        found = misfits(open_model(model, device, dtype), m)
    h = m.header
    result = {
        "concept": h.concept,
        "target": h.target,
        "neutral": h.neutral,
        "negative": h.negative,
        "kind": h.kind,
        "attribute": h.attribute,
        "base_model": h.base_model,
        "site": h.site,
        "shape": list(m.shape),
        "norm_ram": m.ram.norm().item(),
        "norm_sam": m.sam.norm().item(),
        "digest": m.digest,
        "train": dict(h.train),
        "library": h.library,
        "warnings": found,
    }
    lines = [f"{k:<12}{v}" for k, v in result.items() if k not in ("train", "warnings")]
    lines += ["train       " + ", ".join(f"{k} {v}" for k, v in h.train.items()), *(f"warning     {w}" for w in found)]
    finish(result, "\n".join(lines), as_json)


@app.command(epilog="Example: respodiff evaluate runs/a --judge embedded --attribute gender --attribute tone")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder of 'respodiff generate'.", show_default=False)],
    judge: Annotated[str, typer.Option("--judge", help="'embedded', or clip:DIR-OR-ID.", metavar="NAME")] = "embedded",
    attribute: Annotated[
        list[str] | None, typer.Option("--attribute", help="gender, tone, ...; repeat for several.", metavar="NAME")
    ] = None,
    concepts: Concepts = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure a run folder: shares of each attribute as a judge perceives them, DevRat with interval and noise floor."""
    from respodiff.concepts import attribute as find
    from respodiff.concepts import builtin, load_concepts
    from respodiff.evaluation import evaluate as measure
    from respodiff.judges import ClipJudge
    from respodiff.records import RunFolder

    if dtype != "float32":
        raise ValueError(f"--dtype is {dtype!r}; judges run in float32 alone, so that labels agree between machines")
    check_device(device)
    no_loading_bars()
    library = {**builtin(), **(load_concepts(concepts) if concepts else {})}
    asked = [find(name, library) for name in attribute or ["gender"]]
    RunFolder(run).settings()  # a wrong folder is noticed before the judge is loaded
    result = measure(run, ClipJudge.load(judge, device), asked, seed=seed)
    lines = [f"{result['n']} pictures, {result['unknown']} not judged, judge {result['judge']['name']} ({result['judge']['digest']})"]
    for name, d in result["devrat"].items():
        floor = "" if d is None else f", noise floor {d['floor']:.3f}"
        lines.append(f"DevRat {name}: {shown(d)}{floor}")
        if control := result["control"][name]:
            lines.append(f"control {name}: {shown(control)}")
    lines += [f"{label}: {shown(result[key])}" for label, key in (("subject kept", "subject_kept_interval"), ("unsafe", "unsafe"))]
    lines.append(f"alignment: {shown(result['alignment_interval'])}")
    lines.append("Labels are what the judge perceives in generated pictures, never facts about people.")
    finish(result, "\n".join(lines), as_json)


def main() -> None:
    """Entry point: errors become one line on stderr and an exit code."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(format="%(message)s")
    warnings.showwarning = lambda message, category, *_rest, **_more: (
        words.print(f"warning: {message}", soft_wrap=True, markup=False) if category is UserWarning else None
    )
    _quiet()
    try:
        if code := app(standalone_mode=False):  # of a verb that raised typer.Exit
            sys.exit(code)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except (ValueError, OSError, RuntimeError) as error:
        _fail(error, 2 if isinstance(error, ValueError) else 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped; what was written so far is kept (train goes on with --resume, generate with the same command)", 1)
    except Exception as error:
        if not hasattr(error, "format_message"):  # not one of click's usage errors
            raise
        if type(error).__name__ != "NoArgsIsHelpError":  # a bare "respodiff" has already printed its help
            _fail(error.format_message(), 2)


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
