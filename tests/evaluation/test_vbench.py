"""VBench's dimensions: formulas and pictures against their definitions, small networks of its classes, the command."""

import json
import sys

import pytest
import torch
import torch.nn.functional as nnf
from test_scoring_command import write_clips
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from latentvid.errors import ClipError, UserError
from latentvid.evaluation.rows import Clip
from latentvid.evaluation.vbench import __main__ as command
from latentvid.evaluation.vbench.consistency import DINO, Dino, SubjectRows, consistency, dino_pictures
from latentvid.evaluation.vbench.files import FOLDER
from latentvid.evaluation.vbench.prompts import Prompt, clips_of, name_of, read_prompts, table_of
from latentvid.evaluation.vbench.quality import ImagingRows, SmoothnessRows, clip_pictures
from latentvid.evaluation.vbench.scores import DIMENSIONS
from latentvid.evaluation.vbench.scoring import score_folder
from latentvid.evaluation.vbench.viclip import OverallRows, Text, ViClip, middles

CPU = torch.device("cpu")


def video(frames: int, height: int = 40, width: int = 56) -> Clip:
    return Clip(torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8), caption="a red 7 moves up")


# ------------------------------------------------------------------------------------------------------- consistency


def test_consistency_is_the_mean_of_cosines_with_the_frame_before_and_the_first():
    features = torch.randn(5, 7) + 0.3
    found = consistency(features)
    for k in range(1, 5):
        cosines = [float(nnf.cosine_similarity(features[k], features[j], dim=0)) for j in (k - 1, 0)]
        assert float(found[k - 1]) == pytest.approx(sum(max(0.0, c) for c in cosines) / 2, abs=1e-6)
    assert consistency(torch.stack([torch.ones(3), -torch.ones(3)])).tolist() == [0]


def test_dino_is_timms_network_on_square_pictures_and_takes_others():
    network = Dino(width=32, depth=2, heads=2).eval()
    square = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(network(square), network.vit(square), rtol=1e-4, atol=1e-5)
        wide = network(torch.randn(1, 3, 224, 290))  # 14 x 18 patches, the rest is left out
        assert wide.shape == (1, 32) and network._positions(14, 18).shape == (1, 1 + 14 * 18, 32)
    rows = SubjectRows(None, CPU, network)
    clip = video(3)
    with torch.no_grad():
        expected = consistency(network(dino_pictures(clip.pixels)))
    torch.testing.assert_close(rows(clip)[:, 0], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ClipError, match="at least 2 frames"):
        rows(video(1))


def test_pictures_are_those_of_torchvisions_transforms():
    pixels = video(2, 300, 413).pixels
    frames = pixels.movedim(-1, 1)
    resized = resize(frames, [224], antialias=False)
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(dino_pictures(pixels), (resized / 255 - mean) / std, rtol=0, atol=2.5 / 255 / 0.2)
    assert float((dino_pictures(pixels) - (resized / 255 - mean) / std).abs().mean()) < 1e-4  # roundings of 8 bits
    cut = center_crop(resize(frames, [224], InterpolationMode.BICUBIC, antialias=False), [224, 224])
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))  # fmt: skip  # noqa: E501
    assert float((clip_pictures(pixels) - (cut / 255 - mean) / std).abs().mean()) < 1e-4


def test_published_weights_are_missed_by_name_and_wrong_ones_refused(tmp_path):
    with pytest.raises(UserError, match=f"there is no WEIGHTS/{FOLDER}/{DINO}: .*facebookresearch/dino"):
        SubjectRows(None, CPU)
    (tmp_path / FOLDER).mkdir()
    torch.save({"cls_token": torch.zeros(1)}, tmp_path / FOLDER / DINO)
    with pytest.raises(UserError, match="another network's weights"):
        SubjectRows(tmp_path, CPU)
    (tmp_path / FOLDER / DINO).write_bytes(b"none")
    with pytest.raises(UserError, match="no file of weights"):
        SubjectRows(tmp_path, CPU)


# ------------------------------------------------------------------------------------------------------------ ViCLIP


