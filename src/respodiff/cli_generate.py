"""``respodiff generate``."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from respodiff.cli_methods import METHOD_HELP, load_entries, without_mean
from respodiff.concepts import Attribute, load_concepts
from respodiff.config import GenerateConfig
from respodiff.console import Device, Dtype, Json, Model, Seed, app, finish, given_path, open_model, progress

SUITE_HELP = (
    "occupations, occupations-unseen, unsafe, scenes, general (embedded model); winobias36, winobias36-successful, winobias36-small; "
    "i2p, i2p-700, coco30k, coco1k (fetched on first use, or from --suite-path)."
)
IMAGES_HELP = "Pictures per prompt. (default: what the suite asks for, else 10)"


def default_shares(file: Path | None, modules: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Attribute -> concept -> share from a file of concepts, for the attributes that modules are loaded of."""
    out: dict[str, dict[str, float]] = {}
    groups = {m.header.attribute for m in modules if m.header.kind == "fairness"}
    for name, entry in (load_concepts(file) if file else {}).items():
        if name in groups and isinstance(entry, Attribute) and entry.shares:
            out[name] = dict(zip(entry.names, entry.shares, strict=True))
    return out


def check_default_shares(shares: dict[str, dict[str, float]], modules: Sequence[Any]) -> dict[str, dict[str, float]]:
    """The shares without concepts of share 0 that are not loaded; ValueError where modules and shares are not of the same concepts."""
    for attribute, wanted in shares.items():
        loaded = [m.name for m in modules if m.header.attribute == attribute and m.header.kind == "fairness"]
        if absent := [c for c, s in wanted.items() if s and c not in loaded]:
            raise ValueError(f"--concepts: [{attribute}] has a share for {absent[0]!r}, which no --module has; load it, or give --shares")
        if extra := [c for c in loaded if c not in wanted]:
            raise ValueError(f"--concepts: [{attribute}] has no share for {extra[0]!r}, which a --module has; add it, or give --shares")
    return {a: {c: s for c, s in wanted.items() if s} for a, wanted in shares.items()}


def wanted_shares(text: str, file: Path | None, modules: Sequence[Any]) -> dict[str, dict[str, float]] | None:
    """Target shares of a run: those of --shares, then those of --concepts; None for equal ones."""
    given = parse_shares(text, modules) or {}
    found = default_shares(file, modules)
    if file and modules and not found:
        warnings.warn(
            f"--concepts {str(file)!r} has no shares for the attributes of the modules; concepts are drawn equally often", stacklevel=2
        )
    defaults = {a: s for a, s in found.items() if a not in given}
    return {**check_default_shares(defaults, modules), **given} or None


def parse_shares(text: str, modules: Sequence[Any]) -> dict[str, dict[str, float]] | None:
    """``woman=0.5,man=0.5`` grouped by attribute; ValueError for a name of no loaded module or a number that is none."""
    if not text:
        return None
    out: dict[str, dict[str, float]] = {}
    attributes = {m.name: m.header.attribute or "concept" for m in modules if m.header.kind != "attribute"}
    for pair in text.split(","):
        name, _, value = (part.strip() for part in pair.partition("="))
        if name not in attributes:
            raise ValueError(f"--shares names {name!r}, which no --module has; loaded: {', '.join(attributes) or 'none'}")
        if name in out.get(attributes[name], {}):
            raise ValueError(f"--shares names {name!r} twice; give each concept one share")
        try:
            out.setdefault(attributes[name], {})[name] = float(value)
        except ValueError as error:
            raise ValueError(f"--shares {pair!r}: {value!r} is not a number; write name=0.5,name=0.5") from error
    return out


def shares_by_group(file: Path | None, modules: Sequence[Any], asked: Sequence[Any]) -> Any:
    """Target shares of groups of prompts from --shares-csv; None without one."""
    if file is None:
        return None
    from respodiff.suites.shares import read_group_shares

    attributes: dict[str, list[str]] = {}
    for m in modules:
        if m.header.kind == "fairness":
            attributes.setdefault(m.header.attribute or "concept", []).append(m.name)
    return read_group_shares(file, attributes, [getattr(p, "group", p) for p in asked])


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
        from respodiff.suites import load_suite

        suite = load_suite(suite_name, path=suite_path)
        found += suite.prompts
    elif suite_path:
        raise ValueError(f"--suite-path is {str(suite_path)!r}, but no --suite says what it is; give --suite i2p, or --prompts FILE")
    if not found:
        raise ValueError("no prompts; give --prompt TEXT, --prompts FILE or --suite NAME")
    return found, suite


