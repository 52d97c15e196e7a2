"""The encoder classes of transformers that are read, by the `model_type` in a folder's config.json: nothing else is
loaded, whatever files name."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

from torch import nn
from transformers import (
    CLIPTextModel,
    Gemma3ForConditionalGeneration,
    Gemma3TextModel,
    LlamaModel,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextModel,
    T5EncoderModel,
    UMT5EncoderModel,
)

_T5 = (
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
    "feed_forward_proj",
)
_CLIP = "num_attention_heads", "layer_norm_eps", "hidden_act", "eos_token_id"
_DECODER = (
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "hidden_act",
    "rope_parameters",
    "sliding_window",
    "layer_types",
)
_GEMMA = (*_DECODER, "query_pre_attn_scalar", "hidden_activation", "attn_logit_softcapping")


@dataclass(frozen=True)
class Kind:
    """model: what is loaded. keys: of its config, what changes the states and is in no parameter's shape.

    inner: the part of it that reads text, where it reads pictures too.
    """

    model: type[PreTrainedModel]
    keys: tuple[str, ...]
    inner: str = ""

    def reader(self, model: PreTrainedModel) -> nn.Module:
        return attrgetter(self.inner)(model) if self.inner else model


KINDS = {
    "t5": Kind(T5EncoderModel, _T5),  # ByT5 too
    "umt5": Kind(UMT5EncoderModel, _T5),
    "clip_text_model": Kind(CLIPTextModel, _CLIP),
    "llama": Kind(LlamaModel, _DECODER),
    "qwen2_5_vl_text": Kind(Qwen2_5_VLTextModel, _DECODER),
    "qwen2_5_vl": Kind(Qwen2_5_VLForConditionalGeneration, _DECODER, "model.language_model"),
    "gemma3_text": Kind(Gemma3TextModel, _GEMMA),
    "gemma3": Kind(Gemma3ForConditionalGeneration, _GEMMA, "model.language_model"),
}


def keys_of(encoder: nn.Module) -> tuple[str, ...]:
    """As `Kind.keys`, of an encoder that is loaded."""
    return KINDS[encoder.config.model_type].keys
