"""Training a model that is told what is known by channels: what packs hold, what counts, masks of a manifest."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparing import same, state
from small_tasks import draws_of, lively

from latentvid.data.video.reading import read_frames
from latentvid.data.video.writing import write_video
from latentvid.errors import UserError
from latentvid.models.open import OpenBackbone
from latentvid.packing import Packed, patchify, unpatchify
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.rng import generator
from latentvid.sequence import SequenceGroup
from latentvid.training.stages.dit.known import check_told, kept_by
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("fresh_accelerate")
TOLD = "model.condition_channels=mask_and_latents"
EACH = ("first", "prefix", "ends", "random", "inpaint", "outpaint", "independent")
MIXED = tuple(f"given.{name}=1" for name in EACH)
MASKS = "data.references={hole: {column: mask, place: channels, dropout: 0.3}}"


def latents_of(task: DitTask, pack, tokens: torch.Tensor) -> list[torch.Tensor]:
    """[T, C p q] -> [C,f,h,w] of each sample."""
    return unpatchify(tokens, Packed.of(pack.layout.grid), task.patch)


def test_a_packs_loss_is_that_of_each_sample_written_out(dit_config, tmp_path):
    """All tokens of a sample at its level, also known ones; mask and known latents beside; the error of the rest."""
    task = DitTask(dit_config(tmp_path / "run", TOLD, *MIXED), CPU)
    lively(task.model)
    draws = draws_of(task, 40)
    pack = task.prepare(task.make_pack(draws))
    losses, _ = task.loss(task.model, pack, 0)
    cleans, channels = (latents_of(task, pack, x) for x in (pack.clean, pack.conditions.channels))
    levels = pack.timestep.split([f for f, _, _ in pack.layout.grid])
    noises = pack.noise.split(pack.layout.lengths)
    texts, kinds = pack.text.split(pack.text_layout.lengths), set()
    for i, (number, grid) in enumerate(zip(pack.numbers, pack.layout.grid, strict=True)):
        f, h, w = grid
        known = task.config.given.known(generator(0, number, "given"), (f, 2 * h, 2 * w))
        assert torch.equal(channels[i][0], known.float())
        assert torch.equal(channels[i][1:], torch.where(known, cleans[i], torch.zeros(())))
        assert levels[i].min() > 0 and (levels[i].unique().numel() == 1 or not known.any())
        kinds |= {(f > 1, bool(known.any()), bool(known.flatten(1).all(1).eq(known.flatten(1).any(1)).all()))}
        tokens, layout = patchify([cleans[i]], 2)[0], Packed.of([grid])
        t = levels[i].repeat_interleave(h * w)[:, None]
        given = replace(pack.conditions, channels=patchify([channels[i]], 2)[0])
        words = Packed.of_lengths([len(texts[i])])
        predicted = task.model((1 - t) * tokens + t * noises[i], levels[i], texts[i], layout, words, conditions=given)
        counts = ~patchify([known[None]], 2)[0].all(1)
        error = (predicted - (noises[i] - tokens)).square().mean(1)
        torch.testing.assert_close(losses[i], error[counts].mean(), rtol=1e-4, atol=1e-5)
        assert pack.counted[i] == int(counts.sum()) > 0
    assert pack.counted_in_all == sum(pack.counted) < pack.layout.tokens and task.partial
    assert {(False, True, False), (True, True, True), (True, True, False), (True, False, True)} <= kinds


def test_pieces_of_a_pack_hold_what_is_known_of_their_tokens(dit_config, tmp_path):
    task = DitTask(dit_config(tmp_path / "run", TOLD, *MIXED), CPU)
    draws = draws_of(task, 9)
    whole, parts = task.make_pack(draws), []
    for rank in range(2):
        task.sequence = SequenceGroup("group", rank, 2)
        parts.append(task.make_pack(draws))
    assert torch.equal(torch.cat([part.known for part in parts]), whole.known) and whole.known.any()
    for part in parts:
        at = slice(whole.numbers.index(part.numbers[0]), whole.numbers.index(part.numbers[-1]) + 1)
        assert part.counted == whole.counted[at] and len(part.known_tokens) == part.layout.frames


def test_other_draws_are_those_of_a_model_that_is_told_by_levels(dit_config, tmp_path):
    shares = ("given.first=1", "given.random=1")
    by_levels, told = (DitTask(dit_config(tmp_path / "run", *more, *shares), CPU) for more in ((), (TOLD,)))
    one, other = (task.make_pack(draws_of(task, 24)) for task in (by_levels, told))
    assert torch.equal(one.noise, other.noise) and torch.equal(one.clean, other.clean) and one.known is None
    given = one.timestep == 0
    assert given.any() and torch.equal(one.timestep[~given], other.timestep[~given])
    assert torch.equal(given, other.known_tokens == other.layout.frame_tokens) and one.counted == other.counted


def test_a_model_that_is_widened_begins_as_it_was_and_goes_on(dit_config, tiny_pipeline, tmp_path):
    """To the last bit, whatever it is told; stopped and gone on is not stopped; its pipeline knows of it."""
    begun = ("model={}", f"init={tiny_pipeline}", "optim.schedule=constant", "given.first=1", "given.inpaint=1")
    wide = ("model={condition_channels: mask_and_latents}", "init_partial=true")
    told = DitTask(dit_config(tmp_path / "none", *begun, *wide), CPU)
    pack = told.prepare(told.make_pack(draws_of(told, 24)))
    before = load_pipeline(tiny_pipeline, "cpu").transformer
    t = pack.timestep.index_select(0, pack.layout.frame)[:, None]
    inputs = told.scheduler.mix(pack.clean, pack.noise, t), pack.timestep, pack.text, pack.layout, pack.text_layout
    assert pack.known.any() and before(*inputs).abs().max() > 0.1
    assert torch.equal(told.model(*inputs, conditions=pack.conditions), before(*inputs))
    with pytest.raises(
        UserError, match="not there: channels_in.weight; not as it was: model.condition_channels is mask"
    ):
        DitTask(dit_config(tmp_path / "none", *begun, wide[0]), CPU)

    def trained(run: Path, steps: int) -> None:
        train(dit_config(run, *begun, *wide, f"train.steps={steps}", "checkpoint.every=1"), DitTask)

    trained(tmp_path / "whole", 2)
    trained(tmp_path / "stopped", 1)
    trained(tmp_path / "stopped", 2)
    for kind in ("model", "ema"):
        one, other = (state(tmp_path / run, 2, kind) for run in ("whole", "stopped"))
        assert same(one, other) and one["channels_in.weight"].abs().amax(0).gt(0).any()
    made = load_pipeline(tmp_path / "whole" / "pipeline", "cpu")
    assert made.told and list(made.config.given) == ["plain", "first", "inpaint"]
    assert torch.equal(made.transformer.channels_in.weight, state(tmp_path / "whole", 2, "ema")["channels_in.weight"])
    made.sample([Request(prompt="a red 7", grid=(2, 8, 8))], Sampling(steps=1, progress=False))
    going = DitTask(dit_config(tmp_path / "next", "model={}", f"init={tmp_path / 'whole'}", "given.first=1"), CPU)
    assert going.told and going.model.channels == 5  # as `init` says


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, digits_data) -> Path:
    """The digits with masks: a picture, a clip, none, and one that is black all over."""
    folder, rows = tmp_path_factory.mktemp("masks"), []
    for i, line in enumerate((digits_data / "train.jsonl").read_text().splitlines()[:8]):
        row = json.loads(line)
        row["path"] = str(digits_data / row["path"])
        pixels = torch.zeros_like(read_frames(row["path"], 0, 1)[:1])
        if i == 0:
            pixels = pixels.expand(17, *pixels.shape[1:]).clone()
            pixels[3:, : 4 + i] = 255
        elif i != 3:
            pixels[:, 3 * i :, 8:] = 255
        name = f"{i}.mp4" if len(pixels) > 1 else f"{i}.png"
        write_video(folder / name, pixels, 8.0)
        row["mask"] = None if i == 2 else name
        rows.append(row)
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def masked(dit_config, manifest):
    """`masked(run, ...)`: a tiny DitConfig over these clips."""

    def make(run: Path, *more: str):
        data = ("data.latents=null", f"data.manifest={manifest}", "data.max_frames=5", "data.tokens_per_pack=160")
        return dit_config(run, *data, "data.flip=true", TOLD, MASKS, *more)

    return make


def test_masks_of_a_manifest_say_what_is_known(masked, manifest, tmp_path):
    """Cut and mirrored with their clips, which have no further tokens; where there is none it is drawn as ever."""
    held = ("validation.every=2", "validation.samples=4", f"validation.manifest={manifest}")
    task = DitTask(masked(tmp_path / "run", "given.first=0.5", *held), CPU)
    draws = draws_of(task, 24)
    pack, seen = task.make_pack(draws), []
    assert not any(pack.layout.references) and task.partial
    in_a_loader = pickle.loads(pickle.dumps(task)).make_pack(draws)
    assert torch.equal(in_a_loader.known, pack.known) and in_a_loader.counted == pack.counted
    grids = [tuple(2 * n if axis else n for axis, n in enumerate(grid)) for grid in pack.layout.grid]
    known = unpatchify(pack.known.float(), Packed.of(pack.layout.grid), task.patch)
    for i, number in enumerate(pack.numbers):
        clip = task.source.load(number % len(task.grids), 0, number)
        assert not clip.references
        want = task.config.given.known(generator(0, number, "given"), grids[i])
        if clip.masks and (clip.masks[0] >= 128).any():
            (mask,) = clip.masks
            assert mask.shape[1:] == clip.pixels.shape[1:] and len(mask) in (1, len(clip.pixels))
            want = kept_by(clip.masks, len(clip.pixels), 4, 4)
            seen.append(number)
        assert torch.equal(known[i][0].bool(), want)
    assert 0 < len(seen) < len(draws) and task.loss(task.model, pack, 0)[0].isfinite().all()
    held_out = task.held_out()
    pack = held_out.make_pack(held_out.packs[0])
    assert pack.known is not None and held_out.measure(task.model, 0, 1).isfinite().all()


def test_a_mask_is_white_by_its_middle_grey():
    mask = torch.tensor([127, 128], dtype=torch.uint8).repeat_interleave(4)[None, None, :, None].expand(1, 4, 8, 3)
    found = kept_by([mask], 5, 4, 4)
    assert found.tolist() == [[[True, False]]] * 2
    assert kept_by([mask.clamp_max(127)], 5, 4, 4) is None and kept_by([], 5, 4, 4) is None
    other = mask.flip(2)
    assert kept_by([mask, other], 5, 4, 4).tolist() == [[[False, False]]] * 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("model.condition_channels=mask",), "condition_channels 'mask': one of none, mask_and_latents"),
        (("model.condition_channels=none",), "data.references.hole .place: channels.: .* set model.condition_channels"),
        (
            ("model.condition_channels=none", "data.references={}", "given.outpaint=1"),
            "given.outpaint: the model has no channels by which to be told of parts of frames",
        ),
        (("data.latents=anywhere", "data.manifest=null"), "references are read from files as it trains"),
        (
            ("data.references={a: {column: mask, place: channels}, b: {column: mask, place: channels}}",),
            "references.b: a has place=channels already",
        ),
        (("data.references={a: {column: mask, place: channels, max_area: 64}}",), "what channels show has"),
        (("data.references={a: {column: masks, place: channels}}",), "no manifest has a column `masks`"),
        (("given.inpaint=-1",), "given.inpaint=-1"),
    ],
)
def test_what_cannot_be_is_said(more, message, masked, tmp_path):
    with pytest.raises(UserError, match=message):
        DitTask(masked(tmp_path / "run", *more), CPU)


def test_what_shares_packs_and_published_models_have_no_masks(masked, dit_config, tmp_path):
    task = DitTask(masked(tmp_path / "run"), CPU)
    task.config.train.sequence_parallel = 2
    with pytest.raises(UserError, match="data.references.hole: masks are read with their clips.*sequence_parallel=1"):
        task._check_references()
    with pytest.raises(UserError, match="given.inpaint: .*published models have none of ours: leave it out"):
        check_told(dit_config(tmp_path / "open", "given.inpaint=1"), OpenBackbone.__new__(OpenBackbone))


def test_a_run_says_where_nothing_is_known_and_what_it_costs(dit_config, tmp_path):
    said = "nothing is known of any clip, so they learn nothing"
    task, plain = (DitTask(dit_config(tmp_path / "run", *more), CPU) for more in ((TOLD,), ()))
    assert said in task.summary() and said not in plain.summary()
    blank = task.blank_pack([(2, 3, 3), (1, 2, 2)])
    assert task.loss(task.model, blank, 0)[0].isfinite().all() and not blank.known.any()
    assert task.grid_flops((2, 3, 3)).model - plain.grid_flops((2, 3, 3)).model == 2 * 18 * 20 * 32
    assert said not in DitTask(dit_config(tmp_path / "run", TOLD, "given.first=1"), CPU).summary()
