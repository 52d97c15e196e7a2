"""Text encoders of published models: exactly what each diffusers pipeline gives its transformer, packed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import text_models as small
import torch
from diffusers import (
    CogVideoXPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideoPipeline,
    LTX2Pipeline,
    LTXPipeline,
    MochiPipeline,
    WanPipeline,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from text_models import PROMPTS
from torch import Tensor

from latentvid.text import PackedText, TextReader, load_reader
from latentvid.text.policy import Reading


def read_from(folder: Path, readings: Sequence[Reading], **parts) -> TextReader:
    """Saved as a repository's folders, and loaded from there."""
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    return load_reader({name: folder / name for name in parts}, readings)


def pipeline(cls, **parts):
    """With text encoders alone."""
    every = {name: None for name in cls.__init__.__annotations__ if name not in ("boundary_ratio", "expand_timesteps")}
    every.pop("force_zeros_for_empty_prompt", None)
    return cls(**every | parts)


def check(found: Sequence[Tensor], wanted: Tensor, mask: Tensor | None = None) -> None:
    """Of each prompt: the rows of [N,L,D], those of the mask [N,L]. 5e-6 of their size."""
    assert len(found) == len(wanted) == len(PROMPTS)
    for i, states in enumerate(found):
        row = wanted[i] if mask is None else wanted[i][mask[i].bool()]
        assert states.shape == row.shape and states.dtype == row.dtype
        if row.numel():
            torch.testing.assert_close(states, row, rtol=0, atol=5e-6 * max(1.0, float(row.abs().max())))


class Vae:
    """What a pipeline asks of one as it is made."""

    config = SimpleNamespace(latent_channels=32)
    temporal_compression_ratio, spatial_compression_ratio = 4, 16


def seconds(text: PackedText) -> tuple[Tensor, ...]:
    return text.second.split(text.second_lengths)


@torch.no_grad()
def test_wan(tmp_path):
    encoder, tokenizer = small.umt5(), small.unigram()
    pipe = pipeline(WanPipeline, text_encoder=encoder, tokenizer=tokenizer)
    plain = [prompt.replace("“", '"').replace("”", '"') for prompt in PROMPTS]  # others need ftfy
    wanted, _ = pipe.encode_prompt(plain, do_classifier_free_guidance=False, max_sequence_length=96)
    reader = read_from(
        tmp_path, [Reading(tokens=96, pad="zero", clean="mend")], text_encoder=encoder, tokenizer=tokenizer
    )
    found = reader.encode(plain)
    check(found.split(), wanted)
    assert found.lengths == [96] * 4 == [len(ids) for ids in reader.tokenize(plain)]
    assert wanted[1, 1:].abs().max() == 0 and wanted[3].ne(wanted[0]).any()
    assert found.pooled is None and found.second is None and (reader.dim, reader.pooled_dim) == (16, None)


@torch.no_grad()
def test_ltx(tmp_path):
    encoder, tokenizer = small.t5(), small.unigram()
    pipe = pipeline(LTXPipeline, text_encoder=encoder, tokenizer=tokenizer)
    wanted, mask, *_ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False, max_sequence_length=96)
    reader = read_from(tmp_path, [Reading(tokens=96, pad="seen")], text_encoder=encoder, tokenizer=tokenizer)
    found = reader.encode(PROMPTS)
    check(found.split(), wanted, mask)
    assert found.lengths == [len(ids) for ids in reader.tokenize(PROMPTS)]
    masked = read_from(tmp_path, [Reading(tokens=96)], text_encoder=encoder, tokenizer=tokenizer)
    assert (masked.encode(PROMPTS).states - found.states).abs().max() > 1e-3  # the padding is seen


@torch.no_grad()
def test_cogvideox(tmp_path):
    encoder, tokenizer = small.t5(), small.unigram()
    pipe = pipeline(CogVideoXPipeline, text_encoder=encoder, tokenizer=tokenizer)
    wanted, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False, max_sequence_length=90)
    reader = read_from(tmp_path, [Reading(tokens=90, pad="encoded")], text_encoder=encoder, tokenizer=tokenizer)
    check(reader.encode(PROMPTS).split(), wanted)
    assert [len(ids) for ids in reader.tokenize(PROMPTS)] == [90] * 4


@pytest.mark.parametrize("zeros", [False, True])
@torch.no_grad()
def test_mochi(tmp_path, zeros):
    encoder, tokenizer = small.t5(), small.unigram()
    pipe = pipeline(MochiPipeline, text_encoder=encoder, tokenizer=tokenizer, force_zeros_for_empty_prompt=zeros)
    alone = [pipe.encode_prompt([p], do_classifier_free_guidance=False, max_sequence_length=96)[:2] for p in PROMPTS]
    wanted, mask = (torch.cat(some) for some in zip(*alone, strict=True))
    reading = Reading(tokens=96, empty=None if zeros else "")
    reader = read_from(tmp_path, [reading], text_encoder=encoder, tokenizer=tokenizer)
    found = reader.encode(PROMPTS)
    check(found.split(), wanted, mask)
    assert found.lengths[1] == (0 if zeros else 1) == len(reader.tokenize([""])[0])


