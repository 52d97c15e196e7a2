"""Encoding again after clips, captions or their places changed: only what is new goes through the networks."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from caches import write_index_of_before, write_shard_of_before
from encoded_caches import encoded, written

import latentvid.training.stages.dit.encode as encode
from latentvid.data.cache.latents import LatentCache, LatentCaches
from latentvid.data.cache.origins import read_origins, write_origins
from latentvid.data.cache.shards import Shard
from latentvid.data.cache.writing import INDEX
from latentvid.data.clips import ClipSource
from latentvid.data.manifest.identity import difference
from latentvid.errors import UserError
from latentvid.lock import FolderLock
from latentvid.text import TextEncoder
from latentvid.training.stages.dit.encode import EncodeConfig, encode_manifest


@pytest.fixture
def clips(encoding, digits_data, tmp_path) -> EncodeConfig:
    """Five windows of their own, each of one shape, encoded; tests may change the rows."""
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [json.loads(line) for line in (digits_data / "train.jsonl").read_text().splitlines()]
    alike = [row for row in rows if row["frames"] == 17][:5]
    for number, row in enumerate(alike):
        shutil.copy(digits_data / row["path"], folder / f"{number}.mp4")
        row["path"] = f"{number}.mp4"
    config = replace(encoding, manifest=save(folder / "m.jsonl", alike), out=folder / "latents", batch=1)
    encode_manifest(config)
    return config


def save(table: Path, rows: list[dict]) -> Path:
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def rows_of(config: EncodeConfig) -> list[dict]:
    return [json.loads(line) for line in config.manifest.read_text().splitlines()]


def same_as_anew(config: EncodeConfig, windows: list[int]) -> LatentCache:
    """Encoding again goes through the VAE for these windows alone, and gives, bit for bit, what encoding anew gives."""
    with encoded() as found:
        encode_manifest(config)
    assert sorted(found) == windows
    fresh = replace(config, out=config.out.with_name("fresh"))
    encode_manifest(fresh)
    cache, anew = LatentCache(config.out), LatentCache(fresh.out)
    assert (cache.contents(), cache.windows, cache.grids) == (anew.contents(), anew.windows, anew.grids)
    assert cache.content == anew.content and cache.check_clips() == []
    for i in range(len(cache)):
        mine, its = cache.load(i), anew.load(i)
        assert all(torch.equal(getattr(mine, part), getattr(its, part)) for part in ("mean", "std", "text"))
    shutil.rmtree(fresh.out)
    return cache


def test_a_clip_that_was_exported_again_under_its_name_is_encoded_again(clips):
    path = clips.manifest.with_name("1.mp4")
    other = clips.manifest.with_name("3.mp4").read_bytes()
    size, times = path.stat().st_size, (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(other)
    with pytest.raises(UserError, match="stale: 1 clip changed"):
        LatentCache(clips.out).check_clips()
    cache = same_as_anew(clips, [])  # its latents are there, under another window
    assert torch.equal(cache.load(1).mean, cache.load(3).mean)
    content = bytearray(other)  # another content of the same size and date, such as `touch -r` leaves it
    at = content.index(b"isom") if b"isom" in content else 8
    content[at : at + 4] = b"iso2"
    path.write_bytes(content)
    os.utime(path, ns=times)
    same_as_anew(clips, [1])
    assert size


def test_one_caption_one_more_clip_and_a_moved_folder_make_only_what_is_new(clips):
    rows = rows_of(clips)
    rows[2]["caption"] = "a green 3 moves down"
    save(clips.manifest, rows)
    before = LatentCache(clips.out).load(2)
    after = same_as_anew(clips, []).load(2)
    assert torch.equal(before.mean, after.mean) and not torch.equal(before.text, after.text)
    new = clips.manifest.with_name("new.mp4")
    content = clips.manifest.with_name("0.mp4").read_bytes()
    new.write_bytes(content + b"\0\0\0\x08free")  # another file of the same frames
    save(clips.manifest, [rows[0] | {"path": new.name}, *rows])  # all numbers are other ones now
    cache = same_as_anew(clips, [0])
    assert len(cache) == 6 and torch.equal(cache.load(0).mean, cache.load(1).mean)
    folder = clips.manifest.parent.rename(clips.manifest.parent.with_name("moved"))
    moved = replace(clips, manifest=folder / "m.jsonl", out=folder / "latents")
    before = written(moved.out)
    same_as_anew(moved, [])
    assert written(moved.out) == before  # not even copied
    same_as_anew(replace(moved, max_frames=9), list(range(6)))  # other windows: but of a text nothing is made again


def test_a_mended_clip_is_tried_again_and_one_that_is_not_is_left_alone(clips):
    path = clips.manifest.with_name("4.mp4")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "dropped 1 (truncated)" in encode_manifest(clips)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipSource, "read_each", lambda self, indices: pytest.fail("read again") if indices else [])
        assert "4 of 5 windows encoded" in encode_manifest(clips)
    path.write_bytes(whole)
    assert len(same_as_anew(clips, [])) == 5  # what was there before it was cut still is
    path.write_bytes(whole[: len(whole) // 2])
    encode_manifest(replace(clips, clean=True))
    path.write_bytes(whole)
    assert len(same_as_anew(clips, [4])) == 5


def test_captions_alone_go_through_the_text_encoder_alone_and_once(clips):
    """Of several captions of a clip each is an entry's; one that many share is stored once."""
    rows = rows_of(clips)
    rows[1]["caption"] = ["a green 3 moves left", "a red 5 moves up"]
    for row in rows[2:]:
        row["caption"] = "a red 5 moves up"
    save(clips.manifest, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode.Encoder, "_encode", lambda *_: pytest.fail("through the VAE"))
        encode_manifest(clips)
    cache, text = LatentCache(clips.out), TextEncoder.from_pretrained(clips.text_encoder)
    assert [cache.captions(i) for i in range(5)] == [1, 2, 1, 1, 1]
    for caption, states in enumerate(text.encode(rows[1]["caption"]).split()):
        torch.testing.assert_close(cache.load(1, caption).text, states.float(), atol=5e-3, rtol=2e-3)
    assert torch.equal(cache.load(1, 1).text, cache.load(4).text)
    stored = [key for path in clips.out.glob("texts-*") for key in Shard(path).texts]
    assert len(stored) == len(set(stored)) and len({c.split()[-1] for c in cache.contents()[1:]}) == 1


