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
from respodiff.cli.generate import Batch, Guidance, PromptFile, Prompts, Steps, SuiteName, SuitePath, by_model, read_prompts
from respodiff.concepts.concept import Attribute, attribute, builtin, load_concepts
from respodiff.generation.config import GenerateConfig

if TYPE_CHECKING:
    from respodiff.evaluation.audit import Audit
    from respodiff.evaluation.judges import Judge

IMAGES = 16
"""Images a prompt: enough to show one prompt of 36 to be biased for two or three attributes, if all of them are alike."""
ATTRIBUTES_HELP = "Names with commas: gender, tone, age, products such as gender*tone, those of --concepts. (default gender,tone and those)"
IMAGES_HELP = f"Images a prompt. (default {IMAGES})"
CHECK_HELP = "Pictures of every concept's own prompt, to see whether the judge can tell them apart; 0 leaves it out."
MARGIN_HELP = "Labels that lead by less (100 x cosine) count as unknown."
OUT_HELP = "Folder for images, audit.json and audit.html; what it already holds is not drawn again."


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
    """Find out which attributes are biased on which prompts, how sure that is, and which modules to train. A killed audit goes on."""
    from respodiff.evaluation.audit import stated_prompts

    chosen = chosen_attributes(attributes, concepts)
    suite = suite or ("" if prompt or prompts else "occupations")
    asked, listed = read_prompts(prompt or (), prompts, suite, suite_path)
    config = GenerateConfig(images=images, policy="none", seed=seed, batch=batch, **by_model(model == "embedded", steps, guidance))
    labellers = load_judges(judge or ["embedded"], device, "float32")
    by_texts = _reads_texts(labellers)
    pipe = open_model(model, device, dtype)
    where = shlex.join(_where(suite, suite_path, prompt or (), prompts))
    told = {"model": model, "where": where, "concepts": concepts, "judge": judge or ["embedded"]}
    if check := check if by_texts else 0:
        _draw(pipe, stated_prompts(chosen), replace(config, images=check), out / "stated", "")
    _draw(pipe, asked, config, out / "run", listed.digest if listed else "")
    found = _measured(
        out, labellers, chosen, config, {"validation_images": check, "min_margin": min_margin, "n_bootstrap": n_bootstrap}, told
    )
    from respodiff.reports.audit_report import lines

    finish({**found.to_json(), "page": str(out / "audit.html")}, "\n".join([*lines(found), str(out / "audit.html")]), as_json)


def chosen_attributes(names: str, file: Path | None) -> list[Attribute]:
    """Attributes by name; ValueError for one that is not known or given twice."""
    own = load_concepts(file) if file else {}
    usual = ["gender", "tone", *(n for n, entry in own.items() if isinstance(entry, Attribute))]
    given = [name.strip() for name in names.split(",") if name.strip()] or list(dict.fromkeys(usual))
    found = [attribute(name, {**builtin(), **own}) for name in given]
    if twice := [a.name for a in found if [b.name for b in found].count(a.name) > 1]:
        raise ValueError(f"--attributes has {twice[0]!r} twice; give each attribute once")
    return found


def _reads_texts(labellers: Sequence[Judge]) -> bool:
    """Whether labels come from a judge that chooses between texts, not from a table; ValueError if no judge gives any."""
    for labeller in labellers:
        if labeller.kind in ("texts", "table"):
            return labeller.kind == "texts"
    raise ValueError(
        f"--judge is {', '.join(e.name for e in labellers)}, which tells no attributes; give embedded, clip:DIR-OR-ID or table:FILE"
    )


def _draw(pipe: Any, asked: Sequence[Any], config: GenerateConfig, folder: Path, digest: str) -> None:
    """Draw what is missing, with a bar."""
    from respodiff.data.run_folder import RunFolder
    from respodiff.generation.generate import generate

    images = generate(pipe, asked, (), config, out=folder, suite_digest=digest)
    left = len(asked) * config.images - len(RunFolder(folder).done())
    with progress() as bar:
        task = bar.add_task(f"drawing {folder.name}", total=max(0, left))
        for _ in images:
            bar.advance(task)


def _measured(
    out: Path,
    labellers: Sequence[Any],
    chosen: Sequence[Attribute],
    config: GenerateConfig,
    how: Mapping[str, Any],
    told: Mapping[str, Any],
) -> Audit:
    """Judge everything, and write audit.json and audit.html."""
    from respodiff.data.run_folder import write_atomic
    from respodiff.evaluation.audit import audit as ranked
    from respodiff.evaluation.evaluate import judge_all, shipped_confusion
    from respodiff.evaluation.registry import Settings
    from respodiff.reports import audit_report

    words.print("judging", markup=False)
    stated = judge_all(out / "stated", labellers, chosen, min_margin=how["min_margin"]) if how["validation_images"] else None
    run = judge_all(out / "run", labellers, chosen, min_margin=how["min_margin"])
    settings = Settings(n_bootstrap=how["n_bootstrap"], seed=config.seed, confusion=shipped_confusion())
    found = ranked(run, stated, chosen, settings)
    problems = list(found.problems)
    if few := [a.attribute for a in found.attributes if a.judge_validity and not a.judge_validity.enough]:
        problems.append(
            f"{how['validation_images']} images of every concept's own prompt are too few to show that the judge recognises {', '.join(few)}, "
            "however they come out: give more with --validation-images"
        )
    if short := [a for a in found.attributes if config.images < a.images_required]:
        of = "" if len(short) == len(found.attributes) else f" for {', '.join(a.attribute for a in short)}"
        needed = max(a.images_required for a in short)
        problems.append(
            f"{config.images} images a prompt are too few to show any single prompt to be biased{of} ({len(found.ranking)} questions are "
            f"asked), however they come out: that takes {needed} (--images {needed})"
        )
    more = [
        "--attributes",
        ",".join(a.name for a in chosen),
        "--images",
        str(config.images),
        "--validation-images",
        str(how["validation_images"]),
    ]
    more += ["--seed", str(config.seed), "--out", str(out)] + (["--concepts", str(told["concepts"])] if told["concepts"] else [])
    command = f"{shlex.join(['respodiff', 'audit', '--model', told['model']])} {told['where']} {shlex.join(more)}"
    suggest = tuple(suggested(found, out, config, told))
    found = replace(found, problems=tuple(problems), suggest=suggest, command=command)
    write_atomic(out / "audit.json", json.dumps(found.to_json(), indent=1) + "\n")
    audit_report.write(out / "audit.html", found, run)
    return found


def _where(suite: str, path: Path | None, prompts: Sequence[str], file: Path | None) -> list[str]:
    """The flags that say the prompts."""
    flags = ["--suite", suite] if suite else []
    flags += ["--suite-path", str(path)] if path else []
    flags += [part for text in prompts for part in ("--prompt", text)]
    return flags + (["--prompts", str(file)] if file else [])


def suggested(found: Audit, out: Path, config: GenerateConfig, told: Mapping[str, Any]) -> list[str]:
    """Commands that train a module for every concept of the biased attributes, draw the same with them, and set both side by side."""
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
