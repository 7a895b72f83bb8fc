"""Provides ``--config FILE`` for every verb: its flags from a TOML file, and such a file beside what it has made.

A file has a table for each verb, whose keys are the long names of flags and the names of arguments::

    [generate]
    prompt = ["a doctor"]
    module = ["gender"]
    images = 20
    skip-explicit-prompts = true
"""

from __future__ import annotations

import json
import os
import re
import tomllib
import warnings
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Context, Option

from respodiff._version import __version__
from respodiff.data.places import new_file
from respodiff.data.tables import read_text
from respodiff.data.untrusted import shortened

HELP = "TOML file with flags of this verb (docs/data.md); those of the command line win. Repeat: later files win."
NAME, MARK = "run.toml", "# Written by respodiff"
PER_CALL = ("config", "json", "force", "resume", "dry-run", "num-shards", "shard-index")
"""Flags that say how one command is run, not what it makes."""
SECRET = re.compile("token|secret|password|credential|api-?key")


def takes_config(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The verb with the flag ``--config``; it gives back its ``--out`` if it takes a path, for `write`."""

    @wraps(verb)
    def run(**given: Any) -> Path | None:
        del given["config_files"]
        verb(**given)
        out = given.get("out")
        return out if isinstance(out, Path) else None

    files = Annotated[list[str] | None, Option("--config", help=HELP, metavar="FILE", is_eager=True, callback=_read_all)]
    last = Parameter("config_files", Parameter.KEYWORD_ONLY, default=None, annotation=files)
    hints = get_type_hints(verb, include_extras=True)
    parameters = [p.replace(kind=p.KEYWORD_ONLY, annotation=hints[p.name]) for p in signature(verb).parameters.values()]
    run.__signature__ = signature(verb).replace(parameters=[*parameters, last])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*parameters, last)}
    return run


def _read_all(ctx: Context, files: list[str] | None) -> list[str]:
    """Makes the values of files the defaults of the flags. ``--config DIR|ID`` is the earlier name of ``--model-config``."""
    given = files or []
    of_model = [f for f in given if "model-config" in keys(ctx) and not f.endswith(".toml") and not Path(f).is_file()]
    ctx.default_map = {}
    for file in given:
        ctx.default_map |= {} if file in of_model else read(Path(file), ctx)
    if of_model:
        ctx.default_map["config"] = of_model[-1]
    return given


def keys(ctx: Context) -> dict[str, Any]:
    """Name in a file -> flag or argument of the verb; the first long name is the one that is written."""
    found: dict[str, Any] = {}
    for p in ctx.command.params:
        names = [name.removeprefix("--") for name in p.opts if name.startswith("--")] or [str(p.name).replace("_", "-")]
        found |= dict.fromkeys(names, p)
    return {name: p for name, p in found.items() if name not in ("config", "help")}


def read(file: Path, ctx: Context) -> dict[str, Any]:
    """Parameter -> value as text, bool or list of texts, of the verb's table in a file.

    Raises:
        ValueError: the file cannot be read, has no table of the verb, names what is no flag, or has a value that the flag does not take.
    """
    verb, known = str(ctx.info_name), keys(ctx)
    try:
        tables = tomllib.loads(read_text(file))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is no TOML file ({error}); write a table [{verb}] with flags by their long names") from error
    verbs = [*getattr(ctx.parent.command, "commands", {})] if ctx.parent else [verb]
    if other := [name for name, table in tables.items() if name not in verbs or not isinstance(table, dict)]:
        raise ValueError(f"{file}: {other[0]!r} is no table of a verb; allowed: {', '.join(f'[{name}]' for name in verbs)}")
    if verb not in tables:
        raise ValueError(f"{file} has no table [{verb}]; it has {', '.join(f'[{name}]' for name in tables) or 'none'}")
    found: dict[str, Any] = {}
    for key, value in tables[verb].items():
        if (p := known.get(key)) is None or p.name in found:
            reason = "is given under two names" if p else f"is no flag of it; allowed: {', '.join(known)}"
            raise ValueError(f"{file}: [{verb}] {key} {reason}")
        found[str(p.name)] = _as_typed(value, p, ctx, f"{file}: [{verb}] {key}")
    ctx.meta.setdefault(__name__, {}).update(dict.fromkeys(found, str(file)))
    return found


def _as_typed(value: Any, p: Any, ctx: Context, place: str) -> Any:
    """A value as the command line would give it; ValueError for one that the flag does not take."""
    many, flag = _takes_many(p), bool(getattr(p, "is_flag", False))
    items = value if isinstance(value, list) else [value]
    kinds = bool if flag else (str, int, float)
    if isinstance(value, list) != many or not all(isinstance(v, kinds) and (flag or not isinstance(v, bool)) for v in items):
        wanted = "true or false" if flag else "a list of texts or numbers" if many else "a text or a number"
        raise ValueError(f"{place} is {shortened(repr(value))}; allowed: {wanted}")
    typed = value if flag else [str(v) for v in items] if many else str(value)
    try:
        p.process_value(ctx, typed)
    except Exception as error:  # of click or of Typer's own, by version
        raise ValueError(f"{place}: {getattr(error, 'message', None) or error}") from error
    return typed


def _takes_many(p: Any) -> bool:
    return bool(getattr(p, "multiple", False) or p.nargs != 1)


def with_place(ctx: Context, error: str) -> str:
    """An error that begins with the name of a flag, with the file that the flag's value is from."""
    name = error.split(maxsplit=1)[0].lstrip("-").rstrip(":") if error.strip() else ""
    p = keys(ctx).get(name.replace("_", "-"))
    file = ctx.meta.get(__name__, {}).get(p.name) if p and _source(ctx, p) == "DEFAULT_MAP" else None
    return f"{file}: [{ctx.info_name}] {error}" if file else error


def _source(ctx: Context, p: Any) -> str:
    """Where a value is from: COMMANDLINE, ENVIRONMENT, DEFAULT_MAP (a file) or DEFAULT."""
    return str(getattr(ctx.get_parameter_source(str(p.name)), "name", "DEFAULT"))


def text_of(ctx: Context) -> str:
    """What the verb was given, on the command line or by files, as such a file; nothing of `PER_CALL` and no secrets."""
    lines, written = [f"{MARK} {__version__}: respodiff {ctx.info_name} --config FILE", f"[{ctx.info_name}]"], set[str]()
    for key, p in keys(ctx).items():
        value = ctx.params.get(str(p.name))
        if p.name in written or key in PER_CALL or SECRET.search(key) or value is None or _source(ctx, p) == "DEFAULT":
            continue
        written.add(str(p.name))
        lines.append(f"{key} = [{', '.join(map(_toml, value))}]" if _takes_many(p) else f"{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A value in TOML, whose strings are those of JSON but for DEL."""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def place_of(out: Path) -> Path:
    """Where the flags are written: into the folder that was made, or beside the file."""
    return out / NAME if out.is_dir() else out.with_name(f"{out.name}.{NAME}")


def write(ctx: Context, out: Path) -> None:
    """Write `text_of` to `place_of` what the verb has made; a file there that somebody else wrote is left as it is, with a warning."""
    if not out.exists() or ctx.params.get("dry_run"):
        return
    file, text = place_of(out), text_of(ctx)
    try:
        if os.path.lexists(file) and not (file.is_file() and not file.is_symlink() and read_text(file).startswith(MARK)):
            raise ValueError("it was not made by respodiff, and is left as it is")
        data = text.encode()
    except ValueError as error:
        warnings.warn(f"the flags are not written to {str(file)!r}: {error}", stacklevel=2)
        return
    with new_file(file) as partial:
        partial.write_bytes(data)
