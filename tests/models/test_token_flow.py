"""TokenFlow in image models: extended attention, nearest neighbours and blending against their definitions."""

import math

import pytest
import torch
from open_animatediff import modelscope, stable_diffusion
from open_models import lively
from test_transformer import SMALL, disturbed
from torch import Tensor
from torch.nn import functional as F

from latentvid.errors import UserError
from latentvid.models.compiling import compile_blocks
from latentvid.models.open import packed
from latentvid.models.token_flow import (
    BLENDS,
    TokenFlow,
    between,
    joined,
    nearest,
    neighbours,
    propagated,
    self_attentions,
)
from latentvid.models.transformer import VideoDiT
from latentvid.packing import Packed

GRID = {"dit": (1, 2, 3), "unet": (1, 4, 4)}
PATCH_FEATURES = {"dit": 12, "unet": 4}
WIDTH = {"dit": 10, "unet": 12}
KINDS = ("dit", "unet")


def model_of(kind: str) -> torch.nn.Module:
    if kind == "dit":
        return disturbed(VideoDiT(**SMALL)).eval()
    torch.manual_seed(1)
    return packed(lively(stable_diffusion().unet)).eval()


def drawn(kind: str, frames: int, seed: int) -> Tensor:
    """[f,n,P]."""
    n = math.prod(GRID[kind])
    return torch.randn(frames, n, PATCH_FEATURES[kind], generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def forward(kind: str, model: torch.nn.Module, frames: Tensor, branches: int = 1, words: int = 3) -> Tensor:
    """The prediction [b,f,n,P] for frames [f,n,P] in branches of a prompt each."""
    count = len(frames)
    texts = [torch.randn(words, WIDTH[kind], generator=torch.Generator().manual_seed(7 + b)) for b in range(branches)]
    text = torch.cat([text for text in texts for _ in range(count)])
    layout, words = Packed.of([GRID[kind]] * branches * count), Packed.of_lengths([words] * branches * count)
    out = model(frames.flatten(0, 1).repeat(branches, 1), torch.full((branches * count,), 0.6), text, layout, words)
    return out.unflatten(0, (branches, count, -1))


class Heard:
    """What each self-attention of a model read and made, frame by frame: [b f,n,D] each."""

    def __init__(self, model: torch.nn.Module, frames: int) -> None:
        self.pairs: list[tuple[torch.nn.Module, Tensor, Tensor]] = []
        self.modules = self_attentions(model)
        self.handles = [module.register_forward_hook(self.hear, with_kwargs=True) for module in self.modules]
        self.frames = frames

    def hear(self, module, arguments, named, out) -> None:
        x = arguments[0]
        made = (t if t.ndim == 3 else t.unflatten(0, (self.frames, -1)) for t in (x, out))
        self.pairs.append((module, *made, arguments[1:]))

    def stop(self) -> list:
        """In the order of `self_attentions`, which is not that of the pass in a U-Net."""
        for handle in self.handles:
            handle.remove()
        return sorted(self.pairs, key=lambda pair: self.modules.index(pair[0]))


def slow_extended(module: torch.nn.Module, x: Tensor, rest, asking: Tensor | None = None, reach: int = 100) -> Tensor:
    """softmax(Q_i [K_1 ... K_k]^T / sqrt(d)) [V_1 ... V_k] of keyframes [k,n,D], one query after another.

    asking: of which Q and K are, instead of x.
    """
    asking = x if asking is None else asking
    if rest:  # of VideoDiT: with a norm of queries and keys, and positions
        heads, (cos, sin) = module.heads, (table[: x.shape[1]] for table in rest[0].rotary)
        q, k, v = [], [], []
        for frame, asks in zip(x, asking, strict=True):
            q.append(module.queries(asks, (cos, sin)))
            k.append(module.keys_values(asks, (cos, sin))[0])
            v.append(module.keys_values(frame, (cos, sin))[1])
        out_of = module.out
    else:
        heads = module.heads
        maps = (module.to_q, asking), (module.to_k, asking), (module.to_v, x)
        q, k, v = ([linear(frame).unflatten(-1, (heads, -1)) for frame in frames] for linear, frames in maps)
        out_of = module.to_out[0]
    made = []
    for i, frame in enumerate(q):
        near = slice(max(0, i - reach), i + reach + 1)
        keys, values = torch.cat(k[near]), torch.cat(v[near])  # [k n,A,K]
        rows = []
        for query in frame:  # [A,K]
            share = torch.softmax((keys * query).sum(-1) / math.sqrt(query.shape[-1]), dim=0)  # [k n,A]
            rows.append((share[..., None] * values).sum(0).flatten())
        made.append(out_of(torch.stack(rows)))
    return torch.stack(made)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("branches", [1, 2])
@torch.no_grad()
def test_keyframes_attend_to_the_tokens_of_all_of_them(kind, branches):
    model, frames = model_of(kind), drawn(kind, 3, 0)
    flow, heard = TokenFlow(model), Heard(model, 3 * branches)
    with flow.joint(3):
        forward(kind, model, frames, branches)
    pairs = heard.stop()
    assert len(pairs) == len(flow.layers) >= 2
    for (module, x, out, rest), layer in zip(pairs, flow.layers, strict=True):
        assert torch.equal(layer.made[0].flatten(0, 1), out)
        for of_x, of_out in zip(x.split(3), out.split(3), strict=True):  # each branch by itself
            torch.testing.assert_close(of_out, slow_extended(module, of_x, rest), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reach", [0, 1, 2, 3])
@torch.no_grad()
def test_keyframes_may_attend_to_those_near_them(reach):
    model, frames = model_of("dit"), drawn("dit", 4, 0)
    flow, heard = TokenFlow(model), Heard(model, 8)
    with flow.joint(4, reach=reach):
        forward("dit", model, frames, 2)
    for module, x, out, rest in heard.stop():
        for of_x, of_out in zip(x.split(4), out.split(4), strict=True):
            torch.testing.assert_close(of_out, slow_extended(module, of_x, rest, reach=reach), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="reach is of VideoDiT"), TokenFlow(model_of("unet")).joint(4, reach=reach):
        pass


def test_neighbours_stay_in_their_group():
    found, rows = neighbours(Packed.of_lengths([1, 2, 1, 3, 1, 2]), 3, 1)
    assert found.lengths == [3, 4, 3, 4, 6, 3] and found.max_len == 6
    assert found.cu_seqlens.tolist() == [0, 3, 7, 10, 14, 20, 23] and found.cu_seqlens.dtype == torch.int32
    wanted = [[0, 1, 2], [0, 1, 2, 3], [1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7, 8, 9], [7, 8, 9]]
    assert [part.tolist() for part in rows.split(found.lengths)] == wanted


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_keyframes_may_attend_as_those_of_the_source(kind):
    model, source, frames = model_of(kind), drawn(kind, 3, 3), drawn(kind, 3, 0)
    flow, heard = TokenFlow(model), Heard(model, 3)
    with flow.reading_keyframes():
        forward(kind, model, source)
    read = [x for _, x, _, _ in heard.stop()]
    plain, heard = forward(kind, model, frames, 2), Heard(model, 6)
    with flow.joint(3, as_source=True):
        forward(kind, model, frames, 2)
    for (module, x, out, rest), asking in zip(heard.stop(), read, strict=True):
        for of_x, of_out in zip(x.split(3), out.split(3), strict=True):
            torch.testing.assert_close(of_out, slow_extended(module, of_x, rest, asking), rtol=1e-4, atol=1e-5)
    assert torch.equal(forward(kind, model, frames, 2), plain)
    with flow.reading_keyframes():  # of its own frames it is what it was without
        want = forward(kind, model, frames)
    with flow.joint(1, as_source=True):
        torch.testing.assert_close(forward(kind, model, frames), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_keyframe_alone_is_as_ever(kind):
    model, frames = model_of(kind), drawn(kind, 2, 0)
    want = forward(kind, model, frames, 2)
    with TokenFlow(model).joint(1):
        torch.testing.assert_close(forward(kind, model, frames, 2), want, rtol=1e-5, atol=1e-5)
    with TokenFlow(model).joint(2):
        assert not torch.allclose(forward(kind, model, frames, 2), want, atol=1e-3)
    assert torch.equal(forward(kind, model, frames, 2), want)  # what it computes outside


def slow_nearest(a: Tensor, b: Tensor) -> Tensor:
    found = torch.zeros(a.shape[:2], dtype=torch.int64)
    for f in range(a.shape[0]):
        for p in range(a.shape[1]):
            distances = [1 - F.cosine_similarity(a[f, p].double(), q.double(), dim=0) for q in b[f]]
            found[f, p] = min(range(len(distances)), key=lambda i: distances[i])
    return found


def test_nearest_neighbours_are_those_of_least_cosine_distance():
    rand = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 7, 5, generator=rand), torch.randn(3, 4, 5, generator=rand)
    a[:, 0] = 100 * b[:, 2]  # length is of no account
    assert torch.equal(nearest(a, b), slow_nearest(a, b)) and (nearest(a, b)[:, 0] == 2).all()
    assert torch.equal(nearest(b, b), torch.arange(4).expand(3, -1))


def test_a_frame_lies_between_the_keyframes_about_it():
    keys = torch.tensor([2, 5, 9])
    where = between(torch.arange(12), keys, "linear")
    for frame in range(12):
        past = [i for i, key in enumerate(keys) if key <= frame] or [0]
        future = [i for i, key in enumerate(keys) if key > frame] or [2]
        assert (int(where.before[frame]), int(where.after[frame])) == (past[-1], future[0])
    sigmoid = between(torch.arange(12), keys, "sigmoid")
    for frame, share in {2: 0.0, 3: 1 / 3, 4: 2 / 3, 5: 0.0, 6: 1 / 4, 8: 3 / 4}.items():
        assert math.isclose(where.weight[frame], share, abs_tol=1e-6)
        assert math.isclose(sigmoid.weight[frame], 1 / (1 + math.exp(-share)), abs_tol=1e-6)


@pytest.mark.parametrize("blend", tuple(BLENDS))
def test_what_was_made_of_keyframes_flows_to_frames(blend):
    rand = torch.Generator().manual_seed(0)
    made, keys, frames = torch.randn(2, 3, 4, 5, generator=rand), torch.tensor([1, 3, 6]), torch.tensor([0, 2, 5, 6, 7])
    first, second = (torch.randint(4, (5, 4), generator=rand) for _ in range(2))
    where = between(frames, keys, blend)
    got = propagated(made, where, first, second)
    for b in range(2):
        for f in range(5):
            for p in range(4):
                i, j, w = int(where.before[f]), int(where.after[f]), float(where.weight[f])
                want = (1 - w) * made[b, i, first[f, p]] + w * made[b, j, second[f, p]]
                torch.testing.assert_close(got[b, f, p], want)


@pytest.mark.parametrize("kind", KINDS)
def test_features_flow_layer_by_layer_along_those_of_the_source(kind):
    """Frames 0 and 3 are keyframes, 1 and 2 lie between them."""
    model = model_of(kind)
    source, edited = drawn(kind, 2, 0), drawn(kind, 4, 1)
    keys = torch.tensor([0, 3])
    flow = TokenFlow(model)
    with flow.reading_keyframes():
        forward(kind, model, source)
    read = [layer.keys for layer in flow.layers]
    with flow.joint(2):
        of_keys = forward(kind, model, edited[keys], 2)
    # the keyframes themselves: all they take is what was made of their own tokens
    at_keys = between(keys, keys, "linear")
    with flow.reading(at_keys):
        forward(kind, model, source)
    for layer, keys_read in zip(flow.layers, read, strict=True):
        assert torch.equal(layer.keys, keys_read)
        assert torch.equal(layer.places[0], torch.arange(layer.made[0].shape[2]).expand(2, -1))
    with flow.flowing(at_keys):
        torch.testing.assert_close(forward(kind, model, edited[keys], 2), of_keys, rtol=1e-4, atol=1e-5)
    # others, in each layer
    where, seen = between(torch.tensor([1, 2]), keys, "sigmoid"), drawn(kind, 2, 2)
    heard = Heard(model, 2)
    with flow.reading(where):
        forward(kind, model, seen)
    for (_, _, features, _), layer in zip(heard.stop(), flow.layers, strict=True):
        for found, key in zip(layer.places, (0, 1), strict=True):
            assert torch.equal(found, slow_nearest(features, layer.keys[[key, key]]))
    heard = Heard(model, 4)
    with flow.flowing(where):
        forward(kind, model, edited[1:3], 2)
    for (_, x, out, _), layer in zip(heard.stop(), flow.layers, strict=True):
        assert x.shape == out.shape
        torch.testing.assert_close(out.unflatten(0, (2, 2)), propagated(layer.made[0], where, *layer.places))


def test_prompts_of_two_lengths_are_two_passes_of_a_unet():
    model, frames = model_of("unet"), drawn("unet", 2, 0)

    def run() -> Tensor:
        text, words = torch.randn(2 * 3 + 2 * 5, 12, generator=torch.Generator().manual_seed(3)), [3, 3, 5, 5]
        with torch.no_grad():
            return model(frames.flatten(0, 1).repeat(2, 1), torch.full((4,), 0.6), text,
                         Packed.of([GRID["unet"]] * 4), Packed.of_lengths(words))  # fmt: skip

    flow, keys = TokenFlow(model), torch.arange(2)
    with flow.reading_keyframes():
        forward("unet", model, frames)
    with flow.joint(2):
        want = run()
    assert [len(layer.made) for layer in flow.layers] == [2] * len(flow.layers)
    where = between(keys, keys, "linear")
    with flow.reading(where):
        forward("unet", model, frames)
    with flow.flowing(where):
        torch.testing.assert_close(run(), want, rtol=1e-4, atol=1e-5)


def test_a_pass_that_fails_leaves_the_model_as_it_was():
    model, frames = model_of("dit"), drawn("dit", 2, 0)
    want = forward("dit", model, frames)
    with pytest.raises(ValueError, match="1 prompts|no whole number"), TokenFlow(model).joint(3):
        forward("dit", model, frames)
    assert torch.equal(forward("dit", model, frames), want)
    assert not any("forward" in vars(module) for module in self_attentions(model))


def test_segments_join_in_whole_numbers():
    layout = Packed.of_lengths([2, 3, 1, 4])
    found = joined(layout, 2)
    assert found.lengths == [5, 5] and found.cu_seqlens.tolist() == [0, 5, 10] and found.max_len == 5
    with pytest.raises(ValueError, match="4 segments are no whole number of 3"):
        joined(layout, 3)


@pytest.mark.parametrize("attention", ["factorised", "causal", "inflated"])
def test_other_attention_is_named(attention):
    with pytest.raises(UserError, match=f"attention 'full', and this model's is '{attention}'"):
        TokenFlow(VideoDiT(**SMALL, attention=attention))


def test_models_of_video_are_named():
    with pytest.raises(UserError, match="this one is unet3d: take another method"):
        TokenFlow(packed(modelscope().unet))
    model = VideoDiT(**SMALL)
    compile_blocks(model)
    with pytest.raises(UserError, match="not compiled"):
        TokenFlow(model)
