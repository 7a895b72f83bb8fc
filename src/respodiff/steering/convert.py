"""Converts checkpoints of the authors' RespoDiff and SDisc code into modules and back, and the pickle of the judge Q16 into safetensors.

RespoDiff's code saves two bias-free linear layers on a one-hot concept, ``controlnet.fc1.weight`` (RAM) and
``controlnet_residual.fc2.weight`` (SAM), both (C H W, 10). SDisc's saves the first alone: (C H W, 8) in its release (``checkpoints/unet.pth``
of hangligit/InterpretDiffusion), (C H W, 100) by its ``train.py``. A column is the tensor of one concept. Pickles are read as tensors alone:
nothing in them is executed.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import Tensor

from respodiff._version import __version__
from respodiff.concepts.concept import Concept
from respodiff.data.places import check_out, new_file
from respodiff.steering.module import ConceptModule, require_mid_block
from respodiff.steering.serialization import TIMESTEPS, Header

RAM_KEY, SAM_KEY = "controlnet.fc1.weight", "controlnet_residual.fc2.weight"
OFFICIAL_BASE = "CompVis/stable-diffusion-v1-4"
"""What the authors' files were trained on; they do not say."""
CHANNELS = 1280
"""Channels of the bottleneck of SD 1.x, 2.x and XL."""
RESPODIFF = {"woman": 0, "man": 1, "young": 2, "old": 3, "white": 3, "black": 4, "asian": 5, "sexual": 6, "violence": 7}
"""Columns of RespoDiff's concepts, in which "old" and "white" are one."""
SDISC = {"woman": 0, "man": 1, "young": 2, "old": 3, "white": 4, "black": 5, "asian": 6, "sexual": 7}
"""Columns of SDisc's release, as its ``checkpoints/concept_dict.json`` has them."""
COLUMNS = {(2, 10): RESPODIFF, (1, 8): SDISC, (1, 100): {name: SDISC[name] for name in ("woman", "man", "young", "old")}}
"""Layers and columns of a file -> column of each concept. Those of 100 are the four that SDisc's ``data_creation.py`` names."""
SDISC_NAMES = {"female": "woman", "male": "man", "whiterace": "white", "blackrace": "black", "asianrace": "asian", "antisexual": "sexual"}
"""SDisc's name of a concept -> ours."""


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
    if not isinstance(found, Mapping):
        raise ValueError(f"checkpoint {str(path)!r} holds a {type(found).__name__}; needed: a dictionary of tensors")
    return {str(k): v for k, v in found.items() if isinstance(v, Tensor)}


