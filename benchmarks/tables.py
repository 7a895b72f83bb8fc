"""Results of `benchmarks.main_job` as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(r) + " |" for r in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def interval(e: Mapping[str, Any] | None) -> str:
    return "-" if e is None else f"{e['mean']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"


def fairness_row(label: str, r: Mapping[str, Any], attribute: str, plain: Mapping[str, Any]) -> list[str]:
    d = r["devrat"][attribute]
    concept_accuracy = (r["concept_accuracy"] or {}).get(attribute)
    kept = f"{interval(r['subject_accuracy'])} ({r['subject_accuracy']['mean'] / plain['subject_accuracy']['mean']:.2f})"
    return [
        label,
        str(r["n"]),
        interval(d),
        f"{d['random']:.3f}",
        interval(concept_accuracy),
        kept,
        f"{r['alignment']['mean']:.2f} [{r['alignment']['low']:.2f}, {r['alignment']['high']:.2f}]",
    ]


FAIRNESS = ["setting", "n", "DevRat", "random", "concept accuracy", "subject accuracy", "alignment"]


def fairness_tables(f: Mapping[str, Any]) -> str:
    plain = f["plain"]
    rows = [fairness_row("unsteered", plain, "gender", plain)]
    rows += [fairness_row(f"exact, scale {s}", r, "gender", plain) for s, r in sorted(f["exact"].items())]
    rows.append(fairness_row("random, scale 1.0", f["random"], "gender", plain))
    text = "### Gender, 36 occupations\n\n" + table(FAIRNESS, rows)
    rows = [fairness_row("unsteered", plain, "tone", plain)]
    rows += [fairness_row(f"exact, scale {s}", r, "tone", plain) for s, r in sorted(f["tone"].items())]
    text += "\n### Skin tone, 36 occupations\n\n" + table(FAIRNESS, rows)
    unseen = f["unseen-plain"]
    rows = [fairness_row("unsteered", unseen, "gender", unseen), fairness_row("exact, scale 1.0", f["unseen-exact"], "gender", unseen)]
    text += "\n### Gender, 49 occupations used neither in training nor in tuning\n\n" + table(FAIRNESS, rows)
    rows = [
        fairness_row("RAM alone", f["exact"]["1.0"], "gender", plain),
        fairness_row("RAM + SAM (lambda .5, SAM lr .02)", f["sam"], "gender", plain),
        fairness_row("RAM scaled by .5", f["exact"]["0.5"], "gender", plain),
    ]
    return (
        text
        + "\n### RAM, RAM + SAM, RAM scaled (gender, exact)\n\nOne RAM in all three rows: RAM's loss never sees SAM.\n\n"
        + table(FAIRNESS, rows)
    )


def safety_table(s: Mapping[str, Any]) -> str:
    plain = s["plain"]["people"]["subject_accuracy"]["mean"]
    rows = []
    for label, r in sorted(s.items(), key=lambda entry: "" if entry[0] == "plain" else entry[0]):
        proportions = r["unsafe"]["unsafe_by"]
        kept = r["people"]["subject_accuracy"]["mean"]
        rows.append(
            [
                "unsteered" if label == "plain" else f"scale {label}",
                interval(r["unsafe"]["unsafe"]),
                ", ".join(f"{k} {v:.2f}" for k, v in proportions.items()),
                interval(r["scenes"]["unsafe"]),
                f"{interval(r['people']['subject_accuracy'])} ({kept / plain:.2f})",
            ]
        )
    n = {k: s["plain"][k]["n"] for k in ("unsafe", "scenes", "people")}
    head = f"\n### Safety: modules violence and sexual together\n\nn = {n['unsafe']} images of unsafe prompts, {n['scenes']} of neutral scenes and {n['people']} of people at work per row.\n\n"
    return head + table(["setting", "unsafe, unsafe prompts", "by kind", "unsafe, neutral scenes", "subject accuracy, people"], rows)


def training_table(t: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [f"`{r['command']}`", str(r["iterations"]), f"{r['seconds']:.0f}", str(r["unet_forwards"]), f"{r['peak_mib']:.0f}"]
        for r in t.values()
    ]
    return "\n### Training\n\n" + table(["command", "iterations", "seconds", "UNet sample-forwards", "peak MiB"], rows)


def identity_table(i: Mapping[str, Any]) -> str:
    return "\n### Identities\n\n" + table(["what", "found"], [[k.replace("_", " "), str(v)] for k, v in i.items()])


def main_job_tables(results: Mapping[str, Any]) -> str:
    """All tables of the preset `neutral`."""
    text = fairness_tables(results["fairness"]) + safety_table(results["safety"])
    return text + training_table(results["training"]) + identity_table(results["identities"])


def fill(path: Path, name: str, text: str) -> None:
    """Put ``text`` between the markers ``<!-- name -->`` and ``<!-- /name -->`` of a page."""
    page = path.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if page.count(start) != 1 or page.count(end) != 1:
        raise ValueError(f"{path.name} needs the markers {start} and {end} once each")
    before, _, rest = page.partition(start)
    path.write_text(f"{before}{start}\n{text.strip()}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
