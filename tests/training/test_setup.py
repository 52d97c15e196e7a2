"""What a run refuses, or settles, before its first step."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from latentvid.config.parsing import load_config
from latentvid.config.schema import DitConfig, VaeConfig
from latentvid.data.clips import ClipSource, Transform
from latentvid.data.manifest.manifest import Manifest, Sample
from latentvid.errors import UserError
from latentvid.training import launch as setup
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.trainer import train


@pytest.mark.parametrize("dry", ["false", "true"])
def test_a_tracker_that_is_not_installed_is_an_error_before_the_work(dry, dit_config, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "is_wandb_available", lambda: False)
    config = dit_config(tmp_path / "run", "log.trackers=[tensorboard,wandb]", f"run.dry_run={dry}")
    with pytest.raises(UserError, match=r"log\.trackers names wandb.*pip install wandb, or set .*=\[tensorboard\]"):
        train(config, DitTask)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_tracker_that_cannot_start_is_one_message(dit_config, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setattr(setup.Accelerator, "init_trackers", refuse)
    with pytest.raises(UserError, match=r"cannot start \(no API key configured\).*wandb login"):
        train(dit_config(tmp_path / "run", "log.trackers=[tensorboard]"), DitTask)


CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("config", "kind", "stride", "windows"),
    [
        ("vae/small", VaeConfig, (4, 8), 2),
        ("vae/4x8x8", VaeConfig, (4, 8), 2),
        ("vae/8x32x32", VaeConfig, (8, 32), 2),
        ("dit/base", DitConfig, (4, 16), 6),
    ],
)
def test_windows_of_a_clip_are_read_together_in_the_shipped_configurations(config, kind, stride, windows):
    """As docs/data.md has it: of long 720p clips, cut and scaled as the configuration says."""
    more = ["data.latents=null"] if kind is DitConfig else []
    settings = load_config(kind, CONFIGS / f"{config}.yaml", ["data.manifest=x.jsonl", *more])
    temporal, spatial = stride
    transform = Transform(
        spatial_stride=spatial,
        temporal_stride=temporal,
        max_area=settings.data.max_area,
        max_frames=settings.data.max_frames,
        crop=getattr(settings.data, "crop", None),
    )
    samples = [Sample(f"{i}.mp4", "c", 1000, 24.0, 720, 1280) for i in range(200)]
    clips = ClipSource(Manifest.of("x", samples), transform)
    tokens = clips.per_shape(lambda f, h, w: (1 + (f - 1) // temporal) * (h // spatial) * (w // spatial))
    task = SimpleNamespace(
        clips=clips,
        tokens=tokens,
        costs=tokens.astype(float),
        sources=clips.sources,
        source_of=clips.source_of,
        source_weights=(),
        is_image=np.zeros(len(clips), bool),
    )
    plan = setup.make_plan(settings, task)
    files = [Counter(int(clips.windows.sample[draw.index]) for draw in pack) for pack in plan.next().packs]
    assert max(count for pack in files for count in pack.values()) >= windows
    assert len(set().union(*files)) > 1  # of several files
