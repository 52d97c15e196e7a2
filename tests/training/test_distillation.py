"""Distillation: students beside explicit steps of their teachers, runs that go on, what is exported and refused."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from comparing import same, state
from safetensors.torch import load_file, save_file
from students import moved, pack_of, student_config

from latentvid.config.curriculum import curriculum
from latentvid.config.distillation import DistillConfig
from latentvid.config.parsing import load_config
from latentvid.data.plan.plan import Draw
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.errors import UserError
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.conditions import Conditions
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed
from latentvid.pipelines.edits import edit
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.training.dryrun.memory import size
from latentvid.training.dryrun.preflight import preflight
from latentvid.training.dryrun.words import in_bytes
from latentvid.training.export import export_run
from latentvid.training.launch import make_plan
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.run import TrainingRun
from latentvid.training.signals import Preempted
from latentvid.training.stages.dit.distill.choice import distill_task
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.stages.table import STAGES
from latentvid.training.trainer import train

CPU = torch.device("cpu")
PROGRESSIVE = ("distill.method=progressive", "distill.steps=2")
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def config(tiny_latents, tiny_pipeline):
    """`config(run, "section.key=value", ...)`: of a student of the tiny pipeline."""

    def make(run: Path, *options: str) -> DistillConfig:
        return student_config(run, tiny_pipeline, tiny_latents, *options)

    return make


@pytest.fixture(scope="module")
def teacher(tiny_pipeline, tmp_path_factory):
    """`teacher("cosine", "v")`: the tiny pipeline, on such a path with such a target."""

    def make(path: str, target: str) -> Path:
        folder = shutil.copytree(tiny_pipeline, tmp_path_factory.mktemp("teacher") / "pipeline")
        LatentVideoScheduler(path=path, target=target, shift=2.0).save_pretrained(folder / "scheduler")
        return folder

    return make


# --- what a student is taught ---


class Alone:
    """Explicit passes and steps for one clip of a pack, in plain numbers; v is a target in which a step is simple."""

    def __init__(self, task, pack, i: int, net: VideoDiT, path: str) -> None:
        tokens = slice(*pack.layout.cu_seqlens[i : i + 2].tolist())
        words = slice(*pack.text_layout.cu_seqlens[i : i + 2].tolist())
        self.task, self.net, self.path, self.grid, self.text = task, net, path, pack.layout.grid[i], pack.text[words]
        self.clean, self.noise, self.rate = pack.clean[tokens], pack.noise[tokens], pack.rates[i : i + 1]
        self.scale = float(task.scales(pack)[i])
        self.t = float(pack.timestep.split([f for f, _, _ in pack.layout.grid])[i][0])
        alpha, sigma = (1 - self.t, self.t)
        if path == "cosine":
            alpha, sigma = math.cos(self.t * math.pi / 2), math.sin(self.t * math.pi / 2)
        self.z = alpha * self.clean + sigma * self.noise
        self.data = self.noise - self.clean if path != "cosine" else alpha * self.noise - sigma * self.clean

    def call(self, net, z, t: float, text, **more):
        layout, words = Packed.of([self.grid]), Packed.of_lengths([len(text)])
        return net(z, torch.full((self.grid[0],), t), text, layout, words, fps=self.rate, **more)

    def guided(self, z, t: float):
        """Of the teacher, from two passes."""
        with torch.no_grad():
            one, other = self.call(self.net, z, t, self.text), self.call(self.net, z, t, self.task.null_text)
        return other + self.scale * (one - other)

    def student(self, z, t: float):
        told = {}
        if self.task.scaled:
            told = {"conditions": Conditions(guidance=torch.tensor([self.scale]))}
        return self.call(self.task.model, z, t, self.text, **told)

    def step(self, v, z, t: float, s: float):
        if self.path == "cosine":  # a turn by the angle between the levels (Salimans & Ho 2022, appendix D)
            angle = (s - t) * math.pi / 2
            return math.cos(angle) * z + math.sin(angle) * v
        return z + (s - t) * v

    def straight_to(self, landed, s: float):
        """The v that leads there in one step."""
        if self.path == "cosine":
            angle = (s - self.t) * math.pi / 2
            return (landed - math.cos(angle) * self.z) / math.sin(angle)
        return (landed - self.z) / (s - self.t)

    def wanted(self, method: str, levels: list[float], steps: int):
        if method == "guidance":
            return self.guided(self.z, self.t)
        place = min(range(len(levels)), key=lambda n: abs(levels[n] - self.t))
        middle = levels[place + 1]
        between = self.step(self.guided(self.z, self.t), self.z, self.t, middle)
        if method == "progressive":
            end = levels[place + 2]
            return self.straight_to(self.step(self.guided(between, middle), between, middle, end), end)
        part = (len(levels) - 1) // steps
        end = levels[place - place % part + part]
        with torch.no_grad():
            landed = between if middle == end else self.step(self.student(between, middle), between, middle, end)
        return self.straight_to(landed, end)


def shifted(steps: int) -> list[float]:
    """Even levels, moved toward noise by 2."""
    return [2 * t / (1 + t) for t in (1 - i / steps for i in range(steps + 1))]


METHODS = {
    "guidance": ((), 0),
    "progressive": (PROGRESSIVE, 4),
    "consistency": (("distill.method=consistency", "distill.steps=2", "distill.teacher_steps=6"), 6),
}


@pytest.mark.parametrize("path, target", [("rectified_flow", "flow"), ("cosine", "v")])
@pytest.mark.parametrize("method", METHODS)
def test_a_student_is_taught_what_explicit_steps_of_its_teacher_reach(method, path, target, config, teacher, tmp_path):
    options, fine = METHODS[method]
    folder = teacher(path, target)
    scales = "3" if (method, path) == ("progressive", "cosine") else "[1.5, 5]"
    task = moved(distill_task(config(tmp_path, f"teacher={folder}", f"distill.guidance={scales}", *options), CPU))
    net = VideoDiT.from_pretrained(folder / "transformer").requires_grad_(False)
    pack = pack_of(task)
    losses, parts = task.loss(task.model, pack, 0)
    levels, ends, scales_seen = shifted(fine) if fine else [], set(), set()
    for i in range(pack.layout.segments):
        alone = Alone(task, pack, i, net, path)
        wanted = alone.wanted(method, levels, 2)
        got = alone.student(alone.z, alone.t)
        torch.testing.assert_close(losses[i], (got - wanted).square().mean(), rtol=2e-4, atol=1e-5)
        error = (got - alone.data).square().mean().detach()
        torch.testing.assert_close(parts["student_loss"][i], error, rtol=2e-4, atol=1e-5)
        error = (alone.guided(alone.z, alone.t) - alone.data).square().mean()
        torch.testing.assert_close(parts["teacher_loss"][i], error, rtol=2e-4, atol=1e-5)
        ends.add(round(alone.t, 4))
        scales_seen.add(alone.scale)
    if fine:  # every second level of the teacher, or all of them
        assert ends <= {round(t, 4) for t in levels[: -1 : 2 if method == "progressive" else 1]} and len(ends) > 1
    assert (scales_seen == {3.0}) if scales == "3" else (len(scales_seen) > 3 and 1.5 <= min(scales_seen) < 5)
    grads = torch.autograd.grad(losses.sum(), list(task.model.parameters()), allow_unused=True)
    assert all(g is not None for g in grads)  # all of the student is trained, the teacher is not
    assert not any(p.requires_grad for p in task.teacher.network.parameters())


def test_a_student_begins_as_its_teacher_bit_for_bit(config, tiny_pipeline, tmp_path):
    task = distill_task(config(tmp_path), CPU)
    net = VideoDiT.from_pretrained(tiny_pipeline / "transformer")
    pack = pack_of(task)
    inputs = (pack.noise, pack.timestep, pack.text, pack.layout, pack.text_layout)
    with torch.no_grad():
        plain = net(*inputs, fps=pack.rates)
        for scale in (1.0, 7.5):
            told = Conditions(guidance=torch.full((pack.layout.segments,), scale))
            assert torch.equal(task.model(*inputs, fps=pack.rates, conditions=told), plain)
        moved(task)
        low, high = (
            task.model(*inputs, conditions=Conditions(guidance=torch.full((pack.layout.segments,), scale)))
            for scale in (1.0, 7.5)
        )
    assert float((low - high).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="told a scale of guidance a sample, and none was given"):
        task.model(*inputs)
    with pytest.raises(ValueError, match="and this one does not"):
        net(*inputs, conditions=told)


def test_given_frames_are_given_to_the_teacher_too(config, tmp_path):
    given = ("given.plain=0", "given.first=1")
    task = distill_task(config(tmp_path, *PROGRESSIVE, *given, "distill.guidance=1"), CPU)
    draws = [Draw(number=i, index=i) for i in range(len(task.grids)) if task.grids[i][0] > 1][:3]
    pack = task.prepare(task.make_pack(draws))
    assert {0.0} < set(pack.timestep.tolist()) <= {0.0, 0.5, 1.0}
    seen = []
    network = task.teacher.network
    task.teacher.network = lambda z, t, *a, **k: (seen.append((z, t)), network(z, t, *a, **k))[1]
    losses, _ = task.loss(task.model, pack, 0)
    first = pack.timestep.index_select(0, pack.layout.frame) == 0
    assert len(seen) == 2 and all(torch.equal(z[first], pack.clean[first]) and bool((t == 0).any()) for z, t in seen)
    assert losses.isfinite().all()


# --- runs ---

HALVING = (
    "stages=[{name: told, distill: {method: guidance, steps: null}},"
    " {name: two, distill: {method: progressive, steps: 2}}, {name: one, distill: {method: progressive, steps: 1}}]"
)


@pytest.mark.slow
def test_halving_goes_on_where_it_was_stopped_and_the_end_says_what_it_is(
    config, tiny_pipeline, digits_data, tmp_path, monkeypatch, run
):
    before = load_file(tiny_pipeline / "transformer/diffusion_pytorch_model.safetensors")
    held_out = (f"validation.manifest={digits_data / 'val.jsonl'}", "validation.every=2", "validation.samples=2")
    held_out = (*held_out, "validation.bins=2", "distill.endpoints=2", "data.tokens_per_pack=256")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config(whole, HALVING, *held_out), distill_task)
    after_step = TrainingRun._after_step
    for stop in (3, 5):  # in the middle of each halving
        with monkeypatch.context() as patch, pytest.raises(Preempted):
            patch.setattr(TrainingRun, "_after_step", lambda self, _, at=stop: after_step(self, stop=self.step == at))
            train(config(parts, HALVING), distill_task)
    train(config(parts, HALVING), distill_task)
    for kind in ("model", "ema", "optimizer"):
        assert same(state(parts, 6, kind), state(whole, 6, kind)), kind
    assert {n for n in state(whole, 6) if not n.startswith("guidance_in.")} == before.keys()
    assert [round(record["passes"], 6) for record in read_metrics(whole)] == [3, 3, 2, 2, 1, 1]
    assert {"student_loss", "teacher_loss"} <= read_metrics(whole)[0].keys()
    measured = read_metrics(whole, "validation.jsonl")
    assert {"loss", "student_loss", "teacher_loss"} <= measured[-1]["bins"][1].keys()
    ends = {(r["step"], r["weights"]): r["scores"]["end_distance"]["value"] for r in measured}
    assert all(math.isfinite(v) and v > 0 for v in ends.values()) and ends[6, "ema"] != ends[4, "ema"]

    folder = whole / "pipeline"
    index = json.loads((folder / "model_index.json").read_text())
    assert index["student"] == {"steps": 1, "guidance": [1.0, 8.0], "levels": [1.0, 0.0]}
    assert index["steps"] == 1 and index["guidance"] == 3
    halfway = tmp_path / "halfway"
    export_run(whole, halfway, STAGES, step=4)
    assert json.loads((halfway / "model_index.json").read_text())["student"]["levels"] == [1.0, 0.5, 0.0]
    words = ("--model", halfway, "--prompt", "a red 7", "--frames", 5, "--device", "cpu", "--mixed-precision", "no")
    calls = []
    forward = VideoDiT.forward
    with monkeypatch.context() as patch:
        patch.setattr(VideoDiT, "forward", lambda self, z, t, *a, **k: (calls.append((t, k)), forward(self, z, t, *a, **k))[1])  # fmt: skip  # noqa: E501
        status, _, said = run("inference/t2v.py", *words, "--output", tmp_path / "a.mp4", "--guidance", 5)
    assert status == 0, said
    assert [sorted(set(t.tolist())) for t, _ in calls] == [[1.0], [0.5]]  # its own levels, one pass each
    assert all(k["conditions"].guidance.tolist() == [5.0] for _, k in calls)
    for options, message in (
        (("--steps", 4), r"steps=4: this model was distilled to 2 steps, and takes 1 or 2"),
        (("--guidance", 9), r"guidance=9: this model was distilled with scales from 1 to 8"),
        (("--solver", "heun"), r"solver 'heun': this model was distilled to 2 steps of euler"),
        (("--guidance-rescale", 0.5), r"guidance by a second pass"),
        (("--negative-prompt", "blur"), r"negative prompts need a second pass"),
    ):
        status, _, said = run("inference/t2v.py", *words, "--output", tmp_path / "b.mp4", *options)
        assert status == 2 and message in " ".join(said.split()), said
    LatentVideoScheduler(shift=3.0).save_pretrained(halfway / "scheduler")
    status, _, said = run("inference/t2v.py", *words, "--output", tmp_path / "b.mp4")
    assert status == 2 and "levels of 2 steps are 1, 0.75, 0, and this model was distilled to 1, 0.5, 0" in said
    assert not (tmp_path / "b.mp4").exists()


# --- what is refused ---


@pytest.mark.parametrize(
    "options, message",
    [
        (("distill.method=progressive",), r"method progressive needs steps"),
        (("distill.steps=4",), r"steps and teacher_steps are of methods progressive, consistency and dmd"),
        ((*PROGRESSIVE, "distill.teacher_steps=8"), r"teacher_steps is 8: method progressive halves 4 to 2"),
        (("distill.method=consistency", "distill.steps=4", "distill.teacher_steps=6"), r"needs a multiple of steps=4"),
        (("distill.guidance=[5, 2]",), r"give the lower scale first"),
        (("distill.guidance=[4, 8]",), r"samples\.guidance is 3, and the student is told scales from 4 to 8"),
        (("init=elsewhere",), r"a student begins as its teacher: leave init out"),
        (("adapter.kind=lora",), r"adapter\.kind is not of distillation"),
        (("preference.beta=5",), r"preference\.beta is not of distillation"),
        (("train.sequence_parallel=2",), r"a teacher sees whole packs"),
        (
            (
                *("data.latents=null", "data.manifest=x"),
                "data.references={a: {column: a, place: beside, noise: [0, 0.5]}}",
            ),
            r"data\.references\.a\.noise: references with noise are not distilled",
        ),
        (
            ("stages=[{distill: {method: progressive, steps: 8}}, {distill: {method: progressive, steps: 2}}]",),
            r"stage 2 needs a teacher of 4 steps, and the stage before it leaves 8",
        ),
        (("stages=[{name: a}, {name: b, distill: {guidance: 3}}]",), r"distill\.guidance is the same in all stages"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options, message, config, tmp_path):
    with pytest.raises(UserError, match=message):
        config(tmp_path, *options)


def test_a_student_that_is_told_a_scale_is_not_trained_as_another_model(dit_config, tiny_vae, tiny_t5, tmp_path):
    with pytest.raises(UserError, match="model.guidance_condition is of distilled models"):
        DitTask(dit_config(tmp_path / "run", "model.guidance_condition=true"), CPU)
    sizes = {"latent_channels": 4, "width": 32, "depth": 1, "heads": 2, "text_width": 32}
    VideoDiT(**sizes, guidance_condition=True).save_pretrained(tmp_path / "student")
    for more in ((), ("adapter.kind=lora",), ("trainable=[out]",)):
        config = dit_config(tmp_path / "run", f"init={tmp_path / 'student'}", *more)
        config.model = {}
        with pytest.raises(UserError, match=f"train their teacher .*init is {tmp_path / 'student'}"):
            DitTask(config, CPU)


def test_a_run_that_begins_with_a_student_and_leaves_none_says_so(dit_config, tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline, tmp_path / "student")
    index = json.loads((folder / "model_index.json").read_text())
    student = {"steps": 2, "guidance": 3.0, "levels": [1.0, 0.5, 0.0]}
    (folder / "model_index.json").write_text(json.dumps(index | {"student": student}))
    sizes = ("model.mlp_ratio=2.6666666666666665", f"init={folder}")
    said = [DitTask(dit_config(tmp_path, *sizes, *more), CPU).summary() for more in ((), ("adapter.kind=lora",))]
    assert ["of a distilled model, and what this run leaves is none" in each for each in said] == [True, False]


@pytest.mark.parametrize("steps, fix", [(None, "take method sdedit"), (2, "edit with its teacher")])
def test_a_student_is_not_inverted(steps, fix, tiny_pipeline):
    pipeline = load_pipeline(tiny_pipeline, "cpu")
    levels = None if steps is None else [1.0, 0.5, 0.0]
    pipeline.register_to_config(student={"steps": steps, "guidance": 3.0, "levels": levels})
    clip = torch.zeros(5, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(UserError, match=f"which this distilled model cannot: {fix}"):
        edit(pipeline, [clip], ["a red 7"], ["a red 3"])
    if steps is None:
        sampling = Sampling(steps=2, progress=False)
        assert edit(pipeline, [clip], [""], ["a red 3"], "sdedit", sampling=sampling)[0].shape == clip.shape


def test_a_teacher_of_other_parts_is_refused(config, tiny_pipeline, tiny_vae, tiny_t5, tmp_path):
    def refused(message: str, *options: str) -> None:
        with pytest.raises(UserError, match=message):
            distill_task(config(tmp_path / "run", *options), CPU).follow(None)

    refused(r"teacher: there is no model folder .*nowhere", f"teacher={tmp_path / 'nowhere'}")
    wide = CausalVideoAutoencoder(latent_channels=6, widths=(8, 16, 16))
    wide.save_pretrained(tmp_path / "wide")
    refused(r"for latents of 4 channels, and those of vae .*wide have 6", f"vae={tmp_path / 'wide'}")
    other = CausalVideoAutoencoder.from_pretrained(tiny_vae)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    other.save_pretrained(tmp_path / "other")
    refused(r"has another VAE than .*other", f"vae={tmp_path / 'other'}")
    words = shutil.copytree(tiny_t5, tmp_path / "words")
    tensors = load_file(words / "model.safetensors")
    save_file({k: v + 0.1 for k, v in tensors.items()}, words / "model.safetensors", metadata={"format": "pt"})
    refused(r"has another text encoder than .*words", f"text_encoder={words}")
    distill_task(config(tmp_path / "run", f"vae={tiny_vae}", f"text_encoder={tiny_t5}"), CPU)  # the same, elsewhere

    student = shutil.copytree(tiny_pipeline, tmp_path / "student")
    index = json.loads((student / "model_index.json").read_text())
    levels = [1 - i / 8 for i in range(9)]
    index["student"] = {"steps": 8, "guidance": 3.0, "levels": levels}
    (student / "model_index.json").write_text(json.dumps(index))
    eight = (f"teacher={student}", "distill.guidance=3")
    refused(r"has in its weights guidance 3", f"teacher={student}")
    refused(r"has 3 in its weights: give that", f"teacher={student}", "distill.guidance=2")
    refused(r"makes 8 steps, and this needs one of 4", *eight, *PROGRESSIVE)
    refused(r"makes 8 steps, and this needs one of any number", *eight)
    halves = ("distill.method=progressive", "distill.steps=4")
    task = distill_task(config(tmp_path / "run", *eight, *halves), CPU)
    task.follow(None)
    assert not task.teacher.two_passes
    refused(r"the levels of 4 steps are not among those of 8", *eight, *halves, "scheduler={spacing: points}")
    for wrong, message in (
        ({"steps": 8}, r"student=.*must have steps, guidance and levels"),
        ({"steps": 4, "guidance": 3.0, "levels": levels}, r"student\.levels=.*one more than steps=4"),
        ({"steps": 8, "guidance": [3.0, 1.0], "levels": levels}, r"student\.guidance=.*lowest and highest"),
    ):
        (student / "model_index.json").write_text(json.dumps(index | {"student": wrong}))
        with pytest.raises(UserError, match=message):
            LatentVideoPipeline.from_pretrained(student)


@pytest.mark.slow
def test_a_dry_run_counts_the_teacher(config, tmp_path):
    few = ("run.dry_run=true", "data.tokens_per_pack=96", "data.packs_per_step=1")
    settings = config(tmp_path, *few, *PROGRESSIVE)
    task = distill_task(settings, CPU)
    said = preflight(settings, task, make_plan(settings, task), world=1, device=CPU).text
    assert f"beside it frozen networks, {in_bytes(sum(map(size, task.frozen)))} on every device" in said
    found, alone = task.grid_flops(task.grids[0]), DitTask.grid_flops(task, task.grids[0])
    assert math.isclose(found.model, (1 + 4 / 3) * alone.model, rel_tol=1e-6)  # two steps of two passes, not trained


def test_the_demo_s_recipe_halves(tmp_path):
    recipe = load_config(DistillConfig, Path(__file__).parents[2] / "configs/dit/demo_distil.yaml")
    assert [stage.config.distill.steps for stage in curriculum(recipe)] == [None, 8, 4, 2, 1]
    assert recipe.student == {"steps": None, "guidance": [1.0, 6.0]}
