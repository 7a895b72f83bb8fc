"""The documentation site: it builds, its navigation and API page are complete, its pictures are those of their command, and its code runs."""

from __future__ import annotations

import logging
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import PluginError
from recipes.documentation.links import on_page_markdown
from recipes.documentation.pictures import FOLDER, PICTURES

import respodiff
from command import respodiff as command
from respodiff.pipelines import loading
from respodiff.training.config import PRESETS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RUN = [DOCS / "quick-start.md", *sorted((DOCS / "guides").glob("*.md")), *sorted((DOCS / "explained").glob("*.md")), DOCS / "limits.md"]
"""Pages whose code is run."""
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
NOT_RUN = "not run: "
"""What the title of a block starts with that is not run; the site shows it."""


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path))
    assert config["strict"]
    config.plugins.on_startup(command="build", dirty=False)
    with caplog.at_level(logging.WARNING, "mkdocs"):
        build(config)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    pages = [p.read_text("utf-8") for p in tmp_path.rglob("*.html")]
    assert len(pages) > len(list(DOCS.rglob("*.md")))
    assert not [p for p in pages if re.search(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', p)], "nothing is fetched"


def test_the_python_page_has_every_public_name() -> None:
    told = re.findall(r"^::: respodiff\.([\w.]+)$", (DOCS / "api.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(told) == sorted(f"{home}.{name}" for name, home in respodiff._HOME.items())


def test_pictures_are_those_of_their_command() -> None:
    assert {p.name for p in FOLDER.glob("*.svg")} == PICTURES.keys()
    assert all((FOLDER / name).read_text("utf-8") == draw() for name, draw in PICTURES.items())


def rewritten(markdown: str) -> str:
    return on_page_markdown(
        markdown, page=SimpleNamespace(file=SimpleNamespace(src_uri="contributing/x.md")), config={"docs_dir": str(DOCS)}
    )


def test_links_out_of_docs_become_paths_of_the_repository() -> None:
    assert rewritten("see [README.md](../../README.md), [it](../../LICENSE).") == "see `README.md`, it (`LICENSE`)."
    assert rewritten("[a](../data.md#suites) [b](judge.md)") == "[a](../data.md#suites) [b](judge.md)"
    with pytest.raises(PluginError, match=r"x\.md.*NOTHING"):
        rewritten("[a](../../NOTHING.md)")


# --- code of the pages ---


def lines(text: str) -> Iterator[list[str]]:
    """The commands of a ``sh`` block, as words."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer sampler steps and updates than the pages' defaults, so that all pages take less than a minute."""
    monkeypatch.setattr(loading, "EMBEDDED_SAMPLING", (1, 3.0))
    for kind in ("fairness", "safety"):
        few = {"iterations": 1, "rollouts": 2, "steps": 2, "batch": 1, "projection": 0.0, "preservation_weight": 0.0}
        monkeypatch.setitem(PRESETS, ("default", kind), PRESETS["default", kind] | few)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.filterwarnings("ignore")  # counts are small, and modules hardly trained
@pytest.mark.parametrize("page", RUN, ids=lambda p: p.stem)
def test_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {}
    for language, title, text in FENCE.findall(page.read_text("utf-8")):
        if title.startswith(NOT_RUN):
            continue
        if title:
            Path(title).write_text(text)
        elif language == "python":
            exec(compile(text, str(page), "exec"), names)
        else:
            assert language == "sh", f"a block of {language} is neither run, nor a file, nor marked"
            for program, *arguments in lines(text):
                assert program == "respodiff", f"{program} cannot be run here: mark the block"
                done = command(*arguments)
                assert done.returncode == 0, f"{shlex.join(arguments)}: {done.stderr}"
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)


def test_every_block_of_a_page_says_what_it_is() -> None:
    for page in RUN:
        text = page.read_text("utf-8")
        assert len(FENCE.findall(text)) * 2 == len(re.findall(r"^```", text, re.MULTILINE)), page.name
