"""Distribution matching: student and critic beside the formulas written out, turns, runs that go on, what is left."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from comparing import same, state
from safetensors.torch import load_file
from students import moved, pack_of, student_config

from latentvid.config.distillation import DistillConfig
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.diffusion.solvers import solve
from latentvid.errors import UserError
from latentvid.models.conditions import Conditions
from latentvid.models.transformer import VideoDiT
from latentvid.models.with_critic import VideoDiTWithCritic
from latentvid.packing import Packed
from latentvid.pipelines.loading import load_pipeline
from latentvid.rng import generator
from latentvid.training.dryrun.memory import size
from latentvid.training.dryrun.preflight import preflight
from latentvid.training.launch import make_plan
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.run import TrainingRun
from latentvid.training.signals import Preempted
from latentvid.training.stages.dit.distill.choice import distill_task
from latentvid.training.stages.dit.distill.teacher import predict_with
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

CPU = torch.device("cpu")
DMD = ("distill.method=dmd", "distill.steps=3")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def config(tiny_latents, tiny_pipeline):
    def make(run: Path, *options: str) -> DistillConfig:
        return student_config(run, tiny_pipeline, tiny_latents, *DMD, *options)

    return make


class Alone:
    """Of one clip of a pack: what its own passes and plain formulas give, for flow on the straight line and v on the
    cosine path."""

    def __init__(self, task, pack, i: int, net: VideoDiT, path: str) -> None:
        tokens = slice(*pack.layout.cu_seqlens[i : i + 2].tolist())
        words = slice(*pack.text_layout.cu_seqlens[i : i + 2].tolist())
        self.task, self.net, self.grid, self.text = task, net, pack.layout.grid[i], pack.text[words]
        self.flow, self.number, self.rate = path == "rectified_flow", pack.numbers[i], pack.rates[i : i + 1]
        self.noise, self.scale = pack.noise[tokens], task.scales(pack)[i : i + 1]
        self.t = float(pack.timestep.split([f for f, _, _ in pack.layout.grid])[i][0])

    def ab(self, t: float) -> tuple[float, float]:
        return (1 - t, t) if self.flow else (math.cos(t * math.pi / 2), math.sin(t * math.pi / 2))

    def call(self, net, z, t: float, text, told: bool, **more):
        given = {"conditions": Conditions(guidance=self.scale)} if told else {}
        layout, words = Packed.of([self.grid]), Packed.of_lengths([len(text)])
        return net(z, torch.full((self.grid[0],), t), text, layout, words, fps=self.rate, **given, **more)

    def x_of(self, z, y, t: float):
        alpha, sigma = self.ab(t)
        return z - sigma * y if self.flow else alpha * z - sigma * y

    def student(self, z, t: float, **more):
        return self.call(self.task.model, z, t, self.text, self.task.scaled, **more)

    def clip(self, levels: list[float], exit: int):
        """[T,P], by plain Euler steps of x and eps; gradients through the last one."""
        z = self.noise
        with torch.no_grad():
            for t, s in zip(levels[:exit], levels[1:], strict=False):
                x = self.x_of(z, self.student(z, t), t)
                eps = (z - self.ab(t)[0] * x) / self.ab(t)[1]
                z = self.ab(s)[0] * x + self.ab(s)[1] * eps
        return self.x_of(z, self.student(z, levels[exit]), levels[exit])

    def losses(self, x):
        """Of the critic and of the teacher beside the clip, and what draws the clip."""
        seed = generator(0, self.number, "renoise").initial_seed()
        eps = torch.empty_like(x).normal_(generator=torch.Generator().manual_seed(seed))
        (alpha, sigma), clip = self.ab(self.t), x.detach()
        z, target = alpha * clip + sigma * eps, eps - clip if self.flow else alpha * eps - sigma * clip
        critic = self.student(z, self.t, critic=True)
        with torch.no_grad():
            null = self.task.null_text
            one, other = self.call(self.net, z, self.t, self.text, False), self.call(self.net, z, self.t, null, False)
        teacher = other + self.scale * (one - other)
        real, fake = (self.x_of(z, each, self.t) for each in (teacher, critic.detach()))
        g = (fake - real) / (clip - real).abs().mean()
        return (critic - target).square().mean(), (teacher - target).square().mean(), g


def test_the_students_clips_begin_where_sampling_does(config, tiny_pipeline, tmp_path):
    """Of path edm noise is as large as the data, here half as large as what is drawn."""
    teacher = shutil.copytree(tiny_pipeline, tmp_path / "teacher")
    edm = LatentVideoScheduler("edm", "edm", sigma_data=0.5, spacing="karras")
    edm.save_pretrained(teacher / "scheduler")
    task = moved(distill_task(config(tmp_path / "run", f"teacher={teacher}"), CPU))
    pack = pack_of(task)
    student = predict_with(task.model, pack, task.scales(pack) if task.scaled else None, task.scheduler)
    levels = edm.levels(3)[:, None].expand(-1, pack.layout.frames)
    with torch.no_grad():
        want = solve(edm, student, edm.begin(pack.noise), levels, pack.layout)
        got = task.simulated(student, pack, torch.full((pack.layout.segments,), 2))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path, target, scales", [("rectified_flow", "flow", "[1.5, 5]"), ("cosine", "v", "3")])
def test_student_and_critic_learn_what_the_formulas_say(
    path, target, scales, config, tiny_pipeline, tmp_path_factory, tmp_path
):
    folder = shutil.copytree(tiny_pipeline, tmp_path_factory.mktemp("teacher") / "pipeline")
    LatentVideoScheduler(path=path, target=target, shift=2.0).save_pretrained(folder / "scheduler")
    task = moved(distill_task(config(tmp_path, f"teacher={folder}", f"distill.guidance={scales}"), CPU))
    net = VideoDiT.from_pretrained(folder / "transformer").requires_grad_(False)
    pack, levels = pack_of(task), [2 * t / (1 + t) for t in (1, 2 / 3, 1 / 3)]
    losses, parts = task.loss(task.model, pack, 4)
    wanted, seen = 0.0, set()
    for i, number in enumerate(pack.numbers):
        alone, exit = Alone(task, pack, i, net, path), int(torch.randint(3, (), generator=generator(0, number, "exit")))
        x = alone.clip(levels, exit)
        of_critic, of_teacher, g = alone.losses(x)
        torch.testing.assert_close(parts["critic_loss"][i], of_critic, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(parts["teacher_loss"][i], of_teacher, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(parts["matching_loss"][i], 0.5 * g.square().mean(), rtol=1e-3, atol=1e-5)
        wanted = wanted + of_critic + (g * x).mean()  # whose gradient at x is g, over the elements
        seen.add(exit)
    assert len(seen) > 1
    torch.testing.assert_close(losses, parts["critic_loss"] + parts["matching_loss"])
    parameters = list(task.model.parameters())
    found, expected = (torch.autograd.grad(loss, parameters) for loss in (losses.sum(), wanted))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-4 * float(other.abs().max()) + 1e-6)


def test_between_its_turns_the_student_rests_and_the_critic_learns(config, tmp_path):
    task = moved(distill_task(config(tmp_path, "distill.critic_updates=3"), CPU))
    pack = pack_of(task, 3)
    for step in range(6):
        losses, parts = task.loss(task.model, pack, step)
        assert ("matching_loss" in parts) is (step in (2, 5))
        grads = dict(
            zip(
                dict(task.model.named_parameters()),
                torch.autograd.grad(losses.sum(), list(task.model.parameters())),
                strict=True,
            )
        )
        moves = {name.startswith("critic.") for name, grad in grads.items() if bool(grad.any())}
        assert moves == ({True, False} if step in (2, 5) else {True})
    assert not any(p.requires_grad for p in task.teacher.network.parameters())


def test_given_frames_stay_what_they_are(config, tmp_path):
    task = moved(distill_task(config(tmp_path, "given.plain=0", "given.first=1", "distill.guidance=2"), CPU))
    pack = pack_of(task)
    first = pack.timestep.index_select(0, pack.layout.frame) == 0
    assert bool(first.any()) and not bool(first.all())
    made = task.made(task.model, pack)
    assert torch.equal(made[first], pack.clean[first])
    assert float((made - pack.clean)[~first].detach().abs().mean()) > 0.1
    assert task.loss(task.model, pack, 4)[0].isfinite().all()


def test_a_run_goes_on_bit_for_bit_and_leaves_a_student_alone(
    config, tiny_pipeline, digits_data, tmp_path, monkeypatch
):
    options = ("distill.critic_updates=2", "distill.critic_lr=1e-3", "train.steps=4")
    held_out = (f"validation.manifest={digits_data / 'val.jsonl'}", "validation.every=4", "validation.samples=2")
    held_out = (*held_out, "validation.bins=2", "distill.endpoints=2", "validation.weights=[ema]")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config(whole, *options, *held_out), distill_task)
    after_step = TrainingRun._after_step
    for stop in (1, 3):
        with monkeypatch.context() as patch, pytest.raises(Preempted):
            patch.setattr(TrainingRun, "_after_step", lambda self, _, at=stop: after_step(self, stop=self.step == at))
            train(config(parts, *options), distill_task)
    train(config(parts, *options), distill_task)
    kinds = ("model", "ema", "optimizer")
    for kind in kinds:
        assert same(state(parts, 4, kind), state(whole, 4, kind)), kind

    def of(step: int, kind: str, critic: bool) -> dict:
        return {n: t for n, t in state(whole, step, kind).items() if n.startswith("critic.") is critic}

    assert not of(1, "optimizer", False) and of(1, "optimizer", True)  # a turn is the last of two steps
    assert all(same(of(3, kind, False), of(2, kind, False)) for kind in kinds)
    assert not same(of(2, "model", False), of(1, "model", False))
    assert all(not same(of(n + 1, "model", True), of(n, "model", True)) for n in (1, 2, 3))
    before = load_file(tiny_pipeline / WEIGHTS)
    assert all(torch.equal(of(1, "model", False)[name], tensor) for name, tensor in before.items())

    records = read_metrics(whole)
    assert [{"matching_loss", "teacher_loss", "grad_norm"} <= r.keys() for r in records] == [False, True, False, True]
    assert all(r["passes"] == pytest.approx(3) and r["critic_grad_norm"] > 0 for r in records)
    (measured,) = [r for r in read_metrics(whole, "validation.jsonl") if r["step"] == 4]
    assert {"loss", "critic_loss", "teacher_loss"} <= measured["bins"][1].keys()
    assert math.isfinite(measured["scores"]["end_distance"]["value"])

    made = load_file(whole / "pipeline" / WEIGHTS)
    assert made.keys() - {n for n in made if n.startswith("guidance_in.")} == before.keys()
    average = of(4, "ema", False)
    assert made.keys() == average.keys() and all(torch.equal(made[n], average[n]) for n in made)
    index = json.loads((whole / "pipeline/model_index.json").read_text())
    assert index["student"]["steps"] == 3 and index["student"]["guidance"] == [1.0, 8.0] and index["steps"] == 3
    assert json.loads((whole / "pipeline/transformer/config.json").read_text())["_class_name"] == "VideoDiT"
    clip = load_pipeline(whole / "pipeline", "cpu")(
        "a red 7", num_frames=5, height=32, width=32, output_type="uint8"
    ).frames[0]
    assert clip.shape == (5, 32, 32, 3)


@pytest.mark.slow
def test_a_dry_run_counts_student_critic_and_teacher(config, tmp_path):
    few = ("run.dry_run=true", "data.tokens_per_pack=96", "data.packs_per_step=1", "train.steps=3")
    settings = config(tmp_path, *few)
    task = distill_task(settings, CPU)
    assert isinstance(task.model, VideoDiTWithCritic) and size(task.model) == 2 * size(task.model.critic)
    said = preflight(settings, task, make_plan(settings, task), world=1, device=CPU).text
    assert f"VideoDiTWithCritic, {sum(p.numel() for p in task.model.parameters()):,} parameters" in said
    found, alone = task.grid_flops(task.grids[0]), DitTask.grid_flops(task, task.grids[0])
    # two steps, and the critic trained; in one of five the third step trained and two passes of the teacher, else one
    assert math.isclose(found.model / alone.model, (2 + 3 + (3 + 2 + 4) / 5) / 3, rel_tol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        (("distill.steps=null",), r"method dmd needs steps"),
        (("distill.teacher_steps=8",), r"teacher_steps is 8: method dmd follows no steps of the teacher: leave it out"),
        (("distill.critic_updates=0",), r"distill\.critic_updates=0: must be a whole number from 1 to 1,000"),
        (("distill.critic_lr=0",), r"distill\.critic_lr=0.*: must be a finite number above 0"),
        (
            ("distill.method=consistency", "distill.teacher_steps=6", "distill.critic_lr=1e-3"),
            r"critic_lr is of method dmd, and method is consistency: leave it out",
        ),
        (
            ("stages=[{distill: {method: guidance, steps: null}}, {distill: {method: dmd, steps: 2}}]",),
            r"distill\.method=dmd trains a second network, the critic.*give it a run of its own",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_once(options, message, config, tmp_path):
    with pytest.raises(UserError, match=message):
        config(tmp_path, *options)


def test_a_student_of_steps_is_no_teacher_of_it(config, tiny_pipeline, tmp_path):
    student = shutil.copytree(tiny_pipeline, tmp_path / "student")
    index = json.loads((student / "model_index.json").read_text())
    index["student"] = {"steps": 2, "guidance": 3.0, "levels": [1.0, 0.5, 0.0]}
    (student / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="makes 2 steps, and this needs one of any number: give its teacher"):
        distill_task(config(tmp_path / "run", f"teacher={student}", "distill.guidance=3"), CPU).follow(None)


def test_a_run_in_which_the_student_had_no_turn_is_no_pipeline(config, tmp_path):
    message = r"no trained weights.*distill\.critic_updates steps: train longer"
    with pytest.raises(UserError, match=message):
        train(config(tmp_path, "distill.critic_updates=3", "train.steps=2"), distill_task)
    assert not (tmp_path / "pipeline").exists()
