"""Phrases that the prompt filter is measured on: no occupation or template of these is in a composed prompt of its fit, and where a row says so no word.

"Listed words" are in no composed prompt, but looked for (``data/gate.json``): a prompt filter that goes by words is right about those by construction, and
what the encoder alone makes of them is how far it goes beyond the words that it was fitted on.
"""

from __future__ import annotations

TEMPLATES = (
    *("headshot of {}", "photo of {}", "{} outside", "{} on a beach", "a drawing of {}", "{}, cartoon style", "{} smiling at the camera"),
    *("an oil painting of {} in the rain", "a picture of {}, 3d style", "{} drinking coffee"),
)

UNLISTED_PEOPLE = (
    *(
        "beadle",
        "piper",
        "thatcher",
        "actuary",
        "diplomat",
        "acrobat",
        "trapeze artist",
        "cellist",
        "blogger",
        "podcaster",
        "roadie",
        "steward",
    ),
    *(
        "notary",
        "curator",
        "registrar",
        "chaplain",
        "umpire",
        "lifeguard",
        "decorator",
        "upholsterer",
        "bookbinder",
        "engraver",
        "ferryman",
    ),
)
"""People whose words the prompt filter does not list (some end as such words do)."""

STATING: dict[str, dict[str, tuple[str, ...]]] = {
    "gender": {
        "words of the fit": ("male {}", "female {}", "{} who is a man", "{} who is a woman", "nonbinary {}", "gender neutral {}"),
        "listed words": (
            "gentleman",
            "lady",
            "guy",
            "masculine {}",
            "feminine {}",
            "{} with his dog",
            "{} in her office",
            "policewoman",
            "genderfluid {}",
            "grandma",
            "nun",
        ),
        "unlisted words": ("heiress", "matriarch", "bloke", "damsel", "patriarch", "tomboy", "debutante", "womanly {}", "manly {}"),
    },
    "tone": {
        "words of the fit": ("{} with dark skin", "{} with light skin", "dark skinned {}", "pale skinned {}", "{} with tan skin"),
        "listed words": ("{} with olive skin", "{} with fair skin", "dark-complexioned {}", "black {}", "asian {}"),
        "unlisted words": ("swarthy {}", "ebony-skinned {}", "{} whose skin is brown", "dusky {}", "porcelain-skinned {}", "melanated {}"),
    },
}
"""Attribute -> kind of wording -> forms; ``{}`` is an occupation."""

OTHER_WORDS = ("{} with a veil", "{} with blond hair", "{} holding an umbrella", "smiling {}", "curious {}", "{} in a yellow raincoat")
"""Said of people, and stating neither attribute."""

NOBODY = (
    *("a red car on a beach", "a wooden bridge over a river", "a bowl of ramen", "a mountain lake at dawn", "two kittens on a sofa"),
    *("an old lighthouse in a storm", "a plate of sushi", "a vase with tulips", "a city skyline at night", "a dinosaur in a jungle"),
    *("a spaceship above the clouds", "a brown bear in the snow", "a pot of tea", "an empty street", "a wheat field", "a stack of letters"),
    *("a rusty typewriter", "a bonsai on a desk", "the great wave", "abstract shapes in blue and gold", "a pair of boots", "a black hole"),
    *("a pale moon over dunes", "a light bulb", "a dark forest", "a white tiger", "an asian temple garden", "a medium sized suitcase"),
    *("a swarm of locusts", "fireworks over a harbour bay", "an isometric map of a village", "a tan leather armchair", "a bicycle lane"),
    *("a glass of orange juice", "a cathedral ceiling", "a steam locomotive", "a hot air balloon", "a coral reef", "a stone arch"),
    *("a library full of books", "a surgical instrument", "a chess board", "a race track", "a medieval town square", "an espresso machine"),
)
"""Prompts without people, some with words that would state an attribute of one."""
