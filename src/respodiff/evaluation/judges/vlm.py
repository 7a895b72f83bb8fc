"""Image-text-to-text models of transformers as judges: one closed question an attribute, answered by what the model finds likely.

Nothing is generated. Each answer is put into the model's chat after the question, and scored by the mean log-probability of its tokens: those
from where the answers begin to differ to the end of the turn. So an answer that is the beginning of another one is not favoured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from respodiff.concepts.concept import Attribute
from respodiff.evaluation.judges.base import UNKNOWN, AnswerJudge, Score
from respodiff.evaluation.judges.folders import ModelFolders, version_of
from respodiff.evaluation.judges.texts import Floats, LabellingTask, choose, class_texts, placeholders

if TYPE_CHECKING:
    from PIL import Image

VLM = ModelFolders(
    "vlm",
    "an image-text-to-text model",
    "vlm:DIR-OR-ID, or vlm:ID@REVISION",
    auto="AutoModelForImageTextToText",
    install="run: pip install 'respodiff[vlm]'",
)
QUESTION = "Which of these describes the image best: {}? Answer with one of them and nothing else."


class VlmJudge(AnswerJudge):
    """A model that answers questions about images in a chat; one image at a time, so that no padding changes what it says."""

    batch = 1

    def __init__(self, folder: Path, name: str, device: str = "cpu") -> None:
        VLM.check(folder)
        self.folder, self.name, self.device = folder, name, device
        self.digest, self.version = VLM.digest(folder), version_of(folder)

    @classmethod
    def load(cls, source: str, device: str = "cpu") -> VlmJudge:
        """Load ``vlm:DIR-OR-ID``; ValueError for another model, FileNotFoundError for none."""
        return cls(VLM.find(source), source, device)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The model and its processor; ValueError for one without a chat template."""
        from transformers import AutoProcessor

        model = VLM.load(self.folder, self.device)
        with VLM.reading(self.folder):
            processor = AutoProcessor.from_pretrained(self.folder, local_files_only=True)
            processor.image_processor = VLM.image_processor(self.folder)
            if not getattr(processor, "chat_template", None):
                raise ValueError("it has no chat template, so it cannot be asked")
        return model, processor

    def load_model(self) -> tuple[Any, Any]:
        return self._loaded

    def asked(self, task: LabellingTask) -> dict[str, Any]:
        rule = f"most likely answer to a question with the class template {task.class_template}"
        return {"class_template": task.class_template, "min_margin": task.min_margin, "rule": rule}

    def questions(self, task: LabellingTask, group: str) -> dict[str, tuple[str, ...]]:
        return dict(question_of(a, task, group) for a in task.attributes)

    def answer(self, images: Sequence[Image.Image], question: str, answers: tuple[str, ...]) -> Floats:
        """Mean log-probability of each answer's tokens."""
        return np.stack([self._answer(image.convert("RGB"), question, answers) for image in images])

    def _answer(self, image: Image.Image, question: str, answers: tuple[str, ...]) -> Floats:
        import torch

        model, processor = self._loaded
        chats = [processor.apply_chat_template(_chat(question, text), tokenize=False) for text in answers]
        # Filled up at the right, where nothing that counts can see it.
        rules: dict[str, Any] = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
        if (first := processor.tokenizer.bos_token) and chats[0].startswith(first):
            rules["add_special_tokens"] = False
        inputs = processor(text=chats, images=[[image]] * len(chats), **rules)
        tokens, ends = inputs["input_ids"], inputs["attention_mask"].sum(1)
        start = int((tokens == tokens[0]).all(0).int().cumprod(0).sum())  # where the answers begin to differ
        keep = tokens.shape[1] - start + 1
        with torch.inference_mode():
            logits = model(**inputs.to(self.device), logits_to_keep=keep).logits[:, -keep:-1].log_softmax(-1).cpu()
        found = logits.gather(2, tokens[:, start:, None].cpu())[..., 0]
        own = torch.arange(start, tokens.shape[1])[None] < ends[:, None].cpu()
        scores: Floats = ((found * own).sum(1) / own.sum(1)).numpy()
        return scores

    def read(self, answers: Mapping[str, Mapping[str, float]], task: LabellingTask, group: str) -> Score:
        labels = {}
        for attribute in task.attributes:
            question, texts = question_of(attribute, task, group)
            scores = np.array([[answers[question][text] for text in texts]], dtype=np.float32)
            best = int(choose(scores, task.min_margin)[0][0])
            labels[attribute.name] = UNKNOWN if best < 0 else attribute.names[best]
        return Score("", labels)


def question_of(attribute: Attribute, task: LabellingTask, group: str) -> tuple[str, tuple[str, ...]]:
    """The question that an attribute is asked by, and its answers, the texts of `class_texts`.

    >>> from respodiff.concepts.concept import attribute
    >>> question_of(attribute("gender"), LabellingTask(()), "")[0]
    'Which of these describes the image best: "a woman" or "a man"? Answer with one of them and nothing else.'
    """
    texts = class_texts(attribute.concepts, task.class_template, group if "group" in placeholders(task.class_template) else "")
    *most, last = (f'"{text}"' for text in texts)
    return QUESTION.format(f"{', '.join(most)} or {last}"), tuple(texts)


def _chat(question: str, answer: str) -> list[dict[str, Any]]:
    asked = [{"type": "image"}, {"type": "text", "text": question}]
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