def test_a_cache_of_before_is_taken_over_as_it_lies(clips):
    """Format 2: each window's tensors under its number, and a note on its files beside each shard."""
    cache = LatentCache(clips.out)
    identity = LatentCaches([clips.out]).identity()
    entries, keys = {i: cache.load(i) for i in range(5)}, {i: c.split() for i, c in enumerate(cache.contents())}
    index = json.loads((clips.out / INDEX).read_text())
    origins = read_origins(clips.out / index["files"])
    old = clips.out.with_name("old")
    old.mkdir()
    path = write_shard_of_before(old, 0, cache.key, entries, keys, null_text=cache.null_text())
    write_origins(path.with_suffix(".json"), origins)
    grids = dict(zip(cache.windows, cache.grids, strict=True))
    more = {name: index[name] for name in ("channels", "text_width", "clips", "rates", "fps")}
    write_index_of_before(old, cache.key, 256, grids, format=2, content=cache.content, **more)
    before, whole = LatentCache(old), path.read_bytes()
    assert before.check_clips() == [] and torch.equal(before.load(3).mean, entries[3].mean)
    assert difference(LatentCaches([old]).identity(), identity) is None  # a run that began with it goes on
    config = replace(clips, out=old)
    same_as_anew(config, [])
    assert path.read_bytes() == whole and not list(old.glob("latents-*"))
    encode_manifest(replace(config, clean=True))
    assert not path.exists() and len(list(old.glob("latents-*"))) == 1
    same_as_anew(config, [])


def test_a_latent_that_is_no_number_is_left_out(clips):
    clips.manifest.with_name("latents").rename(clips.manifest.with_name("old"))
    whole = encode.Encoder._encode

    def spoilt(self, group):
        for index, (mean, std) in whole(self, group):
            yield index, (mean * (float("nan") if index == 2 else 1), std)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode.Encoder, "_encode", spoilt)
        assert f"dropped 1 (latent-not-finite): {clips.manifest.with_name('2.mp4')}" in encode_manifest(clips)
    assert LatentCache(clips.out).windows == [0, 1, 3, 4]


def test_long_and_unknown_captions_are_left_out_cut_or_refused(clips):
    rows = rows_of(clips)
    rows[3]["caption"] = "a red 7 moves up and to the left then " * 9
    save(clips.manifest, rows)
    summary = encode_manifest(clips)
    assert "4 of 4 windows encoded" in summary and "dropped 1 (caption-too-long)" in summary
    assert f"{clips.manifest.with_name('3.mp4')}, row 4" in summary
    summary = encode_manifest(replace(clips, caption_too_long="truncate"))
    assert "5 of 5 windows encoded" in summary and "1 captions too long for the text encoder: cut" in summary
    cache = LatentCache(clips.out)
    assert 20 < len(cache.load(3).text) <= 24 and "cut" in cache.summary()


def test_two_that_write_one_cache_are_kept_apart(clips):
    with FolderLock(clips.out), pytest.raises(UserError, match="latents is in use by process"):
        encode_manifest(clips)
    assert len(LatentCache(clips.out)) == 5  # which is still whole
