"""Makes the clips of a subject's class before a run, by the model that it begins with: each of its own prompt and seed,
in packs that do not depend on the number of processes, so that a stop in between, or other processes, change nothing.
"""

from __future__ import annotations

import gc
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ....attention import resolve_backend
from ....config.curriculum import curriculum
from ....config.prior import Prior
from ....config.schema import DitConfig
from ....config.sections import Adapter, several
from ....config.yaml_files import read_yaml
from ....data.cache.latents import LatentCaches
from ....data.manifest.manifest import write_manifest
from ....errors import UserError
from ....files import check_writable
from ....packing import patch_stride, token_grid
from ....pipelines.latent_video import LatentVideoPipeline
from ....pipelines.open_video import OpenVideoPipeline
from ....pipelines.prompts import Row, sample_prompts
from ....pipelines.sampling import Sampling
from ....words import counted
from ....world import from_main, process_state
from .encode import EncodeConfig, encode_manifest
from .network import check_shared
from .parts import compute_dtype, load_parts, make_pipeline
from .prior import LATENTS, MANIFEST, folder_of
from .published import published_of
from .seen import defaults_of, seen_by

CLIPS = 8  # of a pack: what a stop loses at most, on each process
ENCODED = 16  # clips that are encoded together
SIZES = ("frames", "height", "width")
USUAL = (*SIZES, "fps", "steps", "guidance", "guidance_interval")
INSTEAD = "put clips of the class into a manifest of their own, beside data.manifest, with data.weights"


def make_prior(config: DitConfig, device: torch.device, make_task: Callable[..., Any]) -> None:
    """Makes what `prior` asks for and the folder does not hold yet; called on every process. The manifest is there when
    all is. Raises UserError where the folder holds clips of something else.

    make_task: `DitTask`, which gives the model of `init` its weights.
    """
    folder, prompts = folder_of(config), from_main(lambda: prompts_of(config.prior))
    _check_data(config)
    from_main(lambda: check_writable(folder, "give another prior.dir"))
    pipeline = base_pipeline(config, device, make_task)
    try:
        rows = rows_of(config, pipeline, prompts)
    except UserError as error:
        raise UserError(f"prior: {error}") from error
    scale, state = config.prior.guidance, process_state()
    guidance = None if scale is None else replace(pipeline.guidance(), scale=scale)
    sampling = Sampling(steps=config.prior.steps, guidance=guidance, large=True)
    each = _tokens(pipeline, rows[0].frames, rows[0])
    budget = min(config.data.tokens_per_pack, CLIPS * each)
    words = {"tokens_per_pack": max(each, budget), "steady": True, "option": "prior.dir"}
    sample_prompts(pipeline, rows, folder, sampling, state, **words)
    side = patch_stride(pipeline.transformer.patch)
    del pipeline
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    from_main(lambda: _write_manifest(folder / MANIFEST, rows, config))
    if config.data.latents is not None:
        _encode(config, folder, side)


