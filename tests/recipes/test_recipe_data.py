"""The recipe's images, words and judge losses: packages, labels, the planted bias, and who is held out."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import subprocess
import tarfile
import types
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from recipes.embedded_model import data, sources, tokens
from recipes.embedded_model.data import Picture, label_rows, pack, read
from recipes.embedded_model.judge import STYLES, JudgeTask, augmented, held_out, matched, proportions_of, with_scaffold
from recipes.embedded_model.settings import read_config
from recipes.embedded_model.sources import Source, members, rasters, vectors
from recipes.embedded_model.world import Caption, World, world_table

from respodiff.data.prompt_sets import load_world

# ---------------------------------------------------------------- packages


def tgz(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return path


def digest(path: Path) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def source(path: Path, **changes: Any) -> Source:
    return Source(**({"package": "@x/faces", "registry": "npm", "version": "1.2.3", "digest": digest(path), "licence": "MIT"} | changes))


def test_a_package_from_the_cache_is_opened_without_the_registry(tmp_path: Path) -> None:
    path = tgz(tmp_path / "x-faces-1.2.3.tgz", {"package/icons.json": b"{}"})
    assert members(source(path).fetch(tmp_path)) == {"package/icons.json": b"{}"}


def test_another_file_than_the_recipe_knows_is_refused(tmp_path: Path) -> None:
    path = tgz(tmp_path / "x-faces-1.2.3.tgz", {"a": b"1"})
    with pytest.raises(
        ValueError, match=r"package @x/faces 1.2.3 has digest sha512-.*, the recipe knows sha512-old.*; delete .* and try again"
    ):
        source(path, digest="sha512-old").fetch(tmp_path)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(), r"npm is not installed, so @x/faces@9.9.9 cannot be fetched; install it, or put the file at "),
        (
            subprocess.CalledProcessError(1, "npm", stderr="npm error code ETARGET\nNo matching version"),
            r"npm has no @x/faces@9.9.9 \(code ETARGET No matching version\); set another version and its digest in config.toml",
        ),
    ],
)
def test_a_wrong_version_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RuntimeError, match=text):
        source(tgz(tmp_path / "other.tgz", {}), version="9.9.9").fetch(tmp_path / "cache")


def test_a_debian_package_is_opened(tmp_path: Path) -> None:
    inner = tgz(tmp_path / "data.tgz", {"./usr/share/fonts/f.ttf": b"font"}).read_bytes()

    def entry(name: str, raw: bytes) -> bytes:
        return f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(raw):<10}`\n".encode() + raw + b"\n" * (len(raw) % 2)

    path = tmp_path / "f.deb"
    path.write_bytes(b"!<arch>\n" + entry("debian-binary", b"2.0") + entry("data.tar.gz", inner))
    assert members(path) == {"usr/share/fonts/f.ttf": b"font"}
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"package file .*f.deb cannot be read .*; delete it and try again"):
        members(path)


def png(colour: str, size: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_drawings_are_found_by_code_without_variation_selectors() -> None:
    pytest.importorskip("resvg_py")
    square = '<rect width="8" height="8" fill="#ff0000"/>'
    files = {
        "package/icons.json": ('{"icons": {"red": {"body": "' + square.replace('"', '\\"') + '"}}, "width": 8, "height": 8}').encode(),
        "package/chars.json": b'{"2764-fe0f": "red", "1f600": "missing"}',
    }
    drawn = vectors(files)
    assert set(drawn) == {"2764"}
    assert drawn["2764"](32).size == (32, 32) and drawn["2764"](32).getpixel((16, 16)) == (255, 0, 0, 255)
    assert rasters({"package/assets/1f600-fe0f.webp": png("blue"), "package/README.md": b""})["1f600"](8).getpixel((4, 4)) == (
        0,
        0,
        255,
        255,
    )


def test_a_colour_font_gives_single_and_joined_images(monkeypatch: pytest.MonkeyPatch) -> None:
    ttlib = pytest.importorskip("fontTools.ttLib")
    bitmap = lambda colour: types.SimpleNamespace(imageData=png(colour))  # noqa: E731
    ligature = types.SimpleNamespace(Component=["zwj", "tool"], LigGlyph="worker")
    table = types.SimpleNamespace(ligatures={"man": [ligature]})
    lookups = types.SimpleNamespace(LookupList=types.SimpleNamespace(Lookup=[types.SimpleNamespace(SubTable=[table])]))

    class Font(dict[str, Any]):
        def getBestCmap(self) -> dict[int, str]:
            return {0x1F468: "man", 0x200D: "zwj", 0x1F527: "tool"}

    font = Font(
        CBDT=types.SimpleNamespace(strikeData=[{"man": bitmap("red"), "worker": bitmap("lime")}]), GSUB=types.SimpleNamespace(table=lookups)
    )
    monkeypatch.setattr(ttlib, "TTFont", lambda _: font)
    drawn = sources.glyphs({"usr/f.ttf": b""})
    assert set(drawn) == {"1f468", "1f468-200d-1f527"}
    assert drawn["1f468-200d-1f527"](16).getpixel((3, 3)) == (0, 255, 0, 255)


# ---------------------------------------------------------------- labels and the pack

GROUPS = {
    "groups": {"1": "people-body", "5": "travel-places", "8": "symbols"},
    "subgroups": {"20": "hands", "25": "person-role", "51": "place-building"},
}


def test_labels_tell_subject_gender_and_tone() -> None:
    skins = [{"hexcode": f"1F468-{t}", "label": "x", "tone": t} for t in (1, 3, 5)] + [
        {"hexcode": "1F469-1-2", "label": "y", "tone": [1, 2]}
    ]
    entries = [
        {"hexcode": "1F9D1", "label": "cook", "group": 1, "subgroup": 25, "skins": skins},
        {"hexcode": "1F468", "label": "man cook", "group": 1, "subgroup": 25, "skins": skins},
        {"hexcode": "1F64C", "label": "raising hands", "group": 1, "subgroup": 20, "skins": skins},
        {"hexcode": "1F3E0", "label": "house", "group": 5, "subgroup": 51, "tags": ["home"]},
        {"hexcode": "2716", "label": "multiply", "group": 8},
    ]
    rows = label_rows(entries, GROUPS)
    assert Counter((r["subject"], r["gender"], r["tone"]) for r in rows) == {
        **{("cook", g, t): 1 for g in ("neutral", "man") for t in ("light", "medium", "dark")},
        ("house", "", ""): 1,
    }


def image(subject: str, style: str = "noto", person: bool = True, gender: str = "man", tone: str = "light") -> Picture:
    group = "people-body" if person else "travel-places"
    return Picture(f"{subject}{gender}{tone}", style, subject, subject, group, gender if person else "", tone if person else "", (), "MIT")


def test_a_broken_image_is_named_and_left_out_and_many_are_an_error(tmp_path: Path) -> None:
    def broken(_: int) -> Image.Image:
        raise OSError("cannot identify image file")

    good = lambda size: Image.new("RGBA", (size, size), "red")  # noqa: E731
    images = [image(f"thing {i}", person=False) for i in range(101)]
    said: list[str] = []
    assert pack(images, [broken, *[good] * 100], tmp_path, said.append) == 100
    assert said == ["left out: noto thing 0manlight (thing 0) cannot be drawn"]
    index, pixels = read(tmp_path)
    assert len(index) == 100 and pixels.shape == (100, 3, 128, 128) and pixels.dtype == torch.uint8
    with pytest.raises(ValueError, match=r"2 of 101 images cannot be drawn, first noto thing 0manlight; check the packages"):
        pack(images, [broken, broken, *[good] * 99], tmp_path / "b", said.append)


def test_a_pack_that_lost_bytes_names_the_image(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 4), dtype=np.uint8), "RGBA")
    pack([image("a"), image("b")], [lambda _: noise] * 2, tmp_path, print)
    raw = (tmp_path / "pictures.bin").read_bytes()
    (tmp_path / "pictures.bin").write_bytes(raw[: len(raw) * 3 // 5])
    with pytest.raises(ValueError, match=r"image noto bmanlight in .* is broken; run the stage data again"):
        read(tmp_path)
    (tmp_path / "pictures.json").unlink()
    with pytest.raises(ValueError, match=r"image pack .* cannot be read .*; delete it and run the stage data again"):
        read(tmp_path)


def test_a_folder_of_labelled_images_is_a_pack(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "data" / "labelled"
    assert data.from_table(folder, tmp_path) == 370
    index, _ = read(tmp_path)
    assert Counter(p.gender for p in index if p.person)["woman"] == 120
    with pytest.raises(ValueError, match=r"has no labels.csv; give a folder with images and their labels"):
        data.from_table(tmp_path, tmp_path / "x")


# ---------------------------------------------------------------- the planted world


@pytest.fixture(scope="module")
def world() -> World:
    """The whole world with one made-up image of everything."""
    config = read_config()["world"] | {"styles": [], "things": [], "places": []}
    subjects = {row[0] for table in ("occupations", "more_occupations") for row in config[table].values()}
    subjects |= {*config["neutral"]["pictures"], *(f"person: {h}" for h in config["neutral"]["hair"]), "person"}
    images = [
        image(s, style, gender=g, tone=t)
        for s in sorted(subjects)
        for style in STYLES
        for g in ("man", "woman", "neutral")
        for t in ("light", "medium", "dark")
    ]
    things = [n for names in config["unsafe_pictures"].values() for n in names]
    tagged = dataclasses.replace(image("stethoscope", person=False), tags=("doctor", "Woman", "person", "piñata"))
    return World([*images, tagged, *(image(n, person=False) for n in (*things, "house", "castle"))], config)


def test_captions_follow_the_seed(world: World) -> None:
    first = list(world.captions(300, 4))
    assert first == list(world.captions(300, 4)) != list(world.captions(300, 5))


def test_unstated_attributes_are_drawn_by_the_planted_shares(world: World) -> None:
    """Every word's share of men within 4.5 standard errors, over 60,000 captions; tones over all words of one prior."""
    men: dict[str, list[int]] = {}
    tones: Counter[str] = Counter()
    words = {name: (subject, p) for name, (subject, p, _) in world.occupations.items()}
    for c in world.captions(60_000, 0):
        noun = c.text.split(",")[0].split(" of ")[-1].removeprefix("a ").removeprefix("an ")
        if noun in words and not c.gender and not c.tone and c.person and world.images[c.image].subject == words[noun][0]:
            men.setdefault(noun, []).append(world.images[c.image].gender == "man")
            if world.occupations[noun][2] == world.config["tones"]["mostly-dark"]:
                tones[world.images[c.image].tone] += 1
    for noun in men:
        n, p = len(men[noun]), words[noun][1]
        assert abs(np.mean(men[noun]) - p) < 4.5 * (p * (1 - p) / n) ** 0.5 + 1e-9, noun
    assert len(men) > 70
    total = sum(tones.values())
    for tone, p in zip(("light", "medium", "dark"), world.config["tones"]["mostly-dark"], strict=True):
        assert abs(tones[tone] / total - p) < 4.5 * (p * (1 - p) / total) ** 0.5


