"""Self-forcing: a causal student's own rollout beside one without a cache, what is exported, how it is sampled."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from students import moved, pack_of, student_config

from latentvid.config.distillation import DistillConfig
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.errors import UserError
from latentvid.models.key_value_cache import KeyValueCache
from latentvid.packing import Packed
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.rollout import rollout
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.rng import generator
from latentvid.training.stages.dit.distill.choice import distill_task

CPU = torch.device("cpu")
DMD = ("distill.method=dmd", "distill.steps=2", "distill.guidance=2", "samples.guidance=2", "inference.guidance=2")
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def causal(tiny_pipeline, tmp_path_factory) -> Path:
    """The tiny pipeline with causal attention, and with levels that follow from a clip's tokens."""
    folder = shutil.copytree(tiny_pipeline, tmp_path_factory.mktemp("causal") / "pipeline")
    file = folder / "transformer/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attention": "causal"}))
    LatentVideoScheduler(shift=2.0, base_tokens=16).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def config(tiny_latents, causal):
    def make(run: Path, *options: str) -> DistillConfig:
        return student_config(run, causal, tiny_latents, *DMD, *options)

    return make


class Alone:
    """One clip of a pack, of a student that is flow on the straight line."""

    def __init__(self, task, pack, i: int) -> None:
        tokens = slice(*pack.layout.cu_seqlens[i : i + 2].tolist())
        words = slice(*pack.text_layout.cu_seqlens[i : i + 2].tolist())
        self.model, self.grid, self.text = task.model, pack.layout.grid[i], pack.text[words]
        self.noise, self.rate, self.side = pack.noise[tokens], pack.rates[i : i + 1], self.grid[1] * self.grid[2]

    def call(self, z, levels, frames: int, **more):
        layout, words = Packed.of([(frames, *self.grid[1:])]), Packed.of_lengths([len(self.text)])
        return self.model(z, torch.tensor(levels), self.text, layout, words, fps=self.rate, **more)

    def levels(self, frames: int) -> list[float]:
        a = 2 * (frames * self.side / 16) ** 0.5
        return [a * t / (1 + (a - 1) * t) for t in (1.0, 0.5, 0.0)]

    def whole(self, window: int, exit: int):
        """By passes over the whole clip: frames that are made have level 0, and no later frame is seen."""
        z = self.noise.clone()
        for start in range(0, self.grid[0], window):
            stop = min(start + window, self.grid[0])
            here, levels = slice(start * self.side, stop * self.side), self.levels(stop)
            for i in range(exit + 1):
                t = [0.0] * start + [levels[i]] * (stop - start) + [1.0] * (self.grid[0] - stop)
                v = self.call(z, t, self.grid[0])[here]
                end = levels[i + 1] if i < exit else 0.0  # the last pass leads to its x
                z[here] += (end - levels[i]) * v
        return z

    def cached(self, window: int, exit: int):
        """The same with a cache, which takes no gradients."""
        cache, found = KeyValueCache(), []
        for start in range(0, self.grid[0], window):
            frames = min(window, self.grid[0] - start)
            z, levels = self.noise[start * self.side : (start + frames) * self.side], self.levels(start + frames)
            with torch.no_grad():
                for i in range(exit):
                    z = z + (levels[i + 1] - levels[i]) * self.call(z, [levels[i]] * frames, frames, cache=cache)
            x = z - levels[exit] * self.call(z, [levels[exit]] * frames, frames, cache=cache)
            found.append(x)
            with torch.no_grad(), cache.recording():
                self.call(x.detach(), [0.0] * frames, frames, cache=cache)
        return torch.cat(found)


