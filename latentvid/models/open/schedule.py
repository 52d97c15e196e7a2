"""What a published scheduler_config.json means: arguments of `LatentVideoScheduler`, and the name of a solver; and what
a guider_config.json means.

Defaults of keys that a file leaves out are those of diffusers' classes (diffusers/schedulers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...limits import shown
from ...weights import read_object
from .recipe import Recipe

Schedule = tuple[dict[str, Any], str]
_BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_TARGETS = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}
_UNKNOWN_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def read_schedule(folder: Path, recipe: Recipe, pipeline: str) -> Schedule:
    """Of a repository's folder "scheduler". Raises UserError, which names file and key, for what has no equal here."""
    file = folder / "scheduler_config.json"
    held = read_object(file)
    name = held.get("_class_name")
    if name not in SCHEDULERS:
        raise UserError(f"{file}: _class_name={shown(name)}: must be one of {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name](Config(file, held), recipe, pipeline)


def read_guidance(folder: Path) -> dict[str, float]:
    """Of a repository's folder "guider", a `ClassifierFreeGuidance`: guidance and its rescale, for a `Recipe`."""
    file = folder / "guider_config.json"
    config = Config(file, read_object(file))
    config.want({"use_original_formulation": False, "start": 0.0, "stop": 1.0})
    scale = config.number("guidance_scale", 7.5) if config.get("enabled", True) else 1.0
    return {"guidance": float(scale), "guidance_rescale": float(config.number("guidance_rescale", 0.0))}


class Config:
    """A scheduler's or guider's file: `get` with a class's default, `want` for what must have one value."""

    def __init__(self, file: Path, held: Mapping[str, Any]) -> None:
        self.file, self.held = file, held

    def get(self, key: str, default: Any) -> Any:
        return self.held.get(key, default)

    def number(self, key: str, default: float) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{self.file}: {key}={shown(value)}: must be a number")
        return value

    def want(self, wanted: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        for key, value in wanted.items():
            if (found := self.get(key, (defaults or wanted).get(key, value))) != value:
                raise UserError(
                    f"{self.file}: {key}={shown(found)}: only {shown(value)} can be sampled here; use diffusers"
                )

    def choice(self, key: str, default: str, table: Mapping[str, str]) -> str:
        found = self.get(key, default)
        if found not in table:
            raise UserError(f"{self.file}: {key}={shown(found)}: must be one of {', '.join(table)}")
        return table[found]


def _flow_euler(config: Config, recipe: Recipe, pipeline: str) -> Schedule:
    """`FlowMatchEulerDiscreteScheduler`."""
    config.want(dict.fromkeys((*_UNKNOWN_SPACINGS, "stochastic_sampling"), False))
    config.want({"invert_sigmas": pipeline == "MochiPipeline"}, {"invert_sigmas": False})
    steps = config.number("num_train_timesteps", 1000)
    spacing = recipe.scheduler.get("spacing", "even")
    made: dict[str, Any] = {"path": "rectified_flow", "target": "flow", "spacing": spacing}
    if config.get("use_dynamic_shifting", False):
        config.want({"time_shift_type": "exponential"})
        made["log_shift"] = [config.number("base_shift", 0.5), config.number("max_shift", 1.15)]
        made["shift_tokens"] = [config.number("base_image_seq_len", 256), config.number("max_image_seq_len", 4096)]
    else:
        made["shift"] = float(config.number("shift", 1.0))
    if config.get("shift_terminal", None):
        made["terminal"] = config.number("shift_terminal", 0.0)
    if spacing == "points":  # the lowest level of its table, which is shifted already
        factor = made.get("shift", 1.0)
        made["lowest"] = factor / (steps + factor - 1)
    return made, "euler"


def _unipc(config: Config, recipe: Recipe, pipeline: str) -> Schedule:
    """`UniPCMultistepScheduler` of flows."""
    config.want(
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        {"use_flow_sigmas": False, "prediction_type": "epsilon"},
    )
    config.want({"solver_order": 2, "solver_type": "bh2", "predict_x0": True, "lower_order_final": True})
    config.want({"final_sigmas_type": "zero", "thresholding": False, "disable_corrector": [], "solver_p": None})
    config.want(dict.fromkeys((*_UNKNOWN_SPACINGS, "use_dynamic_shifting"), False) | {"shift_terminal": None})
    steps = int(config.number("num_train_timesteps", 1000))
    made: dict[str, Any] = {"path": "rectified_flow", "target": "flow", "whole_steps": steps}
    made["shift"] = float(config.number("flow_shift", 1.0))
    if (spacing := recipe.scheduler.get("spacing", "even")) == "points":  # the pipeline leaves it to the scheduler
        made |= {"lowest": 1 / steps}
    else:
        made["spacing"] = spacing
    return made, "unipc"


def _cogvideox(config: Config, solver: str) -> Schedule:
    """`CogVideoXDDIMScheduler` and `CogVideoXDPMScheduler`."""
    config.want({"timestep_spacing": "trailing"}, {"timestep_spacing": "leading"})
    config.want({"set_alpha_to_one": True, "trained_betas": None})
    return {
        "path": "ddpm",
        "betas": config.choice("beta_schedule", "scaled_linear", _BETAS),
        "beta_start": config.number("beta_start", 0.00085),
        "beta_end": config.number("beta_end", 0.012),
        "num_train_timesteps": int(config.number("num_train_timesteps", 1000)),
        "snr_shift_scale": float(config.number("snr_shift_scale", 3.0)),
        "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False)),
        "target": config.choice("prediction_type", "epsilon", _TARGETS),
    }, solver


_SPACINGS = {"trailing": "even", "leading": "leading", "linspace": "points"}


def _ddpm(config: Config, recipe: Recipe, solver: str) -> Schedule:
    """Those of Stable Diffusion: steps of DDPM. The last step leads to clean latents whatever `set_alpha_to_one` says,
    and as far as the next one even where diffusers' DDIM counts another distance (`linspace`)."""
    name = config.held["_class_name"]
    if recipe.scheduler.get("path") != "ddpm":
        raise UserError(f"{config.file}: _class_name={name!r} is of DDPM's noise, and this model has another")
    config.want({"num_train_timesteps": 1000, "trained_betas": None, "thresholding": False})
    config.want({"clip_sample": False}, {"clip_sample": name in ("DDIMScheduler", "DDPMScheduler")})
    config.want(dict.fromkeys((*_UNKNOWN_SPACINGS, "use_lu_lambdas", "use_flow_sigmas"), False))
    config.want({"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "solver_order": 2})
    usual = "linspace" if name.startswith(("Euler", "DPM", "LMS")) else "leading"
    spacing = config.choice("timestep_spacing", usual, _SPACINGS)
    made = {
        "path": "ddpm",
        "betas": config.choice("beta_schedule", "linear", _BETAS),
        "beta_start": config.number("beta_start", 0.0001),
        "beta_end": config.number("beta_end", 0.02),
        "num_train_timesteps": 1000,
        "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False)),
        "target": config.choice("prediction_type", "epsilon", _TARGETS),
        "spacing": spacing,
    }
    if spacing != "even":
        first = config.number("steps_offset", 0) if spacing == "leading" else 0
        made["lowest"] = (first + 1) / 1000
    return made, solver


def _euler_of_edm(config: Config, recipe: Recipe) -> Schedule:
    """`EulerDiscreteScheduler` with the sigmas and the preconditioning of EDM (Karras et al. 2022), as Stable Video
    Diffusion has it."""
    config.want(
        {"prediction_type": "v_prediction", "timestep_type": "continuous", "use_karras_sigmas": True},
        {"prediction_type": "epsilon", "timestep_type": "discrete", "use_karras_sigmas": False},
    )
    config.want({"final_sigmas_type": "zero", "use_exponential_sigmas": False, "use_beta_sigmas": False})
    return {
        "path": "edm",
        "target": "v",
        "spacing": "karras",
        "sigma_data": 1.0,
        "sigma_min": float(config.number("sigma_min", recipe.scheduler["sigma_min"])),
        "sigma_max": float(config.number("sigma_max", recipe.scheduler["sigma_max"])),
        "rho": 7.0,
    }, "euler"


SCHEDULERS: dict[str, Callable[[Config, Recipe, str], Schedule]] = {
    "FlowMatchEulerDiscreteScheduler": _flow_euler,
    "UniPCMultistepScheduler": _unipc,
    "EulerDiscreteScheduler": lambda config, recipe, pipeline: (
        _euler_of_edm(config, recipe) if recipe.scheduler.get("path") == "edm" else _ddpm(config, recipe, "euler")
    ),
    "CogVideoXDDIMScheduler": lambda config, recipe, pipeline: _cogvideox(config, "euler"),
    "CogVideoXDPMScheduler": lambda config, recipe, pipeline: _cogvideox(config, "cogvideox_dpm"),
    **dict.fromkeys(
        ("DDIMScheduler", "PNDMScheduler", "LMSDiscreteScheduler"),
        lambda config, recipe, pipeline: _ddpm(config, recipe, "euler"),
    ),
    "DDPMScheduler": lambda config, recipe, pipeline: _ddpm(config, recipe, "ddpm"),
    "DPMSolverMultistepScheduler": lambda config, recipe, pipeline: _ddpm(config, recipe, "dpmpp_2m"),
    "EulerAncestralDiscreteScheduler": lambda config, recipe, pipeline: _ddpm(config, recipe, "ddpm"),
}
