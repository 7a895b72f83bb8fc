"""Measures all alternatives of an attribute trained in one run against one training each, on the 24 held-out occupations.

    python -m benchmarks.attribute --out runs/attribute      (about 30 minutes on 2 CPU cores; what is done is kept)
    python -m benchmarks.attribute --tables                  (the table anew from the kept result)

Both ways have the default preset and the same seed; images have the same noise: policy `exact`, seed 0. Forwards are counted as evaluations of
one sample, and in full forwards by FLOPs, of which the encoder half and the decoder half have their measured shares.
Results are kept in docs/results/attribute.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.provenance import DOCS, provenance, say
from benchmarks.settings import HELD_OUT
from benchmarks.tables import fill, interval, table
from respodiff.concepts.concept import attribute
from respodiff.data.prompt_sets import suite
from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import EMBEDDED, ClipJudge
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.pipelines.bottleneck import run_with_decoder
from respodiff.pipelines.denoiser import Denoiser
from respodiff.pipelines.identity import weights_digest
from respodiff.pipelines.loading import load_pipeline
from respodiff.steering.module import ConceptModule
from respodiff.training.attribute import fit_attribute
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import fit

RESULTS = DOCS / "results" / "attribute.json"
SCALES, IMAGES = (1.0, 1.5), 12
WAYS = {
    "together": lambda pipe, chosen: fit_attribute(pipe, chosen),
    "one by one": lambda pipe, chosen: {c.name: fit(pipe, c) for c in chosen.concepts},
}
"""How the alternatives are trained -> name -> module."""


@torch.no_grad()
def decoder_share(pipe: Any) -> float:
    """Part of the FLOPs of a forward that lies behind the bottleneck."""
    model = Denoiser(pipe)
    z, t, y = torch.zeros(1, *model.latent), torch.tensor([500]), model.empty
    with FlopCounterMode(display=False) as whole:
        _, h, decode = run_with_decoder(model.model, lambda: model(z, t, y), site=model.site)
    with FlopCounterMode(display=False) as part:
        decode(h)
    return float(part.get_total_flops() / whole.get_total_flops())


@contextmanager
def counted(unet: Any) -> Iterator[dict[str, int]]:
    """Samples that went through the first and the last layer of a UNet."""
    seen = {"encoder": 0, "decoder": 0}
    layers = {"encoder": unet.conv_in, "decoder": unet.conv_out}
    hooks = [x.register_forward_pre_hook(lambda _m, a, k=k: seen.update({k: seen[k] + len(a[0])})) for k, x in layers.items()]
    yield seen
    for hook in hooks:
        hook.remove()


def trained(pipe: Any, name: str, way: str, out: Path) -> dict[str, Any]:
    """Trains what is missing in a folder of these weights: forwards, seconds, and a file for each alternative."""
    folder = out / weights_digest(pipe.unet) / name / way.replace(" ", "-")
    log, chosen = folder / "training.json", attribute(name)
    if not log.is_file():
        say(f"training {name} {way}")
        began = time.perf_counter()
        with counted(pipe.unet) as seen:
            modules = WAYS[way](pipe, chosen)
        seconds, share = time.perf_counter() - began, decoder_share(pipe)
        files = [str(module.save(folder / f"{key}.safetensors")) for key, module in modules.items()]
        counts = {"evaluations": seen["decoder"], "full_forwards": seen["encoder"] * (1 - share) + seen["decoder"] * share}
        write_atomic(
            log, json.dumps({"seconds": seconds, "threads": torch.get_num_threads(), **counts, "decoder_share": share, "files": files})
        )
    found: dict[str, Any] = json.loads(log.read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(asdict(TrainConfig.preset("default"))))
    if stale := [file for file in found["files"] if {"site": []} | dict(ConceptModule.load(file).header.train) != wanted]:
        raise ValueError(f"{stale[0]} was trained with other settings than preset 'default' has; delete {folder}")
    return found


def measured(out: Path, name: str, images: int = IMAGES) -> dict[str, Any]:
    """Trains both ways, generates and judges what is missing; a row for each way, scale and judge."""
    pipe, judges = load_pipeline("embedded"), [ClipJudge.load(key) for key in EMBEDDED]
    prompts = [p for p in suite("occupations") if p.group in HELD_OUT]
    runs = {way: trained(pipe, name, way, out) for way in WAYS}
    modules = {way: [ConceptModule.load(file) for file in run["files"]] for way, run in runs.items()}
    rows = []
    for label, used, scale in [("unsteered", [], 1.0), *((way, modules[way], s) for way in WAYS for s in SCALES)]:
        config, folder = GenerateConfig(images=images, policy="exact", scale=scale), out / weights_digest(pipe.unet) / name
        folder = folder / f"{label}-{scale:g}-{images}".replace(" ", "-")
        say(f"{label}, scale {scale:g}: {sum(1 for _ in generate(pipe, prompts, used, config, out=folder))} new")
        for judge in judges:
            found = evaluate(folder, judge, name).to_json()
            row = {"row": label, "scale": scale if used else None, "judge": judge.name, "n": found["n"], "devrat": found["devrat"][name]}
            row |= {"concept_accuracy": found["concept_accuracy"][name], "subject_accuracy": found["subject_accuracy"]}
            rows.append(row)
    about: dict[str, Any] = {"model": weights_digest(pipe.unet), "judges": {j.name: j.digest for j in judges}, "attribute": name}
    about |= {"modules": {way: {m.name: m.digest for m in modules[way]} for way in WAYS}, "images": images, "prompts": len(prompts)}
    return about | {"training": {way: {k: v for k, v in run.items() if k != "files"} for way, run in runs.items()}, "rows": rows}


def as_table(result: Mapping[str, Any]) -> str:
    """What was measured, the cost of both ways, and a row for each way, scale and judge."""
    costs = [
        [way, str(t["evaluations"]), f"{t['full_forwards']:.0f}", f"{t['seconds']:.0f}", str(t["threads"])]
        for way, t in result["training"].items()
    ]
    lines = [
        [
            row["row"],
            "-" if row["scale"] is None else f"{row['scale']:g}",
            f"`{row['judge']}`",
            str(row["n"]),
            f"{row['devrat']['random']:.3f}",
        ]
        + [interval(row[key]) for key in ("devrat", "concept_accuracy", "subject_accuracy")]
        for row in result["rows"]
    ]
    made = (
        f"`{result['command']}` at commit {result['commit']}: `{result['attribute']}`, default preset, {result['prompts']} held-out occupations, "
        f"{result['images']} images each, model {result['model']}, torch {result['torch']}; brackets hold 95 % intervals over prompts. *full "
        f"forwards*: a part of the UNet that runs alone counts as its share of the FLOPs (behind the bottleneck {result['training']['together']['decoder_share']:.3f}).\n\n"
    )
    heads = ["", "scale", "judge", "n", "random", "DevRat", "concept accuracy", "subject accuracy"]
    return made + table(["all alternatives", "evaluations", "full forwards", "seconds", "threads"], costs) + "\n" + table(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/attribute"), help="folder of modules and runs")
    parser.add_argument("--attribute", default="gender")
    parser.add_argument("--images", type=int, default=IMAGES, help="images an occupation")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file to write; the page is filled from the default one alone")
    parser.add_argument("--tables", action="store_true", help="write the table, run nothing")
    arguments = parser.parse_args()
    if not arguments.tables:
        command = f"python -m benchmarks.attribute --attribute {arguments.attribute} --images {arguments.images}"
        write_atomic(
            arguments.results,
            json.dumps(provenance(command) | measured(arguments.out, arguments.attribute, arguments.images), indent=1) + "\n",
        )
    shown = as_table(json.loads(arguments.results.read_text(encoding="utf-8")))
    print(shown)
    if arguments.results == RESULTS:
        fill(DOCS / "results.md", "attribute", shown)


if __name__ == "__main__":
    main()
