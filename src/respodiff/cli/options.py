"""What verbs need of methods: settings from flags, adapters from files or concepts."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

from respodiff.cli.console import library
from respodiff.concepts.concept import concept
from respodiff.methods.registry import BASELINE, NAMES

METHOD_HELP = ", ".join(NAMES)


def changes_from(pairs: Sequence[str], flags: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Settings from ``--set KEY=VALUE`` pairs and flags (None: not given); ValueError for one that ``config`` has not or cannot read."""
    hints, known = get_type_hints(config), [f.name for f in fields(config)]
    changes: dict[str, Any] = {k: v for k, v in flags.items() if v is not None}
    if unknown := [key for key in changes if key not in known]:
        raise ValueError(f"--{unknown[0]} is given, which this method has not; its settings: {', '.join(known) or 'none'}")
    for pair in pairs:
        key, _, text = pair.partition("=")
        if key not in known:
            raise ValueError(f"--set {pair!r}: setting {key!r} is unknown; allowed: {', '.join(known) or 'none'}")
        if flags.get(key) is not None:
            raise ValueError(f"--set {pair!r} is given beside --{key} {flags[key]}; give one of them")
        hint = hints[key]
        try:
            if hint is bool:
                changes[key] = {"true": True, "false": False}[text.lower()]
            elif hint in (int, float):
                changes[key] = hint(text)
            elif hint is str or "Literal" in str(hint):
                changes[key] = text
            else:
                values = json.loads(text) if text.startswith("[") else text.split(",")
                changes[key] = tuple(float(v) if "float" in str(hint) else str(v).strip() for v in values)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"--set {pair!r}: {text!r} is not {getattr(hint, '__name__', hint)}; write --set {key}=VALUE") from error
    return changes


def load_entries(
    method: str, alternatives: Sequence[Path], safety: Sequence[Path], names: Sequence[str], file: Path | None, pairs: Sequence[str]
) -> tuple[list[Any], list[Any]]:
    """What a run draws from and what is added to every image: of module files, or of concepts where the method needs no training.

    Without a name, such a method takes its default concept.

    Raises:
        ValueError: the method is unknown, a file is of another one, or there is nothing that it could act with.
    """
    from respodiff.methods.registry import get_method, load
    from respodiff.steering.serialization import Header

    quick = get_method(method) if method and not get_method(method).trains else None
    if (names or pairs) and not quick:
        which = "--set" if pairs and not names else "--concept"
        known = ", ".join(name for name in NAMES if not get_method(name).trains)
        raise ValueError(f"{which} is for methods that need no training ({known}), --method is {method!r}; give --module FILE")
    if method == BASELINE and not names:
        return [], []
    added, modules = [load(path) for path in safety], [load(path) for path in alternatives]
    for path, m in zip(safety, added, strict=True):
        if m.header.kind == "fairness":
            warnings.warn(f"--safety {str(path)!r} is the fairness module {m.name!r}: every image is steered to it", stacklevel=2)
    for path, m in zip(alternatives or safety, modules or added, strict=True):
        if method and m.method != method:
            raise ValueError(f"--method is {method!r}, but {str(path)!r} is of method {m.header.method!r}; give --method {m.header.method}")
    if not quick:
        if method and not (modules or added):
            raise ValueError(
                f"--method {method} needs --module FILE; make one with: respodiff train --method {method} --concept NAME --out FILE"
            )
        return modules, added
    concepts = [concept(name, library(file)) for name in names]
    if not (concepts or modules or added):
        if quick.default_concept is None:
            raise ValueError(f"--method {method} needs a concept; name one with --concept NAME, or give --module FILE")
        concepts = [quick.default_concept]
    for c in concepts:
        quick.check(c)
        settings = json.loads(json.dumps(asdict(quick.settings(c, **changes_from(pairs, {}, quick.config)))))
        (added if c.kind == "safety" else modules).append(quick.adapter(Header.of(c, method=method, site="", train=settings)))
    return modules, added
