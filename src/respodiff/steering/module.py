"""Provides the concept module: RAM and SAM of one concept, and how modules act on the bottleneck of a batch of images."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from respodiff.pipelines.bottleneck import SITE, channels_first, site_shape
from respodiff.pipelines.identity import config_digest
from respodiff.pipelines.loading import model_name
from respodiff.pipelines.registry import backbone, candidates, site_of, spec_of
from respodiff.steering.adapter import Adapter, AdaptersPerImage
from respodiff.steering.forms import FORMS, Form, load_form
from respodiff.steering.serialization import TIMESTEPS, Header
from respodiff.steering.steer import NoOffset, Shift

PARTS = ("ram", "sam")
"""Prefixes of the state dicts in a module file."""
Offset = Tensor | Form


@dataclass(frozen=True, eq=False)
class ConceptModule(Adapter):
    """RAM and SAM with their header, an adapter of two small networks (`respodiff.steering.forms`).

    ``tensors`` is their state dict: ``ram.r`` and ``sam.r`` (C, H, W), or (C, 1, 1), for the paper's constants. Of chosen sites the names have
    the site: ``ram.up_blocks.0.r``. What is said of the tensors of a module of several sites is said of `at` each.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORMS:
            allowed = ", ".join(FORMS)
            raise ValueError(f"{self.method} {self.name!r} is no module of RAM and SAM: form is {self.form!r}; allowed: {allowed}")
        window = self.header.timesteps
        if not all(isinstance(t, int) for t in window) or len(window) != 2 or not 0 <= window[0] < window[1] <= TIMESTEPS[1]:
            raise ValueError(f"timesteps is {window}; allowed: (low, high), whole numbers with 0 <= low < high <= {TIMESTEPS[1]}")
        if self.named and (stray := self.tensors.keys() - {k for part in PARTS for s in self.sites for k in self._names(part, s)}):
            raise ValueError(f"tensor {min(stray)!r} is of none of its sites, {self.header.site}")
        for module in map(self.at, self.sites):
            ram, sam = ([tuple(p.shape) for p in form.parameters()] for form in module.forms())
            if ram != sam:
                raise ValueError(f"ram has shape {ram[0]}, but sam {sam[0]}; they must be equal")

    @classmethod
    def of(cls, ram: Offset | Mapping[str, Offset], sam: Offset | Mapping[str, Offset], header: Header) -> ConceptModule:
        """A module of two forms, or of two constants (C, H, W) or (C, 1, 1), or of mappings from sites to them. The header's ``form`` is set,
        and its ``site`` by mappings.

        ValueError for tensors of other or unequal shapes, forms of two kinds, unequal sites, or values that are not finite.
        """
        rams, sams = (x if isinstance(x, Mapping) else {"": x} for x in (ram, sam))
        if rams.keys() != sams.keys() or not rams:
            raise ValueError(f"ram is of sites {', '.join(rams) or 'none'}, but sam of {', '.join(sams) or 'none'}; they must be equal")
        states = {
            _start(part, site): x.state_dict() if isinstance(x, Form) else {"r": x}
            for site in rams
            for part, x in zip(PARTS, (rams[site], sams[site]), strict=True)
        }
        kinds = [type(x).__name__.lower() if isinstance(x, Form) else "constant" for site in rams for x in (rams[site], sams[site])]
        if other := [kind for kind in kinds if kind != kinds[0]]:
            raise ValueError(f"ram is of form {kinds[0]!r}, but sam of form {other[0]!r}; they must be equal")
        if all("r" in state and state["r"].shape[1:] == (1, 1) for state in states.values()):
            kinds = ["channel"]
        tensors = {start + k: v.detach().to("cpu", torch.float32, copy=True) for start, state in states.items() for k, v in state.items()}
        site = header.site if "" in rams else ",".join(rams)
        return cls(replace(header, form=kinds[0], site=site), tensors)

    @property
    def sites(self) -> tuple[str, ...]:
        """Where it acts."""
        return tuple(self.header.site.split(","))

    @property
    def named(self) -> bool:
        """Whether its sites were chosen, so that its tensors' names have them."""
        return bool(self._names("ram", self.sites[0]))

    def at(self, site: str) -> ConceptModule:
        """What it is at one of its sites, as a module of that site alone; its norm of h is unknown where there are several.

        ValueError for another site.
        """
        if self.sites == (site,):
            return self
        if site not in self.sites:
            raise ValueError(f"module {self.name!r} acts at {self.header.site}, not at {site!r}")
        own = {k: self.tensors[k] for part in PARTS for k in self._names(part, site)}
        return replace(self, header=replace(self.header, site=site, h_norm=0.0), tensors=own)

    def _names(self, part: str, site: str = "") -> list[str]:
        return [k for k in self.tensors if k.startswith(_start(part, site))]

    def _state(self, part: str) -> dict[str, Tensor]:
        if len(self.sites) > 1:
            raise ValueError(f"module {self.name!r} acts at {self.header.site}; take what it is at one of them, module.at(site)")
        start = _start(part, self.sites[0] if self.named else "")
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    @property
    def form(self) -> str:
        """Name in `respodiff.steering.forms.FORMS`."""
        return self.header.form

    @property
    def reads_h(self) -> bool:
        """Whether the offset depends on h, so that there are no tensors `ram` and `sam`."""
        return FORMS[self.form].reads_h

    @property
    def ram(self) -> Tensor:
        """r (C, H, W) or (C, 1, 1), times the scale. ValueError for a form that reads h."""
        return self._constant("ram")

    @property
    def sam(self) -> Tensor:
        """s, as `ram`."""
        return self._constant("sam")

    @property
    def delta(self) -> Tensor:
        """r + s: what is added to h (paper, inference). ValueError for a form that reads h."""
        return self.ram + self.sam

    @property
    def relative_norm(self) -> float | None:
        """|r + s| over the mean norm of h during training; None if that is unknown, or for a form that reads h."""
        return self.delta.norm().item() / self.header.h_norm if self.header.h_norm and not self.reads_h else None

    def _constant(self, part: str) -> Tensor:
        if self.reads_h:
            raise ValueError(f"module {self.name!r} is of form {self.form!r}, which has no tensor {part}; constant and channel have one")
        r = self._state(part)["r"]
        return r if self.weight == 1 else r * self.weight

    def forms(self) -> tuple[Form, Form]:
        """RAM and SAM as networks, at scale 1."""
        ram, sam = (load_form(self.form, self._state(part)) for part in PARTS)
        return ram, sam

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the offset; (C, 1, 1) for forms that fit every image size."""
        state = self._state("ram")
        c, h, w = (len(state["up.weight"]), 1, 1) if self.reads_h else state["r"].shape
        return c, h, w

    def within(self, low: int, high: int) -> ConceptModule:
        """The same, acting at timesteps from ``low`` to below ``high`` alone (0 to 1000, 999 being the noisiest).

        ``within(400, 1000)`` leaves the last steps unsteered, as Asyrp's editing interval does (arXiv 2210.10960).
        """
        return replace(self, header=replace(self.header, timesteps=(low, high)))

    def channels(self) -> ConceptModule:
        """Both tensors' mean over positions, (C, 1, 1): fits every image size and transformers' sites, and can be fused."""
        own = {site: self.at(site) for site in self.sites}
        ram, sam = ({site: getattr(m, part).mean((-2, -1), keepdim=True) for site, m in own.items()} for part in PARTS)
        _, height, width = own[self.sites[0]].shape
        header = replace(self.header, h_norm=self.header.h_norm * (1 / (height * width)) ** 0.5)  # 0 for several sites
        if self.named:
            return ConceptModule.of(ram, sam, header)
        return ConceptModule.of(ram[self.header.site], sam[self.header.site], header)

    def check(self, pipe: Any) -> list[str]:
        """Warnings about the module on a pipeline of other weights or configuration. ValueError if sites or channels differ."""
        model, h = backbone(pipe), self.header
        known = candidates(pipe) if self.named else (site_of(pipe),)
        if other := [site for site in self.sites if site not in known]:
            raise ValueError(f"module {self.name!r} was trained at site {other[0]!r}, this pipeline is steered at {', '.join(known)!r}")
        for site, shape in ((site, self.at(site).shape) for site in self.sites):
            if shape[0] != (channels := site_shape(model, site=site)[0]):
                raise ValueError(
                    f"module {self.name!r} has {shape[0]} channels, the bottleneck of model {model_name(pipe)!r} has {channels}; "
                    f"it was trained on {h.base_model!r}: train one for this model"
                )
            if spec_of(pipe).model == "transformer" and shape[1:] != (1, 1):
                raise ValueError(f"module {self.name!r} has shape {shape}; a transformer takes one number a channel: use module.channels()")
        other_config = h.base_digest and h.base_digest != config_digest(model)
        if not other_config and not self.other_weights(model):
            return []
        what = "a UNet of another configuration" if other_config else "other weights"
        return [f"module {self.name!r} was trained on {what} ({h.base_model!r}); check its effect"]

    @staticmethod
    def apply(pipe: Any, adapters: AdaptersPerImage) -> AbstractContextManager[None]:
        """Every step adds the sum of an image's modules to h of its conditional row, as in the paper, at each site."""
        acting = {site for module in adapters.adapters for site in module.sites}
        own = {site: adapters.map(lambda m: m.at(site) if site in m.sites else None) for site in candidates(pipe) if site in acting}  # noqa: B023
        return Shift(pipe, {site: Deltas(at.rows) for site, at in own.items()}, adapters).attached()


