"""Training a model that sees its clips made smaller by further channels: what packs hold, what it begins with."""

import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_tasks import draws_of, lively

from latentvid.data.degradations import degraded
from latentvid.data.transforms import from_uint8
from latentvid.errors import UserError
from latentvid.models.conditions import low_channels
from latentvid.packing import Packed, patchify, unpatchify
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.references import Degradation
from latentvid.rng import generator
from latentvid.sequence import SequenceGroup
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("fresh_accelerate")
SEES = "model.condition_channels=latents"
LOW = "low: {place: channels, dropout: 0.3, noise: [0.1, 0.6], degrade: [{kind: resize, amount: [2, 3]}]}"
STILL = "still: {signal: luminance, place: aligned, max_area: 64, dropout: 0.4}"
ROLE, BOTH = f"data.references={{{LOW}}}", f"data.references={{{STILL}, {LOW}}}"


@pytest.fixture
def config(dit_config, digits_data):
    """`config(run, ...)`: a tiny DitConfig over the digits, each of which is seen at half its size or less."""

    def make(run: Path, *more: str):
        data = ("data.latents=null", f"data.manifest={digits_data / 'train.jsonl'}", "data.max_frames=5")
        return dit_config(run, *data, "data.tokens_per_pack=160", SEES, ROLE, "checkpoint.every=1", *more)

    return make