def prompts_of(prior: Prior) -> list[str]:
    """Raises UserError for a file of no use, and for more prompts than clips."""
    prompts, key = list(prior.prompts), "prior.prompts"
    if prior.prompts_file is not None:
        key = f"prior.prompts_file {prior.prompts_file}"
        try:
            lines = prior.prompts_file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{key} cannot be read ({error}): give a text file in UTF-8, a prompt a line") from None
        prompts = [" ".join(line.split()) for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{key} has no prompt: write one a line")
    if len(prompts) > prior.clips:
        raise UserError(
            f"{key} has {counted(len(prompts), 'prompt')}, but prior.clips is {prior.clips}: raise it, or name fewer"
        )
    return prompts


def _check_data(config: DitConfig) -> None:
    """Raises UserError where there is nothing beside which the clips would be trained on."""
    stages = [stage.config for stage in curriculum(config)]
    if any(stage.data.manifest is None and stage.data.latents is None for stage in stages):
        raise UserError("prior: give the subject's clips too, by data.manifest or data.latents")
    if len(stages) > 1 and any(stage.data.latents is not None for stage in stages):
        raise UserError("prior with stages is of clips: set data.manifest instead of data.latents")


# --- the model ---


def base_pipeline(config: DitConfig, device: torch.device, make_task: Callable[..., Any]) -> LatentVideoPipeline:
    """The model that the run begins with, with nothing beside its own weights, and its defaults."""
    alone = replace(config, train=replace(config.train, sequence_parallel=1))
    if (published := published_of(config)) is not None:
        if published.recipe.task == "i2v":
            raise UserError(f"prior: this model makes clips of pictures, not of prompts alone: {INSTEAD}")
        parts = load_parts(alone, device, published)
        dtype = torch.bfloat16 if config.model.get("dtype") == "bf16" else torch.float32
        given = {"vae": parts.vae, "scheduler": parts.scheduler, "reader": parts.text}
        given |= {} if parts.image is None else {"image_reader": parts.image}
        pipeline = OpenVideoPipeline.of(published, dtype, **given)
    else:
        task = make_task(replace(alone, adapter=Adapter(), trainable=()), device, data=False, begin=True)
        usual = usual_of(config.init, task.weights.beside.get("pipeline"))
        if lacking := [name for name in SIZES if name not in usual and getattr(config.prior, name) is None]:
            raise UserError(f"prior.{lacking[0]}: init={config.init} does not say what it was trained on: give it")
        interval = usual.pop("guidance_interval", None)
        inference = replace(task.config.inference, guidance_interval=interval and tuple(interval))
        shown = replace(task.config.samples, **usual)
        own = replace(task.config, samples=shown, inference=inference)
        pipeline = make_pipeline(own, task.parts, task.model.eval())
    for expert in pipeline.experts:
        check_shared(None, expert)
        expert.attention_backend = resolve_backend(config.attention, device, compute_dtype(config))
    return pipeline.to(device)


def usual_of(init: str, index: dict[str, Any] | None) -> dict[str, Any]:
    """Size, length, rate, steps and guidance that a model makes by default, as far as the pipeline's index that it lies
    in, or the run that trained it, says."""
    if index is not None:
        usual = {name: index[name] for name in USUAL if index.get(name) is not None}
        return usual | ({"guidance": 1.0} if index.get("student") else {})  # which a student has in its weights
    folder = Path(init).expanduser().resolve()
    run = next((place for place in (folder, folder.parent.parent) if (place / "config.yaml").is_file()), None)
    if run is None:
        return {}
    told = read_yaml(run / "config.yaml").get("inference")
    told = told if isinstance(told, dict) else {}
    kept = ("steps", "guidance", "guidance_interval")
    return {name: told[name] for name in kept if name in told} | defaults_of(seen_by(run))


# --- the clips ---


def rows_of(config: DitConfig, pipeline: LatentVideoPipeline, prompts: list[str]) -> list[Row]:
    """The clips to make. Raises UserError for what the model cannot make, or the run not train on."""
    prior = config.prior
    asked = {name: getattr(prior, name) for name in (*SIZES, "fps")}
    sizes = {name: pipeline.config[name] if value is None else value for name, value in asked.items()}
    negative = pipeline.negative_prompt
    pipeline.reader.check([*prompts, negative])
    ending = "png" if sizes["frames"] == 1 else "mp4"
    rows = [
        Row(
            file=f"{i:05d}.{ending}",
            prompt=prompts[i % len(prompts)],
            negative_prompt=negative,
            seed=prior.seed + i,
            **sizes,
        )
        for i in range(prior.clips)
    ]
    pipeline.latent_grid(*(sizes[name] for name in SIZES))
    for stage in curriculum(config):
        data, stride = stage.config.data, pipeline.codec.temporal_stride
        window = 1 + (min(sizes["frames"], data.max_frames) - 1) // stride * stride
        smaller = data.max_area is not None and sizes["height"] * sizes["width"] > data.max_area
        tokens = _tokens(pipeline, window, rows[0])
        if not smaller and tokens > data.tokens_per_pack:
            raise UserError(
                f"a clip of {counted(window, 'frame')} of {sizes['height']} x {sizes['width']} has "
                f"{counted(tokens, 'token')}, and a pack "
                f"holds {data.tokens_per_pack:,}: raise data.tokens_per_pack, or set prior.frames, height and width"
            )
    return rows


def _tokens(pipeline: LatentVideoPipeline, frames: int, row: Row) -> int:
    return math.prod(token_grid(pipeline.latent_grid(frames, row.height, row.width), pipeline.transformer.patch))


def _write_manifest(path: Path, rows: list[Row], config: DitConfig) -> None:
    """Raises UserError where there is one of other clips."""
    table, names = [], (config.data.path_column or "path", config.data.caption_column or "caption")
    for row in rows:
        fps = 0.0 if row.frames == 1 else row.fps
        facts = {"frames": row.frames, "fps": fps, "height": row.height, "width": row.width}
        table.append({"path": row.file, "caption": row.prompt, names[0]: row.file, names[1]: row.prompt, **facts})
    if path.is_file():
        try:
            there = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):
            there = []
        if there != table:
            raise UserError(
                f"{path} lists {counted(len(there), 'clip')}, which are not the {len(table)} that prior "
                "asks for: give another "
                f"prior.dir, or remove that file"
            )
        return
    write_manifest(path, table)


def _encode(config: DitConfig, folder: Path, side: int) -> None:
    """The clips as the caches of the subject have theirs."""
    key = LatentCaches(several(config.data.latents), config.data.retry_s).caches[0].key
    cut = key.get("transform", {})
    fps = cut.get("fps")
    said = encode_manifest(
        EncodeConfig(
            manifest=folder / MANIFEST,
            vae=config.vae,
            text_encoder=config.text_encoder,
            out=folder / LATENTS,
            max_frames=cut.get("max_frames", config.data.max_frames),
            max_area=cut.get("max_area", config.data.max_area),
            patch=side,
            batch=ENCODED,
            mixed_precision="bf16" if key.get("computed") == "bf16" else "no",
            caption_too_long=config.caption.too_long,
            unknown_share=config.caption.unknown_share,
            fps=tuple(fps) if isinstance(fps, list) else fps,
            fps_slack=cut.get("fps_slack", config.data.fps_slack),
            text_dtype=config.text.dtype,
            model=config.model.get("from"),
        )
    )
    if said:
        print(said, file=sys.stderr, flush=True)