def test_a_rollout_of_a_pack_is_that_of_each_clip_alone(config, tmp_path):
    task = moved(distill_task(config(tmp_path, "distill.rollout=2"), CPU))
    pack, wanted, seen = pack_of(task), [], set()
    assert len({f for f, _, _ in pack.layout.grid}) > 1  # some end before others
    made = task.made(task.model, pack)
    for i, number in enumerate(pack.numbers):
        alone, exit = Alone(task, pack, i), int(torch.randint(2, (), generator=generator(0, number, "exit")))
        with torch.no_grad():
            whole = alone.whole(2, exit)
        wanted.append(alone.cached(2, exit))
        torch.testing.assert_close(wanted[-1], whole, rtol=1e-3, atol=1e-4)
        seen.add(exit)
    wanted = torch.cat(wanted)
    torch.testing.assert_close(made, wanted, rtol=1e-3, atol=1e-4)
    assert seen == {0, 1}
    draws = torch.randn(made.shape, generator=torch.Generator().manual_seed(2))
    own = [p for name, p in task.model.named_parameters() if not name.startswith("critic.")]
    for one, other in zip(*(torch.autograd.grad((draws * x).sum(), own) for x in (made, wanted)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()) + 1e-6)
    with torch.no_grad():
        task.config.distill.__dict__["rollout"] = 100  # more than any clip has
        at_once = task.made(task.model, pack)
        task.config.distill.__dict__["rollout"] = None
        torch.testing.assert_close(at_once, task.made(task.model, pack))
    assert float((at_once - made).abs().mean()) > 1e-2


def test_a_self_forced_pipeline_makes_clips_as_it_was_taught(config, causal, tmp_path):
    task = moved(distill_task(config(tmp_path, "distill.rollout=2"), CPU))
    losses, parts = task.loss(task.model, pack_of(task, 3), 4)
    assert losses.isfinite().all() and "matching_loss" in parts and task.ragged
    task.export(task.model, tmp_path / "pipeline")
    index = json.loads((tmp_path / "pipeline/model_index.json").read_text())
    assert index["student"]["rollout"] == 2 and index["steps"] == 2
    pipeline = load_pipeline(tmp_path / "pipeline", "cpu")
    sampling = Sampling(progress=False)
    requests = [Request(prompt="a red 7", grid=(f, 8, 8), seed=i) for i, f in enumerate((5, 1, 3))]
    packed, alone = pipeline.sample(requests, sampling), [pipeline.sample([r], sampling)[0] for r in requests]
    for one, other in zip(packed, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    shorter = pipeline.sample([Request(prompt="a red 7", grid=(4, 8, 8), seed=0)], sampling)[0]
    torch.testing.assert_close(shorter[:, :4], packed[0][:, :4], rtol=1e-3, atol=1e-4)  # the future is not seen
    known = torch.arange(5)[:, None, None] < 2
    given = Request(prompt="a red 7", grid=(5, 8, 8), seed=0, given=alone[0].neg(), known=known)
    held = pipeline.sample([given], sampling)[0]
    assert torch.equal(held[:, :2], alone[0].neg()[:, :2]) and float((held - alone[0])[:, 2:].abs().mean()) > 1e-3

    clip = pipeline("a red 7", num_frames=13, seed=3, sampling=sampling, output_type="uint8").frames[0]
    pieces = [piece[0] for piece in rollout(pipeline, ["a red 7"], 21, window=13, seed=3, sampling=sampling)]
    assert [len(piece) for piece in pieces] == [5, 8, 8]
    assert int((torch.cat(pieces)[:13].int() - clip.int()).abs().max()) <= 1
    with pytest.raises(UserError, match="makes 3 latent frames at a time, and this model was taught to make 2"):
        next(rollout(pipeline, ["a red 7"], 21, window=13, context=1, sampling=sampling))


def test_what_cannot_be_is_refused(config, tiny_pipeline, tmp_path):
    with pytest.raises(UserError, match=r"distill\.rollout is 2, and the teacher's attention is full"):
        distill_task(config(tmp_path, "distill.rollout=2", f"teacher={tiny_pipeline}"), CPU)
    with pytest.raises(UserError, match=r"distill\.rollout=0: must be a whole number from 1"):
        config(tmp_path, "distill.rollout=0")
    with pytest.raises(UserError, match=r"rollout is of method dmd, and method is guidance"):
        config(tmp_path, "distill.method=guidance", "distill.steps=null", "distill.rollout=2")
