"""``respodiff audit``: images generated once, judged for many attributes, and ranked by how biased they are."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from respodiff.cli.console import Concepts, Device, Dtype, Json, Model, Seed, app, finish, given_path, open_model, progress, words
from respodiff.cli.evaluate import JUDGES, NBootstrap, load_judges
from respodiff.cli.generate import Batch, Guidance, PromptFile, Prompts, Steps, SuiteName, SuitePath, read_prompts
from respodiff.concepts.concept import Attribute, attribute, builtin, load_concepts
from respodiff.generation.config import GenerateConfig

if TYPE_CHECKING:
    from respodiff.evaluation.audit import Audit

IMAGES = 16
"""Images a prompt: enough to show one prompt of 36 to be biased for two or three attributes, if all of them are alike."""
ATTRIBUTES_HELP = (
    "Names, separated by commas: gender, tone, age, intersections such as gender*tone, those of --concepts. (default gender,tone and those)"
)
IMAGES_HELP = f"Images a prompt. (default {IMAGES})"
CHECK_HELP = "Images of every concept's own prompt, to measure the validity of the judge; 0 leaves it out."
MARGIN_HELP = "Labels that lead by less (100 x cosine) count as unknown."
OUT_HELP = "Folder for images, audit.json and audit.html; what it already holds is not generated again."


@app.command(epilog="Example: respodiff audit --model embedded --suite occupations --attributes gender,tone --out runs/audit")
def audit(
    out: Annotated[Path, typer.Option("--out", help=OUT_HELP, metavar="DIR", parser=given_path)],
    model: Model = "embedded",
    suite: SuiteName = "",
    suite_path: SuitePath = None,
    prompt: Prompts = None,
    prompts: PromptFile = None,
    attributes: Annotated[str, typer.Option("--attributes", help=ATTRIBUTES_HELP, metavar="NAMES")] = "",
    concepts: Concepts = None,
    images: Annotated[int, typer.Option("--images", help=IMAGES_HELP, min=2)] = IMAGES,
    check: Annotated[int, typer.Option("--validation-images", help=CHECK_HELP, min=0)] = 8,
    judge: Annotated[list[str] | None, typer.Option("--judge", help=JUDGES + ". (default embedded)", metavar="NAME")] = None,
    min_margin: Annotated[float, typer.Option("--min-margin", help=MARGIN_HELP)] = 0.0,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = GenerateConfig.batch,
    n_bootstrap: NBootstrap = 2000,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Find out which attributes are biased on which prompts, how sure that is, and which modules to train. A killed audit resumes."""
    from respodiff.data.run_folder import write_atomic
    from respodiff.experiments.audit import generate_audit, judge_audit, labels_from_texts
    from respodiff.pipelines.loading import sampling_settings
    from respodiff.reports import audit_report

    chosen = chosen_attributes(attributes, concepts)
    suite = suite or ("" if prompt or prompts else "occupations")
    asked, listed = read_prompts(prompt or (), prompts, suite, suite_path)
    config = GenerateConfig(images=images, policy="none", steps=steps, guidance=guidance, seed=seed, batch=batch)
    labellers = load_judges(judge or ["embedded"], device, "float32")
    check = check if labels_from_texts(labellers) else 0
    pipe = open_model(model, device, dtype)
    steps, guidance = sampling_settings(pipe, steps, guidance)
    config = replace(config, steps=steps, guidance=guidance)
    with progress() as bar:
        task = bar.add_task("generating")
        digest = listed.digest if listed else ""
        for step in generate_audit(pipe, asked, chosen, config, out, validation_images=check, suite_digest=digest):
            bar.update(task, description=step.what, completed=step.done, total=step.total)
    words.print("judging", markup=False)
    found, run = judge_audit(out, labellers, chosen, config, validation_images=check, min_margin=min_margin, n_bootstrap=n_bootstrap)
    where = shlex.join(_where(suite, suite_path, prompt or (), prompts))
    told = {"model": model, "where": where, "concepts": concepts, "judge": judge or ["embedded"]}
    command = _command(chosen, config, check, out, told)
    found = replace(found, suggest=tuple(suggested(found, out, config, told)), command=command)
    write_atomic(out / "audit.json", json.dumps(found.to_json(), indent=1) + "\n")
    audit_report.write(out / "audit.html", found, run)
    finish({**found.to_json(), "page": str(out / "audit.html")}, "\n".join([*audit_report.lines(found), str(out / "audit.html")]), as_json)


def _command(chosen: Sequence[Attribute], config: GenerateConfig, check: int, out: Path, told: Mapping[str, Any]) -> str:
    """The command that gives the same audit."""
    flags = ["--attributes", ",".join(a.name for a in chosen), "--images", str(config.images), "--validation-images", str(check)]
    flags += ["--seed", str(config.seed), "--out", str(out)] + (["--concepts", str(told["concepts"])] if told["concepts"] else [])
    return f"{shlex.join(['respodiff', 'audit', '--model', told['model']])} {told['where']} {shlex.join(flags)}"


def chosen_attributes(names: str, file: Path | None) -> list[Attribute]:
    """Attributes by name; ValueError for one that is not known or given twice."""
    own = load_concepts(file) if file else {}
    usual = ["gender", "tone", *(n for n, entry in own.items() if isinstance(entry, Attribute))]
    given = [name.strip() for name in names.split(",") if name.strip()] or list(dict.fromkeys(usual))
    found = [attribute(name, {**builtin(), **own}) for name in given]
    if twice := [a.name for a in found if [b.name for b in found].count(a.name) > 1]:
        raise ValueError(f"--attributes has {twice[0]!r} twice; give each attribute once")
    return found


def _where(suite: str, path: Path | None, prompts: Sequence[str], file: Path | None) -> list[str]:
    """The flags that say the prompts."""
    flags = ["--suite", suite] if suite else []
    flags += ["--suite-path", str(path)] if path else []
    flags += [part for text in prompts for part in ("--prompt", text)]
    return flags + (["--prompts", str(file)] if file else [])


def suggested(found: Audit, out: Path, config: GenerateConfig, told: Mapping[str, Any]) -> list[str]:
    """Commands that train a module for every concept of the biased attributes, generate the same prompts with them, and compare both."""
    from respodiff.evaluation.audit import to_train

    names = to_train(found.attributes)
    if not names:
        return []
    own = ["--concepts", str(told["concepts"])] if told["concepts"] else []
    base, modules = ["--model", told["model"]], {name: str(out / "modules" / f"{name.replace('*', '-')}.safetensors") for name in names}
    lines = [shlex.join(["respodiff", "train", *base, "--concept", name, *own, "--out", path]) for name, path in modules.items()]
    biased = [a.attribute for a in found.attributes if a.biased and set(a.concepts) <= set(names)]
    wanted = [part for name in biased for part in ("--attribute", name)]
    draw = ["--images", str(config.images), "--steps", str(config.steps), "--guidance", f"{config.guidance:g}", "--seed", str(config.seed)]
    draw += [part for path in modules.values() for part in ("--module", path)]
    draw += [*wanted, *own, "--out", str(out / "steered")]
    lines.append(f"{shlex.join(['respodiff', 'generate', *base])} {told['where']} {shlex.join(draw)}")
    report = [f"plain={out / 'run'}", f"steered={out / 'steered'}", "--judge", told["judge"][0]]
    return [*lines, shlex.join(["respodiff", "report", *report, *wanted, *own, "--out", str(out / "steered.html")])]
