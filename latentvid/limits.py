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
_CHANNELS = _whole(1, 65_536)
_SHARE = Range(0, 1)

_NAMES: tuple[tuple[Range, str], ...] = (  # of the numbers that have each range
    # clips
    (_whole(1, 10**7), "frames num_frames max_frames"),
    (_whole(1, 10**5), "window context between rollout"),
    (_whole(1, 1000), "factor stride"),
    (_whole(1, 16), "by"),
    (_above(0, 1e6), "seconds"),
    (_whole(1, 16_384), "height width crop size"),
    (_whole(0, 16_384), "grow beyond"),
    (_whole(1, 2**28), "max_area"),
    (Range(1e-3, 1000), "fps rope_fps"),
    (_whole(0, LONG), "seed"),
    # data
    (_whole(1, 10**5), "data.max_frames frames_per_read"),
    (_above(0, 1e12), "data.weights"),
    (Range(0, 1e6), "motion_strength"),
    (_SHARE, "motion_dropout"),
    (_SHARE, "image_share fps_dropout unknown_share fps_slack degrade.share"),
    (Range(0, 51), "degrade.amount"),
    (Range(0, 1, below=True), "references.noise reference_noise given.noise image_noise"),
    (_whole(1, 2**26), "tokens_per_pack"),
    (_whole(1, 2**16), "packs_per_step"),
    (_whole(0, 256), "workers"),
    (Range(1e-3, 86_400), "timeout_s"),
    (Range(0, 86_400), "retry_s"),
    (Range(1, 604_800), "collective_timeout_s"),
    (_whole(1, 4096), "batch"),
    # curation
    (Range(0, 1e3), "shots.threshold min_content"),
    (Range(0, 3600), "shortest_s"),
    (_whole(1, 10**5), "min_frames segments.max_frames"),
    (_whole(0, 1000), "margin"),
    (_whole(256, 2**26), "measures.area"),
    (Range(0, 64), "distance"),
    (Range(0, 1), "similarity"),
    (_whole(1, 1000), "measures.frames captions.frames"),
    (_whole(1, 10**5), "max_tokens"),
    (_SHARE, "split.validation"),
    # optimiser and loop
    (_above(0, 10), "lr vector_lr adversarial_lr critic_lr"),
    (Range(0, 1, below=True), "betas momentum ema"),
    (_above(0, 1), "eps"),
    (Range(0, 100), "weight_decay"),
    (_COUNT_OR_NONE, "warmup every keep_every step"),
    (_SHARE, "final"),
    (Range(0, 1e9), "clip"),
    (_above(0, 1e12), "skip_norm"),
    (_COUNT, "train.steps max_bad_steps decay_steps decay_from log.every"),
    (_whole(0, 1000), "log.profile"),
    (_whole(1, 1024), "sequence_parallel"),
    (_whole(1, 10**6), "keep_last"),
    # measurements
    (_whole(1, 10**7), "samples statistics_samples digits.train digits.val"),
    (_whole(1, 1000), "bins critic_updates"),
    (_COUNT_OR_NONE, "endpoints"),
    # adapters
    (_whole(1, 4096), "adapter.rank"),
    (_above(0, 1e6), "adapter.alpha"),
    (Range(0, 1, below=True), "adapter.dropout"),
    (_whole(1, 1000), "controlnet.every temporal_every"),
    (Range(-100, 100), "control_scale"),
    (_whole(2, 10**6), "clips"),
    (_whole(1, 10**6), "prior.clips"),
    (Range(0, 1, above=True, below=True), "prior.share"),
    (_whole(1, 10**9), "max_clips max_real"),
    (_whole(0, 10**6), "pictures resamples attention shown"),
    (_whole(1, 10**6), "pairs prompts heldout"),
    (_whole(1, 4096), "chunk"),
    # losses
    (Range(0, 1e6), "l1 charbonnier mse temporal kl lpips adversarial r1"),
    (_SHARE, "equivariance"),
    (Range(0, 2), "r1_sigma"),
    (_whole(1, 10**4), "lpips_frames"),
    (_COUNT_OR_NONE, "adversarial_start"),
    (Range(0, 1e12), "adaptive_max"),
    # noise levels
    (Range(-20, 20), "timesteps.mean"),
    (_above(0, 100), "timesteps.std"),
    (Range(-1, 2 / (math.pi - 2)), "timesteps.scale"),
    (_SHARE, "timesteps.low timesteps.high"),
    (Range(1e-3, 1000), "shift snr_shift_scale"),
    (_whole(1, 2**31 - 1), "base_tokens shift_tokens"),
    (Range(-20, 20), "log_shift"),
    (Range(0, 1, below=True), "lowest terminal"),
    (_SHARE, "timesteps.uniform"),
    (_above(0, 1e6), "weighting.gamma"),
    (_above(0, 1e9), "preference.beta"),
    (Range(-50, 50), "weighting.bias"),
    (Range(0, 1e9), "given.plain given.first given.prefix given.ends given.random given.independent"),  # any unit
    (Range(0, 1e9), "given.inpaint given.outpaint"),
    (Range(0, 1, above=True, below=True), "beta_start beta_end"),
    (_whole(1, 10**6), "num_train_timesteps whole_steps"),
    (_whole(1, 65_535), "port"),
    (_whole(1, 10**6), "max_megabytes"),
    (_above(0, 1e6), "max_seconds"),
    (_above(0, 1e6), "sigma_min sigma_max"),
    (Range(1e-3, 1e3), "sigma_data"),
    (Range(1, 100), "rho"),
    # sampling
    (_whole(1, 10_000), "steps num_inference_steps teacher_steps n_max n_avg keyframe_every"),
    (Range(0, 1000), "guidance guidance_scale guidance_low guidance_embedded source_guidance"),
    (Range(-100, 100), "lora_scale"),
    (Range(0, 100), "style_scale"),
    (_SHARE, "guidance_rescale guidance_interval strength level control_start control_end"),
    (_whole(0, 10_000), "zero_init n_min"),
    (Range(0, 1e4), "reconstruction_weight"),
    # networks: arguments of constructors, and config.json of saved ones
    (_CHANNELS, "model.width text_width in_channels out_channels latent_channels widths block_out_channels"),
    (_CHANNELS, "decoder_block_out_channels base_dim z_dim norm_num_groups d_model d_kv"),
    (_whole(1, 64), "patch temporal_stride time_strides space_strides patch_size patch_size_t"),
    (_whole(1, 1000), "depth num_layers"),
    (_whole(1, 4096), "heads num_heads num_attention_heads motion_num_attention_heads"),
    (_whole(1, 65_536), "motion_max_seq_length"),
    (_whole(1, 64), "motion_transformer_layers_per_block motion_transformer_layers_per_mid_block"),
    (_above(0, 64), "mlp_ratio"),
    (Range(1, 1e9), "rope_theta"),
    (_whole(0, 1000), "encoder_depths decoder_depths num_decoder_layers num_res_blocks layers_per_block"),
    (Range(-1e6, 1e6), "latents_mean"),
    (_above(0, 1e6), "latents_std scaling_factor"),
    (_whole(1, 1024), "dim_mult"),
    (_SHARE, "dropout dropout_rate"),
    (_whole(1, 2**20), "d_ff"),
    (_whole(1, 10**7), "vocab_size"),
    (_above(0, 1), "layer_norm_epsilon"),
    (_whole(1, 65_536), "relative_attention_num_buckets"),
    (_COUNT, "relative_attention_max_distance"),
)
RANGES = {name: found for found, names in _NAMES for name in names.split()}


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

    read.range = found  # for those who ask what it takes
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
