"""FLOPs equal what torch counts while the models run; peaks are of the right device."""

import open_svd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from latentvid.data.plan.plan import Draw
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.diffusers_vae.temporal_decoder import TemporalDecoderVae
from latentvid.models.flops import _datasheet, dit_flops, peak_flops, vae_flops
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed
from latentvid.sequence import SequenceGroup
from latentvid.training.stages.dit.task import DitTask

CPU = torch.device("cpu")


def counted(call) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"patch": 1, "width": 48, "depth": 3, "mlp_ratio": 8 / 3},
        {"attention": "factorised", "depth": 3},
        {"attention": "causal"},
        {"attention": "inflated", "depth": 3, "temporal_every": 2},
        {"fps_condition": True, "rope_fps": 24.0},
    ],
)
@pytest.mark.parametrize(
    ("grids", "text"), [([(1, 2, 3)], [1]), ([(5, 4, 4), (1, 1, 1), (2, 3, 5)], [7, 2, 11]), ([(3, 8, 8)] * 2, [4, 4])]
)
def test_dit_flops_are_what_torch_counts(arguments, grids, text):
    config = {"latent_channels": 4, "width": 32, "depth": 2, "heads": 4, "text_width": 24, "mlp_ratio": 2.0}
    model = VideoDiT(**config | arguments)
    model.attention_backend = "sdpa"  # each segment by itself, without padding
    layout, text_layout = Packed.of(grids), Packed.of_lengths(text)
    if model.config.attention == "inflated" and any(f == 1 for f, _, _ in grids):
        pytest.skip("temporal blocks are computed for pictures, which they leave as they are, and do not count")
    features = model.config.latent_channels * model.config.patch**2
    tokens, states = torch.randn(layout.tokens, features), torch.randn(text_layout.tokens, 24)
    found = counted(lambda: model(tokens, torch.rand(layout.frames), states, layout, text_layout))
    assert dit_flops(model.config, grids, text) == found


def test_vae_flops_are_what_torch_counts():
    model = CausalVideoAutoencoder(latent_channels=4, widths=(8, 16, 16))
    video, noise = torch.randn(1, 3, 9, 16, 24), torch.randn(1, 4, *model.latent_grid(9, 16, 24))
    found = vae_flops(model, video.shape[2:])
    assert found.encode == counted(lambda: model.encode(video))
    assert found.forward == counted(lambda: model(video, noise)) > found.encode


def test_flops_of_a_temporal_decoder_are_what_torch_counts():
    model = TemporalDecoderVae(open_svd.vae())
    video, noise = torch.randn(1, 3, 2, 8, 8), torch.randn(1, 4, 2, 4, 4)
    found = vae_flops(model, video.shape[2:])
    assert found.encode == counted(lambda: model.encode(video))
    assert found.forward == counted(lambda: model(video, noise)) > found.encode


def test_a_packs_flops_are_those_of_its_real_lengths_from_cache_and_from_clips(dit_config, tmp_path, digits_data):
    cached = DitTask(dit_config(tmp_path), CPU)
    pack = cached.make_pack([Draw(0, 3), Draw(1, 0), Draw(2, 11)])
    cached.model.attention_backend = "sdpa"
    assert cached.flops(pack) == counted(lambda: cached.loss(cached.model, pack, 0))
    online = DitTask(dit_config(tmp_path, "data.latents=null", f"data.manifest={digits_data / 'train.jsonl'}"), CPU)
    clips = online.make_pack([Draw(0, 3), Draw(1, 0), Draw(2, 11)])
    online.model.attention_backend = "sdpa"
    all_of_it = counted(lambda: online.loss(online.model, clips, 0))
    encode = sum(online.grid_flops(grid).encode for grid in clips.layout.grid)
    text = counted(lambda: online.text.encode(clips.captions))
    assert online.flops(clips) + encode + text == all_of_it


@pytest.mark.parametrize("online", [False, True])
def test_processes_that_share_a_pack_count_it_once(dit_config, tmp_path, digits_data, online):
    clips = ["data.latents=null", f"data.manifest={digits_data / 'train.jsonl'}"]
    task = DitTask(dit_config(tmp_path, *(clips if online else [])), CPU)
    draws = [Draw(number, index) for number, index in enumerate((3, 0))]
    whole = task.flops(task.make_pack(draws))
    parts = []
    for rank in range(3):  # the third makes no sample
        task.sequence = SequenceGroup("none", rank, 3)
        parts.append(task.flops(task.make_pack(draws)))
    assert sum(parts) == whole and min(parts) == 0


def test_datasheets_are_found_by_the_whole_name():
    rates = {
        name: _datasheet(name, 0)
        for name in (
            "NVIDIA A100-SXM4-80GB",
            "NVIDIA A100 80GB PCIe",
            "NVIDIA A10",
            "NVIDIA H100 80GB HBM3",
            "NVIDIA H100 PCIe",
            "NVIDIA H200",
            "NVIDIA B200",
            "NVIDIA L40S",
            "NVIDIA GeForce RTX 4090",
        )
    }
    assert [rate / 1e12 for rate in rates.values()] == [312, 312, 125, 989, 756, 989, 2250, 362, 165.2]
    others = ("NVIDIA A10G", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU")
    assert all(_datasheet(name, 0) is None for name in others)
    assert _datasheet("Tesla V100-SXM2-16GB", 0) is None and _datasheet("Tesla V100-SXM2-16GB", 1) == 15.7e12


def test_an_unknown_device_is_measured_and_randomness_is_left_alone():
    state = torch.get_rng_state()
    peak, source = peak_flops(CPU, "no")
    assert 1e8 < peak < 1e14 and source == "measured on this cpu, 1 thread, fp32"
    assert torch.equal(torch.get_rng_state(), state)
