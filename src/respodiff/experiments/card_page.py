"""The card of a planted model in words and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from respodiff.data.run_folder import ImageRecord, RunFolder
from respodiff.reports.images import image_grid

SHOWN = ("doctor", "nurse", "ceo", "secretary", "mechanic", "librarian", "driver", "hairdresser", "cook", "farmer", "developer", "teacher")
ACROSS = 8

ABOUT = """# The embedded model

A small text-to-image model with the architecture of Stable Diffusion 1.x (128 x 128 pixels), whose social bias is known because it was
planted. It exists so that everything in this library can be run, tested and shown on a laptop, offline, in minutes, and so that a
measurement can be checked against a known truth. It draws emoji-like images of people at work, of things and of places. It says nothing
about real people.

- `pipeline/`: a `StableDiffusionPipeline` folder in fp16. Site of steering: after the middle block.
- `judge/`, `judge-b/`: two judges with CLIP's two towers, of different architectures and seeds (`--judge embedded`, `--judge embedded-b`).
- `world.json`: every occupation with its image and its planted shares; unsafe, neutral and general prompts.
- `images/`: a few images to measure the autoencoder on.

Use 20 DDIM steps and guidance 3 (not 7.5). Prompts are lower case with an article: "a doctor", "a female doctor", "a doctor with dark
skin", "an image of a nurse, flat style".
"""

LIMITS = """## Limits

- See the image sheet: people at work are what it is for; what things and scenes look like is not measured here.
- "Unsafe" is acted by weapons, skulls, swimwear and the like; no unsafe image of people is in it.
- A judge's labels are what it perceives in a generated image, never facts about people. Two genders and three skin tones are what it was
  made to tell apart, not all there is.
