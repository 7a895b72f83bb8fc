"""Converts checkpoints of the authors' RespoDiff and SDisc code into modules, and back.

RespoDiff's code saves two bias-free linear layers on a one-hot concept, ``controlnet.fc1.weight`` (RAM) and
``controlnet_residual.fc2.weight`` (SAM), both (C H W, 10). SDisc's saves one, ``controlnet.fc1.weight`` (C H W, 100). A column is the
tensor of one concept. Both files are pickles. They are read as tensors alone: nothing in them is executed.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from respodiff._version import __version__
from respodiff.concepts.concept import Concept
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import TIMESTEPS, Header, new_file

RAM_KEY, SAM_KEY = "controlnet.fc1.weight", "controlnet_residual.fc2.weight"
OFFICIAL: dict[str, tuple[int, str]] = {
    "woman": (0, "a woman"),
    "man": (1, "a man"),
    "young": (2, "young"),
    "old": (3, "old"),
    "white": (3, "a white-race person"),
    "black": (4, "a black-race person"),
    "asian": (5, "a Asian-race person"),
    "sexual": (6, "sexual"),
    "violence": (7, "violence"),
}
"""Concept -> (column, prompt) in the authors' table, in which "old" and "white" are one column."""
SDISC = ("female", "male", "young", "old", "whiterace", "blackrace", "asianrace", "antisexual")
"""Concepts of SDisc's columns, in order."""
ALIASES = {"woman": "female", "man": "male", "white": "whiterace", "black": "blackrace", "asian": "asianrace", "sexual": "antisexual"}


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a ``.pt``, ``.pth`` or ``.safetensors`` file by name. ValueError for a file that is broken or holds anything else."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {str(path)!r} does not exist; give a .pth, .pt or .safetensors file")
    if path.suffix == ".safetensors":
        try:
            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"checkpoint {str(path)!r} is truncated or not a safetensors file ({error}); copy it again") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)  # safe from torch 2.6 on (CVE-2025-32434)
    except Exception as error:  # a malformed file raises from many families
        if isinstance(error, pickle.UnpicklingError) and re.search(r"weights.only|GLOBAL|Unsupported|global", str(error)):
            raise ValueError(
                f"checkpoint {str(path)!r} holds more than tensors, and was refused; nothing in it was executed. "
                "Have whoever made it save a dictionary of tensors"
            ) from error
        raise ValueError(f"checkpoint {str(path)!r} is truncated or not a checkpoint; copy it again") from error
    for key in ("state_dict", "model", "module"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    found = {"": found} if isinstance(found, Tensor) else found
    if not isinstance(found, Mapping):
        raise ValueError(f"checkpoint {str(path)!r} holds a {type(found).__name__}; needed: a dictionary of tensors")
    return {str(k): v for k, v in found.items() if isinstance(v, Tensor)}


def write_safetensors(path: str | Path, out: str | Path) -> dict[str, tuple[int, ...]]:
    """Writes the tensors of a checkpoint as a safetensors file, and returns their shapes by name.

    Raises:
        ValueError, FileNotFoundError: as `read_tensors`; or a new name that does not end in .safetensors.
    """
    if Path(out).suffix != ".safetensors":
        raise ValueError(f"out is {str(out)!r}; allowed: a name that ends in .safetensors")
    tensors = {name: tensor.clone().contiguous() for name, tensor in read_tensors(path).items()}
    if not tensors:
        raise ValueError(f"checkpoint {str(path)!r} holds no tensor at its top level; give a dictionary of tensors")
    save_file(tensors, out)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def pick(tensors: Mapping[str, Tensor], ram_key: str = "", sam_key: str = "") -> tuple[str, str]:
    """Names of the RAM and the SAM weights ("" where there is no SAM). ValueError with a list of what was found where it is not clear."""
    listed = ", ".join(f"{k or '(unnamed)'} {tuple(v.shape)}" for k, v in list(tensors.items())[:12]) or "nothing"
    for flag, key in (("--ram-key", ram_key), ("--sam-key", sam_key)):
        if key and key not in tensors:
            raise ValueError(f"{flag} {key!r} is not in the checkpoint; it holds {listed}")
    likely = [k for k, v in tensors.items() if v.ndim in (1, 2) and v.is_floating_point() and "bias" not in k and v.shape[0] >= 320]
    sams = [sam_key] if sam_key else [k for k in likely if re.search(r"residual|fc2|sam\b|semantic", k) and k != ram_key]
    rams = [ram_key] if ram_key else [k for k in likely if k not in sams]
    if len(rams) != 1 or len(sams) > 1:
        raise ValueError(f"which tensors are RAM and SAM is not clear; say it with --ram-key and --sam-key. The checkpoint holds {listed}")
    return rams[0], sams[0] if sams else ""


def column_of(concept: str, columns: int) -> int:
    """Column of a concept in a file of so many columns. ValueError where the tables do not tell."""
    if columns == 1:
        return 0
    if columns == 10 and concept in OFFICIAL:
        column = OFFICIAL[concept][0]
        if twice := [c for c, (other, _) in OFFICIAL.items() if other == column and c != concept]:
            raise ValueError(
                f"column {column} of official files is used for both {concept!r} and {twice[0]!r}; say which it is with --column {column}"
            )
        return column
    name = ALIASES.get(concept, concept)
    if columns == 100 and name in SDISC:
        return SDISC.index(name)
    known = OFFICIAL if columns == 10 else SDISC if columns == 100 else ()
    raise ValueError(f"concept {concept!r} has no known column among {columns}; known: {', '.join(known) or 'none'}; give --column N")


def geometry(numbers: int, channels: int, size: Sequence[int] = ()) -> tuple[int, int, int]:
    """(C, H, W) of a column of so many numbers: ``size`` if given, else a square. ValueError where it does not come out."""
    height, width = size or (math.isqrt(numbers // max(channels, 1)),) * 2
    shape = (channels, height, width)
    if min(shape) < 1 or math.prod(shape) != numbers:
        raise ValueError(
            f"a column has {numbers} numbers, which is not {shape[0]} x {shape[1]} x {shape[2]}; give --channels (SD 1.x, 2.x and XL: 1280) and --size HxW"
        )
    return shape


def convert(
    path: str | Path,
    concept: Concept,
    *,
    base_model: str,
    column: int | None = None,
    ram_key: str = "",
    sam_key: str = "",
    channels: int = 1280,
    size: Sequence[int] = (),
) -> ConceptModule:
    """The module of one concept in a checkpoint of RespoDiff's or SDisc's official code.

    Args:
        concept: name and prompts for the header. base_model: what it was trained on; the file does not say, so it is asked for.
        column: index of the concept; by default the one of its name in the project's table.
        ram_key, sam_key: names of the weights (C H W, columns) where they are not the official ones.
        channels, size: of the bottleneck; a square by default, and recorded.

    Raises:
        ValueError: with one line for a file that is broken, not made of tensors alone, ambiguous, or of another shape.
    """
    found = read_tensors(path)
    names = pick(found, ram_key, sam_key)
    columns = [found[k][:, None] if found[k].ndim == 1 else found[k] for k in names if k]
    if len({tuple(c.shape) for c in columns}) > 1:
        raise ValueError(f"RAM {tuple(columns[0].shape)} and SAM {tuple(columns[1].shape)} differ in shape; see --ram-key and --sam-key")
    numbers, width = columns[0].shape
    index = column_of(concept.name, width) if column is None else column
    if not 0 <= index < width:
        raise ValueError(f"--column is {index}; allowed: 0 to {width - 1}")
    shape = geometry(numbers, channels, size)
    tensors = [c[:, index].float().reshape(shape) for c in columns]
    source = {"file": Path(path).name, "ram_key": names[0], "sam_key": names[1], "column": index, "geometry": list(shape)}
    header = Header.of(concept, base_model=base_model, train={"converted": source}, library=__version__)
    return ConceptModule.of(tensors[0], tensors[1] if len(tensors) > 1 else torch.zeros(shape), header)


def to_official(module: ConceptModule, path: str | Path, column: int | None = None, columns: int = 10) -> Path:
    """Write a module as a ``.pt`` for the official code: both weights (C H W, ``columns``), zero but for the module's column."""
    if module.header.timesteps != TIMESTEPS:
        raise ValueError(f"module {module.name!r} acts at timesteps {module.header.timesteps} alone; the official code knows no window")
    index = column_of(module.name, columns) if column is None else column
    if not 0 <= index < columns:
        raise ValueError(f"--column is {index}; allowed: 0 to {columns - 1}")
    out = {RAM_KEY: torch.zeros(module.ram.numel(), columns), SAM_KEY: torch.zeros(module.sam.numel(), columns)}
    out[RAM_KEY][:, index], out[SAM_KEY][:, index] = module.ram.flatten(), module.sam.flatten()
    with new_file(path) as temporary:
        torch.save(out, temporary)
    return Path(path)
