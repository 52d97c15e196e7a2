"""CLIP scores with a tiny random model: torchmetrics' figures, one pass for both, what is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchmetrics.functional.multimodal import clip_score
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from latentvid.errors import ClipError, UserError
from latentvid.evaluation.prompts import clip_similarity
from latentvid.evaluation.prompts.clip_similarity import CLIP_SCORES, ClipFrameRows, ClipTextRows
from latentvid.evaluation.rows import Clip

CPU = torch.device("cpu")
TEXT, FRAMES = CLIP_SCORES
LONGEST = 20  # tokens


def save_clip(folder: Path) -> None:
    """A random CLIP of two layers a side, and a tokenizer of letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>"]
    tokenizer = CLIPTokenizer(vocab={token: k for k, token in enumerate(tokens)}, merges=[("r", "e"), ("re", "d</w>")])
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    ends = dict(bos_token_id=0, eos_token_id=1, pad_token_id=1)
    config = CLIPConfig(
        text_config=dict(**sizes, **ends, vocab_size=len(tokens), max_position_embeddings=LONGEST),
        vision_config=dict(**sizes, image_size=32, patch_size=8),
        projection_dim=24,
    )
    model = CLIPModel(config)
    with torch.no_grad():  # so that pictures lie apart
        model.visual_projection.weight.mul_(5)
        model.vision_model.embeddings.patch_embedding.weight.mul_(20)
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    save_clip(folder / "clip")
    return folder


class Published:
    """The model as torchmetrics calls it: it wants tensors."""

    def __init__(self, model: CLIPModel) -> None:
        self.model, self.config = model, model.config

    def to(self, device):
        return self

    def get_image_features(self, pixels):
        return self.model.get_image_features(pixels).pooler_output

    def get_text_features(self, ids, mask):
        return self.model.get_text_features(ids, mask).pooler_output


def clip(frames: int = 5, caption: str | None = "a red cat") -> Clip:
    colours = torch.randint(256, (frames, 1, 1, 3))
    pixels = (colours + torch.randint(-60, 60, (frames, 40, 50, 3))).clamp(0, 255).to(torch.uint8)
    return Clip(pixels, caption=caption, name="a.mp4")


def test_text_similarity_is_torchmetrics_frame_by_frame(weights):
    extractor = ClipTextRows(weights, CPU)
    published = Published(extractor.network.model), extractor.network.processor
    signs = set()
    for caption in ("a red cat", "dog"):
        given = clip(caption=caption)
        with torch.no_grad():  # the other way round for the second
            extractor.network.model.text_projection.weight.neg_()
        rows = extractor(given)
        expected = [
            float(clip_score(frame.movedim(-1, 0), caption, model_name_or_path=lambda: published))
            for frame in given.pixels
        ]
        assert (
            rows.shape == (5, 2)
            and not rows[:, 1].any()
            and TEXT([rows]) == pytest.approx(sum(expected) / 5, rel=1e-4, abs=1e-4)
        )
        signs |= {value > 0 for value in expected}
    assert signs == {True, False}


def test_frame_consistency_is_the_cosine_of_neighbours_whatever_goes_together(weights, monkeypatch):
    extractor, given = ClipFrameRows(weights, CPU), clip()
    network = extractor.network
    inputs = network.processor(images=list(given.pixels.movedim(-1, 1)), return_tensors="pt")
    with torch.no_grad():
        features = network.model.get_image_features(**inputs).pooler_output
    expected = torch.cosine_similarity(features[1:], features[:-1])
    monkeypatch.setattr(clip_similarity, "BATCH_PIXELS", 2 * 40 * 50)
    rows = extractor(given)
    torch.testing.assert_close(rows[:, 0].float(), expected)
    assert FRAMES([rows]) == pytest.approx(float(expected.mean()), rel=1e-4)
    still = Clip(given.pixels[:1].expand(4, -1, -1, -1))
    assert FRAMES([extractor(still)]) == pytest.approx(1.0)


def test_both_look_once_at_a_clip_with_one_network(weights, monkeypatch):
    text, frames = ClipTextRows(weights, CPU), ClipFrameRows(weights, CPU)
    assert text.network is frames.network and text.fingerprint != frames.fingerprint
    looks = []
    look = text.network._images
    monkeypatch.setattr(text.network, "_images", lambda pixels: looks.append(1) or look(pixels))
    first, second = clip(), clip()
    found = [rows for each in (first, second) for rows in (text(each), frames(each))]
    assert len(looks) == 2
    assert torch.equal(found[3], frames(Clip(second.pixels.clone()))) and not torch.equal(found[3], found[1])


def test_the_fingerprint_is_of_what_is_in_the_folder(weights, tmp_path):
    shutil.copytree(weights / "clip", tmp_path / "same" / "clip")
    torch.manual_seed(1)
    save_clip(tmp_path / "other" / "clip")
    here, same, other = (ClipTextRows(folder, CPU) for folder in (weights, tmp_path / "same", tmp_path / "other"))
    here(clip())
    assert here.fingerprint == same.fingerprint != other.fingerprint
    assert ClipTextRows(weights, CPU).fingerprint == here.fingerprint


def test_long_captions_are_cut_and_counted(weights):
    extractor, given = ClipTextRows(weights, CPU), clip(caption="q " * LONGEST)
    cut = replace(given, caption="q " * (LONGEST - 2))  # with its first and last token just what is read
    rows, whole = extractor(given), extractor(cut)
    assert torch.equal(rows[:, 0], whole[:, 0]) and rows[:, 1].all() and not whole[:, 1].any()
    text = extractor.network.text
    assert torch.equal(text(given.caption)[0], text(cut.caption)[0]) and not torch.equal(text("q")[0], text("q q")[0])
    assert extractor.remarks([whole]) == []
    (said,) = extractor.remarks([rows, whole, rows])
    assert f"2 of 3 captions are longer than the {LONGEST} tokens" in said


def test_what_clip_cannot_take_is_refused(weights, tmp_path):
    with pytest.raises(ValueError, match="no caption"):
        ClipTextRows(weights, CPU)(clip(caption=None))
    with pytest.raises(ClipError, match=r"a\.mp4: .*at least 2 frames"):
        ClipFrameRows(weights, CPU)(clip(frames=1))
    with pytest.raises(UserError, match="WEIGHTS/clip.*hf download openai/clip-vit-base-patch32"):
        ClipTextRows(tmp_path, CPU)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded as CLIP"):
        ClipTextRows(tmp_path, CPU)
