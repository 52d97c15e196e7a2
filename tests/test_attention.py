"""Every backend computes the reference's function, forward and backward; the wrong backend is refused with the fix."""

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import latentvid.cpu.grouped as grouped
import latentvid.cpu.grouping as grouping
from latentvid.attention import BACKENDS, packed_attention, resolve_backend
from latentvid.errors import UserError
from latentvid.packing import Packed

quick = settings(max_examples=25, deadline=None, database=None, derandomize=True)
lengths = st.lists(st.sampled_from([1, 2, 3, 5, 8]), min_size=1, max_size=6)  # few values, so that lengths repeat


def inputs(of_q, of_k, heads=2, width=4, dtype=torch.float32, device="cpu"):
    layouts = Packed.of_lengths(of_q).to(device), Packed.of_lengths(of_k).to(device)
    q, k, v = (torch.randn(n, heads, width, device=device, dtype=dtype) for n in (sum(of_q), sum(of_k), sum(of_k)))
    return [x.requires_grad_() for x in (q, k, v)], layouts


def run(backend, tensors, layouts):
    """Output and the gradients of q, k and v under a loss that weighs every element differently."""
    out = packed_attention(*tensors, *layouts, backend)
    weight = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).reshape(out.shape)
    return out, *torch.autograd.grad((out * weight).sum(), tensors)


def by_hand(q, k, v, layout_q, layout_k):
    out = []
    for n in range(layout_q.segments):
        i, j = layout_q.segment == n, layout_k.segment == n
        scores = torch.einsum("tak,sak->ats", q[i], k[j]) / q.shape[-1] ** 0.5
        out.append(torch.einsum("ats,sak->tak", scores.softmax(-1), v[j]))
    return torch.cat(out)


@pytest.mark.parametrize("backend", ["sdpa", "grouped"])
def test_backends_are_softmax_within_segments(backend):
    tensors, layouts = inputs([3, 5, 1, 3], [2, 2, 4, 7])
    torch.testing.assert_close(packed_attention(*tensors, *layouts, backend), by_hand(*tensors, *layouts))


