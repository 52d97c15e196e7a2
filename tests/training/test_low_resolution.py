"""Clips that are shown themselves, made worse: what packs hold, noise and the level told, a run that goes on."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_tasks import Stop, draws_of, lively, stopping

from latentvid.config.yaml_files import ConfigError
from latentvid.data.degradations import degraded
from latentvid.data.transforms import from_uint8
from latentvid.errors import UserError
from latentvid.packing import Packed, patchify, spans
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.references import Degradation
from latentvid.rng import generator
from latentvid.sequence import SequenceGroup
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("fresh_accelerate")
WORSE = "[{kind: blur, amount: [0.0, 1.0], share: 0.5}, {kind: resize, amount: [2, 3]}]"
ROLE = f"data.references={{low: {{place: aligned, dropout: 0.2, noise: [0.1, 0.6], degrade: {WORSE}}}}}"


@pytest.fixture
def config(dit_config, digits_data):
    """`config(run, ...)`: a tiny DitConfig over the digits, each shown itself at half its size or less."""

    def make(run: Path, *more: str):
        data = ("data.latents=null", f"data.manifest={digits_data / 'train.jsonl'}", "data.max_frames=5")
        return dit_config(run, *data, "data.tokens_per_pack=160", ROLE, "train.steps=4", "checkpoint.every=2", *more)

    return make


def test_noise_and_what_is_told_of_it_are_one_and_only_the_own_tokens_have_a_loss(config, tmp_path):
    """Each sample written out: its pixels made worse by the key of its number, encoded, mixed with noise at the level
    that the model is told."""
    task = DitTask(config(tmp_path / "run"), CPU)
    lively(task.model)
    pack = task.prepare(task.make_pack(draws_of(task, 6)))
    losses, _ = task.loss(task.model, pack, 0)
    what = (Degradation(kind="blur", amount=(0.0, 1.0), share=0.5), Degradation(kind="resize", amount=(2, 3)))
    told, texts, seen = iter(pack.seen), iter(pack.text.split(pack.text_layout.lengths)), []
    for place, number in enumerate(pack.numbers):
        shape, start = pack.layout.shapes[place], int(pack.layout.cu_seqlens[place])
        n, (f, h, w) = math.prod(shape.grid), shape.grid
        own = torch.stack([next(told) for _ in range(f)])
        clean, noise = pack.clean[start : start + n], pack.noise[start : start + n]
        of_token = own.repeat_interleave(h * w)[:, None]
        tokens, levels = (1 - of_token) * clean + of_token * noise, own
        if shape.references:
            clip = task.source.load(number % len(task.grids), 0, number)
            size = tuple(8 * -(-side // 16) for side in clip.pixels.shape[1:3])
            low = degraded(clip.pixels, what, size, generator(0, number, "degrade/low"))
            assert torch.equal(clip.references[0], low)
            latent = task.vae.normalise(task.vae.encode(from_uint8(low)[None]).latent_dist.mean)[0].detach()
            shown = patchify([latent], task.patch)[0]
            (r,) = shape.references
            level = 0.1 + 0.5 * torch.rand((), generator=generator(0, number, "reference-level/low"))
            fresh = torch.randn(shown.shape, generator=generator(0, number, "reference-noise/low"))
            assert all(next(told) == level for _ in range(r.grid[0]))
            tokens = torch.cat([tokens, (1 - level) * shown + level * fresh])
            levels = torch.cat([own, level.expand(r.grid[0])])
            seen.append(float(level))
        layout, words = Packed.of([shape.grid], [shape.references]), next(texts)
        rate = pack.rates[place : place + 1]
        out = task.model(tokens, levels, words, layout, Packed.of_lengths([len(words)]), fps=rate)[:n]
        torch.testing.assert_close(losses[place], ((out - (noise - clean)) ** 2).mean(), rtol=1e-4, atol=1e-5)
        assert pack.counted[place] == n
    assert 2 < len(seen) < len(pack.numbers) and len(set(seen)) == len(seen)


def test_without_noise_the_rest_is_drawn_as_ever(config, tmp_path):
    plain = ROLE.replace("noise: [0.1, 0.6], ", "")
    packs = [
        task.make_pack(draws_of(task, 6)) for task in (DitTask(config(tmp_path / "r", *x), CPU) for x in ((), (plain,)))
    ]
    noisy, without = packs
    assert without.seen is None and torch.equal(noisy.timestep, without.timestep)
    assert torch.equal(torch.cat(noisy.layout.own(noisy.noise)), torch.cat(without.layout.own(without.noise)))
    shown = ([x for each in pack.references for x in each] for pack in (noisy, without))
    assert all(torch.equal(a, b) for a, b in zip(*shown, strict=True))


def test_processes_that_share_a_pack_have_its_noise_and_levels(config, tmp_path):
    task = DitTask(config(tmp_path / "run"), CPU)
    whole, made = task.make_pack(draws_of(task, 6)), []
    for rank in range(2):
        task.sequence = SequenceGroup("group", rank, 2)
        made.append(task.make_pack(draws_of(task, 6)))
    assert torch.equal(torch.cat([part.noise for part in made]), whole.noise)
    of_token = [part.seen.index_select(0, part.layout.frame) for part in made]
    assert torch.equal(torch.cat(of_token), whole.seen.index_select(0, whole.layout.frame))
    assert [s.stop - s.start for s in spans(whole.layout.lengths, 2)] == [len(part.noise) for part in made]


def test_a_run_gone_on_with_is_one_not_stopped_and_the_pipeline_knows_the_role(config, tmp_path, digits_data):
    held = (
        f"validation.manifest={digits_data / 'val.jsonl'}",
        "validation.every=2",
        "validation.samples=2",
        "validation.bins=1",
        "validation.weights=[ema]",
    )
    short = ("train.steps=2", "checkpoint.every=1", "data.packs_per_step=1", *held)
    train(config(tmp_path / "whole", *short), DitTask)
    with pytest.raises(Stop):
        train(config(tmp_path / "run", *short), stopping(1))
    train(config(tmp_path / "run", *short), DitTask)
    for kind in ("model", "ema", "optimizer"):
        a, b = (load_file(tmp_path / run / f"checkpoints/step-00000002/{kind}.safetensors") for run in ("whole", "run"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    a, b = ((tmp_path / run / "validation.jsonl").read_text().splitlines()[-1] for run in ("whole", "run"))
    assert json.loads(a)["loss"] == json.loads(b)["loss"]
    role = LatentVideoPipeline.from_pretrained(tmp_path / "run/pipeline").roles["low"]
    assert role.noise == (0.1, 0.6) and role.factors == (2.0, 3.0, 1) and role.degrade[0].share == 0.5


def test_what_cannot_be_is_refused(config, tmp_path):
    for role, message in [
        ("{place: aligned, degrade: [{kind: resise, amount: 2}]}", "degrade.0..kind='resise': expected one of 'blur'"),
        ("{place: aligned, degrade: [{kind: resize, amuont: 2}]}", "unknown key .*amuont"),
        ("{place: aligned, degrade: [{kind: resize}]}", "degrade.0..amount .* is required"),
        ("{place: aligned, degrade: [{kind: resize, amount: 20}]}", "data.references.low.degrade.0.: degrade: amount"),
        ("{place: aligned}", "give column, which names the files, or signal"),
    ]:
        with pytest.raises((ConfigError, UserError), match=message):
            config(tmp_path / "run", f"data.references={{low: {role}}}")
    with pytest.raises(UserError, match=r"data.references.low: .*\.mp4, row [0-9]+: one of 2 frames of a clip of 5"):
        DitTask(
            config(tmp_path / "run", "data.references={low: {place: aligned, degrade: [{kind: frames, amount: 2}]}}"),
            CPU,
        )
