"""What other packages add: the package of docs/contributing/plugins.md, installed by pip, and packages that do harm to themselves alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.tiny_models import sd

from command import respodiff as command
from respodiff import _plugins
from respodiff.data.prompt_sets import SUITES, load_suite
from respodiff.data.prompt_sets import names as suites
from respodiff.evaluation import judges
from respodiff.experiments.compare import kind_of
from respodiff.methods.registry import NAMES, get_method, methods_for
from respodiff.methods.registry import names as methods
from respodiff.pipelines.registry import spec_of

PAGE = (Path(__file__).parents[1] / "docs" / "contributing" / "plugins.md").read_text(encoding="utf-8")
ADDED = {"methods": "prompt-late", "judges": "dark", "suites": "crafts", "pipelines": "AltDiffusionPipeline"}


# --- the package of the page, in processes of its own ---


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that pip has installed the page's package in."""
    project, site = tmp_path_factory.mktemp("respodiff-example"), tmp_path_factory.mktemp("site")
    for language, name in (("toml", "pyproject.toml"), ("python", "respodiff_example.py")):
        (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
        (project / name).write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, str(project)], check=True)
    return site


def respodiff(site: Path, *arguments: str) -> str:
    """What a command says on stdout, in a process that finds the package."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-m", "respodiff", *arguments], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "kinds"),
    [("compare", ADDED), ("generate", ("methods", "suites", "pipelines")), ("train", ("methods", "pipelines")), ("evaluate", ("judges",))],
)
def test_help_names_what_the_package_adds(site: Path, verb: str, kinds: tuple[str, ...]) -> None:
    text = respodiff(site, verb, "--help")
    assert all(ADDED[kind] in text for kind in kinds) and not any(f"<{kind}>" in text for kind in ADDED)


@pytest.mark.slow
def test_a_comparison_takes_all_that_the_package_adds(site: Path, tmp_path: Path) -> None:
    from diffusers import AltDiffusionPipeline

    AltDiffusionPipeline(**sd().components, requires_safety_checker=False).save_pretrained(tmp_path / "alt")
    asked = ("--model", str(tmp_path / "alt"), "--suite", "crafts", "--methods", "prompt-late", "--judge", "embedded", "--judge", "dark")
    small = ("--images", "2", "--steps", "1", "--scale", "1")
    found = json.loads(respodiff(site, "compare", *asked, *small, "--out", str(tmp_path / "runs"), "--json").splitlines()[-1])
    assert set(found["methods"]) == {"plain", "prompt-late"}
    assert [judge["name"] for judge in found["judges"]] == ["embedded", "dark"]


def test_the_list_of_verbs_looks_for_no_packages() -> None:
    forget()
    assert command("--help").returncode == 0 and _plugins._entries.cache_info().misses == 0
    assert command("train", "--help").returncode == 0 and _plugins._entries.cache_info().misses > 0


# --- packages that cannot be used ---

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package that holds ``code`` as wheels are: its module, and a folder with its metadata."""

    def add(package: str, code: str = "", **entries: str) -> None:
        about = tmp_path / f"{package}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        groups = (f"[respodiff.{kind}]\n{name} = {package}:found\n" for kind, name in entries.items())
        (about / "entry_points.txt").write_text("\n".join(groups))
        (tmp_path / f"{package}.py").write_text(code)
        monkeypatch.delitem(sys.modules, package, raising=False)
        forget()

    monkeypatch.syspath_prepend(tmp_path)
    yield add
    forget()


def forget() -> None:
    """The next look at what packages add is a fresh one."""
    _plugins.names.cache_clear()
    _plugins._entries.cache_clear()


def test_a_package_that_cannot_be_imported_costs_itself_alone(install: Install) -> None:
    install("broken", "import nothing_of_this_name", methods="wonder", judges="oracle", suites="lost", pipelines="StrangePipeline")
    why = "of package broken 1.0 cannot be imported .ModuleNotFoundError: No module named 'nothing_of_this_name'"
    with pytest.warns(UserWarning, match=f"^method 'wonder' {why}"):
        assert set(methods_for("fairness")) | set(methods_for("safety")) == set(NAMES)
    assert methods()[-1] == "wonder" and suites() == (*SUITES, "lost") and judges.sources().endswith(", oracle")
    for ask in (
        lambda: get_method("wonder"),
        lambda: judges.load_judge("oracle:file"),
        lambda: load_suite("lost"),
        lambda: spec_of(strange()),
    ):
        with pytest.raises(ValueError, match=why):
            ask()
    assert get_method("plain").name == "plain" and spec_of(sd()).model == "unet"


def strange() -> object:
    return type("StrangePipeline", (), {})()


def test_a_built_in_name_wins(install: Install) -> None:
    install("greedy", "found = None", methods="sdisc", judges="nudenet", suites="scenes", pipelines="FluxPipeline")
    with pytest.warns(UserWarning, match="^method 'sdisc' of package greedy 1.0 is ignored"):
        assert get_method("sdisc").name == "sdisc" and methods() == tuple(NAMES)
    with pytest.warns(UserWarning, match="suite 'scenes' of package greedy"):
        assert load_suite("scenes").prompts and suites() == SUITES
    with pytest.warns(UserWarning, match="pipeline class 'FluxPipeline' of package greedy"):
        assert spec_of(sd()).model == "unet"


def test_a_name_of_two_packages_is_refused(install: Install) -> None:
    for package in ("first", "second"):
        install(package, "found = None", methods="both")
    with pytest.raises(ValueError, match=r"method 'both' of packages (first|second) 1.0 and (first|second) 1.0"):
        get_method("both")


@pytest.mark.parametrize("code", ["found = 1", "def found(): return ['a doctor']", "def found(): return []"])
def test_what_is_no_suite_is_refused(install: Install, code: str) -> None:
    install("wrong", code, suites="wrong")
    with pytest.raises(ValueError, match=r"suite 'wrong'.*needed: a"):
        load_suite("wrong")


def test_what_is_no_method_of_its_name_is_refused(install: Install) -> None:
    install("wrong", "from respodiff.methods.prompting import METHODS\nfound = METHODS['prompt']", methods="wrong")
    with pytest.raises(ValueError, match=r"method 'wrong' of package wrong 1.0.*needed: a Method of the name 'wrong'"):
        get_method("wrong")


@pytest.mark.parametrize(("categories", "kind"), [("('blood',)", "safety"), ("()", "fairness")])
def test_a_suite_with_categories_is_one_of_unsafe_prompts(install: Install, categories: str, kind: str) -> None:
    name = f"own-{kind}"
    prompt = f"Prompt('a', 'a scene', group='a', categories={categories})"
    install("own", f"from respodiff.data.records import Prompt\ndef found(): return [{prompt}]", suites=name)
    assert kind_of(name) == kind and load_suite(name).prompts[0].suite == name


def test_a_class_with_a_call_of_its_own_has_the_row_of_its_package(install: Install) -> None:
    install("rows", "from respodiff.pipelines.registry import PipelineSpec\nfound = PipelineSpec('sd', steps=7)", pipelines="OwnPipeline")
    pipe = sd()
    pipe.__class__ = type("OwnPipeline", (type(pipe),), {"__call__": lambda self: None})
    assert spec_of(pipe).steps == 7
