"""Provides the settings of the methods, and the tuning prompts, of the benchmarks on the embedded model."""

from __future__ import annotations

from pathlib import Path

from respodiff.data.prompt_sets import suite
from respodiff.experiments.compare import read_settings

TUNED_ON = (
    "doctor",
    "nurse",
    "ceo",
    "secretary",
    "mechanic",
    "guard",
    "developer",
    "teacher",
    "farmer",
    "cleaner",
    "hairdresser",
    "lawyer",
)
"""Occupations on which settings of methods were chosen. Results are reported on the other 24."""

HELD_OUT = tuple(p.group for p in suite("occupations") if p.group not in TUNED_ON)
"""The other occupations of the suite."""

EMBEDDED = {kind: read_settings(Path(__file__).with_suffix(".toml"), kind) for kind in ("fairness", "safety")}
"""Kind of concept -> method or variant -> settings; the file ``settings.toml``, which ``respodiff compare --settings`` reads as well."""
