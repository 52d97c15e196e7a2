"""The latent cache: what is written is read, by every format; what is stale or changed since is named."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from caches import (
    GRIDS,
    KEY,
    NULL,
    NULL_TEXT,
    entry,
    shard_of,
    write_cache,
    write_five,
    write_index_of_before,
    write_shard_of_before,
)
from safetensors.torch import load_file
from torch import nn

from latentvid.data.cache.latents import LatentCache, LatentCaches, file_hash, module_fingerprint
from latentvid.data.cache.origins import FileState, Origins, write_origins
from latentvid.data.cache.shards import Encoded, EncodedText, Shard, tensor_hash, write_shard
from latentvid.data.cache.writing import INDEX, Row, write_index
from latentvid.errors import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_five(tmp_path)


def test_round_trip(folder):
    cache = LatentCache(folder)
    assert (len(cache), cache.grids, cache.channels, cache.text_width) == (5, list(GRIDS.values()), 4, 8)
    for i, window in enumerate(GRIDS):  # numbered without the gaps
        read, written = cache.load(i), entry(window)
        for part in ("mean", "std", "text"):
            assert getattr(read, part).dtype == torch.float32
            assert torch.equal(getattr(read, part), getattr(written, part).half().float())
    assert torch.equal(cache.null_text(), torch.ones(1, 8))


def test_a_cache_of_format_3_is_read(folder):
    index = json.loads((folder / INDEX).read_text()) | {"format": 3}
    (folder / INDEX).write_text(json.dumps(index))
    assert torch.equal(LatentCache(folder).load(3).text, entry(4).text.half().float())


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


def test_a_shard_says_what_its_entries_were_made_of(tmp_path):
    latents, texts = {k: (entry(i).mean, entry(i).std) for i, k in enumerate("ab")}, {"c": EncodedText(entry(0).text)}
    name = write_shard(tmp_path, KEY, latents, texts)
    shard = Shard(tmp_path / name)
    assert (set(shard.latents), set(shard.texts)) == ({"a", "b"}, {"c"}) and shard.unsound() == []
    assert shard.key == json.loads(json.dumps(KEY)) and shard.latent_grid("b") == (4, 3, 4, 6)
    assert torch.equal(shard.latent("b")[1], entry(1).std.half())
    shard.check(latents, texts)
    assert write_shard(tmp_path, KEY, latents, texts) == name  # by what it holds
    assert write_shard(tmp_path, KEY, latents, {"c": EncodedText(entry(1).text)}) != name


@pytest.mark.parametrize("most", [1, 128])
def test_more_shards_than_files_may_be_open(folder, monkeypatch, most):
    """Read to and fro; and each reading, the first and later ones, gives what safetensors gives."""
    monkeypatch.setattr("latentvid.data.cache.opened.MOST", most)
    cache = LatentCache(folder)
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        for i, window in enumerate(GRIDS):
            mean, std = load_file(shard_of(folder, window))[f"latent.latent{window}"].float()
            found = cache.load(i)
            assert torch.equal(found.mean, mean) and torch.equal(found.std, std)
            assert torch.equal(found.text, entry(window).text.half().float())
    if opened:
        assert len(os.listdir("/proc/self/fd")) - opened <= min(most, 4)


def test_a_system_that_gives_less_than_asked_is_asked_again(folder, monkeypatch):
    whole, asked = os.preadv, []

    def less(file: int, buffers: list[bytearray], start: int) -> int:
        asked.append(start)
        return whole(file, [memoryview(buffers[0])[:3]], start)

    monkeypatch.setattr(os, "preadv", less)
    assert torch.equal(LatentCache(folder).load(2).text, entry(3).text.half().float()) and asked


@pytest.mark.parametrize("format", [1, 2])
def test_a_cache_of_before_is_read_and_says_what_it_cannot_tell(tmp_path, format):
    for number in range(3):
        entries = {i: entry(i) for i in GRIDS if i // 3 == number}
        keys = {i: (f"{i:032}", f"{i + 100:032}") for i in entries}
        more = {"null_text": NULL_TEXT} if number == 0 else {}
        write_shard_of_before(tmp_path, number, KEY, entries, keys, hashed=format == 2, **more)
    write_index_of_before(tmp_path, KEY, 3, GRIDS, **({"format": 2} if format == 2 else {}))
    cache = LatentCache(tmp_path)
    assert cache.windows == list(GRIDS) and cache.grids == list(GRIDS.values())
    assert torch.equal(cache.null_text(), NULL_TEXT)
    for i, window in enumerate(GRIDS):
        found = cache.load(i)
        for part in ("mean", "std", "text"):
            assert torch.equal(getattr(found, part), getattr(entry(window), part).half().float())
    assert "cannot be told" in cache.check_clips()[0]
    path = tmp_path / "shard-00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    if format == 2:
        with pytest.raises(UserError, match="shard-00001.* is not what was written"):
            LatentCache(tmp_path).load(2)
    write_shard_of_before(tmp_path, 1, {**KEY, "vae": "vae-2"}, {3: entry(3), 4: entry(4)})
    with pytest.raises(UserError, match=r"shard-00001.safetensors belongs to another cache"):
        LatentCache(tmp_path).load(2)


def test_a_text_lies_there_once_for_all_that_share_it(tmp_path):
    """As large as T5-XXL's: 120 tokens of 4,096; fifteen windows of a clip."""
    text = torch.randn(120, 4096)
    entries = {w: Encoded(*torch.randn(2, 4, 5, 4, 4), text) for w in range(15)}
    write_cache(tmp_path, KEY, entries, 256, text_width=4096)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    before = tmp_path / "before"
    before.mkdir()
    write_shard_of_before(before, 0, KEY, entries)
    assert size < 1.1 * 2 * text.numel() and (before / "shard-00000.safetensors").stat().st_size > 15 * 2 * text.numel()
    assert all(torch.equal(LatentCache(tmp_path).load(i).text, text.half().float()) for i in range(15))


