"""Published models sampled by our pipeline: latents of 10 steps are those of diffusers' own for the same noise."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDPMScheduler, DiffusionPipeline, WanImageToVideoPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.wan import pipeline_wan_i2v
from diffusers.schedulers import scheduling_dpm_cogvideox
from einops import rearrange
from PIL import Image
from torch import Tensor

from latentvid.diffusion.guidance import Guidance
from latentvid.errors import UserError
from latentvid.packing import Grid, Packed, token_grid, unpatchify
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.open_video import OpenVideoPipeline
from latentvid.pipelines.sampling import Request, Sampling, draw_noise
from latentvid.rng import generator

PROMPTS, NEGATIVE = ["a red 7 moves up", "a blue 3 moves down and to the left"], "a green 5"
SIZES = [(9, 32, 64), (5, 64, 32)]  # frames, height, width: mixed
STEPS = 10
SLOW = partial(pytest.param, marks=pytest.mark.slow)  # what others test too, in parts


def sampling(scale: float, **more: Any) -> Sampling:
    return Sampling(steps=STEPS, guidance=Guidance(scale=scale), precision=torch.float32, progress=False, **more)


def picture(i: int) -> Tensor:
    _, height, width = SIZES[i]
    return torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)


def image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.numpy())


def noise(pipeline: OpenVideoPipeline, grid: Grid, seed: int) -> Tensor:
    """[C,f,h,w], that of our request with this seed; with what a patch needs in front."""
    model = pipeline.transformer
    t, p, q = model.patch
    layout = Packed.of([token_grid(grid, model.patch)])
    tokens = draw_noise([generator(seed, 0, "sample")], layout, model.latent_channels * t * p * q)
    return unpatchify(tokens, layout, model.patch)[0]


def compare(
    pipeline: OpenVideoPipeline,
    theirs: Callable[[int, Tensor], Tensor],
    requests: list[dict[str, Any]],
    how: Sampling,
    sizes: Sequence[tuple[int, int, int]] = SIZES,
) -> None:
    """The requests in one pack against `theirs(i, noise)` -> latents [C,f,h,w] of each alone."""
    grids = [pipeline.latent_grid(*size) for size in sizes]
    rows = zip(grids, PROMPTS, requests, strict=True)
    asked = [
        Request(prompt=prompt, negative_prompt=NEGATIVE, grid=grid, seed=i, **more)
        for i, (grid, prompt, more) in enumerate(rows)
    ]
    for i, (got, grid) in enumerate(zip(pipeline.sample(asked, how), grids, strict=True)):
        want = theirs(i, noise(pipeline, grid, i))[:, -grid[0] :]
        assert 0.1 < float(want.abs().max()) < 1e4
        torch.testing.assert_close(got, want.float(), rtol=0, atol=1e-4 * max(1.0, float(want.abs().max())))


@pytest.fixture(autouse=True)
def without_ftfy(monkeypatch):
    """An optional package, without which diffusers' pipeline of Wan's pictures reads no prompt."""
    monkeypatch.setattr(pipeline_wan_i2v, "ftfy", SimpleNamespace(fix_text=str), raising=False)


def theirs_of(
    pipe: DiffusionPipeline,
    into: str = "C f h w -> 1 C f h w",
    back: str = "1 C f h w -> C f h w",
    sizes: Sequence[tuple[int, int, int]] = SIZES,
    **more: Any,
) -> Callable[[int, Tensor], Tensor]:
    def run(i: int, latents: Tensor) -> Tensor:
        frames, height, width = sizes[i]
        given = {name: value(i) if callable(value) else value for name, value in more.items()}
        words = {"prompt": PROMPTS[i], "negative_prompt": NEGATIVE, "num_inference_steps": STEPS}
        size = {"height": height, "width": width, "num_frames": frames}
        made = pipe(**words, **size, latents=rearrange(latents, into), output_type="latent", **given).frames
        return rearrange(made, back, **dict(zip("fhw", latents.shape[1:], strict=True)))

    return run


def loaded(folder: Path) -> tuple[OpenVideoPipeline, DiffusionPipeline]:
    theirs = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    return load_pipeline(folder, "cpu", mixed_precision="no"), theirs


@pytest.mark.slow  # the two experts' test is this and more
def test_wan(repository):
    ours, theirs = loaded(repository("wan"))
    assert isinstance(ours, OpenVideoPipeline) and ours.solver == "unipc" and ours.config.frames == 81
    compare(ours, theirs_of(theirs, guidance_scale=5.0), [{}, {}], sampling(5.0))


def test_wans_two_experts_take_turns_by_noise_level(repository):
    ours, theirs = loaded(repository("wan_experts"))
    scales = dict(guidance_scale=4.0, guidance_scale_2=3.0)
    compare(ours, theirs_of(theirs, **scales), [{}, {}], sampling(4.0, guidance_low=3.0))
    assert ours._second(sampling(4.0)).guidance.scale == 3.0  # the recipe's, where the first is the recipe's too
    assert ours._second(sampling(2.0)).guidance.scale == 2.0


def test_wan_of_one_network_for_text_and_pictures(repository):
    ours, theirs = loaded(repository("wan_small"))
    compare(ours, theirs_of(theirs, guidance_scale=5.0), [{}, {}], sampling(5.0))
    parts = {name: getattr(theirs, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")}
    of_pictures = WanImageToVideoPipeline(**parts, expand_timesteps=True)
    of_pictures.set_progress_bar_config(disable=True)
    begun = ours.begin_with([picture(0), picture(1)], [ours.latent_grid(*size) for size in SIZES])
    compare(ours, theirs_of(of_pictures, image=lambda i: image(picture(i)), guidance_scale=5.0), begun, sampling(5.0))


@pytest.mark.parametrize("kind, lasts", [SLOW("wan_image", False), ("wan_clip", False), ("wan_ends", True)])
def test_wan_from_pictures(repository, kind, lasts):
    """Two experts; one network with CLIP tokens; first and last picture."""
    ours, theirs = loaded(repository(kind))
    firsts, ends = [picture(0), picture(1)], [255 - picture(0), 255 - picture(1)]
    grids = [ours.latent_grid(*size) for size in SIZES]
    begun = ours.begin_with(firsts, grids, lasts=ends if lasts else None)
    more = {"last_image": lambda i: image(ends[i])} if lasts else {}
    run = theirs_of(theirs, image=lambda i: image(firsts[i]), guidance_scale=3.5, **more)
    compare(ours, run, begun, sampling(3.5))


COG = {"into": "C f h w -> 1 f C h w", "back": "1 f C h w -> C f h w"}


@pytest.mark.parametrize("kind, patch", [("cogvideox", (1, 2, 2)), ("cogvideox_newer", (2, 2, 2))])
def test_cogvideox(repository, kind, patch):
    """2b, and 1.5, whose clips of 3 latent frames have one more in front."""
    ours, theirs = loaded(repository(kind))
    assert (ours.solver, ours.transformer.patch) == ("euler", patch)
    compare(ours, theirs_of(theirs, **COG, guidance_scale=6.0), [{}, {}], sampling(6.0))


@pytest.mark.parametrize("kind", [SLOW("cogvideox_image"), "cogvideox_newer_image"])
def test_cogvideox_from_pictures(repository, kind, monkeypatch):
    """Its pipeline draws the picture's latent from the posterior; ours takes the mean."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    ours, theirs = loaded(repository(kind))
    begun = ours.begin_with([picture(0), picture(1)], [ours.latent_grid(*size) for size in SIZES])
    run = theirs_of(theirs, **COG, image=lambda i: image(picture(i)), guidance_scale=6.0)
    compare(ours, run, begun, sampling(6.0))


