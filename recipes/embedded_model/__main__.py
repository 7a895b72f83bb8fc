"""Make the embedded model.

    python -m recipes.embedded_model --out runs/embedded --minutes 28          (one GPU)
    python -m recipes.embedded_model --out runs/miniature --miniature          (all stages in small, about a minute on 2 cores)
    python -m torch.distributed.run --nproc-per-node 2 -m recipes.embedded_model --stages denoiser --minutes 0 ...      (two processes)

Stages: data, autoencoder, denoiser, decoder, judge, judge-b, assemble, card. What is done is kept; the same command goes on where a run stopped.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from recipes.embedded_model.loop import say
from recipes.embedded_model.parts import recipe_digest
from recipes.embedded_model.settings import OWN, merged, read_config
from recipes.embedded_model.stages import STAGES, TRAINED, Recipe
from respodiff.cli.console import check_device
from respodiff.data.run_folder import write_atomic

LABELLED = Path("benchmarks/data/labelled")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = flags("recipes.embedded_model", __doc__, STAGES, OWN)
    made.add_argument(
        "--minutes", type=float, default=28.0, help="wall-clock budget of all training stages (default 28); 0: the steps of --config"
    )
    made.add_argument("--autoencoder", type=Path, help="weights of an autoencoder to use, instead of training one")
    made.add_argument("--base", type=Path, help="folder of a pipeline to go on from: tokenizer, autoencoder and denoiser")
    made.add_argument(
        "--start", action="append", default=[], metavar="STAGE=FILE", help="part of an earlier run to begin a stage from; repeat"
    )
    return made


def flags(package: str, about: str | None, stages: tuple[str, ...], config: Path) -> argparse.ArgumentParser:
    """A command line with the flags that recipes share."""
    made = argparse.ArgumentParser(prog=f"python -m {package}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True, help="folder for everything that is made")
    made.add_argument("--miniature", action="store_true", help="all stages in small, by steps, on labelled images of the repository")
    made.add_argument("--stages", default=",".join(stages), help="which, in order (default all)")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    made.add_argument("--config", type=Path, default=config, help="settings that differ from the recipe's own")
    made.add_argument("--cache", type=Path, default=Path("runs/packages"), help="where fetched packages are kept")
    made.add_argument("--images", type=Path, help="folder with labels.csv to take images from, instead of fetching")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the recipe; 0 when done, 1 with one line when something stands in the way."""
    a = parser().parse_args(arguments)
    if "TORCHELASTIC_RUN_ID" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo")
    return guarded(a, lambda: _prepared(a), f"{a.minutes:g} minutes of training" if a.minutes else "training by the steps of the config")


def guarded(a: argparse.Namespace, prepared: Callable[[], tuple[Recipe, tuple[str, ...]]], budget: str) -> int:
    """Prepare and run a recipe, with what stands in the way said in one line; the exit code."""
    try:
        recipe, stages = prepared()
        say(f"{'miniature' if a.miniature else budget} on {a.device}, into {a.out}")
        recipe.run(stages)
    except (ValueError, RuntimeError, OSError, FloatingPointError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        line = f"the disk is full at {a.out} ({error}); make room and run the same command again, it goes on from what is there"
        print(f"error: {line if full else error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"error: {error.name or error} is not installed; run: pip install 'respodiff[recipe]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _prepared(a: argparse.Namespace) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe and its stages as the flags say; ValueError for flags that say nothing sensible."""
    stages = chosen(a, STAGES)
    config = read_config(a.config)
    small = config.pop("miniature")
    config = merged(config, small) if a.miniature else config
    pairs = [text.partition("=") for text in a.start]
    if wrong := [name for name, _, file in pairs if name not in TRAINED or not file]:
        raise ValueError(f"--start has {wrong[0]!r}; allowed: STAGE=FILE with a stage of {', '.join(TRAINED)}")
    if a.minutes < 0:
        raise ValueError(f"--minutes is {a.minutes:g}; allowed: 0 or above")
    if dist.is_initialized() and stages != ("denoiser",):
        raise ValueError(f"--stages is {a.stages!r}; allowed under torch.distributed.run: denoiser")
    if a.base and not (a.base / "model_index.json").is_file():
        raise ValueError(f"--base is {str(a.base)!r}, which has no model_index.json; give the folder of a pipeline")
    start = {name: Path(file) for name, _, file in pairs}
    images = a.images or (LABELLED if a.miniature else None)
    claim(
        a.out,
        recipe_digest(config, {"images": images, "autoencoder": a.autoencoder, "base": a.base and a.base / "model_index.json", **start}),
        a.miniature,
    )
    minutes = 0.0 if a.miniature else a.minutes
    return Recipe(config, a.out, minutes, a.device, a.cache, images, a.autoencoder, a.base, start), stages


def chosen(a: argparse.Namespace, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The stages of the command line; ValueError for one that there is not, and for a device that is not there."""
    check_device(a.device)
    stages = tuple(s.strip() for s in a.stages.split(","))
    if wrong := [s for s in stages if s not in allowed]:
        raise ValueError(f"--stages has {wrong[0]!r}; allowed: {', '.join(allowed)}")
    return stages


def claim(out: Path, digest: str, miniature: bool) -> None:
    """Refuse a folder that was made with other settings."""
    path = out / "recipe.json"
    if path.is_file():
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}); delete it to go on with what is in the folder") from error
        if found.get("digest") != digest:
            raise ValueError(
                f"--out is {str(out)!r}, which was made with other settings or from other files; give another folder, or delete it"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"digest": digest, "miniature": miniature}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
