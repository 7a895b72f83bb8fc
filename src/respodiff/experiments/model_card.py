"""Provides the model card of a repository of modules: what they were trained on, how to use them, what was measured, limits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from respodiff._version import __version__
from respodiff.evaluation.evaluate import shipped_confusion
from respodiff.evaluation.judges import NOTICE
from respodiff.evaluation.metrics.estimate import DevRat, Estimate
from respodiff.evaluation.registry import METRICS, Settings
from respodiff.evaluation.scored_run import load_scored_run
from respodiff.evaluation.summary import Summary, summarise
from respodiff.reports.tables import Rows, markdown_table, markdown_text
from respodiff.steering.hub import HubId, check_repo
from respodiff.steering.serialization import Stored

LIBRARY = "respodiff"


@dataclass(frozen=True)
class Figures:
    """What one run measured: its label, prompt sets, number of prompts and sampler settings, and the summary of its scores."""

    run: str
    suites: str
    prompts: int
    steered: bool
    settings: Mapping[str, Any]
    summary: Summary

    def values(self) -> Iterator[tuple[str, str, Estimate]]:
        """Key, heading and value of every metric that has one."""
        for m in METRICS.values():
            for attribute, value in self.summary.metric(m.name).items() if m.value else ():
                if value is not None:
                    yield m.name, m.label(attribute), value


def figures_of(run: str | Path, digests: Mapping[str, str]) -> Figures:
    """The figures of a judged run that was made with these modules, or without any.

    Args:
        digests: file name -> digest of every module that the card is of.

    Raises:
        ValueError: no run, no scores yet, or a run of other modules, whose figures would be taken for those of these.
    """
    scored = load_scored_run(run)
    used = {digest for key in ("modules", "safety") for digest in scored.settings.get(key) or ()}
    used |= {digest for record in scored.records for digest in record.modules}
    if others := sorted(used - set(digests.values())):
        raise ValueError(
            f"--figures {str(run)!r} is a run with module {others[0]}, which is none of {', '.join(digests)}; give a run of these files "
            "(--scale does not change them), or an unsteered one"
        )
    if not used and (method := next((r.method for r in scored.records if r.method not in ("", "plain")), "")):
        raise ValueError(f"--figures {str(run)!r} is a run of method {method!r} without these modules; give one that they steered")
    names = sorted({record.suite for record in scored.records if record.suite})
    summary = summarise(scored, Settings(confusion=shipped_confusion()))
    prompts = len({record.prompt_id for record in scored.records})
    return Figures(scored.label, ", ".join(names) or "own prompts", prompts, bool(used), scored.settings, summary)


def model_card(repo: str, files: Mapping[str, Stored], *, license: str, base_model: str = "", figures: Sequence[Figures] = ()) -> ModelCard:
    """The card of a repository.

    Args:
        files: file name -> content of a module file.
        license: identifier of the hub, such as ``apache-2.0``.
        base_model: hub id of the model that the modules are for; empty for the one that their headers name.
        figures: of steered runs, and of unsteered ones to compare with.

    Raises:
        ValueError: no file, no licence, or a base model beside another one that the headers name.
    """
    if not files:
        raise ValueError("files is empty; give at least one module")
    if not license.strip():
        raise ValueError("--license is empty; give an identifier of the hub, such as apache-2.0, openrail or cc-by-4.0")
    headers = [stored.header for stored in files.values()]
    if base_model:
        check_repo(base_model, "--base-model")
    named = sorted({name for h in headers if HubId.of(name := h.base_model.partition("@")[0]) == HubId(name)})
    if base_model and named and named != [base_model]:
        raise ValueError(f"--base-model is {base_model!r}, and the files were trained on {', '.join(named)}; leave it out")
    bases = [base_model] if base_model else named
    if not bases:
        told = ", ".join(sorted({h.base_model or "no model" for h in headers}))
        warnings.warn(f"the files name {told}, no hub id, so the card has no base_model; --base-model OWNER/NAME adds it", stacklevel=2)
    data = ModelCardData(
        base_model=bases[0] if len(bases) == 1 else bases or None,
        base_model_relation="adapter" if bases else None,
        library_name=LIBRARY,
        license=license.strip(),
        pipeline_tag="text-to-image",
        tags=[LIBRARY, "diffusers", "h-space", *sorted({h.kind for h in headers} | {h.attribute for h in headers if h.attribute})],
        model_name=repo.partition("/")[2],
        eval_results=[result for f in figures if f.steered for result in _results(f)] or None,
    )
    if data.eval_results is None:
        data.pop("model_name")
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{_body(repo, files, bases, license.strip(), figures)}")


def is_card(path: Path) -> bool:
    """Whether a file is a card of a repository of modules. ValueError for one that cannot be read."""
    try:
        return bool(ModelCard.load(path).data.get("library_name") == LIBRARY)
    except Exception as error:  # also of the YAML library that the hub's client uses
        raise ValueError(f"card {str(path)!r} cannot be read") from error


def _results(f: Figures) -> Iterator[EvalResult]:
    for key, title, value in f.values():
        yield EvalResult(
            task_type="text-to-image",
            task_name="Text-to-Image",
            dataset_type=f.suites.replace(", ", "+").replace(" ", "-"),
            dataset_name=f"{f.suites}, {f.prompts} prompts",
            dataset_config=f.run,
            metric_type=key,
            metric_name=title,
            metric_value=round(value.mean, 4),
            metric_args={
                "low": round(value.low, 4),
                "high": round(value.high, 4),
                "n": value.n,
                "judge": f.summary.judge.name,
                "scale": f.settings.get("scale"),
                "safety_scale": f.settings.get("safety_scale"),
            },
        )


def _body(repo: str, files: Mapping[str, Stored], bases: Sequence[str], license: str, figures: Sequence[Figures]) -> str:
    about, settings, trained = Rows(), Rows(), []
    for name, (h, tensors, scale, digest) in files.items():
        about.append({"file": name, "concept": h.concept, "kind": h.kind, "attribute": h.attribute or "-", "target": h.target})
        about[-1] |= {"neutral": h.neutral, "negative": h.negative or "-", "base model": h.base_model or "not recorded"}
        settings.append(
            {"file": name, "method": h.method, "form": h.form or "-", "site": h.site or "-", "timesteps": "{} to {}".format(*h.timesteps)}
        )
        settings[-1] |= {"scale": f"{scale:g}", "numbers": sum(t.size for t in tensors.values()), "digest": str(digest)}
        trained += [f"- {markdown_text(name + ': ' + ', '.join(f'{k} {v}' for k, v in h.train.items()))}"] if h.train else []
    lines = [
        f"# {repo}",
        "",
        f"Adapters that steer a frozen text-to-image model while it generates, made with respodiff {__version__}.",
        *["No weight of the base model is changed or contained."] * all(stored.header.form for stored in files.values()),
        "The table of settings names the method; `respodiff` is that of [arXiv 2509.15257](https://arxiv.org/abs/2509.15257).",
        "",
        "## Prompts trained on",
        "",
        *markdown_table(about),
        "",
        "## Settings",
        "",
        *markdown_table(settings),
        "",
        *trained,
        "",
        "## Use",
        "",
        *_use(repo, files, bases),
        "",
        "## Figures",
        "",
        *_figures(figures),
        "",
        "## Limits and misuse",
        "",
        "- A module can skew as well as balance. Given to every image, or at a negative scale, it makes one group the only one shown.",
        "  Use it to widen who is shown, never to leave a group out, and say that images were steered.",
        "- It acts on every prompt. A prompt that states the attribute itself is steered as well, unless such prompts are left out.",
        "- A larger scale steers more and loses more subjects.",
        "- It was trained for the base model above. On another one it may do something else; measure again.",
        "- A safety module makes unsafe images rarer. It does not rule them out, and it can be left out by whoever runs the model.",
        f"- {NOTICE}",
        "- Attributes are perceived ones. Their alternatives, such as two genders, are those that are counted, not all there are.",
        "",
        f"Licence of the files: {markdown_text(license)}. That of the base model holds besides.",
        "",
    ]
    return "\n".join(lines)


def _use(repo: str, files: Mapping[str, Stored], bases: Sequence[str]) -> list[str]:
    """Ten lines for Python, and one for the shell."""
    (name, first), base = next(iter(files.items())), bases[0] if bases else _plain(next(iter(files.values())).header.base_model) or "MODEL"
    named = f'"{repo}:{name}"' if first.header.form else f'respodiff.load("{repo}:{name}")'
    flag = "--safety" if first.header.kind == "safety" else "--module"
    alike = len({stored.header.kind == "safety" for stored in files.values()}) == 1
    return [
        "```python",
        "import respodiff",
        "",
        f'pipe = respodiff.load_pipeline("{base}")',
        f"with respodiff.steer(pipe, {named}):  # one for all images, or a list with an entry an image",
        '    image = pipe("a doctor").images[0]',
        "",
        "adapters = respodiff.attach(pipe)  # the same for longer than a block, by the verbs of LoRA",
        f"names = adapters.load_weights({named})",
        "adapters.set_adapters(names, adapter_weights=0.8)",
        "```",
        "",
        "```",
        f'respodiff generate --model {base} --prompt "a doctor" {flag} {repo if alike else f"{repo}:{name}"} --out run',
        "```",
    ]


def _plain(text: str) -> str:
    """A name that can stand in code: empty for one with other characters than those of paths."""
    return text if all(c.isalnum() or c in "-_./@" for c in text) else ""


def _figures(figures: Sequence[Figures]) -> list[str]:
    if not any(f.steered for f in figures):
        return ["None were given. Measure before you rely on these files: `respodiff evaluate` and `respodiff report`."]
    rows, notes = Rows(), []
    for f in figures:
        for _, title, value in f.values():
            rows.append({"run": f.run, "steered": "yes" if f.steered else "no", "metric": title, "value": value, "n": value.n})
            rows[-1] |= {"random sampling": value.random if isinstance(value, DevRat) else None, "judge": f.summary.judge.name}
        keys = ("model", "scale", "safety_scale", "policy", "steps", "guidance", "scheduler", "seed")
        how = ", ".join(f"{key} {f.settings[key]}" for key in keys if key in f.settings)
        notes.append(f"- {markdown_text(f'{f.run}: {f.summary.n} images of {f.prompts} prompts ({f.suites}); {how}')}")
        notes += [f"- {markdown_text(f'{f.run}: {problem}')}" for problem in f.summary.problems]
    meaning = [f"{m.title}: {m.about}" for m in METRICS.values() if any(key == m.name for f in figures for key, _, _ in f.values())]
    intro = f"Intervals are 95 %, over prompts; n is the number of images. {'. '.join(meaning)}."
    return [intro, "", *markdown_table(rows), "", *notes]
