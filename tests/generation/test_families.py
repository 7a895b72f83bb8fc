"""`respodiff.generation.generate` on the other families: one prompt list in, an image a job out, whatever the latents look like inside."""

from __future__ import annotations

import pytest
from tests.drawing import module
from tests.tiny_models import TINY_PIPELINES

from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import counted, generate
from respodiff.pipelines.denoiser import check_length
from respodiff.pipelines.registry import backbone

pytestmark = pytest.mark.slow

CONFIG = GenerateConfig(images=2, steps=2, guidance=3.0, batch=2)


@pytest.mark.parametrize(
    "name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "LatentConsistencyModelPipeline"]
)
def test_two_images_of_a_prompt_the_same_alone_and_together(name: str) -> None:
    pipe = TINY_PIPELINES[name]()
    m = module(pipe, scale=3.0)
    with counted(backbone(pipe)) as forwards:
        together = [image for _, image in generate(pipe, ["a doctor"], [m], CONFIG)]
    assert forwards[0] in (4, 8) and len(together) == 2 and together[0].size == (32, 32)
    alone = [image for _, image in generate(pipe, ["a doctor"], [m], GenerateConfig(images=2, steps=2, guidance=3.0, batch=1))]
    plain = [image for _, image in generate(pipe, ["a doctor"], [], CONFIG)]
    assert max(abs(a - b) for a, b in zip(together[1].tobytes(), alone[1].tobytes(), strict=True)) <= 2
    assert together[0].tobytes() != plain[0].tobytes()


def test_a_pipeline_that_draws_from_images_is_refused() -> None:
    pipe = TINY_PIPELINES["StableDiffusionInpaintPipeline"]()
    with pytest.raises(ValueError, match=r"draws from images \(image, mask_image\), not from prompts alone; call it inside of steer"):
        generate(pipe, ["a doctor"])


def test_the_tokenizer_that_sees_most_of_a_prompt_decides() -> None:
    sd3 = TINY_PIPELINES["StableDiffusion3Pipeline"]()
    fits = "a " * 31  # 32 tokens are CLIP's limit here, 64 T5's
    check_length(sd3, [fits])
    with pytest.raises(ValueError, match="this model takes 64, start and end included"):
        check_length(sd3, ["a " * 70])
    with pytest.raises(ValueError, match="this model takes 32"):
        check_length(TINY_PIPELINES["StableDiffusionXLPipeline"](), [fits])
