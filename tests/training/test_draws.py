"""What is drawn for a sample in training: keyed by its global number, so that every epoch draws anew.

The values behind the keys are pinned in `tests/golden`.
"""

import math
from dataclasses import replace

import pytest
import torch

from latentvid.data.plan.step import Draw
from latentvid.data.transforms import from_uint8
from latentvid.diffusion.masks import GivenFrames
from latentvid.errors import UserError
from latentvid.packing import patchify
from latentvid.rng import generator
from latentvid.training.stages.dit.pack import DitPack
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.stages.vae.task import VaeTask

CPU = torch.device("cpu")
SEED = 7
MIX = "given={plain: 1, first: 1, random: 1, independent: 1}"
LEVELS = "timesteps={kind: logit_normal, shift: 2.0, base_tokens: 16}"


def made(task: DitTask, draw: Draw) -> DitPack:
    """The pack of one draw."""
    return task.make_pack([draw])


def dropped(task: DitTask, pack: DitPack) -> bool:
    """Whether the one caption is."""
    if pack.captions is not None:
        return pack.captions == [""]
    return torch.equal(pack.text, task.null_text)


@pytest.fixture(scope="module", params=["cache", "clips"])
def task(request, dit_config, digits_data, tmp_path_factory) -> DitTask:
    online = ("data.latents=null", f"data.manifest={digits_data / 'train.jsonl'}") if request.param == "clips" else ()
    options = (f"run.seed={SEED}", "caption.dropout=0.3", MIX, LEVELS, *online)
    return DitTask(dit_config(tmp_path_factory.mktemp("run"), *options), CPU)


def test_every_draw_is_of_the_samples_number_for_one_purpose(task):
    """Not of its index: the same sample has other noise in another epoch, and two samples never share a draw."""
    samples, masks = len(task.grids), GivenFrames(plain=1.0, first=1.0, random=1.0, independent=1.0)
    for number in (0, 5, samples + 5, 10**12 + 5):
        index = number % samples
        pack, grid = made(task, Draw(number, index)), task.grids[index]
        draw = lambda purpose: generator(SEED, number, purpose)  # noqa: E731, B023
        assert torch.equal(pack.noise, torch.randn(math.prod(grid), task.features, generator=draw("noise")))
        given, independent = masks.draw(draw("given"), grid[0])
        levels = task.config.timesteps.draw(draw("timestep"), math.prod(grid), grid[0] if independent else 1)
        assert torch.equal(pack.timestep, torch.where(given, 0.0, levels.expand(grid[0])))
        assert dropped(task, pack) == bool(torch.rand((), generator=draw("caption-dropout")) < 0.3)
        if task.cache is None:
            (posterior,) = pack.posterior
            assert torch.equal(posterior, torch.randn(posterior.shape, generator=draw("posterior")))
        else:
            entry = task.cache.load(index)
            noise = torch.randn(entry.mean.shape, generator=draw("posterior"))
            assert torch.equal(pack.clean, patchify([entry.mean + entry.std * noise], task.patch)[0])


def test_a_pack_says_the_rate_of_each_of_its_samples(task):
    """As its samples lie in the pack, wherever they come from; an image has none."""
    draws = [Draw(number, number) for number in range(12)]
    pack = task.make_pack(draws)
    rates = torch.where(torch.tensor([grid[0] == 1 for grid in pack.layout.grid]), 0.0, 8.0)
    assert torch.equal(pack.rates, rates) and rates.unique().tolist() == [0, 8]
    assert pack.to(CPU).rates.dtype == torch.float32