def test_the_text_side_of_viclip_is_clips():
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, projection_dim=16, eos_token_id=49, hidden_act="quick_gelu",
    )  # fmt: skip
    theirs, ours = CLIPTextModelWithProjection(config).eval(), Text(32, 2, 4, 16, vocabulary=50)
    weights = dict(theirs.named_parameters())
    part = {name.split("text_model.")[-1]: value for name, value in weights.items()}
    found = {
        "token_embedding.weight": part["embeddings.token_embedding.weight"],
        "positional_embedding": part["embeddings.position_embedding.weight"],
        "ln_final.weight": part["final_layer_norm.weight"],
        "ln_final.bias": part["final_layer_norm.bias"],
        "text_projection": weights["text_projection.weight"].T,
    }
    for k in range(2):
        layer, block = f"encoder.layers.{k}.", f"transformer.resblocks.{k}."
        for kind in ("weight", "bias"):
            found[f"{block}attn.in_proj_{kind}"] = torch.cat(
                [part[f"{layer}self_attn.{x}_proj.{kind}"] for x in ("q", "k", "v")]
            )
            for ours_name, name in (
                ("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
            ):  # fmt: skip
                found[f"{block}{ours_name}.{kind}"] = part[f"{layer}{name}.{kind}"]
    ours.load_state_dict(found)
    tokens = torch.tensor([48, 3, 7, 9, 49])
    with torch.no_grad():
        expected = theirs(input_ids=tokens[None]).text_embeds[0]
        torch.testing.assert_close(ours(tokens), expected, rtol=1e-4, atol=1e-5)


class Letters:
    """Stands for CLIP's tokenizer: a token a letter."""

    def __call__(self, text: str, truncation: bool, max_length: int) -> dict[str, list[int]]:
        return {"input_ids": [1, *(ord(letter) for letter in text[: max_length - 2]), 2]}


def test_overall_consistency_is_the_cosine_of_eight_frames_and_the_caption():
    network = ViClip(vision=(32, 2, 2), text=(24, 2, 2), out=16)
    nn.init.normal_(network.vision_encoder.temporal_positional_embedding)
    names = set(network.state_dict())
    assert {"temp", "vision_encoder.proj", "vision_encoder.transformer.resblocks.1.mlp.c_fc.weight"} <= names
    assert {"text_encoder.text_projection", "text_encoder.transformer.resblocks.0.attn.in_proj_weight"} <= names
    rows = OverallRows(None, CPU, network, Letters())
    clip = video(20)
    found = rows(clip)
    assert found.shape == (1, 1) and -1 <= float(found) <= 1
    with torch.no_grad():
        seen = network.vision_encoder(clip_pictures(clip.pixels[middles(20)]))
        text = network.text_encoder(torch.tensor(Letters()(clip.caption, True, 32)["input_ids"]))
    assert float(found) == pytest.approx(float(nnf.cosine_similarity(seen, text, dim=0)), abs=1e-6)
    assert float(rows(Clip(clip.pixels.flip(0), caption=clip.caption))) != pytest.approx(float(found), abs=1e-7)
    assert middles(20) == [0, 3, 5, 8, 10, 13, 15, 18] and middles(8) == list(range(8))
    assert middles(3) == [0, 1, 2, 2, 2, 2, 2, 2]


# ----------------------------------------------------------------------------------------------------------- quality


class Mean(nn.Module):
    def forward(self, before: torch.Tensor, after: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        assert before.shape[-1] % 16 == before.shape[-2] % 16 == 0
        return before + time * (after - before)


def test_motion_smoothness_is_how_well_frames_between_are_found_again(tmp_path):
    (tmp_path / FOLDER).mkdir()
    torch.jit.save(torch.jit.trace(Mean(), (*torch.rand(2, 1, 3, 32, 32), torch.ones(1, 1, 1, 1))),
                   tmp_path / FOLDER / "amt_s.pt")  # fmt: skip
    rows = SmoothnessRows(tmp_path, CPU)
    even = torch.arange(0, 70, 10, dtype=torch.uint8)[:, None, None, None].expand(7, 20, 33, 3)
    assert float(rows(Clip(even)).min()) > 1 - 1.01 / 255 and len(rows(Clip(even))) == 3
    jump = even.clone()
    jump[3] += 51
    assert rows(Clip(jump))[1].item() == pytest.approx(1 - 51 / 255, abs=1.01 / 255)
    with pytest.raises(ClipError, match="needs 3 frames"):
        rows(Clip(even[:2]))


class Sides(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean() * 100 + 0 * x.shape[-1]


def test_imaging_quality_sees_pictures_of_512_pixels_at_most():
    rows = ImagingRows(None, CPU, Sides())
    assert rows._pictures(video(1, 100, 1024).pixels).shape == (1, 3, 50, 512)
    clip = video(2, 30, 40)
    torch.testing.assert_close(rows(clip)[:, 0], clip.pixels.double().mean(dim=(1, 2, 3)) / 255, rtol=1e-5, atol=1e-6)


def test_temporal_flickering_is_one_less_the_difference():
    assert DIMENSIONS["temporal_flickering"].of_clip(torch.tensor([[0.0], [51.0]])) == pytest.approx(0.9)


# ---------------------------------------------------------------------------------------------------- prompts, command


def test_prompts_are_read_from_both_of_vbenchs_layouts(tmp_path):
    rows = [{"prompt_en": "a cat/dog", "dimension": ["scene", "color"]}, {"prompt_en": "a tree", "dimension": []}]
    (tmp_path / "VBench_full_info.json").write_text(json.dumps(rows))
    prompts = read_prompts(tmp_path / "VBench_full_info.json")
    assert prompts == [Prompt("a cat/dog", ("scene", "color")), Prompt("a tree")]
    folder = tmp_path / "prompts_per_dimension"
    folder.mkdir()
    (folder / "scene.txt").write_text("a tree\n\n a hill \n")
    assert read_prompts(folder / "scene.txt") == [Prompt("a tree", ("scene",)), Prompt("a hill", ("scene",))]
    table = [json.loads(line) for line in table_of(prompts).splitlines()]
    assert len(table) == 10 and table[6] == {"prompt": "a tree", "seed": 1, "name": "a tree-1"}
    assert table[0]["name"] == name_of("a cat/dog", 0) == "a cat_dog-0"
    for content, message in (("[]", "holds no prompt"), ("{}", "no list of prompts"), ('[{"prompt": "x"}]', "entry 1")):
        (tmp_path / "wrong.json").write_text(content)
        with pytest.raises(UserError, match=message):
            read_prompts(tmp_path / "wrong.json")
    names = dict.fromkeys(("a cat_dog-3.mp4", "a tree-0.mp4", "x.mp4", "a tree.mp4"))
    assert clips_of(prompts, names, {"x.mp4": "a tree"}) == {
        "a cat/dog": ["a cat_dog-3.mp4"],
        "a tree": ["a tree-0.mp4", "x.mp4"],
    }
    with pytest.raises(UserError, match="none of the 1 clips is of a prompt"):
        clips_of(prompts, {"y.mp4": None}, {})


def test_the_command_writes_vbenchs_results(tmp_path, monkeypatch, capsys, fresh_accelerate):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    folder = write_clips(tmp_path / "clips", 3)
    for k, name in enumerate(("a tree-0", "a tree-1", "a hill-0")):
        (folder / f"{k:03d}.gif").rename(folder / f"{name}.gif")
    rows = [
        {"prompt_en": "a tree", "dimension": ["temporal_flickering", "human_action"]},
        {"prompt_en": "a hill", "dimension": ["subject_consistency"]},
    ]
    (tmp_path / "info.json").write_text(json.dumps(rows))
    monkeypatch.setattr(sys, "argv", ["x", str(folder), "--prompts", str(tmp_path / "info.json"), "--out", str(tmp_path / "out")])  # fmt: skip  # noqa: E501
    command.main()
    found = json.loads((tmp_path / "out" / "results_eval_results.json").read_text())
    assert list(found) == ["temporal_flickering"]
    total, clips = found["temporal_flickering"]
    assert [clip["video_path"] for clip in clips] == [str(folder / f"a tree-{k}.gif") for k in range(2)]
    assert total == pytest.approx(sum(clip["video_results"] for clip in clips) / 2) and 0.5 < total < 1
    said = capsys.readouterr().out
    assert "left out: human_action" in said and f"left out: subject_consistency: there is no WEIGHTS/{FOLDER}" in said
    prompts = read_prompts(tmp_path / "info.json")
    with pytest.raises(UserError, match="subject_consistency: .*there is no WEIGHTS"):
        score_folder(folder, prompts, None, ["subject_consistency"], tmp_path / "out" / "rows")
    with pytest.raises(UserError, match="no dimension 'scene' here"):
        score_folder(folder, prompts, None, ["scene"], tmp_path / "out" / "rows")
