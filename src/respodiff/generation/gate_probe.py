"""A yes-or-no question put to a pipeline's own text encoder: a linear probe of its tokens, fitted on composed prompts and checked on words left out.

CLIP's encoder is causal: the state of a token depends on what stands before it alone. So the state at the last token of "a photo of a male"
is that of "male" in every prompt that goes on from there. A probe p(h) = w.h + b of such states answers yes for a prompt if max_t p(h_t) is
above 0. Which layer h is of, and the threshold that is in b, are those that answer best for prompts that were left out of the fit. Words that
the tokenizer splits stand for nothing that the encoder is sure to know: they are no examples of yes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.optimize import minimize

from respodiff.generation.gate_encoder import Encoder, Floats
from respodiff.generation.gate_prompts import FOLDS, Example
from respodiff.pipelines.loading import weights_digest

RIDGE = 1e-2
PASS = 0.97
"""Share of left-out prompts that a probe must answer rightly, of either answer, for the encoder to count as one that can tell."""
LEAST = 12
"""Left-out prompts of yes that are needed to say so."""
VERSION = 1


@dataclass(frozen=True)
class Checked:
    """Answers for prompts that were left out of the fit: shares of right ones, and of how many.

    Attributes:
        known: yes, by words that were in the fit (for people: all, and none was). new: yes, by words that were not. no: no.
    """

    known: float
    new: float
    no: float
    n: tuple[int, int, int]

    @property
    def tells(self) -> bool:
        """Whether the encoder can be relied on for this question."""
        return self.n[0] >= LEAST and min(self.known, self.no) >= PASS


@dataclass(frozen=True)
class Probe:
    """A fitted question: weights (D,) on standardised states of one layer, and how it did on what was left out."""

    layer: int
    weights: Floats
    bias: float
    checked: Checked

    def scores(self, states: Floats) -> Floats:
        """Of every token (T,), from its states (T, layers, D): above 0 is yes."""
        found: Floats = states[:, self.layer] @ self.weights + self.bias
        return found


def fit(encoder: Encoder, examples: Sequence[Example], alone: bool = False) -> Probe:
    """The probe of the layer that answers best for nouns and words left out of the fit, fitted on all examples.

    Args:
        alone: whole words alone can say yes: pieces of a split word mean little on their own, and may look like anything.
    """
    examples = [e for e in examples if not e.yes or encoder.whole(e.ends)]
    if min(sum(e.yes and e.fold != k and e.word != k for e in examples) for k in range(FOLDS)) < LEAST:
        return Probe(0, np.zeros(0, dtype=np.float32), 0.0, Checked(0.0, 0.0, 0.0, (0, 0, 0)))  # it knows too few of the words
    corpus = _Corpus(encoder, examples, alone)
    found = [corpus.check(layer) for layer in range(len(encoder.layers))]
    # First what must hold (known words, no false alarms), then how far it goes beyond the words of the fit; ties to the earlier layer.
    layer = max(range(len(found)), key=lambda k: (min(round(found[k][0].known, 2), round(found[k][0].no, 2), PASS), found[k][0].new, -k))
    checked, threshold = found[layer]
    weights, bias = corpus.solve(layer, np.ones(len(examples), dtype=bool))
    return Probe(layer, weights.astype(np.float32), float(bias - threshold), checked)


class _Corpus:
    """States of the examples' tokens. Equal beginnings have equal states and count once."""

    def __init__(self, encoder: Encoder, examples: Sequence[Example], alone: bool = False) -> None:
        self.examples = examples
        place: dict[tuple[int, ...], int] = {}
        states: list[Floats] = []
        self.tokens: list[list[int]] = []
        for ids, rows in encoder.read([e.text for e in examples]):
            here = []
            for t in np.flatnonzero(encoder.alone(ids)) if alone else range(len(ids)):
                if (key := tuple(ids[: t + 1])) not in place:
                    place[key] = len(states)
                    states.append(rows[t])
                here.append(place[key])
            self.tokens.append(here)
        self.states = np.stack(states)
        self.fold, self.word = (np.array([getattr(e, k) for e in examples]) for k in ("fold", "word"))
        self.yes = np.array([e.yes for e in examples])

    def solve(self, layer: int, used: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
        """Ridge logistic regression on the last token of the texts of "yes" and on all tokens of the others, both halves of equal weight.

        mean over classes of mean log(1 + exp(-t z.b)) + RIDGE / 2 |b|^2, z the standardised states, t = +-1; weights are given for h itself.
        """
        pick = np.flatnonzero(used)
        positive = sorted({self.tokens[i][-1] for i in pick if self.yes[i]})
        negative = sorted({t for i in pick if not self.yes[i] for t in self.tokens[i]} - set(positive))
        x = self.states[[*positive, *negative], layer].astype(np.float64)
        sign = np.r_[np.ones(len(positive)), -np.ones(len(negative))]
        share = np.r_[np.full(len(positive), 0.5 / len(positive)), np.full(len(negative), 0.5 / len(negative))]
        middle, spread = x.mean(0), x.std(0) + 1e-6
        z = np.c_[(x - middle) / spread, np.ones(len(x))]

        def loss(b: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            margin = sign * (z @ b)
            slope = -z.T @ (share * sign / (1 + np.exp(np.clip(margin, -60, 60))))
            slope[:-1] += RIDGE * b[:-1]
            return float(share @ np.logaddexp(0, -margin) + RIDGE / 2 * (b[:-1] @ b[:-1])), slope

        b = minimize(loss, np.zeros(z.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
        weights = b[:-1] / spread
        return weights, float(b[-1] - weights @ middle)

    def check(self, layer: int) -> tuple[Checked, float]:
        """How a layer does on nouns and words left out, and the threshold at which the worse of both kinds of error is smallest."""
        known: list[float] = []
        new: list[float] = []
        no: list[float] = []
        for fold in range(FOLDS):
            weights, bias = self.solve(layer, (self.fold != fold) & (self.word != fold))
            scores = self.states[:, layer] @ weights + bias
            for i in np.flatnonzero(self.fold == fold):
                if not self.yes[i]:
                    no.append(max((scores[t] for t in self.tokens[i]), default=-np.inf))
                else:
                    (new if self.word[i] == fold else known).append(scores[self.tokens[i][-1]])
        cut = threshold(np.array(known), np.array(no))
        share = [float(np.mean([s > cut for s in part])) if part else 1.0 for part in (known, new)]
        return Checked(share[0], share[1], float(np.mean([s <= cut for s in no])), (len(known), len(new), len(no))), cut


def threshold(yes: NDArray[np.float64], no: NDArray[np.float64]) -> float:
    """The middle of the stretch in which the larger of both shares of wrong answers is smallest.

    >>> threshold(np.array([2.0, 3.0]), np.array([-1.0, 0.0]))
    1.0
    """
    edges = np.unique(np.r_[yes, no])
    cuts = np.r_[edges[0] - 1, (edges[1:] + edges[:-1]) / 2]
    wrong = np.maximum([(yes <= c).mean() for c in cuts], [(no > c).mean() for c in cuts])
    best = np.flatnonzero(wrong == wrong.min())
    return float((cuts[best[0]] + cuts[best[-1]]) / 2)


# ------------------------------------------------------------ kept probes


def cache_file(encoder: Encoder, examples: Sequence[Example], alone: bool = False) -> Path | None:
    """Where the probe of a question is kept: by the encoder's weights, how it splits the texts, and the texts. None where weights cannot be told."""
    weights = weights_digest(encoder.model)
    if not weights:
        return None
    ids = encoder.tokenizer([e.text for e in examples]).input_ids
    about = json.dumps([VERSION, RIDGE, alone, encoder.layers, weights, [(e.yes, e.fold, e.word) for e in examples], ids])
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "respodiff" / "gate" / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.safetensors"


def fitted(encoder: Encoder, examples: Sequence[Example], alone: bool = False) -> Probe:
    """As `fit`, kept in the user's cache folder; where that cannot be read or written the probe is fitted again."""
    path = cache_file(encoder, examples, alone)
    if path is not None and path.is_file():
        try:
            with safe_open(path, "numpy") as file:
                about = json.loads(file.metadata()["probe"])
                return Probe(
                    about["layer"],
                    file.get_tensor("weights"),
                    about["bias"],
                    Checked(**{**about["checked"], "n": tuple(about["checked"]["n"])}),
                )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            pass
    probe = fit(encoder, examples, alone)
    if path is not None:
        _keep(probe, path)
    return probe


def _keep(probe: Probe, path: Path) -> None:
    about = {"layer": probe.layer, "bias": probe.bias, "checked": vars(probe.checked)}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"weights": np.ascontiguousarray(probe.weights)}, partial, metadata={"probe": json.dumps(about)})
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
