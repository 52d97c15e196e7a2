"""Latent caches that are missing, cut, flipped or nonsense in a part: the part is named, and nothing is trained on."""

import json
import os
from pathlib import Path

import pytest
from caches import GRIDS, KEY, entry, shard_of, write_cache, write_five, write_index_of_before

from latentvid.data.cache.latents import LatentCache
from latentvid.data.cache.writing import INDEX
from latentvid.errors import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_five(tmp_path)


def test_a_shard_that_is_missing_or_cut_is_named(folder):
    gone, cut = shard_of(folder, 6), shard_of(folder, 3)
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-10])
    cache = LatentCache(folder)
    cache.load(0)
    for i, path in ((2, cut), (4, gone)):
        with pytest.raises(UserError, match=rf"{path.name} is missing or damaged .*encode_latents"):
            cache.load(i)


def test_a_damaged_index_is_named(folder):
    (folder / INDEX).write_text((folder / INDEX).read_text()[:40])
    with pytest.raises(UserError, match=rf"{INDEX} is missing or damaged"):
        LatentCache(folder)


@pytest.mark.parametrize("of", [3, -1])
def test_no_flipped_byte_is_trained_on(of, folder):
    path = shard_of(folder, of)
    whole = path.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    for place in (*range(0, head, 97), head, head + 51, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(UserError, match=path.name):
            LatentCache(folder).load(2)
    path.write_bytes(whole)
    LatentCache(folder).load(2)


def test_values_that_are_no_numbers_are_errors(folder):
    odd = entry(3)
    odd.std[0, 0, 0, 0] = float("nan")
    write_cache(folder, KEY, {3: odd, 4: entry(4)}, 3)
    with pytest.raises(UserError, match=r"latents-.*latent3 has values that are no numbers"):
        LatentCache(folder).load(0)


def test_large_caches_are_checked_as_they_are_read(folder, monkeypatch):
    monkeypatch.setattr("latentvid.data.cache.latents.SMALL", 0)
    path = shard_of(folder, -1)
    whole = path.read_bytes()
    place = whole.index(entry(4).text.half().numpy().tobytes())
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    cache = LatentCache(folder)
    cache.load(2)
    with pytest.raises(UserError, match=r"text\..* is not what was written"):
        cache.load(3)


@pytest.mark.parametrize("kind", ["fifo", "folder", "link out", "link to nothing"])
def test_what_lies_in_the_place_of_a_shard_is_named(folder, tmp_path_factory, kind):
    path = shard_of(folder, 3)
    elsewhere = path.rename(tmp_path_factory.mktemp("elsewhere") / "x.safetensors")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(elsewhere if kind == "link out" else "nowhere")
    with pytest.raises(UserError, match="latents-.*.safetensors is (no file|missing|a link)"):
        LatentCache(folder).load(2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", 5),
        ("pooled_width", 0),
        ("second_width", "8"),
        ("key", {"vae": 1}),
        ("shards", ["../elsewhere.safetensors"]),
        ("bytes", True),
        ("windows", [1, 0, 2, 3, 4]),
        ("windows", []),
        ("latents", ["a"]),
        ("latents_in", [0, 0, 0, 0, 9]),
        ("texts", []),
        ("texts_in", [0]),
        ("captions", [[0], [1], [2], [3], []]),
        ("captions", [[0], [1], [2], [3], [99]]),
        ("rates", [8.0]),
        ("channels", -4),
        ("text_width", 1.5),
        ("fps", float("nan")),
        ("grids", []),
        ("grids", {}),
        ("grids", [[1, 2]] * 5),
        ("grids", [[1, 2, 10**9]] * 5),
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
    index["grids"][2] = [1, 1, 1]
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="window 3 has not the shape"):
        LatentCache(folder).load(2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shard_size", 0),
        ("shard_size", True),
        ("grids", {}),
        ("grids", {"0": [1, 2]}),
        ("grids", {"3": [1, 2, 2], "1": [1, 2, 2]}),
        ("grids", {"x": [1, 2, 2]}),
        ("content", 1),
    ],
)
def test_an_index_of_before_that_says_nonsense_is_named_with_the_key(tmp_path, name, value):
    write_index_of_before(tmp_path, KEY, 3, GRIDS, format=2)
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps(index | {name: value}))
    with pytest.raises(UserError, match=rf"{INDEX}: `{name}` is .*, not .*: run vae/encode_latents.py again"):
        LatentCache(tmp_path)
