"""Chunks of frames with a cache equal the one-shot result; tiles nearly do; memory does not grow with the frames."""

import copy
import functools
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vae import SMALL, clip, close, vae
from torch import Tensor

from latentvid.errors import UserError
from latentvid.models import budget, streaming
from latentvid.models.autoencoder import KERNELS, CausalVideoAutoencoder
from latentvid.models.budget import OVERLAP, Cut, choose_cut, live_bytes, tile_starts
from latentvid.models.causal3d import StreamCache
from latentvid.models.streaming import (
    DecodeStream,
    EncodeStream,
    decode_side,
    decode_stream,
    encode_side,
    encode_stream,
    run,
)

quick = settings(max_examples=12, deadline=None, database=None, derandomize=True)
ONE_LEVEL = dict(widths=(8,), encoder_depths=(1,), decoder_depths=(1,), time_strides=(), space_strides=())
ARCHITECTURES = {
    **{kernels: dict(kernels=kernels) for kernels in KERNELS},
    "no shortcuts": dict(shortcuts=False),
    "patch 1": dict(patch=1, time_strides=(1, 2), space_strides=(2, 2)),
    "patch 4, time first": dict(patch=4, widths=(16, 8), encoder_depths=(1, 1), decoder_depths=(2, 1))
    | dict(time_strides=(4,), space_strides=(1,)),
    "8 frames": dict(widths=(8, 8, 8, 16), encoder_depths=(1,) * 4, decoder_depths=(1,) * 4, time_strides=(2, 2, 2))
    | dict(space_strides=(1, 2, 1)),
    "images only": ONE_LEVEL | dict(patch=4),
    "space only": dict(time_strides=(1, 1), space_strides=(2, 2)),
}
architectures = st.sampled_from(sorted(ARCHITECTURES))


@functools.cache
def model(name: str) -> CausalVideoAutoencoder:
    return vae(**ARCHITECTURES[name]).requires_grad_(False)


def pixels(model: CausalVideoAutoencoder, f: int, h: int = 1, w: int = 2, batch: int = 1) -> Tensor:
    """A clip of so many latent positions."""
    s = model.spatial_stride
    return clip(1 + model.temporal_stride * (f - 1), h * s, w * s, batch)


def latents(model: CausalVideoAutoencoder, f: int, h: int = 1, w: int = 2, batch: int = 1) -> Tensor:
    return torch.randn(batch, model.latent_channels, f, h, w)


def encode(model: CausalVideoAutoencoder, x: Tensor) -> Tensor:  # in one shot
    return model.encoder(x, StreamCache(more=False))


def decode(model: CausalVideoAutoencoder, z: Tensor) -> Tensor:
    return model.decoder(z, StreamCache(more=False))


