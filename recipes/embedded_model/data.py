"""Images and labels: every emoji of four openly licensed families at 128 x 128 on white, one pack and one index with a licence an image."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from recipes.embedded_model.sources import READERS, Drawing, Source, members, plain_code, slug
from respodiff.data.tables import read_table

SIZE = 128
MAX_BROKEN = 0.01
PEOPLE, PLACES, ANIMALS = "people-body", "travel-places", "animals-nature"
_SKIPPED = {"component", "flags", "symbols"}
_NO_PERSON = ("hand", "body-parts", "family", "person-symbol")  # subgroups of people-body, by how their names begin
_TONES = {1: "light", 2: "light", 3: "medium", 4: "dark", 5: "dark"}


@dataclass(frozen=True)
class Picture:
    """One image of the pack.

    Attributes:
        code: its Unicode sequence. style: its family. label: its name in emojibase. subject: what it shows, without gender and tone.
        group: emojibase's group. gender: ``man``, ``woman``, ``neutral``, or empty for things. tone: ``light``, ``medium``, ``dark`` or empty.
        tags: other words for it. licence: of the family. offset, size: its bytes in the pack (WebP).
    """

    code: str
    style: str
    label: str
    subject: str
    group: str
    gender: str
    tone: str
    tags: tuple[str, ...]
    licence: str
    offset: int = 0
    size: int = 0

    @property
    def person(self) -> bool:
        """Whether it shows people."""
        return self.group == PEOPLE


def clean(label: str) -> str:
    """A label as words of a prompt.

    >>> clean("Japanese “bargain” button")
    'japanese bargain button'
    """
    return re.sub(r"[:“”\"’!]", "", label).lower()


def spoken(label: str) -> str:
    """A label or tag as a caption says it: `clean`, without accents, as no user types them.

    >>> spoken("Piñata")
    'pinata'
    """
    return unicodedata.normalize("NFKD", clean(label)).encode("ascii", "ignore").decode()


def person_subject(label: str, roles: Iterable[str]) -> str:
    """What an image of a person shows, whoever the person is; `roles` are labels that name a role by themselves.

    >>> person_subject("woman firefighter", {"firefighter"}), person_subject("men wrestling", set()), person_subject("girl", set())
    ('firefighter', 'person wrestling', 'child')
    """
    if label in ("boy", "girl"):
        return "child"
    if re.match(r"(old man|old woman|older person)\b", label):
        return re.sub(r"^(old man|old woman|older person)", "older person", label)
    neutral = re.sub(r"^(man|woman|men|women)\b", "person", label)
    role = neutral.removeprefix("person ")
    return role if role != neutral and role in roles else neutral


def label_rows(data: Sequence[dict[str, Any]], groups: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """What emojibase says of every image that is used, without a style yet.

    Args:
        data: emojibase's ``en/data.json``. groups: its ``meta/groups.json``.
    """
    wanted = [e for e in data if groups["groups"].get(str(e.get("group"))) not in (*_SKIPPED, None)]
    roles = {e["label"] for e in wanted if groups["groups"][str(e["group"])] == PEOPLE and not e["label"].startswith("person")}
    rows = []
    for entry in wanted:
        group = groups["groups"][str(entry["group"])]
        if group != PEOPLE:
            rows.append(_row(entry, entry, group, clean(entry["label"]), "", ""))
        elif not groups["subgroups"][str(entry["subgroup"])].startswith(_NO_PERSON):
            subject, gender = person_subject(entry["label"], roles), _gender(entry)
            skins = [s for s in entry.get("skins", []) if isinstance(s["tone"], int)]  # two people: a list
            rows += [_row(s, entry, group, subject, gender, _TONES[int(s["tone"])]) for s in skins]
    return rows


def _row(form: dict[str, Any], entry: dict[str, Any], group: str, subject: str, gender: str, tone: str) -> dict[str, Any]:
    tags = tuple(entry.get("tags", ()))
    return {
        "code": plain_code(form["hexcode"]),
        "name": slug(form["label"]),
        "label": entry["label"],
        "subject": subject,
        "group": group,
        "gender": gender,
        "tone": tone,
        "tags": tags,
    }


def _gender(entry: dict[str, Any]) -> str:
    named = re.match(r"(?:old )?(wom[ae]n|man|men|boy|girl)\b", entry["label"])
    if named:
        return "woman" if named[1].startswith(("wom", "girl")) else "man"
    return {0: "woman", 1: "man"}.get(entry.get("gender", -1), "neutral")


def build(sources: dict[str, Source], readers: dict[str, str], cache: Path, out: Path, say: Callable[[str], None] = print) -> int:
    """Fetch, draw and label; writes ``pictures.bin`` and ``pictures.json`` into `out`.

    Args:
        sources: ``labels`` and one entry a style. readers: style -> name of its reader.

    Returns:
        How many images the pack holds.

    Raises:
        ValueError, RuntimeError: as `Source.fetch` and `members`; or more than 1 % of the images are broken.
    """
    base = members(sources["labels"].fetch(cache))
    try:
        rows = label_rows(json.loads(base["package/en/data.json"]), json.loads(base["package/meta/groups.json"]))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"package {sources['labels'].package} {sources['labels'].version} is laid out otherwise ({error}); take the version of config.toml"
        ) from error
    todo: list[tuple[Picture, Drawing]] = []
    for style, reader in readers.items():
        drawings = READERS[reader](members(sources[style].fetch(cache)))
        key = "name" if reader == "names" else "code"
        found = [(Picture(style=style, licence=sources[style].licence, **_kept(row)), row[key]) for row in rows if row[key] in drawings]
        todo += [(image, drawings[name]) for image, name in found]
        say(f"{style}: {len(found)} of {len(rows)} images in {sources[style].package} {sources[style].version}")
    return pack([image for image, _ in todo], [drawing for _, drawing in todo], out, say)


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != "name"}


def from_table(folder: Path, out: Path, say: Callable[[str], None] = print) -> int:
    """A pack from images that are at hand: a folder with ``labels.csv`` (file, gender, tone, subject, style, licence; ``unsafe`` marks things).

    Raises:
        ValueError: no such table, or more than 1 % of its images cannot be read.
    """
    table = folder / "labels.csv"
    if not table.is_file():
        raise ValueError(f"images {str(folder)!r} has no labels.csv; give a folder with images and their labels")
    rows = [row for _, row in read_table(table, ["file", "gender", "tone", "subject", "style", "licence"])]
    images = []
    for row in rows:
        group = PEOPLE if row["gender"] else PLACES if row.get("unsafe") == "no" else "objects"
        images.append(
            Picture(row["file"], row["style"], row["subject"], row["subject"], group, row["gender"], row["tone"], (), row["licence"])
        )
    return pack(images, [_file(folder / row["file"]) for row in rows], out, say)


def _file(path: Path) -> Drawing:
    return lambda pixels: Image.open(path).convert("RGBA").resize((pixels, pixels))


def pack(images: Sequence[Picture], drawings: Sequence[Drawing], out: Path, say: Callable[[str], None] = print) -> int:
    """Generate images and write the pack; a broken one is named and left out, more than 1 % of them are an error."""
    with ThreadPoolExecutor(2) as pool:
        blobs = list(pool.map(_drawn, drawings))
    broken = [p for p, blob in zip(images, blobs, strict=True) if blob is None]
    for image in broken[:5]:
        say(f"left out: {image.style} {image.code} ({image.label}) cannot be drawn")
    if len(broken) > MAX_BROKEN * len(images):
        raise ValueError(
            f"{len(broken)} of {len(images)} images cannot be drawn, first {broken[0].style} {broken[0].code}; check the packages"
        )
    index, raw = [], bytearray()
    for image, blob in zip(images, blobs, strict=True):
        if blob is not None:
            index.append(asdict(image) | {"offset": len(raw), "size": len(blob)})
            raw += blob
    out.mkdir(parents=True, exist_ok=True)
    (out / "pictures.bin").write_bytes(raw)
    partial = out / "pictures.partial"
    partial.write_text(json.dumps(index))
    partial.replace(out / "pictures.json")  # last: its being there says that the pack is whole
    return len(index)


def _drawn(drawing: Drawing) -> bytes | None:
    try:
        image = drawing(SIZE)
    except ImportError:
        raise  # that is no fault of the image
    except Exception:  # decoders raise from many families; the caller counts and names what is left out
        return None
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    white.alpha_composite(image)
    buffer = io.BytesIO()
    white.convert("RGB").save(buffer, "WEBP", quality=92, method=4)
    return buffer.getvalue()


def read(folder: Path) -> tuple[list[Picture], torch.Tensor]:
    """The index and all images, uint8 (N, 3, 128, 128).

    Raises:
        ValueError: the pack is missing or broken; says which image.
    """
    try:
        index = [Picture(**{**row, "tags": tuple(row["tags"])}) for row in json.loads((folder / "pictures.json").read_text())]
        raw = (folder / "pictures.bin").read_bytes()
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"image pack {folder} cannot be read ({error}); delete it and run the stage data again") from error

    def decoded(image: Picture) -> np.ndarray[Any, Any]:
        try:
            return np.asarray(Image.open(io.BytesIO(raw[image.offset : image.offset + image.size])).convert("RGB"))
        except OSError as error:
            raise ValueError(f"image {image.style} {image.code} in {folder} is broken; run the stage data again") from error

    with ThreadPoolExecutor(2) as pool:
        return index, torch.from_numpy(np.stack(list(pool.map(decoded, index)))).permute(0, 3, 1, 2)