def test_rates_are_dropped_by_the_samples_number_where_the_model_is_told_them(dit_config, tiny_latents, tmp_path):
    """Positions in seconds alone need them all, and so do measurements."""
    options = (f"run.seed={SEED}", "data.fps_dropout=0.3", "validation.every=1", f"validation.latents={tiny_latents}")
    told = DitTask(dit_config(tmp_path / "told", *options, "model.fps_condition=true"), CPU)
    videos = [i for i, grid in enumerate(told.grids) if grid[0] > 1]
    draws = [Draw(number, videos[number % len(videos)]) for number in range(60)]
    rates = [made(told, draw).rates.item() for draw in draws]
    chances = [torch.rand((), generator=generator(SEED, draw.number, "fps-dropout")) for draw in draws]
    assert rates == [0.0 if chance < 0.3 else 8.0 for chance in chances] and 8 < rates.count(0.0) < 28
    assert all(made(told.held_out(), draw).rates.item() == 8.0 for draw in draws[:20])
    for options_ in ((), ("model.rope_fps=24",)):
        task = DitTask(dit_config(tmp_path / "run", *options, *options_), CPU)
        assert all(made(task, draw).rates.item() == 8.0 for draw in draws[:20])
    assert told.model.config.temporal_stride == 4  # the VAE's
    assert told.fps == 8.0 and DitTask(dit_config(tmp_path / "run", "samples.fps=5"), CPU).fps == 5.0  # of looks


def test_the_rate_reaches_the_model_in_training(dit_config, tmp_path):
    """The loss of a pack is that of its rates."""
    task = DitTask(dit_config(tmp_path / "run", "model.fps_condition=true", "data.fps_dropout=0"), CPU)
    torch.nn.init.normal_(task.model.fps_in.fc2.weight)
    torch.nn.init.normal_(task.model.final_modulation.weight)
    torch.nn.init.normal_(task.model.tokens_out.weight, std=0.1)
    pack = task.make_pack([Draw(number, number) for number in range(6)])
    losses = [task.loss(task.model, replace(pack, rates=rates), 0)[0] for rates in (pack.rates, 2 * pack.rates)]
    assert torch.equal(losses[0], task.loss(task.model, pack, 0)[0])
    assert torch.equal(losses[0] != losses[1], pack.rates > 0)


def test_windows_at_a_rate_say_so_and_a_cache_of_another_is_refused(dit_config, digits_data, tmp_path):
    online = ("data.latents=null", f"data.manifest={digits_data / 'train.jsonl'}", "data.fps=4")
    task = DitTask(dit_config(tmp_path / "run", *online), CPU)
    pack = task.make_pack([Draw(number, number) for number in range(len(task.grids))])
    assert pack.rates.unique().tolist() == [0, 4] and {kind.get("fps") for kind in task.trained} == {None, 4}
    with pytest.raises(UserError, match=r"data.fps is 4, but .* was made with null: set --data.fps=null"):
        DitTask(dit_config(tmp_path / "run", "data.fps=4"), CPU)


def test_epochs_draw_independently_and_at_the_rates_asked_for(dit_config, tmp_path):
    """Over 40 epochs of 20 images: each caption is dropped as often as asked, whatever the sample and its level."""
    options = ("caption.dropout=0.3", "timesteps.kind=uniform", "given={plain: 1}", f"run.seed={SEED}")
    task = DitTask(dit_config(tmp_path / "run", *options), CPU)
    samples = sorted(range(len(task.grids)), key=task.tokens.__getitem__)[:20]
    shape, epochs = (40, len(samples)), range(40)
    draws = [Draw(epoch * len(samples) + i, index) for epoch in epochs for i, index in enumerate(samples)]
    packs = [made(task, draw) for draw in draws]
    drops = torch.tensor([dropped(task, pack) for pack in packs], dtype=torch.float32).reshape(shape)
    levels = torch.stack([pack.timestep[0] for pack in packs]).reshape(shape)
    noise = torch.stack([pack.noise.mean() * pack.noise.numel() ** 0.5 for pack in packs]).reshape(shape)
    assert abs(float(drops.mean()) - 0.3) < 0.05  # three deviations
    assert drops.mean(0).min() > 0 and drops.mean(0).max() < 0.65  # no sample always, none never
    assert len(levels.unique()) == levels.numel() and len(noise.unique()) == noise.numel()
    assert abs(float(levels.mean()) - 0.5) < 0.03 and abs(float(noise.std()) - 1) < 0.1
    columns = torch.stack([values.flatten() for values in (drops, levels, noise)])
    of_one, of_the_next = columns.corrcoef(), torch.stack([columns[:, :-20], columns[:, 20:]]).flatten(0, 1).corrcoef()
    assert of_one.fill_diagonal_(0).abs().max() < 0.12  # among drop, level and noise of a sample
    assert of_the_next.fill_diagonal_(0).abs().max() < 0.12  # and with those of the next epoch


