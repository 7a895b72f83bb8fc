"""Flags that all verbs share."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pytest
import torch

from command import respodiff
from respodiff.cli import console
from respodiff.cli.console import PlainConsole, check_device, finish, open_model, progress, table
from respodiff.pipelines.source import ModelSource


@pytest.mark.parametrize(
    ("build", "available", "said"),
    [(None, False, "built without CUDA"), ("13.0", False, "no NVIDIA driver or no GPU"), ("13.0", True, "cuda:0 to cuda:1")],
)
def test_a_device_that_is_not_there_says_why(build: str | None, available: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(torch, "zeros", zeros)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=f"--device is 'cuda:7', which is not available: .*{said}.*--device cpu"):
        check_device("cuda:7")


@pytest.mark.slow
def test_model_device_and_dtype_are_the_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    done = respodiff("doctor", "--json")
    assert done.stderr.splitlines()[0] == "model embedded, device cpu, dtype float32" and "Loading" not in done.stderr
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        open_model(ModelSource("embedded", "cpu", "int8"))


ODD = "[/big] [red]x[/red] :smile: \x1b[31mred\x1b[0m\a \x9b2J\u202eevil"
SHOWN = "[/big] [red]x[/red] :smile: red evil"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    out = io.StringIO()
    monkeypatch.setattr(console, "words", PlainConsole(file=out, force_terminal=True, color_system=None, width=200))
    return out


def test_names_and_prompts_are_printed_without_markup_and_escapes(terminal: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as bar:
        bar.add_task(ODD, total=2)
        bar.refresh()
    console.words.print(ODD)
    console.words.print(table(ODD, (ODD, "n"), [(ODD, "1")]))
    said = terminal.getvalue()
    assert said.count(SHOWN) >= 5 and "\x1b[31m" not in said and not {"\a", "\x9b", "\u202e"} & set(said)
    finish({}, ODD, as_json=False)
    assert capsys.readouterr().out.strip() == SHOWN


@pytest.mark.parametrize(("name", "figures"), [("single_transformer_blocks.18", 4), ("UNet fine-tuning, no pairs", 6)])
def test_nothing_in_a_table_is_cut(name: str, figures: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    row = [name, *[f"0.{i}12 [0.{i}00, 0.{i}50]" for i in range(figures)]]
    finish({}, "", False, table("", ["site", *"abcdef"[:figures]], [row]))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len({len(line) for line in lines}) == 1 and all(word in "".join(lines) for cell in row[1:] for word in cell.split())
    first = "".join(line.split("│")[1] for line in lines if line.startswith("│"))
    assert "".join(first.split()) == "".join(name.split())


def test_an_error_and_a_warning_are_one_short_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_path: Path) -> None:
        warnings.warn(f"{ODD}\nsecond line {'w' * 10**6!r}", stacklevel=1)
        raise ValueError(f"concept is {ODD + 'e' * 10**7!r}; allowed:\nwoman, man")

    monkeypatch.setattr("respodiff.cli.models.contents", broken)
    done = respodiff("inspect", "x")
    warning, error = done.stderr.splitlines()
    assert warning.startswith(f"warning: {SHOWN} second line") and error.endswith("; allowed: woman, man") and len(done.stderr) < 1000
    done = respodiff("train", "--concept", "\x1b[31m" + "x" * 100_000, "--out", str(tmp_path / "m"))
    assert done.returncode == 2 and len(done.stderr) < 1000 and "\x1b" not in done.stderr and done.stderr.count("\n") == 1