def chosen_gate(automatic: bool, words: str) -> str | list[str]:
    """The setting ``gate`` of --gate and --gate-words; the words decide where both are given."""
    if not words:
        return "auto" if automatic else "off"
    from respodiff.gate import read_words

    return read_words(words)


OUT_HELP = "Run folder; pictures that it already holds are skipped."
PATH_HELP = "File of I2P or COCO captions; without it, looked for and fetched."
SHARES_HELP = "Target shares, such as woman=0.5,man=0.5. (default: those of --concepts, else equal)"
CSV_HELP = "CSV of target shares by group of prompts: group,alternative,share."
CONCEPTS_HELP = "TOML file of concepts; its attributes' shares are drawn unless --shares says otherwise."

Out = Annotated[Path, typer.Option("--out", help=OUT_HELP, metavar="DIR", parser=given_path)]
Prompts = Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; repeat for several.", metavar="TEXT")]
PromptFile = Annotated[Path | None, typer.Option("--prompts", help="Text file, one prompt a line.", metavar="FILE")]
SuiteName = Annotated[str, typer.Option("--suite", help=SUITE_HELP, metavar="NAME")]
SuitePath = Annotated[Path | None, typer.Option("--suite-path", help=PATH_HELP, metavar="FILE")]
Images = Annotated[int | None, typer.Option("--images", help=IMAGES_HELP)]
Modules = Annotated[list[Path] | None, typer.Option("--module", help="Module file; repeat for the alternatives.", metavar="FILE")]
Safety = Annotated[list[Path] | None, typer.Option("--safety", help="Safety module, added to every picture.", metavar="FILE")]
PolicyName = Annotated[str, typer.Option("--policy", help="Concept of each picture: exact, random or none.", metavar="NAME")]
Shares = Annotated[str, typer.Option("--shares", help=SHARES_HELP, metavar="PAIRS")]
SharesTable = Annotated[Path | None, typer.Option("--shares-csv", help=CSV_HELP, metavar="FILE")]
SharesFile = Annotated[Path | None, typer.Option("--concepts", help=CONCEPTS_HELP, metavar="FILE")]
Strength = Annotated[float, typer.Option("--strength", help="Factor on the modules.")]
SafetyStrength = Annotated[float, typer.Option("--safety-strength", help="Factor on the safety modules.")]
METHOD = f"What the files must be of (default: of any): {METHOD_HELP}. With plain modules are ignored."
Method = Annotated[str, typer.Option("--method", help=METHOD, metavar="NAME")]
NAMES_HELP = "Concept to draw with a method that needs no training (prompt, prompt-switch, negative, sld-...); repeat."
Names = Annotated[list[str] | None, typer.Option("--concept", help=NAMES_HELP, metavar="NAME")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="Setting of a method that needs no training.", metavar="KEY=VALUE")]
RemoveMean = Annotated[bool, typer.Option("--remove-mean", help="Take from sdisc modules what all alternatives share.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Sampler steps. (default 20 embedded, 50 others)")]
Guidance = Annotated[float | None, typer.Option("--guidance", help="Guidance scale. (default 3 embedded, 7.5 others)")]
Batch = Annotated[int, typer.Option("--batch", help="Pictures at a time.")]
OwnSettings = Annotated[bool, typer.Option("--own-settings", help="Use the seed, guidance and size that the data set gives a prompt.")]
LongPrompts = Annotated[str, typer.Option("--long-prompts", help="refuse, or cut: of prompts longer than the model reads.", metavar="NAME")]