def seen_alone(task: DitTask, number: int, grid: tuple[int, int, int]) -> torch.Tensor | None:
    """What a sample sees, written out: [1 + C,f,h,w]; None of one whose role is dropped."""
    clip = task.source.load(number % len(task.grids), 0, number)
    if not clip.references or 3 * clip.references[-1].shape[1] < clip.pixels.shape[1]:
        return None  # the other role's alone
    what, size = (Degradation(kind="resize", amount=(2, 3)),), [8 * -(-n // 16) for n in clip.pixels.shape[1:3]]
    low = degraded(clip.pixels, what, size, generator(0, number, "degrade/low"))
    if not torch.equal(low, clip.references[-1]):
        return None
    latent = task.vae.normalise(task.vae.encode(from_uint8(low)[None]).latent_dist.mean)[0].detach()
    level = 0.1 + 0.5 * torch.rand((), generator=generator(0, number, "reference-level/low"))
    fresh = torch.randn(latent.shape, generator=generator(0, number, "reference-noise/low"))
    return low_channels((1 - level) * latent + level * fresh, level, grid)


def test_a_packs_loss_is_that_of_each_sample_written_out(config, tmp_path):
    """Noise and its level in the channels of the own tokens, 0 of those of other references; given frames have level 0,
    and what is drawn besides is that of a model without channels."""
    task = DitTask(config(tmp_path / "run", BOTH, "given.first=1"), CPU)
    lively(task.model)
    draws = draws_of(task, 12)
    loaded = pickle.loads(pickle.dumps(task)).make_pack(draws)
    pack = task.prepare(loaded)
    losses, _ = task.loss(task.model, pack, 0)
    tokens = DitTask(
        config(
            tmp_path / "run",
            BOTH.replace("place: channels", "place: aligned"),
            "model.condition_channels=none",
            "given.first=1",
        ),
        CPU,
    )
    other, found = tokens.make_pack(draws), []
    assert torch.equal(torch.cat(pack.layout.own(pack.noise)), torch.cat(other.layout.own(other.noise)))
    parts = zip(
        *(x.split(pack.layout.lengths) for x in (pack.clean, pack.noise, pack.conditions.channels)),
        pack.timestep.split([shape.frames for shape in pack.layout.shapes]),
        pack.text.split(pack.text_layout.lengths),
        strict=True,
    )
    for place, (clean, noise, channels, levels, words) in enumerate(parts):
        shape, number = pack.layout.shapes[place], pack.numbers[place]
        f, h, w = shape.grid
        n, grid = math.prod(shape.grid), (f, 2 * h, 2 * w)
        want = seen_alone(task, number, grid)
        found.append((want is not None, len(shape.references), bool((levels[:f] == 0).any())))
        want = torch.zeros(5, *grid) if want is None else want
        torch.testing.assert_close(channels[:n], patchify([want], 2)[0])
        assert not channels[n:].any()
        layout, texts = Packed.of([shape.grid], [shape.references]), Packed.of_lengths([len(words)])
        t = levels.index_select(0, layout.frame)[:, None]
        given = replace(pack.conditions, channels=channels)
        out = task.model((1 - t) * clean + t * noise, levels, words, layout, texts, conditions=given)[:n]
        counts = (t[:n, 0] > 0)[:, None]
        error = ((out - (noise - clean)[:n]) ** 2 * counts).sum() / (counts.sum() * out.shape[1])
        torch.testing.assert_close(losses[place], error, rtol=1e-4, atol=1e-5)
        assert pack.counted[place] == int(counts.sum())
    assert {sees for sees, _, _ in found} == {references for _, references, _ in found} == {True, False}
    assert any(given for _, _, given in found)


def test_processes_that_share_a_pack_make_the_channels_of_their_samples(config, tmp_path):
    task = DitTask(config(tmp_path / "run", BOTH), CPU)
    draws = draws_of(task, 9)
    whole, parts = task._encode(task.make_pack(draws)), []
    for rank in range(2):
        task.sequence = SequenceGroup("group", rank, 2)
        parts.append(task._encode(task.make_pack(draws)))
    of = dict(zip(whole.numbers, whole.conditions.channels.split(whole.layout.lengths), strict=True))
    assert sorted(number for part in parts for number in part.made) == sorted(whole.numbers)
    for part in parts:
        want = torch.cat([of[number] for number in part.made])
        torch.testing.assert_close(part.conditions.channels, want)
    none = task._encode(replace(parts[0], videos=[], posterior=[], captions=[], references=None, low=[], made=()))
    assert none.conditions.channels.shape == (0, 20)


def test_a_model_that_is_widened_begins_as_it_was_and_its_pipeline_knows_the_role(config, tiny_pipeline, tmp_path):
    """To the last bit, whatever it sees."""
    begun = ("model={condition_channels: latents}", f"init={tiny_pipeline}", "init_partial=true", "optim.lr=1e-2")
    task = DitTask(config(tmp_path / "none", *begun), CPU)
    pack = task.prepare(task.make_pack(draws_of(task, 12)))
    before = load_pipeline(tiny_pipeline, "cpu").transformer
    t = pack.timestep.index_select(0, pack.layout.frame)[:, None]
    inputs = task.scheduler.mix(pack.clean, pack.noise, t), pack.timestep, pack.text, pack.layout, pack.text_layout
    assert pack.conditions.channels.any() and before(*inputs).abs().max() > 0.1
    assert torch.equal(task.model(*inputs, conditions=pack.conditions), before(*inputs))
    blank = task.blank_pack([(2, 3, 3), (1, 2, 2)])
    assert task.loss(task.model, blank, 0)[0].isfinite().all()
    train(config(tmp_path / "run", *begun, "data.packs_per_step=1", "train.steps=1"), DitTask)
    made = load_pipeline(tmp_path / "run/pipeline", "cpu")
    assert made.roles["low"].by_channels and made.roles["low"].noise == (0.1, 0.6) and not made.told
    assert made.transformer.channels_in.weight.abs().amax(0).gt(0).any()
    asked = Request(prompt="a red 7", grid=(2, 8, 8), references={"low": [torch.randn(4, 2, 4, 4)]})
    blind = replace(asked, references={})
    sees, not_ = (made.sample([each], Sampling(steps=1, progress=False))[0] for each in (asked, blind))
    assert not torch.equal(sees, not_)


def test_held_out_clips_are_measured_with_what_they_see(config, digits_data, tmp_path):
    held = (f"validation.manifest={digits_data / 'val.jsonl'}", "validation.every=2", "validation.samples=2")
    task = DitTask(config(tmp_path / "run", BOTH, *held), CPU)
    held_out = task.held_out()
    pack = held_out.make_pack(held_out.packs[0])
    for channels, shape in zip(pack.conditions.channels.split(pack.layout.lengths), pack.layout.shapes, strict=True):
        n = math.prod(shape.grid)
        (seen,) = unpatchify(channels[:n], Packed.of([shape.grid]), 2)
        assert 0.4 <= float(seen[0].min()) == float(seen[0].max()) <= 0.9 and seen[1:].abs().max() > 0
        assert shape.references and not channels[n:].any()
    assert held_out.measure(task.model, 0, 1).isfinite().all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            (BOTH, "model.condition_channels=none"),
            "references.low .place: channels.: the model has no channels by which to see",
        ),
        (
            ("model.condition_channels=mask_and_latents",),
            "by which to see it: set model.condition_channels=latents, or place",
        ),
        (("given.inpaint=1",), "given.inpaint: the model has no channels by which to be told of parts of frames: set"),
        (("data.references={a: {column: mask, place: channels}}",), "no manifest has a column `mask`"),
        (
            (f"data.references={{a: {{column: mask, place: channels}}, {LOW}}}",),
            "references.low: a has place=channels al",
        ),
        (("data.references={a: {column: mask, place: channels, noise: 0.1}}",), "noise: a ControlNet reads its signal"),
        (("data.references={a: {signal: canny, place: channels}}",), "set place to control or aligned"),
        (
            ("data.references={a: {place: beside, degrade: [{kind: resize, amount: 2}]}}",),
            "set place to aligned or chan",
        ),
    ],
)
def test_what_cannot_be_is_said(more, message, config, tmp_path):
    with pytest.raises(UserError, match=message):
        DitTask(config(tmp_path / "run", *more), CPU)


def test_a_run_says_where_no_clip_is_shown(config, dit_config, tmp_path):
    task = DitTask(dit_config(tmp_path / "run", SEES), CPU)
    assert "no clip is shown by them, so they learn nothing" in task.summary()
    assert not task.make_pack(draws_of(task, 4)).conditions.channels.any()
    assert "no clip is shown" not in DitTask(config(tmp_path / "run"), CPU).summary()