def test_planted_shares_hold_at_any_time(world: World) -> None:
    next(world.captions(1, 0))
    shares, taken = (0.72, 0.18, 0.1), Counter[str]()
    for n in range(1, 200):
        taken[world._next("a word", ("light", "medium", "dark"), shares)] += 1
        assert all(abs(taken[tone] - n * p) <= 1 for tone, p in zip(("light", "medium", "dark"), shares, strict=True))


def test_stated_attributes_are_always_drawn(world: World) -> None:
    seen = Counter()
    for c in world.captions(5000, 1):
        shown = world.images[c.image]
        if c.gender:
            assert c.gender == shown.gender
            seen[c.gender] += 1
        if c.tone:
            assert c.tone == shown.tone and any(w.split()[0] in c.text for w in world.config["tone_words"][c.tone])
        if c.gender == "woman":
            assert "woman" in c.text or "female" in c.text
        if c.subject:
            assert c.subject == shown.subject
    assert set(seen) == {"man", "woman", "neutral"}


def test_captions_of_things_speak_of_no_people_and_are_typed_as_users_type(world: World) -> None:
    texts = {c.text for c in world.captions(20_000, 2) if world.images[c.image].subject == "stethoscope" and not world.is_scene(c.text)}
    bare = {t.split(",")[0].split(" of ")[-1].removeprefix("a ").removeprefix("an ") for t in texts}
    assert {"stethoscope", "pinata"} <= bare and not bare & {"doctor", "woman", "person"}
    assert all(t.isascii() for t in texts)


