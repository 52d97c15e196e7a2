"""The range of every number that a user can set: in configurations, saved folders, prompts and on command lines.

A number is looked up by its dotted name, then by the end of it: `optim.lr`, then `lr`; `--guidance-rescale` is
`guidance_rescale`. What the table does not name must still be finite, or within 64 bits.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .errors import UserError

N = TypeVar("N", int, float)


class RangeError(UserError):
    """A number out of its range."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `above`, `below`: without the bound itself."""

    low: float
    high: float
    whole: bool = False
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a finite number"
        low, high = _figure(self.low), _figure(self.high)
        if not (self.above or self.below):
            return f"{kind} from {low} to {high}"
        return f"{kind} {'above' if self.above else 'at least'} {low} and {'below' if self.below else 'at most'} {high}"


def _whole(low: int, high: int) -> Range:
    return Range(low, high, whole=True)


def _above(low: float, high: float) -> Range:
    return Range(low, high, above=True)


LONG = 2**63 - 1
ANY_WHOLE = _whole(-LONG - 1, LONG)
ANY = Range(-1e38, 1e38)  # what fp32 holds
PATIENCE_S = 180.0  # for storage that does not answer; other processes wait 10 minutes in a collective

_COUNT = _whole(1, 10**9)
_COUNT_OR_NONE = _whole(0, 10**9)
_SIDE = _whole(1, 16_384)
_CHANNELS = _whole(1, 65_536)
_BLOCKS = _whole(1, 1000)
_BLOCKS_OR_NONE = _whole(0, 1000)
_STRIDE = _whole(1, 64)
_SHARE = Range(0, 1)
_PARTS = Range(0, 1e9)  # shares in any unit
_DECAY = Range(0, 1, below=True)
_RATE = _above(0, 10)
_WEIGHT = Range(0, 1e6)

