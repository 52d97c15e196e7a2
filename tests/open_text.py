"""The text encoder and tokenizer that small repositories of published models share."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from latentvid.demo.digits import prompts
from latentvid.demo.text_encoder import build_tokenizer

TEXT_WIDTH = 16


def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer([text for _, text in prompts(100, heldout=False, seed=0)], vocab_size=400)


def text_encoder(kind: str = "t5") -> nn.Module:
    config, cls = (UMT5Config, UMT5EncoderModel) if kind == "umt5" else (T5Config, T5EncoderModel)
    sizes = dict(d_model=TEXT_WIDTH, d_kv=4, d_ff=32, num_layers=1, num_heads=4, dropout_rate=0.0)
    return cls(config(vocab_size=400, **sizes, feed_forward_proj="gated-gelu")).eval()


def text_parts(kind: str = "t5") -> dict[str, Any]:
    return {"tokenizer": tokenizer(), "text_encoder": text_encoder(kind)}