def convert(path: str | Path, concept: Concept, *, base_model: str, column: int | None = None) -> ConceptModule:
    """The module of one concept in a checkpoint of RespoDiff's or SDisc's official code.

    Args:
        concept: name and prompts for the header. base_model: what it was trained on; the file does not say, so it is asked for.
        column: index of the concept; by default the one of its name in the project's table (`COLUMNS`).

    The header's method is "respodiff" for a file with SAM, "sdisc" for one without.

    Raises:
        ValueError: with one line for a file that is broken, not made of tensors alone, ambiguous, or of another shape.
    """
    found = read_tensors(path)
    rams, sams = ([k for k in found if k.endswith(key)] for key in (RAM_KEY, SAM_KEY))
    if len(rams) != 1 or len(sams) > 1:
        held = ", ".join(f"{k} {tuple(v.shape)}" for k, v in list(found.items())[:12]) or "nothing"
        raise ValueError(f"checkpoint {str(path)!r} holds {held}; needed: one {RAM_KEY}, and for RespoDiff one {SAM_KEY}")
    layers = [found[k] for k in (*rams, *sams)]
    if len({tuple(layer.shape) for layer in layers}) > 1 or layers[0].ndim != 2:
        raise ValueError(f"RAM and SAM have shapes {[tuple(layer.shape) for layer in layers]}; allowed: one shape (C H W, columns)")
    numbers, columns = layers[0].shape
    index = _column(concept.name, len(layers), columns, column)
    side = math.isqrt(numbers // CHANNELS)
    if side < 1 or CHANNELS * side**2 != numbers:
        raise ValueError(f"a column has {numbers} numbers, which is not {CHANNELS} x {side} x {side}; give a file for SD 1.x, 2.x or XL")
    tensors = [layer[:, index].float().reshape(CHANNELS, side, side) for layer in layers]
    source = {"file": Path(path).name, "ram_key": rams[0], "sam_key": "".join(sams), "column": index, "geometry": [CHANNELS, side, side]}
    method = "respodiff" if sams else "sdisc"
    header = Header.of(concept, base_model=base_model, method=method, train={"converted": source}, library=__version__)
    return ConceptModule.of(tensors[0], tensors[1] if sams else torch.zeros_like(tensors[0]), header)


def _column(concept: str, layers: int, columns: int, given: int | None) -> int:
    """Column of a concept in a file of so many layers and columns: the given one, or that of the project's table."""
    if given is not None:
        if not 0 <= given < columns:
            raise ValueError(f"--column is {given}; allowed: 0 to {columns - 1}")
        return given
    known, name = COLUMNS.get((layers, columns), {}), SDISC_NAMES.get(concept, concept)
    if name not in known:
        raise ValueError(f"concept {concept!r} has no known column among {columns}; known: {', '.join(known) or 'none'}; give --column N")
    if len(shared := [c for c in known if known[c] == known[name]]) > 1:
        raise ValueError(f"column {known[name]} of official files is used for {' and '.join(shared)}; say which it is with --column")
    return known[name]


def to_official(module: ConceptModule, path: str | Path, column: int | None = None, *, force: bool = False) -> Path:
    """Write a module as a ``.pt`` for RespoDiff's official code: both weights (C H W, 10), zero but for the module's column.

    ValueError for a file that holds anything else, unless ``force``, and for a module that the official code has no place for.
    """
    require_mid_block(module, "the official code knows the mid block alone")
    if module.header.timesteps != TIMESTEPS:
        raise ValueError(f"module {module.name!r} acts at timesteps {module.header.timesteps} alone; the official code knows no window")
    if module.shape[1:] == (1, 1):
        raise ValueError(
            f"module {module.name!r} has one number a channel; the official code needs one a position: train it with form=constant"
        )
    index = _column(module.name, 2, 10, column)
    out = {key: torch.zeros(module.delta.numel(), 10) for key in (RAM_KEY, SAM_KEY)}
    out[RAM_KEY][:, index], out[SAM_KEY][:, index] = module.ram.flatten(), module.sam.flatten()
    torch.save(out, buffer := BytesIO())
    write_bytes(path, buffer.getvalue(), force)
    return Path(path)


def write_bytes(path: str | Path, data: bytes, force: bool) -> None:
    """Writes a file whole. ValueError for a file that holds anything else, unless ``force``."""
    check_out(path, lambda found: found.stat().st_size == len(data) and found.read_bytes() == data, force=force)
    with new_file(path) as partial:
        partial.write_bytes(data)


def convert_q16(path: str | Path, out: str | Path, *, force: bool = False) -> dict[str, tuple[int, ...]]:
    """Writes the vectors of Q16's ``prompts.p`` as a safetensors file with one tensor ``prompts`` (2, D); returns its shape by name.

    ValueError for a file that is anything but the pickle of two vectors of float16, or a new name that does not end in .safetensors; unless
    ``force``, for a new file that holds anything else. Nothing is unpickled in any case.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"prompts file {str(path)!r} does not exist; give prompts.p of ml-research/Q16 (data/ViT-L-14)")
    if Path(out).suffix != ".safetensors":
        raise ValueError(f"out is {str(out)!r}; allowed: a name that ends in .safetensors")
    vectors = _pickled_vectors(Path(path))
    write_bytes(out, serialized({"prompts": vectors.contiguous()}), force)
    return {"prompts": tuple(vectors.shape)}


def _pickled_vectors(path: Path) -> Tensor:
    """The array (2, D) that a pickle of protocol 3 holds.

    The opcodes are listed and not run. They have to be those of numpy's own pickle of the array that the file's bytes make.
    """
    try:
        steps = _steps(path.read_bytes())
        numbers = np.frombuffer(max((arg for _, arg in steps if isinstance(arg, bytes)), key=len, default=b""), "<f2")
        for vectors in (numbers.reshape(2, -1), numbers.reshape(2, -1, order="F")):
            if steps == _steps(pickle.dumps(vectors, 3)):
                return torch.from_numpy(vectors.copy())
    except ValueError:  # cut short, or no pickle
        pass
    raise ValueError(
        f"prompts file {path.name} was refused and nothing in it was run; allowed: the pickle of one numpy array (2, D) of float16; "
        "download it again from ml-research/Q16"
    )


def _steps(data: bytes) -> list[tuple[str, Any]]:
    """Opcodes of a pickle with their arguments. numpy 2 renamed numpy.core."""
    found = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(data)]
    return [(name, arg.replace("numpy._core", "numpy.core") if isinstance(arg, str) else arg) for name, arg in found]