RANGES: dict[str, Range] = {
    # clips
    "frames": _whole(1, 10**7),
    "window": _whole(1, 10**5),
    "context": _whole(1, 10**5),
    "between": _whole(1, 10**5),
    "factor": _whole(1, 1000),
    "max_frames": _whole(1, 10**7),
    "seconds": _above(0, 1e6),
    "height": _SIDE,
    "width": _SIDE,
    "crop": _SIDE,
    "size": _SIDE,
    "max_area": _whole(1, 2**28),
    "fps": Range(1e-3, 1000),
    "seed": _whole(0, LONG),
    # data
    "data.max_frames": _whole(1, 10**5),
    "data.weights": _above(0, 1e12),
    "image_share": _SHARE,
    "caption_dropout": _SHARE,
    "unknown_share": _SHARE,
    "frames_per_read": _whole(1, 10**5),
    "tokens_per_pack": _whole(1, 2**26),
    "packs_per_step": _whole(1, 2**16),
    "workers": _whole(0, 256),
    "timeout_s": Range(1e-3, 86_400),
    "retry_s": Range(0, 86_400),
    "batch": _whole(1, 4096),
    # optimiser and loop
    "lr": _RATE,
    "vector_lr": _RATE,
    "adversarial_lr": _RATE,
    "betas": _DECAY,
    "eps": _above(0, 1),
    "momentum": _DECAY,
    "weight_decay": Range(0, 100),
    "warmup": _COUNT_OR_NONE,
    "final": _SHARE,
    "clip": Range(0, 1e9),
    "skip_norm": _above(0, 1e12),
    "train.steps": _COUNT,
    "ema": _DECAY,
    "max_bad_steps": _COUNT,
    "sequence_parallel": _whole(1, 1024),
    "every": _COUNT_OR_NONE,
    "keep_last": _whole(1, 10**6),
    "keep_every": _COUNT_OR_NONE,
    "step": _COUNT_OR_NONE,
    # measurements
    "samples": _whole(1, 10**7),
    "statistics_samples": _whole(1, 10**7),
    "bins": _whole(1, 1000),
    "clips": _whole(2, 10**6),
    "max_clips": _whole(1, 10**9),
    "max_real": _whole(1, 10**9),
    "pictures": _whole(0, 10**6),
    "bootstrap": _whole(0, 10**6),
    "pairs": _whole(1, 10**6),
    "attention": _whole(0, 10**6),
    "prompts": _whole(1, 10**6),
    "heldout": _whole(1, 10**6),
    "chunk": _whole(1, 4096),
    "digits.train": _whole(1, 10**7),
    "digits.val": _whole(1, 10**7),
    # losses
    "l1": _WEIGHT,
    "charbonnier": _WEIGHT,
    "mse": _WEIGHT,
    "temporal": _WEIGHT,
    "kl": _WEIGHT,
    "lpips": _WEIGHT,
    "adversarial": _WEIGHT,
    "r1": _WEIGHT,
    "r1_sigma": Range(0, 2),
    "lpips_frames": _whole(1, 10**4),
    "adversarial_start": _COUNT_OR_NONE,
    "adaptive_max": Range(0, 1e12),
    # noise levels
    "timesteps.mean": Range(-20, 20),
    "timesteps.std": _above(0, 100),
    "timesteps.scale": Range(-1, 2 / (math.pi - 2)),
    "shift": Range(1e-3, 1000),
    "base_tokens": _whole(1, 2**31 - 1),
    "weighting.gamma": _above(0, 1e6),
    "weighting.bias": Range(-50, 50),
    "given.plain": _PARTS,
    "given.first": _PARTS,
    "given.prefix": _PARTS,
    "given.ends": _PARTS,
    "given.random": _PARTS,
    "given.independent": _PARTS,
    "beta_start": Range(0, 1, above=True, below=True),
    "beta_end": Range(0, 1, above=True, below=True),
    "num_train_timesteps": _whole(1, 10**6),
    # sampling
    "steps": _whole(1, 10_000),
    "guidance": Range(0, 1000),
    "guidance_rescale": _SHARE,
    "guidance_interval": _SHARE,
    "zero_init": _whole(0, 10_000),
    "reconstruction_weight": Range(0, 1e4),
    "strength": _SHARE,
    "level": _SHARE,
    # networks: arguments of constructors, and config.json of saved ones
    "model.width": _CHANNELS,
    "patch": _STRIDE,
    "depth": _BLOCKS,
    "heads": _whole(1, 4096),
    "mlp_ratio": _above(0, 64),
    "text_width": _CHANNELS,
    "rope_theta": Range(1, 1e9),
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "latent_channels": _CHANNELS,
    "widths": _CHANNELS,
    "encoder_depths": _BLOCKS_OR_NONE,
    "decoder_depths": _BLOCKS_OR_NONE,
    "time_strides": _STRIDE,
    "space_strides": _STRIDE,
    "latents_mean": Range(-1e6, 1e6),
    "latents_std": _above(0, 1e6),
    "scaling_factor": _above(0, 1e6),
    "num_layers": _BLOCKS,
    "num_decoder_layers": _BLOCKS_OR_NONE,
    "num_heads": _whole(1, 4096),
    "num_attention_heads": _whole(1, 4096),
    "num_res_blocks": _BLOCKS_OR_NONE,
    "layers_per_block": _BLOCKS_OR_NONE,
    "block_out_channels": _CHANNELS,
    "decoder_block_out_channels": _CHANNELS,
    "base_dim": _CHANNELS,
    "dim_mult": _whole(1, 1024),
    "z_dim": _CHANNELS,
    "norm_num_groups": _CHANNELS,
    "patch_size": _STRIDE,
    "patch_size_t": _STRIDE,
    "dropout": _SHARE,
    "dropout_rate": _SHARE,
    "d_model": _CHANNELS,
    "d_ff": _whole(1, 2**20),
    "d_kv": _CHANNELS,
    "vocab_size": _whole(1, 10**7),
    "layer_norm_epsilon": _above(0, 1),
    "relative_attention_num_buckets": _whole(1, 65_536),
    "relative_attention_max_distance": _COUNT,
}


def range_of(name: str, whole: bool = False) -> Range:
    """The range of the number of that name; what is not in the table must be `ANY`, or `ANY_WHOLE`."""
    plain = re.sub(r"\[\d+\]", "", name.rpartition(": ")[2].lstrip("-")).replace("-", "_")
    parts = plain.split(".")
    ends = (".".join(parts[i:]) for i in range(len(parts)))
    found = next((RANGES[end] for end in ends if end in RANGES), None)
    return found or (ANY_WHOLE if whole else ANY)


