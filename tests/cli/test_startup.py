"""What each verb imports before it works: heavy libraries slow the start of every command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HEAVY = {
    "PIL",
    "diffusers",
    "huggingface_hub",
    "jinja2",
    "matplotlib",
    "numpy",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
}
VERBS = [
    "train",
    "inspect",
    "generate",
    "evaluate",
    "report",
    "compare",
    "audit",
    "convert",
    "fuse",
    "doctor",
    "calibrate",
    "import",
    "demo",
]
PROGRAM = """
import json, sys
from respodiff.cli.main import main
sys.argv = ["respodiff", *sys.argv[1:]]
try:
    main()
except SystemExit as leave:
    code = leave.code
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules}), len(sys.modules)]))
"""


def imported(*arguments: str) -> tuple[set[str], int]:
    """Heavy libraries, and number of all modules, that a command imports in a process of its own."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    code, names, count = json.loads(done.stdout.splitlines()[-1])
    assert not code, done.stderr
    return HEAVY & set(names), count


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_imports_nothing_heavy(verb: str) -> None:
    heavy, count = imported(*([verb] if verb else []), "--help")
    assert heavy == set() and count < 700


def test_inspect_reads_a_file_without_torch(make_module: Any, tmp_path: Path) -> None:
    path = make_module().save(tmp_path / "m.safetensors")
    heavy, count = imported("inspect", str(path))
    assert heavy == {"numpy", "safetensors"} and count < 900
