"""DoRA, LoHa and LoKr on a model of ours: what is trained, counted, kept, stopped, and made with what is left."""

import pytest
import torch
from safetensors.torch import load_file

from latentvid.errors import UserError
from latentvid.models.adapters.facts import describe
from latentvid.pipelines.arguments import Lora
from latentvid.pipelines.loading import load_pipeline
from latentvid.pipelines.sampling import Sampling
from latentvid.training.dryrun.memory import activation_bytes, state_bytes
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

KINDS = {"dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}
FILE = "lora/pytorch_lora_weights.safetensors"


class Stop(Exception):
    pass


class Stopping(DitTask):
    """Its loss raises in the second step."""

    def loss(self, model, pack, step):
        if step == 1:
            raise Stop
        return super().loss(model, pack, step)


def tensors_of(run, kind):
    return load_file(run / "checkpoints" / "step-00000002" / f"{kind}.safetensors")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("kind", ["dora", "lokr", pytest.param("loha", marks=pytest.mark.slow)])
def test_each_kind_stopped_and_gone_on_with_and_what_is_made_with_it(
    kind, tiny_pipeline, dit_config, tmp_path, fresh_accelerate
):
    base = tiny_pipeline
    keys = (
        f"init={base}",
        f"model.mlp_ratio={8 / 3}",
        f"adapter.kind={kind}",
        "adapter.rank=2",
        "adapter.alpha=3",
        "adapter.dropout=0.2",
    )
    keys += ("train.steps=2", "checkpoint.every=1", "optim.lr=0.02", "optim.warmup=0")
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(dit_config(whole, *keys), DitTask)
    with pytest.raises(Stop):
        train(dit_config(run, *keys), Stopping)
    train(dit_config(run, *keys), DitTask)
    for held in ("model", "ema", "optimizer"):
        assert same(tensors_of(run, held), tensors_of(whole, held)), held
    assert same(load_file(run / FILE), load_file(whole / FILE))

    task = DitTask(dit_config(tmp_path / "task", *keys), torch.device("cpu"))
    trained = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
    sign = {"dora": "lora_", "loha": "hada_", "lokr": "lokr_"}[kind]
    assert all(sign in name for name in trained)
    assert trained.keys() == tensors_of(run, "model").keys() == tensors_of(run, "ema").keys()
    counted, everything = (sum(4 * p.numel() for p in some) for some in (trained.values(), task.model.parameters()))
    _, _, state = next(state_bytes(task.model, task.blocks, "adamw", 1))
    assert state == (everything, counted, 2 * counted, counted)
    pack = task.blank_pack([(2, 4, 4)])
    assert 0 < activation_bytes(task, pack).recomputing < activation_bytes(task, pack).kept

    assert f"kind: {KINDS[kind]}" in describe(run / "lora")
    sampling = Sampling(steps=2, progress=False)
    plain, none, much = (
        load_pipeline(base, "cpu", lora=lora)("a red 7", seed=1, sampling=sampling, output_type="uint8").frames[0]
        for lora in ((), [Lora(run / "lora", 0.0)], [Lora(run / "lora")])
    )
    assert torch.equal(none, plain) and not torch.equal(much, plain)
    average = tensors_of(run, "ema")
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(average[name])
    pipeline = load_pipeline(base, "cpu")
    pipeline.transformer = task.model.eval()
    made = pipeline("a red 7", seed=1, sampling=sampling, output_type="uint8").frames[0]
    assert (made.int() - much.int()).abs().max() <= 1  # of 255


@pytest.mark.parametrize(
    "kind, targets, said",
    [
        (
            "loha",
            "patch_embedding",
            "adapter.kind=loha changes linear maps alone, and patch_embedding is a convolution",
        ),
        ("dora", "attn1.to_q", r"rows of zeros: name others in adapter\.targets"),
    ],
)
def test_layers_that_a_kind_cannot_change_are_refused(kind, targets, said, published_config, repository, tmp_path):
    config = published_config(tmp_path, repository("wan"), f"adapter.kind={kind}", f"adapter.targets=[{targets}]")

    class Zeroed(DitTask):
        def _published_model(self):
            model = super()._published_model()
            model.raw.blocks[0].attn1.to_q.weight.data[3] = 0
            return model

    with pytest.raises(UserError, match=said):
        Zeroed(config, torch.device("cpu"))
