"""Training with references: what packs hold, no loss on them, a run that is gone on with, what is left of it."""

import json
import math
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from small_tasks import Stop, draws_of, lively, stopping

from latentvid.data.transforms import from_uint8
from latentvid.data.video.writing import write_video
from latentvid.errors import UserError
from latentvid.models.flops import backbone_flops
from latentvid.packing import Packed, spans
from latentvid.pipelines.arguments import Lora
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.sequence import SequenceGroup
from latentvid.training.dryrun.preflight import blank_pack
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("fresh_accelerate")
ROLES = (
    "data.references={control: {column: control, place: aligned, dropout: 0.3}, "
    "subject: {column: subject, place: beside, max_area: 256, max_frames: 1, dropout: 0.3}}"
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, digits_data) -> Path:
    """The digits: every second has itself as control, every third a picture as subject, and one has two."""
    folder = tmp_path_factory.mktemp("references")
    write_video(
        folder / "subject.png", torch.arange(32, dtype=torch.uint8)[None, :, None, None].expand(1, 32, 16, 3), 1.0
    )
    rows = []
    for i, line in enumerate((digits_data / "train.jsonl").read_text().splitlines()[:12]):
        row = json.loads(line)
        row["path"] = str(digits_data / row["path"])
        row["control"] = row["path"] if i % 2 == 0 else None
        row["subject"] = ["subject.png"] * (2 if i == 3 else 1) if i % 3 == 0 else []
        rows.append(row)
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def config(dit_config, manifest):
    """`config(run, ...)`: a tiny DitConfig over these clips."""

    def make(run: Path, *more: str):
        data = ("data.latents=null", f"data.manifest={manifest}", "data.max_frames=5", "data.tokens_per_pack=160")
        return dit_config(run, *data, ROLES, "train.steps=4", "checkpoint.every=2", *more)

    return make


def test_a_packs_loss_is_that_of_each_sample_written_out(config, tmp_path):
    """Noise on the sample's own tokens, the references' latents clean beside them, the error of the own alone."""
    task = DitTask(config(tmp_path / "run", "given.first=0.5"), CPU)
    lively(task.model)
    draws = draws_of(task, 10)
    pack = task.prepare(task.make_pack(draws))
    losses, _ = task.loss(task.model, pack, 0)
    assert any(pack.layout.references) and not all(pack.layout.references)
    levels, texts = iter(pack.timestep), iter(pack.text.split(pack.text_layout.lengths))
    for place, number in enumerate(pack.numbers):
        clip = task.source.load(number % len(task.grids), 0, number)
        kept = task.source.references.kept(number % len(task.grids), 0, number)
        shape = pack.layout.shapes[place]
        assert len(clip.references) == len(kept) == len(shape.references)
        own = [next(levels) for _ in range(shape.grid[0])]
        assert all(next(levels) == 0 for grid in shape.grids[1:] for _ in range(grid[0]))
        n, (_, h, w) = math.prod(shape.grid), shape.grid
        start = int(pack.layout.cu_seqlens[place])
        clean, noise = pack.clean[start : start + n], pack.noise[start : start + n]
        assert not pack.noise[start + n : start + shape.tokens].any()
        shown = [_tokens(task, video) for video in clip.references]
        t = torch.stack(own)
        of_token = t.repeat_interleave(h * w)[:, None]
        tokens = torch.cat([(1 - of_token) * clean + of_token * noise, *shown])
        timestep = torch.cat([t, torch.zeros(sum(grid[0] for grid in shape.grids[1:]))])
        words = next(texts)
        layout = Packed.of([shape.grid], [shape.references])
        rate = pack.rates[place : place + 1]
        predicted = task.model(tokens, timestep, words, layout, Packed.of_lengths([len(words)]), fps=rate)[:n]
        counts = (of_token[:, 0] > 0).float()
        error = ((predicted - (noise - clean)) ** 2).mean(1)
        want = (error * counts).sum() / counts.sum()
        torch.testing.assert_close(losses[place], want, rtol=1e-4, atol=1e-5)
        assert pack.counted[place] == int(counts.sum())
    assert pack.counted_in_all == sum(pack.counted) < sum(pack.tokens) == pack.layout.tokens and task.partial


