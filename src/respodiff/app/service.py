"""Provides what all visitors of the page share: one model with fair turns, the judge, the modules, and the folder that keeps results."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

from respodiff._device import chosen_device
from respodiff.concepts.concept import Attribute, Concept, builtin
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation import judges
from respodiff.methods.registry import load_all
from respodiff.pipelines.registry import backbone
from respodiff.pipelines.source import ModelSource
from respodiff.steering.serialization import Header, read_header
from respodiff.steering.shipped import files_of, shipped, shipped_attributes, with_factor

T = TypeVar("T")
RUNS, MODULES, PAGES, ZIPS = "runs", "modules", "pages", "zips"
"""Folders of results."""


class Stop(threading.Event):
    """Is set when a piece of work is to stop. ``left``: because its visitor is gone."""

    left = False


class Turns:
    """A lock that threads get in the order in which they asked for it."""

    def __init__(self) -> None:
        self._changed, self._tickets, self._now = threading.Condition(), count(), 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While the block runs, all others wait."""
        with self._changed:
            own = next(self._tickets)
            self._changed.wait_for(lambda: self._now == own)
        try:
            yield
        finally:
            with self._changed:
                self._now += 1
                self._changed.notify_all()


@dataclass(frozen=True)
class Choice:
    """Modules that are chosen between for an image.

    Attributes:
        name: as the page calls it. sources: names or files, as `respodiff.methods.registry.load_all` takes them.
        attribute: what a judge is asked; of a module alone, whether the image shows its target or its neutral prompt.
        concepts: those that images are steered to; none where one adapter acts on all images alike.
    """

    name: str
    sources: tuple[str, ...]
    attribute: Attribute
    concepts: tuple[str, ...]

    def load(self) -> list[Any]:
        """The adapters."""
        return [adapter for source in self.sources for adapter in load_all(source)]


@dataclass
class Service:
    """The model, the judge and the results of a running page.

    Attributes:
        judge: a source, or empty; it is loaded if ``labeller`` is not given.
        out: folder of all results. given: names and files of modules beside those that are shipped or trained here.
        batch: images of a turn. local: whether only this machine reaches the page; if not, only folders in ``out`` are opened.
    """

    pipe: Any
    source: ModelSource
    judge: str
    out: Path
    given: tuple[Path, ...] = ()
    batch: int = 4
    local: bool = True
    labeller: Any = None
    turns: Turns = field(default_factory=Turns)
    _work: dict[tuple[str, str], Stop] = field(default_factory=dict)
    _pages: dict[str, Path] = field(default_factory=dict)
    _one: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.out = self.out.resolve()
        if self.judge and self.labeller is None:
            self.labeller = judges.load_judge(self.judge, chosen_device(self.source.device))
        backbone(self.pipe).requires_grad_(False)  # two trainings at once would else leave it as the other one found it

    # --- work, in turns ---

    @contextmanager
    def work(self, visitor: str, kind: str) -> Iterator[Stop]:
        """A piece of work of a visitor; the event is set when it is to stop. What the visitor had of this kind is stopped."""
        self.stop(visitor, kind)
        stop = self._work[visitor, kind] = Stop()
        try:
            yield stop
        finally:
            if self._work.get((visitor, kind)) is stop:
                del self._work[visitor, kind]

    def stop(self, visitor: str, kind: str) -> None:
        """Stop a visitor's work of a kind."""
        if stop := self._work.get((visitor, kind)):
            stop.set()

    def leave(self, visitor: str) -> None:
        """Stop all work of a visitor who is gone."""
        for (who, _), stop in list(self._work.items()):
            if who == visitor:
                stop.left = True
                stop.set()

    @property
    def working(self) -> int:
        """Pieces of work that go on."""
        return len(self._work)

    def by_turns(self, steps: Generator[T, None, Any], stop: threading.Event) -> Generator[T, None, Any]:
        """The steps, each in a turn of its own, and what their generator returns (None if it was stopped)."""
        try:
            while True:
                with self.turns.turn():
                    if stop.is_set():
                        return None
                    try:
                        step = next(steps)
                    except StopIteration as end:
                        return end.value
                yield step
        finally:
            steps.close()  # between two steps: it holds no turn and runs nothing

    # --- modules ---

    def choices(self) -> dict[str, Choice]:
        """What images can be steered to, by name: shipped attributes, then modules that were given or trained here."""
        found: dict[str, Choice] = {}
        if self.source.source == "embedded":
            found = {name: Choice(name, (name,), entry, entry.names) for name, entry in shipped_attributes().items()}
        groups: dict[tuple[str, str], list[tuple[str, Header]]] = {}
        for source, header in self._own():
            if header.kind != "safety":
                alone = "" if header.attribute and header.kind != "attribute" else source
                groups.setdefault((header.attribute or Path(source).stem, alone), []).append((source, header))
        for (name, _), members in groups.items():
            label = next(text for text in chain([name], (f"{name}-{i}" for i in count(2))) if text not in found)
            found[label] = _choice(label, members)
        return found

    def safety(self) -> dict[str, str]:
        """Safety concepts by name, each with its module."""
        names = [n for n, c in builtin().items() if isinstance(c, Concept) and n in shipped()] if self.source.source == "embedded" else []
        return {**{n: n for n in names}, **{Path(source).stem: source for source, h in self._own() if h.kind == "safety"}}

    def _own(self) -> Iterator[tuple[str, Header]]:
        trained, seen = sorted((self.out / MODULES).glob("*.safetensors"), key=lambda file: file.stat().st_mtime), set[Path]()
        for source in (*self.given, *trained):
            path, factor = with_factor(source)
            for file in (file for file in files_of(path) if file.resolve() not in seen):
                seen.add(file.resolve())
                yield str(file) + (f":{factor:g}" if factor != 1 else ""), read_header(file)

    # --- places ---

    def new_place(self, kind: str, text: str, ending: str = "") -> Path:
        """A folder, or with an ending a file, that nobody else has, named after a text; ``out/KIND`` is made if absent."""
        stem = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or kind
        folder = self.out / kind
        folder.mkdir(parents=True, exist_ok=True)
        for n in count(1):
            path = folder / f"{stem}{f'-{n}' * (n > 1)}{ending}"
            try:
                path.touch(exist_ok=False) if ending else path.mkdir()
            except FileExistsError:
                continue
            return path
        raise AssertionError

    def keep_module(self, module: Any) -> Path:
        """Save what was trained in ``out/modules`` under a name that no other module has."""
        with self._one:
            stem = module.name.replace("/", "-")
            names = chain([stem], (f"{stem}-{n}" for n in count(2)))
            path = next(path for path in (self.out / MODULES / f"{name}.safetensors" for name in names) if not path.exists())
            saved: Path = module.save(path)
        return saved

    def folder(self, text: str) -> Path:
        """A folder that a visitor names: in ``out/runs``, or by its path. ValueError for what is no folder, or not to be opened."""
        path = Path(text.strip()).expanduser()
        path = path if path.is_absolute() else self.out / RUNS / path
        if not text.strip() or not path.is_dir():
            raise ValueError(f"folder is {text!r}, which is none; choose one of the list, or give the path of a run folder")
        if not self.local and not path.resolve().is_relative_to(self.out):
            raise ValueError(f"folder is {text!r}; allowed while the page is open to other machines: those in {short_path(self.out)!r}")
        return path

    def runs(self) -> list[tuple[str, str]]:
        """(what it holds, name) of runs, pairs of runs and audits in ``out/runs``, the newest first."""
        found: list[tuple[float, Path]] = []
        for folder in (self.out / RUNS).glob("*"):
            with suppress(FileNotFoundError):  # removed meanwhile, by work that was stopped
                found += [(folder.stat().st_mtime, folder)] if folder.is_dir() else []
        return [(about(folder, when), folder.name) for when, folder in sorted(found, reverse=True)]

    def show(self, page: Path) -> str:
        """The address of a page of ours."""
        with self._one:
            name = next((n for n, path in self._pages.items() if path == page), f"{len(self._pages) + 1}.html")
            self._pages[name] = page
        return f"/pages/{name}"

    def page(self, name: str) -> bytes | None:
        """What is at an address of `show`; None for any other."""
        path = self._pages.get(name)
        return path.read_bytes() if path and path.is_file() else None


