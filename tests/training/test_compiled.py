"""Runs with compiled blocks, launched for real: the losses, measurements and weights of an eager run."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType
from comparing import assert_measured_alike, difference, losses
from launching import ROOT, launch
from torch import nn

from latentvid.config.parsing import save_config
from latentvid.errors import UserError
from latentvid.training.optim import make_optimizer
from latentvid.training.parallel.zero import make_strategy
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train

OPTIONS = (
    "train.steps=4",
    "checkpoint.every=0",
    "optim.lr=1e-3",
    "optim.schedule=constant",
    "samples.every=2",
    'samples.prompts=["a red 7 moves up", "a blue 3"]',
    "validation.every=2",
    "validation.samples=5",
    "log.draws=true",
    "model.fps_condition=true",
    "model.rope_fps=12",
)
SCRIPT = ROOT / "train" / "train_dit.py"


@pytest.fixture(scope="module")
def options(tiny_latents) -> tuple[str, ...]:
    return *OPTIONS, f"validation.latents={tiny_latents}"


@pytest.fixture(scope="module")
def eager(tmp_path_factory, dit_config, options) -> Path:
    run = tmp_path_factory.mktemp("eager")
    train(dit_config(run, *options), DitTask)
    return run


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ddp", "fsdp2", "zero2"])
def test_a_compiled_run_equals_an_eager_one(recipe, eager, options, dit_config, tmp_path):
    save_config(dit_config(tmp_path / "run", *options, "train.compile=true"), tmp_path / "config.yaml")
    # the kernels' compiler takes a minute for each graph
    done = launch(recipe, 2, [SCRIPT, tmp_path / "config.yaml"], COMPILE_BACKEND="aot_eager", TORCH_LOGS="graph_code")
    assert "===== __compiled_fn" in done.stderr  # blocks were compiled
    difference(tmp_path / "run", eager).check()
    assert_measured_alike(tmp_path / "run", eager)
    assert len(losses(tmp_path / "run")) == 4


def test_zero_3_refuses_compiled_blocks_before_anything_is_spread(dit_config, tmp_path):
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))
    accelerator = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, state=state)
    config, model = dit_config(tmp_path, "train.compile=true"), nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"train\.compile=true: ZeRO-3 gathers weights module by module"):
        make_strategy(accelerator, config, model, make_optimizer(model, config.optim), False)


@pytest.mark.slow
@pytest.mark.distributed
def test_zero_3_refuses_compiled_blocks_by_name(options, dit_config, tmp_path):
    save_config(dit_config(tmp_path / "run", *options, "train.compile=true"), tmp_path / "config.yaml")
    done = launch("zero3", 2, [SCRIPT, tmp_path / "config.yaml"], check=False)
    assert done.returncode != 0
    assert "train.compile=true: ZeRO-3 gathers weights module by module" in done.stdout + done.stderr
    assert "torch._dynamo" not in done.stderr
