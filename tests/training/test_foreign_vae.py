"""A VAE of diffusers instead of ours: its latents, a transformer on them, the pipeline, and its own training."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan
from torch.utils.flop_counter import FlopCounterMode

from latentvid.data.cache.latents import LatentCache
from latentvid.data.plan.plan import Draw
from latentvid.models.flops import vae_flops
from latentvid.models.interchange import build_vae, load_vae
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.training.stages.dit.encode import EncodeConfig, encode_manifest
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.stages.vae.task import VaeTask
from latentvid.training.trainer import train

RED = "a red 7 moves left"
CPU = torch.device("cpu")
WAN = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 1, 2, 2],
    "num_res_blocks": 1,
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
LTX = {  # stride 8 in time, unlike ours
    "_class_name": "AutoencoderKLLTXVideo",
    "latent_channels": 6,
    "patch_size": 1,
    "block_out_channels": [4, 4, 8, 8],
    "decoder_block_out_channels": [4, 4, 8, 8],
    "layers_per_block": [1] * 5,
    "decoder_layers_per_block": [1] * 5,
}

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def saved(arguments: dict, folder: Path) -> Path:
    vae = build_vae(arguments, "model")
    channels = vae.latent_channels
    vae.set_statistics(torch.randn(channels).mul(0.1).tolist(), torch.rand(channels).add(0.5).tolist())
    vae.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("arguments", "cls"), [(WAN, AutoencoderKLWan), (LTX, AutoencoderKLLTXVideo)])
def test_a_transformer_trains_on_its_latents_and_the_pipeline_keeps_it(
    arguments, cls, dit_config, digits_data, tiny_t5, tmp_path
):
    folder, cache = saved(arguments, tmp_path / "vae"), tmp_path / "latents"
    vae, manifest = load_vae(folder), digits_data / "train.jsonl"
    sizes = {"max_frames": 17, "max_area": None, "patch": 1, "batch": 4, "mixed_precision": "no"}
    encode_manifest(EncodeConfig(manifest, folder, str(tiny_t5), cache, **sizes))
    assert LatentCache(cache).load(0).mean.shape[0] == vae.latent_channels
    frames = 1 + vae.temporal_stride
    changes = [f"vae={folder}", "model.patch=1", "model.depth=1", "train.steps=2", "data.packs_per_step=1"]
    changes += [f"samples.frames={frames}", "samples.every=2", f"samples.prompts=[{RED}]"]

    online = DitTask(dit_config(tmp_path / "run", *changes, "data.latents=null", f"data.manifest={manifest}"), CPU)
    cached = DitTask(dit_config(tmp_path / "run", *changes, f"data.latents={cache}"), CPU)
    draws = [Draw(0, 3), Draw(1, 5)]
    a, b = (task.prepare(task.make_pack(draws)) for task in (online, cached))
    torch.testing.assert_close(a.clean, b.clean, atol=5e-3, rtol=5e-3)  # the cache is in half precision
    assert online.grid_flops((2, 3, 4)).encode == vae_flops(vae, (frames, 24, 32)).encode > 0

    train(dit_config(tmp_path / "run", *changes, f"data.latents={cache}"), DitTask)
    assert list((tmp_path / "run/samples").iterdir())
    product = tmp_path / "run/pipeline"
    assert json.loads((product / "model_index.json").read_text())["vae"] == ["diffusers", cls.__name__]
    pipelines = [load_pipeline(product, "cpu"), LatentVideoPipeline.from_pretrained(product)]
    pipelines[0].save_pretrained(tmp_path / "again")
    pipelines.append(load_pipeline(tmp_path / "again", "cpu"))
    clips = [
        pipeline(
            RED, num_frames=frames, height=24, width=32, seed=3, sampling=Sampling(progress=False), output_type="uint8"
        ).frames[0]
        for pipeline in pipelines
    ]
    assert all(type(pipeline.vae) is cls for pipeline in pipelines)
    assert clips[0].shape == (frames, 24, 32, 3) and all(torch.equal(clip, clips[0]) for clip in clips[1:])


def test_wan_trains_from_scratch_and_takes_the_measured_statistics(vae_config, tmp_path):
    changes = ["data.max_frames=5", "data.tokens_per_pack=40", "data.packs_per_step=1", "statistics_samples=3"]
    config = vae_config(tmp_path / "run", f"model={json.dumps(WAN)}", "train.steps=2", "samples.every=2", *changes)
    train(config, VaeTask)
    assert len(list((tmp_path / "run/samples").iterdir())) == 1 + 4
    vae = load_vae(tmp_path / "run/vae")
    assert AutoencoderKLWan.from_pretrained(tmp_path / "run/vae").config.latents_std == vae.config.latents_std
    task = VaeTask(config, CPU)
    mean, std = task.statistics(vae)
    # training keeps weights channels last, the loaded ones lie as usual: sums of other orders round differently
    assert vae.config.latents_mean == pytest.approx(mean, rel=1e-4, abs=1e-4 * max(std))
    assert vae.config.latents_std == pytest.approx(std, rel=1e-4)
    assert min(std) > 0 and vae.config.latents_std != [1.0] * 4


@pytest.mark.parametrize("arguments", [WAN, LTX])
def test_its_flops_are_what_torch_counts(arguments):
    vae = build_vae(arguments, "model")
    video = torch.zeros(1, 3, 9, 16, 24)
    found = vae_flops(vae, video.shape[2:])
    for run, expected in (
        (lambda: vae.encode(video), found.encode),
        (lambda: vae(video, torch.zeros(1, vae.latent_channels, *vae.latent_grid(9, 16, 24))), found.forward),
    ):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        assert counter.get_total_flops() == expected
