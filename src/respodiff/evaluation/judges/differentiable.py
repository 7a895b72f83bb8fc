"""A judge as a differentiable classifier of image tensors, for methods that learn from one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from respodiff.concepts.concept import Concept


def classifier(source: str, chosen: Concept, device: str) -> Callable[[Any], Any] | None:
    """A judge as a differentiable classifier of a concept's alternatives: images (N, 3, H, W) in [0, 1] -> logits (N, K); None for "".

    Images are resized to the judge's size as they are (bicubic), without the crop that a judge makes of images that are not square.
    """
    if not source:
        return None
    import torch
    from torch.nn.functional import interpolate

    from respodiff.evaluation.judges import LOGIT_SCALE, ClipJudge, load

    judge = load(source, device)
    if not isinstance(judge, ClipJudge):
        raise ValueError(f"--judge is {source!r}, which does not compare images with texts; give embedded, or clip:DIR-OR-ID")
    model, look = judge.model, judge.processor.image_processor
    texts = torch.from_numpy(judge.embed_texts([chosen.target, *chosen.opposites])).to(device)
    mean, std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (look.image_mean, look.image_std))
    side = model.config.vision_config.image_size

    def classify(images: Any) -> Any:
        pixels = interpolate(images.to(device), (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        found = model.visual_projection(model.vision_model(pixel_values=(pixels - mean) / std).pooler_output)
        return LOGIT_SCALE * (found / found.norm(dim=-1, keepdim=True)) @ texts.T

    return classify