def test_cogvideox_by_its_stochastic_solver(repository, tmp_path, monkeypatch):
    """Of the two noises that each of its steps draws the second is used, but in the first step and the last."""
    folder = Path(shutil.copytree(repository("cogvideox"), tmp_path / "dpm"))
    (folder / "scheduler" / "scheduler_config.json").unlink()
    theirs = DiffusionPipeline.from_pretrained(repository("cogvideox"), local_files_only=True)
    theirs.scheduler = CogVideoXDPMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "CogVideoXDPMScheduler"]}))
    ours = load_pipeline(folder, "cpu", mixed_precision="no")
    assert ours.solver == "cogvideox_dpm"
    run = theirs_of(theirs, **COG, guidance_scale=6.0)

    def replayed(i: int, latents: Tensor) -> Tensor:
        f, h, w = latents.shape[1:]
        layout, source = Packed.of([token_grid((f, h, w), ours.transformer.patch)]), generator(i, 0, "sample")
        features = ours.transformer.latent_channels * 4
        draws = [
            unpatchify(draw_noise([source], layout, features), layout, ours.transformer.patch)[0] for _ in range(11)
        ]
        fresh = [rearrange(x, COG["into"]) for x in draws[1:]]
        replay = [fresh[0], *(x for x in fresh[1:-1] for _ in range(2)), fresh[-1]]
        monkeypatch.setattr(scheduling_dpm_cogvideox, "randn_tensor", lambda *more, **options: replay.pop(0))
        made = run(i, latents)
        assert not replay
        return made

    compare(ours, replayed, [{}, {}], sampling(6.0))


