"""Every number has a range: one table, one message."""

import argparse
import math

import pytest

from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig, VaeConfig
from latentvid.config.sections import Optim
from latentvid.config.yaml_files import ConfigError
from latentvid.errors import UserError
from latentvid.limits import ANY, ANY_WHOLE, RANGES, RangeError, check, check_arguments, check_values, number, range_of

NEEDED = {
    DitConfig: ("run.dir=r", "data.latents=c", "vae=v", "text_encoder=t"),
    VaeConfig: ("run.dir=r", "data.manifest=m"),
}
BOTH = (
    "run.seed=-1",
    "run.seed=9223372036854775808",
    "run.seed=" + "9" * 5000,
    "data.weights=[1,nan]",
    "data.weights=[0,1]",
    "data.image_share=nan",
    "data.image_share=1.5",
    "data.max_frames=0",
    "data.fps=0",
    "data.fps=[8,nan]",
    "data.fps_slack=1.5",
    "data.frames_per_read=0",
    "data.max_area=0",
    "data.max_area=100000000000",
    "data.tokens_per_pack=100000000000",
    "data.packs_per_step=100000000000",
    "data.packs_per_step=0",
    "data.workers=100000000000",
    "data.workers=-1",
    "data.timeout_s=inf",
    "data.timeout_s=nan",
    "data.timeout_s=0",
    "optim.lr=inf",
    "optim.lr=nan",
    "optim.lr=0",
    "optim.lr=1e400",
    "optim.betas=[0.9,2.0]",
    "optim.betas=[nan,0.9]",
    "optim.momentum=1",
    "optim.weight_decay=-inf",
    "optim.vector_lr=nan",
    "optim.warmup=-1",
    "optim.final=2",
    "optim.clip=nan",
    "optim.clip=-1",
    "optim.skip_norm=0",
    "optim.skip_norm=inf",
    "train.steps=0",
    "train.steps=99999999999999999999",
    "train.ema=1",
    "train.ema=nan",
    "train.max_bad_steps=0",
    "train.sequence_parallel=0",
    "checkpoint.every=-1",
    "checkpoint.keep_last=0",
    "checkpoint.keep_every=-5",
    "samples.every=-1",
    "validation.every=1e20",
    "validation.samples=0",
    "validation.seed=-3",
)
DIT = (
    "samples.guidance=nan",
    "samples.guidance=-inf",
    "samples.fps=0",
    "samples.fps=inf",
    "samples.frames=0",
    "samples.height=100000000000",
    "samples.width=-8",
    "samples.steps=1e9",
    "validation.bins=100000000000000000000",
    "validation.clips=1",
    "caption.dropout=nan",
    "timesteps.mean=nan",
    "timesteps.std=inf",
    "timesteps.std=0",
    "timesteps.scale=5",
    "timesteps.shift=nan",
    "timesteps.base_tokens=0",
    "weighting.gamma=nan",
    "weighting.gamma=0",
    "weighting.bias=-inf",
    "given.first=inf",
    "given.plain=nan",
    "given.independent=-1",
)
VAE = (
    *(f"loss.{name}={value}" for name in ("l1", "mse", "kl", "temporal", "r1") for value in ("inf", "nan", "-1")),
    "loss.lpips_frames=0",
    "loss.adversarial_lr=nan",
    "loss.adversarial_start=-1",
    "loss.adaptive_max=nan",
    "loss.r1_sigma=inf",
    "data.crop=0",
    "statistics_samples=0",
)


@pytest.mark.parametrize(
    ("cls", "setting"),
    [(cls, s) for cls in (DitConfig, VaeConfig) for s in BOTH]
    + [(DitConfig, s) for s in DIT]
    + [(VaeConfig, s) for s in VAE],
)
def test_a_number_out_of_its_range_is_refused_by_name(cls, setting):
    key = setting.partition("=")[0]
    with pytest.raises(ConfigError) as error:
        load_config(cls, None, [f"--{s}" for s in (*NEEDED[cls], setting)])
    text = str(error.value)
    assert text.startswith(key) and len(text) < 300 and ("must be" in text or "expected int" in text), text


