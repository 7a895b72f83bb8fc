"""Folders of tiny transformers models with random weights that judges are loaded from: a classifier, SigLIP, SigLIP 2, and a chat model that sees."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from painted import coloured

transformers.utils.logging.set_verbosity_error()  # notices about the tiny configurations

SIDE = 16
LABELS = ("Female", "Male", "drawing")
GENDER_TOML = '[gender]\nwoman = ["Female"]\nman = ["Male"]\n'
WORDS = (
    'which of these describes the image best : " a woman man or cook person guard with dark light skin ? answer one them and nothing else .'
)
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %} </s> {% endfor %}"
)
LAYER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = LAYER | {"image_size": SIDE, "patch_size": 8}
SIZE = {"height": SIDE, "width": SIDE}


def classifier(folder: Path, labels: tuple[str, ...] = LABELS, toml: str = GENDER_TOML, **changes: Any) -> Path:
    """A ViT with these labels, and what they mean as ``labels.toml``. The first stands for black images, then red, green and blue ones."""
    model = _random(ViTForImageClassification, ViTConfig(**VISION, id2label=dict(enumerate(labels)), **changes))
    images = ViTImageProcessorPil(size=SIZE)
    shown = [
        coloured(tuple(255 * (i == channel + 1) for channel in range(3)), (side, side)) for side in (4, SIDE) for i in range(len(labels))
    ]
    with torch.no_grad():
        seen = model.vit(**images(shown, return_tensors="pt")).last_hidden_state[:, 0]
        model.classifier.bias.zero_()
        model.classifier.weight.copy_((torch.linalg.pinv(seen) @ (6 * torch.eye(len(labels)).repeat(2, 1))).T)
    for part in (model, images):
        part.save_pretrained(folder)
    (folder / "labels.toml").write_text(toml)
    return folder


def siglip(folder: Path) -> Path:
    text = LAYER | {"vocab_size": 64, "max_position_embeddings": 12, "projection_size": 32}
    _save(SiglipModel, SiglipConfig(text_config=text, vision_config=VISION), folder, SiglipImageProcessorPil(size=SIZE), tokenizer())
    return folder


def siglip2(folder: Path) -> Path:
    """The kind that takes patches of images of any shape, and one token a letter."""
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *string.ascii_lowercase]
    words = Siglip2Tokenizer(vocab={letter: i for i, letter in enumerate(letters)})
    text = LAYER | {"vocab_size": 64, "max_position_embeddings": 12, "projection_size": 32}
    vision = LAYER | {"num_patches": 4, "patch_size": 8}
    images = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=4)
    _save(Siglip2Model, Siglip2Config(text_config=text, vision_config=vision), folder, images, words)
    return folder


def vlm(folder: Path) -> Path:
    """LLaVA with 4 tokens an image."""
    words = tokenizer()
    text = LlamaConfig(**LAYER, vocab_size=64, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    image_token = words.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=CLIPVisionConfig(**VISION, projection_dim=32), text_config=text, image_token_id=image_token)
    images = CLIPImageProcessorPil(size=SIZE, crop_size=SIZE)
    strategy: dict[str, Any] = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    _save(LlavaForConditionalGeneration, config, folder, LlavaProcessor(images, words, chat_template=TEMPLATE, **strategy))
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; in lower case alone."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, "user", "assistant", *WORDS.split()]))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _save(cls: Any, config: Any, folder: Path, *parts: Any) -> None:
    for part in (_random(cls, config), *parts):
        part.save_pretrained(folder)


def _random(cls: Any, config: Any) -> Any:
    """Weights are large, so that what the model says depends on what it sees."""
    torch.manual_seed(0)
    model = cls(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.5)
            elif "norm" not in name:
                torch.nn.init.normal_(weight, std=0.2)
    return model.eval()