def with_cut(cut: Cut, call, *args):
    """`call(*args)` with streams cut so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "choose_cut", lambda *_: cut)
        return call(*args)


def join(chunks) -> Tensor:
    return torch.cat(list(chunks), dim=2)


# --- causality ---


@quick
@given(architectures, st.integers(0, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3))
def test_nothing_depends_on_later_frames(name, j, more, h, w):
    vae = model(name)
    t, f = vae.temporal_stride, j + 1 + more
    x, z = pixels(vae, f, h, w), latents(vae, f, h, w)
    later_x, later_z = x.clone(), z.clone()
    later_x[:, :, t * j + 1 :] = -x[:, :, t * j + 1 :]
    later_z[:, :, j + 1 :] = -z[:, :, j + 1 :]

    a, b = encode(vae, x), encode(vae, later_x)
    assert a.shape == (1, 2 * vae.latent_channels, f, h, w)
    close(b[:, :, : j + 1], a[:, :, : j + 1])
    assert not torch.allclose(b[:, :, j + 1], a[:, :, j + 1], atol=1e-3)

    a, b = decode(vae, z), decode(vae, later_z)
    assert a.shape == x.shape
    close(b[:, :, : t * j + 1], a[:, :, : t * j + 1])
    assert not torch.allclose(b[:, :, t * j + 1], a[:, :, t * j + 1], atol=1e-3)


@pytest.mark.parametrize("name", ["mixed", "8 frames", "space only"])
def test_every_frame_reaches_its_latent_and_every_latent_its_frames(name):
    vae = model(name)
    t, x, z = vae.temporal_stride, pixels(vae, 3), latents(vae, 3)
    for frame in range(x.shape[2]):
        changed = x.clone()
        changed[:, :, frame] += 0.5
        moved = (encode(vae, changed) - encode(vae, x)).abs().amax((0, 1, 3, 4)) > 1e-5
        assert moved.nonzero()[0].item() == -(-frame // t)
    for latent in range(3):
        changed = z.clone()
        changed[:, :, latent] += 0.5
        moved = (decode(vae, changed) - decode(vae, z)).abs().amax((0, 1, 3, 4)) > 1e-5
        assert moved.nonzero()[0].item() == max(0, t * (latent - 1) + 1)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_an_image_is_the_first_frame_of_a_clip(name):
    vae = model(name)
    x, z = pixels(vae, 3), latents(vae, 3)
    close(vae.encode(x[:, :, :1]).latent_dist.parameters, vae.encode(x).latent_dist.parameters[:, :, :1])
    close(vae.decode(z[:, :, :1]).sample, vae.decode(z).sample[:, :, :1])


def test_the_clips_of_a_batch_do_not_mix():
    vae, x = model("mixed"), clip(5, batch=3)
    close(encode(vae, x)[1:2], encode(vae, x[1:2]))


# --- chunks ---


@settings(quick, max_examples=30)
@given(architectures, st.integers(1, 7), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_chunks_equal_one_shot(name, f, first, later, batch, at_once):
    vae = model(name)
    x, z = pixels(vae, f, batch=batch), latents(vae, f, batch=batch)
    cut = Cut(first, later, at_once, 1, 2)
    close(with_cut(cut, lambda: vae.encode(x).latent_dist.parameters), encode(vae, x))
    close(with_cut(cut, lambda: vae.decode(z).sample), decode(vae, z))


@quick
@given(architectures, st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 3), st.integers(1, 3))
def test_streams_take_chunks_of_any_lengths(name, lengths, first, later):
    vae, t = model(name), model(name).temporal_stride
    f = 1 + sum(lengths) // t
    x, z = pixels(vae, f), latents(vae, f)
    ends = [min(end, x.shape[2]) for end in accumulate(lengths)]
    pieces = [x[:, :, a:b] for a, b in pairwise([0, *ends, x.shape[2]])]
    cut = Cut(first, later, 1, 1, 2)
    close(with_cut(cut, lambda: join(encode_stream(vae, iter(pieces)))), encode(vae, x).chunk(2, dim=1)[0])

    frames = with_cut(cut, lambda: list(decode_stream(vae, z.split(2, dim=2))))
    close(join(frames), decode(vae, z))
    wanted = [1 + t * (min(f, first) - 1)]
    wanted += [t * min(later, f - i) for i in range(first, f, later)]
    assert [part.shape[2] for part in frames] == wanted


def test_a_stream_gives_at_once_what_is_whole():
    vae, x = model("mixed"), clip(9, batch=1)
    stream = EncodeStream(vae)
    given = [stream.push(frame) for frame in x.split(1, dim=2)]
    assert [part.shape[2] for part in given] == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    stream.finish()
    close(join(given), encode(vae, x))

    z = latents(vae, 3)
    stream = DecodeStream(vae)
    given = [stream.push(frame) for frame in z.split(1, dim=2)]
    assert [part.shape[2] for part in given] == [1, 4, 4]
    close(join(given), decode(vae, z))


def test_an_incomplete_end_is_named_after_all_that_is_whole():
    vae, x, given = model("mixed"), clip(12, batch=1), []
    with pytest.raises(UserError, match=r"after 12 frames and the last 3 .* 1 \+ 4k frames, such as 9 or 13"):
        for z in encode_stream(vae, x.split(5, dim=2)):
            given.append(z)
    close(join(given), encode(vae, x[:, :, :9]).chunk(2, dim=1)[0])


def test_a_stream_refuses_sizes_that_change_or_do_not_fit():
    stream = EncodeStream(model("mixed"))
    with pytest.raises(UserError, match="8 x 10 pixels: this VAE takes multiples of 4"):
        stream.push(clip(5, 8, 10))
    stream.push(clip(5, 8, 12))
    with pytest.raises(ValueError, match="in a stream of"):
        stream.push(clip(4, 12, 8))


def test_gradients_pass_through_chunks():
    vae = copy.deepcopy(model("mixed")).requires_grad_(True)
    x = clip(13, batch=1)
    encode(vae, x).square().sum().backward()
    wanted = [p.grad.clone() for p in vae.encoder.parameters()]
    vae.zero_grad()
    with_cut(Cut(1, 1, 1, 2, 3), vae.encode, x).latent_dist.parameters.square().sum().backward()
    for p, want in zip(vae.encoder.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, want, rtol=1e-3, atol=1e-4)


# --- memory ---


@pytest.mark.parametrize("side", [encode_side, decode_side])
def test_live_memory_does_not_grow_with_the_frames(side):
    vae = model("mixed")
    side, make = side(vae), pixels if side is encode_side else latents
    peaks, outputs = [], []
    for f in (5, 25):
        x = make(vae, f, 4, 4)
        with budget.Lifetimes(torch.device("cpu")) as count, torch.no_grad():
            out = with_cut(Cut(3, 2, 1, 4, 4), run, side, x)
        assert count.live == out.nbytes  # the cache is gone
        peaks.append(count.peak)
        outputs.append(out.nbytes)
    assert peaks[1] - peaks[0] <= outputs[1] - outputs[0]


def test_the_cache_keeps_only_the_frames_that_it_needs_and_no_graph():
    stream = EncodeStream(copy.deepcopy(model("mixed")).requires_grad_(True))
    with torch.no_grad():
        stream.push(clip(17))
    history = stream.tiles[0].cache.history.values()
    assert history
    for past in history:
        assert past.untyped_storage().nbytes() == past.nbytes and past.shape[2] <= 2 and not past.requires_grad


def test_the_estimate_counts_what_lives_together():
    """Of x -> conv -> conv: input, output and the copies that the convolution may make."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (torch.nn.Conv3d(64, 64, 3, padding=1, bias=False) for _ in range(2))

        def forward(self, x, cache):
            x = self.a(x)
            return self.b(x)

    side = budget.Side("encode", Net(), 64, 64, 1, 1, 1, 1)
    unit, weight = 4 * 64 * 8 * 64 * 64, 4 * 27 * 64**2
    found = live_bytes(side, Cut(8, 0, 1, 64, 64))
    assert found == (5 * unit + weight, 0)  # input, a's and b's output; copies of b's input and output


