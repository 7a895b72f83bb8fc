"""``respodiff audit``: images generated once, judged for many attributes, and ranked by how biased they are."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from respodiff.cli.console import Concepts, Device, Dtype, Json, Model, Seed, app, finish, follow, library, open_model, to_path, words
from respodiff.cli.evaluate import JUDGES, MinMargin, NBootstrap, load_judges
from respodiff.cli.generate import Batch, Guidance, PromptFile, Prompts, Steps, SuiteName, SuitePath, read_prompts
from respodiff.concepts.concept import Attribute, attribute, load_concepts
from respodiff.generation.config import GenerateConfig

if TYPE_CHECKING:
    from respodiff.evaluation.audit import Audit

IMAGES = 16
"""Images a prompt: enough to show one prompt of 36 to be biased for two or three attributes, if all of them are alike."""
ATTRIBUTES_HELP = (
    "Names, separated by commas: gender, tone, age, intersections such as gender*tone, those of --concepts. (default gender,tone and those)"
)
CHECK_HELP = "Images of every concept's own prompt, to measure the validity of the judge; 0 leaves it out."
OUT_HELP = "Folder for images, audit.json and audit.html; what it already holds is not generated again."


@app.command(epilog="Example: respodiff audit --model embedded --suite occupations --attributes gender,tone --out runs/audit")
def audit(
    out: Annotated[Path, typer.Option("--out", help=OUT_HELP, metavar="DIR", parser=to_path)],
    model: Model = "embedded",
    suite: SuiteName = "",
    suite_path: SuitePath = None,
    prompt: Prompts = None,
    prompts: PromptFile = None,
    attributes: Annotated[str, typer.Option("--attributes", help=ATTRIBUTES_HELP, metavar="NAMES")] = "",
    concepts: Concepts = None,
    images: Annotated[int, typer.Option(help="Images a prompt.", min=2)] = IMAGES,
    check: Annotated[int, typer.Option("--validation-images", help=CHECK_HELP, min=0)] = 8,
    judge: Annotated[list[str] | None, typer.Option("--judge", help=JUDGES + ". (default embedded)", metavar="NAME")] = None,
    min_margin: MinMargin = 0.0,
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
    suite, judge = suite or ("" if prompt or prompts else "occupations"), judge or ["embedded"]
    asked, listed = read_prompts(prompt or (), prompts, suite, suite_path)
    config = GenerateConfig(images=images, policy="none", steps=steps, guidance=guidance, seed=seed, batch=batch)
    labellers = load_judges(judge, device, "float32")
    check = check if labels_from_texts(labellers) else 0
    pipe = open_model(model, device, dtype)
    steps, guidance = sampling_settings(pipe, steps, guidance)
    config = replace(config, steps=steps, guidance=guidance)
    digest = listed.digest if listed else ""
    follow(generate_audit(pipe, asked, chosen, config, out, validation_images=check, suite_digest=digest))
    words.print("judging", markup=False)
    found, run = judge_audit(out, labellers, chosen, config, validation_images=check, min_margin=min_margin, n_bootstrap=n_bootstrap)
    where = {"suite": suite, "suite_path": suite_path, "prompt": prompt, "prompts": prompts}
    suggest = suggested(found, out, config, where, model=model, concepts=concepts, judge=judge[0])
    found = replace(found, suggest=tuple(suggest), command=shlex.join(["respodiff", *sys.argv[1:]]))
    write_atomic(out / "audit.json", json.dumps(found.to_json(), indent=1) + "\n")
    audit_report.write(out / "audit.html", found, run)
    finish({**found.to_json(), "page": str(out / "audit.html")}, "\n".join([*audit_report.lines(found), str(out / "audit.html")]), as_json)


def chosen_attributes(names: str, file: Path | None) -> list[Attribute]:
    """Attributes by name; ValueError for one that is not known or given twice."""
    own = [n for n, entry in (load_concepts(file) if file else {}).items() if isinstance(entry, Attribute)]
    given = [name.strip() for name in names.split(",") if name.strip()] or list(dict.fromkeys(["gender", "tone", *own]))
    found = [attribute(name, library(file)) for name in given]
    if twice := [a.name for a in found if [b.name for b in found].count(a.name) > 1]:
        raise ValueError(f"--attributes has {twice[0]!r} twice; give each attribute once")
    return found


def suggested(
    found: Audit, out: Path, config: GenerateConfig, where: Mapping[str, Any], *, model: str, concepts: Path | None, judge: str
) -> list[str]:
    """Commands that train a module for every concept of the biased attributes, generate the same prompts with them, and compare both."""
    from respodiff.evaluation.audit import to_train

    names = to_train(found.attributes)
    if not names:
        return []
    modules = {name: out / "modules" / f"{name.replace('*', '-')}.safetensors" for name in names}
    wanted = {"attribute": [a.attribute for a in found.attributes if a.biased and set(a.concepts) <= set(names)], "concepts": concepts}
    draw = {"images": config.images, "steps": config.steps, "guidance": f"{config.guidance:g}", "seed": config.seed}
    return [
        *(_command("train", model=model, concept=name, concepts=concepts, out=path) for name, path in modules.items()),
        _command("generate", model=model, **where, **draw, module=list(modules.values()), **wanted, out=out / "steered"),
        _command("report", f"plain={out / 'run'}", f"steered={out / 'steered'}", judge=judge, **wanted, out=out / "steered.html"),
    ]


def _command(*arguments: str, **flags: Any) -> str:
    """A command line; a flag is repeated for each value of a list, and left out where there is none."""
    given = [(f"--{key.replace('_', '-')}", v) for key, values in flags.items() for v in (values if isinstance(values, list) else [values])]
    return shlex.join(["respodiff", *arguments, *(part for flag, v in given if v not in (None, "") for part in (flag, str(v)))])
