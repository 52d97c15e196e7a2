"""Encoding and training from a real S3 API on loopback, with faults: the same losses as from local files."""

import shutil
import subprocess
import sys

import pytest
from comparing import losses
from curated_footage import in_a_loop
from far_storage import as_parquet, as_tar
from s3_server import s3_server

from latentvid.curation.run import curate
from latentvid.curation.settings import Captions, Curation, Duplicates, Segments, Shots
from latentvid.curation.writing import OUTPUTS
from latentvid.data.access.copies import copy
from latentvid.data.cache.latents import LatentCache
from latentvid.data.manifest.manifest import read_manifest
from latentvid.errors import StorageError
from latentvid.places import join
from latentvid.training.checkpoint.checkpoint import CheckpointStore
from latentvid.training.stages.dit.encode import EncodeConfig, encode_manifest
from latentvid.training.stages.dit.task import DitTask
from latentvid.training.stages.vae.task import VaeTask
from latentvid.training.trainer import train

pytest.importorskip("s3fs")
pytest.importorskip("moto")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fresh_accelerate")]


@pytest.fixture
def bucket(monkeypatch, tmp_path, digits_data):
    """The digits in s3://bucket, as files, a shard and Parquet; the proxy that fails."""
    import s3fs

    monkeypatch.setenv("LATENTVID_CACHE", str(tmp_path / "cache"))
    with s3_server(faults=True) as (environment, proxy):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        as_tar(digits_data / "train.jsonl", tmp_path / "train.tar")
        as_parquet(digits_data / "train.jsonl", tmp_path / "train.parquet")
        for source in (digits_data, tmp_path / "train.tar", tmp_path / "train.parquet"):
            copy(source, "s3://bucket" if source is digits_data else f"s3://bucket/{source.name}")
        yield proxy
        s3fs.S3FileSystem.clear_instance_cache()


def test_encoding_and_training_from_s3_with_faults(bucket, vae_config, dit_config, digits_data, tmp_path, caplog):
    places = {"local": digits_data / "train.jsonl"}
    places |= {name: f"s3://bucket/train.{name}" for name in ("jsonl", "tar", "parquet")}
    steps = ("train.steps=4", "checkpoint.every=2")
    for name, place in places.items():
        workers = f"data.workers={2 if name == 'jsonl' else 0}"
        train(vae_config(tmp_path / f"vae-{name}", f"data.manifest={place}", workers, *steps), VaeTask)
    assert all(losses(tmp_path / f"vae-{name}") == losses(tmp_path / "vae-local") for name in places)
    vae, text = dit_config(tmp_path / "x").vae, dit_config(tmp_path / "x").text_encoder
    sizes = {"max_frames": 17, "max_area": None, "patch": 2, "batch": 4, "mixed_precision": "no"}
    for name, place in places.items():
        encode_manifest(EncodeConfig(place, vae, str(text), tmp_path / f"latents-{name}", **sizes))
        run = tmp_path / f"dit-{name}"
        train(dit_config(run, f"data.latents={tmp_path / f'latents-{name}'}", *steps), DitTask)
        assert LatentCache(tmp_path / f"latents-{name}").check_clips() == []
    assert all(losses(tmp_path / f"dit-{name}") == losses(tmp_path / "dit-local") for name in places)
    assert bucket.injected > 10
    assert not [*tmp_path.glob("*/quarantine.jsonl")]
    written = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size < 2**22]
    assert not any(b"hunter2" in data for data in written) and "hunter2" not in caplog.text


def test_curation_in_s3_with_faults_writes_the_bytes_of_folders_and_trains_the_same(
    bucket, vae_config, digits_data, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    shutil.copytree(digits_data, tmp_path / "data")
    settings = Curation(
        shots=Shots(detector="none"),
        segments=Segments(min_frames=5, max_frames=9),
        duplicates=Duplicates(remove=False),
        captions=Captions(template="a clip of {stem}"),
    )
    places = {"far": "s3://bucket", "near": tmp_path / "data"}
    for name, place in places.items():
        summary = curate(settings, place, join(str(place), "curated"), in_a_loop())
        assert summary.train["segments"] >= 10 and not summary.bad
        manifest = f"data.manifest={join(str(place), 'curated/train.parquet')}"
        train(vae_config(tmp_path / name, manifest, "train.steps=4"), VaeTask)
    copy("s3://bucket/curated", tmp_path / "copied")
    for name in OUTPUTS:
        assert (tmp_path / "copied" / name).read_bytes() == (tmp_path / "data" / "curated" / name).read_bytes()
    assert losses(tmp_path / "far") == losses(tmp_path / "near") and bucket.injected > 10


def test_a_checkpoint_goes_to_s3_and_a_run_goes_on_from_it(bucket, vae_config, tmp_path):
    place = "data.manifest=s3://bucket/train.jsonl"
    train(vae_config(tmp_path / "whole", place, "train.steps=4", "checkpoint.every=2"), VaeTask)
    step = CheckpointStore(tmp_path / "whole" / "checkpoints").path(2)
    copy(step, "s3://bucket/run/step-00000002")
    copy("s3://bucket/run/step-00000002", tmp_path / "on" / "checkpoints" / "step-00000002")
    for name in ("config.yaml", "run.json"):
        if (tmp_path / "whole" / name).is_file():
            (tmp_path / "on" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    train(vae_config(tmp_path / "on", place, "train.steps=4", "checkpoint.every=2"), VaeTask)
    assert losses(tmp_path / "on") == losses(tmp_path / "whole")[2:]


def test_a_bucket_that_is_gone_is_one_message(bucket, tmp_path):
    with pytest.raises(StorageError, match="s3://elsewhere is not there"):
        read_manifest("s3://elsewhere/train.jsonl")
    words = ["-m", "latentvid", "train-vae", "small", "--data.manifest=s3://elsewhere/x.jsonl"]
    done = subprocess.run([sys.executable, *words, f"--run.dir={tmp_path / 'run'}"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("s3://elsewhere is not there") == 1
    assert "Traceback" not in done.stderr and "hunter2" not in done.stderr + done.stdout