def require_mid_block(module: ConceptModule, why: str) -> None:
    """ValueError for a module that acts elsewhere."""
    if module.sites != (SITE,):
        raise ValueError(f"module {module.name!r} acts at {module.header.site}; {why}")


def _start(part: str, site: str) -> str:
    """How the names of the tensors of RAM or SAM begin."""
    return f"{part}.{site}." if site else f"{part}."


Kind = tuple[tuple[int, int], tuple[int, int, int]]
"""Window of timesteps and shape of a constant."""


class Deltas(NoOffset):
    """The offsets of the images of a call.

    Args:
        rows: modules of each image; a single entry counts for all images.

    Attributes:
        stacked: kind of constants -> sums (B or 1, C, H, W) of those of one image.
        reading: modules that read h, with RAM and SAM as networks and the images that have them.
    """

    def __init__(self, rows: Sequence[Sequence[ConceptModule]]) -> None:
        constants = [[m for m in row if not m.reads_h] for row in rows]
        self.stacked: dict[Kind, Tensor] = {}
        for kind in sorted({(m.header.timesteps, m.shape) for row in constants for m in row}):
            acting = [[m.delta for m in row if (m.header.timesteps, m.shape) == kind] for row in constants]
            self.stacked[kind] = torch.stack([torch.stack(d).sum(0) if d else torch.zeros(kind[1]) for d in acting])
        distinct = {id(m): m for row in rows for m in row if m.reads_h}.values()
        images = [slice(None)] if len(rows) == 1 else [slice(i, i + 1) for i in range(len(rows))]
        self.reading = [(m, m.forms(), [i for i, row in zip(images, rows, strict=True) for n in row if n is m]) for m in distinct]
        self.reads_h = bool(self.reading)
        self.reads_timesteps = self.reads_h or any(window != TIMESTEPS for window, _ in self.stacked)
        self._cache: dict[tuple[Any, ...], Tensor] = {}
        self._warned: set[tuple[int, ...]] = set()  # sizes

    def at(self, h: Tensor, t: Tensor) -> Tensor | None:
        """What is added (B or 1, C, H, W) to h of the images, (B, C, H, W) or (B, N, C), at timesteps t (B,), (1,) or (); None for nothing."""
        out = None
        for kind, r in self.stacked.items():
            part = self._fitted(kind, r, h)
            if kind[0] != TIMESTEPS:
                part = part * _acts(kind[0], t).to(part)
            out = part if out is None else out + part
        if self.reads_h:
            offset = self._read(channels_first(h).float(), t).to(h.dtype)
            out = offset if out is None else out + offset
        return out

    @torch.no_grad()
    def _read(self, h: Tensor, t: Tensor) -> Tensor:
        """The offsets (B, C, H, W) of the modules that read h (B, C, H, W)."""
        out = torch.zeros_like(h)
        for module, forms, images in self.reading:
            for own in images:
                when = t[own] if t.numel() > 1 else t
                offset = sum(form.to(h.device)(h[own], when) for form in forms)
                out[own] += module.weight * offset * _acts(module.header.timesteps, when).to(h)
        return out

    def clear(self) -> None:
        self._cache.clear()

    def _fitted(self, kind: Kind, r: Tensor, h: Tensor) -> Tensor:
        """r (B or 1, C, H, W) at the size, on the device and in the dtype of h, made once each; float32 stays the master copy."""
        size = tuple(h.shape[2:]) if h.ndim == 4 else (1, 1)
        key = (kind, size, h.device, h.dtype)
        if key not in self._cache:
            if r.shape[2:] not in (size, (1, 1)):
                if size not in self._warned:
                    text = f"module of {tuple(r.shape[2:])} is resized to the bottleneck {size} of this image size; check its effect"
                    warnings.warn(text, stacklevel=2)
                self._warned.add(size)
                r = interpolate(r, size, mode="bilinear", antialias=True)
            self._cache[key] = r.to(h.device, h.dtype)
        return self._cache[key]


def _acts(window: tuple[int, int], t: Tensor) -> Tensor:
    """1 where a window holds the timestep, as (B or 1, 1, 1, 1)."""
    return ((window[0] <= t) & (t < window[1])).view(-1, 1, 1, 1)
