"""What the golden files hold: each case computes its outputs from stored weights and inputs.

A case is a function {name: tensor} of weights and inputs -> {name: tensor} of outputs. `make.py` stored what they gave
when the files were made; `test_golden.py` compares what they give now.

Axes: T tokens, P token features, R latent frames, S text tokens, K steps; clips are [B,3,F,H,W], latents [C,f,h,w].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentvid.data.plan.plan import Plan
from latentvid.data.plan.source import Stream
from latentvid.diffusion.guidance import Guidance, reconstruction_guided
from latentvid.diffusion.masks import GivenFrames
from latentvid.diffusion.scheduler import LatentVideoScheduler
from latentvid.diffusion.solvers import SOLVERS, solve
from latentvid.diffusion.timesteps import TimestepSampling
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed
from latentvid.pipelines.latent_video import LatentVideoPipeline
from latentvid.pipelines.sampling import Request, Sampling
from latentvid.rng import derived_seed, generator

FOLDER = Path(__file__).parent
Tensors = dict[str, Tensor]

GRIDS = [(3, 2, 1), (1, 3, 2), (4, 1, 5), (2, 3, 4)]  # all axes differ, so that none may stand for another
WORDS = [4, 1, 3, 2]
DIT = dict(latent_channels=2, patch=2, width=16, depth=2, heads=2, mlp_ratio=2.0, text_width=6, rope_theta=100.0)
VAE = dict(latent_channels=2, patch=2, widths=(4, 6, 4), time_strides=(2, 2), space_strides=(2, 1))
STATISTICS = dict(latents_mean=(0.5, -0.25), latents_std=(2.0, 0.75))
PATHS = {
    "rectified_flow": dict(path="rectified_flow", target="flow"),
    "cosine": dict(path="cosine", target="v"),
    "ddpm": dict(path="ddpm", target="eps"),
    "ddpm_zero_snr": dict(path="ddpm", target="v", betas="scaled_linear", zero_terminal_snr=True),
}
PURPOSES = (
    *("noise", "timestep", "given", "caption-dropout", "posterior"),  # of training the transformer
    *("window", "crop", "flip", "lpips", "r1"),  # of reading clips, and of training the autoencoder
    *("sample", "rollout", "infill", "noised"),  # of making clips
    "fps-dropout",
)


def wave(*shape: int, start: int = 0) -> Tensor:
    """Numbers in [-1,1] without a random generator, and of full rank: sines of squares."""
    k = torch.arange(start, start + torch.Size(shape).numel(), dtype=torch.float64)
    return (0.37 * k.square() + k).sin().float().reshape(shape)


def dit_inputs() -> Tensors:
    layout = Packed.of(GRIDS)
    return {
        "tokens": wave(layout.tokens, 8),
        "timestep": wave(layout.frames, start=3).abs(),
        "text": 2 * wave(sum(WORDS), 6, start=9),
    }


def dit(given: Tensors) -> Tensors:
    """The prediction [T,P] of each kind of attention, and the norms of the gradients, by the parameters' names."""
    found = {}
    for attention in ("full", "factorised", "causal"):
        model = _filled(VideoDiT(**DIT, attention=attention), given)
        out = model(given["tokens"], given["timestep"], given["text"], Packed.of(GRIDS), Packed.of_lengths(WORDS))
        (out * wave(*out.shape, start=5)).sum().backward()
        found[f"{attention}.prediction"] = out.detach()
        norms = {name: p.grad.norm() for name, p in model.named_parameters()}
        found[f"{attention}.gradient_norms"] = torch.stack([norms[name] for name in sorted(norms)])
    return found


def vae_inputs() -> Tensors:
    latent = (1, 2, 3, 2, 3)
    return {"video": wave(1, 3, 9, 8, 12), "latent": wave(*latent, start=7), "noise": wave(*latent, start=2)}


def vae(given: Tensors) -> Tensors:
    """Posterior, decoded clip, training pass, and latents by the statistics of the config."""
    model = _filled(CausalVideoAutoencoder(**VAE, **STATISTICS), given)
    with torch.no_grad():
        posterior = model.encode(given["video"]).latent_dist
        reconstruction, _, _ = model(given["video"], given["noise"])
        return {
            "mean": posterior.mean,
            "std": posterior.std,
            "decoded": model.decode(given["latent"]).sample,
            "reconstruction": reconstruction,
            "normalised": model.normalise(given["latent"]),
            "denormalised": model.denormalise(given["latent"]),
        }


def diffusion_inputs() -> Tensors:
    tokens = Packed.of(GRIDS).tokens
    return {name: wave(tokens, 2, start=17 * i) for i, name in enumerate(("x", "eps", "more", "prediction", "weights"))}


def diffusion(given: Tensors) -> Tensors:
    """Noised tokens, targets and steps of each path, and what each solver comes to with a simple network."""
    layout, found = Packed.of(GRIDS), {}
    t = (0.15 + 0.7 * wave(layout.frames, start=4).abs()).mul(1000).round() / 1000
    s = (t / 3).mul(1000).round() / 1000
    t, s = (level.index_select(0, layout.frame)[:, None] for level in (t, s))
    for name, settings in PATHS.items():
        scheduler = LatentVideoScheduler(**settings, shift=2.0, base_tokens=16)
        z = scheduler.mix(given["x"], given["eps"], t)
        found[f"{name}.mixed"], found[f"{name}.target"] = z, scheduler.target(given["x"], given["eps"], t)
        found[f"{name}.euler_step"] = scheduler.step(given["prediction"], t, s, z)
        found[f"{name}.ancestral_step"] = scheduler.step(given["prediction"], t, s, z, noise=given["more"])
        found[f"{name}.levels"] = scheduler.levels(5, tokens=24)
        for solver in SOLVERS:
            found[f"{name}.{solver}"] = _solved(scheduler, layout, solver, given)
    scheduler = LatentVideoScheduler()
    level = t.new_full((layout.frames,), 0.6)
    guidance = Guidance(scale=4.0, rescale=0.7)
    found["guided"] = guidance.combine(given["prediction"], given["more"], level, layout)
    known = (layout.frame == 0)[:, None]
    predict = _network(layout, given)
    guided = reconstruction_guided(predict, scheduler, layout, known, given["x"], weight=2.0)
    found["reconstruction_guided"] = guided(given["eps"], level)
    return found