def test_an_entry_with_several_captions_gives_the_one_that_is_asked_for(tmp_path):
    texts = {"null": NULL, "a": EncodedText(torch.full((2, 8), 1.0)), "b": EncodedText(torch.full((3, 8), 2.0))}
    latents = {f"latent{i}": (entry(i).mean, entry(i).std) for i in (0, 1)}
    where = dict.fromkeys(latents, write_shard(tmp_path, KEY, latents=latents))
    rows = [Row(0, "latent0", ("a", "b"), GRIDS[0]), Row(1, "latent1", ("b",), GRIDS[1])]
    in_texts = dict.fromkeys(texts, write_shard(tmp_path, KEY, texts=texts))
    write_index(tmp_path, KEY, rows, where, in_texts, "null", channels=4, text_width=8, fps=8.0, dropped=[])
    caches = LatentCaches([tmp_path, tmp_path])
    assert [caches.captions(i) for i in range(4)] == [2, 1, 2, 1]
    assert [float(caches.load(i, c).text[0, 0]) for i, c in ((0, 0), (0, 1), (1, 0), (2, 1))] == [1.0, 2.0, 2.0, 2.0]
    assert torch.equal(caches.null_text(), NULL_TEXT)


def told(i: int, second: int) -> Encoded:
    """With what further text encoders gave: pooled [5], second [second,6]."""
    one = entry(i)
    return replace(one, pooled=torch.randn(5), second=torch.randn(second, 6).to(torch.bfloat16))


def test_states_of_further_text_encoders_lie_beside_the_text_and_a_given_image_beside_the_latent(tmp_path):
    entries = {0: told(0, 3), 1: replace(told(1, 0), image=torch.randn(4, *GRIDS[1]))}
    null = EncodedText(torch.ones(0, 8), torch.zeros(5), torch.zeros(0, 6, dtype=torch.bfloat16))
    widths = {"pooled_width": 5, "second_width": 6}
    write_cache(tmp_path, KEY, entries, 3, null, **widths)
    caches = LatentCaches([tmp_path])
    for i in (0, 1):
        found = caches.load(i)
        assert torch.equal(found.text, entries[i].text.half().float())
        assert torch.equal(found.pooled, entries[i].pooled.half().float())
        assert (found.image is None) == (i == 0)
        assert torch.equal(found.second, entries[i].second.float()) and found.second.dtype == torch.float32
    assert torch.equal(caches.load(1).image, entries[1].image.half().float())
    assert [tuple(part.shape) for part in caches.null().parts().values()] == [(0, 8), (5,), (0, 6)]
    shard = Shard(next(tmp_path.glob("texts-*")))
    assert shard.unsound() == [] and shard.text("null").second.dtype == torch.bfloat16
    index = json.loads((tmp_path / INDEX).read_text())
    for name, width in (("pooled_width", 4), ("second_width", None), ("pooled_width", None)):
        (tmp_path / INDEX).write_text(json.dumps(index | {name: width}))
        with pytest.raises(UserError, match="has not the shape that cache.json says"):
            LatentCache(tmp_path).load(0)
    (tmp_path / "plain").mkdir()
    write_cache(tmp_path / "plain", KEY, {0: entry(0)}, 3)
    plain = LatentCache(tmp_path / "plain")
    assert plain.load(0).pooled is None and plain.null().second is None


@pytest.mark.parametrize("format", [2, 3])
def test_clips_that_changed_since_are_noticed(tmp_path, format):
    clips, folder = tmp_path / "clips", tmp_path / "clips" / "latents"
    folder.mkdir(parents=True)
    files = {}
    for name in ("a", "b", "c"):
        (clips / name).write_text(name)
        status = (clips / name).stat()
        files[name] = FileState(1, status.st_mtime_ns, status.st_ctime_ns, file_hash(clips / name))
    if format == 2:
        write_shard_of_before(folder, 0, KEY, {0: entry(0)})
        write_index_of_before(folder, KEY, 3, {0: GRIDS[0]}, format=2, clips=[str(clips), ".."])
    else:
        write_cache(folder, KEY, {0: entry(0)}, 3, clips=[str(clips), ".."], files="shard-00000.json")
    write_origins(folder / "shard-00000.json", Origins(files))
    assert LatentCache(folder).check_clips() == []
    clips, folder = clips.rename(tmp_path / "moved"), tmp_path / "moved" / "latents"
    assert LatentCache(folder).check_clips() == []
    os.utime(clips / "a", (1, 1))  # copied: the same with another date
    (clips / "b").unlink()
    assert LatentCache(folder).check_clips() == [f"1 of the clips of {folder} are not in {clips}: not looked at"]
    (clips / "a").write_text("x")
    with pytest.raises(UserError, match=r"is stale: 1 clip changed since it was made \('a'\); run vae/encode"):
        LatentCache(folder).check_clips()
    (clips / "c").write_text("longer")
    with pytest.raises(UserError, match="2 clips changed"):
        LatentCache(folder).check_clips()
    (folder / "shard-00000.json").write_text('{"files": {"a": [1]}, "dropped": {}}')
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
