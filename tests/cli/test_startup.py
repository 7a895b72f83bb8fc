"""What each verb imports before it works: heavy libraries slow the start of every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from command import last_json, respodiff
from painted import coloured
from respodiff.data.import_images import import_folder

pytestmark = pytest.mark.slow

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
    "reproduce",
    "audit",
    "convert",
    "fuse",
    "doctor",
    "sites",
    "calibrate",
    "import",
    "export",
    "demo",
    "push",
    "pull",
    "app",
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


def test_evaluate_of_a_scored_run_loads_no_model(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(2):
        coloured((90 * i, 60, 30), (32, 32)).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images.csv").write_text("file,prompt\n0.png,a doctor\n1.png,a doctor\n")
    run = import_folder(tmp_path / "images", tmp_path / "images.csv", tmp_path / "run").path
    first = last_json(respodiff("evaluate", str(run), "--judge", "embedded", "--json"))
    heavy, _ = imported("evaluate", str(run), "--judge", "embedded")
    assert heavy.isdisjoint({"torch", "transformers", "diffusers"}) and "numpy" in heavy
    heavy, _ = imported("evaluate", str(run), "--judge", "embedded", "--attribute", "tone")
    assert "torch" in heavy, "a new question is put to the judge"
    assert last_json(respodiff("evaluate", str(run), "--judge", "embedded", "--json")) == first


def said(*command: str) -> str:
    """All that a process of its own writes to stderr, its libraries included."""
    talkative = {"HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"}
    own = {k: v for k, v in os.environ.items() if k not in talkative}
    done = subprocess.run([sys.executable, *command], env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_only_our_own_lines_are_on_stderr(tmp_path: Path) -> None:
    generate = ("generate", "--prompt", "a doctor", "--images", "1", "--steps", "1", "--out", str(tmp_path / "run"))
    assert said("-m", "respodiff", *generate) == "model embedded, device cpu, dtype float32\n"


LOADS = """
import respodiff, diffusers, transformers
respodiff.load_pipeline()
respodiff.load_judge("embedded").model
assert all(library.utils.logging.is_progress_bar_enabled() for library in (diffusers, transformers))
"""


def test_in_python_the_embedded_parts_load_without_a_word() -> None:
    assert said("-c", LOADS) == ""
