"""Caches of clips with several captions, and of windows at a rate that was asked for."""

import json
from pathlib import Path

import pytest
import torch

from latentvid.data.cache.latents import LatentCache
from latentvid.data.clips import open_sources
from latentvid.data.plan.step import Draw
from latentvid.data.windows import Transform, drawn_caption
from latentvid.training.stages.dit.encode import EncodeConfig, encode_manifest
from latentvid.training.stages.dit.task import DitTask

CPU = torch.device("cpu")
SIZES = {"max_area": None, "patch": 2, "batch": 4, "mixed_precision": "no"}
CAPTIONS = ["a red 7 moves up", "a digit", "a 7"]


@pytest.fixture
def manifest(digits_data, tmp_path) -> Path:
    """Three clips of 17 frames at 8 a second; the second has three captions."""
    rows = [json.loads(line) for line in (digits_data / "train.jsonl").read_text().splitlines()]
    rows = [row | {"path": str(digits_data / row["path"])} for row in rows if row["frames"] == 17][:3]
    rows[1]["caption"] = CAPTIONS
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "m.jsonl"


def test_a_cache_has_all_captions_and_training_draws_the_same_as_from_clips(
    manifest, tiny_vae, tiny_t5, dit_config, tmp_path
):
    out = tmp_path / "latents"
    encode_manifest(EncodeConfig(manifest, tiny_vae, str(tiny_t5), out, max_frames=17, **SIZES))
    cache = LatentCache(out)
    assert [cache.captions(i) for i in range(3)] == [1, 3, 1]
    options = ("caption.dropout=0", "run.seed=7")
    task = DitTask(dit_config(tmp_path / "run", f"data.latents={out}", *options), CPU)
    online = DitTask(dit_config(tmp_path / "run", "data.latents=null", f"data.manifest={manifest}", *options), CPU)
    validated = (f"validation.latents={out}", "validation.every=1", *options)
    held_out = DitTask(dit_config(tmp_path / "run", f"data.latents={out}", *validated), CPU).held_out()
    first = cache.load(1, 0).text
    assert all(torch.equal(held_out.make_pack([Draw(number, 1)]).text, first) for number in range(10, 20))
    seen = set()
    for number in range(8):
        pack = task.make_pack([Draw(number, 1)])
        (caption,) = online.make_pack([Draw(number, 1)]).captions
        assert caption == CAPTIONS[drawn_caption(3, 7, number)]
        torch.testing.assert_close(pack.text, task.text.encode([caption]).states, atol=5e-3, rtol=2e-3)
        seen.add(caption)
    assert len(seen) > 1


def test_a_cache_is_of_one_rate(manifest, tiny_vae, tiny_t5, tmp_path):
    configs = {}
    for name, fps in (("as_they_are", None), ("at_4", 4.0)):
        config = EncodeConfig(manifest, tiny_vae, str(tiny_t5), tmp_path / name, max_frames=9, **SIZES, fps=fps)
        encode_manifest(config)
        configs[name] = LatentCache(config.out)
    own, slow = configs["as_they_are"], configs["at_4"]
    assert len(own) == len(slow) == 3 and "fps" not in own.key["transform"] and slow.key["transform"]["fps"] == 4
    assert [own.rate(0), slow.rate(0), slow.fps] == [8, 4, 4]
    assert not set(own.contents()) & set(slow.contents())
    transform = Transform(spatial_stride=8, temporal_stride=4, max_frames=9, fps=4.0, fps_slack=0.02)
    source = open_sources([manifest], transform)
    whole = open_sources([manifest], Transform(spatial_stride=8, temporal_stride=4))
    assert torch.equal(source.read(0), whole.read(0)[:, ::2])  # every second of 17 frames
    assert not torch.equal(own.load(0).mean, slow.load(0).mean)