@pytest.mark.parametrize("frames", [21, None])
@pytest.mark.parametrize("side", [encode_side, decode_side])
def test_the_cut_follows_the_budget(side, frames):
    side = side(copy.deepcopy(model("8 frames")).bfloat16())
    large = choose_cut(side, 2, frames, 96, 64, 2**40)
    assert (large.h, large.w) == (96, 64) and large.later == large.first - 1
    needed = [budget._needed(side, large, 2, 96, 64, frames is None)]
    seen = {large}
    while True:
        try:
            cut = choose_cut(side, 2, frames, 96, 64, needed[-1] - 1)
        except UserError as error:
            assert "takes at least" in str(error) and "give a larger budget" in str(error)
            break
        assert cut not in seen
        seen.add(cut)
        needed.append(budget._needed(side, cut, 2, 96, 64, frames is None))
        assert needed[-1] < needed[-2]
        whole = (cut.h, cut.w) == (96, 64)
        assert whole or (cut.clips == cut.later == 1)  # tiles come last
    assert len(needed) > 3
    # as long as a chunk is, a longer clip is cut alike
    if frames:
        assert choose_cut(side, 2, 1001, 96, 64, 2**40) == large


def test_the_default_budget_is_a_share_of_what_is_free_beside_the_output(monkeypatch):
    side = encode_side(model("mixed"))
    monkeypatch.setattr(budget, "free_bytes", lambda device: 10_000)
    with pytest.raises(UserError, match="to encode 64 x 64 pixels takes at least .* MB are allowed"):
        run(side, clip(5, 64, 64))


