"""Every number that a flag or a setting takes has two bounds, checked before work begins."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer import Option
from typer.models import OptionInfo

from command import respodiff
from respodiff.cli import main  # noqa: F401  (registers the verbs)
from respodiff.cli.console import app
from respodiff.cli.options import Bounds, number
from respodiff.generation.config import GenerateConfig
from respodiff.methods.registry import NAMES, get_method


def numeric_flags() -> list[Any]:
    """(verb, parameter, its type, what Typer knows of it) for every parameter whose type holds a number."""
    out = []
    for command in app.registered_commands:
        hints = get_type_hints(command.callback, include_extras=True)
        for name in signature(command.callback).parameters:  # type: ignore[arg-type]
            kind, info = get_args(hints[name])
            if {int, float} & {kind, *get_args(kind), *(k for part in get_args(kind) for k in get_args(part))}:
                out.append(pytest.param(command, name, kind, info, id=f"{command.callback.__name__}-{name}"))  # type: ignore[union-attr]
    return out


FLAGS = numeric_flags()


def test_there_are_such_flags() -> None:
    assert len(FLAGS) > 30 and isinstance(Option(), OptionInfo)


@pytest.mark.parametrize(("command", "name", "kind", "info"), FLAGS)
def test_every_numeric_flag_has_bounds(command: Any, name: str, kind: Any, info: OptionInfo, tmp_path: Path) -> None:
    assert isinstance(info.parser, Bounds), f"make {name} with respodiff.cli.options.number"
    assert info.parser.whole == (float not in (kind, *get_args(kind), *(k for part in get_args(kind) for k in get_args(part))))
    flag = next((d for d in info.param_decls or () if d.startswith("--")), f"--{name.replace('_', '-')}")
    verb = command.name or command.callback.__name__
    for value in ("1e20", "-1e20", "nan", "inf", "-inf", "1" + "0" * 30, "9" * 5000, "", "two", "0x10"):
        done = respodiff(verb, flag, value, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and flag in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bounds_are_allowed_and_read_as_what_they_are() -> None:
    whole, share = number(1, 3, help="").parser, number(0, 1, help="", whole=False).parser
    assert [whole(text) for text in ("1", " 3 ", 2)] == [1, 3, 2] and isinstance(whole("2"), int)
    assert [share(text) for text in ("0", "1", "0.5", 1.0)] == [0, 1, 0.5, 1]
    for parser, text in ((whole, "0"), (whole, "4"), (whole, "1.5"), (share, "1.0001"), (share, "nan")):
        with pytest.raises(Exception, match="allowed: a"):
            parser(text)


CONFIGS = {get_method(name).config for name in NAMES} | {GenerateConfig}


@pytest.mark.parametrize("config", sorted(CONFIGS, key=lambda c: c.__name__))
def test_every_number_of_the_settings_has_bounds(config: Any) -> None:
    hints = get_type_hints(config)
    for name in (f.name for f in fields(config)):
        kinds = {hints[name], *get_args(hints[name])}
        for value in (10**20, float("inf"), float("nan"), -1e20) if {int, float} & kinds else ():
            with pytest.raises(ValueError, match=f"{name} is "):
                config(**{name: (value, value) if hints[name] not in (int, float) and type(None) not in kinds else value})


@pytest.mark.parametrize("pair", ["batch=100000000000000000000", "batch=1e20", "ram_lr=1e400", "rollouts=" + "9" * 5000, "betas=[1e400,1]"])
def test_settings_out_of_bounds_are_one_line(pair: str, tmp_path: Path) -> None:
    done = respodiff("train", "--concept", "woman", "--set", pair, "--out", "m.safetensors", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
