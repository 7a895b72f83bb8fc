"""What summaries are made with: how intervals are drawn, and figures as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from respodiff.data.run_folder import ImageRecord
from respodiff.evaluation.metrics import fairness
from respodiff.evaluation.metrics.estimate import Estimate


@dataclass(frozen=True)
class Settings:
    """How intervals are made.

    Attributes:
        n_bootstrap: bootstrap samples. seed: of the draws. min_subgroup: smallest cell of an intersectional table that is shown.
        confusion: judge digest -> attribute -> matrix of true by perceived counts, for judge-error correction.
    """

    n_bootstrap: int = 2000
    seed: int = 0
    min_subgroup: int = 10
    confusion: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def boot(self) -> dict[str, int]:
        return {"n_bootstrap": self.n_bootstrap, "seed": self.seed}


def show(estimate: Estimate | None) -> dict[str, float] | None:
    """An estimate as JSON."""
    return None if estimate is None else {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def share(hits: Sequence[tuple[ImageRecord, bool]], settings: Settings, by: str = "group") -> dict[str, Any] | None:
    """Share of hits over all images, with a cluster bootstrap over groups (or ``prompt_id``); None if there is no image."""
    if not hits:
        return None
    counts: dict[str, list[int]] = {}
    for r, hit in hits:
        cell = counts.setdefault(getattr(r, by), [0, 0])
        cell[0] += hit
        cell[1] += 1
    table = [counts[g] for g in sorted(counts)]
    return show(fairness.share_interval([k for k, _ in table], [n for _, n in table], **settings.boot))


def plain(hits: Sequence[bool]) -> float | None:
    """Share of hits; None if there is no image."""
    return sum(hits) / len(hits) if hits else None
