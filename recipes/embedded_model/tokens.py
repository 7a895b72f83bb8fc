"""The tokenizer: byte-pair encoding in CLIP's file format, learned from the captions."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
LENGTH = 32
END = "</w>"
LETTERS = "".join(chr(c) for c in range(33, 127) if not chr(c).isupper())
WORD = re.compile(r"'s|[a-z]+|[0-9]|[^\sa-z0-9]+")


def make_tokenizer(captions: Iterable[str], folder: Path, size: int = 2048) -> Any:
    """Learn a tokenizer of `size` pieces at most (but no fewer than there are characters), write it and load it."""
    words = Counter(word for caption in captions for word in WORD.findall(caption.lower()))
    letters = sorted({c for word in words for c in word} | set(LETTERS))
    single = [*letters, *(c + END for c in letters)]
    merges = learn_merges(words, size - 2 - len(single))
    pieces = dict.fromkeys([BOS, EOS, *single, *(a + b for a, b in merges)])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n")
    return load_tokenizer(folder)


def learn_merges(words: Mapping[str, int], most: int) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al. 2016): join the most frequent pair of neighbours, again and again.

    Ties go to the pair that comes first in the alphabet, so that the same captions always give the same tokenizer; the trainer of the
    tokenizers package leaves them to chance.

    Args:
        words: word -> how often. most: how many merges; fewer where no pair is left that occurs twice.

    >>> learn_merges({"abab": 2, "ab": 1}, 5)
    [('a', 'b</w>'), ('a', 'b'), ('ab', 'ab</w>')]
    """
    split = [[*word[:-1], word[-1] + END] for word in sorted(words)]
    counts = [words[word] for word in sorted(words)]
    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[int]] = defaultdict(set)
    for i, parts in enumerate(split):
        for pair in pairwise(parts):
            pairs[pair] += counts[i]
            where[pair].add(i)
    merges: list[tuple[str, str]] = []
    while len(merges) < most and pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        merges.append(best)
        for i in sorted(where.pop(best)):
            for pair in pairwise(split[i]):
                pairs[pair] -= counts[i]
            split[i] = _joined(split[i], best)
            for pair in pairwise(split[i]):
                pairs[pair] += counts[i]
                where[pair].add(i)
        pairs = +pairs  # what no longer occurs is dropped
    return merges


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer as transformers has it."""
    from transformers import CLIPTokenizer

    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    return CLIPTokenizer(*files, unk_token=EOS, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=LENGTH)


def encode(tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """Token ids (N, 32), padded with the end token."""
    ids: torch.Tensor = tokenizer(list(texts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
    return ids
