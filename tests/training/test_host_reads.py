"""A training step on a GPU makes the host wait once, where it reads the loss and the norms that say whether there is a
step at all: counted on CUDA tensors without storage."""

import warnings
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from host_reads import moved, on_fake_cuda, run_backward
from small_tasks import draws_of
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from latentvid.data.plan.plan import Step
from latentvid.models import streaming
from latentvid.training.ema import EMA
from latentvid.training.monitor.efficiency import EfficiencyMeter
from latentvid.training.optim import make_optimizer
from latentvid.training.parallel.strategy import Whole
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.step import Stepper
from latentvid.training.trainer import train


def waits_of(config):
    """Those of one step of four samples in two packs."""
    task = DitTask(config, torch.device("cpu"))
    draws = draws_of(task, 4)
    packs = [(part, task.make_pack(part)) for part in (draws[:2], draws[2:])]
    tokens = sum(sum(pack.tokens) for _, pack in packs)
    step = Step(tuple(tuple(part) for part, _ in packs), samples=4, tokens=tokens, costs=(1.0, 1.0), budget=tokens)
    alone = SimpleNamespace(
        device=torch.device("cuda"),
        num_processes=1,
        is_main_process=True,
        prepare=lambda *things: things,
        no_sync=lambda model: nullcontext(),
        reduce=lambda x, reduction: x,
        clip_grad_norm_=torch.nn.utils.clip_grad_norm_,
    )
    with on_fake_cuda() as waits:
        task.device, task.model.attention_backend, task.text._device = alone.device, "torch", alone.device
        for network in (task.model, task.vae, *task.text.networks):
            moved(network)
        strategy = Whole(alone, config, task.model, make_optimizer(task.model, config.optim, task.apart))
        strategy.backward = lambda loss: run_backward(loss, torch.ones_like(loss))
        meter = EfficiencyMeter(torch.device("cpu"), 1.0, 1)
        stepper = Stepper(alone, config, task, strategy, EMA(strategy.pieces()), meter)
        waits.clear()
        stepper.update(stepper.gradients(step, packs, 0, stop=False), 0, 0)
    assert strategy.optimizer.state and stepper.ema.updates == 1  # it was a step
    return waits


@pytest.mark.parametrize(
    "of_config",
    [
        ["model.attention=full"],
        ["model.attention=causal", "train.loss_by=sample"],
        ["model.attention=factorised", "given.first=0.5", "scheduler.path=ddpm", "scheduler.target=v"],
    ],
)
def test_a_step_from_a_cache_reads_once(cuda_without_a_driver, dit_config, tmp_path, of_config):
    waits = waits_of(dit_config(tmp_path, "train.mixed_precision=bf16", *of_config))
    assert waits.calls["_fused_adamw_"] == 2  # matrices, and vectors
    assert waits.calls["_foreach_lerp_"] == 1  # the average of all weights
    assert waits.reads.total() == 5 and waits.lines == {"training/step.py read"}  # loss, 3 counts, and the norm
    assert not waits.copies


def test_a_step_from_clips_reads_once(cuda_without_a_driver, dit_config, digits_data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        streaming, "choose_cut", lambda side, b, frames, h, w, budget: streaming.Cut(frames, 0, b, h, w)
    )
    clips = f"data.manifest={digits_data / 'train.jsonl'}", "data.latents=null", "data.max_frames=5"
    waits = waits_of(dit_config(tmp_path, "train.mixed_precision=bf16", *clips))
    assert waits.lines == {"training/step.py read"}, waits.reads
    assert not waits.copies
    assert {dtype for _, dtype in waits.products} == {torch.bfloat16}  # of the frozen encoders too
    assert waits.products["convolution", torch.bfloat16] > 0


def test_what_waits_is_counted():
    """The counter itself, and what it is there to find."""
    with on_fake_cuda() as waits:
        x = torch.zeros(3, device="cuda")
        bool((x > 0).any()), x.tolist(), x.cpu()
        torch.tensor([1.0, 2.0], device="cuda"), torch.ones(3).to("cuda"), torch.ones(3).to("cuda", non_blocking=True)
        with pytest.raises(DynamicOutputShapeException):
            x[x > 0]
    assert waits.reads.total() == 1 + 3 and waits.copies.total() == 3


@pytest.mark.gpu
@pytest.mark.usefixtures("fresh_accelerate")
def test_a_step_on_a_gpu_waits_once(dit_config, tmp_path):
    """As torch itself counts."""

    class Watched(DitTask):
        def loss(self, model, pack, step):
            if step == 3:  # what is made at first may wait
                torch.cuda.set_sync_debug_mode("warn")
            return super().loss(model, pack, step)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            train(dit_config(tmp_path, "train.steps=9", "checkpoint.every=0", "data.packs_per_step=1"), Watched)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = Counter(Path(each.filename).name for each in said if "synchronizing CUDA operation" in str(each.message))
    assert lines["step.py"] == 6, lines  # one a step, of steps 4 to 9
