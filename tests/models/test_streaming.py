"""Chunks of frames with a cache equal the one-shot result; tiles nearly do."""

import copy
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vae import clip, close
from streams import ARCHITECTURES, decode, encode, join, latents, model, pixels, with_cut

from latentvid.errors import UserError
from latentvid.models import streaming
from latentvid.models.budget import OVERLAP, Cut, tile_starts
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
architectures = st.sampled_from(sorted(ARCHITECTURES))


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
