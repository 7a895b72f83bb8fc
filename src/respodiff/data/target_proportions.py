"""Checks target proportions, and reads those of groups of prompts from a table such as labour statistics: ``group,alternative,share``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from respodiff.data.tables import Row, number, read_table

COLUMNS = ("group", "alternative", "share")
Proportions = dict[str, dict[str, dict[str, float]]]


def read_group_proportions(path: str | Path, attributes: Mapping[str, Sequence[str]], groups: Sequence[str]) -> Proportions:
    """Group -> attribute -> alternative -> share; alternatives that a group does not name have 0.

    Args:
        path: CSV with the columns of `COLUMNS`; a column ``attribute`` is needed only if two attributes have an alternative of one name.
        attributes: attribute -> its alternatives.
        groups: groups of the prompts; those without a row are warned of.

    Raises:
        ValueError: a group or alternative is unknown or given twice, a share is no number from 0 to 1, or shares of a group do not sum to 1.
    """
    path = Path(path)
    out: Proportions = {}
    first: dict[tuple[str, str], int] = {}
    for line, row in read_table(path, COLUMNS):
        group, where = row["group"].strip(), f"{path.name}, line {line}"
        if group not in groups:
            raise ValueError(f"{where}: group {group!r} is unknown; the prompts have {_some(groups)}")
        attribute, name = _alternative(where, row, attributes)
        share = number(path, line, row, "share")
        if share is None or not 0 <= share <= 1:
            raise ValueError(f"{where}: share is {row['share']!r}; allowed: a number from 0 to 1")
        first.setdefault((group, attribute), line)
        held = out.setdefault(group, {}).setdefault(attribute, {})
        if name in held:
            raise ValueError(f"{where}: {name!r} of group {group!r} is said twice; give it one share")
        held[name] = share
    for (group, attribute), line in first.items():
        if abs((total := sum(out[group][attribute].values())) - 1) > 1e-6:
            raise ValueError(f"{path.name}, line {line}: shares of {attribute} for group {group!r} sum to {total:g}; they must sum to 1")
    if not out:
        raise ValueError(f"{path.name} has no rows; give {','.join(COLUMNS)} and a row for every alternative of a group")
    if missing := [g for g in dict.fromkeys(groups) if g not in out]:
        warnings.warn(f"{path.name} has no shares for {len(missing)} of the groups ({_some(missing)}): others count there", stacklevel=3)
    return out


def _alternative(where: str, row: Row, attributes: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """(attribute, alternative) of a row."""
    name, said = row["alternative"].strip(), row.get("attribute", "").strip()
    found = [a for a, names in attributes.items() if name in names and said in ("", a)]
    if len(found) > 1:
        raise ValueError(f"{where}: {name!r} is of {' and of '.join(found)}; add a column 'attribute' that says which")
    if not found:
        known = ", ".join(n for names in attributes.values() for n in names) or "none, as no module is loaded"
        what = f"{name!r} of attribute {said!r}" if said else repr(name)
        raise ValueError(f"{where}: alternative {what} is unknown; allowed: {known}")
    return found[0], name


def _some(names: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(names))
    return ", ".join(distinct[:3]) + (", ..." if len(distinct) > 3 else "")


def check_proportions(names: Sequence[str], proportions: Mapping[str, float] | None) -> list[float]:
    """Shares in the order of ``names``, uniform if None; ValueError unless all are known, not negative, and sum to 1."""
    if not names:
        raise ValueError("there is no concept to sample from; give at least one")
    if proportions is None:
        return [1 / len(names)] * len(names)
    if unknown := [s for s in proportions if s not in names]:
        raise ValueError(f"proportions name {unknown[0]!r}, which is not among the concepts {', '.join(names)}; use those names")
    values = [float(proportions.get(n, 0.0)) for n in names]
    if wrong := [(n, v) for n, v in zip(names, values, strict=True) if not math.isfinite(v) or v < 0]:
        raise ValueError(f"share of {wrong[0][0]!r} is {wrong[0][1]}; allowed: 0 to 1")
    if abs(sum(values) - 1) > 1e-6:
        raise ValueError(f"shares sum to {sum(values):g}; they must sum to 1 (concepts that are not named get 0)")
    return values
