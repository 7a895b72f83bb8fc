"""Weights on disk: a finished part, a part to begin from, and what a folder's contents depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from respodiff.data.run_folder import file_digest


def take(path: Path, network: torch.nn.Module, stage: str) -> torch.nn.Module:
    """A finished network.

    Raises:
        ValueError: its stage has not run, or ran with other sizes.
    """
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"stage {stage} has no fitting result in {path}; run it first") from error
    return network.eval()


def begin(path: Path, network: torch.nn.Module, stage: str, *, judge: bool) -> None:
    """Weights of an earlier run to begin training from; a judge's may lack the scaffold.

    Raises:
        ValueError: they cannot be read, or are of another network.
    """
    try:
        found = load_file(path)
        if judge and not any(key.startswith("judge.") for key in found):
            found = {f"judge.{key}": value for key, value in found.items()}
        missing, unknown = network.load_state_dict(found, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"--start {stage}={path} cannot be used ({reason}); give a part of an earlier run of these sizes") from error
    if unknown or any(not key.startswith("scaffold.") for key in missing):
        raise ValueError(
            f"--start {stage}={path} is of another network than config.toml says; give a part of an earlier run of these sizes"
        )


def take_autoencoder(path: Path, network: torch.nn.Module) -> None:
    """Weights of an autoencoder made elsewhere.

    Raises:
        ValueError: they cannot be read, or have other sizes.
    """
    try:
        network.load_state_dict({k.removeprefix("vae."): v.float() for k, v in load_file(path).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"autoencoder {path} cannot be read, or has other sizes than config.toml ({reason}); leave it out to train one"
        ) from error


def recipe_digest(config: dict[str, Any], files: Mapping[str, Path | None]) -> str:
    """What must be equal for a folder to be gone on with: the settings, and the files that things were taken from."""
    told = {name: digest_of(path) for name, path in files.items() if path is not None}
    return hashlib.sha256(json.dumps([config, told], sort_keys=True).encode()).hexdigest()[:16]


def digest_of(path: Path) -> str:
    """Of a file, or of a folder's ``labels.csv``; empty where there is none, which is said by the stage that needs it."""
    file = path / "labels.csv" if path.is_dir() else path
    return file_digest(file)[:16] if file.is_file() else ""
