"""Measures all alternatives of an attribute trained in one run against one training each, on the 24 held-out occupations.

    python -m benchmarks.attribute --out runs/attribute      (about 40 minutes on 2 CPU cores; what is done is kept)
    python -m benchmarks.attribute --tables                  (the table anew from the kept result)

Both ways have the default preset and the same training seeds; images have the same noise: policy `exact`, seed 0, and are compared image by image.
Forwards are counted as evaluations of one sample, and in full forwards by FLOPs, of which the encoder half and the decoder half have their measured
shares.
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
from respodiff.evaluation.comparison import compare
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import EMBEDDED, ClipJudge
from respodiff.evaluation.metrics.estimate import as_json
from respodiff.evaluation.scored_run import load_scored_run
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.pipelines.bottleneck import run_with_decoder
from respodiff.pipelines.denoiser import Denoiser
from respodiff.pipelines.identity import weights_digest
from respodiff.pipelines.loading import load_pipeline
from respodiff.reports.tables import p_value
from respodiff.steering.module import ConceptModule
from respodiff.training.attribute import fit_attribute
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import fit

RESULTS = DOCS / "results" / "attribute.json"
ROWS, IMAGES = ((1.0, 0), (1.0, 1), (1.0, 2), (1.5, 0)), 12
"""Scales and training seeds; images a prompt."""
WAYS = {
    "together": lambda pipe, chosen, config: fit_attribute(pipe, chosen, config),
    "one by one": lambda pipe, chosen, config: {c.name: fit(pipe, c, config) for c in chosen.concepts},
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


def trained(pipe: Any, name: str, way: str, seed: int, out: Path) -> dict[str, Any]:
    """Trains what is missing in a folder of these weights: forwards, seconds, and a file for each alternative."""
    folder = out / weights_digest(pipe.unet) / name / f"{way} seed {seed}".replace(" ", "-")
    log, chosen, config = folder / "training.json", attribute(name), TrainConfig.preset("default", seed=seed)
    if not log.is_file():
        say(f"training {name} {way}, seed {seed}")
        began = time.perf_counter()
        with counted(pipe.unet) as seen:
            modules = WAYS[way](pipe, chosen, config)
        seconds, share = time.perf_counter() - began, decoder_share(pipe)
        files = [str(module.save(folder / f"{key}.safetensors")) for key, module in modules.items()]
        counts = {"evaluations": seen["decoder"], "full_forwards": seen["encoder"] * (1 - share) + seen["decoder"] * share}
        write_atomic(
            log, json.dumps({"seconds": seconds, "threads": torch.get_num_threads(), **counts, "decoder_share": share, "files": files})
        )
    found: dict[str, Any] = json.loads(log.read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(asdict(config)))
    if stale := [file for file in found["files"] if {"site": []} | dict(ConceptModule.load(file).header.train) != wanted]:
        raise ValueError(f"{stale[0]} was trained with other settings than preset 'default' has; delete {folder}")
    return found


def measured(out: Path, name: str, images: int = IMAGES) -> dict[str, Any]:
    """Trains both ways, generates and judges what is missing; a row for each way, scale, training seed and judge, and paired differences."""
    pipe, judges = load_pipeline("embedded"), [ClipJudge.load(key) for key in EMBEDDED]
    prompts = [p for p in suite("occupations") if p.group in HELD_OUT]
    model, seeds, rows, paired = weights_digest(pipe.unet), sorted({seed for _, seed in ROWS}), [], []
    runs = {(way, seed): trained(pipe, name, way, seed, out) for way in WAYS for seed in seeds}
    modules = {key: [ConceptModule.load(file) for file in run["files"]] for key, run in runs.items()}

    def folder_of(way: str, scale: float, seed: int) -> Path:
        return out / model / name / f"{way}-{scale:g}-seed-{seed}-{images}".replace(" ", "-")

    for way, scale, seed in [("unsteered", 1.0, 0), *((way, *row) for way in WAYS for row in ROWS)]:
        used, folder = modules.get((way, seed), []), folder_of(way, scale, seed)
        config = GenerateConfig(images=images, policy="exact", scale=scale)
        say(f"{way}, scale {scale:g}, seed {seed}: {sum(1 for _ in generate(pipe, prompts, used, config, out=folder))} new")
        for judge in judges:
            found = evaluate(folder, judge, name).to_json()
            row = {"row": way, "scale": scale if used else None, "seed": seed if used else None, "judge": judge.name, "n": found["n"]}
            row |= {"devrat": found["devrat"][name], "concept_accuracy": found["concept_accuracy"][name]}
            rows.append(row | {"subject_accuracy": found["subject_accuracy"]})
    for scale, seed in ROWS:
        for judge in judges:
            first, second = (load_scored_run(folder_of(way, scale, seed), judge=judge.name) for way in WAYS)
            tests = {t.metric: as_json(t) for t in compare(first, second).tests}
            paired.append({"scale": scale, "seed": seed, "judge": judge.name} | {key: tests[key] for key in ("devrat", "subject_accuracy")})
    about: dict[str, Any] = {"model": model, "judges": {j.name: j.digest for j in judges}, "attribute": name}
    about |= {"modules": {f"{way}, seed {seed}": {m.name: m.digest for m in found} for (way, seed), found in modules.items()}}
    about |= {"images": images, "prompts": len(prompts)}
    about["training"] = {way: {k: v for k, v in runs[way, seeds[0]].items() if k != "files"} for way in WAYS}
    return about | {"rows": rows, "paired": paired}


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
            "-" if row["seed"] is None else str(row["seed"]),
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
    heads = ["", "scale", "training seed", "judge", "n", "random", "DevRat", "concept accuracy", "subject accuracy"]
    pairs = [
        [f"{row['scale']:g}", str(row["seed"]), f"`{row['judge']}`", str(row["devrat"]["n"])]
        + [x for metric in ("devrat", "subject_accuracy") for x in (interval(row[metric]), p_value(row[metric]["p"]))]
        for row in result["paired"]
    ]
    parts = [
        table(["all alternatives", "evaluations", "full forwards", "seconds", "threads"], costs),
        table(heads, lines),
        "One by one, less together, on the same noise:\n",
        table(["scale", "training seed", "judge", "pairs", "DevRat", "p", "subject accuracy", "p"], pairs),
    ]
    return made + "\n".join(parts)


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
