"""The packed layout against its definition, and patches that come back as they went in."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from latentvid.errors import UserError
from latentvid.packing import Packed, Reference, overlaps, patchify, spans, token_grid, unpatchify

quick = settings(max_examples=30, deadline=None, database=None, derandomize=True)
side = st.integers(1, 4)
grids = st.lists(st.tuples(side, side, side), min_size=1, max_size=5)


@quick
@given(grids)
def test_layout_is_its_definition(grids):
    layout = Packed.of(grids)
    token = row = 0
    for n, (frames, height, width) in enumerate(grids):
        assert layout.cu_seqlens[n] == token
        for f in range(frames):
            for h in range(height):
                for w in range(width):
                    assert layout.position[token].tolist() == [f, h, w]
                    assert layout.segment[token] == n and layout.frame[token] == row
                    token += 1
            assert layout.frame_segment[row] == n and layout.frame_tokens[row] == height * width
            row += 1
    assert layout.cu_seqlens[-1] == token == layout.tokens == len(layout.segment) == len(layout.frame)
    assert layout.frames == row and layout.segments == len(grids) and layout.whole is None
    assert layout.lengths == layout.cu_seqlens.diff().tolist() and layout.max_len == max(layout.lengths)
    assert layout.sample_lengths == layout.lengths
    assert layout.cu_seqlens.dtype == torch.int32 and layout.frame.dtype == torch.int64


@quick
@given(grids, st.integers(1, 6))
def test_pieces_are_the_whole_cut(grids, pieces):
    """Side by side they are the pack; each has its samples and rows numbered from 0, and all rows of its samples."""
    whole = Packed.of(grids)
    assume(whole.tokens >= pieces)
    every = spans(whole.lengths, pieces)
    assert every[0].start == 0 and every[-1].stop == whole.tokens
    assert all(a.stop == b.start for a, b in zip(every, every[1:], strict=False))
    sizes = [span.stop - span.start for span in every]
    assert max(sizes) - min(sizes) <= 1
    assert [sum(column) for column in zip(*(overlaps(whole.lengths, s) for s in every), strict=True)] == whole.lengths
    for span in every:
        piece, here = whole.piece(span), slice(span.start, span.stop)
        rows = (whole.frame_segment >= span.first) & (whole.frame_segment < span.last)
        assert piece.whole is whole and piece.tokens == span.stop - span.start == sum(piece.lengths)
        assert torch.equal(piece.position, whole.position[here])
        assert torch.equal(piece.segment + span.first, whole.segment[here])
        assert torch.equal(piece.frame + int(rows.nonzero()[0]), whole.frame[here])
        assert torch.equal(piece.frame_segment + span.first, whole.frame_segment[rows])
        assert torch.equal(piece.frame_tokens, whole.frame_tokens[rows])
        assert piece.lengths == piece.cu_seqlens.diff().tolist() == piece.segment.bincount().tolist()
        assert piece.max_len == max(piece.lengths) and piece.cu_seqlens.dtype == torch.int32
        assert piece.segments == len(piece.lengths) and piece.grid == tuple(grids[span.first : span.last])
        assert piece.sample_lengths == whole.lengths[span.first : span.last]


def test_pieces_move_with_their_whole_and_hold_no_latents():
    whole = Packed.of([(2, 2, 2), (1, 1, 3)])
    piece = whole.piece(spans(whole.lengths, 2)[1])
    assert piece.to("meta").whole.cu_seqlens.device.type == "meta"
    with pytest.raises(ValueError, match="a piece of a pack holds no whole latents"):
        unpatchify(torch.zeros(6, 1), piece, 1)


def test_packs_with_fewer_tokens_than_processes_are_refused():
    with pytest.raises(UserError, match=r"3 tokens.*4 processes.*train\.sequence_parallel"):
        spans([1, 2], 4)


@quick
@given(grids, st.integers(1, 2), st.integers(1, 3))
def test_unpatchify_is_the_inverse(grids, patch, channels):
    latents = [torch.randn(channels, f, h * patch, w * patch) for f, h, w in grids]
    tokens, token_grids = patchify(latents, patch)
    layout = Packed.of(token_grids)
    assert token_grids == grids and tokens.shape == (layout.tokens, channels * patch**2)
    back = unpatchify(tokens, layout, patch)
    assert len(back) == len(latents) and all(torch.equal(a, b) for a, b in zip(back, latents, strict=True))


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_patches_over_time(frames):
    """A patch of 2 frames: the first frame stands twice where their number is odd, and is left out again."""
    latents = [torch.randn(3, frames, 4, 6), torch.randn(3, 4, 2, 9)]
    tokens, grids = patchify(latents, (2, 2, 3))
    assert grids == [(-(-frames // 2), 2, 2), (2, 1, 3)] == [token_grid(z.shape[1:], (2, 2, 3)) for z in latents]
    layout = Packed.of(grids)
    padded = [torch.cat([z[:, :1], z], 1) if z.shape[1] % 2 else z for z in latents]
    for token, (f, h, w), i in zip(tokens, layout.position.tolist(), layout.segment.tolist(), strict=True):
        part = padded[i][:, 2 * f : 2 * f + 2, 2 * h : 2 * h + 2, 3 * w : 3 * w + 3]
        assert torch.equal(token, part.flatten())
    for asked, want in ((None, padded), ([frames, 4], latents)):
        back = unpatchify(tokens, layout, (2, 2, 3), asked)
        assert all(torch.equal(a, b) for a, b in zip(back, want, strict=True))


def test_a_token_holds_its_own_patch():
    latent = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    tokens, grids = patchify([latent], 2)
    layout = Packed.of(grids)
    for token, (f, h, w) in zip(tokens, layout.position.tolist(), strict=True):
        assert torch.equal(token, latent[:, f, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].flatten())


def test_plain_sequences():
    layout = Packed.of_lengths([3, 1, 2])
    assert layout.cu_seqlens.tolist() == [0, 3, 4, 6] and layout.lengths == [3, 1, 2] and layout.max_len == 3
    assert layout.segment.tolist() == [0, 0, 0, 1, 2, 2]
    assert layout.frame.tolist() == layout.segment.tolist()  # one row a sequence


def test_to_moves_and_never_casts():
    layout = Packed.of([(2, 2, 3), (1, 1, 1)])
    moved = layout.to("meta", torch.bfloat16, non_blocking=True)
    for name, value in vars(layout).items():
        other = getattr(moved, name)
        if isinstance(value, torch.Tensor):
            assert other.device.type == "meta" and other.dtype == value.dtype and other.shape == value.shape
        else:
            assert other == value
    assert layout.to(torch.float16) is layout
    assert torch.equal(layout.to(device="cpu").position, layout.position)


def test_layouts_do_not_share_what_a_caller_could_overwrite():
    first = Packed.of([(2, 2, 2)])
    first.position.zero_()
    assert Packed.of([(2, 2, 2)]).position.any()


@pytest.mark.gpu
def test_pinned_layouts_reach_the_device_whole():
    layout = Packed.of([(2, 2, 3), (1, 1, 1)])
    pinned = layout.pin_memory()
    assert pinned.segment.is_pinned()
    assert torch.equal(pinned.to("cuda", non_blocking=True).position.cpu(), layout.position)


@pytest.mark.parametrize("grids", [[], [(1, 0, 2)], [(2, 2, 2), (-1, 1, 1)]])
def test_empty_packs_and_samples_are_refused(grids):
    with pytest.raises(ValueError, match="at least one sample and sides of at least 1"):
        Packed.of(grids)


def test_latents_that_patches_do_not_cover_are_refused():
    assert token_grid((3, 4, 6), 2) == (3, 2, 3)
    with pytest.raises(ValueError, match="latent 4 x 5 is not a multiple of the patch size 2"):
        patchify([torch.zeros(1, 1, 4, 5)], 2)
    with pytest.raises(ValueError, match="latent 4 x 5 is not a multiple of the patch 2 x 3"):
        token_grid((1, 4, 5), (1, 2, 3))


references = st.lists(
    st.builds(Reference, st.tuples(side, side, side), st.sampled_from(["beside", "aligned"]), st.integers(0, 2)),
    max_size=3,
).map(tuple)


@quick
@given(st.lists(st.tuples(st.tuples(side, side, side), references), min_size=1, max_size=4), st.integers(1, 4))
def test_references_follow_their_samples_tokens(samples, pieces):
    """Each with latent frames of its own; a piece of the pack is that run of its tokens."""
    grids, shown = zip(*samples, strict=True)
    layout = Packed.of(grids, shown)
    token = row = 0
    for n, (grid, of_sample) in enumerate(samples):
        for f, h, w in (grid, *(reference.grid for reference in of_sample)):
            for _ in range(f):
                assert (layout.frame[token : token + h * w] == row).all()
                assert (layout.segment[token : token + h * w] == n).all()
                assert layout.frame_segment[row] == n and layout.frame_tokens[row] == h * w
                token, row = token + h * w, row + 1
        assert layout.cu_seqlens[n + 1] == token
    assert layout.tokens == token and layout.frames == row and layout.sample_lengths == layout.lengths
    own = layout.own(layout.position)
    assert all(torch.equal(a.long(), Packed.of([g]).position) for a, g in zip(own, grids, strict=True))
    assert layout.repeated(2).lengths == layout.lengths * 2
    assume(layout.tokens >= pieces)
    for span in spans(layout.lengths, pieces):
        piece, here = layout.piece(span), slice(span.start, span.stop)
        rows = (layout.frame_segment >= span.first) & (layout.frame_segment < span.last)
        assert torch.equal(piece.position.float(), layout.position[here].float())
        assert torch.equal(piece.frame + int(rows.nonzero()[0]), layout.frame[here])
        assert torch.equal(piece.frame_tokens, layout.frame_tokens[rows])
        assert piece.sample_lengths == layout.lengths[span.first : span.last]


def test_latents_of_a_pack_are_those_of_its_samples():
    latents = [torch.randn(2, f, 4, 4) for f in (3, 1, 2)]
    tokens, (first, *rest) = patchify(latents, 2)
    layout = Packed.of([first], [[Reference(rest[0]), Reference(rest[1], "aligned")]])
    (back,) = unpatchify(tokens, layout, 2)
    assert torch.equal(back, latents[0])
    with pytest.raises(ValueError, match="1 samples and references of 2"):
        Packed.of([first], [(), ()])
    with pytest.raises(ValueError, match="sides of at least 1"):
        Packed.of([first], [[Reference((1, 0, 1))]])