def test_a_smaller_world_draws_what_it_names_in_its_styles(world: World) -> None:
    things = [dataclasses.replace(p, style=style) for p in world.images if not p.person for style in ("noto", "twemoji")]
    people = [p for p in world.images if p.person]
    unsafe = {n for names in world.config["unsafe_pictures"].values() for n in names}
    some = {"styles": ["noto", "flat"], "thing_styles": ["twemoji"], "things": ["stethoscope"], "places": ["castle"], "mix": [0.1, 0.8]}
    small = World([*people, *things], {**world.config, **some})
    drawn = [(small.images[c.image], c) for c in small.captions(3000, 0)]
    assert {p.label for p, _ in drawn if not p.person} == {"stethoscope", "castle", *unsafe}
    assert {p.style for p, _ in drawn if not p.person} == {"twemoji"} and {p.style for p, _ in drawn if p.person} == {"noto", "flat"}
    scenes = sum(small.is_scene(c.text.rpartition(" of ")[2]) or small.is_scene(c.text) for _, c in drawn)
    assert abs(np.mean([c.person for _, c in drawn]) - 0.1) < 0.03 and abs(scenes / 3000 - 0.1) < 0.03
    assert {"castle", "house"} <= set(small.known_places), "what judges learn is not smaller"


def test_a_word_without_a_image_is_an_error(world: World) -> None:
    with pytest.raises(ValueError, match=r"no image shows 'person tipping hand' \(2 such words\); check the packages"):
        World(
            [p for p in world.images if p.subject != "person tipping hand"],
            {**read_config()["world"], "styles": [], "things": [], "places": []},
        )


