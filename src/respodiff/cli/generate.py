"""``respodiff generate``."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from respodiff.cli.console import Device, Dtype, Json, Model, Seed, app, finish, library, open_model, progress, to_path, words
from respodiff.cli.options import METHOD_HELP, load_entries
from respodiff.concepts.concept import Attribute, attribute, load_concepts
from respodiff.concepts.intersections import alternatives, factors, is_intersection
from respodiff.generation.config import GenerateConfig
from respodiff.generation.policies import attribute_of_concept, missing_concepts

Shares = dict[str, dict[str, float]]
"""Attribute -> concept -> target share."""

SUITE_HELP = (
    "occupations, occupations-unseen, unsafe, scenes, general (embedded model); winobias36, winobias36-successful, winobias36-small; "
    "i2p, i2p-700, coco30k, coco1k (fetched on first use, or from --suite-path)."
)
SHARES_HELP = (
    "Target proportions, such as woman=0.5,man=0.5, or of subgroups: woman*dark=0.2,... (default: those of --concepts, else equal)"
)
GROUPS_HELP = "CSV of target proportions by group of prompts: group,alternative,share."
TUNING_HELP = "For --scale auto: text file, one prompt a line. (default: 12 occupations of the embedded model)"
DATASET_HELP = "Use the seed, guidance and size that the data set gives a prompt."
EXPLICIT_HELP = "Do not steer prompts that state the attribute themselves or have no people."
CONCEPTS_HELP = "TOML file of concepts; the proportions of its attributes hold unless --target-proportions says otherwise."
ATTRIBUTE_HELP = "Attribute, or intersection such as gender*tone, of which every concept must be loaded; repeat. (default: what is loaded)"
SCALE_HELP = "Factor on the modules; auto:A takes the least at which the concept accuracy on tuning prompts is at least A."
METHOD = f"Method that the files must be of (default: any): {METHOD_HELP}. With plain modules are ignored."
CONCEPT_HELP = "Concept to steer to with a method that needs no training (prompt, prompt-switch, negative, sld-...); repeat."
ASSIGN_HELP = (
    "Assign concepts to noises that favour them, predicted after this share of the steps; 0 is off. (.25 suits two alternatives, .45 more)"
)
SAFETY_MODE_HELP = "always, or predicted: only to images that are predicted to show what a safety module removes."

Prompts = Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; repeat for several.", metavar="TEXT")]
PromptFile = Annotated[Path | None, typer.Option("--prompts", help="Text file, one prompt a line.", metavar="FILE")]
SuiteName = Annotated[str, typer.Option("--suite", help=SUITE_HELP, metavar="NAME")]
SuitePath = Annotated[Path | None, typer.Option(help="File of I2P or COCO captions; without it, looked for and fetched.", metavar="FILE")]
Steps = Annotated[int | None, typer.Option(help="Sampler steps. (default: the model's, 20 embedded, 50 Stable Diffusion)", min=1)]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale. (default: the model's, 3 embedded, 7.5 Stable Diffusion)")]
Batch = Annotated[int, typer.Option("--batch", help="Images at a time.")]
Files = list[Path] | None
Names = list[str] | None


@app.command(
    epilog='Example: respodiff generate --prompt "a doctor" --images 20 --module woman.safetensors --module man.safetensors --out runs/a'
)
def generate(
    out: Annotated[Path, typer.Option(help="Run folder; images that it already holds are skipped.", metavar="DIR", parser=to_path)],
    model: Model = "embedded",
    prompt: Prompts = None,
    prompts: PromptFile = None,
    suite: SuiteName = "",
    suite_path: SuitePath = None,
    images: Annotated[int | None, typer.Option(help="Images per prompt. (default: the suite's number, else 10)")] = None,
    module: Annotated[Files, typer.Option(help="Module file; repeat for the alternatives.", metavar="FILE")] = None,
    safety: Annotated[Files, typer.Option(help="Safety module, added to every image.", metavar="FILE")] = None,
    policy: Annotated[str, typer.Option(help="Concept of each image: exact, random or none.", metavar="NAME")] = GenerateConfig.policy,
    target_proportions: Annotated[str, typer.Option(help=SHARES_HELP, metavar="PAIRS")] = "",
    group_proportions: Annotated[Path | None, typer.Option(help=GROUPS_HELP, metavar="FILE")] = None,
    concepts: Annotated[Path | None, typer.Option(help=CONCEPTS_HELP, metavar="FILE")] = None,
    attribute: Annotated[Names, typer.Option(help=ATTRIBUTE_HELP, metavar="NAME")] = None,
    scale: Annotated[str, typer.Option(help=SCALE_HELP, metavar="NUMBER|auto:A")] = str(GenerateConfig.scale),
    tuning_prompts: Annotated[Path | None, typer.Option(help=TUNING_HELP, metavar="FILE")] = None,
    judge: Annotated[str, typer.Option(help="For --scale auto: embedded, or clip:DIR-OR-ID.", metavar="NAME")] = "embedded",
    safety_scale: Annotated[float, typer.Option(help="Factor on the safety modules.")] = GenerateConfig.safety_scale,
    method: Annotated[str, typer.Option(help=METHOD, metavar="NAME")] = "",
    names: Annotated[Names, typer.Option("--concept", help=CONCEPT_HELP, metavar="NAME")] = None,
    changes: Annotated[Names, typer.Option("--set", help="Setting of a method that needs no training.", metavar="KEY=VALUE")] = None,
    remove_mean: Annotated[bool, typer.Option("--remove-mean", help="Take from sdisc modules what all alternatives share.")] = False,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = GenerateConfig.batch,
    use_dataset_settings: Annotated[bool, typer.Option("--use-dataset-settings", help=DATASET_HELP)] = False,
    truncate_prompts: Annotated[bool, typer.Option("--truncate-prompts", help="Cut off prompts that are too long for the model.")] = False,
    assign_at: Annotated[float, typer.Option(help=ASSIGN_HELP)] = GenerateConfig.assign_at,
    safety_mode: Annotated[str, typer.Option(help=SAFETY_MODE_HELP, metavar="NAME")] = GenerateConfig.safety_mode,
    skip_explicit_prompts: Annotated[bool, typer.Option("--skip-explicit-prompts", help=EXPLICIT_HELP)] = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Generate images: each gets a concept by the policy, safety modules on top, noise from (seed, prompt, repeat) alone."""
    from respodiff.data.target_proportions import read_group_proportions

    factor, reach = wanted_scale(scale)
    tuning = tuning_set(tuning_prompts, model) if reach else []
    modules, added = load_entries(method, module or (), safety or (), names or (), concepts, changes or ())
    if remove_mean:
        from respodiff.methods.sdisc import without_mean

        modules = without_mean(modules)
    asked, listed = read_prompts(prompt or (), prompts, suite, suite_path)
    there = loaded(modules)
    shares = complete(attribute or (), concepts, there, wanted_proportions(target_proportions, concepts, modules))
    options: dict[str, Any] = {"policy": policy, "target_proportions": shares or None, "scale": factor, "seed": seed, "batch": batch}
    if group_proportions:
        options["group_proportions"] = read_group_proportions(group_proportions, there, [getattr(p, "group", p) for p in asked])
    options |= {"use_dataset_settings": use_dataset_settings, "truncate_prompts": truncate_prompts}
    options |= {"skip_explicit_prompts": skip_explicit_prompts}
    options |= {"assign_at": assign_at, "safety_scale": safety_scale, "safety_mode": safety_mode}
    options |= {"images": images if images is not None else ((listed and listed.images) or GenerateConfig.images)}
    options |= {"steps": steps, "guidance": guidance}
    config = GenerateConfig(**options)  # settings that make no sense are refused before anything is loaded
    pipe = open_model(model, device, dtype)
    tuned: dict[str, float] = {}
    if reach:
        from respodiff.evaluation import judges
        from respodiff.experiments.choose_scale import choose_scale
        from respodiff.reports.tables import shown

        own = load_concepts(concepts) if concepts else None
        found = choose_scale(pipe, modules, tuning, reach, config, judges.load(judge, device), safety=added, library=own)
        accuracy = f"concept accuracy {shown(found.accuracy)} (n = {found.accuracy.n}), on tuning prompts"
        words.print(f"scale {found.scale:g} reaches {reach:g}: {accuracy}", markup=False, soft_wrap=True)
        tuned = {"scale": found.scale}
    result = _draw(out, asked, modules, added, options | tuned, pipe, listed.digest if listed else "") | tuned
    text = f"{out}: {result['images']} images generated, {result['skipped']} already there, {result['images_per_second']:.2f} a second"
    finish(result, text, as_json)


