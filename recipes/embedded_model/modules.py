"""Trains the modules that the package ships for the embedded model: gender, tone, violence, sexual.

    python -m recipes.embedded_model.modules                                    (into the package)
    python -m recipes.embedded_model.modules --out DIR --iterations 10          (other settings, elsewhere)

Settings are the default preset's. Beside the files goes ``modules.json``: the model's digest and that of every module.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import respodiff
from recipes.embedded_model.loop import say
from respodiff.concepts.concept import Attribute, builtin
from respodiff.data.run_folder import write_atomic
from respodiff.pipelines.identity import weights_digest
from respodiff.pipelines.loading import load_pipeline
from respodiff.steering.shipped import FOLDER
from respodiff.training.attribute import fit_attribute
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import fit

NAMES = ("gender", "tone", "violence", "sexual")


def make(out: Path, **changes: Any) -> dict[str, Any]:
    """Train every module anew and write its file into ``out``; what ``modules.json`` says. ``changes`` are settings of training."""
    pipe = load_pipeline("embedded")
    found: dict[str, Any] = {"model": weights_digest(pipe.unet), "library": respodiff.__version__, "changes": changes, "modules": {}}
    for entry in (builtin()[name] for name in NAMES):
        preset = TrainConfig.preset("default", entry.concepts[0] if isinstance(entry, Attribute) else entry, **changes)
        modules = fit_attribute(pipe, entry, preset) if isinstance(entry, Attribute) else {entry.name: fit(pipe, entry, preset)}
        for name, module in modules.items():
            module.save(out / f"{name}.safetensors")
            found["modules"][name] = module.digest
            say(f"{name}: {module.digest}, |r + s| is {module.relative_norm or 0:.2f} of |h|")
    write_atomic(out / "modules.json", json.dumps(found, indent=1) + "\n")
    return found


def main(arguments: list[str] | None = None) -> int:
    """0 when all files are written; 1 with one line when something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.embedded_model.modules", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the files (default: the package's)")
    parser.add_argument("--iterations", type=int, help="instead of the preset's")
    a = parser.parse_args(arguments)
    try:
        make(a.out, **({} if a.iterations is None else {"iterations": a.iterations}))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