def test_limits_of_control_groups(tmp_path):
    """The smallest rest over the groups that hold the process; pages of files count as free."""
    stat = "anon 5\ninactive_file 100\nactive_file 20\ntotal_inactive_file 300\ntotal_active_file 0\n"
    (tmp_path / "self").write_text("4:memory:/job/step\n9:cpu:/job\n0::/job\n")
    groups = {
        "memory": ("memory.limit_in_bytes", "9223372036854771712", "memory.usage_in_bytes", "7"),
        "memory/job/step": ("memory.limit_in_bytes", "10000", "memory.usage_in_bytes", "4000"),
        "job": ("memory.max", "5000", "memory.current", "1000"),
        "": ("memory.max", "max", "memory.current", "1"),
    }
    for folder, (limit, most, usage, used) in groups.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / limit).write_text(most + "\n")
        (tmp_path / folder / usage).write_text(used + "\n")
        (tmp_path / folder / "memory.stat").write_text(stat)
    assert budget._cgroup_free(tmp_path, tmp_path / "self") == [10000 - 4000 + 300, 5000 - 1000 + 120]
    assert budget._cgroup_free(tmp_path, tmp_path / "none") == []
    assert 0 < budget.free_bytes(torch.device("cpu")) < 2**50


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimate_bounds_the_peak_on_a_gpu(dtype):
    vae = CausalVideoAutoencoder(**SMALL | dict(widths=(64, 64, 128))).to("cuda", dtype)
    for side, make in ((encode_side(vae), pixels), (decode_side(vae), latents)):
        x = make(vae, 17, 32, 32).to("cuda", dtype)
        estimate = live_bytes(side, choose_cut(side, 1, 17, 32, 32, None)).peak
        with torch.no_grad():
            run(side, x)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            out = run(side, x)
        peak = torch.cuda.max_memory_allocated() - before - out.nbytes
        assert peak <= estimate <= 3 * peak


# --- tiles ---


@given(st.integers(1, 100), st.integers(2 * OVERLAP, 60), st.integers(1, 8))
@quick
def test_tiles_cover_everything_with_weights_of_sum_1(size, tile, scale):
    tile = min(size, tile)
    starts, total = tile_starts(size, tile), torch.zeros(size * scale)
    assert starts[0] == 0 and starts[-1] + tile == size
    for start, weights in streaming._ramps(size, tile, scale):
        assert len(weights) == tile * scale and weights.min() >= 0
        total[start * scale : (start + tile) * scale] += weights
    torch.testing.assert_close(total, torch.ones_like(total))
    assert all(b - a < tile for a, b in pairwise(starts))
    if len(starts) == 1:
        assert torch.equal(total, torch.ones_like(total))


def test_tiles_equal_the_whole_but_for_a_small_error_at_the_seams():
    """Outside of the overlaps nothing differs, as this network does not see farther than they are wide."""
    vae = model("factorised")
    f, h, w, s = 3, 20, 40, vae.spatial_stride
    x = torch.nn.functional.interpolate(pixels(vae, f, h // 4, w // 4), scale_factor=(1, 4, 4), mode="trilinear")
    cut = Cut(2, 1, 1, 20, 24)
    (left, right) = tile_starts(w, 24)
    z = encode(vae, x)
    for got, want, scale in (
        (with_cut(cut, run, encode_side(vae), x), z, 1),
        (with_cut(cut, run, decode_side(vae), z.chunk(2, 1)[0]), decode(vae, z.chunk(2, 1)[0]), s),
    ):
        error = (got - want).abs()
        seam = slice(right * scale, (left + 24) * scale)
        assert 0 < error[..., seam].max() < 0.05 * want.std() and error[..., seam].mean() < 0.005 * want.std()
        error[..., seam] = 0
        assert error.max() < 1e-5 * want.abs().max()


def test_tiles_keep_a_cache_each():
    """Tiled streams in chunks equal the same tiles in one shot."""
    vae = model("mixed")
    x = pixels(vae, 5, 20, 20)
    once, chunks = (with_cut(Cut(*cut, 1, 16, 16), run, encode_side(vae), x) for cut in ((5, 0), (2, 1)))
    close(chunks, once)
    stream = with_cut(Cut(2, 1, 1, 16, 16), lambda: list(encode_stream(vae, x.split(3, dim=2))))
    close(join(stream), once.chunk(2, dim=1)[0])