def check(name: str, value: N, whole: bool | None = None) -> N:
    """`value`, if it is a number in its range; else RangeError with the one message for all.

    whole: whether it must be an int where the table does not say so (None: as the value is).
    """
    is_whole = isinstance(value, numbers.Integral)
    found = range_of(name, is_whole if whole is None else whole)
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and (is_whole or not found.whole)
    if not fits or not found.holds(value):
        raise RangeError(f"{name}={shown(value)}: must be {found}")
    return value


def check_values(section: str, values: Mapping[str, Any]) -> None:
    """Checks each number of a mapping, in its lists too; what is no number (None, a flag, a text) is left to others."""
    for key, value in values.items():
        name = _below(section, key)
        if isinstance(value, Mapping):
            check_values(name, value)
        elif isinstance(value, list | tuple):
            check_values(name, {f"[{i}]": each for i, each in enumerate(value)})
        elif isinstance(value, numbers.Real) and not isinstance(value, bool):
            check(name.replace(".[", "["), value)


def check_fields(section: Any, name: str) -> None:
    """Checks each number of a dataclass, which is called `name`: for its `__post_init__`."""
    own = {f.name: getattr(section, f.name) for f in dataclasses.fields(section) if f.init}
    check_values(name, {key: value for key, value in own.items() if not dataclasses.is_dataclass(value)})


def check_arguments(function: Callable, values: Mapping[str, Any], section: str, *, others: bool = False) -> None:
    """Checks the arguments of a call, by the function's signature and the table, before it is made.

    section: where they stand, `model`, or a file and ": ". others: values of other names are checked as numbers alone.
    Raises RangeError for a name that it does not take (with the nearest that it does), a value of another type than
    its annotation, and a number out of its range.
    """
    several = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
    parameters = inspect.signature(function).parameters
    known = {name: p.default for name, p in parameters.items() if p.kind not in several and name != "self"}
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):  # annotations of another package that cannot be resolved
        hints = {}
    for name, value in values.items():
        if name not in known:
            if others:
                continue
            near = difflib.get_close_matches(name, known, 1)
            fix = f"did you mean {near[0]}?" if near else f"it takes {', '.join(sorted(known))}"
            owner = function.__qualname__.partition(".")[0]
            raise RangeError(f"{section.removesuffix(': ')}: {owner}: there is no argument {name}: {fix}")
        as_default = type(value) is type(known[name])  # annotations may be wrong: `force_upcast: float = True`
        if name in hints and not as_default and not _fits(value, hints[name]):
            raise RangeError(f"{_below(section, name)}={shown(value)}: must be {_described(hints[name])}")
    check_values(section, values)


def setting(text: str, **kwargs: Any) -> Any:
    """A field of a dataclass with what `--help` says of it."""
    return dataclasses.field(metadata={"help": text}, **kwargs)


def number(name: str, whole: bool = False) -> Callable[[str], float]:
    """Reads the number of that name from a command line's text: the `type` of an argument.

    whole: it must be an int where the table does not say so.
    """
    found = range_of(name, whole)

    def read(text: str) -> float:
        try:
            value = int(text) if found.whole else float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text:.40}: must be {found}") from None
        if not found.holds(value):
            raise argparse.ArgumentTypeError(f"{text:.40}: must be {found}")
        return value

    return read


_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says, as far as JSON and YAML can; of others nothing is known."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in args)
    if origin in (tuple, list) or hint in (tuple, list):
        each = args[0] if args else Any
        return isinstance(value, list | tuple) and all(_fits(v, each) for v in value)
    if hint not in _PLAIN:
        return True
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, {int: numbers.Integral, float: numbers.Real}.get(hint, hint))


def _described(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(each) for each in args)
    if origin in (tuple, list):
        return f"a list, each {_described(args[0])}"
    return _PLAIN.get(hint, getattr(hint, "__name__", str(hint)))


def _below(section: str, key: Any) -> str:
    return f"{section}{key}" if not section or section.endswith(": ") else f"{section}.{key}"


def _figure(value: float) -> str:
    exact = isinstance(value, int) or float(value).is_integer()
    return f"{int(value):,}" if exact and abs(value) < 1e15 else f"{value:.6g}"


def shown(value: Any) -> str:
    """A value as messages show it, in at most 60 characters."""
    if isinstance(value, float):
        return f"{value:.6g}"
    try:
        text = repr(str(value)) if isinstance(value, str) else repr(value)
    except ValueError:  # Python refuses to write integers of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
