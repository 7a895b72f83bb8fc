"""Provides where results are kept, and what each result was made with."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import respodiff

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def say(text: str) -> None:
    """Prints a line with the time."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def commit() -> str:
    """The commit of the working tree, with ``+`` where files differ from it; empty outside of a repository."""
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty=+", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return found.stdout.strip()


def provenance(command: str) -> dict[str, Any]:
    """Command, commit, versions and cores of a result."""
    return {
        "command": command,
        "commit": commit(),
        "library": respodiff.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu_cores": os.cpu_count(),
    }