@pytest.mark.parametrize("cls", [DitConfig, VaeConfig])
def test_a_step_of_absurd_size_is_refused(cls):
    settings = (*NEEDED[cls], "data.tokens_per_pack=60000000", "data.packs_per_step=60000")
    with pytest.raises(ConfigError, match=r"3,600,000,000,000 tokens a step: must be at most"):
        load_config(cls, None, [f"--{s}" for s in settings])


def test_values_made_in_code_are_checked_as_well():
    with pytest.raises(UserError, match="optim.lr=inf: must be a finite number above 0 and at most 10"):
        Optim(lr=math.inf)


@pytest.mark.parametrize("name", RANGES)
def test_bounds_belong_to_the_range_unless_it_says_otherwise(name):
    found = RANGES[name]
    for bound, left_out in ((found.low, found.above), (found.high, found.below)):
        if left_out:
            with pytest.raises(RangeError):
                check(name, bound)
        else:
            assert check(name, bound) == bound
    for wrong in (math.nan, math.inf, -math.inf, True, "1", None, 2**70, -(2**70), 10**5000):
        with pytest.raises(RangeError, match="must be a"):
            check(name, wrong)
    if found.whole:
        with pytest.raises(RangeError, match="must be a whole number"):
            check(name, found.low + 0.5)


def test_names_are_looked_up_from_their_end():
    assert range_of("samples.steps") is RANGES["steps"] and range_of("train.steps") is RANGES["train.steps"]
    assert range_of("--guidance-rescale") is RANGES["guidance_rescale"]
    assert range_of("optim.betas[1]") is RANGES["betas"]
    assert range_of("nothing.of.it") is ANY and range_of("nothing", whole=True) is ANY_WHOLE


def test_nested_values_are_checked_where_they_stand():
    with pytest.raises(RangeError, match=r"model.widths\[1\]=-4: must be a whole number from 1"):
        check_values("model", {"widths": [4, -4], "kernels": "full", "shortcuts": True, "latents_mean": None})
    with pytest.raises(RangeError, match=r"a.b.x=nan: must be a finite number"):
        check_values("a", {"b": {"x": math.nan}})


def _network(width: int = 4, ratio: float = 2.0, widths: tuple[int, ...] = (1,), kind: str = "a", flag: bool = True):
    pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widht": 3}, r"model: _network: there is no argument widht: did you mean width\?"),
        ({"width": "3"}, "model.width='3': must be a whole number"),
        ({"width": True}, "model.width=True: must be a whole number"),
        ({"width": 3.5}, "model.width=3.5: must be a whole number"),
        ({"width": 0}, "model.width=0: must be a whole number from 1 to 65,536"),
        ({"ratio": math.nan}, "model.ratio=nan: must be a finite number"),
        ({"widths": [1, "x"]}, "model.widths=.*: must be a list, each a whole number"),
        ({"widths": 7}, "model.widths=7: must be a list"),
        ({"kind": None}, "model.kind=None: must be a text"),
        ({"flag": 1}, "model.flag=1: must be true or false"),
    ],
)
def test_arguments_are_checked_by_the_signature(arguments, message):
    check_arguments(_network, {"width": 8, "ratio": 3, "widths": [1, 2]}, "model")
    with pytest.raises(RangeError, match=message):
        check_arguments(_network, arguments, "model")


def test_command_line_numbers_are_read_by_name():
    assert number("steps")("50") == 50 and number("guidance")("1e2") == 100.0
    for text in ("nan", "inf", "x", "", "1.5", "0", "-3", "9" * 5000):
        with pytest.raises(argparse.ArgumentTypeError, match="must be a whole number from 1 to 10,000"):
            number("--steps")(text)