def _tokens(task: DitTask, video: torch.Tensor) -> torch.Tensor:
    """uint8 [F,H,W,3] -> tokens [n,P] of its latent's mean."""
    posterior = task.vae.encode(from_uint8(video)[None]).latent_dist
    latent = task.vae.normalise(posterior.mean)[0].detach()
    return rearrange(latent, "C f (h p) (w q) -> (f h w) (C p q)", p=2, q=2)


def test_plans_flops_and_memory_count_them(config, tmp_path):
    task, plain = DitTask(config(tmp_path / "run"), CPU), DitTask(config(tmp_path / "run", "data.references={}"), CPU)
    assert list(task.grids) == list(plain.grids) and list(plain.shapes) == [(grid, ()) for grid in plain.grids]
    more = [sum(math.prod(r.grid) for r in shape.references) for shape in task.shapes]
    assert (task.tokens - plain.tokens).tolist() == more
    assert len({int(s) for s, n in zip(task.source.windows.sample, more, strict=True) if n}) == 8  # of 12 clips
    assert ((task.costs > plain.costs) == (task.tokens > plain.tokens)).all()
    shape = max(task.shapes.table, key=lambda shape: shape.tokens)
    flops = task.grid_flops(*shape)
    assert flops.model == backbone_flops(task.model, [shape.grid], [task.mean_text], [shape.references])
    assert flops.encode > task.grid_flops(shape.grid).encode
    pack = task.make_pack(draws_of(task, 10))
    texts = [len(ids) for ids in task.text.tokenize(pack.captions)]
    assert task.flops(pack) == backbone_flops(task.model, pack.layout.grid, texts, pack.layout.references)
    assert blank_pack(task, [shape, shape]).layout.tokens == 2 * shape.tokens
    assert not plain.partial and plain.make_pack(draws_of(plain, 10)).references is None


def test_without_them_nothing_else_changes(config, tmp_path):
    """The draws of a sample are the same with references and without."""
    task, plain = (DitTask(config(tmp_path / "run", *more), CPU) for more in ((), ("data.references={}",)))
    with_them, without = (each.make_pack(draws_of(each, 10)) for each in (task, plain))
    assert with_them.numbers == without.numbers and with_them.captions == without.captions
    own = with_them.layout.own(with_them.noise)
    assert torch.equal(torch.cat(own), without.noise)
    assert with_them.timestep[with_them.timestep > 0].tolist() == without.timestep.tolist()
    assert all(torch.equal(a, b) for a, b in zip(with_them.videos, without.videos, strict=True))


def test_processes_that_share_a_pack_have_pieces_of_it(config, tmp_path):
    task = DitTask(config(tmp_path / "run"), CPU)
    whole = task.make_pack(draws_of(task, 10))
    parts = []
    for rank in range(3):
        task.sequence = SequenceGroup("group", rank, 3)
        parts.append(task.make_pack(draws_of(task, 10)))
    assert torch.equal(torch.cat([part.noise for part in parts]), whole.noise)
    for part, span in zip(parts, spans(whole.layout.lengths, 3), strict=True):
        rows = (whole.layout.frame_segment >= span.first) & (whole.layout.frame_segment < span.last)
        assert torch.equal(part.timestep, whole.timestep[rows])
        assert torch.equal(part.layout.position.float(), whole.layout.position[span.start : span.stop].float())
        assert part.counted == whole.counted[span.first : span.last]
    made = sorted(n for part in parts for n in part.made)
    assert made == sorted(whole.numbers) and sum(len(part.references or part.made) for part in parts) == len(made)


