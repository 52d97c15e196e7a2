"""Estimates of memory and time: what is counted without computing is what it takes, and rates do what they say."""

import dataclasses

import pytest
import torch

from latentvid.data.plan.plan import Draw, Plan
from latentvid.models.transformer import VideoDiT
from latentvid.training.dryrun import preflight as preflight_module
from latentvid.training.dryrun.estimate import H200, Step, _counted, dit_pass_bytes, mfu, peak_bytes, step_seconds
from latentvid.training.dryrun.memory import PassBytes, _Peaks, pass_bytes, size, state_bytes
from latentvid.training.dryrun.preflight import preflight
from latentvid.training.stages.dit.task import DitTask

CPU = torch.device("cpu")
STRATEGIES = ("DDP", "FSDP2", "ZeRO-1", "ZeRO-2", "ZeRO-3")
CONFIG = {"latent_channels": 4, "width": 48, "heads": 2, "text_width": 24}


def step(**changes) -> Step:
    """Of a network of a billion parameters."""
    base = {"flops": 8e13, "tokens": 32768, "packs": 64, "weights": 4e9, "trained": 4e9, "block": 2e8}
    return Step(**base | {"width": 1536, "depth": 20} | changes)


@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pass_takes_what_was_counted_without_it(dit_config, tmp_path, precision, checkpointing):
    task = DitTask(dit_config(tmp_path, f"train.mixed_precision={precision}", "model={depth: 5}"), CPU)
    parameters = list(task.model.parameters())
    draws = [Draw(0, 0), Draw(1, 5), Draw(2, 9)]
    found = pass_bytes(task, task.blank_pack([task.grids[draw.index] for draw in draws]), checkpointing)
    assert all(p is q and p.grad is None for p, q in zip(task.model.parameters(), parameters, strict=True))
    if checkpointing:
        task.model.enable_gradient_checkpointing()
    pack, count = task.make_pack(draws), _Peaks(CPU)
    for p in parameters:
        p.register_post_accumulate_grad_hook(lambda p: setattr(count, "gradients", count.gradients + p.grad.nbytes))
    with count:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses, _ = task.loss(task.model, pack, 0)
        forward = count.begin_anew()
        losses.sum().backward()
    assert found == pytest.approx((forward, count.leaving, count.peak), rel=0.05)
    assert found.leaving <= found.staying <= found.leaving + size(task.model)


@pytest.mark.slow
def test_recomputing_takes_less_and_what_two_depths_say_holds_for_another():
    grids, text, config = [(2, 6, 6), (1, 8, 8)], [5, 3], CONFIG | {"depth": 8}
    whole, again = (dit_pass_bytes(config, grids, text, way) for way in (False, True))
    assert again.leaving < 0.5 * whole.leaving
    for way, found in ((False, whole), (True, again)):
        deep, _ = _counted(lambda depths: VideoDiT(**{**config, **depths}), {"depth": 8}, grids, text, way)
        assert tuple(found) == pytest.approx(tuple(deep), rel=0.03)


def test_sharding_more_holds_less_and_the_largest_part_is_the_pass_or_the_state():
    with torch.device("meta"):
        model = VideoDiT(**CONFIG, depth=8)
    held, block, passing = size(model), size(model.blocks[0]), PassBytes(900_000, 1_000_000, 1_200_000)
    states = {name: state for name, n, state in state_bytes(model, model.blocks, "adamw", 64) if n == 64}
    most = {name: peak_bytes(name, states[name], passing, held, block, 1, bucket=0) for name in STRATEGIES}
    assert most["FSDP2"] < most["ZeRO-2"] < most["ZeRO-1"] < most["DDP"]
    single = next(state for name, _, state in state_bytes(model, model.blocks, "adamw", 1) if name == "single")
    assert peak_bytes("single", single, passing, held, block, 1) == 4 * held + 1_200_000
    assert peak_bytes("single", single, passing, held, block, 2) == 5 * held + 1_000_000
    assert most["DDP"] == 5 * held + 1_000_000  # the reducer's buckets, which the gradients are in
    turns = [peak_bytes("FSDP2", states["FSDP2"], passing, held, block, packs) for packs in (1, 2)]
    assert turns[1] > turns[0] + 0.8 * held  # gradients stay whole between packs
    assert most["FSDP2"] < most["ZeRO-3"] - held  # which leaves a small model gathered
    with pytest.raises(ValueError, match="strategy 'ZeRO-4'"):
        peak_bytes("ZeRO-4", single, passing, held, block, 1)


