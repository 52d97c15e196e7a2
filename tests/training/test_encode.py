"""Encoding a manifest: resumable, what cannot be read is listed, and what training reads is what the VAE makes."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from caches import write_index_of_before, write_shard_of_before

import latentvid.training.stages.dit.cache_maker as cache_maker
import latentvid.training.stages.dit.encode as encode
from latentvid import precision
from latentvid.data.cache.latents import LatentCache, LatentCaches, module_fingerprint
from latentvid.data.cache.origins import read_origins, write_origins
from latentvid.data.cache.shards import Shard
from latentvid.data.cache.writing import INDEX
from latentvid.data.clips import ClipSource, Transform
from latentvid.data.manifest.identity import difference
from latentvid.data.manifest.manifest import read_manifest
from latentvid.errors import UserError
from latentvid.lock import FolderLock
from latentvid.models.interchange import load_vae
from latentvid.text import TextEncoder
from latentvid.training.stages.dit.encode import EncodeConfig, encode_manifest


@pytest.fixture
def config(digits_data, tiny_vae, tiny_t5, tmp_path, monkeypatch) -> EncodeConfig:
    monkeypatch.setattr(cache_maker, "SHARD", 8)  # so that 24 windows are three shards
    return EncodeConfig(
        manifest=digits_data / "train.jsonl",
        vae=tiny_vae,
        text_encoder=str(tiny_t5),
        out=tmp_path / "latents",
        max_frames=17,
        max_area=None,
        patch=2,
        batch=4,
        mixed_precision="no",
    )


@contextmanager
def encoded() -> Iterator[list[int]]:
    """The windows that go through the VAE meanwhile."""
    windows: list[int] = []
    whole = encode.Encoder._encode

    def noted(self, group):
        windows.extend(index for index, _ in group)
        return whole(self, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode.Encoder, "_encode", noted)
        yield windows


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("latents-*.safetensors"))}


def test_entries_are_what_the_vae_makes_of_each_window_alone(tiny_latents, digits_data, tiny_vae, tiny_t5):
    cache = LatentCache(tiny_latents)
    vae = load_vae(tiny_vae)
    text = TextEncoder.from_pretrained(tiny_t5)
    source = ClipSource(read_manifest(digits_data / "train.jsonl"), Transform(spatial_stride=8, temporal_stride=4))
    assert len(cache) == len(source) == 24 and len(set(cache.grids)) > 4
    for i in range(0, 24, 3):
        entry = cache.load(i)
        with torch.no_grad():
            posterior = vae.encode(source.read(i)[None]).latent_dist
        scale = torch.tensor(vae.config.latents_std)[:, None, None, None]
        torch.testing.assert_close(entry.mean, vae.normalise(posterior.mean)[0], atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(entry.std, posterior.std[0] / scale, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(entry.text, text.encode([source.caption(i)]).states, atol=5e-3, rtol=2e-3)
    torch.testing.assert_close(cache.null_text(), text.encode([""]).states, atol=5e-3, rtol=2e-3)


def test_a_killed_encoding_writes_only_what_is_missing(config):
    encode_manifest(config)
    before, index = written(config.out), (config.out / INDEX).read_text()
    assert len(before) == 3
    at = {number: shard_with(config.out, window) for number, window in enumerate((0, 8, 16))}
    at[1].unlink()
    os.truncate(at[2], at[2].stat().st_size - 1)
    (config.out / INDEX).unlink()
    with encoded() as windows:
        summary = encode_manifest(config)
    assert sorted(windows) == list(range(8, 24))  # those of the missing shard and of the damaged one
    after = written(config.out)
    assert [name for name in before if before[name] == after[name]] == [at[0].name]
    assert (config.out / INDEX).read_text() == index and "24 of 24 windows encoded" in summary
    assert not (config.out / "work").exists()
    LatentCache(config.out).load(9)


def shard_with(folder: Path, i: int) -> Path:
    """Where the latent of entry i lies."""
    cache = LatentCache(folder)
    return next(p for p in folder.glob("*.safetensors") if cache.contents()[i].split()[0] in Shard(p).latents)


def test_of_a_shard_with_a_flipped_byte_only_what_it_spoilt_is_made_again(config):
    encode_manifest(config)
    path = shard_with(config.out, 8)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=path.name):
        LatentCache(config.out).load(8)
    with encoded() as windows:
        encode_manifest(config)
    assert len(windows) == 1 and windows[0] in range(8, 16)
    cache = LatentCache(config.out)
    assert [cache.load(i).mean.shape[1:] for i in range(24)] == [torch.Size(grid) for grid in cache.grids]


def test_what_reads_a_cache_goes_on_while_it_is_made_anew(config, tiny_vae, tmp_path, monkeypatch):
    """With other weights, stopped in the midst: the old entries are there until the new ones all are, and even then."""
    encode_manifest(config)
    reader, late = LatentCache(config.out), LatentCache(config.out)
    before, entry = written(config.out), reader.load(9)
    vae = load_vae(tiny_vae)
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(1.5)
    vae.save_pretrained(tmp_path / "vae2")
    other = replace(config, vae=tmp_path / "vae2")

    whole, calls = cache_maker.write_shard, []

    def killed_at_the_second(*args, **kwargs):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(args)
        return whole(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(cache_maker, "write_shard", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            encode_manifest(other)
    assert torch.equal(LatentCache(config.out).load(9).mean, entry.mean)
    with encoded() as windows:
        summary = encode_manifest(other)
    assert len(windows) == 16 and "nothing needs any more: --clean" in summary
    LatentCache(config.out).check({"vae": module_fingerprint(vae, vae.config)})
    assert {name: time for name, time in written(config.out).items() if name in before} == before
    assert torch.equal(late.load(9).mean, entry.mean) and not torch.equal(
        LatentCache(config.out).load(9).mean, entry.mean
    )
    assert "bytes that nothing needed are removed" in encode_manifest(replace(other, clean=True))
    assert not before.keys() & written(config.out).keys()
    assert len({i: LatentCache(config.out).load(i) for i in range(24)}) == 24


def test_bad_clips_are_dropped_counted_and_listed(config, digits_data, tmp_path):
    data = Path(shutil.copytree(digits_data, tmp_path / "data"))
    samples = read_manifest(data / "train.jsonl").samples
    cut, empty = [Path(s.path) for s in samples if s.frames == 17][:2]
    cut.write_bytes(cut.read_bytes()[:-300])
    empty.write_bytes(b"")
    summary = encode_manifest(replace(config, manifest=data / "train.jsonl"))
    assert "22 of 23 windows encoded" in summary  # the empty one is already no row of the manifest
    assert f"dropped 1 (truncated): {cut}" in summary and f"dropped 1 (empty-file): {empty}" in summary
    cache = LatentCache(config.out)
    assert len(cache) == 22
    for i in range(len(cache)):
        assert tuple(cache.load(i).mean.shape[1:]) == cache.grids[i]


def test_a_folder_that_cannot_be_written_is_said_before_the_work(config, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "Encoder", None)  # it does not come to that
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out another folder"):
        encode_manifest(replace(config, out=tmp_path / "file" / "latents"))
    (config.out / INDEX).mkdir(parents=True)
    with pytest.raises(UserError, match=f"{INDEX} is a folder"):
        encode_manifest(config)


def test_nothing_readable_is_an_error(config, digits_data, tmp_path):
    data = Path(shutil.copytree(digits_data, tmp_path / "data"))
    for path in (data / "clips/train").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="no (clip|usable)"):
        encode_manifest(replace(config, manifest=data / "train.jsonl"))
    assert not (config.out / INDEX).exists()


def test_clips_that_left_are_no_entries_and_go_when_it_is_cleaned(config, digits_data, tmp_path):
    encode_manifest(config)
    lines = (digits_data / "train.jsonl").read_text().splitlines(keepends=True)
    few = digits_data / "few.jsonl"
    few.write_text("".join(lines[:5]))
    try:
        encode_manifest(replace(config, manifest=few))
        assert len(written(config.out)) == 3 and len(LatentCache(config.out)) == 5  # a training may still read them
        entries = [LatentCache(config.out).load(i) for i in range(5)]
        with encoded() as windows:
            encode_manifest(replace(config, manifest=few, clean=True))
    finally:
        few.unlink()
    assert not windows and len(list(config.out.glob("*.safetensors"))) == 2
    cache = LatentCache(config.out)
    for i, entry in enumerate(entries):
        for part in ("mean", "std", "text"):
            assert torch.equal(getattr(cache.load(i), part), getattr(entry, part))
    assert sorted(Shard(next(config.out.glob("latents-*"))).latents) == sorted(c.split()[0] for c in cache.contents())


@pytest.mark.parametrize(("first", "then"), [(0.03, 2.0), (2.0, 0.03)])
def test_auto_leaves_what_another_kind_of_machine_made(first, then, config, monkeypatch, capsys):
    """Whole or half, a cache stays in the type that it was begun in; another type by name makes it anew."""
    config = replace(config, mixed_precision="auto")
    monkeypatch.setattr(precision, "_speed", lambda device: precision.Speed(first, first))
    encode_manifest(config)
    before, index = written(config.out), (config.out / INDEX).read_text()
    monkeypatch.setattr(precision, "_speed", lambda device: precision.Speed(then, then))
    encode_manifest(config)
    assert written(config.out) == before and (config.out / INDEX).read_text() == index
    gone = shard_with(config.out, 0)
    gone.unlink()
    encode_manifest(config)
    assert {n for n, t in written(config.out).items() if t != before[n]} == {gone.name}
    assert (config.out / INDEX).read_text() == index
    other = "bf16" if first < 1 else "no"
    encode_manifest(replace(config, mixed_precision=other))
    assert len(written(config.out)) == 6 and (config.out / INDEX).read_text() != index


@pytest.fixture
def clips(config, digits_data, tmp_path) -> EncodeConfig:
    """Five windows of their own, each of one shape, encoded: config, with rows that tests may change."""
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [json.loads(line) for line in (digits_data / "train.jsonl").read_text().splitlines()]
    alike = [row for row in rows if row["frames"] == 17][:5]
    for number, row in enumerate(alike):
        shutil.copy(digits_data / row["path"], folder / f"{number}.mp4")
        row["path"] = f"{number}.mp4"
    config = replace(config, manifest=save(folder / "m.jsonl", alike), out=folder / "latents", batch=1)
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
    with pytest.raises(UserError, match="stale: 1 clips changed"):
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