GATE_HELP = "Leave prompts alone that state the attribute themselves or have no people."
GateFlag = Annotated[bool, typer.Option("--gate", help=GATE_HELP)]
GATE_WORDS_HELP = "The same, by your words: word,attribute:word, or a file with one a line."
GateWords = Annotated[str, typer.Option("--gate-words", help=GATE_WORDS_HELP, metavar="LIST")]


@app.command(
    epilog='Example: respodiff generate --prompt "a doctor" --images 20 --module woman.safetensors --module man.safetensors --out runs/a'
)
def generate(
    out: Out,
    model: Model = "embedded",
    prompt: Prompts = None,
    prompts: PromptFile = None,
    suite: SuiteName = "",
    suite_path: SuitePath = None,
    images: Images = None,
    module: Modules = None,
    safety: Safety = None,
    policy: PolicyName = GenerateConfig.policy,
    shares: Shares = "",
    shares_csv: SharesTable = None,
    concepts: SharesFile = None,
    strength: Strength = GenerateConfig.strength,
    safety_strength: SafetyStrength = GenerateConfig.safety_strength,
    method: Method = "",
    names: Names = None,
    changes: Changes = None,
    remove_mean: RemoveMean = False,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = GenerateConfig.batch,
    own_settings: OwnSettings = GenerateConfig.own_settings,
    long_prompts: LongPrompts = GenerateConfig.long_prompts,
    gate: GateFlag = False,
    gate_words: GateWords = "",
    resume: Annotated[bool, typer.Option("--resume", help="The default: go on with what the folder holds.")] = True,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Draw pictures: each gets a concept by the policy, safety modules on top, noise from (seed, prompt, repeat) alone."""
    modules, added = load_entries(method, module or (), safety or (), names or (), concepts, changes or ())
    modules = without_mean(modules) if remove_mean else modules
    asked, listed = read_prompts(prompt or (), prompts, suite, suite_path)
    options: dict[str, Any] = {"policy": policy, "shares": wanted_shares(shares, concepts, modules)}
    options |= {"group_shares": shares_by_group(shares_csv, modules, asked)}
    options |= {"strength": strength, "safety_strength": safety_strength, "seed": seed, "batch": batch}
    options |= {"own_settings": own_settings, "long_prompts": long_prompts, "gate": chosen_gate(gate, gate_words)}
    options |= by_model(model == "embedded", steps, guidance)
    options["images"] = images if images is not None else ((listed and listed.images) or GenerateConfig.images)
    result = _draw(out, asked, modules, added, options, (model, device, dtype), listed.digest if listed else "")
    text = f"{out}: {result['images']} pictures drawn, {result['skipped']} already there, {result['images_per_second']:.2f} a second"
    finish(result, text, as_json)


def by_model(embedded: bool, steps: int | None, guidance: float | None) -> dict[str, Any]:
    """Steps and guidance as given, else what suits the embedded model or Stable Diffusion."""
    usual = (GenerateConfig.steps, GenerateConfig.guidance) if embedded else (50, 7.5)
    return {"steps": usual[0] if steps is None else steps, "guidance": usual[1] if guidance is None else guidance}


def _draw(
    out: Path,
    asked: Sequence[Any],
    modules: Sequence[Any],
    added: Sequence[Any],
    options: dict[str, Any],
    model: tuple[str, str, str],
    suite_digest: str,
) -> dict[str, Any]:
    from respodiff.adapters import backbone
    from respodiff.generation import counted
    from respodiff.generation import generate as run
    from respodiff.records import RunFolder

    config = GenerateConfig(**options)
    pipe = open_model(*model)
    total = len(asked) * config.images
    pictures = run(pipe, asked, modules, config, safety=added, out=out, suite_digest=suite_digest)
    held = len(RunFolder(out).done())
    began, drawn = time.perf_counter(), 0
    with counted(backbone(pipe)) as forwards, progress() as bar:
        task = bar.add_task("drawing", total=max(0, total - held))
        for _ in pictures:
            drawn += 1
            bar.advance(task)
    seconds = time.perf_counter() - began
    return {
        "run": str(out),
        "images": drawn,
        "skipped": total - drawn,
        "seconds": round(seconds, 2),
        "images_per_second": round(drawn / seconds, 3),
        "unet_forwards": forwards[0],
    }