@pytest.mark.parametrize("kind", [SLOW("mochi"), "mochi_zeros"])
def test_mochi(repository, kind, monkeypatch):
    """Its class counts time and predicts the other way round; the empty prompt has one token, or none."""
    monkeypatch.setattr(sys.modules[__name__], "NEGATIVE", "")
    ours, theirs = loaded(repository(kind))
    sizes = [(13, 32, 64), (7, 64, 32)]
    assert ours.solver == "euler" and ours.scheduler.config.spacing == "linear_quadratic"
    compare(ours, theirs_of(theirs, sizes=sizes, guidance_scale=4.5), [{}, {}], sampling(4.5), sizes)


def test_with_a_picture_and_without_in_one_pack(repository):
    """HunyuanVideo 1.5 takes both: zeros in further channels and no image tokens."""
    ours, grids = load_pipeline(repository("hunyuan15_image"), "cpu", mixed_precision="no"), [(2, 2, 4), (1, 4, 2)]
    begun = ours.begin_with([picture(0)], grids[:1])[0]
    asked = [Request(prompt="a 7", grid=grids[0], **begun), Request(prompt="a red 3", grid=grids[1], seed=1)]
    quick = Sampling(steps=2, precision=torch.float32, progress=False)
    together = ours.sample(asked, quick)
    for request, latent in zip(asked, together, strict=True):
        torch.testing.assert_close(latent, ours.sample([request], quick)[0], rtol=0, atol=1e-4)


def test_a_model_of_pictures_wants_one(repository):
    ours = load_pipeline(repository("wan_image"), "cpu", mixed_precision="no")
    with pytest.raises(UserError, match="makes videos from pictures alone: give it one, with inference/i2v.py"):
        ours("a red 7", num_frames=5, height=32, width=32)


def test_what_the_model_has_no_use_for_is_refused(repository):
    ours = load_pipeline(repository("wan"), "cpu", mixed_precision="no")
    small = dict(num_frames=1, height=16, width=16)
    with pytest.raises(UserError, match="guidance_low is of a second expert"):
        ours("a 7", sampling=sampling(2.0, guidance_low=1.0), **small)
    with pytest.raises(UserError, match="has no guidance embedding"):
        ours("a 7", sampling=sampling(2.0, guidance_embedded=1.0), **small)
    with pytest.raises(UserError, match="stays in its own repository"):
        ours.save_pretrained("anywhere")


def test_parts_are_moved_offloaded_and_read_in_bf16(repository, monkeypatch):
    ours = OpenVideoPipeline.from_pretrained(repository("wan_experts"), torch_dtype=torch.bfloat16)
    assert ours.transformer.dtype == ours.transformer_2.dtype == ours.text_encoder.dtype == torch.bfloat16
    assert ours.vae.dtype == torch.float32
    assert {"vae", "transformer", "transformer_2", "scheduler", "text_encoder"} <= ours.components.keys()
    ours.to("meta")
    assert {p.device.type for net in ours.experts for p in net.parameters()} == {"meta"}
    assert ours.text_encoder.device.type == "meta"


@pytest.mark.parametrize("kind", ["wan", "hunyuan"])
def test_a_text_encoder_in_bf16_beside_a_network_in_fp32(repository, kind):
    """As `text.dtype: bf16` keeps it: the network gets its states in fp32 where no autocast makes them alike."""
    ours = load_pipeline(repository(kind), "cpu", mixed_precision="no")
    ours.text_encoder.to(torch.bfloat16)
    clip = ours("a red 7", num_frames=1, height=16, width=16, sampling=sampling(2.0), output_type="uint8").frames[0]
    assert clip.shape == (1, 16, 16, 3)


def test_networks_come_to_the_device_one_by_one(repository):
    ours = load_pipeline(repository("wan_experts"), "cpu", mixed_precision="no")
    words = dict(num_frames=1, height=16, width=16, sampling=Sampling(steps=4, precision=torch.float32, progress=False))
    want = ours("a red 7", **words, output_type="uint8").frames[0]
    ours.enable_model_cpu_offload(device="cpu")
    networks = ours.text_encoder, ours.transformer, ours.transformer_2, ours.vae
    assert all(hasattr(network, "_hf_hook") for network in networks)
    assert torch.equal(ours("a red 7", **words, output_type="uint8").frames[0], want)


def test_defaults_are_the_recipes_and_prompts_are_read_once(repository, monkeypatch):
    ours = load_pipeline(repository("wan"), "cpu", mixed_precision="no")
    read = []
    encode = type(ours.reader).encode
    monkeypatch.setattr(
        type(ours.reader), "encode", lambda self, texts: read.append(list(texts)) or encode(self, texts)
    )
    quick = Sampling(steps=2, progress=False)
    output = ours("a red 7", num_frames=1, height=16, width=16, sampling=quick, output_type="uint8")
    assert read == [["a red 7", ours.recipe.negative_prompt]] and output.fps == 16.0
    assert output.frames[0].shape == (1, 16, 16, 3)
