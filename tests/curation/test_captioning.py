"""Captions from each source, and by a small random vision-language model of transformers."""

import numpy as np
import pyarrow.parquet
import pytest
import torch
from curated_footage import in_a_loop, shot, write
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from latentvid.curation.captioning import Describer, caption_of, from_template, sidecar
from latentvid.curation.footage import File
from latentvid.curation.networks import looked_at
from latentvid.curation.probing import probed
from latentvid.curation.run import curate
from latentvid.curation.settings import Captions, Curation, Measures, Segments, Shots
from latentvid.errors import ClipError, UserError

WORDS = [f"word{n}" for n in range(40)]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
CHAT = (
    "{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<image> {% else %}"
    "{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a LLaVA of 8x8-pixel patches, which looks at 16x16 pixels and knows forty words."""
    folder = tmp_path_factory.mktemp("llava")
    vocabulary = {word: n for n, word in enumerate([*SPECIAL, *WORDS])}
    tokens = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, **names, additional_special_tokens=["<image>"])
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=16, patch_size=8),
        text_config=LlamaConfig(**small, vocab_size=len(vocabulary), pad_token_id=0, bos_token_id=1, eos_token_id=2),
        image_token_index=4,
        vision_feature_select_strategy="default",
    )
    made = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(8.0)  # so that pictures count
        made.lm_head.weight[: len(SPECIAL)] = 0  # and words are said
    made.save_pretrained(folder)
    return folder


def unit(folder, seed: int) -> dict:
    file = write(folder / f"{seed}.mp4", shot(seed, 12))
    row = probed({"file": str(file), "source": file.name})
    return {"file": row["file"], "segments": [{"first": 0, "count": 6}, {"first": 6, "count": 6}]}


def test_a_model_describes_segments_alone_as_together(model, tmp_path):
    settings = Captions(model=str(model), prompt="word1 word2", frames=2, batch=2, max_tokens=5)
    describe = Describer(settings)
    found = [describe(unit(tmp_path, seed)) for seed in (1, 2)]
    for said in found:
        assert len(said) == 2 and all(text and set(text.split()) <= set(WORDS) for text in said), found
        assert all(len(text.split()) <= 5 for text in said)  # and not the prompt before it
    assert len({text for said in found for text in said}) > 1  # pictures count
    alone = Describer(Captions(model=str(model), prompt="word1 word2", frames=2, batch=1, max_tokens=5))
    assert [alone(unit(tmp_path, seed)) for seed in (1, 2)] == found


def test_what_is_no_such_model_is_said(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded as a vision-language model"):
        Describer(Captions(model=str(tmp_path)))


def test_a_curation_asks_the_model_for_what_has_no_caption(model, tmp_path):
    write(tmp_path / "in" / "a.mp4", shot(1, 9))
    write(tmp_path / "in" / "b.mp4", shot(2, 9))
    (tmp_path / "in" / "a.txt").write_text("blobs")
    settings = Curation(
        shots=Shots(detector="none"),
        segments=Segments(min_frames=5, max_frames=9),
        measures=Measures(area=5000),
        captions=Captions(model=str(model), prompt="word1", frames=2, max_tokens=3),
        filters=("words <= 3",),
    )
    running = in_a_loop()
    curate(settings, tmp_path / "in", tmp_path / "out", running)
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "segments.parquet").to_pylist()
    assert rows[0]["caption"] == "blobs" and set(rows[1]["caption"].split()) <= set(WORDS)
    assert running.loop.done == 5  # two looked at, two measured, one described


def test_the_first_source_that_has_a_caption_gives_it(tmp_path):
    row, settings = {"stem": "cat", "seconds": 2.5, "motion": None}, Captions(template="{stem} for {seconds} s")
    assert caption_of(row, settings, ["given", "twice"], "beside", "said") == ["given", "twice"]
    assert caption_of(row, settings, [], "beside", "said") == ["beside"]
    assert caption_of(row, settings, [], None, "said") == ["said"]
    assert caption_of(row, settings, [], None, None) == ["cat for 2.5 s"]
    last = Captions(sources=("template", "manifest"), template="{stem}")
    assert caption_of(row, last, ["given"], None, None) == ["cat"]
    assert caption_of(row, Captions(), None, None, None) is None
    assert from_template("{motion}", row) is None
    (tmp_path / "x.txt").write_text(" ")
    with pytest.raises(ClipError):
        sidecar(File("x", str(tmp_path / "x.mp4")))
    assert sidecar(File("x", str(tmp_path / "y.mp4"))) is None


def test_frames_that_are_looked_at_are_without_borders(tmp_path):
    bars = np.pad(shot(1, 8), ((0, 0), (8, 8), (0, 0), (0, 0)))
    file = write(tmp_path / "x.mp4", bars, crf=0)
    segment = {"first": 2, "count": 6, "border_top": 8, "border_bottom": 8, "border_left": 0, "border_right": 4}
    found = looked_at(str(file), segment, 3)
    assert found.shape == (3, 72, 92, 3)
    assert np.abs(found.astype(int) - bars[[3, 5, 7], 8:-8, :-4]).mean() < 3
    assert len(looked_at(str(file), segment, 100)) == 6
