"""Makes pipelines with transformers of the real classes with few random weights, cut down from the published configurations."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_inpaint, pipeline_qwenimage_edit_plus
from tests.published import PUBLISHED, values
from tests.tiny_models import SIZE, _quiet, t5, text_encoder, tokenizer, vae
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2Model,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from respodiff.pipelines.registry import PIPELINES

TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Sizes of a language model."""


def letters(longest: int = 512) -> PreTrainedTokenizerFast:
    """A tokenizer of letters, with a chat template."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz .,!"]
    model = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = Split("", "isolated")
    model.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    found = PreTrainedTokenizerFast(tokenizer_object=model, model_max_length=longest, **special)
    found.chat_template = "{% for m in messages %}user, {{ m.content }}. {% endfor %}"
    return found


def steps_of(name: str) -> Any:
    """The published scheduler of a class."""
    cls = PUBLISHED[name].same["scheduler._class_name"]
    return getattr(diffusers, cls)(**values(name, "scheduler"))


def vae8(name: str) -> Any:
    """The published autoencoder of a class, of the usual factor of 8."""
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=SIZE,
        **values(name, "vae"),
    ).eval()


def chroma(cls: str = "ChromaPipeline") -> Any:
    """Chroma: Flux's blocks, no pooled prompt, a mask of tokens."""
    torch.manual_seed(0)
    model = diffusers.ChromaTransformer2DModel(
        **values("ChromaPipeline", "transformer"),
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 14, 14),
        approximator_num_channels=8,
        approximator_hidden_dim=32,
        approximator_layers=1,
    ).eval()
    model.register_to_config(guidance_embeds=False)  # as in the published file; the class itself does not know it
    t = t5()
    parts = {"vae": vae(**values("ChromaPipeline", "vae")), "text_encoder": t["encoder"], "tokenizer": t["tokenizer"]}
    pipe = getattr(diffusers, cls)(transformer=model, scheduler=steps_of("ChromaPipeline"), **parts)
    return _sized(pipe)


def pixart(cls: str = "PixArtSigmaPipeline") -> Any:
    """PixArt: cross-attention to T5, noise and variance predicted."""
    torch.manual_seed(0)
    model = diffusers.PixArtTransformer2DModel(
        sample_size=SIZE // 2,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=32,
        **values("PixArtSigmaPipeline", "transformer"),
    ).eval()
    t = t5()
    parts = {"text_encoder": t["encoder"], "tokenizer": t["tokenizer"], "scheduler": steps_of("PixArtSigmaPipeline")}
    parts["vae"] = vae(**values("PixArtSigmaPipeline", "vae"))
    return _quiet(getattr(diffusers, cls)(transformer=model, **parts))


def sana(cls: str = "SanaPipeline") -> Any:
    """SANA: linear attention, Gemma 2, an autoencoder of high compression, DPM++ on flow matching."""
    torch.manual_seed(0)
    sprint = "Sprint" in cls
    name = "SanaSprintPipeline" if sprint else "SanaPipeline"
    sizes: dict[str, Any] = {
        "sample_size": SIZE // 4,
        "num_attention_heads": 7,
        "attention_head_dim": 4,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 14,
        "cross_attention_dim": 28,
        "caption_channels": 32,
    }
    told = values(name, "transformer") | ({"timestep_scale": 1000.0} if sprint else {})
    model = diffusers.SanaTransformer2DModel(**sizes, **told, num_layers=3).eval()
    coder = diffusers.AutoencoderDC(
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3,
        encoder_block_out_channels=(8, 8, 32),
        decoder_block_out_channels=(8, 8, 32),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        **values(name, "vae"),
    ).eval()
    parts = {"text_encoder": Gemma2Model(Gemma2Config(**TEXT, query_pre_attn_scalar=16)).eval(), "tokenizer": letters()}
    if "ControlNet" in cls:
        parts["controlnet"] = _felt(diffusers.SanaControlNetModel(**sizes, in_channels=32, out_channels=32, num_layers=1))
    return _quiet(getattr(diffusers, cls)(transformer=model, vae=coder, scheduler=steps_of(name), **parts))


def cogview4(cls: str = "CogView4Pipeline") -> Any:
    """CogView 4: image stream first, GLM, sizes as in SDXL."""
    torch.manual_seed(0)
    name = "CogView4Pipeline"
    model = diffusers.CogView4Transformer2DModel(
        sample_size=SIZE // 2,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=32,
        condition_dim=16,
        **values(name, "transformer") | ({"in_channels": 32} if "Control" in cls else {}),
        pos_embed_max_size=32,
        rope_axes_dim=(32, 32),
    ).eval()
    text = GlmModel(GlmConfig(**TEXT)).eval()
    parts = {"vae": vae(**values(name, "vae")), "text_encoder": text, "tokenizer": letters()}
    return _quiet(getattr(diffusers, cls)(transformer=model, scheduler=steps_of(name), **parts))


