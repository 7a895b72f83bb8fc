"""The SigLIP judge: compares an image with texts as the CLIP judge does, by the rules that SigLIP and SigLIP 2 were trained with.

SigLIP says of every text by itself whether it fits: the sigmoid of ``scale x cosine + bias``, both learned. The sigmoid is monotonic and the
bias is the same for all texts, so the label is the text with the highest probability, and a margin is a difference of log-odds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from respodiff.concepts.concept import Concept
from respodiff.evaluation.judges.clip import ClipJudge
from respodiff.evaluation.judges.folders import ModelFolders
from respodiff.evaluation.judges.texts import Floats

if TYPE_CHECKING:
    from PIL import Image

SIGLIP = ModelFolders(
    "siglip",
    "a SigLIP model",
    "siglip:DIR-OR-ID, or siglip:ID@REVISION",
    {"siglip": "SiglipModel", "siglip2": "Siglip2Model"},
    install="run: pip install 'respodiff[siglip]'",
)


class SiglipJudge(ClipJudge):
    """A SigLIP or SigLIP 2 model that compares images with texts; alignment is 100 x cosine, as for CLIP."""

    folders = SIGLIP

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoTokenizer, SiglipProcessor

        model, images = SIGLIP.load(self.folder, self.device), SIGLIP.image_processor(self.folder)
        with SIGLIP.reading(self.folder):
            return model, SiglipProcessor(
                image_processor=images, tokenizer=AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            )

    @property
    def scale(self) -> float:
        return float(self.model.logit_scale.exp())

    def logits(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Floats:
        """Log-odds that each text fits each image, (N, K): the model's own logits, whose sigmoid is the probability."""
        found: Floats = super().logits(images, texts) + np.float32(self.model.logit_bias.item())
        return found

    def _image_features(self, inputs: Mapping[str, Any]) -> Any:
        found = self.model.get_image_features(**{key: value.to(self.model.device) for key, value in inputs.items()})
        return getattr(found, "pooler_output", found)

    def _text_features(self, texts: Sequence[str]) -> Any:
        """In lower case, filled up at the right, and without a mask, as the model was trained to read it."""
        rules: dict[str, Any] = {"padding": "max_length", "padding_side": "right", "truncation": True, "max_length": self._length}
        tokens = self.processor.tokenizer([text.lower() for text in texts], return_tensors="pt", **rules)
        return self.model.text_model(input_ids=tokens["input_ids"].to(self.model.device)).pooler_output

    @property
    def _length(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def _width(self) -> int:
        return int(self.model.config.vision_config.hidden_size)

    def classifier(self, chosen: Concept) -> Callable[[Any], Any]:
        if self.model.config.model_type != "siglip":
            raise ValueError(
                f"judge {self.name} takes images in patches of any shape, so no method learns from it; give a SigLIP of a fixed resolution"
            )
        return super().classifier(chosen)