def short_path(path: Path) -> str:
    """A path as the page says it: seen from the folder that the page was started in, if it is below that one."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder."""
    return (folder / "run.json").is_file()


def runs_in(folder: Path) -> list[Path]:
    """The folder if it is a run folder, else the run folders in it, by name."""
    return [folder] if is_run(folder) else [f for f in sorted(folder.glob("*")) if is_run(f)]


def about(folder: Path, when: float) -> str:
    """What a folder of runs holds, in words: prompts, what was asked for, number of images, time (in seconds since 1970), name."""
    try:
        records = [r for run in runs_in(folder) for r in RunFolder(run).records()]
    except (OSError, ValueError):  # damaged, or just being removed; who opens it is told
        return f"cannot be read; {folder.name}"
    prompts = list(dict.fromkeys(r.prompt for r in records))
    asked = Counter(name for r in records for name in r.concepts.values())
    said = [", ".join(prompts[:3]) + (f" and {len(prompts) - 3} more" if len(prompts) > 3 else "")] if prompts else []
    said += [f"asked {', '.join(f'{k} {name}' for name, k in asked.items())}"] if asked else []
    return "; ".join([*said, f"{len(records)} images", time.strftime("%d %b %H:%M", time.localtime(when)), folder.name])


def _choice(name: str, members: list[tuple[str, Header]]) -> Choice:
    headers = [header for _, header in members]
    concepts = tuple(Concept(h.concept, h.target, h.neutral) for h in headers)
    known = builtin().get(headers[0].attribute)
    if headers[0].kind == "attribute":  # one adapter of all alternatives, which asks for none of a single image
        if not isinstance(known, Attribute):
            raise ValueError(f"module {members[0][0]!r} is of attribute {headers[0].attribute!r}; allowed here: those of the library")
        return Choice(name, tuple(source for source, _ in members), known, ())
    if isinstance(known, Attribute) and {c.name for c in concepts} <= set(known.names):
        asked = known
    elif len(concepts) > 1:
        asked = Attribute(headers[0].attribute, concepts)
    else:
        (own,) = concepts
        asked = Attribute(headers[0].attribute or "concept", (own, Concept(f"not {own.name}", own.neutral, own.neutral)))
    return Choice(name, tuple(source for source, _ in members), asked, tuple(c.name for c in concepts))
