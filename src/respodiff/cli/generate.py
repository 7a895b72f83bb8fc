"""``respodiff generate``."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from respodiff.cli.console import Device, Dtype, Json, Model, Seed, app, finish, given_path, open_model, progress, shown, words
from respodiff.cli.options import METHOD_HELP, load_entries, without_mean
from respodiff.cli.proportions import even, proportions_by_group, wanted_proportions
from respodiff.generation.config import GenerateConfig

SUITE_HELP = (
    "occupations, occupations-unseen, unsafe, scenes, general (embedded model); winobias36, winobias36-successful, winobias36-small; "
    "i2p, i2p-700, coco30k, coco1k (fetched on first use, or from --suite-path)."
)
IMAGES_HELP = "Images per prompt. (default: what the suite asks for, else 10)"


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


def chosen_filter(automatic: bool, words: str) -> bool | list[str]:
    """The setting ``skip_explicit_prompts`` of --skip-explicit-prompts and --explicit-words; the words decide where both are given."""
    if not words:
        return automatic
    from respodiff.generation.prompt_filter import read_words

    return read_words(words)


OUT_HELP = "Run folder; images that it already holds are skipped."
PATH_HELP = "File of I2P or COCO captions; without it, looked for and fetched."
PROPORTIONS_HELP = (
    "Target proportions, such as woman=0.5,man=0.5, or of subgroups: woman*dark=0.2,... (default: those of --concepts, else equal)"
)
CSV_HELP = "CSV of target proportions by group of prompts: group,alternative,share."
CONCEPTS_HELP = "TOML file of concepts; its attributes' shares are drawn unless --target-proportions says otherwise."

Out = Annotated[Path, typer.Option("--out", help=OUT_HELP, metavar="DIR", parser=given_path)]
Prompts = Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; repeat for several.", metavar="TEXT")]
PromptFile = Annotated[Path | None, typer.Option("--prompts", help="Text file, one prompt a line.", metavar="FILE")]
SuiteName = Annotated[str, typer.Option("--suite", help=SUITE_HELP, metavar="NAME")]
SuitePath = Annotated[Path | None, typer.Option("--suite-path", help=PATH_HELP, metavar="FILE")]
Images = Annotated[int | None, typer.Option("--images", help=IMAGES_HELP)]
Modules = Annotated[list[Path] | None, typer.Option("--module", help="Module file; repeat for the alternatives.", metavar="FILE")]
Safety = Annotated[list[Path] | None, typer.Option("--safety", help="Safety module, added to every image.", metavar="FILE")]
PolicyName = Annotated[str, typer.Option("--policy", help="Concept of each image: exact, random or none.", metavar="NAME")]
Proportions = Annotated[str, typer.Option("--target-proportions", help=PROPORTIONS_HELP, metavar="PAIRS")]
GroupProportions = Annotated[Path | None, typer.Option("--group-proportions", help=CSV_HELP, metavar="FILE")]
EVEN_HELP = "Attribute, or product such as gender*tone, whose concepts or cells must all be drawn; repeat. (default: what is loaded)"
Even = Annotated[list[str] | None, typer.Option("--attribute", help=EVEN_HELP, metavar="NAME")]
ConceptsFile = Annotated[Path | None, typer.Option("--concepts", help=CONCEPTS_HELP, metavar="FILE")]
SCALE_HELP = "Factor on the modules; auto:A takes the least at which the judge sees what was asked for in a share A of tuning images."
Scale = Annotated[str, typer.Option("--scale", help=SCALE_HELP, metavar="NUMBER|auto:A")]
TUNING_HELP = "For --scale auto: text file, one prompt a line. (default: 12 occupations of the embedded model)"
TuningPrompts = Annotated[Path | None, typer.Option("--tuning-prompts", help=TUNING_HELP, metavar="FILE")]
JUDGE_HELP = "For --scale auto: embedded, or clip:DIR-OR-ID."
JudgeName = Annotated[str, typer.Option("--judge", help=JUDGE_HELP, metavar="NAME")]
SafetyScale = Annotated[float, typer.Option("--safety-scale", help="Factor on the safety modules.")]
METHOD = f"What the files must be of (default: of any): {METHOD_HELP}. With plain modules are ignored."
Method = Annotated[str, typer.Option("--method", help=METHOD, metavar="NAME")]
NAMES_HELP = "Concept to draw with a method that needs no training (prompt, prompt-switch, negative, sld-...); repeat."
Names = Annotated[list[str] | None, typer.Option("--concept", help=NAMES_HELP, metavar="NAME")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="Setting of a method that needs no training.", metavar="KEY=VALUE")]
RemoveMean = Annotated[bool, typer.Option("--remove-mean", help="Take from sdisc modules what all alternatives share.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Sampler steps. (default: the model's, 20 embedded, 50 Stable Diffusion)")]
Guidance = Annotated[
    float | None, typer.Option("--guidance", help="Guidance scale. (default: the model's, 3 embedded, 7.5 Stable Diffusion)")
]
Batch = Annotated[int, typer.Option("--batch", help="Images at a time.")]
UseDatasetSettings = Annotated[
    bool, typer.Option("--use-dataset-settings", help="Use the seed, guidance and size that the data set gives a prompt.")
]
TruncatePrompts = Annotated[bool, typer.Option("--truncate-prompts", help="Cut off prompts that are longer than the model reads.")]

ASSIGN_AT_HELP = (
    "Assign concepts to noises that favour them, predicted after this share of the steps; 0 is off. (.25 suits two alternatives, .45 more)"
)
AssignAt = Annotated[float, typer.Option("--assign-at", help=ASSIGN_AT_HELP)]
ALIGNED_SCALE_HELP = "With --assign-at: factor on the scale where the noise favours its concept already. (.1 was measured)"
AlignedScale = Annotated[float, typer.Option("--aligned-scale", help=ALIGNED_SCALE_HELP)]
SAFETY_MODE_HELP = "always, or predicted: only to images that favour what one of the safety modules takes out."
SafetyMode = Annotated[str, typer.Option("--safety-mode", help=SAFETY_MODE_HELP, metavar="NAME")]

SKIP_EXPLICIT_HELP = "Leave prompts alone that state the attribute themselves or have no people."
SkipExplicitPrompts = Annotated[bool, typer.Option("--skip-explicit-prompts", help=SKIP_EXPLICIT_HELP)]
EXPLICIT_WORDS_HELP = "The same, by your words: word,attribute:word, or a file with one a line."
ExplicitWords = Annotated[str, typer.Option("--explicit-words", help=EXPLICIT_WORDS_HELP, metavar="LIST")]


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
    target_proportions: Proportions = "",
    group_proportions: GroupProportions = None,
    concepts: ConceptsFile = None,
    attribute: Even = None,
    scale: Scale = str(GenerateConfig.scale),
    tuning_prompts: TuningPrompts = None,
    judge: JudgeName = "embedded",
    safety_scale: SafetyScale = GenerateConfig.safety_scale,
    method: Method = "",
    names: Names = None,
    changes: Changes = None,
    remove_mean: RemoveMean = False,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = GenerateConfig.batch,
    use_dataset_settings: UseDatasetSettings = GenerateConfig.use_dataset_settings,
    truncate_prompts: TruncatePrompts = GenerateConfig.truncate_prompts,
    assign_at: AssignAt = GenerateConfig.assign_at,
    aligned_scale: AlignedScale = GenerateConfig.aligned_scale,
    safety_mode: SafetyMode = GenerateConfig.safety_mode,
    skip_explicit_prompts: SkipExplicitPrompts = False,
    explicit_words: ExplicitWords = "",
    resume: Annotated[bool, typer.Option("--resume", help="The default: go on with what the folder holds.")] = True,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Generate images: each gets a concept by the policy, safety modules on top, noise from (seed, prompt, repeat) alone."""
    factor, reach = wanted_scale(scale)
    tuning = tuning_set(tuning_prompts, model) if reach else []
    modules, added = load_entries(method, module or (), safety or (), names or (), concepts, changes or ())
    modules = without_mean(modules) if remove_mean else modules
    asked, listed = read_prompts(prompt or (), prompts, suite, suite_path)
    options: dict[str, Any] = {
        "policy": policy,
        "target_proportions": even(attribute or (), concepts, modules, wanted_proportions(target_proportions, concepts, modules)),
        "group_proportions": proportions_by_group(group_proportions, modules, asked),
    }
    options |= {"scale": factor, "safety_scale": safety_scale, "seed": seed, "batch": batch}
    options |= {
        "use_dataset_settings": use_dataset_settings,
        "truncate_prompts": truncate_prompts,
        "skip_explicit_prompts": chosen_filter(skip_explicit_prompts, explicit_words),
    }
    options |= {"assign_at": assign_at, "aligned_scale": aligned_scale, "safety_mode": safety_mode}
    options |= {"steps": steps, "guidance": guidance}
    options["images"] = images if images is not None else ((listed and listed.images) or GenerateConfig.images)
    GenerateConfig(**options)  # settings that make no sense are refused before anything is loaded
    pipe = open_model(model, device, dtype)
    tuned = _tuned(pipe, modules, added, tuning, reach, options, judge, device, concepts) if reach else {}
    result = _draw(out, asked, modules, added, options | tuned, pipe, listed.digest if listed else "") | tuned
    text = f"{out}: {result['images']} images generated, {result['skipped']} already there, {result['images_per_second']:.2f} a second"
    finish(result, text, as_json)


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