def test_levels_are_those_that_a_discrete_path_has(dit_config, tmp_path):
    """Seven steps: 1/7, 2/7, ... 1, and never 0, which means a given frame."""
    scheduler = "scheduler={path: ddpm, target: v, num_train_timesteps: 7}"
    task = DitTask(dit_config(tmp_path / "run", scheduler), CPU)
    levels = torch.cat([made(task, Draw(number, 0)).timestep for number in range(60)])
    assert (levels * 7).round().unique().tolist() == [1, 2, 3, 4, 5, 6, 7]
    torch.testing.assert_close(levels, (levels * 7).round() / 7)


@pytest.mark.parametrize(("rate", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_captions_are_dropped_never_or_always_at_the_ends(rate, share, dit_config, tmp_path):
    task = DitTask(dit_config(tmp_path / "run", f"caption.dropout={rate}"), CPU)
    assert {dropped(task, made(task, Draw(number, number % 4))) for number in range(30)} == {bool(share)}


def test_nothing_is_drawn_for_held_out_windows_but_noise_and_level(dit_config, tiny_latents, tmp_path):
    """Whatever training drops and gives: whole captions, the posterior's mean, and one level for all frames."""
    training = ("caption.dropout=1", "given={plain: 0, first: 1}")
    options = (
        "validation.every=1",
        f"validation.latents={tiny_latents}",
        "validation.bins=4",
        f"validation.seed={SEED}",
    )
    held_out = DitTask(dit_config(tmp_path / "run", *training, *options), CPU).held_out()
    for number in (0, 5, 14, 23):
        index = number // 4
        pack, entry = held_out.make_pack([Draw(number, index)]), held_out.cache.load(index)
        assert torch.equal(pack.text, entry.text)
        assert torch.equal(pack.clean, patchify([entry.mean], held_out.patch)[0])
        place = 1.0 - torch.rand(1, generator=generator(SEED, number, "timestep"))
        assert torch.equal(pack.timestep, ((number % 4 + place) / 4).expand(pack.layout.frames))


def test_clips_of_the_autoencoder_are_cut_and_mirrored_by_their_numbers(vae_config, tmp_path):
    """The window's first frame, its crop, its mirror image, and the posterior's noise."""
    options = (f"run.seed={SEED}", "data.max_frames=5", "data.crop=16", "data.flip=true")
    task, seen = VaeTask(vae_config(tmp_path / "run", *options), CPU), set()
    assert task.fps == 8.0  # of looks at it: the data's
    index = next(i for i in range(len(task.source)) if task.source.shapes[i][0] == 5)
    window, whole = task.source.windows[index], task.source
    frames = int(whole.samples.frames[window.sample])
    room = frames % 5
    assert room  # else nothing is to be drawn
    for number in (3, len(task.source) + 3, 10**12):
        (group,) = task.make_pack([Draw(number, index)]).groups
        draw = lambda purpose: generator(SEED, number, purpose)  # noqa: E731, B023
        start = window.start + int(torch.randint(room + 1, (), generator=draw("window")))
        (pixels,) = whole._decode(index, [start], [torch.Tensor.contiguous])
        free = torch.tensor([pixels.shape[1] - 16, pixels.shape[2] - 16])
        top, left = (torch.rand(2, generator=draw("crop")) * (free + 1)).long().tolist()
        pixels = pixels[:, top : top + 16, left : left + 16]
        mirrored = bool(torch.rand((), generator=draw("flip")) < 0.5)
        assert torch.equal(group.video[0], pixels.flip(2) if mirrored else pixels)
        assert torch.equal(group.noise[0], torch.randn(group.noise[0].shape, generator=draw("posterior")))
        assert from_uint8(group.video).abs().max() <= 1
        seen.add((start, top, left, mirrored))
    assert len(seen) == 3