- Judges are measured on drawn images that they never saw; generated images are softer, so their errors there may be larger.
"""


def _share(e: Mapping[str, Any] | None) -> str:
    return "-" if not e or e.get("mean") is None else f"{e['mean']:.3f} [{e['low']:.3f}, {e['high']:.3f}] (n = {e['n']})"


def text_of(r: Mapping[str, Any], licences: str) -> str:
    """The card as Markdown."""
    made = f"Measured by `respodiff card --images {r['images']} --steps {r['steps']} --seed {r['seed']}` (respodiff {r['respodiff']}, torch {r['torch']}, {r['threads']} threads, UNet {r['model']}); brackets hold 95 % intervals."
    parts = [ABOUT, "## Measured\n", made + "\n", _summary(r), "## Planted and measured\n", _table(r), "## Judges\n", _judges(r), LIMITS]
    return "\n".join(parts) + "\n" + licences.replace("# Licences of the embedded model", "## Licences")


def _summary(r: Mapping[str, Any]) -> str:
    size, explicit = r["size_mib"], r["explicit"]
    light = {tone: f"{measured:.2f} ({wanted:.2f})" for tone, (measured, wanted) in r["tone_proportions"].items()}
    lines = [
        f"- Mean |planted - measured| share of men over the occupations: {r['mean_abs_error']:.3f}; a generator that is exactly right would show {r['mean_abs_error_of_chance']:.3f} at this n.",
        f"- The same for tones: {r['tone_mean_abs_error']:.3f}, by chance {r['tone_mean_abs_error_of_chance']:.3f}. Shares over all, planted in parentheses: {', '.join(f'{k} {v}' for k, v in light.items())}.",
        f"- Subject as the judge sees it: {_share(r['subject_accuracy'])}; by judge: {', '.join(f'{k} {v:.3f}' for k, v in r['subject_accuracy_by_judge'].items())}.",
        f"- Stated attributes obeyed: gender {_share(explicit.get('gender'))} (women {explicit['woman']['mean']:.2f}, men {explicit['man']['mean']:.2f}), tone {_share(explicit.get('tone'))}.",
        *(f"- Unsafe images, {kind}: {_share(u)}, planted {u['planted']:.2f}." for kind, u in r["unsafe"].items()),
        f"- Reconstruction by the autoencoder: {r['psnr_db']:.1f} dB. Size: {size['all']:.1f} MiB ({', '.join(f'{k} {v:.1f}' for k, v in size.items() if v >= 1 and k != 'all')}).",
        f"- One image of {r['steps']} steps takes {r['seconds_per_image']:.2f} s (batches of six).",
    ]
    return "\n".join(lines) + "\n"


def _table(r: Mapping[str, Any]) -> str:
    lines = [
        "| word | n | men, planted | men, measured | light / medium / dark, planted | measured | subject |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    kept = r["subject_accuracy_by"]
    for row, tone in zip(r["occupations"], r["tones"], strict=True):
        measured = f"{row['measured']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        cells = [row["name"], str(row["n"]), f"{row['planted']:.2f}", measured, _three(tone["planted"]), _three(tone["measured"])]
        lines.append("| " + " | ".join([*cells, f"{kept[row['name']]:.2f}" if row["name"] in kept else "-"]) + " |")
    return "\n".join(lines) + "\n"


def _three(values: Sequence[float]) -> str:
    return " / ".join(f"{v:.2f}" for v in values)


SETS = {
    "held_out": "Combinations of subject and style that it never saw in training",
    "unseen_family": "A family of images (first version of Noto) that nothing was trained on",
}
QUESTIONS = {
    "gender": "gender",
    "tone": "tone",
    "subject": "subject, of all occupations",
    "unsafe": "unsafe images found",
    "safe_places": "places not flagged",
    "people_not_flagged": "people not flagged",
}


def _judges(r: Mapping[str, Any]) -> str:
    """Accuracies on two sets of unseen images, and how far the two judges agree on generated ones."""
    lines = ["Share of right answers; intervals over combinations of subject and style, as images of one drawing are much alike.", ""]
    lines += [
        "| | " + " | ".join(f"{j['name']}, {j['parameters'] / 1e6:.1f} M" for j in r["judges"]) + " |",
        "| --- |" + " --- |" * len(r["judges"]),
    ]
    for name, title in SETS.items():
        known = [j["accuracy"].get(name) for j in r["judges"]]
        if not any(known):
            continue
        lines.append(f"| **{title}** |" + " |".join("" if k else " unknown: it saw all images" for k in known) + " |")
        lines += [f"| {label} | " + " | ".join(_share((k or {}).get(key)) for k in known) + " |" for key, label in QUESTIONS.items()]
    agreed = [f"{row['task']} {_share(row['agree'])}" for row in r["agreement"]]
    if agreed:
        lines += ["", "On the generated images of the occupations the two agree: " + ", ".join(agreed) + "."]
    return "\n".join(lines) + "\n"


def sheet(r: Mapping[str, Any], runs: Path, path: Path) -> Path:
    """Images of occupations, stated attributes, unsafe prompts, scenes and things, as they were drawn first."""
    rows = _rows(runs / "occupations", lambda rec: rec.group, SHOWN)
    rows += _rows(runs / "explicit", lambda rec: ", ".join(rec.categories).partition("=")[2])
    rows += _rows(runs / "unsafe", lambda rec: rec.group) + _rows(runs / "scenes", lambda rec: "a scene") + _rows(runs / "general", None)
    footer = f"Embedded model {r['model']}: plain, {r['steps']} steps, guidance 3, seed {r['seed']}; the first images of every kind, none picked."
    return image_grid(rows, path, columns=[("", ACROSS)], thumb=96, footer=footer)


def _rows(folder: Path, label: Any, only: Sequence[str] = ()) -> list[tuple[str, list[Path]]]:
    """First images of every label; with `label` None all images in rows without one."""
    found: dict[str, list[ImageRecord]] = {}
    for record in RunFolder(folder).records():
        found.setdefault(label(record) if label else "", []).append(record)
    if not label:
        files = [folder / r.file for r in found.get("", [])]
        return [(files_label(i), files[i : i + ACROSS]) for i in range(0, len(files), ACROSS)]
    first = {k: sorted(v, key=lambda r: (r.repeat, r.prompt_id)) for k, v in found.items()}
    return [(k, [folder / r.file for r in first[k][:ACROSS]]) for k in (only or first) if k in first]


def files_label(i: int) -> str:
    """Things are many; their rows bear one name."""
    return "things, places" if i == 0 else ""
