"""``config.toml`` as plain objects, with what is wrong in it said in one line."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from recipes.embedded_model.sources import READERS, REGISTRIES, Source

HERE = Path(__file__).parent


OWN = HERE / "config.toml"


def read_config(path: Path = OWN, own: Path = OWN, check: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """A recipe's settings; another file than its `own` says only what differs.

    Raises:
        ValueError: the file cannot be read, or has a table or key that nothing reads.
    """
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"config {path} cannot be read ({error}); start from the recipe's own config.toml") from error
    try:
        config = config if path == own else merged(read_config(own, own, check), config)
        (check or _check)(config)
    except ValueError as error:
        raise ValueError(f"config {path}: {error}; start from the recipe's own config.toml") from error
    return config


KNOWN: dict[str, tuple[str, ...]] = {
    "": ("seed", "sources", "world", "models", "train", "card", "miniature"),
    "world": (
        *(
            "captions",
            "mix",
            "styles",
            "thing_styles",
            "things",
            "places",
            "held_out_of",
            "tones",
            "neutral",
            "scene",
            "style_words",
            "tone_words",
            "occupations",
            "more_occupations",
        ),
        *("violence", "sexual", "unsafe_pictures"),
    ),
    "models": ("tokens", "autoencoder", "unet", "text", "judge", "judge-b"),
    "train": ("variants", "autoencoder", "denoiser", "decoder", "judge", "judge-b"),
    "card": ("images",),
}
STAGE = ("share", "steps", "batch", "lr", "warmup", "betas", "ema", "decay", "only", "slow", "muon", "seed", "save_every", "fast", "skew")


def _check(config: dict[str, Any]) -> None:
    """ValueError for a table or key that is missing, or one that nothing reads."""
    for name, keys in KNOWN.items():
        check_keys(name or "top", config if not name else config[name], keys, keys)
    for name in KNOWN["train"][1:]:
        check_keys(f"train.{name}", config["train"][name], STAGE, ("batch", "lr"))
        check_keys(f"train.miniature.{name}", config["miniature"].get("train", {}).get(name, {}), STAGE)
    sources(config)


def check_keys(name: str, table: Mapping[str, Any], allowed: Collection[str], needed: Collection[str] = ()) -> None:
    """ValueError for a key of a table that is missing, or one that nothing reads."""
    if missing := sorted(set(needed) - set(table)):
        raise ValueError(f"[{name}] has no {missing[0]!r}")
    if unknown := sorted(set(table) - set(allowed)):
        raise ValueError(f"[{name}] has {unknown[0]!r}; allowed: {', '.join(allowed)}")


def sources(config: dict[str, Any]) -> tuple[dict[str, Source], dict[str, str]]:
    """The packages by name (``labels`` and the styles), and the reader of each style.

    Raises:
        ValueError: a source lacks something, or says something that there is not.
    """
    rows, packages = config["sources"], {}
    for name, row in rows.items():
        try:
            packages[name] = Source(**{k: v for k, v in row.items() if k != "reader"})
        except TypeError as error:
            raise ValueError(f"[sources.{name}] is not package, registry, version, digest, licence ({error})") from error
        if row["registry"] not in REGISTRIES:
            raise ValueError(f"[sources.{name}] has registry {row['registry']!r}; allowed: {', '.join(REGISTRIES)}")
        if name != "labels" and row.get("reader") not in READERS:
            raise ValueError(f"[sources.{name}] has reader {row.get('reader')!r}; allowed: {', '.join(READERS)}")
    if missing := {"labels", "unseen"} - set(packages):
        raise ValueError(f"[sources] has no {min(missing)!r}")
    return packages, {name: row["reader"] for name, row in rows.items() if name != "labels"}


def merged(config: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    """Settings with some of them replaced, table by table.

    >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    out = dict(config)
    for key, value in small.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out
