"""What a dry run says is what the run would be."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from latentvid.config.parsing import load_config, parse_cli, save_config
from latentvid.config.schema import DitConfig, VaeConfig
from latentvid.data.plan.plan import Draw, Plan, Stream
from latentvid.errors import UserError
from latentvid.models.compiling import compile_blocks
from latentvid.models.flops import dit_flops
from latentvid.training.dryrun.memory import activation_bytes, state_bytes
from latentvid.training.dryrun.preflight import preflight, simulate, steps_per_epoch
from latentvid.training.optim import make_optimizer
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.stages.vae.task import VaeTask

CPU = torch.device("cpu")


def plan_of(task, config) -> Plan:
    data = config.data
    return Plan(task.tokens, budget=data.tokens_per_pack, packs=data.packs_per_step, seed=config.run.seed)


def vae_config(run: Path, data: Path, *overrides: str) -> VaeConfig:
    base = {
        "data.manifest": data / "train.jsonl",
        "data.max_frames": 9,
        "data.tokens_per_pack": 400,
        "data.packs_per_step": 2,
        "model": "{latent_channels: 4, widths: [8, 8, 8], kernels: factorised}",
        "train.mixed_precision": "no",
    }
    return load_config(VaeConfig, None, [f"run.dir={run}", *(f"{k}={v}" for k, v in base.items()), *overrides])


def test_the_text_has_the_runs_own_numbers(dit_config, tmp_path):
    config = dit_config(tmp_path, "train.steps=120")
    task = DitTask(config, CPU)
    plan = plan_of(task, config)
    before = copy.deepcopy(plan.state_dict())
    text = preflight(config, task, plan, world=2, device=CPU).text
    assert plan.state_dict() == before and not list(tmp_path.iterdir())
    assert task.summary() in text and len(text.splitlines()) < 60
    assert f"{sum(p.numel() for p in task.model.parameters()):,} parameters" in text
    simulated = simulate(task, plan, ranks=2)
    assert f"fill {simulated.fill:.3f}" in text and f"balance over 2 ranks {simulated.balance:.3f}" in text
    assert re.search(r"17 x 24 x 32 +\d+ +\d+ +\d+\.\d%", text)
    for strategy in ("DDP, 2 processes", "FSDP2, 2 processes", "ZeRO-1", "ZeRO-2", "ZeRO-3"):
        assert strategy in text


def test_steps_of_an_epoch_and_flops_of_a_step_are_those_of_the_plan(dit_config, tmp_path):
    config = dit_config(tmp_path)
    task = DitTask(config, CPU)
    plan = plan_of(task, config)
    simulated = simulate(task, plan, ranks=1)
    samples, tokens, flops, steps = 0, 0, 0, 0
    while samples < 20 * len(task.tokens):
        step = plan.next()
        samples, tokens, steps = samples + step.samples, tokens + step.tokens, steps + 1
        if steps <= simulated.steps:
            for pack in step.packs:
                grids = [task.grids[draw.index] for draw in pack]
                flops += 3 * dit_flops(task.model.config, grids, [task.mean_text] * len(pack))
    assert steps_per_epoch(task, simulated) == pytest.approx(steps / 20, rel=0.1)
    assert simulated.flops == pytest.approx(flops / simulated.steps, rel=1e-6)


def test_each_source_is_named_and_ranks_must_share_a_step(dit_config, tmp_path):
    config = dit_config(tmp_path, "train.steps=100")
    task = DitTask(config, CPU)
    half = len(task.tokens) // 2
    streams = [Stream(np.arange(half), 3.0, "one.jsonl"), Stream(np.arange(half, len(task.tokens)), 1.0, "two")]
    plan = Plan(task.tokens, budget=256, packs=2, seed=0, streams=streams)
    simulated = simulate(task, plan, ranks=1)
    text = preflight(config, task, plan, world=1, device=CPU).text
    for _ in range(simulated.steps):
        plan.next()
    assert simulated.epochs == pytest.approx([epochs / simulated.steps for epochs in plan.epochs])
    first, second = (f"{100 * epochs:.2f}" for epochs in simulated.epochs)
    assert f"passes over each source:\n    {first} one.jsonl\n    {second} two\n" in text
    with pytest.raises(UserError, match="data.packs_per_step is 2, which 3 data-parallel ranks"):
        preflight(config, task, plan, world=3, device=CPU)


def test_what_was_dropped_and_what_is_doubtful_is_said(digits_data, tmp_path):
    rows = [json.loads(line) for line in (digits_data / "train.jsonl").read_text().splitlines()[:3]]
    rows = [row | {"path": str(digits_data / row["path"])} for row in rows]
    manifest = tmp_path / "three.jsonl"
    manifest.write_text("\n".join(map(json.dumps, [*rows, {"path": "gone.mp4", "caption": "not there"}])))
    overrides = [f"data.manifest={manifest}", "data.tokens_per_pack=5000", "train.steps=100000"]
    config = vae_config(tmp_path, digits_data, *overrides)
    task = VaeTask(config, CPU)
    text = preflight(config, task, plan_of(task, config), world=1, device=CPU).text
    assert "missing" in text
    assert "warning: 3 samples are fewer than one step holds" in text and "warning: the run passes" in text


def saved(task, pack) -> int:
    """Bytes really kept by a forward pass, parameters left out."""
    own, kept = {p.untyped_storage().data_ptr() for p in task.model.parameters()}, {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    half = task.config.train.mixed_precision == "bf16"
    with torch.autocast("cpu", torch.bfloat16, enabled=half), saved_tensors_hooks(keep, lambda x: x):
        losses, _ = task.loss(task.model, pack, 0)
    losses.sum().backward()  # the graph must be alive until here
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_activations_are_estimated_without_computing_them(dit_config, digits_data, tmp_path, precision):
    for config, make_task in (
        (dit_config(tmp_path, f"train.mixed_precision={precision}"), DitTask),
        (vae_config(tmp_path, digits_data, f"train.mixed_precision={precision}"), VaeTask),
    ):
        task = make_task(config, CPU)
        draws = plan_of(task, config).next().packs[0]
        blank = task.blank_pack([task.grids[draw.index] for draw in draws])
        estimate, again = activation_bytes(task, blank)
        assert (again is None) == (make_task is VaeTask)
        assert estimate == pytest.approx(saved(task, task.make_pack(draws)), rel=0.15)
        assert all(p.grad is not None and type(p.grad) is torch.Tensor for p in task.model.parameters())


@pytest.mark.slow
def test_compiled_blocks_are_counted_as_what_they_keep(dit_config, tmp_path):
    task = DitTask(dit_config(tmp_path, "train.compile=true"), CPU)
    draws = [Draw(0, 0), Draw(1, 5), Draw(2, 9)]
    estimate = activation_bytes(task, task.blank_pack([task.grids[draw.index] for draw in draws])).kept
    assert task.model.blocks[0].compiled is None
    pack = task.make_pack(draws)
    eager = saved(task, pack)
    compile_blocks(task.model, backend="aot_eager_decomp_partition")
    assert estimate == pytest.approx(saved(task, pack), rel=0.05) and estimate < 0.97 * eager


def test_recomputing_keeps_the_blocks_inputs_and_one_blocks_activations(dit_config, tmp_path):
    task = DitTask(dit_config(tmp_path, "model={depth: 6}"), CPU)
    draws = [Draw(0, 0), Draw(1, 5), Draw(2, 9)]
    blank = task.blank_pack([task.grids[draw.index] for draw in draws])
    full, again = activation_bytes(task, blank)
    assert task.model.attention_backend == "grouped" and not task.model.gradient_checkpointing
    task.model.enable_gradient_checkpointing()
    kept = saved(task, task.make_pack(draws))
    assert again == pytest.approx(kept + (full - kept) / 6, rel=0.15) and again < 0.5 * full


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_is_what_the_optimiser_makes(dit_config, tmp_path, name):
    config = dit_config(tmp_path, f"optim.name={name}")
    model = DitTask(config, CPU).model
    optimizer = make_optimizer(model, config.optim)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    big = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v) and v.ndim > 0]
    table = {strategy: held for strategy, _, held in state_bytes(model, model.blocks, name, 1)}
    assert table["single"].optimizer == sum(v.numel() * v.element_size() for v in big)
    assert table["single"].weights == sum(p.numel() * 4 for p in model.parameters())
    if name == "adamw":
        assert table["ZeRO-1"].optimizer == table["single"].optimizer / 8
        assert sum(table["FSDP2"]) < sum(table["ZeRO-2"]) < sum(table["ZeRO-1"]) < sum(table["DDP"])
    else:
        assert set(table) == {"single", "DDP", "FSDP2"}
        assert table["FSDP2"].optimizer == table["single"].optimizer / 8


def test_dry_run_is_a_flag_of_the_command_line(dit_config, tmp_path):
    save_config(dit_config(tmp_path), tmp_path / "c.yaml")
    assert not parse_cli(DitConfig, [str(tmp_path / "c.yaml")]).run.dry_run
    assert parse_cli(DitConfig, ["--dry-run", str(tmp_path / "c.yaml")]).run.dry_run
    with pytest.raises(UserError, match="unknown key"):
        parse_cli(DitConfig, [str(tmp_path / "c.yaml"), "--dry_run=true"])