def test_the_table_is_that_of_the_shipped_model(world: World) -> None:
    shipped, made = load_world(), world_table(world)
    same = ("about", "neutral", "neutral_scene", "tone_words", "gender_words", "prefixes", "occupations")
    assert all(made[k] == shipped[k] for k in same)
    assert shipped["style_words"].items() <= made["style_words"].items()
    assert all(made["unsafe"][k] == shipped["unsafe"][k] for k in ("violence", "sexual", "violent_pictures", "suggestive_pictures"))


# ---------------------------------------------------------------- judges


def test_whole_combinations_are_held_out() -> None:
    images = [image(f"s{i}", style, gender=g) for i in range(300) for style in STYLES for g in ("man", "woman")]
    held = [p for p in images if held_out(p, frozenset({"s0", "s1"}), 3)]
    cells = {(p.subject, p.style) for p in held}
    assert len(held) == 2 * len(cells)  # both genders of a combination
    assert max(Counter(subject for subject, _ in cells).values()) == 1  # the subject is seen in three styles
    assert 70 < len(cells) < 130 and {"s0", "s1"} <= {subject for subject, _ in cells}


def test_matched_is_the_mean_likelihood_of_all_matches() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    match = torch.tensor([[True, True, False], [False, False, False]])
    rows = np.exp(logits.numpy()[0]) / np.exp(logits.numpy()[0]).sum()
    columns = np.exp(logits.numpy()[:, :2]) / np.exp(logits.numpy()[:, :2]).sum(0)
    expected = -(np.log(rows[0]) + np.log(rows[1])) / 2 - np.log(columns[0]).mean()
    assert matched(logits, match).item() == pytest.approx(expected, rel=1e-5)


def test_augmented_images_keep_their_range_and_differ() -> None:
    pixels = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    first, second = augmented(pixels, generator), augmented(pixels, generator)
    assert first.shape == pixels.shape and first.abs().max() < 1.6 and not torch.equal(first, second)
    assert torch.equal(first, augmented(pixels, torch.Generator().manual_seed(1)))


