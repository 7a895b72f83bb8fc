"""A file that another program writes as docs/module-format.md says is a module like any other."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import sd

import respodiff
from command import last_json
from command import respodiff as run
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import FORMAT, Header

PAGE = (Path(__file__).parents[2] / "docs" / "module-format.md").read_text(encoding="utf-8")


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page's program writes."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "module-format.md", "exec"), {})
    return tmp_path / "mine.safetensors"


def test_the_file_of_the_page_is_a_module(written: Path, recwarn: pytest.WarningsRecorder) -> None:
    module = respodiff.load(written)
    assert isinstance(module, ConceptModule) and module.shape == (256, 4, 4) and not recwarn.list
    assert (module.name, module.method, module.header.attribute) == ("woman", "mine", "gender")
    found = last_json(run("inspect", str(written), "--json"))
    assert (found["digest"], found["form"], found["norm_sam"]) == (module.digest, "constant", 0)


def test_the_file_of_the_page_steers(written: Path) -> None:
    pipe, module = sd(block_out_channels=(16, 32, 256)), respodiff.load(written)

    def latents() -> torch.Tensor:
        found: torch.Tensor = pipe("a doctor", num_inference_steps=2, generator=torch.manual_seed(0), output_type="latent").images
        return found

    plain = latents()
    with respodiff.steer(pipe, module):
        assert not torch.equal(latents(), plain)
    assert torch.equal(latents(), plain)


def test_the_page_has_every_field_with_its_default() -> None:
    table = PAGE.partition("| field |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]
    told = {name: default for names, _, default in rows for name in re.findall(r"`(\w+)`", names)}
    own: dict[str, Any] = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(Header)}
    own |= {"scale": 1.0, "digest": MISSING, "checksum": MISSING, "format": MISSING, "form": MISSING}
    assert told == {name: "" if value is MISSING else f"`{json.dumps(value)}`" for name, value in own.items()}
    assert f'`"{FORMAT}"`' in table
