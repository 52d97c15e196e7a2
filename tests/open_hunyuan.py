"""Small random repositories of HunyuanVideo and 1.5, written by diffusers' own pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import text_models as small
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from latentvid.demo.digits import prompts
from latentvid.models.open import hunyuan, hunyuan15

SIZES = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, num_refiner_layers=1, rope_axes_dim=(4, 6, 6))


def words(template: str, special: Sequence[str], single: str = "$A", **named: Any) -> PreTrainedTokenizerFast:
    """Its tokens are short words and signs: templates have at least as many as in the published tokenizers, of which
    the readings leave out a number."""
    halves = pre_tokenizers.Split(Regex(".{1,6}"), "isolated")
    split = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), halves])
    texts = [template, *(text for _, text in prompts(100, heldout=False, seed=0))]
    known = dict.fromkeys(word for text in texts for word, _ in split.pre_tokenize_str(text))
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *known])}, unk_token="<unk>"))
    made.pre_tokenizer = split
    made.add_special_tokens([AddedToken(token, special=True) for token in special])
    if single != "$A":
        made.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(special[0], made.token_to_id(special[0]))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", padding_side="right", **named)


def video() -> HunyuanVideoPipeline:
    """HunyuanVideo, with a guidance embedding."""
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<pad>"]
    tokenizer = words(hunyuan.TEMPLATE, special, f"{special[0]} $A", bos_token=special[0], pad_token="<pad>")
    tokenizer_2 = small.clip_tokenizer()
    return HunyuanVideoPipeline(
        text_encoder=small.llama(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=small.clip(tokenizer_2),
        tokenizer_2=tokenizer_2,
        transformer=HunyuanVideoTransformer3DModel(
            **SIZES,
            in_channels=4,
            out_channels=4,
            num_single_layers=2,
            text_embed_dim=24,
            pooled_projection_dim=12,
        ),
        vae=AutoencoderKLHunyuanVideo(
            block_out_channels=(4, 4, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


def _parts15() -> dict[str, Any]:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = words(hunyuan15.TEMPLATE, special, pad_token=special[0], eos_token="<|im_end|>")
    tokenizer.chat_template = small.QWEN_CHAT
    tokenizer_2 = small.byte_tokenizer()
    return dict(
        text_encoder=small.qwen(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=small.t5(len(tokenizer_2), width=8),
        tokenizer_2=tokenizer_2,
        transformer=HunyuanVideo15Transformer3DModel(
            **SIZES,
            in_channels=9,
            out_channels=4,
            text_embed_dim=24,
            text_embed_2_dim=8,
            image_embed_dim=12,
            target_size=48,  # by which its pipelines choose sizes: 32 x 64 and 64 x 32 among them
        ),
        vae=AutoencoderKLHunyuanVideo15(block_out_channels=(4, 4, 8, 8, 8), latent_channels=4, layers_per_block=1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    )


def video15() -> HunyuanVideo15Pipeline:
    """HunyuanVideo 1.5, text to video."""
    return HunyuanVideo15Pipeline(**_parts15())


def image15() -> HunyuanVideo15ImageToVideoPipeline:
    """HunyuanVideo 1.5, image to video: SigLIP, latents of the image and a mask."""
    sizes = dict(hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    encoder = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=16, patch_size=8)).eval()
    return HunyuanVideo15ImageToVideoPipeline(
        **_parts15(),
        image_encoder=encoder,
        feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
    )
