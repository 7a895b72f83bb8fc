"""What the verbs ``train`` and ``generate`` need of methods: settings from flags, adapters from files or concepts, a judge as classifier."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

from respodiff.concepts.concept import Concept, builtin, concept, load_concepts
from respodiff.methods.registry import BASELINE, NAMES

METHOD_HELP = ", ".join(NAMES)


def changes_from(pairs: Sequence[str], flags: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Settings from ``--set KEY=VALUE`` pairs and flags (None: not given); ValueError for one that ``config`` has not or cannot read."""
    hints, known = get_type_hints(config), [f.name for f in fields(config)]
    changes: dict[str, Any] = {k: v for k, v in flags.items() if v is not None}
    for key in changes:
        if key not in known:
            raise ValueError(f"--{key} is given, which this method has not; its settings: {', '.join(known) or 'none'}")
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


def check_method(name: str, resume: bool) -> None:
    """ValueError for an unknown method, and for resuming one that cannot be."""
    if name not in NAMES:
        raise ValueError(f"--method is {name!r}; allowed: {METHOD_HELP}")
    if resume:
        from respodiff.methods.registry import get_method

        if not get_method(name).resumes:
            raise ValueError(f"--resume is given, but method {name!r} keeps no state to go on from; leave it out")


def method_settings(name: str, preset: str, concept: Concept | str, pairs: Sequence[str], **flags: Any) -> Any:
    """Settings of a method from a preset (of RespoDiff), ``--set KEY=VALUE`` pairs and flags (None: not given)."""
    from respodiff.methods.registry import get_method

    found = get_method(name)
    return found.settings(concept, preset=preset, **changes_from(pairs, flags, found.config))


def known_concept(name: str, file: Path | None) -> Concept:
    """A concept by name, of a user's file or built in."""
    return concept(name, {**builtin(), **(load_concepts(file) if file else {})})


def load_entries(
    method: str, alternatives: Sequence[Path], safety: Sequence[Path], names: Sequence[str], file: Path | None, pairs: Sequence[str]
) -> tuple[list[Any], list[Any]]:
    """What a run draws from and what is added to every image: of module files, or of concepts where the method needs no training.

    Raises:
        ValueError: the method is unknown, a file is of another one, or there is nothing that it could act with.
    """
    from respodiff.methods.registry import get_method, load

    if method and method not in NAMES:
        raise ValueError(f"--method is {method!r}; allowed: {METHOD_HELP}")
    trains = not method or get_method(method).trains
    if (names or pairs) and trains:
        which = "--set" if pairs and not names else "--concept"
        quick = ", ".join(name for name in NAMES if not get_method(name).trains)
        raise ValueError(f"{which} is for methods that need no training ({quick}), --method is {method!r}; give --module FILE")
    if method == BASELINE and not names:
        return [], []
    added, modules = [load(path) for path in safety], [load(path) for path in alternatives]
    for path, m in zip(safety, added, strict=True):
        if m.header.kind == "fairness":
            warnings.warn(f"--safety {str(path)!r} is the fairness module {m.name!r}: every image is steered to it", stacklevel=2)
    for path, m in zip(
        (*alternatives, *(safety if not alternatives else ())), (*modules, *(added if not alternatives else ())), strict=True
    ):
        if method and m.method != method:
            raise ValueError(f"--method is {method!r}, but {str(path)!r} is of method {m.header.method!r}; give --method {m.header.method}")
    if not trains:
        made = built(method, names, file, pairs, bool(modules or added))
        added += [m for m in made if m.header.kind == "safety"]
        modules += [m for m in made if m.header.kind != "safety"]
    elif method and not modules and not added:
        raise ValueError(
            f"--method {method} needs --module FILE; make one with: respodiff train --method {method} --concept NAME --out FILE"
        )
    return modules, added


def built(method: str, names: Sequence[str], file: Path | None, pairs: Sequence[str], given: bool) -> list[Any]:
    """Adapters of a method that needs no training, for concepts by name, or for the method's default concept where none is named."""
    from respodiff.methods.registry import get_method
    from respodiff.steering.serialization import Header

    found = get_method(method)
    concepts = [known_concept(name, file) for name in names]
    if not concepts and not given:
        if found.default_concept is None:
            raise ValueError(f"--method {method} needs a concept; name one with --concept NAME, or give --module FILE")
        concepts = [found.default_concept]
    out = []
    for c in concepts:
        found.check(c)
        settings = json.loads(json.dumps(asdict(found.settings(c, **changes_from(pairs, {}, found.config)))))
        out.append(found.adapter(Header.of(c, method=method, site="", train=settings)))
    return out
