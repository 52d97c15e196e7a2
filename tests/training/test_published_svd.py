"""Stable Video Diffusion is fine-tuned: its loss written out with the class of diffusers, and what loads its export."""

import json

import pytest
import torch
from comparing import losses
from diffusers import StableVideoDiffusionPipeline
from einops import rearrange
from safetensors.torch import load_file
from small_tasks import draws_of

from latentvid.data.transforms import from_uint8
from latentvid.errors import UserError
from latentvid.rng import generator
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

CPU = torch.device("cpu")
SMALL = ("data.max_frames=3", "data.max_area=256", "data.tokens_per_pack=400", "caption.dropout=0.5")


@torch.no_grad()
def test_the_loss_is_that_of_the_class_written_out(published_config, repository, digits_data, tmp_path):
    """EDM's weighted error of x (Karras et al. 2022), of clips beside the latents of their noised first frame."""
    rows = [json.loads(line) for line in (digits_data / "train.jsonl").read_text().splitlines()[:6]]
    rows = [{**row, "path": str(digits_data / row["path"]), "bucket": 10.0 * i} for i, row in enumerate(rows)]
    manifest = tmp_path / "train.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = (*SMALL, f"data.manifest={manifest}", "data.motion_column=bucket")
    task = DitTask(published_config(tmp_path / "run", repository("svd"), *options), CPU)
    drawn = task.config.timesteps
    assert (drawn.kind, drawn.mean, drawn.std) == ("log_normal", 0.7, 1.6)
    pack = task.prepare(task.make_pack(draws_of(task, 4)))
    found, _ = task.loss(task.model, pack, 0)
    raw, vae, reader = task.model.raw, task.vae, task.parts.image
    begin, without = 0, 0
    for place, number in enumerate(pack.numbers):
        f, h, w = pack.layout.grid[place]
        here, axes = slice(begin, begin + f * h * w), dict(f=f, h=h, w=w)
        begin = here.stop
        x, n = (rearrange(part[here], "(f h w) C -> f C h w", **axes) for part in (pack.clean, pack.noise))
        level = pack.timestep[pack.layout.frame_segment == place]
        sigma = 700.0 * level[0].double() ** 7
        clip = task.source.load(number % len(task.grids), 0, number)
        draws = generator(0, number, "image-noise")
        deviation = torch.exp(-3.0 + 0.5 * torch.randn((), generator=draws))
        first = from_uint8(clip.pixels)[:, 0]
        first = first + deviation * torch.randn(first.shape, generator=draws)
        image = vae.raw.encode(first[None]).latent_dist.mode()  # not scaled
        state = reader.read([clip.pixels[0]], CPU)[None]
        if torch.rand((), generator=generator(0, number, "caption-dropout")) < 0.5:
            image, state, without = 0 * image, 0 * state, without + 1
        rate = task.source.rate(clip.index) or 7.0
        bucket = 127.0 if f == 1 else 10.0 * int(task.source.windows.sample[number % len(task.grids)])
        ids = torch.tensor([[rate - 1, bucket, float(deviation)]])
        y = x + sigma * n
        seen = torch.cat([(y / (1 + sigma**2).sqrt()).float(), image.expand(f, -1, -1, -1)], 1)[None]
        out = raw(seen, (sigma.log() / 4).float(), state, ids, return_dict=False)[0][0]
        clean = y / (1 + sigma**2) - sigma / (1 + sigma**2).sqrt() * out
        want = ((1 + sigma**2) / sigma**2 * (clean - x).square()).mean()
        torch.testing.assert_close(found[place].double(), want.double(), rtol=2e-3, atol=1e-4)
    assert 0 < without < 4


def test_it_trains_and_diffusers_loads_what_it_leaves(published_config, repository, tmp_path):
    run, folder = tmp_path / "run", repository("svd")
    train(published_config(run, folder, *SMALL, "train.steps=2", "train.ema=0"), DitTask)
    assert len(losses(run)) == 2 and all(torch.tensor(losses(run)).isfinite())
    pipe = StableVideoDiffusionPipeline.from_pretrained(run / "pipeline", local_files_only=True)
    trained, found = load_file(run / "checkpoints/step-00000002/ema.safetensors"), pipe.unet.state_dict()
    assert trained and all(torch.equal(found[n.removeprefix("raw.")], value) for n, value in trained.items())
    before = StableVideoDiffusionPipeline.from_pretrained(folder, local_files_only=True).unet.state_dict()
    assert any(not torch.equal(before[n], found[n]) for n in before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("text_encoder=FOLDER",), "text_encoder: this model reads no text: leave it out"),
        (("given.first=1", "given.noise=[0.1, 0.3]"), "given.noise is of frames that are given by noise levels, and"),
    ],
)
def test_what_cannot_be_is_named(published_config, repository, tiny_t5, tmp_path, options, message):
    options = [option.replace("FOLDER", str(tiny_t5)) for option in options]
    with pytest.raises(UserError, match=message):
        DitTask(published_config(tmp_path / "run", repository("svd"), *SMALL, *options), CPU)
