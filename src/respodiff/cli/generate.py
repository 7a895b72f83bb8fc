"""``respodiff generate``."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from respodiff.cli.console import app, finish, follow, open_model, words
from respodiff.cli.evaluate import EMBEDDED_ALONE, judges_of
from respodiff.cli.options import (
    DRAWING,
    Batch,
    Concepts,
    Guidance,
    Json,
    Seed,
    Steps,
    library,
    load_entries,
    number,
    takes_model,
    to_path,
)
from respodiff.cli.workers import EngineName, GpusPerWorker, NumShards, RayAddress, ShardIndex, Workers, wanted_engine, wanted_shard
from respodiff.concepts.concept import Attribute, attribute, load_concepts
from respodiff.concepts.intersections import alternatives, factors, is_intersection
from respodiff.data.prompt_files import read_prompt_file
from respodiff.generation.config import LARGEST, GenerateConfig
from respodiff.generation.policies import attribute_of_concept, missing_concepts
from respodiff.methods.registry import NAMES
from respodiff.pipelines.schedulers import check_scheduler
from respodiff.pipelines.source import ModelSource
from respodiff.steering.shipped import check_model
from respodiff.training.config import MOST

if TYPE_CHECKING:
    from respodiff.data.shards import Shard
    from respodiff.experiments.engine import Engine
    from respodiff.experiments.work import Run

Shares = dict[str, dict[str, float]]
"""Attribute -> concept -> target share."""
Loaded = Mapping[str, Sequence[str]]
"""Attribute -> concepts that modules are loaded of."""

SUITE_HELP = (
    "occupations, occupations-unseen, unsafe, scenes, general (embedded model); winobias36, winobias36-successful, winobias36-small; "
    "i2p, i2p-700, coco30k, coco1k (fetched on first use, or from --suite-path)<suites>."
)
SHARES_HELP = "Target proportions, such as woman=0.5,man=0.5 or woman*dark=0.2,... (default: those of --concepts, else equal)"
MODULE_HELP = (
    "Module file, folder or hub id OWNER/NAME[@REVISION][:FILE]; repeat for the alternatives. Or, with the embedded model, a name: gender, "
    "tone, ... :0.6 behind it is its scale."
)
SAFETY_HELP = "Safety module, added to every image: as --module, or, with the embedded model, violence or sexual."
SCALE_HELP = "Factor on the modules; auto:A takes the least at which the concept accuracy on tuning prompts is at least A."
METHOD_HELP = f"Method that the files must be of (default: any): {', '.join(NAMES)}<methods>. With plain modules are ignored."
EXPLICIT_HELP = "Do not steer prompts that state the attribute themselves or have no people."
ASSIGN_HELP = "Share of the steps after which concepts are assigned to noises that favour them; 0 is off. (.25 suits two alternatives)"

Prompts = Annotated[list[str] | None, Option("--prompt", help="A prompt; repeat for several.", metavar="TEXT")]
PromptFile = Annotated[
    Path | None, Option("--prompts", help="CSV, TSV or Parquet with a column prompt; or one prompt a line.", metavar="FILE")
]
SuiteName = Annotated[str, Option("--suite", help=SUITE_HELP, metavar="NAME")]
SuitePath = Annotated[Path | None, Option(help="File of I2P or COCO captions; without it, looked for and fetched.", metavar="FILE")]
UseDatasetSettings = Annotated[bool, Option("--use-dataset-settings", help="Use the data set's seeds, guidance, sizes.")]
TruncatePrompts = Annotated[bool, Option("--truncate-prompts", help="Cut off prompts that are too long for the model.")]
Side = Annotated[int | None, number(1, LARGEST, help="Pixels of an image. (default: the model's)")]
Files = list[Path] | None
Names = list[str] | None


@app.command(epilog='Example: respodiff generate --prompt "a doctor" --module gender --out runs/a')
@takes_model(DRAWING)
def generate(
    model: ModelSource,
    out: Annotated[Path, Option(help="Run folder; images that it already holds are skipped.", metavar="DIR", parser=to_path)] = Path("run"),
    prompt: Prompts = None,
    prompts: PromptFile = None,
    suite: SuiteName = "",
    suite_path: SuitePath = None,
    images: Annotated[int | None, number(1, MOST, help="Images per prompt. (default: the suite's number, else 10)")] = None,
    module: Annotated[Files, Option(help=MODULE_HELP, metavar="FILE|NAME")] = None,
    safety: Annotated[Files, Option(help=SAFETY_HELP, metavar="FILE|NAME")] = None,
    policy: Annotated[str, Option(help="Concept of each image: exact, random or none.", metavar="NAME")] = GenerateConfig.policy,
    target_proportions: Annotated[str, Option(help=SHARES_HELP, metavar="PAIRS")] = "",
    group_proportions: Annotated[Path | None, Option(help="CSV of target proportions: group,alternative,share.", metavar="FILE")] = None,
    concepts: Concepts = None,
    attribute: Annotated[Names, Option(help="Attribute, or intersection, whose concepts must all be loaded.", metavar="NAME")] = None,
    scale: Annotated[str, Option(help=SCALE_HELP, metavar="NUMBER|auto:A")] = str(GenerateConfig.scale),
    tuning_prompts: Annotated[
        Path | None, Option(help="Prompts for --scale auto, as for --prompts. (default embedded's)", metavar="FILE")
    ] = None,
    judge: Annotated[str, Option(help="For --scale auto: clip:DIR-OR-ID, siglip:, hf:, vlm:." + EMBEDDED_ALONE, metavar="NAME")] = "",
    safety_scale: Annotated[float, number(-10, 10, help="Factor on the safety modules.", whole=False)] = GenerateConfig.safety_scale,
    method: Annotated[str, Option(help=METHOD_HELP, metavar="NAME")] = "",
    names: Annotated[Names, Option("--concept", help="Concept, for methods that need no training; repeat.", metavar="NAME")] = None,
    changes: Annotated[Names, Option("--set", help="Setting of a method that needs no training.", metavar="KEY=VALUE")] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    height: Side = None,
    width: Side = None,
    batch: Batch = GenerateConfig.batch,
    use_dataset_settings: UseDatasetSettings = False,
    truncate_prompts: TruncatePrompts = False,
    assign_at: Annotated[float, number(0, 1, help=ASSIGN_HELP, whole=False)] = GenerateConfig.assign_at,
    safety_mode: Annotated[str, Option(help="always, or predicted: to images that need it.", metavar="NAME")] = GenerateConfig.safety_mode,
    skip_explicit_prompts: Annotated[bool, Option("--skip-explicit-prompts", help=EXPLICIT_HELP)] = False,
    num_shards: NumShards = None,
    shard_index: ShardIndex = None,
    workers: Workers = None,
    engine_name: EngineName = "local",
    ray_address: RayAddress = "",
    gpus: GpusPerWorker = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Generate images: each gets a concept by the policy, safety modules on top, noise from (seed, prompt, repeat) alone."""
    from respodiff.data.target_proportions import read_group_proportions
    from respodiff.experiments.work import Run

    shard, device = wanted_shard(num_shards, shard_index, model.device)
    engine, model = wanted_engine(workers, engine_name, ray_address, gpus, device, shard), replace(model, device=device)
    factor, reach = wanted_scale(scale)
    tuning, sources = (tuning_set(tuning_prompts, model.source), judges_of(model.source, [judge] if judge else [])) if reach else ([], [])
    check_model([*(module or ()), *(safety or ())], model.source)
    modules, added = load_entries(method, module or (), safety or (), names or (), concepts, changes or ())
    asked, listed = read_prompts(prompt or (), prompts, suite, suite_path)
    if prompts and not use_dataset_settings and any(getattr(p, own, None) for p in asked for own in ("seed", "guidance", "height")):
        words.print(f"note: {prompts} has seeds, guidance or sizes of its own; --use-dataset-settings uses them")
    there: dict[str, list[str]] = {}
    for m in modules:
        if m.header.kind == "fairness":
            there.setdefault(m.header.attribute or "concept", []).append(m.name)
    shares = wanted_proportions(target_proportions, concepts, attribute or (), there)
    options: dict[str, Any] = {"policy": policy, "target_proportions": shares or None, "scale": factor, "seed": seed, "batch": batch}
    if group_proportions:
        options["group_proportions"] = read_group_proportions(group_proportions, there, [getattr(p, "group", p) for p in asked])
    options |= {"use_dataset_settings": use_dataset_settings, "truncate_prompts": truncate_prompts}
    options |= {"skip_explicit_prompts": skip_explicit_prompts}
    options |= {"assign_at": assign_at, "safety_scale": safety_scale, "safety_mode": safety_mode}
    options |= {"images": images if images is not None else ((listed and listed.images) or GenerateConfig.images)}
    options |= {"steps": steps, "guidance": guidance, "height": height, "width": width}
    config = GenerateConfig(**options)  # settings that make no sense are refused before anything is loaded
    check_scheduler(model.scheduler)
    pipe = open_model(model) if reach or not engine else None
    if reach:
        from respodiff.evaluation import judges
        from respodiff.experiments.choose_scale import choose_scale
        from respodiff.reports.tables import shown

        found = choose_scale(
            pipe, modules, tuning, reach, config, judges.load_judge(sources[0], device), safety=added, library=library(concepts)
        )
        accuracy = f"concept accuracy {shown(found.accuracy)} (n = {found.accuracy.n}), on tuning prompts"
        words.print(f"scale {found.scale:g} reaches {reach:g}: {accuracy}", soft_wrap=True)
        config = replace(config, scale=found.scale)
    run = Run(out, asked, config, modules, added, listed.digest if listed else "")
    pipe = None if engine else pipe  # workers have theirs
    result = _draw(run, pipe, shard, engine, model)
    result |= {"scale": config.scale} if reach else {}
    text = f"{out}: {result['images']} images generated, {result['skipped']} already there, {result['images_per_second']:.2f} a second"
    finish(result, text, as_json)