def _network(layout: Packed, given: Tensors) -> Callable[[Tensor, Tensor], Tensor]:
    """A smooth function of (z [T,P], levels [R]) that mixes features, tokens by their level alone."""

    def predict(z: Tensor, t: Tensor) -> Tensor:
        return given["weights"] * z.flip(1).tanh() + z.mul(0.3) - t.index_select(0, layout.frame)[:, None]

    return predict


def _solved(scheduler: LatentVideoScheduler, layout: Packed, solver: str, given: Tensors) -> Tensor:
    """[T,P] after 5 steps; the second frame is given."""
    levels = scheduler.levels(5, tokens=24)[:, None].repeat(1, layout.frames)  # [K+1,R]
    levels[:, 1] = 0.0
    z = torch.where((layout.frame == 1)[:, None], given["x"], given["eps"])
    draws = iter(range(100))
    noise = lambda: wave(*z.shape, start=1000 + 31 * next(draws))  # noqa: E731
    return solve(scheduler, _network(layout, given), z, levels, layout, solver=solver, noise=noise)


def draws() -> dict[str, Any]:
    """What seeds mean, as plain numbers: integers are exact, floats to rounding."""
    keys = [(seed, number, purpose) for purpose in PURPOSES for seed, number in ((0, 0), (7, 123_456_789_012))]
    integers = lambda *key: torch.randint(2**40, (3,), generator=generator(*key)).tolist()  # noqa: E731
    kinds = (dict(kind="uniform"), dict(kind="logit_normal", mean=0.5), dict(kind="mode"), dict(shift=3.0))
    levels = [TimestepSampling(**kind).draw(generator(7, 5, "timestep"), 64, 3).tolist() for kind in kinds]
    masks = GivenFrames(plain=1.0, first=1.0, prefix=1.0, ends=1.0, random=1.0, independent=1.0)
    given = [masks.draw(generator(7, number, "given"), 5) for number in range(24)]
    return {
        "seeds": [derived_seed(*key) for key in keys],
        "integers": [integers(*key) for key in keys],
        "noise levels": levels,
        "given frames": [[*map(int, frames.tolist()), int(independent)] for frames, independent in given],
        "plan": _steps(),
    }


def _steps() -> list[list[list[int]]]:
    """[number, index] of each draw, a list a pack, of the first steps of a plan of two sources: some two epochs."""
    tokens = [40, 10, 25, 30, 10, 10, 50, 20, 15, 10, 35, 45]
    streams = [Stream(np.arange(8), 2.0), Stream(np.arange(8, 12), 1.0)]
    plan = Plan(tokens, budget=64, packs=2, seed=7, streams=streams)
    return [[[*draw] for draw in pack] for _ in range(5) for pack in plan.next().packs]


def _filled(model: torch.nn.Module, given: Tensors) -> torch.nn.Module:
    """The model with the stored weights, whose names are part of the format of saved folders."""
    prefix = "weights."
    weights = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    model.load_state_dict(weights, strict=True)
    return model


def weights_of(model: torch.nn.Module) -> Tensors:
    """Weights for a model of these shapes: no parameter is 0, or one of AdaLN-Zero's gates would hide the rest.

    They are numbers that fp16 has, which halves the files; the model computes with them in fp32.
    """
    made = {}
    for i, (name, value) in enumerate(model.state_dict().items()):
        size = 1.5 / max(1, value[0].numel()) ** 0.5 if value.ndim > 1 else 0.3  # of sines of variance 1/2
        base = 1.0 if value.ndim == 1 and name.endswith("norm.weight") else 0.0
        made[f"weights.{name}"] = (base + size * wave(*value.shape, start=1 + 101 * i)).half()
    return made


def sampled(pipeline: LatentVideoPipeline) -> Tensors:
    """Latents [C,f,h,w] and decoded clips uint8 [F,H,W,3] of three requests: plain, of another shape, and continued."""
    given = wave(2, 3, 4, 4)
    known = torch.tensor([True, False, False])[:, None, None]
    requests = [
        Request(prompt="a red 7 moves up", grid=(3, 4, 4), seed=3),
        Request(prompt="a blue 3", negative_prompt="a red 7", grid=(1, 4, 6), seed=4),
        Request(prompt="", grid=(3, 4, 4), seed=5, given=given, known=known),
    ]
    sampling = Sampling(steps=4, guidance=Guidance(scale=2.0), precision=torch.float32, progress=False)
    latents = pipeline.sample(requests, sampling)
    clips = pipeline.decode(latents, torch.float32)
    return {f"latent.{i}": z for i, z in enumerate(latents)} | {f"clip.{i}": clip for i, clip in enumerate(clips)}


CASES: dict[str, tuple[Callable[[], Tensors], Callable[[Tensors], Tensors]]] = {
    "dit": (lambda: weights_of(VideoDiT(**DIT)) | dit_inputs(), dit),
    "vae": (lambda: weights_of(CausalVideoAutoencoder(**VAE)) | vae_inputs(), vae),
    "diffusion": (diffusion_inputs, diffusion),
}
