"""``--config FILE``: flags of every verb from a file, and the file that is written beside what a verb makes."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from command import Done, last_json, respodiff
from respodiff.cli import main, run_file
from respodiff.cli.console import Verbs, app
from respodiff.data.run_folder import RunFolder
from respodiff.experiments import audit

assert main, "it registers the verbs"
GROUP: Any = typer.main.get_command(app)
ODD = 'a "b" \\ [c]\n é 😀 \x7f \x01 = #'


def parsed(verb: str, *arguments: str) -> Any:
    """The context of a command line that is read and not run."""
    parent = GROUP.make_context("respodiff", [], resilient_parsing=True)
    return GROUP.commands[verb].make_context(verb, list(arguments), parent=parent)


def values(ctx: Any) -> dict[str, Any]:
    """What the verb is called with, but for flags of one command."""
    own = {p.name for key, p in run_file.keys(ctx).items() if key not in run_file.PER_CALL and not run_file.SECRET.search(key)}
    return {name: value for name, value in ctx.params.items() if name in own}


def all_flags(verb: str) -> list[str]:
    """A command line with every flag and argument of a verb, those that repeat twice."""
    flags, arguments = list[str](), list[str]()
    command = GROUP.commands[verb]
    ctx = command.make_context(verb, [], resilient_parsing=True)
    for p in command.params:
        if p.name == "config_files":
            continue
        if getattr(p, "is_flag", False):
            flags.append(p.opts[0])
            continue
        many = run_file._takes_many(p)
        for text in (ODD, "1", "4", "100"):
            try:
                p.process_value(ctx, [text] if many else text)
                break
            except Exception:
                continue
        given = [text, text] if many else [text]
        if p.opts[0].startswith("--"):
            flags += [part for value in given for part in (p.opts[0], value)]
        else:
            arguments += given
    return [*flags, "--", *arguments]


@pytest.mark.parametrize("verb", GROUP.commands)
def test_every_verb_reads_back_what_it_wrote(verb: str, tmp_path: Path) -> None:
    ctx = parsed(verb, *all_flags(verb))
    file = tmp_path / "run.toml"
    file.write_text(text := run_file.text_of(ctx), encoding="utf-8")
    table = tomllib.loads(text)[verb]
    again = parsed(verb, "--config", str(file))
    assert values(again) == values(ctx) and len(table) == len(values(ctx)) > 0
    assert run_file.text_of(again) == text
    assert not {*table} & {*run_file.PER_CALL}


def test_what_was_not_given_is_not_written() -> None:
    assert tomllib.loads(run_file.text_of(parsed("demo"))) == {"demo": {}}
    assert tomllib.loads(run_file.text_of(parsed("generate", "--seed", "0", "--json"))) == {"generate": {"seed": 0}}


def flags_of(text: str, tmp_path: Path, verb: str, *more: str) -> dict[str, Any]:
    (tmp_path / "f.toml").write_text(text)
    found: dict[str, Any] = parsed(verb, "--config", str(tmp_path / "f.toml"), *more).params
    return found


def test_the_command_line_wins_over_files_and_a_later_file_over_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "first.toml").write_text('[generate]\nimages = 3\nsteps = 5\nseed = 1\n[train]\nconcept = "woman"\n')
    (tmp_path / "second.toml").write_text('[generate]\nsteps = 6\nseed = 2\nprompt = ["a", "b"]\nscale = 0.5\n')
    files = ["--config", str(tmp_path / "first.toml"), "--config", str(tmp_path / "second.toml")]
    found = parsed("generate", "--seed", "9", *files).params
    assert [found[k] for k in ("images", "steps", "seed", "scale")] == [3, 6, 9, "0.5"] and [*found["prompt"]] == ["a", "b"]
    assert [*parsed("generate", *files, "--prompt", "c").params["prompt"]] == ["c"], "a list is replaced, not continued"
    assert parsed("train", *files[:2], "--out", "x").params["known"] == "woman"


def test_arguments_and_required_flags_come_from_a_file(tmp_path: Path) -> None:
    found = flags_of('[report]\nruns = ["a=runs/a", "b"]\nout = "r.html"\n', tmp_path, "report")
    assert [*found["runs"]] == ["a=runs/a", "b"] and str(found["out"]) == "r.html"
    found = flags_of('[fuse]\nmodule = ["m"]\nout = "x"\nsingle-file = "s"\n', tmp_path, "fuse")
    assert (found["source"], str(found["out"])) == ("s", "x")


def test_the_old_spelling_of_the_configuration_of_a_model(tmp_path: Path) -> None:
    text = '[generate]\nmodel = "m.safetensors"\nmodel-config = "a"\n'
    assert flags_of(text, tmp_path, "generate")["config"] == "a"
    assert flags_of(text, tmp_path, "generate", "--config", "folder")["config"] == "folder"
    assert flags_of(text, tmp_path, "generate", "--config", "org/model")["source"] == "m.safetensors"
    assert parsed("generate", "--config", "org/model").params["config"] == "org/model"
    assert audit._command("train", config="folder", out="x") == "respodiff train --model-config folder --out x"
    (tmp_path / "flags.txt").write_text("[generate]\nseed = 7\n")
    assert parsed("generate", "--config", str(tmp_path / "flags.txt")).params["seed"] == 7


def refused(done: Done, *said: str) -> None:
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    assert all(word in done.stderr for word in said), done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[generate]\nimage = 3", ["f.toml: [generate] image is no flag", "images"]),
        ("[generate]\nconfig = 'x'", ["[generate] config is no flag"]),
        ("[generate]\nimages = 0", ["f.toml: [generate] images", "'0'", "from 1 to"]),
        ("[generate]\nimages = true", ["f.toml: [generate] images is True"]),
        ("[generate]\nprompt = 'a'", ["f.toml: [generate] prompt is 'a'", "a list of"]),
        ("[generate]\nprompt = [['a']]", ["f.toml: [generate] prompt", "a list of"]),
        ("[generate]\nseed = 1979-05-27", ["f.toml: [generate] seed"]),
        ("[generate]\nskip-explicit-prompts = 1", ["f.toml: [generate] skip-explicit-prompts is 1", "true or false"]),
        ("[generate]\nprompt = ['a']\npolicy = 'fair'", ["f.toml: [generate] policy is 'fair'; allowed"]),
        ("[generate]\nprompt = ['a']\noffload = 'all'", ["f.toml: [generate] --offload is 'all'"]),
        ("[generate]\nmodel = 'a'\nsingle-file = 'b'", ["f.toml: [generate] single-file is given under two names"]),
        ("[draw]\nimages = 3", ["f.toml: 'draw' is no table", "[generate]"]),
        ("images = 3", ["f.toml: 'images' is no table"]),
        ("[train]\nout = 'x'", ["f.toml has no table [generate]; it has [train]"]),
        ("generate", ["f.toml is no TOML file"]),
    ],
)
def test_bad_files_are_one_line_with_file_and_key(text: str, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text(text)
    refused(respodiff("generate", "--config", "f.toml", cwd=tmp_path), *said)
    assert [p.name for p in tmp_path.iterdir()] == ["f.toml"]


def test_a_file_that_is_not_there_and_a_verb_without_a_model(tmp_path: Path) -> None:
    refused(respodiff("generate", "--config", "f.toml", cwd=tmp_path), "f.toml", "cannot be read")
    refused(respodiff("calibrate", "--config", "folder", cwd=tmp_path), "folder", "cannot be read")


def test_a_new_verb_takes_files_and_its_secrets_are_not_written(tmp_path: Path) -> None:
    app = Verbs()

    @app.command()
    def pull(hub_token: str = "", api_key: str = "", key: str = "") -> None: ...

    @app.command()
    def push() -> None: ...

    command: Any = typer.main.get_command(app)
    (tmp_path / "f.toml").write_text('[pull]\nhub-token = "t"\nkey = "v"\n')
    ctx = command.commands["pull"].make_context("pull", ["--api-key", "u", "--config", str(tmp_path / "f.toml")])
    assert (ctx.params["hub_token"], ctx.params["api_key"]) == ("t", "u")
    assert tomllib.loads(run_file.text_of(ctx)) == {"pull": {"key": "v"}}


# --- what is written beside results ---


def made(tmp_path: Path, *arguments: str, out: str = "file.json") -> tuple[Done, Path]:
    """`calibrate`, which needs no model of images, on two images that the embedded judge labels."""
    from painted import coloured

    for i in range(2):
        coloured((90 * i, 60, 30), (32, 32)).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("file,gender\n0.png,woman\n1.png,man\n")
    return respodiff("calibrate", "labels.csv", "--out", out, *arguments, cwd=tmp_path), tmp_path / f"{out}.run.toml"


def test_a_file_of_somebody_else_is_left_as_it_is(tmp_path: Path) -> None:
    done, file = made(tmp_path)
    assert done.returncode == 0 and tomllib.loads(file.read_text())["calibrate"] == {"table": "labels.csv", "out": "file.json"}
    file.write_text("# mine\n")
    done, _ = made(tmp_path, "--seed", "1")
    assert done.returncode == 0 and "not made by respodiff" in done.stderr and file.read_text() == "# mine\n"


def test_files_that_differ_in_their_suffix_keep_their_flags(tmp_path: Path) -> None:
    _, first = made(tmp_path, out="file.json")
    done, second = made(tmp_path, out="file.txt")
    assert done.returncode == 0
    assert [tomllib.loads(file.read_text())["calibrate"]["out"] for file in (first, second)] == ["file.json", "file.txt"]


def test_a_name_that_toml_cannot_hold_is_said(tmp_path: Path) -> None:
    done, _ = made(tmp_path, out="f\udc80.json")
    assert done.returncode == 0 and "the flags are not written" in done.stderr
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".json", ".png", ".png"]


@pytest.mark.slow
def test_the_file_of_a_run_makes_the_same_images(tmp_path: Path) -> None:
    flags = ["--prompt", "a doctor", "--prompt", 'a "nurse"', "--images", "2", "--steps", "2", "--module", "gender", "--seed", "3"]
    last_json(respodiff("generate", *flags, "--out", "a", "--json", cwd=tmp_path))
    last_json(respodiff("generate", "--config", "a/run.toml", "--out", "b", "--json", cwd=tmp_path))
    first, second = (RunFolder(tmp_path / name) for name in "ab")
    assert [r.digest for r in first.records()] == [r.digest for r in second.records()] and len(first.records()) == 4
    assert first.settings() == second.settings()
    again = last_json(respodiff("generate", "--config", "a/run.toml", "--json", cwd=tmp_path))
    assert again["skipped"] == 4
    tables = [tomllib.loads((tmp_path / name / "run.toml").read_text())["generate"] for name in "ab"]
    assert tables[1] == tables[0] | {"out": "b"}