def test_a_ring_is_bytes_over_the_slower_link_and_hops():
    alone = dataclasses.replace(H200, hop_inside=0, hop_outside=0, reached=1.0)
    assert alone.ring(1, 1e9) == 0
    assert alone.ring(8, 1e9) == pytest.approx(7 / 8 * 1e9 / 450e9)
    assert alone.ring(64, 1e9) == pytest.approx(63 / 64 * 1e9 / 400e9)  # eight adapters of 50 GB/s a node
    hops = dataclasses.replace(alone, hop_inside=1.0, hop_outside=10.0)
    assert hops.ring(16, 0) == 14 * 1.0 + 1 * 10.0
    assert alone.trade(8, 1e9) == pytest.approx(7 / 8 * 1e9 / 450e9)
    assert alone.trade(16, 1e9) == pytest.approx(7 / 16 * 1e9 / 450e9 + 8 / 16 * 1e9 / 50e9)


def test_time_of_a_step_follows_its_work_and_its_exchanges():
    one = step_seconds(step(packs=1), "single", 1, H200)
    assert one.exchange == 0 and one.compute == pytest.approx(3 * 8e13 / (790e12 * 0.5))
    assert one.update == pytest.approx(1e9 * 52 / 4.3e12)
    again = step_seconds(step(packs=1, recompute=True), "single", 1, H200)
    assert again.compute == pytest.approx(4 / 3 * one.compute)
    assert mfu(step(packs=1), one, 1, H200) == pytest.approx(0.5 * one.compute / one.all)
    for name in STRATEGIES:
        near, far = (step_seconds(step(packs=n), name, n, H200) for n in (8, 1024))
        assert near.compute == far.compute == one.compute and near.exchange < far.exchange, name
        assert step_seconds(step(packs=32), name, 8, H200).compute == pytest.approx(4 * one.compute)
    growth = {n: step_seconds(step(packs=32), n, 8, H200).exchange / step_seconds(step(packs=8), n, 8, H200).exchange
              for n in STRATEGIES}  # fmt: skip
    assert growth["DDP"] == growth["ZeRO-1"] == 1 and growth["ZeRO-3"] == pytest.approx(4) and growth["ZeRO-2"] > 2


def test_groups_that_share_packs_split_the_work_and_trade():
    whole, shared = (step_seconds(step(packs=64 // s, sequence=s), "FSDP2", 64, H200) for s in (1, 4))
    assert shared.compute == pytest.approx(whole.compute / 4) and shared.exchange > whole.exchange
    apart = step_seconds(step(packs=4, sequence=16), "FSDP2", 64, H200)  # groups that reach over two nodes
    assert apart.exchange > shared.exchange
    for wrong in (step(packs=48), step(packs=64, sequence=5)):
        with pytest.raises(ValueError, match="cannot share"):
            step_seconds(wrong, "DDP", 64, H200)
    with pytest.raises(ValueError, match="strategy 'none'"):
        step_seconds(step(), "none", 64, H200)


def test_a_dry_run_on_gpus_says_what_a_step_takes_under_each_strategy(dit_config, tmp_path, monkeypatch):
    config = dit_config(tmp_path, "data.packs_per_step=8", "train.steps=100")
    task = DitTask(config, CPU)
    data = config.data
    plan = Plan(task.tokens, budget=data.tokens_per_pack, packs=data.packs_per_step, seed=0)
    here = preflight(config, task, plan, world=8, device=CPU).text
    assert "most, recomputing" in here and "exchanges" not in here  # of links between CPUs nothing is known
    monkeypatch.setattr(preflight_module, "peak_flops", lambda device, precision: (9e14, "told"))
    memory = type("Properties", (), {"total_memory": 2**30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    text = preflight(config, task, plan, world=8, device=torch.device("cuda")).text
    lines = text[text.index("a step on 8 devices") :].splitlines()
    assert [line.split()[0] for line in lines[2:7]] == list(STRATEGIES)
