"""diffusers' offloading finds our parts: the autoencoder, whose passes are not `forward`, among them."""

import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers.hooks import apply_group_offloading

from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.sampling import Request, Sampling

CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "shape"), [("encode", (1, 3, 5, 16, 16)), ("decode", (1, 4, 2, 4, 4))])
def test_the_autoencoder_is_moved_before_its_pass(tiny_vae, name, shape):
    """`enable_model_cpu_offload` gives each part such a hook; the device is one that any machine has."""
    vae = CausalVideoAutoencoder.from_pretrained(tiny_vae)
    _, hook = cpu_offload_with_hook(vae, execution_device=torch.device("meta"))
    assert vae.device == CPU
    getattr(vae, name)(torch.zeros(shape))
    assert vae.device.type == "meta"


@pytest.mark.parametrize(
    "how", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
def test_group_offload_changes_no_number(tiny_pipeline, how):
    found = []
    for offloaded in (False, True):
        pipeline = LatentVideoPipeline.from_pretrained(tiny_pipeline)
        parts = (pipeline.transformer, pipeline.vae, pipeline.text_encoder) if offloaded else ()
        for part in parts:
            apply_group_offloading(part, onload_device=CPU, offload_device=CPU, **how)
        latents = pipeline.sample([Request(prompt="a red 7", grid=(2, 8, 8))], Sampling(steps=1, progress=False))
        clips = pipeline.decode(latents)
        found.append([*latents, *clips, *pipeline.encode(clips)])
    assert all(map(torch.equal, *found))
