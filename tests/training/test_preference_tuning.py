"""Preference tuning: the loss against the paper's formula, packs of pairs, the frozen reference, runs that go on."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from comparing import same, state
from diffusers import WanTransformer3DModel
from pair_tables import write_pairs
from safetensors.torch import load_file, save_file
from torch.func import functional_call

from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig
from latentvid.data.plan.plan import Draw
from latentvid.errors import UserError
from latentvid.models.flops import backbone_flops
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed, unpatchify
from latentvid.training.dryrun.memory import size
from latentvid.training.dryrun.preflight import preflight
from latentvid.training.dryrun.words import in_bytes
from latentvid.training.launch import make_plan
from latentvid.training.monitor.metrics import read_metrics
from latentvid.training.run import TrainingRun
from latentvid.training.signals import Preempted
from latentvid.training.stages.dit.choice import dit_task
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

CPU = torch.device("cpu")
LORA = ("adapter.kind=lora", "adapter.rank=4", "adapter.alpha=6", "adapter.dropout=0.2")
pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def config(dit_config, published_config, repository, tiny_pipeline, table):
    """`config(run, "ours" or "wan", ...)`"""

    def make(run: Path, kind: str, *options: str) -> DitConfig:
        told = (f"data.manifest={table}", "data.max_frames=9", "preference.beta=20", "train.loss_by=sample")
        if kind == "wan":
            return published_config(run, repository("wan"), *told, "data.tokens_per_pack=200", *options)
        begun = ("data.latents=null", f"init={tiny_pipeline}", "model.mlp_ratio=2.6666666666666665")
        return dit_config(run, *begun, *told, *options)

    return make


@torch.no_grad()
def moved(task, by: float = 0.05):
    """The task, with other values in all that is trained: the model is not the reference any more."""
    draws = torch.Generator().manual_seed(1)
    for parameter in task.model.parameters():
        if parameter.requires_grad:
            parameter += by * torch.randn(parameter.shape, generator=draws)
    return task


def every(task) -> list[Draw]:
    return [Draw(number=100 + i, index=i) for i in range(len(task.grids))]


# --- the loss ---


def plain_weights(task, kind: str) -> dict[str, torch.Tensor]:
    """The weights that the adapter comes to, W + s B A, under the names of a model without one."""
    prefix, found = ("raw." if kind == "wan" else ""), {}
    parameters = {name.removeprefix(prefix): p for name, p in task.model.named_parameters()}
    for name, p in parameters.items():
        if ".lora_" in name:
            continue
        a = parameters.get(name.replace(".base_layer.weight", ".lora_A.default.weight"))
        if ".base_layer.weight" in name and a is not None:
            b = parameters[name.replace(".base_layer.weight", ".lora_B.default.weight")]
            p = p + 6 / 4 * b @ a
        found[name.replace(".base_layer", "")] = p
    return found


def velocity(kind: str, net, weights, z, t, text, grid):
    """Of one clip alone: z [C,f,h,w] -> the like; diffusers' own pass for the published model."""
    if kind == "wan":
        level = torch.tensor([1000 * t])
        return functional_call(net, weights, (z[None], level, text[None]), {"return_dict": False})[0][0]
    layout, words = Packed.of([grid]), Packed.of_lengths([len(text)])
    tokens = torch.cat([z[:, f, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(1, -1)
                        for f in range(grid[0]) for i in range(grid[1]) for j in range(grid[2])])  # fmt: skip
    out = functional_call(net, weights, (tokens, torch.full((grid[0],), t), text, layout, words))
    return unpatchify(out, layout, 2)[0]


def slow_loss(kind: str, task, pack, pair: int, net, beta: float):
    """-log sigmoid(-beta / 2 ((e_w - e_w_ref) - (e_l - e_l_ref))), an error the mean over (eps - x - v)^2; and, for the
    size of what its gradients are differences of, the sum of the errors with the same factor."""
    cleans, noises = (unpatchify(each, pack.layout, task.patch) for each in (pack.clean, pack.noise))
    texts = pack.text.split(pack.text_layout.lengths)
    levels = pack.timestep.split([f for f, _, _ in pack.layout.grid])
    gaps = []
    for i in (2 * pair, 2 * pair + 1):
        t = float(levels[i][0])
        z = (1 - t) * cleans[i] + t * noises[i]
        errors = []
        for weights in (plain_weights(task, kind), dict(net.named_parameters())):
            v = velocity(kind, net, weights, z, t, texts[i], pack.layout.grid[i])
            errors.append((noises[i] - cleans[i] - v).square().mean())
        gaps.append(errors[0] - errors[1].detach())
    return torch.log1p(torch.exp(beta / 2 * (gaps[0] - gaps[1]))), beta / 4 * (gaps[0] + gaps[1])


@pytest.mark.parametrize("kind, options", [("ours", ()), ("ours", LORA[:3]), ("wan", LORA[:3]), ("wan", ())])
def test_the_loss_and_its_gradients_are_the_paper_s_on_clips_alone(kind, options, config, tmp_path, request):
    beta = 5.0
    told = config(tmp_path, kind, *options, f"preference.beta={beta}")
    task = moved(dit_task(told, CPU), 0.1 if options else 0.05)
    if kind == "wan":
        net = WanTransformer3DModel.from_pretrained(request.getfixturevalue("repository")("wan") / "transformer")
    else:
        net = VideoDiT.from_pretrained(request.getfixturevalue("tiny_pipeline") / "transformer")
    net.requires_grad_(False)
    trained = [p for p in task.model.parameters() if p.requires_grad]
    draws = every(task)
    pack = task.prepare(task.make_pack(draws))
    losses, parts = task.loss(task.model, pack, 0)
    slow, sums = map(
        torch.stack, zip(*(slow_loss(kind, task, pack, i, net, beta) for i in range(len(draws))), strict=True)
    )
    assert losses.shape == (len(draws),) and float((losses.detach() - math.log(2)).abs().max()) > 1e-3
    torch.testing.assert_close(losses, slow, rtol=1e-5, atol=1e-5)
    keep = {"allow_unused": True, "retain_graph": True}
    got, want, terms = (torch.autograd.grad(each.sum(), trained, **keep) for each in (losses, slow, sums))
    # in fp32 a difference of terms is as exact as these are
    most, scale = (max(float(g.abs().max()) for g in grads if g is not None) for grads in (want, terms))
    assert most > 1e-3 * scale
    for p, ours, theirs in zip(trained, got, want, strict=True):
        ours, theirs = (torch.zeros_like(p) if g is None else g for g in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * most + 1e-6 * scale)
    assert torch.equal(parts["accuracy"], (parts["margin"] > 0).float())
    torch.testing.assert_close(torch.log1p(torch.exp(-parts["margin"])), losses.detach())
    alone = [task.loss(task.model, task.prepare(task.make_pack([draw])), 0) for draw in task_order(pack)]
    torch.testing.assert_close(torch.cat([loss for loss, _ in alone]), losses, rtol=1e-5, atol=1e-5)
    for name, part in parts.items():
        torch.testing.assert_close(torch.cat([more[name] for _, more in alone]), part, rtol=1e-4, atol=5e-5)


def task_order(pack) -> list[Draw]:
    """The draws in the pack's order."""
    return [Draw(number, number - 100) for number in pack.numbers[::2]]


@pytest.mark.parametrize(
    "kind, options", [("ours", ()), ("ours", LORA), ("wan", LORA), ("wan", ("trainable=[attn2]",))]
)
def test_at_the_start_nothing_is_preferred_and_the_reference_is_frozen(kind, options, config, tmp_path):
    task = dit_task(config(tmp_path, kind, *options), CPU)
    losses, parts = task.loss(task.model.train(), task.prepare(task.make_pack(every(task))), 0)
    assert torch.equal(losses.detach(), -torch.nn.functional.logsigmoid(torch.zeros(len(losses))))
    assert math.isclose(float(losses.detach()[0]), math.log(2), rel_tol=1e-7)
    assert torch.equal(parts["margin"], torch.zeros(len(losses))) and set(parts["accuracy"].tolist()) == {0.5}
    losses.sum().backward()
    grads = {name: p.grad for name, p in task.model.named_parameters() if p.requires_grad}
    assert any(g is not None and bool(g.any()) for g in grads.values())
    assert all(p.grad is None for p in task.model.parameters() if not p.requires_grad)
    copy = task.before.copy
    assert (copy is None) == (LORA[0] in options)
    if copy is not None:
        assert not any(p.requires_grad or p.grad is not None for p in copy.parameters()) and not copy.training
        assert not {p.data_ptr() for p in copy.parameters()} & {p.data_ptr() for p in task.model.parameters()}


# --- packs ---


def test_both_clips_of_a_pair_have_one_window_flip_level_noise_and_caption(config, tmp_path):
    """The pairs' clips have one content, so that what is cut of them must be equal."""
    equal = write_pairs(tmp_path, [(13, 32, 32)] * 3, equal=True)
    task = dit_task(
        config(tmp_path / "run", "ours", f"data.manifest={equal}", "data.flip=true", "caption.dropout=0.5"), CPU
    )
    plain = task.source.load(0, 0, 0).pixels
    flipped, starts = set(), set()
    for first in range(0, 24, 3):
        pack = task.make_pack([Draw(first + i, i) for i in range(3)])
        assert pack.layout.segments == 6 and pack.tokens == [2 * 3 * 16] * 3 and pack.counted == (2 * 3 * 16,) * 3
        for each in (pack.videos, pack.noise.chunk(6), pack.timestep.chunk(6), pack.posterior):
            assert all(torch.equal(a, b) for a, b in zip(each[::2], each[1::2], strict=True))
        assert pack.captions[::2] == pack.captions[1::2] and pack.numbers[::2] == pack.numbers[1::2]
        assert not torch.equal(pack.noise.chunk(6)[0], pack.noise.chunk(6)[2])
        starts |= {task.source.start(0, 0, first)}
        whole = task.source.read(0)
        flipped.add(float((task.source._read(0, task.source.start(0, 0, first)) - pack.videos[0]).abs().sum()) > 0)
    assert plain.shape == (9, 32, 32, 3) and whole.shape[1] == 9
    assert flipped == {False, True} and len(starts) > 1


def test_the_plan_counts_pairs_with_the_tokens_of_both_clips(config, tmp_path):
    settings = config(tmp_path, "ours")
    task = dit_task(settings, CPU)
    assert task.tokens.tolist() == [2 * math.prod(grid) for grid in task.grids]
    step = make_plan(settings, task).next()
    pack = task.make_pack(step.packs[0])
    assert sum(pack.tokens) == sum(int(task.tokens[d.index]) for d in step.packs[0]) == pack.layout.tokens
    assert "pair" in task.summary() and "rejected" in task.identity()["prints"]


# --- runs ---


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("options", [(), LORA], ids=["full", "lora"])
def test_a_run_that_goes_on_is_one_that_was_not_stopped_and_the_base_stays(
    options, config, table, tmp_path, monkeypatch, tiny_pipeline
):
    base = shutil.copytree(tiny_pipeline, tmp_path / "base")
    before = load_file(base / WEIGHTS)
    more = (*options, f"init={base}", "train.steps=2", "checkpoint.every=1", "optim.schedule=constant")
    held_out = (f"validation.manifest={table}", "validation.every=2", "validation.samples=3", "validation.bins=2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config(whole, "ours", *more, *held_out, "validation.best=accuracy"), dit_task)
    after_step = TrainingRun._after_step
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(TrainingRun, "_after_step", lambda self, stop: after_step(self, stop=self.step == 1))
        train(config(parts, "ours", *more), dit_task)
    train(config(parts, "ours", *more), dit_task)
    for kind in ("model", "ema", "optimizer"):
        assert same(state(parts, 2, kind), state(whole, 2, kind)), kind
    first, last = read_metrics(whole)
    assert first["margin"] == 0 and math.isclose(first["loss"], math.log(2), rel_tol=1e-6) and last["margin"] != 0
    assert {"accuracy", "error_preferred", "error_rejected"} <= last.keys()
    begun, *_, measured = read_metrics(whole, "validation.jsonl")
    assert begun["step"] == 0 and begun["margin"] == 0 and begun["accuracy"] == 0.5 and begun["samples"] == 3
    assert measured["step"] == 2 and measured["bins"][1]["margin"] != 0
    assert json.loads((whole / "best.json").read_text())["metric"] == "accuracy"
    assert same(before, load_file(base / WEIGHTS))
    names = state(whole, 2).keys()
    if options:
        assert names and all(".lora_" in name for name in names)
        assert (whole / "lora" / "pytorch_lora_weights.safetensors").is_file()
    else:
        trained = load_file(whole / "pipeline" / WEIGHTS)
        assert names == trained.keys() == before.keys() and not same(trained, before)
    save_file({name: value + 0.1 for name, value in before.items()}, base / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match="which has other weights"):
        train(config(parts, "ours", *more, "train.steps=3"), dit_task)


def test_held_out_pairs_are_measured_one_by_one_alike(config, table, tmp_path):
    held_out = (f"validation.manifest={table}", "validation.every=4", "validation.samples=5", "validation.bins=2")
    task = moved(dit_task(config(tmp_path, "ours", *held_out, "data.tokens_per_pack=200"), CPU))
    measure = task.held_out()
    assert len(measure.packs) > 1 and measure.higher_is_better("accuracy") and not measure.higher_is_better("loss")
    want = torch.zeros(5, 2)
    for window in measure.windows:
        for b in range(2):
            pack = measure.make_pack([Draw(2 * window + b, window)])
            assert torch.equal(*pack.noise.chunk(2)) and torch.equal(*pack.timestep.chunk(2))
            assert not torch.equal(*pack.clean.chunk(2))
            with torch.no_grad():
                loss, parts = task.loss(task.model, pack, 0)
            want[:, b] += torch.cat([loss, *parts.values()]) / 5
    found = measure.record(measure.measure(task.model.eval(), 0, 1))
    names = ("loss", "margin", "accuracy", "error_preferred", "error_rejected")
    got = torch.tensor([[part[name] for part in found["bins"]] for name in names])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    split = measure.measure(task.model, 0, 2) + measure.measure(task.model, 1, 2)
    torch.testing.assert_close(split, measure.measure(task.model, 0, 1))


def test_a_dry_run_counts_the_reference(config, tmp_path):
    few = ("run.dry_run=true", "data.tokens_per_pack=96", "data.packs_per_step=1")
    lora = dit_task(config(tmp_path, "ours", *few, *LORA), CPU)
    settings = config(tmp_path, "ours", *few)
    task = dit_task(settings, CPU)
    assert lora.before.copy is None and len(task.frozen) == len(lora.frozen) + 1
    said = preflight(settings, task, make_plan(settings, task), world=1, device=CPU).text
    assert f"beside it frozen networks, {in_bytes(sum(map(size, task.frozen)))} on every device" in said
    found, model = task.grid_flops(task.grids[0]), backbone_flops(task.model, [task.grids[0]], [task.mean_text])
    assert math.isclose(found.model, 2 * 4 / 3 * model, rel_tol=1e-6)
    assert found.encode == 2 * DitTask.grid_flops(task, task.grids[0]).encode > 0


# --- what is refused ---


@pytest.mark.parametrize(
    "options, message",
    [
        (("data.latents=x", "data.manifest=null"), r"data\.latents holds clips, not pairs"),
        (("init=null",), r"compares with the weights that the run begins with"),
        (("train.sequence_parallel=2",), r"sequence_parallel is 2"),
        (("validation.latents=x", "validation.every=1"), r"validation\.latents holds clips, not pairs"),
        (("adapter.kind=lora", "adapter.init=x.safetensors"), r"adapter\.init begins with one: merge it"),
        (("data.references={look: {column: look, place: beside}}",), r"data\.references are of single clips"),
        (("prior.prompts=[a 7]",), r"prior makes single clips"),
        (("preference.beta=0",), r"preference\.beta=0"),
        (("preference.rejected_column=",), r"rejected_column"),
        (("preference.beta=null", "preference.rejected_column=other"), r"which beta turns on"),
        (("stages=[{name: a, train: {steps: 1}}, {name: b, preference: {beta: null}}]",), r"in some of the stages"),
    ],
)
def test_what_cannot_go_with_pairs_is_refused(options, message, config, tmp_path):
    with pytest.raises(UserError, match=message):
        config(tmp_path, "ours", *options)


def test_a_table_without_pairs_is_refused(config, digits_data, tmp_path):
    with pytest.raises(UserError, match="has no column `rejected`"):
        dit_task(config(tmp_path, "ours", f"data.manifest={digits_data / 'train.jsonl'}"), CPU)


@pytest.mark.parametrize("kept", [(), ("preference.beta=null", "trainable=[query]")])
def test_a_model_that_is_tuned_keeps_its_roles(kept, config, tiny_pipeline, tmp_path):
    folder, roles = shutil.copytree(tiny_pipeline, tmp_path / "begun"), {"low": {"place": "aligned", "max_area": 256}}
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"references": roles}))
    task = dit_task(config(tmp_path / "run", "ours", f"init={folder}", *kept), CPU, data=False)
    task.export(task.model, tmp_path / "tuned")
    found = json.loads((tmp_path / "tuned/model_index.json").read_text())["references"]
    assert found == {"low": {"place": "aligned", "max_area": 256, "max_frames": None}}


def test_without_the_section_a_configuration_is_as_it_was(dit_config, tmp_path):
    plain = dit_config(tmp_path)
    demo = load_config(DitConfig, Path(__file__).parents[2] / "configs/dit/demo_dpo.yaml")
    assert demo.preference.on and demo.keeps_base and demo.train.loss_by == "sample"
    assert plain.preference.beta is None and not plain.preference.on and not plain.keeps_base
    assert type(dit_task(plain, CPU)).__name__ == "DitTask"
