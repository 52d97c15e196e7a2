"""A LoRA beside a base of codes: what is held, what checkpoints hold, a run that goes on, what is refused."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_tasks import Stop, stopping

from latentvid.errors import UserError
from latentvid.models.quantised import QuantisedLinear
from latentvid.training.dryrun.memory import size, state_bytes
from latentvid.training.parallel.strategy import refuse_quantised
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

CPU = torch.device("cpu")
LORA = ("adapter.kind=lora", "adapter.rank=4")
INT8, NF4 = (*LORA, "adapter.base=int8"), (*LORA, "adapter.base=nf4")


def tensors(run, kind):
    return load_file(run / "checkpoints" / "step-00000004" / f"{kind}.safetensors")


def test_a_run_goes_on_as_if_never_stopped_and_writes_no_base(begun_pipeline, dit_config, tmp_path, fresh_accelerate):
    options = (f"init={begun_pipeline}", *NF4, "train.steps=4", "checkpoint.every=2")
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(dit_config(whole, *options), DitTask)
    with pytest.raises(Stop):
        train(dit_config(again, *options), stopping(after=5))
    train(dit_config(again, *options), DitTask)
    for kind in ("model", "ema", "optimizer"):
        a, b = tensors(whole, kind), tensors(again, kind)
        assert a.keys() == b.keys() and all(".lora_" in name for name in a)
        assert all(torch.equal(a[name], b[name]) for name in a)
    with safe_open(whole / "lora/pytorch_lora_weights.safetensors", "pt") as held:
        matrices = {held.get_tensor(name).dtype for name in held.keys()}  # noqa: SIM118 - not a dict
    assert matrices == {torch.float32}
    # the base may be held another way from here on
    longer = (f"init={begun_pipeline}", *INT8, "train.steps=5", "train.extend=true")
    assert DitTask(dit_config(again, *longer), CPU).base is not None


@pytest.mark.parametrize("options", [INT8, NF4])
def test_the_model_computes_nearly_what_it_did_and_holds_less(options, begun_pipeline, dit_config, tmp_path):
    plain = DitTask(dit_config(tmp_path, f"init={begun_pipeline}", *LORA), CPU)
    coded = DitTask(dit_config(tmp_path, f"init={begun_pipeline}", *options), CPU)
    assert plain.base == coded.base  # the same weights, told before they are coded
    layers = [m for m in coded.model.modules() if isinstance(m, QuantisedLinear)]
    assert len(layers) == 10 * len(coded.model.blocks)
    assert sum(map(size, coded.model.blocks)) < 0.6 * sum(map(size, plain.model.blocks))
    rows = {name: held for name, _, held in state_bytes(coded.model, coded.blocks, "adamw", 1)}
    assert set(rows) == {"single", "DDP"} and rows["single"].weights == size(coded.model)
    with pytest.raises(UserError, match="FSDP2 cannot shard quantised weights: launch DDP"):
        refuse_quantised(coded.model, "FSDP2")
    refuse_quantised(plain.model, "FSDP2")


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_published_model_trains_beside_codes(kind, published_config, repository, tmp_path, fresh_accelerate):
    config = published_config(
        tmp_path / "run", repository("wan"), *LORA, f"adapter.base={kind}", "train.steps=2", "checkpoint.every=2"
    )
    task = DitTask(config, CPU)
    assert any(isinstance(m, QuantisedLinear) for m in task.model.raw.blocks.modules())
    assert not any(isinstance(m, QuantisedLinear) for m in task.model.raw.condition_embedder.modules())
    train(config, DitTask)
    assert (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("adapter.kind=dora", "adapter.base=int8"), "base=int8: dora reads whole weights: set kind=lora"),
        (("adapter.base=nf4",), "base and dropout are of an adapter"),
        (("adapter.kind=lora", "adapter.base=fp4"), "expected one of 'whole', 'int8', 'nf4'"),
    ],
)
def test_what_has_no_codes_is_refused(options, message, begun_pipeline, dit_config, tmp_path):
    with pytest.raises(UserError, match=message):
        dit_config(tmp_path, f"init={begun_pipeline}", *options)