def read_prompts(prompts: Sequence[str], file: Path | None, suite_name: str, suite_path: Path | None = None) -> tuple[list[Any], Any]:
    """Prompts from --prompt, --prompts and --suite together, and the suite (None without one)."""
    found: list[Any] = list(prompts)
    if file:
        found += read_prompt_file(file)
    suite = None
    if suite_name:
        from respodiff.data.prompt_sets import load_suite

        suite = load_suite(suite_name, path=suite_path)
        found += suite.prompts
    elif suite_path:
        raise ValueError(f"--suite-path is {str(suite_path)!r}, but no --suite says what it is; give --suite i2p, or --prompts FILE")
    if not found:
        raise ValueError("no prompts; give --prompt TEXT, --prompts FILE or --suite NAME")
    return found, suite


def wanted_scale(text: str) -> tuple[float, float]:
    """The scale, and the concept accuracy that one is chosen for: 0 where a number is given, and the usual scale where none is."""
    kind, _, rest = text.partition("auto:")
    try:
        number = float(rest or kind)
    except ValueError:
        number = float("nan")
    if not math.isfinite(number) or (rest and (kind or not 0 < number < 1)):
        raise ValueError(f"--scale is {text!r}; allowed: a number, or auto:A with A between 0 and 1, such as auto:0.95")
    return (GenerateConfig.scale, number) if rest else (number, 0.0)


