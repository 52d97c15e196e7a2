"""Small random text encoders and small real tokenizers, of the classes that published pipelines have."""

from __future__ import annotations

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

PROMPTS = [
    'a red ball moves to the left; a sign says "stop" and then “go on”',
    "",
    "two cats",
    "  rain   falls on\na &lt;quiet&gt; street, a man walks by with a dog and a blue umbrella  ",
]
_CORPUS = [*PROMPTS, "the small blue digit seven moves up and down", "describe the video by detailing these aspects"]


def unigram(size: int = 120) -> PreTrainedTokenizerFast:
    """As T5's: ids 0 to 2 are <pad>, </s>, <unk>; </s> is appended. It knows no letter that its texts lack."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(_CORPUS, trainer)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def byte_pairs(special: list[str], single: str = "$A", **named: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE. single: what stands around a text. named: pad_token and so on."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        _CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens([AddedToken(token, special=True) for token in special])
    if single != "$A":
        around = [(token, made.token_to_id(token)) for token in special if token in single]
        made.post_processor = processors.TemplateProcessing(single=single, special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


def clip_tokenizer() -> PreTrainedTokenizerFast:
    first, last = "<|startoftext|>", "<|endoftext|>"
    return byte_pairs([first, last], f"{first} $A {last}", bos_token=first, eos_token=last, pad_token=last)


def llama_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<pad>"]
    return byte_pairs(special, f"{special[0]} $A", bos_token=special[0], pad_token="<pad>", padding_side="right")


QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = byte_pairs(special, pad_token=special[0], eos_token="<|im_end|>", padding_side="right")
    made.chat_template = QWEN_CHAT
    return made


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    return byte_pairs(["<pad>", "<eos>", "<bos>"], "<bos> $A", pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def byte_tokenizer() -> ByT5Tokenizer:
    return ByT5Tokenizer()


# --- encoders ---

_DECODER = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1)


def _seeded(model: type[PreTrainedModel], config) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = model(config).eval()
        with torch.no_grad():
            for name, p in made.named_parameters():
                p.add_(torch.randn_like(p) * (0.1 if p.ndim < 2 or "bias" in name else 0.2))
    return made


def t5(vocab: int = 130, width: int = 16) -> T5EncoderModel:
    sizes = dict(vocab_size=vocab, d_model=width, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    return _seeded(T5EncoderModel, T5Config(**sizes, feed_forward_proj="gated-gelu", dropout_rate=0.0))


def umt5(vocab: int = 130) -> UMT5EncoderModel:
    sizes = dict(vocab_size=vocab, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    return _seeded(UMT5EncoderModel, UMT5Config(**sizes, feed_forward_proj="gated-gelu", dropout_rate=0.0))


def clip(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    sizes = dict(hidden_size=12, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, max_position_embeddings=77, **sizes
    )
    return _seeded(CLIPTextModel, config)


def llama(tokenizer: PreTrainedTokenizerFast) -> LlamaModel:
    return _seeded(LlamaModel, LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **_DECODER))


def qwen(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLTextModel:
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e6}
    config = Qwen2_5_VLTextConfig(
        vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, rope_parameters=rope, **_DECODER
    )
    return _seeded(Qwen2_5_VLTextModel, config)


def gemma(tokenizer: PreTrainedTokenizerFast) -> Gemma3ForConditionalGeneration:
    vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    config = Gemma3Config(
        text_config=dict(vocab_size=len(tokenizer), head_dim=12, sliding_window=8, **_DECODER),
        vision_config=vision | dict(image_size=16, patch_size=8),
        mm_tokens_per_image=4,
        image_token_index=len(tokenizer) - 1,
    )
    return _seeded(Gemma3ForConditionalGeneration, config)