def flux2_klein(cls: str = "Flux2KleinPipeline", is_distilled: bool = False) -> Any:
    """FLUX.2 klein: blocks of two streams, then of one; Qwen 3; latents in squares of two."""
    torch.manual_seed(0)
    model = diffusers.Flux2Transformer2DModel(
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=96,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        **values("Flux2KleinPipeline", "transformer"),
    ).eval()
    torch.manual_seed(1)
    coder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=SIZE,
        **values("Flux2KleinPipeline", "vae"),
    ).eval()
    text = Qwen3ForCausalLM(Qwen3Config(**{**TEXT, "num_hidden_layers": 28})).eval()
    parts = {"text_encoder": text, "tokenizer": letters(), "scheduler": steps_of("Flux2KleinPipeline")}
    pipe = getattr(diffusers, cls)(transformer=model, vae=coder, is_distilled=is_distilled, **parts)
    return _sized(pipe)


def qwen(cls: str = "QwenImagePipeline") -> Any:
    """Qwen-Image: two streams, a vision-language model that reads the prompt within a template, an autoencoder of videos."""
    torch.manual_seed(0)
    model = diffusers.QwenImageTransformer2DModel(
        num_layers=3,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 14, 14),
        **values("QwenImagePipeline", "transformer"),
    ).eval()
    # Means and deviations of its latents are the class's own.
    coder = diffusers.AutoencoderKLQwenImage(base_dim=8, z_dim=16, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False]).eval()
    language = {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}}
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [0]}
    config = Qwen2_5_VLConfig(text_config=language, vision_config=sight, image_token_id=60, video_token_id=61, vision_start_token_id=62)
    text = Qwen2_5_VLForConditionalGeneration(config).eval()
    parts = {"text_encoder": text, "tokenizer": letters(2048), "scheduler": steps_of("QwenImagePipeline")}
    if "ControlNet" in cls:
        known = {k: v for k, v in model.config.items() if k in inspect.signature(diffusers.QwenImageControlNetModel.__init__).parameters}
        more = {"num_layers": 1, "extra_condition_channels": 4 * ("Inpaint" in cls)}  # a mask of two by two
        parts["controlnet"] = _felt(diffusers.QwenImageControlNetModel(**{**known, **more}))
    if "Edit" in cls:
        parts["processor"] = Processor()
    pipe = getattr(diffusers, cls)(transformer=model, vae=coder, **parts)
    return _sized(pipe)


def hunyuan(cls: str = "HunyuanDiTPipeline") -> Any:
    """HunyuanDiT: BERT and T5, long skips between blocks, v-prediction, noise and variance predicted."""
    torch.manual_seed(0)
    model = diffusers.HunyuanDiT2DModel(
        sample_size=SIZE // 8,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=32,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        **values("HunyuanDiTPipeline", "transformer"),
    ).eval()
    torch.manual_seed(2)
    bert = BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=128
    )
    t = t5()
    parts = {
        "text_encoder": BertModel(bert).eval(),
        "tokenizer": letters(77),
        "text_encoder_2": t["encoder"],
        "tokenizer_2": t["tokenizer"],
    }
    more: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if "ControlNet" in cls:
        known = {k: v for k, v in model.config.items() if k in inspect.signature(diffusers.HunyuanDiT2DControlNetModel.__init__).parameters}
        more["controlnet"] = _felt(diffusers.HunyuanDiT2DControlNetModel(**known, transformer_num_layers=4))
    own = {"vae": vae8("HunyuanDiTPipeline"), "scheduler": steps_of("HunyuanDiTPipeline")}
    return _quiet(getattr(diffusers, cls)(transformer=model, **own, **parts, **more))


def z_image(cls: str = "ZImagePipeline") -> Any:
    """Z-Image: image and text in one sequence, lists of latents and prompts, Qwen 3."""
    torch.manual_seed(0)
    model = diffusers.ZImageTransformer2DModel(
        **values("ZImagePipeline", "transformer"),
        dim=32,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 32, 32],
    ).eval()
    torch.nn.init.normal_(model.x_pad_token)
    torch.nn.init.normal_(model.cap_pad_token)
    text = Qwen3Model(Qwen3Config(**TEXT)).eval()
    parts = {"vae": vae(**values("ChromaPipeline", "vae")), "text_encoder": text, "tokenizer": letters()}
    if "ControlNet" in cls:
        net = diffusers.ZImageControlNetModel(
            control_layers_places=[0, 2],
            control_refiner_layers_places=[0],
            control_in_dim=16,
            dim=32,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
        )
        parts["controlnet"] = _felt(net)
    return _sized(getattr(diffusers, cls)(transformer=model, scheduler=steps_of("ZImagePipeline"), **parts))