def tuning_set(file: Path | None, model: str) -> list[Any]:
    """Prompts of --tuning-prompts, or twelve of the embedded model's 49 other occupations (suite ``occupations-unseen``)."""
    from respodiff.data.prompt_sets import suite
    from respodiff.experiments.compare import spaced

    if file:
        return read_prompts((), file, "")[0]
    if model != "embedded":
        raise ValueError(f"--scale auto is given with --model {model!r}, but no prompts to tune on; give --tuning-prompts FILE")
    return spaced(suite("occupations-unseen"), 12)


def _draw(run: Run, pipe: Any, shard: Shard, engine: Engine | None, source: ModelSource) -> dict[str, Any]:
    from respodiff.experiments.work import draw, draw_on

    began, total = time.perf_counter(), len(shard.take(run.prompts)) * run.config.images
    if engine:
        (drawn,) = follow(draw_on(engine, source, [run]), quiet=True)
    else:
        drawn = follow(draw(pipe, run, shard), quiet=True)
    seconds = time.perf_counter() - began
    result = {"run": str(run.out), "images": drawn.images, "skipped": total - drawn.images, "seconds": round(seconds, 2)}
    return result | {"images_per_second": round(drawn.images / seconds, 3), "unet_forwards": drawn.forwards}


def wanted_proportions(text: str, file: Path | None, attributes: Sequence[str], there: Loaded) -> Shares:
    """Target proportions of a run: those of --target-proportions, then those of --concepts; none where they are equal.

    Raises:
        ValueError: a concept of --attribute has no module, or the shares are of other concepts than the modules.
    """
    given, own, steered = parse_proportions(text, there), load_concepts(file) if file else {}, dict(there)
    for name, names in there.items():
        steered |= alternatives(name, names) if is_intersection(name, names) else {}
    chosen = [attribute(name, library(file)) for name in attributes]
    for c in chosen:
        if lacking := missing_concepts(there, c.name, c.names):
            train = f"respodiff train --concept '{lacking[0]}' --out {lacking[0].replace('*', '-')}.safetensors"
            raise ValueError(f"--attribute is {c.name!r}, but no --module has {lacking[0]!r}; train it with: {train}")
        steered.setdefault(c.name, c.names)
    entries = {a: e for a, e in own.items() if a in steered and isinstance(e, Attribute) and e.proportions}
    if file and there and not entries:
        told = f"--concepts {str(file)!r} has no shares for the attributes of the modules; concepts are sampled equally often"
        warnings.warn(told, stacklevel=2)
    for c in (c for c in chosen if len(factors(c.name)) > 2):  # only shares make the counts of such subgroups exact
        entries.setdefault(c.name, replace(c, proportions=c.proportions or (1 / len(c.names),) * len(c.names)))
    for name, entry in entries.items():
        whole = any(name in factors(other) and other != name for other in entries)  # an intersection has the shares
        if whole or any(name in factors(g) or g in factors(name) for g in given):
            continue
        wanted = dict(zip(entry.names, entry.proportions, strict=True))
        above = {c: share for c, share in wanted.items() if share}
        if not set(above) <= set(steered[name]) <= set(wanted):
            raise ValueError(
                f"--concepts: [{name}] has shares for {', '.join(above)}, and the modules are of {', '.join(steered[name])}; "
                "make them the same, or give --target-proportions"
            )
        given = {name: above} | given
    return given


def parse_proportions(text: str, there: Loaded) -> Shares:
    """``woman=0.5,man=0.5`` grouped by attribute; ValueError for a name of no loaded module or a number that is none."""
    out: Shares = {}
    for pair in text.split(",") if text else []:
        name, _, value = (part.strip() for part in pair.partition("="))
        if (group := attribute_of_concept(there, name)) is None:
            known = ", ".join(c for concepts in there.values() for c in concepts)
            raise ValueError(f"--target-proportions names {name!r}, which no --module has; loaded: {known or 'none'}")
        if name in out.get(group, {}):
            raise ValueError(f"--target-proportions names {name!r} twice; give each concept one share")
        try:
            out.setdefault(group, {})[name] = float(value)
        except ValueError as error:
            raise ValueError(f"--target-proportions {pair!r}: {value!r} is not a number; write name=0.5,name=0.5") from error
    if both := [(a, b) for a in out for b in out if a != b and a in factors(b)]:
        raise ValueError("--target-proportions names concepts of {!r} and subgroups of {!r}; give shares of one of them".format(*both[0]))
    return out