@torch.no_grad()
def test_hunyuan_video(tmp_path):
    words, two = small.llama_tokenizer(), small.clip_tokenizer()
    encoder, encoder_2 = small.llama(words), small.clip(two)
    template = DEFAULT_PROMPT_TEMPLATE["template"]
    crop = len(words(template.partition("{}")[0])["input_ids"])
    parts = dict(text_encoder=encoder, tokenizer=words, text_encoder_2=encoder_2, tokenizer_2=two)
    pipe = pipeline(HunyuanVideoPipeline, **parts)
    told = {"template": template, "crop_start": crop}
    wanted, pooled, mask = pipe.encode_prompt(PROMPTS, prompt_template=told, max_sequence_length=120)
    readings = [
        Reading(tokens=120, layer=-3, template=template, crop=crop),
        Reading(part="text_encoder_2", tokenizer="tokenizer_2", gives="pooled", tokens=77, cut=True),
    ]
    reader = read_from(tmp_path, readings, **parts)
    found = reader.encode(PROMPTS)
    check(found.split(), wanted, mask)
    check(found.pooled, pooled)
    assert reader.pooled_dim == 12 and found.lengths[2] < found.lengths[3] < 120
    long = "a man " * 50  # of more than 77 tokens: the pooled state is of its beginning
    assert torch.equal(reader.pooled.encode([long])[0], reader.pooled.encode([long + "runs"])[0])
    torch.testing.assert_close(
        reader.pooled.encode([long])[0], pipe.encode_prompt([long], prompt_template=told)[1], rtol=0, atol=1e-6
    )


@torch.no_grad()
def test_hunyuan_video_15(tmp_path):
    words, two = small.qwen_tokenizer(), small.byte_tokenizer()
    encoder, encoder_2 = small.qwen(words), small.t5(len(two), width=8)
    parts = dict(text_encoder=encoder, tokenizer=words, text_encoder_2=encoder_2, tokenizer_2=two)
    pipe = pipeline(HunyuanVideo15Pipeline, vae=Vae(), **parts)
    before = f"<|im_start|>system\n{pipe.system_message}<|im_end|>\n<|im_start|>user\n"
    crop = len(words(before)["input_ids"])
    pipe.prompt_template_encode_start_idx, pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = crop, 120, 24
    wanted, mask, wanted_2, mask_2 = pipe.encode_prompt(PROMPTS, batch_size=len(PROMPTS))
    template = f"{before}{{}}<|im_end|>\n<|im_start|>assistant\n"
    second = dict(part="text_encoder_2", tokenizer="tokenizer_2", gives="second", takes="quoted", cut=True)
    readings = [
        Reading(tokens=120, layer=-3, template=template, crop=crop, empty=" "),
        Reading(tokens=24, **second),
    ]
    reader = read_from(tmp_path, readings, **parts)
    found = reader.encode(PROMPTS)
    check(found.split(), wanted, mask)
    check(seconds(found), wanted_2, mask_2)
    assert found.second_lengths == [24, 0, 0, 0]  # cut; no quotation marks
    assert reader.second_dim == 8 and reader.encode(["two cats"]).second.shape == (0, 8)


@pytest.mark.parametrize("registers", [16, None])
@pytest.mark.parametrize("by_modality", [False, True])
@torch.no_grad()
def test_ltx2(tmp_path, by_modality, registers):
    tokenizer = small.gemma_tokenizer()
    encoder = small.gemma(tokenizer)
    sizes = {f"{m}_connector_{k}": v for m in ("video", "audio") for k, v in (("num_attention_heads", 2),)}
    sizes |= dict(video_connector_attention_head_dim=12, audio_connector_attention_head_dim=12)
    for modality in ("video", "audio"):
        sizes |= {
            f"{modality}_connector_num_layers": 1,
            f"{modality}_connector_num_learnable_registers": registers,
            f"{modality}_hidden_dim": 24,
        }
    torch.manual_seed(0)
    connectors = LTX2TextConnectors(24, 5, per_modality_projections=by_modality, **sizes).eval()
    pipe = pipeline(LTX2Pipeline, text_encoder=encoder, tokenizer=tokenizer, connectors=connectors)
    states, mask, *_ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False, max_sequence_length=96)
    wanted, _, kept = pipe.connectors(states, mask, padding_side=tokenizer.padding_side)
    reading = Reading(tokens=96, layer="all", side="left", clean="strip", connectors="connectors")
    parts = dict(text_encoder=encoder, tokenizer=tokenizer, connectors=connectors)
    reader = read_from(tmp_path, [reading], **parts)
    found = reader.encode(PROMPTS)
    check(found.split(), wanted, kept)
    assert found.lengths == [len(ids) for ids in reader.tokenize(PROMPTS)] and reader.dim == 24
    assert found.lengths == [96] * 4
    other = LTX2TextConnectors(24, 5, per_modality_projections=by_modality, **sizes)
    again = read_from(tmp_path, [reading], **parts | {"connectors": other})
    assert again.fingerprint() != reader.fingerprint()
