"""Where images and labels come from: packages of public registries by name, version and digest, opened without running anything of theirs."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

REGISTRIES = {"npm": "tgz", "debian": "deb"}
"""Registry -> ending of its packages."""
Drawing = Callable[[int], Image.Image]
"""Draws one image at a size in pixels: RGBA, square."""


@dataclass(frozen=True)
class Source:
    """A package that images or labels are taken from.

    Attributes:
        package: its name. registry: ``npm`` or ``debian``. version: the one that is asked for.
        digest: ``sha512-`` and base64, as npm writes it.
        licence: in words, kept with every image.
    """

    package: str
    registry: str
    version: str
    digest: str
    licence: str

    def fetch(self, cache: Path) -> Path:
        """The package file, from the cache or by the registry's own client (npm, apt-get), its digest checked.

        Raises:
            RuntimeError: the client is missing or found no such version; says which.
            ValueError: another file than the one that the recipe knows.
        """
        cache.mkdir(parents=True, exist_ok=True)
        path = cache / f"{self.package.strip('@').replace('/', '-')}-{self.version.replace(':', '%3a')}.{self._ending()}"
        if not path.is_file():
            self._download(cache, path)
        found = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
        if found != self.digest:
            raise ValueError(
                f"package {self.package} {self.version} has digest {found[:20]}..., the recipe knows {self.digest[:20]}...; "
                f"delete {path} and try again, or set version and digest in config.toml"
            )
        return path

    def _ending(self) -> str:
        return REGISTRIES[self.registry]

    def _download(self, cache: Path, path: Path) -> None:
        wanted = f"{self.package}@{self.version}" if self.registry == "npm" else f"{self.package}={self.version}"
        command = (
            ["npm", "pack", "--loglevel=error", "--no-progress", wanted] if self.registry == "npm" else ["apt-get", "download", wanted]
        )
        before = set(cache.iterdir())
        try:
            subprocess.run(command, cwd=cache, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise RuntimeError(
                f"{command[0]} is not installed, so {wanted} cannot be fetched; install it, or put the file at {path}"
            ) from error
        except subprocess.CalledProcessError as error:
            said = " ".join((error.stderr or error.stdout).replace("npm error", "").split())[:160]
            raise RuntimeError(
                f"{self.registry} has no {wanted} ({said}); set another version and its digest in config.toml, or put the file at {path}"
            ) from error
        for new in set(cache.iterdir()) - before:
            if new.suffix == path.suffix:
                new.replace(path)


def members(path: Path) -> dict[str, bytes]:
    """Every file of an npm package or of a Debian one, by its path inside.

    Raises:
        ValueError: the file is broken.
    """
    try:
        raw = path.read_bytes() if path.suffix == ".tgz" else _data_part(path.read_bytes())
        with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
            return {m.name.removeprefix("./"): handle.read() for m in tar if m.isfile() and (handle := tar.extractfile(m)) is not None}
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"package file {path} cannot be read ({error}); delete it and try again") from error


def _data_part(raw: bytes) -> bytes:
    """The archive of files inside a .deb, which is an ar archive: per part a header of 60 bytes with its name and size."""
    if not raw.startswith(b"!<arch>\n"):
        raise ValueError("no Debian package")
    at = 8
    while at + 60 <= len(raw):
        name, size = raw[at : at + 16].decode().strip(), int(raw[at + 48 : at + 58])
        if name.startswith("data.tar"):
            return raw[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise ValueError("it has no data part")


def plain_code(code: str) -> str:
    """A sequence of code points without variation selectors, lower case.

    >>> plain_code("2764-FE0F-200D-1F525")
    '2764-200d-1f525'
    """
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def vectors(files: dict[str, bytes]) -> dict[str, Drawing]:
    """The drawings of an Iconify package (``icons.json`` and ``chars.json``) by code."""
    chars: dict[str, str] = json.loads(files["package/chars.json"])
    drawn = named(files)
    return {plain_code(code): drawn[name] for code, name in chars.items() if name in drawn}


def named(files: dict[str, bytes]) -> dict[str, Drawing]:
    """The drawings of an Iconify package by their names, for families whose package knows no codes."""
    icons: dict[str, Any] = json.loads(files["package/icons.json"])
    size = (icons.get("width", 16), icons.get("height", 16))
    bodies = {name: icon["body"] for name, icon in icons["icons"].items()}
    bodies |= {name: bodies[row["parent"]] for name, row in icons.get("aliases", {}).items() if row["parent"] in bodies}
    return {name: _vector(body, size) for name, body in bodies.items()}


def slug(label: str) -> str:
    """A label as such packages name it.

    >>> slug("woman cook: medium-dark skin tone")
    'woman-cook-medium-dark-skin-tone'
    """
    return "-".join(re.findall(r"[a-z0-9]+", label.lower()))


def _vector(body: str, size: tuple[int, int]) -> Drawing:
    def draw(pixels: int) -> Image.Image:
        import resvg_py

        text = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {size[0]} {size[1]}">{body}</svg>'
        return _opened(bytes(resvg_py.svg_to_bytes(svg_string=text, width=pixels, height=pixels)), pixels)

    return draw


def rasters(files: dict[str, bytes]) -> dict[str, Drawing]:
    """The drawings of a package of one image file a code (``assets/CODE.webp``)."""
    return {plain_code(Path(name).stem): _raster(raw) for name, raw in files.items() if name.endswith(".webp")}


def _raster(raw: bytes) -> Drawing:
    return lambda pixels: _opened(raw, pixels)


def glyphs(files: dict[str, bytes]) -> dict[str, Drawing]:
    """The bitmaps of a colour font (tables CBDT, cmap, and GSUB for sequences) by code."""
    from fontTools.ttLib import TTFont

    font = TTFont(io.BytesIO(next(raw for name, raw in files.items() if name.endswith(".ttf"))))
    strike = font["CBDT"].strikeData[0]
    names = {name: f"{code:x}" for code, name in font.getBestCmap().items()}
    found = {names[name]: name for name in names}
    for parts, name in _ligatures(font):
        if all(part in names for part in parts):
            found[plain_code("-".join(names[part] for part in parts))] = name
    return {plain_code(code): _raster(strike[name].imageData) for code, name in found.items() if name in strike}


def _ligatures(font: Any) -> Iterator[tuple[list[str], str]]:
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            for first, choices in getattr(getattr(table, "ExtSubTable", table), "ligatures", {}).items():
                for ligature in choices:
                    yield [first, *ligature.Component], ligature.LigGlyph


def _opened(raw: bytes, pixels: int) -> Image.Image:
    """An image file on a square transparent canvas, resized."""
    image = Image.open(io.BytesIO(raw)).convert("RGBA")
    side = max(image.size)
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas if side == pixels else canvas.resize((pixels, pixels), Image.Resampling.LANCZOS)


READERS: dict[str, Callable[[dict[str, bytes]], dict[str, Drawing]]] = {
    "vectors": vectors,
    "names": named,
    "rasters": rasters,
    "glyphs": glyphs,
}
