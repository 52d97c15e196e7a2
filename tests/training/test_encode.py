"""Encoding a manifest: resumable, what cannot be read is listed, and what training reads is what the VAE makes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import latentvid.training.encode as encode
from latentvid import precision
from latentvid.data.clips import ClipSource, Transform
from latentvid.data.latents import INDEX, LatentCache, module_fingerprint
from latentvid.data.manifest import read_manifest
from latentvid.errors import UserError
from latentvid.models.interchange import load_vae
from latentvid.text import TextEncoder
from latentvid.training.encode import EncodeConfig, encode_manifest


@pytest.fixture
def config(digits_data, tiny_vae, tiny_t5, tmp_path, monkeypatch) -> EncodeConfig:
    monkeypatch.setattr(encode, "SHARD", 8)  # so that 24 windows are three shards
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


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("shard-*"))}


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
    (config.out / "shard-00001.safetensors").unlink()
    (config.out / "shard-00002.partial").write_bytes(b"half")
    (config.out / INDEX).unlink()
    summary = encode_manifest(config)
    after = written(config.out)
    assert [name for name in before if before[name] != after[name]] == ["shard-00001.safetensors"]
    assert (config.out / INDEX).read_text() == index and "24 of 24 windows encoded" in summary
    LatentCache(config.out).load(9)


def test_other_weights_replace_the_cache_which_is_closed_meanwhile(config, tiny_vae, tmp_path, monkeypatch):
    encode_manifest(config)
    before = written(config.out)
    vae = load_vae(tiny_vae)
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(1.5)
    vae.save_pretrained(tmp_path / "vae2")
    other = replace(config, vae=tmp_path / "vae2")

    whole = encode.write_shard

    def killed_at_the_second(folder, shard, *args, **kwargs):
        if shard == 1:
            raise KeyboardInterrupt
        whole(folder, shard, *args, **kwargs)

    monkeypatch.setattr(encode, "write_shard", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        encode_manifest(other)
    with pytest.raises(UserError, match="no finished latent cache"):  # else old and new shards would be mixed
        LatentCache(config.out)
    monkeypatch.setattr(encode, "write_shard", whole)
    encode_manifest(other)
    after = written(config.out)
    assert all(before[name] != after[name] for name in before)
    LatentCache(config.out).check({"vae": module_fingerprint(vae, vae.config)})


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


def test_nothing_readable_is_an_error(config, digits_data, tmp_path):
    data = Path(shutil.copytree(digits_data, tmp_path / "data"))
    for path in (data / "clips/train").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="no (clip|usable)"):
        encode_manifest(replace(config, manifest=data / "train.jsonl"))
    assert not (config.out / INDEX).exists()


def test_fewer_windows_leave_no_stale_shards(config, digits_data, tmp_path):
    encode_manifest(config)
    lines = (digits_data / "train.jsonl").read_text().splitlines(keepends=True)
    few = digits_data / "few.jsonl"
    few.write_text("".join(lines[:5]))
    try:
        encode_manifest(replace(config, manifest=few))
    finally:
        few.unlink()
    assert list(written(config.out)) == ["shard-00000.safetensors"] and len(LatentCache(config.out)) == 5


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
    (config.out / "shard-00000.safetensors").unlink()
    encode_manifest(config)
    assert {n for n, t in written(config.out).items() if t != before[n]} == {"shard-00000.safetensors"}
    assert (config.out / INDEX).read_text() == index
    other = "bf16" if first < 1 else "no"
    encode_manifest(replace(config, mixed_precision=other))
    assert all(t != before[n] for n, t in written(config.out).items()) and (config.out / INDEX).read_text() != index
