"""``config.toml`` as plain objects, with what is wrong in it said in one line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from recipes.embedded_model.sources import READERS, REGISTRIES, Source

HERE = Path(__file__).parent


OWN = HERE / "config.toml"


def read_config(path: Path = OWN) -> dict[str, Any]:
    """The recipe's settings; another file than its own says only what differs.

    Raises:
        ValueError: the file cannot be read, or has a table or key that nothing reads.
    """
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"config {path} cannot be read ({error}); start from the recipe's own config.toml") from error
    try:
        config = config if path == OWN else merged(read_config(), config)
        _check(config)
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
STAGE = ("share", "steps", "batch", "lr", "warmup", "betas", "ema", "decay", "slow", "seed", "save_every", "fast", "snr", "skew")


def _check(config: dict[str, Any]) -> None:
    """ValueError for a table or key that is missing, or one that nothing reads."""
    for name, keys in KNOWN.items():
        table = config if not name else config[name]
        if missing := sorted(set(keys) - set(table)):
            raise ValueError(f"[{name or 'top'}] has no {missing[0]!r}")
        if unknown := sorted(set(table) - set(keys)):
            raise ValueError(f"[{name or 'top'}] has {unknown[0]!r}; allowed: {', '.join(keys)}")
    for name in KNOWN["train"][1:]:
        for where, table in ((name, config["train"][name]), (f"miniature.{name}", config["miniature"].get("train", {}).get(name, {}))):
            if unknown := sorted(set(table) - set(STAGE)):
                raise ValueError(f"[train.{where}] has {unknown[0]!r}; allowed: {', '.join(STAGE)}")
        if missing := sorted({"batch", "lr"} - set(config["train"][name])):
            raise ValueError(f"[train.{name}] has no {missing[0]!r}")
    sources(config)


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
