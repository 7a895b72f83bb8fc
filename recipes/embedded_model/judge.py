"""The judges: CLIP's objective on the images, apart from the generator, with whole combinations of subject and style held out.

A step sees a batch of images and asks four things of it: which of the names, which gender, which skin tone (as the judge is asked later,
in words), and which of the batch's captions fit (every caption that an image satisfies counts as a match).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from recipes.embedded_model.data import Picture, spoken
from recipes.embedded_model.tokens import encode
from recipes.embedded_model.world import TONES, Caption

STYLES = ("noto", "twemoji", "flat", "3d")
GENDER_TEXTS = ("a woman", "a man")
TONE_TEXTS = tuple(f"a person with {tone} skin" for tone in TONES)
GENDERS = ("woman", "man", "neutral")


def name_text(subject: str, called: Mapping[str, str]) -> str:
    """How a judge is asked for a subject."""
    return f"a {spoken(called.get(subject, subject))}"


def held_out(image: Picture, always: frozenset[str], one_in: int) -> bool:
    """Whether the judges never see this image in training: one style of every `one_in`-th subject, and of each that is in `always`.

    Decided by a digest of the subject, so that the same combinations are held out in every run.
    """
    number = int.from_bytes(hashlib.sha256(image.subject.encode()).digest()[:8], "big")
    if image.subject not in always and number % one_in:
        return False
    return image.style == STYLES[number // one_in % len(STYLES)]


class JudgeTask:
    """Batches and losses for one judge.

    Args:
        network: `with_scaffold`.
        images, pixels: the pack, uint8 (N, 3, S, S) at the judge's own size. captions: as `World.captions` makes them.
        keep: indices of the images that it may see. asked: subjects that are among the names in every step. called: as `World.called`.
        flags: names of unsafe and of safe images, which are few and are asked for often.
    """

    def __init__(
        self,
        network: torch.nn.ModuleDict,
        tokenizer: Any,
        images: Sequence[Picture],
        pixels: torch.Tensor,
        captions: Sequence[Caption],
        keep: Sequence[int],
        asked: Sequence[str],
        called: Mapping[str, str],
        flags: tuple[Collection[str], Collection[str]],
        batch: int,
    ) -> None:
        self.network, self.pixels, self.batch = network, pixels, batch
        self.device = next(network.parameters()).device
        self.keep = torch.tensor(keep)
        subjects = sorted({p.subject for p in images} | set(asked))
        number = {s: i for i, s in enumerate(subjects)}
        self.often = proportions_of([images[i] for i in keep], flags)
        self.facts = torch.tensor([_facts(p, number) for p in images])
        self.person = torch.tensor([p.person for p in images])
        self.asked = torch.tensor(sorted({number[s] for s in asked}))
        self.names = encode(tokenizer, [name_text(s, called) for s in subjects])
        self.fixed = encode(tokenizer, [*GENDER_TEXTS, *TONE_TEXTS])
        self.texts = encode(tokenizer, [c.text for c in captions])
        self.wants = torch.tensor([_wants(c, number) for c in captions])
        self.own: dict[int, list[int]] = defaultdict(list)
        for i, caption in enumerate(captions):
            self.own[caption.image].append(i)

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        """The loss of one batch."""
        chosen = self.keep[torch.multinomial(self.often, self.batch, replacement=True, generator=generator)]
        pixels = augmented(self.pixels[chosen].to(self.device), generator)
        facts = self.facts[chosen]
        names = torch.unique(torch.cat([facts[:, 0], self.asked]))
        said = self._captions(chosen[: self.batch // 2], generator)
        ids = torch.cat([self.names[names], self.fixed, self.texts[said]])
        ids = ids[:, : int((ids != 1).sum(1).max()) + 1].to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):  # no gain on a CPU
            found = self.network["judge"](input_ids=ids, pixel_values=pixels)
        logits = found.logits_per_image.float()
        vectors = found.image_embeds.float()
        scaffold = self.network["scaffold"](vectors * vectors.shape[1] ** 0.5)
        ends = [len(names), 2, 3, len(said)]
        by_name, by_gender, by_tone, by_caption = logits.split(ends, 1)
        loss = F.cross_entropy(by_name, torch.searchsorted(names, facts[:, 0].contiguous()).to(self.device))
        gender, tone = facts[:, 1].where(facts[:, 1] < 2, -1), facts[:, 2]
        loss = loss + _asked(by_gender, gender) + _asked(by_tone, tone) + _asked(scaffold[:, :2], gender) + _asked(scaffold[:, 2:], tone)
        return loss + 0.5 * matched(by_caption, self._matches(chosen, said).to(self.device))

    def _captions(self, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One caption of each image that has one."""
        draws = torch.rand(len(chosen), generator=generator).tolist()
        lists = [self.own.get(i, ()) for i in chosen.tolist()]
        return torch.tensor([own[int(u * len(own))] for own, u in zip(lists, draws, strict=True) if own])

    def _matches(self, chosen: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        """(images, captions): which images satisfy what a caption says. One that says nothing checkable fits people, or its own alone."""
        wants, facts = self.wants[said], self.facts[chosen]
        fits = ((wants[None, :, :4] == facts[:, None]) | (wants[None, :, :4] < 0)).all(-1)
        of_person, of_thing = wants[:, 5] > 0, (wants[:, 5] == 0) & (wants[:, 0] < 0)
        fits &= ~(of_person[None] & ~self.person[chosen][:, None])
        fits[:, of_thing] = False
        return fits | (wants[None, :, 4] == chosen[:, None])


def with_scaffold(judge: Any, projection: int) -> torch.nn.ModuleDict:
    """A judge and a linear layer that reads gender and tone off its image vectors while it learns, and is thrown away after.

    "a woman" and "a man" begin as nearly one point, and as long as they are one the eye has no reason to tell them apart, nor the text tower
    to part them: trained without the layer, one run in two stayed there.
    """
    return torch.nn.ModuleDict({"judge": judge, "scaffold": torch.nn.Linear(projection, 5)})


PROPORTIONS = (0.5, 0.12, 0.18, 0.2)


def proportions_of(images: Sequence[Picture], flags: tuple[Collection[str], Collection[str]]) -> torch.Tensor:
    """How often each image is shown, (N,), of sum 1: people .5, unsafe images .12, safe places .18, other things .2 (of what there is)."""
    unsafe, safe = flags
    kinds = torch.tensor([0 if p.person else 1 if p.subject in unsafe else 2 if p.subject in safe else 3 for p in images])
    sizes = torch.bincount(kinds, minlength=4).clamp(min=1)
    weights = (torch.tensor(PROPORTIONS) / sizes)[kinds]
    return weights / weights.sum()


def _facts(image: Picture, number: dict[str, int]) -> list[int]:
    gender = GENDERS.index(image.gender) if image.gender else -1
    return [number[image.subject], gender, TONES.index(image.tone) if image.tone else -1, STYLES.index(image.style)]


def _wants(caption: Caption, number: dict[str, int]) -> list[int]:
    gender = GENDERS.index(caption.gender) if caption.gender else -1
    tone, style = (TONES.index(caption.tone) if caption.tone else -1), (STYLES.index(caption.style) if caption.style else -1)
    return [number[caption.subject] if caption.subject else -1, gender, tone, style, caption.image, int(caption.person)]


def _asked(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Cross entropy over the images that the question applies to; 0 if it applies to none."""
    applies = truth >= 0
    if not applies.any():
        return logits.sum() * 0
    return F.cross_entropy(logits[applies.to(logits.device)], truth[applies].to(logits.device))


def matched(logits: torch.Tensor, match: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric loss with several matches: mean negative log likelihood of a row's matches, both ways.

    Args:
        logits: (images, captions). match: the same shape, bool; rows and columns without a match are left out.
    """
    total = logits.sum() * 0
    for some, hits in ((logits, match.float()), (logits.T, match.T.float())):
        rows = hits.sum(1) > 0
        likely = (F.log_softmax(some[rows], 1) * hits[rows]).sum(1) / hits[rows].sum(1)
        total = total - likely.mean()
    return total


def at_size(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """uint8 images (N, 3, H, W) at the size that a judge sees, by averaging; the shipped image processor does the same (``resample`` 4)."""
    if pixels.shape[-1] == side:
        return pixels
    return torch.cat([F.interpolate(p.float(), size=(side, side), mode="area").round().byte() for p in pixels.split(256)])


def augmented(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """uint8 (N, 3, S, S) as float in [-1, 1], mirrored, shifted, softened and made noisy as generated images are."""
    n, side = len(pixels), pixels.shape[-1]
    far = side * 5 // 64
    u = torch.rand(n + 3, generator=generator)
    dx, dy = (int(v) for v in torch.randint(-far, far + 1, (2,), generator=generator))
    x = pixels.float() / 127.5 - 1
    flip = (u[:n] < 0.5).to(x.device)
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    x = F.pad(x, (far,) * 4, value=1.0)[:, :, far + dy : far + side + dy, far + dx : far + side + dx]
    if u[n] < 0.5:
        small = F.interpolate(x, size=int(side * (0.5 + 0.4 * float(u[n + 1]))), mode="area")
        x = F.interpolate(small, size=x.shape[-2:], mode="bilinear")
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    return x + 0.08 * float(u[n + 2]) * noise
