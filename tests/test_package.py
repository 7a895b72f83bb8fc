"""What is distributed: files of the wheel and their sizes, and the texts beside the code that name a version."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import respodiff

ROOT = Path(__file__).parents[1]
BUDGET = {"pipeline": 52, "judge": 16, "judge-b": 6, "modules": 0.5, "pictures": 0.5, "other": 0.5, "code": 2}
"""Most MiB of each part before compression; docs/contributing/release.md names them."""


def test_every_part_of_the_wheel_keeps_to_its_size() -> None:
    sizes: Counter[str] = Counter()
    for file in WheelBuilder(str(ROOT)).recurse_included_files():
        path = Path(file.distribution_path)
        assert path.parts[0] == "respodiff", "nothing but the library"
        inside = path.parts[2:] if path.parts[1] == "embedded" else ()
        part = "code" if not inside else inside[0] if len(inside) > 1 else "other"
        sizes[part] += Path(file.path).stat().st_size
    assert sizes.keys() == BUDGET.keys()
    assert {part for part, size in sizes.items() if size > BUDGET[part] * 2**20} == set()
    page = (ROOT / "docs/contributing/release.md").read_text("utf-8")
    assert all(f"| `{part}` | {most:g} |" in page for part, most in BUDGET.items())


def test_the_sdist_holds_what_makes_the_tables() -> None:
    found = {Path(file.distribution_path).parts[0] for file in SdistBuilder(str(ROOT)).recurse_included_files()}
    assert {"src", "tests", "docs", "benchmarks", "recipes", "README.md", "LICENSE", "Makefile", "pyproject.toml"} <= found
    assert not found & {"runs", "build", "dist", "demo", ".venv", ".ci"}


def test_texts_name_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == respodiff.__version__ and citation["license"] == "Apache-2.0"
    assert respodiff.__version__ in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize("file", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.stem)
def test_issue_forms_ask_for_something(file: Path) -> None:
    form = yaml.safe_load(file.read_text("utf-8"))
    assert form.keys() >= {"name", "description", "body"}
    assert any(part.get("validations", {}).get("required") for part in form["body"])


def test_hooks_run_what_lint_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    lint = (ROOT / "Makefile").read_text("utf-8").split("\nlint: ")[1].split("\n\n")[0]
    for hook in hooks:
        program = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert f"$(BIN)/{program}" in lint
