"""Encoding a manifest: resumable, what cannot be read is listed, and what training reads is what the VAE makes."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from encoded_caches import encoded, written

import latentvid.training.stages.dit.cache_maker as cache_maker
import latentvid.training.stages.dit.encode as encode
from latentvid import precision
from latentvid.data.cache.latents import LatentCache, module_fingerprint
from latentvid.data.cache.shards import Shard
from latentvid.data.cache.writing import INDEX
from latentvid.data.clips import ClipSource, Transform
from latentvid.data.manifest.manifest import read_manifest
from latentvid.errors import UserError
from latentvid.models.interchange import load_vae
from latentvid.text import TextEncoder
from latentvid.training.stages.dit.encode import encode_manifest


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


def test_a_killed_encoding_writes_only_what_is_missing(encoding):
    encode_manifest(encoding)
    before, index = written(encoding.out), (encoding.out / INDEX).read_text()
    assert len(before) == 3
    at = {number: shard_with(encoding.out, window) for number, window in enumerate((0, 8, 16))}
    at[1].unlink()
    os.truncate(at[2], at[2].stat().st_size - 1)
    (encoding.out / INDEX).unlink()
    with encoded() as windows:
        summary = encode_manifest(encoding)
    assert sorted(windows) == list(range(8, 24))  # those of the missing shard and of the damaged one
    after = written(encoding.out)
    assert [name for name in before if before[name] == after[name]] == [at[0].name]
    assert (encoding.out / INDEX).read_text() == index and "24 of 24 windows encoded" in summary
    assert not (encoding.out / "work").exists()
    LatentCache(encoding.out).load(9)


def shard_with(folder: Path, i: int) -> Path:
    """Where the latent of entry i lies."""
    cache = LatentCache(folder)
    return next(p for p in folder.glob("*.safetensors") if cache.contents()[i].split()[0] in Shard(p).latents)


def test_of_a_shard_with_a_flipped_byte_only_what_it_spoilt_is_made_again(encoding):
    encode_manifest(encoding)
    path = shard_with(encoding.out, 8)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=path.name):
        LatentCache(encoding.out).load(8)
    with encoded() as windows:
        encode_manifest(encoding)
    assert len(windows) == 1 and windows[0] in range(8, 16)
    cache = LatentCache(encoding.out)
    assert [cache.load(i).mean.shape[1:] for i in range(24)] == [torch.Size(grid) for grid in cache.grids]


def test_what_reads_a_cache_goes_on_while_it_is_made_anew(encoding, tiny_vae, tmp_path, monkeypatch):
    """With other weights, stopped in the midst: the old entries are there until the new ones all are, and even then."""
    encode_manifest(encoding)
    reader, late = LatentCache(encoding.out), LatentCache(encoding.out)
    before, entry = written(encoding.out), reader.load(9)
    vae = load_vae(tiny_vae)
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(1.5)
    vae.save_pretrained(tmp_path / "vae2")
    other = replace(encoding, vae=tmp_path / "vae2")

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
    assert torch.equal(LatentCache(encoding.out).load(9).mean, entry.mean)
    with encoded() as windows:
        summary = encode_manifest(other)
    assert len(windows) == 16 and "nothing needs any more: --clean" in summary
    LatentCache(encoding.out).check({"vae": module_fingerprint(vae, vae.config)})
    assert {name: time for name, time in written(encoding.out).items() if name in before} == before
    assert torch.equal(late.load(9).mean, entry.mean) and not torch.equal(
        LatentCache(encoding.out).load(9).mean, entry.mean
    )
    assert "bytes that nothing needed are removed" in encode_manifest(replace(other, clean=True))
    assert not before.keys() & written(encoding.out).keys()
    assert len({i: LatentCache(encoding.out).load(i) for i in range(24)}) == 24


def test_bad_clips_are_dropped_counted_and_listed(encoding, digits_data, tmp_path):
    data = Path(shutil.copytree(digits_data, tmp_path / "data"))
    samples = read_manifest(data / "train.jsonl").samples
    cut, empty = [Path(s.path) for s in samples if s.frames == 17][:2]
    cut.write_bytes(cut.read_bytes()[:-300])
    empty.write_bytes(b"")
    summary = encode_manifest(replace(encoding, manifest=data / "train.jsonl"))
    assert "22 of 23 windows encoded" in summary  # the empty one is already no row of the manifest
    assert f"dropped 1 (truncated): {cut}" in summary and f"dropped 1 (empty-file): {empty}" in summary
    cache = LatentCache(encoding.out)
    assert len(cache) == 22
    for i in range(len(cache)):
        assert tuple(cache.load(i).mean.shape[1:]) == cache.grids[i]


def test_a_folder_that_cannot_be_written_is_said_before_the_work(encoding, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "Encoder", None)  # it does not come to that
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out another folder"):
        encode_manifest(replace(encoding, out=tmp_path / "file" / "latents"))
    (encoding.out / INDEX).mkdir(parents=True)
    with pytest.raises(UserError, match=f"{INDEX} is a folder"):
        encode_manifest(encoding)


def test_nothing_readable_is_an_error(encoding, digits_data, tmp_path):
    data = Path(shutil.copytree(digits_data, tmp_path / "data"))
    for path in (data / "clips/train").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="no (clip|usable)"):
        encode_manifest(replace(encoding, manifest=data / "train.jsonl"))
    assert not (encoding.out / INDEX).exists()


def test_clips_that_left_are_no_entries_and_go_when_it_is_cleaned(encoding, digits_data, tmp_path):
    encode_manifest(encoding)
    lines = (digits_data / "train.jsonl").read_text().splitlines(keepends=True)
    few = digits_data / "few.jsonl"
    few.write_text("".join(lines[:5]))
    try:
        encode_manifest(replace(encoding, manifest=few))
        assert len(written(encoding.out)) == 3 and len(LatentCache(encoding.out)) == 5  # a training may still read them
        entries = [LatentCache(encoding.out).load(i) for i in range(5)]
        with encoded() as windows:
            encode_manifest(replace(encoding, manifest=few, clean=True))
    finally:
        few.unlink()
    assert not windows and len(list(encoding.out.glob("*.safetensors"))) == 2
    cache = LatentCache(encoding.out)
    for i, entry in enumerate(entries):
        for part in ("mean", "std", "text"):
            assert torch.equal(getattr(cache.load(i), part), getattr(entry, part))
    assert sorted(Shard(next(encoding.out.glob("latents-*"))).latents) == sorted(c.split()[0] for c in cache.contents())


@pytest.mark.parametrize(("first", "then"), [(0.03, 2.0), (2.0, 0.03)])
def test_auto_leaves_what_another_kind_of_machine_made(first, then, encoding, monkeypatch, capsys):
    """Whole or half, a cache stays in the type that it was begun in; another type by name makes it anew."""
    encoding = replace(encoding, mixed_precision="auto")
    monkeypatch.setattr(precision, "_speed", lambda device: precision.Speed(first, first))
    encode_manifest(encoding)
    before, index = written(encoding.out), (encoding.out / INDEX).read_text()
    monkeypatch.setattr(precision, "_speed", lambda device: precision.Speed(then, then))
    encode_manifest(encoding)
    assert written(encoding.out) == before and (encoding.out / INDEX).read_text() == index
    gone = shard_with(encoding.out, 0)
    gone.unlink()
    encode_manifest(encoding)
    assert {n for n, t in written(encoding.out).items() if t != before[n]} == {gone.name}
    assert (encoding.out / INDEX).read_text() == index
    other = "bf16" if first < 1 else "no"
    encode_manifest(replace(encoding, mixed_precision=other))
    assert len(written(encoding.out)) == 6 and (encoding.out / INDEX).read_text() != index