def lumina2(cls: str = "Lumina2Pipeline") -> Any:
    """Lumina 2: text and image in one sequence, Gemma 2."""
    torch.manual_seed(0)
    model = diffusers.Lumina2Transformer2DModel(
        sample_size=SIZE // 8,
        **values("Lumina2Pipeline", "transformer"),
        hidden_size=36,
        num_layers=3,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(600, 32, 32),
        cap_feat_dim=32,
    ).eval()
    text = Gemma2Model(Gemma2Config(**TEXT, query_pre_attn_scalar=16)).eval()
    parts = {"vae": vae8("Lumina2Pipeline"), "text_encoder": text, "tokenizer": letters()}
    return _quiet(getattr(diffusers, cls)(transformer=model, scheduler=steps_of("Lumina2Pipeline"), **parts))


def flux2(cls: str = "Flux2Pipeline") -> Any:
    """FLUX.2 dev: Mistral 3 that reads the prompt behind a long system message, an embedded guidance."""
    pipe = flux2_klein()
    torch.manual_seed(0)
    model = diffusers.Flux2Transformer2DModel.from_config({**pipe.transformer.config, "guidance_embeds": True}).eval()
    torch.manual_seed(2)
    sight = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "image_size": 32}
    text = Mistral3Config(
        text_config={"model_type": "mistral", **TEXT, "num_hidden_layers": 30},
        vision_config={"model_type": "pixtral", "patch_size": 8, **sight},
        image_token_index=60,
    )
    parts = {"vae": pipe.vae, "scheduler": pipe.scheduler, "text_encoder": Mistral3ForConditionalGeneration(text).eval()}
    return _sized(getattr(diffusers, cls)(transformer=model, tokenizer=Processor(), **parts))


def _felt(net: Any) -> Any:
    """A ControlNet that has an effect: those that are made start at zero."""
    torch.manual_seed(5)
    for p in net.parameters():
        if not p.abs().max():
            torch.nn.init.normal_(p, std=0.3)
    return net.eval()


class Processor:
    """Stands for those of transformers that read images too, which need torchvision: a tokenizer within, a template of parts."""

    def __init__(self) -> None:
        self.tokenizer = letters()
        self.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}, {% for c in m.content %}{{ c.text }}{% endfor %}. {% endfor %}"

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer.apply_chat_template(*args, **kwargs)

    def __call__(self, text: Any, images: Any, **kwargs: Any) -> Any:
        """Tokens of the text, and of an image's mean brightness."""
        shown = images[0] if isinstance(images, list) else images
        return self.tokenizer([f"{'abcdefgh'[int(np.asarray(shown).mean()) // 32]} {t}" for t in text], **kwargs)


def hidream(cls: str = "HiDreamImagePipeline") -> Any:
    """HiDream: image stream first, experts, two CLIPs, T5, and every layer of a Llama."""
    torch.manual_seed(0)
    model = diffusers.HiDreamImageTransformer2DModel(
        **values("HiDreamImagePipeline", "transformer"),
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[32, 32],
        text_emb_dim=64,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(SIZE // 2, SIZE // 2),
        llama_layers=[0, 1, 2, 2, 2, 2],
    ).eval()
    torch.manual_seed(3)
    llama = LlamaForCausalLM(LlamaConfig(**{**TEXT, "num_hidden_layers": 3})).eval()
    t = t5()
    parts = {"text_encoder_3": t["encoder"], "tokenizer_3": t["tokenizer"], "text_encoder_4": llama, "tokenizer_4": letters()}
    pipe = getattr(diffusers, cls)(
        transformer=model,
        scheduler=steps_of("HiDreamImagePipeline"),
        vae=vae(**values("HiDreamImagePipeline", "vae")),
        text_encoder=text_encoder(True, tokens=128),
        tokenizer=tokenizer(),
        text_encoder_2=text_encoder(True, 3, tokens=128),
        tokenizer_2=tokenizer(),
        **parts,
    )
    return _sized(pipe)


def _sized(pipe: Any) -> Any:
    """With the tiny size, which these classes do not take from a configuration."""
    pipe.default_sample_size = SIZE // 2
    return _quiet(pipe)


for _edits in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_inpaint):
    _edits.calculate_dimensions = lambda _area, _ratio: (SIZE, SIZE, None)  # else images that are edited have 1024 x 1024 pixels
pipeline_qwenimage_edit_plus.calculate_dimensions = lambda _area, _ratio: (SIZE, SIZE)

MAKERS: dict[str, Callable[[str], Any]] = {
    "Chroma": chroma,
    "PixArtSigma": pixart,
    "Sana": sana,
    "CogView4": cogview4,
    "QwenImage": qwen,
    "HunyuanDiT": hunyuan,
    "ZImage": z_image,
    "Lumina2": lumina2,
    "Flux2Klein": flux2_klein,
    "Flux2": flux2,
    "HiDream": hidream,
}
"""How the name of a class begins -> its maker."""
TEXT_TO_IMAGE = [name for name, spec in PIPELINES.items() if not spec.images and name.startswith(tuple(MAKERS))]
"""The classes that are made here and take prompts alone."""


def make(cls: str) -> Any:
    """A fresh pipeline of a class."""
    return next(maker for start, maker in MAKERS.items() if cls.startswith(start))(cls)
