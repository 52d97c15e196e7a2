"""Models that make clips of pictures are measured and looked at while they train: given what sampling gives them."""

import pytest
import torch
from einops import rearrange
from PIL import Image

from latentvid.data.transforms import from_uint8
from latentvid.errors import UserError
from latentvid.rng import generator
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

CPU = torch.device("cpu")
SMALL = ("data.max_frames=3", "data.max_area=256", "data.tokens_per_pack=400")
HELD_OUT = ("validation.every=1", "validation.samples=3", "validation.bins=2", "validation.seed=5")


@pytest.fixture
def held_out(digits_data):
    return (*HELD_OUT, f"validation.manifest={digits_data / 'train.jsonl'}")


@torch.no_grad()
def test_the_held_out_loss_of_stable_video_diffusion_written_out(published_config, repository, held_out, tmp_path):
    """With diffusers' class: of the mean latent, beside the image with a noise of 0.02 and CLIP's state of it."""
    options = (*SMALL, *held_out, "caption.dropout=1.0")
    task = DitTask(published_config(tmp_path / "run", repository("svd"), *options), CPU)
    held = task.held_out()
    raw, vae, reader, seen = task.model.raw, task.vae, task.parts.image, 0
    for draws in held.packs:
        pack = held.prepare(held.make_pack(draws))
        found, of_clean = held.measured(task.model, pack)
        levels = (pack.timestep[pack.layout.frame_segment == place][0] for place in range(len(pack.numbers)))
        begin = 0
        for place, (number, level) in enumerate(zip(pack.numbers, levels, strict=True)):
            f, h, w = pack.layout.grid[place]
            here, axes = slice(begin, begin + f * h * w), dict(f=f, h=h, w=w)
            begin, index = here.stop, number // 2  # bins
            x, n = (rearrange(part[here], "(f h w) C -> f C h w", **axes) for part in (pack.clean, pack.noise))
            pixels = held.source.load(index, 5, index).pixels
            video = from_uint8(pixels)
            mean = vae.normalise(vae.encode(video[None]).latent_dist.mean)[0].transpose(0, 1)
            torch.testing.assert_close(x, mean, rtol=0, atol=1e-5)
            noise = torch.randn(video[:, 0].shape, generator=generator(5, index, "image-noise"))
            image = vae.raw.encode((video[:, 0] + 0.02 * noise)[None]).latent_dist.mode()  # not scaled
            ids = torch.tensor([[(held.source.rate(index) or 7.0) - 1, 127.0, 0.02]])
            sigma = 700.0 * level.double() ** 7
            y = x + sigma * n
            noised = torch.cat([(y / (1 + sigma**2).sqrt()).float(), image.expand(f, -1, -1, -1)], 1)[None]
            state = reader.read([pixels[0]], CPU)[None]
            out = raw(noised, (sigma.log() / 4).float(), state, ids, return_dict=False)[0][0]
            clean = y / (1 + sigma**2) - sigma / (1 + sigma**2).sqrt() * out
            error = (clean - x).square().mean()
            want = (1 + sigma**2) / sigma**2 * error
            torch.testing.assert_close(found[place].double(), want.double(), rtol=2e-3, atol=1e-4)
            torch.testing.assert_close(of_clean[place].double(), error.double(), rtol=2e-3, atol=1e-4)
            seen += 1
    assert seen == 3 * 2


@torch.no_grad()
@pytest.mark.parametrize(("kind", "ends"), [("wan_clip", (0,)), ("wan_ends", (0, -1))])
def test_held_out_clips_have_the_states_of_an_image_encoder(
    kind, ends, published_config, repository, held_out, tmp_path
):
    task = DitTask(published_config(tmp_path / "run", repository(kind), *held_out, "data.tokens_per_pack=200"), CPU)
    held = task.held_out()
    pack = held.make_pack(held.packs[0])
    for number, states in zip(pack.numbers, pack.conditions.image, strict=True):
        pixels = held.source.load(number // 2, 5, number // 2).pixels
        want = task.parts.image.read([pixels[end] for end in ends], CPU)
        torch.testing.assert_close(states, want, rtol=0, atol=1e-5)
    sums = held.measure(task.model, 0, 1)
    for entry in held.cache._entries.values():
        entry.picture.zero_()
    assert not torch.equal(held.measure(task.model, 0, 1), sums)


def test_clips_are_made_of_pictures_to_look_at_and_to_score(published_config, repository, held_out, tmp_path):
    """The looks begin with `samples.images`, the scored clips with the first frames of held-out ones."""
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 24), (200, 30, 30)).save(picture)
    looks = ("samples.every=1", "samples.prompts=[x]", f"samples.images=[{picture}]", "samples.steps=2")
    looks += ("samples.frames=2", "samples.height=16", "samples.width=16")
    scores = ("validation.scores=[flicker]", "validation.clips=2", "validation.weights=[ema]")
    run = tmp_path / "run"
    options = (*SMALL, *held_out, *looks, *scores, "train.steps=1", "data.packs_per_step=1")
    train(published_config(run, repository("svd"), *options), DitTask)
    rows = read_metrics(run, "validation.jsonl")
    assert len(rows) == 2 and all(row["loss"] > 0 and row["scores"]["flicker"]["value"] >= 0 for row in rows)
    assert list((run / "samples").iterdir())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("svd", (), r"samples\.images: the model makes clips of pictures: give one for each prompt"),
        ("wan", ("samples.images=[PICTURE]",), r"samples\.images: the model is not trained with a given first frame"),
        ("svd", ("samples.images=[CLIP]",), r"samples\.images: .*mp4 has \d+ frames where one picture is wanted"),
    ],
)
def test_looks_that_cannot_be_are_refused(kind, options, message, published_config, repository, digits_data, tmp_path):
    clip = next(path for path in sorted(digits_data.rglob("*.mp4")))
    Image.new("RGB", (16, 16)).save(tmp_path / "picture.png")
    names = {"PICTURE": str(tmp_path / "picture.png"), "CLIP": str(clip)}
    for word, value in names.items():
        options = [option.replace(word, value) for option in options]
    small = SMALL if kind == "svd" else ()
    config = published_config(
        tmp_path / "run", repository(kind), *small, "samples.every=1", "samples.prompts=[x]", *options
    )
    with pytest.raises(UserError, match=message):
        DitTask(config, CPU)