def _tuned(
    pipe: Any,
    modules: Sequence[Any],
    added: Sequence[Any],
    prompts: Sequence[Any],
    reach: float,
    options: dict[str, Any],
    judge: str,
    device: str,
    concepts: Path | None,
) -> dict[str, float]:
    """The scale that `choose_scale` takes, as a setting; says what it shows."""
    from respodiff.concepts.concept import load_concepts
    from respodiff.evaluation import judges
    from respodiff.experiments.choose_scale import choose_scale

    library = load_concepts(concepts) if concepts else None
    found = choose_scale(
        pipe, modules, prompts, reach, GenerateConfig(**options), judges.load(judge, device), safety=added, library=library
    )
    text = f"scale {found.scale:g} reaches {reach:g}: concept accuracy {shown(dict(found.accuracy))} (n = {found.accuracy['n']:g})"
    words.print(f"{text}, on tuning prompts", markup=False, soft_wrap=True)
    return {"scale": found.scale}


def _draw(
    out: Path,
    asked: Sequence[Any],
    modules: Sequence[Any],
    added: Sequence[Any],
    options: dict[str, Any],
    pipe: Any,
    suite_digest: str,
) -> dict[str, Any]:
    from respodiff.data.run_folder import RunFolder
    from respodiff.generation.generate import counted
    from respodiff.generation.generate import generate as run
    from respodiff.pipelines.registry import backbone

    config = GenerateConfig(**options)
    total = len(asked) * config.images
    images = run(pipe, asked, modules, config, safety=added, out=out, suite_digest=suite_digest)
    held = len(RunFolder(out).done())
    began, drawn = time.perf_counter(), 0
    with counted(backbone(pipe)) as forwards, progress() as bar:
        task = bar.add_task("drawing", total=max(0, total - held))
        for _ in images:
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
