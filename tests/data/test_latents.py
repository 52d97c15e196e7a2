"""The latent cache: what is written is read, and a stale, mixed, missing or damaged part is named."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from latentvid.data.cache.latents import INDEX, LatentCache, cache_key, file_hash, module_fingerprint, write_index
from latentvid.data.cache.shards import (
    Encoded,
    EntryKey,
    FileState,
    Origins,
    Shard,
    shard_path,
    tensor_hash,
    write_origins,
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
    with pytest.raises(UserError, match=rf"{INDEX} is missing or damaged"):
        LatentCache(folder)


def test_a_shard_says_what_its_entries_were_made_of(tmp_path):
    keys = {0: EntryKey("a", "b"), 1: EntryKey("c", "b"), 2: EntryKey("d", "e")}
    write_shard(tmp_path, 0, KEY, {0: entry(0), 1: entry(1)}, keys)
    shard = Shard(shard_path(tmp_path, 0))
    assert shard.keys == {0: keys[0], 1: keys[1]} and shard.windows() == [0, 1]
    assert shard.key == json.loads(json.dumps(KEY)) and shard.shape("mean.1")[1:] == [3, 4, 6]
    shard.check()


def test_no_flipped_byte_is_trained_on(folder):
    path = shard_path(folder, 1)
    whole = path.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    for place in (*range(0, head, 97), head, head + 501, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"shard-00001\.safetensors"):
            LatentCache(folder).load(2)
    path.write_bytes(whole)
    LatentCache(folder).load(2)


def test_values_that_are_no_numbers_are_errors(folder):
    odd = entry(3)
    odd.std[0, 0, 0, 0] = float("nan")
    write_shard(folder, 1, KEY, {3: odd, 4: entry(4)})
    with pytest.raises(UserError, match=r"shard-00001.*std\.3 has values that are no numbers"):
        LatentCache(folder).load(2)


def test_large_caches_are_checked_as_they_are_read(folder, monkeypatch):
    monkeypatch.setattr("latentvid.data.cache.latents.SMALL", 0)
    path = shard_path(folder, 1)
    whole = path.read_bytes()
    place = whole.index(entry(4).text.half().numpy().tobytes())
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    cache = LatentCache(folder)
    cache.load(2)
    with pytest.raises(UserError, match=r"text\.4 is not what was written"):
        cache.load(3)


@pytest.mark.parametrize("most", [1, 128])
def test_more_shards_than_files_may_be_open(folder, monkeypatch, most):
    """Read to and fro; and each reading, the first and later ones, gives what safetensors gives."""
    monkeypatch.setattr("latentvid.data.cache.opened.MOST", most)
    cache = LatentCache(folder)
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        for i, window in enumerate(GRIDS):
            slowly, found = load_file(shard_path(folder, window // 3)), cache.load(i)
            for part in ("mean", "std", "text"):
                assert torch.equal(getattr(found, part), slowly[f"{part}.{window}"].float())
    if opened:
        assert len(os.listdir("/proc/self/fd")) - opened <= min(most, 3)


def test_a_system_that_gives_less_than_asked_is_asked_again(folder, monkeypatch):
    whole, asked = os.preadv, []

    def less(file: int, buffers: list[bytearray], start: int) -> int:
        asked.append(start)
        return whole(file, [memoryview(buffers[0])[:3]], start)

    monkeypatch.setattr(os, "preadv", less)
    assert torch.equal(LatentCache(folder).load(2).text, entry(3).text.half().float()) and asked


@pytest.mark.parametrize("kind", ["fifo", "folder", "link out", "link to nothing"])
def test_what_lies_in_the_place_of_a_shard_is_named(folder, tmp_path_factory, kind):
    path = shard_path(folder, 1)
    elsewhere = path.rename(tmp_path_factory.mktemp("elsewhere") / "x.safetensors")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(elsewhere if kind == "link out" else "nowhere")
    with pytest.raises(UserError, match="shard-00001.safetensors is (no file|missing|a link)"):
        LatentCache(folder).load(2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", 3),
        ("key", {"vae": 1}),
        ("shard_size", 0),
        ("shard_size", True),
        ("channels", -4),
        ("text_width", 1.5),
        ("fps", float("nan")),
        ("grids", []),
        ("grids", {}),
        ("grids", {"0": [1, 2]}),
        ("grids", {"0": [1, 2, 10**9]}),
        ("grids", {"3": [1, 2, 2], "1": [1, 2, 2]}),
        ("grids", {"x": [1, 2, 2]}),
        ("dropped", [["a"]]),
        ("notes", [1]),
        ("unknown", "all"),
    ],
)
def test_an_index_that_says_nonsense_is_named_with_the_key(folder, name, value):
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {name: value}))
    with pytest.raises(UserError, match=rf"{INDEX}: `{name}` is .*, not .*: run vae/encode_latents.py again"):
        LatentCache(folder)
    if name in ("key", "grids"):
        (folder / INDEX).write_text(json.dumps({k: v for k, v in index.items() if k != name}))
        with pytest.raises(UserError, match=f"`{name}` is missing"):
            LatentCache(folder)


def test_grids_and_shards_that_contradict_each_other_are_named(folder):
    index = json.loads((folder / INDEX).read_text())
    index["grids"]["3"] = [1, 1, 1]
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="window 3 has not the shape"):
        LatentCache(folder).load(2)


def test_a_cache_of_before_is_read_and_says_what_it_cannot_tell(folder):
    index = json.loads((folder / INDEX).read_text())
    del index["format"]
    (folder / INDEX).write_text(json.dumps(index))
    for number in range(3):
        shard = Shard(shard_path(folder, number))
        tensors = {name: shard.tensor(name) for name in shard.names}
        save_file(tensors, shard_path(folder, number), metadata={"key": json.dumps(KEY, sort_keys=True)})
    cache = LatentCache(folder)
    assert torch.equal(cache.load(2).mean, entry(3).mean.half().float())
    assert "cannot be told" in cache.check_clips()[0]


def test_clips_that_changed_since_are_noticed(tmp_path):
    clips, folder = tmp_path / "clips", tmp_path / "clips" / "latents"
    folder.mkdir(parents=True)
    files = {}
    for name in ("a", "b", "c"):
        (clips / name).write_text(name)
        status = (clips / name).stat()
        files[name] = FileState(1, status.st_mtime_ns, status.st_ctime_ns, file_hash(clips / name))
    write_shard(folder, 0, KEY, {0: entry(0)})
    write_origins(shard_path(folder, 0), Origins(files))
    grids = {0: GRIDS[0]}
    write_index(folder, KEY, 3, grids, channels=4, text_width=8, fps=8.0, dropped=[], clips=[str(clips), ".."])
    assert LatentCache(folder).check_clips() == []
    clips, folder = clips.rename(tmp_path / "moved"), tmp_path / "moved" / "latents"
    assert LatentCache(folder).check_clips() == []
    os.utime(clips / "a", (1, 1))  # copied: the same with another date
    (clips / "b").unlink()
    assert LatentCache(folder).check_clips() == [f"1 of the clips of {folder} are not in {clips}: not looked at"]
    (clips / "a").write_text("x")
    with pytest.raises(UserError, match=r"is stale: 1 clips changed since it was made \('a'\); run vae/encode"):
        LatentCache(folder).check_clips()
    (clips / "c").write_text("longer")
    with pytest.raises(UserError, match="2 clips changed"):
        LatentCache(folder).check_clips()
    shard_path(folder, 0).with_suffix(".json").write_text('{"files": {"a": [1]}, "dropped": {}}')
    with pytest.raises(UserError, match=r"shard-00000.json: `files.a` is \[1\], not size"):
        LatentCache(folder).check_clips()


def test_hashes_tell_bytes_types_and_shapes_apart():
    value = torch.arange(6, dtype=torch.float16)
    hashes = {tensor_hash(v) for v in (value, value + 1, value.view(torch.int16), value.view(2, 3), value.view(3, 2))}
    assert len(hashes) == 5


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