@quick
@given(
    lengths,
    st.data(),
    st.sampled_from([1, 48, 1 << 24]),
    st.sampled_from([1, 3, 512]),
    st.sampled_from([1, 4, 32]),
    st.sampled_from([1, 12, 1 << 16]),
)
def test_grouped_equals_sdpa(of_q, data, block_bytes, turned, fused_tokens, alone):
    """Self-attention and ragged cross-attention, in any order of lengths: whole, cut into blocks of queries, by the
    fused kernel, and with large segments by themselves."""
    ragged = data.draw(st.lists(st.integers(1, 9), min_size=len(of_q), max_size=len(of_q)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouped, "BLOCK_BYTES", block_bytes)
        patch.setattr(grouped, "TURNED", turned)
        patch.setattr(grouped, "FUSED_TOKENS", fused_tokens)
        patch.setattr(grouping, "ALONE", alone)
        grouping._by_bounds.cache_clear()  # what it remembers is of another threshold
        for of_k in (of_q, ragged):
            tensors, layouts = inputs(of_q, of_k, heads=3)
            for got, want in zip(run("grouped", tensors, layouts), run("sdpa", tensors, layouts), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    grouping._by_bounds.cache_clear()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_block_has_as_many_heads_as_there_are_threads(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(grouped, "BLOCK_BYTES", 4 * 5 * 10)
    blocks = list(grouped._blocks(torch.empty(6, 10, 4), keys=10))  # half a head's scores fit
    assert len(blocks) == 2 * 6 / threads
    assert {(heads.stop - heads.start, rows.stop - rows.start) for heads, rows in blocks} == {(threads, 5)}


def test_large_segments_are_groups_of_their_own(monkeypatch):
    monkeypatch.setattr(grouping, "_by_bounds", grouping._by_bounds.__wrapped__)
    (q, k, _), layouts = inputs([512, 512, 30, 29], [512, 512, 30, 29])
    groups = grouping.segment_groups(q, k, *(layout.cu_seqlens for layout in layouts))
    assert [queries.starts for queries, _ in groups] == [[0], [512], [1024, 1054]]
    out = torch.empty(len(q) + 1, 2, 4)
    for queries, _ in groups:
        here = queries.room(out).untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
        assert here == (queries.segments == 1)  # nothing to copy


def test_what_attention_keeps_from_call_to_call_serves_sampling_and_training():
    """A tensor made under inference mode cannot be written to by training."""
    grouped._scratch.buffers.clear()
    tensors, layouts = inputs([9, 4], [9, 4], dtype=torch.bfloat16)
    with torch.inference_mode():
        packed_attention(*tensors, *layouts, "grouped")
    first = run("grouped", tensors, layouts)
    assert set(grouped._scratch.buffers) == {0, 1}
    for buffer in grouped._scratch.buffers.values():
        buffer.fill_(255)  # NaN in every dtype: nothing of a call before is read
    for got, want in zip(run("grouped", tensors, layouts), first, strict=True):
        assert torch.equal(got, want) and got.isfinite().all()


def test_groups_hold_every_segment_once_and_blocks_hold_what_they_may(monkeypatch):
    monkeypatch.setattr(grouped, "BLOCK_BYTES", 400)
    monkeypatch.setattr(grouping, "KEY_MULTIPLE", 4)
    monkeypatch.setattr(grouping, "QUERY_MULTIPLE", 4)
    # what it remembers is of other multiples
    monkeypatch.setattr(grouping, "_by_bounds", grouping._by_bounds.__wrapped__)
    (q, k, _), layouts = inputs([6, 2, 7, 4, 4, 1], [5, 3, 4, 8, 8, 1], heads=3)
    groups = list(grouping.segment_groups(q, k, *(layout.cu_seqlens for layout in layouts)))
    for rows, x in ((rows, x) for pair in groups for rows, x in zip(pair, (q, k), strict=True)):
        assert rows.heads(x).shape == (rows.segments * 3, rows.length, 4)
        past = torch.zeros(rows.segments, rows.length) > 0 if rows.index is None else rows.index == len(x)
        masked = 0 if rows.padded is None else rows.padded.shape[1]  # only the last places can be padding
        assert not past[:, : rows.length - masked].any()
        assert rows.padded is None or torch.equal(rows.padded, past[:, -masked:])
    for side, x in enumerate((q, k)):
        taken, put = torch.zeros(len(x) + 1), torch.empty(len(x) + 1, 3, 4)
        for rows in (pair[side] for pair in groups):
            whole = range(rows.starts[0], rows.starts[0] + rows.segments * rows.length)
            taken[list(whole) if rows.index is None else rows.index.flatten()] += 1
            rows.put(rows.heads(x), put)
        assert (taken[:-1] == 1).all() and torch.equal(put[:-1], x)
    counts = []
    for queries, keys in groups:
        batch = torch.zeros(queries.segments * 3, queries.length, 4)
        blocks = list(grouped._blocks(batch, keys.length))
        for heads, rows in blocks:
            assert batch[heads, rows, 0].numel() * keys.length * batch.element_size() <= 400
            batch[heads, rows] += 1
        assert (batch == 1).all()
        counts.append(len(blocks))
    assert max(counts) > 1


def test_equal_segments_side_by_side_are_taken_without_an_index():
    (q, k, _), layouts = inputs([40, 40, 40], [32, 32, 32])
    ((queries, keys),) = grouping.segment_groups(q, k, *(layout.cu_seqlens for layout in layouts))
    assert queries.index is None and keys.index is None and queries.length == 40 and keys.length == 32
    (q, k, _), layouts = inputs([40, 39], [32, 32])
    ((queries, keys),) = grouping.segment_groups(q, k, *(layout.cu_seqlens for layout in layouts))
    assert queries.padded.sum() == 1 and keys.index is None


def test_only_many_queries_have_their_keys_padded():
    """Padding costs a copy for each key and saves time for each query: short segments through time stay as they are."""
    multiple, many = grouping.KEY_MULTIPLE, grouping.MANY_KEYS
    cases = (5, 5, 5), (50, 5, multiple), (50, many - 1, many), (50, many + 1, many + 2 * multiple)
    for queries, keys, length in cases:
        (q, k, _), layouts = inputs([queries] * 9, [keys] * 9)
        ((_, rows),) = grouping.segment_groups(q, k, *(layout.cu_seqlens for layout in layouts))
        assert rows.length == length and (rows.index is None) == (length == keys)


@pytest.mark.parametrize("turned", [1, 512])
def test_grouped_in_bf16_is_near_fp32(turned, monkeypatch):
    monkeypatch.setattr(grouped, "TURNED", turned)
    tensors, layouts = inputs([9, 4, 9, 30], [6, 11, 3, 30], width=16)
    rounded = [x.detach().bfloat16().requires_grad_() for x in tensors]
    exact = [x.detach().float().requires_grad_() for x in rounded]
    for got, want in zip(run("grouped", rounded, layouts), run("sdpa", exact, layouts), strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.float() - want).norm() < 2e-2 * want.norm()


@pytest.mark.parametrize("fused_tokens", [1, 512])
def test_strided_inputs_give_the_same(fused_tokens, monkeypatch):
    monkeypatch.setattr(grouped, "FUSED_TOKENS", fused_tokens)
    tensors, layouts = inputs([3, 5, 3], [4, 1, 2])
    strided = [x.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_() for x in tensors]
    assert not strided[0].is_contiguous()
    for got, want in zip(run("grouped", strided, layouts), run("sdpa", tensors, layouts), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("fused_tokens", [1, 512])
def test_custom_operators_keep_torchs_contract(fused_tokens, monkeypatch):
    monkeypatch.setattr(grouped, "FUSED_TOKENS", fused_tokens)
    tensors, layouts = inputs([3, 5, 3], [4, 1, 2])
    cu = [layout.cu_seqlens for layout in layouts]
    forward, backward = (getattr(torch.ops.latentvid, f"grouped_attention{end}").default for end in ("", "_backward"))
    torch.library.opcheck(forward, (*tensors, *cu))
    plain = [x.detach() for x in tensors]
    grad, found = torch.randn_like(plain[0]), grouped.kept(*forward(*plain, *cu))
    torch.library.opcheck(backward, (grad, *plain, *cu, *found))


def test_only_segments_in_fp32_take_the_fused_kernel(monkeypatch):
    """Which is slower than products in bf16, and on very short ones."""
    calls = []
    monkeypatch.setattr(grouped, "_fused", lambda q, *_: calls.append(q.dtype))
    for dtype in (torch.float32, torch.bfloat16):
        for lengths in ([grouped.FUSED_TOKENS - 1], [grouped.FUSED_TOKENS]):
            tensors, layouts = inputs(lengths, lengths, dtype=dtype)
            packed_attention(*(x.detach() for x in tensors), *layouts, "grouped")
    assert calls == [torch.float32]


def test_layouts_that_do_not_fit_are_refused():
    tensors, (layout_q, layout_k) = inputs([3, 5], [4, 1])
    for wrong in (Packed.of_lengths([3, 4]), Packed.of_lengths([3, 6]), Packed.of_lengths([2, 3, 3])):
        with pytest.raises(ValueError, match="do not fit 8 queries and 5 keys"):
            packed_attention(*tensors, wrong, layout_k, "grouped")
    with pytest.raises(ValueError, match="do not fit 8 queries and 5 keys"):
        packed_attention(*tensors, layout_q, Packed.of_lengths([4, 2]), "grouped")


def test_auto_is_what_the_device_does_best():
    assert resolve_backend("auto", "cpu", torch.bfloat16) == "grouped"
    assert resolve_backend("auto", "cuda", torch.bfloat16) == resolve_backend("torch", "cuda", torch.float16) == "torch"
    assert resolve_backend("auto", torch.device("cuda", 1), torch.float32) == "efficient"
    assert all(resolve_backend(name, "cpu", torch.float32) == name for name in ("grouped", "sdpa"))


@pytest.mark.parametrize(
    ("name", "device", "dtype", "message"),
    [
        (
            "xformers",
            "cpu",
            torch.float32,
            r"'xformers': one of auto, torch, .*, sdpa$",
        ),
        ("torch", "cpu", torch.bfloat16, r"'torch' needs CUDA and bf16 or fp16, got cpu and bfloat16: use 'auto'"),
        ("flash", "cuda", torch.float32, r"'flash' needs CUDA and bf16 or fp16, got cuda and float32: use 'auto'"),
    ],
)
def test_a_backend_that_cannot_run_is_refused_with_the_fix(name, device, dtype, message):
    with pytest.raises(UserError, match=message):
        resolve_backend(name, device, dtype)


def test_flash_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install latentvid\[flash\]"):
        resolve_backend("flash", "cuda", torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - {"sdpa"}))
@pytest.mark.parametrize("of_k", [[9, 4, 9, 130], [6, 11, 300, 3]], ids=["self", "cross"])
def test_cuda_backends_equal_sdpa_in_bf16(backend, of_k):
    if backend == "flash" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    tensors, layouts = inputs([9, 4, 9, 130], of_k, width=64, dtype=torch.bfloat16, device="cuda")
    exact = [x.detach().float().requires_grad_() for x in tensors]
    for got, want in zip(run(backend, tensors, layouts), run("sdpa", exact, layouts), strict=True):
        assert (got.float() - want).norm() < 2e-2 * want.norm()
