"""Masks by attention: which tokens a word is, what of the attention goes to them, and what an edit then leaves."""

from dataclasses import replace

import pytest
import torch

from latentvid.errors import UserError
from latentvid.pipelines import edits, local
from latentvid.pipelines.attention_masks import attention_mask, recorded, shares, tokens_of_words
from latentvid.pipelines.canvas import Canvas
from latentvid.pipelines.clip_windows import Plan, made_anew
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.sampling import Sampling

FAST = Sampling(steps=2, progress=False, precision=torch.float32)
PROMPT = "a red 7 moves up"


@pytest.fixture(scope="module")
def pipeline(given_pipeline) -> LatentVideoPipeline:
    found = LatentVideoPipeline.from_pretrained(given_pipeline)
    found.set_progress_bar_config(disable=True)
    return found


def clip(frames: int = 5, height: int = 16, width: int = 24) -> torch.Tensor:
    rand = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (frames, height, width, 3), generator=rand, dtype=torch.uint8)


def test_the_tokens_of_words_are_those_that_spell_them(pipeline):
    ids = pipeline.tokenizer(PROMPT)["input_ids"]
    for words in ("red", "red 7", "moves up", "A"):
        found = tokens_of_words(pipeline, PROMPT, words)
        assert pipeline.tokenizer.decode([ids[i] for i in found]).strip() == words.lower()
    for words in ("blue", "re", " "):
        with pytest.raises(UserError, match="is no word of 'a red 7 moves up'"):
            tokens_of_words(pipeline, PROMPT, words)


def test_shares_are_the_attention_that_goes_to_the_chosen_tokens():
    rand = torch.Generator().manual_seed(0)
    q, k = torch.randn(7, 2, 4, generator=rand), torch.randn(5, 2, 4, generator=rand)
    want = torch.stack([torch.softmax(q[:, a] @ k[:, a].T / 2, -1)[:, [1, 3]].sum(-1) for a in range(2)]).mean(0)
    assert torch.allclose(shares(q, k, [1, 3]), want, atol=1e-6)
    assert torch.allclose(shares(q, k, range(5)), torch.ones(7), atol=1e-6)


def test_what_is_recorded_is_what_the_blocks_attend_by(pipeline, monkeypatch):
    from latentvid.models.attention_context import AttentionContext

    attended, real = [], AttentionContext.attend_to_text

    def attend_to_text(self, q, k, v):
        attended.append((q, k))
        return real(self, q, k, v)

    monkeypatch.setattr(AttentionContext, "attend_to_text", attend_to_text)
    with recorded(pipeline.transformer) as seen:
        edits.edit(pipeline, [clip()], [PROMPT], [PROMPT], "sdedit", 0.5, sampling=replace(FAST, steps=1))
    assert len(seen) == len(attended) > 0
    for (q, k), (own, keys) in zip(seen, attended, strict=True):
        assert torch.allclose(q, own, atol=1e-5) and torch.allclose(k, keys, atol=1e-5)
    assert not any(block.cross._forward_hooks for block in pipeline.transformer.blocks)


def test_a_mask_by_words_limits_an_edit(pipeline):
    whole = clip(6)
    mask = attention_mask(pipeline, whole, PROMPT, "7", sampling=FAST)
    other = attention_mask(pipeline, whole, PROMPT, "up", sampling=FAST)
    assert mask.shape == whole.shape[:3] and 0 < mask.float().mean() < 1 and not torch.equal(mask, other)
    assert torch.equal(mask, attention_mask(pipeline, whole, PROMPT, "7", sampling=FAST))
    found = []

    def find(window):
        found.append(attention_mask(pipeline, window.frames, PROMPT, "7", threshold=0.5, sampling=FAST))
        return found[-1]

    def make(window):
        return edits.edit_window(pipeline, "", "a blue 3", "sdedit", None, window, sampling=FAST)

    plan = Plan(5, 5, (0,), 4)
    made = torch.cat(list(made_anew(make, iter([whole[:5]]), plan, Canvas.exactly((16, 24)), find=find)))
    assert torch.equal(made[~found[0]], whole[:5][~found[0]]) and not torch.equal(made, whole[:5])
    assert local.outside(pipeline, found[0]).any()


def test_a_model_without_such_attention_is_refused(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline, "transformer", torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="give --mask"):
        attention_mask(pipeline, clip(), PROMPT, "7")
