"""The latent cache: what is written is read, and a stale, mixed, missing or damaged part is named."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from latentvid.data.latents import (
    INDEX,
    Encoded,
    LatentCache,
    cache_key,
    module_fingerprint,
    read_shard,
    shard_path,
    write_index,
    write_shard,
)
from latentvid.errors import UserError

KEY = cache_key("vae-1", "t5-1", {"max_frames": 17, "sides": (8, 8)})
GRIDS = {0: (1, 4, 4), 1: (3, 4, 6), 3: (5, 6, 4), 4: (1, 4, 4), 6: (3, 4, 6)}  # 2 and 5 could not be read


def entry(i: int) -> Encoded:
    source = torch.Generator().manual_seed(i)
    return Encoded(
        torch.randn(4, *GRIDS[i], generator=source),
        torch.rand(4, *GRIDS[i], generator=source),
        torch.randn(3 + i, 8, generator=source),
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """Seven windows in shards of three."""
    for shard in range(3):
        entries = {i: entry(i) for i in GRIDS if i // 3 == shard}
        write_shard(tmp_path, shard, KEY, entries, **({"null_text": torch.ones(1, 8)} if shard == 0 else {}))
    write_index(tmp_path, KEY, 3, GRIDS, channels=4, text_width=8, fps=8.0, dropped=[])
    return tmp_path


def test_round_trip(folder):
    cache = LatentCache(folder)
    assert (len(cache), cache.grids, cache.channels, cache.text_width) == (5, list(GRIDS.values()), 4, 8)
    for i, window in enumerate(GRIDS):  # numbered without the gaps
        read, written = cache.load(i), entry(window)
        for part in ("mean", "std", "text"):
            assert getattr(read, part).dtype == torch.float32
            assert torch.equal(getattr(read, part), getattr(written, part).half().float())
    assert torch.equal(cache.null_text(), torch.ones(1, 8))


def test_goes_to_loader_processes_with_its_files_open(folder):
    cache = LatentCache(folder)
    cache.load(0)
    assert torch.equal(pickle.loads(pickle.dumps(cache)).load(4).mean, cache.load(4).mean)


def test_stale_parts_are_named(folder):
    cache = LatentCache(folder)
    cache.check(KEY)
    cache.check({"vae": "vae-1"})  # a part of the key
    for change, message in (
        ({"vae": "vae-2"}, "stale: the VAE's weights are not"),
        ({"text": "t5-2"}, "stale: the text encoder's weights are not"),
        ({"vae": "vae-2", "transform": {}}, "the VAE's weights and the sizes in data"),
    ):
        with pytest.raises(UserError, match=message) as error:
            cache.check({**KEY, **change})
        assert "run vae/encode_latents.py again" in str(error.value)


def test_no_cache_is_said(tmp_path):
    with pytest.raises(UserError, match="no finished latent cache"):
        LatentCache(tmp_path)


def test_a_shard_that_is_missing_cut_or_of_another_cache_is_named(folder):
    shard_path(folder, 2).unlink()
    shard_path(folder, 1).write_bytes(shard_path(folder, 1).read_bytes()[:-10])
    cache = LatentCache(folder)
    cache.load(0)
    for i, name in ((2, "shard-00001"), (4, "shard-00002")):
        with pytest.raises(UserError, match=rf"{name}.safetensors is missing or damaged .*encode_latents"):
            cache.load(i)
    write_shard(folder, 1, {**KEY, "vae": "vae-2"}, {3: entry(3), 4: entry(4)})
    with pytest.raises(UserError, match=r"shard-00001.safetensors belongs to another cache"):
        LatentCache(folder).load(2)


def test_a_damaged_index_is_named(folder):
    (folder / INDEX).write_text((folder / INDEX).read_text()[:40])
    with pytest.raises(UserError, match=rf"{INDEX} is damaged"):
        LatentCache(folder)


def test_read_shard_tells_what_must_be_written_again(folder):
    assert read_shard(folder, 1, json.loads(json.dumps(KEY))) == {i: list(GRIDS[i]) for i in (3, 4)}
    assert read_shard(folder, 1, {**KEY, "text": "other"}) is None
    assert read_shard(folder, 7, KEY) is None
    shard_path(folder, 1).write_bytes(b"\0" * 100)
    assert read_shard(folder, 1, KEY) is None


def test_the_fingerprint_is_of_weights_and_arguments_only():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Conv3d(2, 3, 1))
    config = {"width": 4, "_name_or_path": "a", "_diffusers_version": "0.1"}
    first = module_fingerprint(net, config)
    assert first == module_fingerprint(net, {"width": 4, "_name_or_path": "b"})  # moved, or loaded by a newer version
    assert first != module_fingerprint(net, {"width": 5})
    net.to(memory_format=torch.channels_last_3d)
    assert first == module_fingerprint(net, config)
    with torch.no_grad():
        net[1].bias[0] += 1e-6
    assert first != module_fingerprint(net, config)
