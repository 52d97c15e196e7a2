"""Convolution and resampling that are causal in time, with an explicit cache for streaming.

Axes: B clips, C channels, f frames (at whatever rate this level runs), h w height and width.

Frame counts are `1 + 2^n k`: the first frame is a group of its own at every level, later frames form groups of
`2^n`. A stream is fed as one chunk that holds the first frame, then chunks of whole groups; with a `StreamCache` the
chunks' outputs, concatenated, equal the one-shot output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..kernels import conv3d


class StreamCache:
    """What each causal layer must remember between the chunks of one stream: its last input frames.

    One instance serves one pass (encode or decode) over one stream. `started` is False while the first chunk passes.
    With `more=False` the first chunk is the whole clip and nothing is remembered.
    """

    def __init__(self, more: bool) -> None:
        self.history: dict[nn.Module, Tensor] = {}
        self.started = False
        self.more = more

    def extend(self, layer: nn.Module, x: Tensor, frames: int) -> Tensor:
        """Prepends the `frames` input frames before `x` [B,C,f,h,w]; before the stream began, its first frame."""
        past = self.history[layer] if self.started else x[:, :, :1].expand(-1, -1, frames, -1, -1)
        x = torch.cat([past, x], dim=2)
        if self.more:
            self.history[layer] = x[:, :, -frames:].clone()  # a view would keep the whole chunk alive
        return x


class Conv3d(nn.Conv3d):
    """3D convolution, stride 1, 'same' in space, without padding in time."""

    def __init__(self, channels_in: int, channels_out: int, kernel: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__(channels_in, channels_out, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv3d(x, weight, bias, self.padding[1:])


class CausalConv3d(Conv3d):
    """In time it sees the present frame and `kt - 1` earlier ones.

    Before the first frame the first frame is repeated, so an image is a still clip seen for one frame.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: tuple[int, int, int] = (3, 3, 3)) -> None:
        super().__init__(channels_in, channels_out, kernel)

    def forward(self, x: Tensor, cache: StreamCache) -> Tensor:  # [B,C,f,h,w] -> [B,C',f,h,w]
        past = self.kernel_size[0] - 1
        return super().forward(cache.extend(self, x, past) if past else x)


def resize_channels(x: Tensor, channels: int) -> Tensor:
    """[B,C,f,h,w] -> [B,channels,f,h,w] without parameters: means of neighbouring channels, or repeats of each.

    The shortcut around everything that changes the number of channels (DC-AE, Chen et al. 2024, section 3.1), so that
    an untrained autoencoder already passes coarse colours through.
    """
    have = x.shape[1]
    if channels % have == 0:
        return x if channels == have else x.repeat_interleave(channels // have, dim=1)
    if have % channels == 0:
        return x.unflatten(1, (channels, have // channels)).mean(dim=2)
    if have < channels:
        return x[:, torch.arange(channels, device=x.device) * have // channels]
    pooled = F.adaptive_avg_pool1d(x.movedim(1, -1).flatten(0, 2), channels)
    return pooled.unflatten(0, (x.shape[0], *x.shape[2:4])).movedim(-1, 1)


class Downsample(nn.Module):
    """Folds `time` frames and `space` x `space` pixels into channels, then mixes them by a 1x1x1 convolution."""

    def __init__(self, channels_in: int, channels_out: int, time: int, space: int, shortcut: bool) -> None:
        super().__init__()
        self.time, self.space, self.shortcut = time, space, shortcut
        folded = channels_in * time * space**2
        self.mix = Conv3d(folded, channels_out)

    def forward(self, x: Tensor, cache: StreamCache) -> Tensor:
        # the first frame forms a group of its own: repeat it to the group's length
        if self.time > 1 and not cache.started:
            x = torch.cat([x[:, :, :1].expand(-1, -1, self.time - 1, -1, -1), x], dim=2)
        x = rearrange(
            x, "B C (f t) (h s1) (w s2) -> B (C t s1 s2) f h w", t=self.time, s1=self.space, s2=self.space
        ).contiguous(memory_format=torch.channels_last_3d)
        y = self.mix(x)
        return y + resize_channels(x, y.shape[1]) if self.shortcut else y


class Upsample(nn.Module):
    """The reverse of `Downsample`: a 1x1x1 convolution to `time * space^2` times the channels, unfolded.

    Of the first group only its last frame exists.
    """

    def __init__(self, channels_in: int, channels_out: int, time: int, space: int, shortcut: bool) -> None:
        super().__init__()
        self.time, self.space, self.shortcut = time, space, shortcut
        folded = channels_out * time * space**2
        self.mix = Conv3d(channels_in, folded)

    def forward(self, x: Tensor, cache: StreamCache) -> Tensor:
        y = self.mix(x)
        x = y + resize_channels(x, y.shape[1]) if self.shortcut else y
        x = rearrange(x, "B (C t s1 s2) f h w -> B C (f t) (h s1) (w s2)", t=self.time, s1=self.space, s2=self.space)
        if self.time > 1 and not cache.started:
            x = x[:, :, self.time - 1 :]
        return x.contiguous(memory_format=torch.channels_last_3d)


class ChannelNorm(nn.LayerNorm):
    """Normalises the channels of each position by itself: nothing leaks across time or space.

    On GPUs it stays in x's dtype under autocast too, which would write fp32; the kernel's sums are fp32 anyway.
    """

    def forward(self, x: Tensor) -> Tensor:  # [B,C,f,h,w]; channels are last in memory, so moving the axis is free
        x = x.movedim(1, -1)
        if x.device.type != "cuda":
            return super().forward(x).movedim(-1, 1)
        with torch.autocast("cuda", enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps).movedim(-1, 1)


def entering(x: Tensor) -> Tensor:
    """x in the type that autocast on a GPU computes in: what is added to it on the way, and normalised, stays so."""
    return x.to(torch.get_autocast_dtype("cuda")) if _autocast_on_gpu(x) else x


def leaving(x: Tensor) -> Tensor:
    """x in fp32 where `entering` changed it: the last sum of a network, small beside the rest, is exact."""
    return x.float() if _autocast_on_gpu(x) else x


def _autocast_on_gpu(x: Tensor) -> bool:
    return x.device.type == "cuda" and torch.is_autocast_enabled("cuda")


class ResBlock(nn.Module):
    """Two causal convolutions around a SiLU, pre-normalised: one in space and time, one in space or both."""

    def __init__(self, channels: int, kernels: tuple[tuple[int, int, int], tuple[int, int, int]]) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = CausalConv3d(channels, channels, kernels[0])
        self.conv2 = CausalConv3d(channels, channels, kernels[1])

    def forward(self, x: Tensor, cache: StreamCache) -> Tensor:
        y = self.conv1(self.norm(x), cache)
        return x + self.conv2(F.silu(y), cache)
