"""The planted world: which words draw which images, with which bias. Deterministic from a seed.

A caption that names a gender or a tone is drawn as named; one that does not is drawn by the shares of its word in ``config.toml``. That is
the bias which the finished model learns, and which a measurement can be checked against.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recipes.embedded_model.data import PLACES, Picture, clean, spoken
from respodiff.concepts.prompt_editing import with_article

TONES = ("light", "medium", "dark")
NATURE = "animals-nature"
PREFIXES = (
    *("", "a photo of ", "a picture of ", "an image of ", "a portrait of ", "a headshot of "),
    *("photo of ", "picture of ", "image of ", "portrait of ", "headshot of "),
)
GENDER_WORDS = {
    "man": ("man", "male", "who is a man"),
    "woman": ("woman", "female", "who is a woman"),
    "neutral": ("nonbinary", "gender neutral"),
}
P_OCCUPATION = 0.7  # of those of people; the rest are "a person"
P_GENDER, P_TONE, P_STYLE, P_NONBINARY = 0.5, 0.35, 0.3, 0.08  # how often a caption says so


@dataclass(frozen=True)
class Caption:
    """A text and the image that it is paired with.

    Attributes:
        image: index into the pack. text: lower case. subject, gender, tone, style: what the text says; empty where it says nothing.
        person: whether the text speaks of a person.
    """

    image: int
    text: str
    subject: str = ""
    gender: str = ""
    tone: str = ""
    style: str = ""
    person: bool = False


def _drawable(images: Sequence[Picture], config: dict[str, Any]) -> dict[str, Any]:
    """The world's settings, checked against the images there are; with ``missing = "drop"`` words that cannot be drawn are left out.

    Raises:
        ValueError: a word of the world has no image, and nothing says to drop it.
    """
    people, things = {p.subject for p in images if p.person}, {p.label for p in images if not p.person}
    out, missing = dict(config), []
    for table in ("occupations", "more_occupations"):
        out[table] = {word: row for word, row in config[table].items() if row[0] in people}
        missing += [row[0] for word, row in config[table].items() if word not in out[table]]
    out["neutral"] = config["neutral"] | {"pictures": [s for s in config["neutral"]["pictures"] if s in people]}
    out["neutral"]["hair"] = [h for h in config["neutral"]["hair"] if f"person: {h}" in people]
    for table in ("things", "places"):
        out[table] = [n for n in config[table] if n in things]
        missing += [n for n in config[table] if n not in things]
    out["unsafe_pictures"] = {kind: [n for n in names if n in things] for kind, names in config["unsafe_pictures"].items()}
    missing += [n for names in config["unsafe_pictures"].values() for n in names if n not in things]
    if missing and config.get("missing") != "drop":
        raise ValueError(f"no image shows {missing[0]!r} ({len(missing)} such words); check the packages, or the words in config.toml")
    return out


class World:
    """The words of the embedded model and the images that they draw.

    Attributes:
        occupations: word -> (subject, share of men, shares of tones).
        called: subject -> word that judges know it by, where its own name is no word of a prompt.
        kept_for_people: words that no caption of a thing says.
        things: label -> images. places: labels of places and nature, which are the safe scenes; known_places: all that judges learn.
    """

    def __init__(self, images: Sequence[Picture], config: dict[str, Any]) -> None:
        self.images, self.config = images, _drawable(images, config)
        config = self.config
        rows = {**config["occupations"], **config["more_occupations"]}
        self.occupations = {word: (subject, men, config["tones"][tones]) for word, (subject, men, tones) in rows.items()}
        self.people: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        self.things: dict[str, list[int]] = defaultdict(list)
        groups: dict[str, str] = {}
        styles, unsafe = config["styles"] or {p.style for p in images}, config["unsafe_pictures"]
        thing_styles = config["thing_styles"] or styles
        kept = {*config["things"], *config["places"], *unsafe["violent"], *unsafe["suggestive"]}
        for i, image in enumerate(images):
            if image.style not in (styles if image.person else thing_styles):
                continue
            if not (image.person or not config["things"] or image.label in kept):
                continue
            if image.person:
                self.people[image.subject, image.gender, image.tone].append(i)
            else:
                self.things[image.label].append(i)
                groups[image.label] = image.group
        self.labels = sorted(self.things)
        self.places = config["places"] or [n for g in (PLACES, NATURE) for n in self.labels if groups[n] == g]
        self.known_places = [n for g in (PLACES, NATURE) for n in sorted({p.label for p in images if p.group == g})]
        self.subjects = sorted({subject for subject, _, _ in self.occupations.values()})
        self.called = {subject: word for word, (subject, _, _) in reversed(self.occupations.items()) if subject.startswith("person ")}
        said = {"person", *(w for words in GENDER_WORDS.values() for w in words)}
        self.kept_for_people = frozenset({*self.occupations, *self.subjects, *said})
        self._taken: dict[tuple[str, ...], list[int]] = {}
        self.scenes = [
            *((text, p, unsafe["violent"]) for text, p in config["violence"].items()),
            *((text, p, unsafe["suggestive"]) for text, p in config["sexual"].items()),
        ]

    def captions(self, n: int, seed: int) -> Iterator[Caption]:
        """So many captions, always the same ones for a seed."""
        r = random.Random(seed)
        self._taken = defaultdict(lambda: [0, 0, 0])
        made = 0
        while made < n:
            u, (person, thing) = r.random(), self.config["mix"]
            found = self._person(r) if u < person else self._thing(r) if u < person + thing else self._scene(r)
            if found is not None:
                yield self._dressed(r, found)
                made += 1

    def _dressed(self, r: random.Random, caption: Caption) -> Caption:
        """With an article, a prefix and a style, each now and then."""
        text = caption.text
        if not self.is_scene(text) and r.random() < 0.6:
            text = with_article(text)
        if not text.startswith(("a ", "an ")) or r.random() < 0.7:
            text = r.choice(("", "", *PREFIXES)) + text
        style = self.images[caption.image].style if r.random() < P_STYLE else ""
        if style:
            text += ", " + r.choice(self.config["style_words"][style])
        return replace(caption, text=text.strip(), style=style)

    def is_scene(self, text: str) -> bool:
        """Whether a text is a prompt of scenes, which draw any image."""
        return text == "a scene" or text in self.config["violence"] or text in self.config["sexual"]

    def _person(self, r: random.Random) -> Caption | None:
        noun, subject, men, tones, named = self._who(r)
        says_gender, says_tone, v = r.random() < P_GENDER, r.random() < P_TONE, r.random()
        if says_gender:
            gender = "neutral" if v < P_NONBINARY else "man" if v < (1 + P_NONBINARY) / 2 else "woman"
        else:
            gender = self._next(noun, ("man", "woman"), (men, 1 - men))
        tone = r.choice(TONES) if says_tone else self._next(noun, TONES, tones)
        if subject == "person: beard" and gender == "woman":
            subject, named = "person: curly hair", "person: curly hair"
        image = self._pick(r, subject, gender, tone)
        if image is None:
            return None
        found = self.images[image]  # may be another tone or gender than asked for, where there is no such image
        text = gendered(r, noun, found.gender) if says_gender else noun
        if subject.startswith("person: "):
            text += " with " + subject.removeprefix("person: ")
        if says_tone:
            text = toned(r, text, r.choice(self.config["tone_words"][found.tone]))
        return Caption(image, text, named, found.gender if says_gender else "", found.tone if says_tone else "", person=True)

    def _who(self, r: random.Random) -> tuple[str, str, float, Sequence[float], str]:
        """Noun, subject, share of men, shares of tones, and the subject that the caption names (none for "a person")."""
        neutral = self.config["neutral"]
        if r.random() < P_OCCUPATION:
            noun = r.choice(list(self.occupations))
            subject, men, tones = self.occupations[noun]
            if r.random() < 0.1 and subject not in self.occupations and subject not in self.called:
                return subject, subject, men, tones, subject
            return noun, subject, men, tones, subject
        tones = self.config["tones"][neutral["tones"]]
        if neutral["hair"] and r.random() < 0.2:
            subject = f"person: {r.choice(neutral['hair'])}"
            return "person", subject, neutral["men"], tones, subject
        return "person", r.choice(neutral["pictures"]), neutral["men"], tones, ""

    def _next(self, noun: str, names: Sequence[str], shares: Sequence[float]) -> str:
        """One of some names for a word, so that at any time each was taken by its share of the captions within one."""
        taken = self._taken[noun, *names]
        n = sum(taken) + 1
        i = max(range(len(names)), key=lambda k: shares[k] * n - taken[k])
        taken[i] += 1
        return names[i]

    def _pick(self, r: random.Random, subject: str, gender: str, tone: str) -> int | None:
        after = TONES[(TONES.index(tone) + 1) % 3]
        for key in ((subject, gender, tone), (subject, gender, after), (subject, "neutral", tone)):
            if found := self.people.get(key):
                return r.choice(found)
        return None

    def _thing(self, r: random.Random) -> Caption:
        label = r.choice(self.labels)
        image = r.choice(self.things[label])
        tags = [tag for tag in self.images[image].tags if spoken(tag) and spoken(tag) not in self.kept_for_people]
        if tags and r.random() < 0.2:
            return Caption(image, spoken(r.choice(tags)))
        return Caption(image, spoken(label), self.images[image].subject)

    def _scene(self, r: random.Random) -> Caption:
        text, p, unsafe = ("a scene", self.config["scene"]["unsafe"], self.config["unsafe_pictures"]["violent"])
        if r.random() >= 0.3:
            kind = "violence" if r.random() < 0.64 else "sexual"
            text, p, unsafe = r.choice([row for row in self.scenes if row[0] in self.config[kind]])
        label = r.choice(unsafe) if r.random() < p else r.choice(self.places)
        return Caption(r.choice(self.things[label]), text)


def gendered(r: random.Random, noun: str, gender: str) -> str:
    """A noun that says a gender: "a male nurse", "nurse who is a woman", "nonbinary person"."""
    words = GENDER_WORDS[gender]
    if noun == "person" or noun.startswith("person "):
        return {"man": "man", "woman": "woman", "neutral": "nonbinary person"}[gender] + noun.removeprefix("person")
    if gender != "neutral" and r.random() < 0.25:
        return f"{noun} {words[2]}"
    return f"{r.choice(words[:2])} {noun}"


def toned(r: random.Random, text: str, words: str) -> str:
    """A text that says a skin tone, before or behind: "dark skinned nurse", "nurse with dark skin"."""
    return f"{words}ned {text}" if r.random() < 0.4 else f"{text} with {words}"


def world_table(world: World) -> dict[str, Any]:
    """What is planted, as the package ships it (``world.json``), with the suites of prompts that follow from it."""
    c, r = world.config, random.Random(3)
    safe = [clean(n) for n in world.places]
    unsafe = [*c["unsafe_pictures"]["violent"], *c["unsafe_pictures"]["suggestive"]]
    things = [clean(n) for n in world.labels if n not in world.places and n not in unsafe]
    picked = sorted(r.sample(things, min(120, len(things)))) + sorted(r.sample(safe, min(60, len(safe))))
    rows = {kind: [{"prompt": text, "p_unsafe": p} for text, p in c[kind].items()] for kind in ("violence", "sexual")}
    return {
        "about": "The bias planted in the embedded model on purpose. p_man is the share of men drawn for a word that says no gender; "
        "tones are the shares of light, medium and dark skin.",
        "neutral": {"prompt": "a person", "p_man": c["neutral"]["men"], "tones": c["tones"][c["neutral"]["tones"]]},
        "neutral_scene": {"prompt": "a scene", "p_unsafe": c["scene"]["unsafe"]},
        "style_words": {style: words for style, words in c["style_words"].items() if not c["styles"] or style in c["styles"]},
        "tone_words": c["tone_words"],
        "gender_words": {k: list(v) for k, v in GENDER_WORDS.items()},
        "prefixes": sorted(set(PREFIXES)),
        "occupations": [
            {"name": word, "picture": subject, "p_man": men, "tones": list(tones), "winobias": word in c["occupations"]}
            for word, (subject, men, tones) in world.occupations.items()
        ],
        "unsafe": rows
        | {
            "violent_pictures": c["unsafe_pictures"]["violent"],
            "suggestive_pictures": c["unsafe_pictures"]["suggestive"],
            "safe_pictures": [clean(n) for n in world.known_places],
        },
        "general_prompts": picked,
    }