def read_prompts(prompts: Sequence[str], file: Path | None, suite_name: str, suite_path: Path | None = None) -> tuple[list[Any], Any]:
    """Prompts from --prompt, --prompts and --suite together, and the suite (None without one)."""
    found: list[Any] = list(prompts)
    if file:
        try:
            found += [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--prompts: {str(file)!r} cannot be read ({error}); give a text file with one prompt a line") from error
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
    """Prompts of --tuning-prompts, or twelve of the embedded model's occupations that no suite of results holds."""
    from respodiff.data.prompt_sets import suite
    from respodiff.experiments.compare import spaced

    if file:
        return read_prompts((), file, "")[0]
    if model != "embedded":
        raise ValueError(f"--scale auto is given with --model {model!r}, but no prompts to tune on; give --tuning-prompts FILE")
    return spaced(suite("occupations-unseen"), 12)


def _draw(
    out: Path, asked: Sequence[Any], modules: Sequence[Any], added: Sequence[Any], options: dict[str, Any], pipe: Any, suite_digest: str
) -> dict[str, Any]:
    from respodiff.data.run_folder import RunFolder
    from respodiff.generation.generate import counted
    from respodiff.generation.generate import generate as run
    from respodiff.pipelines.registry import backbone

    config = GenerateConfig(**options)
    total = len(asked) * config.images
    images = run(pipe, asked, modules, config, safety=added, out=out, suite_digest=suite_digest)
    held = len(RunFolder(out).done())
    began = time.perf_counter()
    with counted(backbone(pipe)) as forwards, progress() as bar:
        drawn = sum(1 for _ in bar.track(images, max(0, total - held), description="generating"))
    seconds = time.perf_counter() - began
    result = {"run": str(out), "images": drawn, "skipped": total - drawn, "seconds": round(seconds, 2)}
    return result | {"images_per_second": round(drawn / seconds, 3), "unet_forwards": forwards[0]}


# --- target proportions; `there` is attribute -> concepts that modules are loaded of ---


def loaded(modules: Sequence[Any]) -> dict[str, list[str]]:
    """Attribute -> concepts that modules are loaded of."""
    out: dict[str, list[str]] = {}
    for m in modules:
        if m.header.kind == "fairness":
            out.setdefault(m.header.attribute or "concept", []).append(m.name)
    return out


def wanted_proportions(text: str, file: Path | None, modules: Sequence[Any]) -> Shares:
    """Target proportions of a run: those of --target-proportions, then those of --concepts; none where they are equal."""
    there = loaded(modules)
    given, steered = parse_proportions(text, there), dict(there)
    for name, names in there.items():
        steered |= alternatives(name, names) if is_intersection(name, names) else {}
    own = load_concepts(file) if file else {}
    entries = {a: e for a, e in own.items() if a in steered and isinstance(e, Attribute) and e.proportions}
    if file and modules and not entries:
        told = f"--concepts {str(file)!r} has no shares for the attributes of the modules; concepts are sampled equally often"
        warnings.warn(told, stacklevel=2)
    for name, entry in entries.items():
        whole = any(name in factors(other) and other != name for other in entries)  # an intersection of the file has its shares
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


def parse_proportions(text: str, there: Mapping[str, list[str]]) -> Shares:
    """``woman=0.5,man=0.5`` grouped by attribute; ValueError for a name of no loaded module or a number that is none."""
    out: Shares = {}
    for pair in text.split(",") if text else []:
        name, _, value = (part.strip() for part in pair.partition("="))
        group = attribute_of_concept(there, name)
        if group is None:
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


def complete(wanted: Sequence[str], file: Path | None, there: Mapping[str, list[str]], shares: Shares) -> Shares:
    """The shares, checked against --attribute: a module of every concept (of an intersection: of every subgroup) must be loaded.

    Subgroups of two attributes are sampled evenly as they are. For more, or where a file has shares of subgroups, these are added.
    """
    known, out = library(file), dict(shares)
    for chosen in (attribute(name, known) for name in wanted):
        if lacking := missing_concepts(there, chosen.name, chosen.names):
            raise ValueError(
                f"--attribute is {chosen.name!r}, but no --module has {lacking[0]!r}; "
                f"train it with: respodiff train --concept '{lacking[0]}' --out {lacking[0].replace('*', '-')}.safetensors"
            )
        parts = factors(chosen.name)
        own = bool(chosen.proportions) and chosen.name in known
        if len(parts) > 1 and (own or len(parts) > 2) and not any(a in parts for a in out):
            given = chosen.proportions or [1 / len(chosen.names)] * len(chosen.names)
            out.setdefault(chosen.name, dict(zip(chosen.names, given, strict=True)))
    return out
