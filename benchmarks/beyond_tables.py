"""The tables that `benchmarks.beyond` writes into docs/method.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.tables import interval, table

NOT_YET = "not measured yet: `python -m benchmarks.beyond`"


def fair_table(rows: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    if not rows:
        return NOT_YET
    lines = []
    for name, r in rows.items():
        t = r.get("tests", {})
        devrat = [f"{a} {interval(r['devrat'][a])}" if len(r["devrat"]) > 1 else interval(r["devrat"][a]) for a in r["devrat"]]
        concept_accuracy = [interval(c) for c in r["concept_accuracy"].values() if c]
        lost = "-" if "alignment_lost" not in r else f"{100 * r['alignment_lost']:+.1f} %"
        line = [titles[name], str(r["n"]), "<br>".join(devrat), "<br>".join(concept_accuracy) or "-"]
        line += [interval(r["subject_accuracy"]), interval(t.get("subject accuracy")), lost, interval(r.get("drift"))]
        lines.append(line)
    head = ["run", "n", "DevRat", "concept_accuracy", "subject accuracy", "kept, minus plain", "alignment lost", "drift"]
    return table(head, lines)


def cells_table(parts: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Runs of two attributes: the cell that is furthest from its share."""
    found = [(label, name, r) for label, rows in parts.items() for name, r in rows.items() if r.get("intersection")]
    lines = [
        [
            label,
            titles[name],
            str(r["intersection"]["known"]),
            " x ".join(r["intersection"]["worst"]["subgroup"]),
            interval(r["intersection"]["distance"]),
            interval(r["intersection"]["concept_accuracy"]),
        ]
        for label, name, r in found
    ]
    return (
        table(["occupations", "run", "n", "worst subgroup", "its distance from its share", "both seen as asked"], lines)
        if lines
        else NOT_YET
    )


def general_table(rows: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    if not rows:
        return NOT_YET
    lines = []
    for name, r in rows.items():
        same = r["bit_identical"]
        lines.append(
            [
                titles[name],
                str(r["n"]),
                f"{same['same']} of {same['n']}",
                interval(r.get("frechet")),
                interval(r.get("split_half")),
                interval(r.get("drift")),
            ]
        )
    return table(["run", "n", "files equal to the plain model's", "Frechet to plain", "plain, half to half", "drift"], lines)


def safety_table(rows: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    if not rows:
        return NOT_YET
    lines = []
    for name, r in rows.items():
        same, t = r["bit_identical"], r.get("tests", {})
        line = [titles[name], str(r["n"]), interval(r["unsafe"]), interval(t.get("unsafe")), f"{same['same']} of {same['n']}"]
        line += [interval(r["subject_accuracy"]), interval(r["devrat"]["gender"]) if "unsafe" not in name else "-"]
        lines.append(line)
    return table(
        ["run", "n", "unsafe", "unsafe, minus plain", "files equal to the plain model's", "subject accuracy", "DevRat gender"], lines
    )


def readme_table(judges: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """The README's short table: the plain model and the default, by both judges."""
    lines = []
    for judge, parts in judges.items():
        for label, what in (("all 36", "36 occupations"), ("24 untuned", "24 of them outside of the contexts")):
            rows = parts.get(label, {})
            plain, exact = rows["plain"], rows["exact"]
            n, kept = exact["n"], "subject_accuracy"
            devrat = [interval(r["devrat"]["gender"]) for r in (plain, exact)]
            lines.append([f"DevRat gender, exact, {what}, judge `{judge}`", *devrat, str(n)])
            lines.append([f"subject accuracy, the same, judge `{judge}`", interval(plain[kept]), interval(exact[kept]), str(n)])
        rows = parts["all 36"]
        for name, attribute in (("random", "gender"), ("tone", "tone")):
            if name in rows:
                pair = [interval(rows[k]["devrat"][attribute]) for k in ("plain", name)]
                lines.append([f"DevRat {titles[name]}, 36 occupations, judge `{judge}`", *pair, str(rows[name]["n"])])
    random_levels = {a: rows["plain"]["devrat"][a]["random"] for rows in (judges["embedded"]["all 36"],) for a in ("gender", "tone")}
    text = (
        "On the embedded model, default preset, the same noise on both sides, 95 % intervals (`python -m benchmarks.beyond`). DevRat is how far the "
        "shares of a prompt's images are from even ones, 0 to 1, as mean over prompts; *subject accuracy*: the judge still sees what the prompt names. "
        f"A perfect generator that draws at random has DevRat {random_levels['gender']:.3f} (gender) and {random_levels['tone']:.3f} (tone) at this n; exact counts "
        "can come nearer.\n\n"
    )
    return text + table(["", "plain", "steered", "n"], lines)
