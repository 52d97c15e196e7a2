"""Training from shards, Parquet and URLs is training from files: the same losses, and exact when it goes on."""

import pytest
from comparing import losses
from far_storage import as_parquet, as_tar, far_storage

from latentvid.training.stages.vae.task import VaeTask
from latentvid.training.trainer import train

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture
def far(monkeypatch, tmp_path):
    yield from far_storage(monkeypatch, tmp_path / "cache")


def test_shards_parquet_and_urls_train_to_the_same_losses(far, vae_config, digits_data, tmp_path):
    manifest = digits_data / "train.jsonl"
    as_tar(manifest, tmp_path / "train.tar"), as_parquet(manifest, tmp_path / "train.parquet")
    far.put_folder(digits_data)
    far.put(tmp_path / "train.tar", "train.tar")
    places = {
        "folder": manifest,
        "tar": tmp_path / "train.tar",
        "parquet": tmp_path / "train.parquet",
        "url": "memory://bucket/train.jsonl",
        "url of a shard": "memory://bucket/train.tar",
    }
    found = {}
    for name, place in places.items():
        run = tmp_path / name
        train(vae_config(run, f"data.manifest={place}", "train.steps=3", "checkpoint.every=1"), VaeTask)
        found[name] = losses(run)
    assert len(found["folder"]) == 3 and all(each == found["folder"] for each in found.values()), found