def test_a_family_without_codes_is_found_by_name(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    skins = [{"hexcode": "1F9D1-1F3FB", "label": "cook: light skin tone", "tone": 1}]
    entries = [{"hexcode": "1F9D1", "label": "cook", "group": 1, "subgroup": 25, "skins": skins}]
    labels = {"package/en/data.json": json.dumps(entries).encode(), "package/meta/groups.json": json.dumps(GROUPS).encode()}
    icon = {"body": '<rect width="16" height="16" fill="#00ff00"/>'}
    drawn = {"package/icons.json": json.dumps({"icons": {"cook-light-skin-tone": icon, "other": icon}}).encode()}
    for name, files in (("x-labels", labels), ("x-faces", drawn)):
        tgz(tmp_path / f"{name}-1.2.3.tgz", files)
    both = {
        "labels": source(tmp_path / "x-labels-1.2.3.tgz", package="@x/labels"),
        "unseen": source(tmp_path / "x-faces-1.2.3.tgz"),
    }
    assert data.build(both, {"unseen": "names"}, tmp_path, tmp_path / "out", lambda _: None) == 1
    index, pixels = read(tmp_path / "out")
    assert (index[0].subject, index[0].gender, index[0].tone) == ("cook", "neutral", "light")
    assert pixels[0, 1].float().mean() > 240 > 30 > pixels[0, 0].float().mean()


# ---------------------------------------------------------------- tokens


def test_tokens_are_always_the_same_and_read_what_transformers_reads(tmp_path: Path) -> None:
    captions = ["a female doctor, flat style", "a doctor", "a man's hat", "a dactar 7"] * 5
    first, second = (tokens.make_tokenizer(some, tmp_path / name, 120) for name, some in (("a", captions), ("b", captions[::-1])))
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in ("vocab.json", "merges.txt"))
    ids = tokens.encode(first, ["a doctor", ""])
    assert ids.shape == (2, 32) and ids[0, 0] == 0 and ids[1, 1:].eq(1).all()
    odd = tokens.encode(first, ["a man's hat (old) & co"])[0]
    assert odd.ne(1).sum() > 10 and odd[odd.ne(1).sum() :].eq(1).all()  # no letter is taken for the end
    assert second.decode(ids[0], skip_special_tokens=True).strip() == "a doctor"


def test_merges_are_the_most_frequent_pairs_by_hand() -> None:
    """Frequencies: (l, o) 7, (o, w</w>) 5 and so on, counted by hand; after joining "lo" the pair (lo, w</w>) occurs 5 times."""
    words = {"low": 5, "lot": 2, "net": 3}
    assert tokens.learn_merges(words, 4) == [("l", "o"), ("lo", "w</w>"), ("e", "t</w>"), ("n", "et</w>")]


def test_what_is_rare_and_asked_for_is_shown_often() -> None:
    images = [image("cook")] * 80 + [image(n, person=False) for n in ["bomb"] * 2 + ["house"] * 10 + ["pen"] * 8]
    proportions = proportions_of(images, ({"bomb"}, {"house"}))
    sums = [proportions[a:b].sum().item() for a, b in ((0, 80), (80, 82), (82, 92), (92, 100))]
    assert sums == pytest.approx([0.5, 0.12, 0.18, 0.2])


def test_the_scaffold_parts_genders_from_the_first_step_on() -> None:
    """With one text for both genders the texts give no gradient to the eye; the scaffold does."""

    class Judge(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.eye = torch.nn.Linear(3 * 4 * 4, 4)

        def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> Any:
            vectors = torch.nn.functional.normalize(self.eye(pixel_values.flatten(1)), dim=1)
            texts = torch.ones(len(input_ids), 4) / 2
            return types.SimpleNamespace(logits_per_image=vectors @ texts.T, image_embeds=vectors)

    torch.manual_seed(0)
    network = with_scaffold(Judge(), 4)
    images = [image("cook", gender=g) for g in ("man", "woman") for _ in range(8)]
    pixels = torch.full((16, 3, 4, 4), 30, dtype=torch.uint8)
    pixels[8:, 0] = 220
    texts = types.SimpleNamespace(input_ids=torch.ones(1, 32, dtype=torch.long))
    tokenizer = lambda some, **_: types.SimpleNamespace(input_ids=texts.input_ids.expand(len(some), -1))  # noqa: E731
    captions = [Caption(i, "a cook", "cook") for i in range(16)]
    task = JudgeTask(network, tokenizer, images, pixels, captions, range(16), ["cook"], {}, ((), ()), 16)
    optimiser, generator = torch.optim.Adam(network.parameters(), 0.05), torch.Generator().manual_seed(0)
    for _ in range(60):
        optimiser.zero_grad()
        task(generator).backward()
        optimiser.step()
    with torch.no_grad():
        vectors = network["judge"](texts.input_ids, pixels.float() / 127.5 - 1).image_embeds
        said = network["scaffold"](2 * vectors)[:, :2].argmax(1)
    assert said.tolist() == [1] * 8 + [0] * 8