def test_a_run_gone_on_with_is_one_not_stopped_and_leaves_its_roles(config, tmp_path):
    short = ("train.steps=2", "checkpoint.every=1", "data.packs_per_step=1")
    train(config(tmp_path / "whole", *short), DitTask)
    with pytest.raises(Stop):
        train(config(tmp_path / "run", *short), stopping(1))
    train(config(tmp_path / "run", *short), DitTask)
    for kind in ("model", "optimizer"):
        a, b = (load_file(tmp_path / run / f"checkpoints/step-00000002/{kind}.safetensors") for run in ("whole", "run"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    pipeline = load_pipeline(tmp_path / "run" / "pipeline", "cpu")
    held = json.loads((tmp_path / "run" / "pipeline" / "model_index.json").read_text())["references"]
    assert held == {
        "control": {"place": "aligned", "max_area": None, "max_frames": None},
        "subject": {"place": "beside", "max_area": 256, "max_frames": 1},
    }
    assert list(pipeline.roles) == ["control", "subject"]


def test_held_out_clips_are_measured_with_all_of_theirs(config, manifest, tmp_path):
    task = DitTask(config(tmp_path, "validation.every=2", f"validation.manifest={manifest}", "validation.bins=2"), CPU)
    held = task.held_out()
    pack = held.make_pack(held.packs[0])
    shown = [task.shapes[number // 2].references for number in pack.numbers]
    assert list(pack.layout.shapes) == [(pack.layout.grid[i], each) for i, each in enumerate(shown)]
    sums = held.measure(task.model, 0, 1)
    assert sums.isfinite().all() and (sums > 0).all()
    with pytest.raises(UserError, match="validation.latents: a cache holds no references"):
        DitTask(config(tmp_path, "validation.every=2", "validation.latents=anywhere"), CPU).held_out()


def test_looks_are_shown_what_their_prompts_name(config, manifest, tmp_path):
    looks = ("samples.every=2", 'samples.prompts=["a red 7", "a red 7"]', "samples.fps=8")
    picture = manifest.parent / "subject.png"
    task = DitTask(config(tmp_path, *looks, f"samples.references=[{{}}, {{subject: {picture}}}]"), CPU)
    lively(task.model)
    shown, plain = (each.sample(task.model, 0, 1) for each in (task, DitTask(config(tmp_path, *looks), CPU)))
    first, second = ((shown[i].clips[0].int() - plain[i].clips[0].int()).abs().max() for i in (0, 1))
    assert first <= 1 < second
    short, broken = tmp_path / "short.mp4", tmp_path / "broken.mp4"
    write_video(short, torch.zeros(3, 32, 32, 3, dtype=torch.uint8), 8.0)
    broken.write_bytes(b"no video")
    for wrong, message in [
        ("[{}]", "1 references for 2 prompts: give a mapping each"),
        ("[{}, {pose: x.png}]", "samples.references: pose: there is no such role"),
        ("[{}, {subject: x.png}]", "samples.references: x.png of role subject is no file"),
        (f"[{{}}, {{control: {short}}}]", "samples.references: control=.* has 3 frames, the clip 5.*samples.frames"),
        (f"[{{}}, {{subject: {broken}}}]", "broken.mp4: "),
    ]:
        with pytest.raises(UserError, match=message):
            DitTask(config(tmp_path, *looks, f"samples.references={wrong}"), CPU)
    with pytest.raises(UserError, match="samples: 30 x 32 pixels: this model makes multiples of"):
        DitTask(config(tmp_path, *looks, "samples.height=30"), CPU)


@pytest.mark.parametrize("kind", ["factorised", "causal"])
def test_models_that_do_not_take_them_are_named(kind, config, tmp_path):
    with pytest.raises(UserError, match=f"data.references: model.attention is {kind}, and references need full"):
        DitTask(config(tmp_path, f"model.attention={kind}"), CPU)


def test_a_lora_of_a_published_model_tells_its_roles(published_config, repository, manifest, tmp_path):
    roles = ROLES.replace("0.3", "0.0").replace("max_area: 256", "max_area: 1024")
    more = (f"data.manifest={manifest}", "data.max_frames=5", "data.packs_per_step=1", roles)
    config = published_config(tmp_path / "run", repository("wan"), *more, "adapter.kind=lora", "train.steps=1")
    train(config, DitTask)
    pipeline = load_pipeline(repository("wan"), "cpu", lora=[Lora(tmp_path / "run" / "lora")])
    assert {name: role.place for name, role in pipeline.roles.items()} == {"control": "aligned", "subject": "beside"}
    grid = pipeline.latent_grid(5, 32, 32)
    channels = pipeline.transformer.latent_channels
    shown = {"control": [torch.randn(channels, *grid)], "subject": [torch.randn(channels, 1, *grid[1:])] * 2}
    sampling = Sampling(steps=2, progress=False, large=True)
    without, made = (
        pipeline.sample([Request(prompt="a red 7", grid=grid, references=each)], sampling)[0] for each in ({}, shown)
    )
    assert made.shape == without.shape == (channels, *grid) and (made - without).abs().max() > 1e-4
    assert load_pipeline(repository("wan"), "cpu").roles == {}
