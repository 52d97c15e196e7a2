"""The autoencoder's losses: reconstruction, divergence, perceptual distance, and the game with the critic.

Axes: B clips of one shape, C channels, F H W pixels' frames/height/width, N samples of a pack.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ....config.schema import VaeConfig, VaeLoss
from ....data.transforms import from_uint8
from ....models.moving import moved_pixels
from ....rng import generator
from ...optim import ramp

CHARBONNIER = 1e-3  # about a tenth of a grey level of [-1,1]
ADAPTIVE = 1e-6  # delta of Esser et al. 2021, equation 7


def pixel_losses(weights: VaeLoss, video: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
    """Means over each clip [B] of what has a weight, of [B,3,F,H,W] twice.

    l1: |e|. charbonnier: sqrt(e^2 + 1e-6) (Charbonnier et al. 1994). mse: e^2. temporal: |e(f+1) - e(f)|, which is the
    L1 of the differences between neighbouring frames; 0 for an image.
    """
    error, found = reconstruction.float() - video, {}
    axes = (1, 2, 3, 4)
    if weights.l1:
        found["l1"] = error.abs().mean(axes)
    if weights.charbonnier:
        found["charbonnier"] = (error.square() + CHARBONNIER**2).sqrt().mean(axes)
    if weights.mse:
        found["mse"] = error.square().mean(axes)
    if weights.temporal:
        still = error.shape[2] == 1
        found["temporal"] = error.new_zeros(len(error)) if still else error.diff(dim=2).abs().mean(axes)
    return found


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL to N(0, I) a latent element (Kingma & Welling 2013, appendix B): [B,C,f,h,w] twice -> [B]."""
    mean, logvar = mean.float(), logvar.float()
    return (0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)).mean(dim=(1, 2, 3, 4))


def last_layer(decoder: nn.Module) -> Tensor:
    """The weight of the decoder's last convolution: of its `conv_out` where it has one, else its last matrix."""
    layer = getattr(decoder, "conv_out", decoder)
    return [p for p in layer.parameters() if p.ndim >= 2][-1]


class _Known(torch.autograd.Function):
    """Losses [B] whose gradient at the reconstruction [B,...] was computed before."""

    @staticmethod
    def forward(ctx, reconstruction: Tensor, losses: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return losses.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, wanted: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * wanted.reshape(-1, *[1] * (gradient.ndim - 1)), None, None


@dataclass
class _Group:
    """Of one shape's clips: the reconstruction, what the losses see of it, its pixel loss [B], scores, and the share
    of each clip in its pack."""

    reconstruction: Tensor
    seen: Tensor
    pixels: Tensor
    scores: Sequence[Tensor]
    share: float


class VaeObjective(nn.Module):
    """What a VAE run minimises. `forward` takes the model, a `ClipPack` and the step, counted from 0.

    The critic's hinge loss (Lim & Ye 2017) and the autoencoder's adversarial loss are taken in the same step. They
    share a score of each reconstruction: the leaf that `VaeWithCritic` cuts collects the gradients of pixel and
    adversarial losses, once each; their norms at the decoder's last layer give the adaptive weight, and their sum goes
    on into the decoder. The critic plays from `adversarial_start` on, for one warm-up (`optim.warmup` steps) unheard;
    over another its weight rises: heard at once, it is beaten before it has learnt anything. Its smoothness is the
    approximate R1 of Lin et al. 2025, which needs no second derivatives: ||D(x) - D(x + sigma eps)||^2. Everything is
    a function of the pack and the step, so never of the number of processes.

    Args:
        lpips: the perceptual distance of pictures, [N,3,H,W] twice -> [N], or None to do without.
    """

    def __init__(self, config: VaeConfig, lpips: nn.Module | None) -> None:
        super().__init__()
        self.weights, self.lpips = config.loss, lpips
        self.seed, self.warmup = config.run.seed, config.optim.warmup
        self.by_token = config.train.loss_by == "token"

    def forward(self, model: nn.Module, pack, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each sample [N], and its parts by name, [N] each. A part whose weight is 0 is not computed."""
        weights, start = self.weights, self.weights.adversarial_start
        judged = weights.adversarial > 0 and step >= start
        parts, groups, losses = defaultdict(list), [], []
        total = sum(pack.tokens) if self.by_token else len(pack.tokens)
        for group in pack.groups:
            video = from_uint8(group.video).contiguous(memory_format=torch.channels_last_3d)
            move = self._move(model, group.numbers, video)
            reconstruction, mean, logvar, *more = self._call(model, group, video, judged, move)
            video = video if move is None else moved_pixels(video, move)
            seen = more.pop(0) if judged else reconstruction
            found = pixel_losses(weights, video, seen)
            if weights.lpips and self.lpips is not None:
                found["lpips"] = self._lpips(group.numbers, video, seen)
            pixels = sum(getattr(weights, name) * value for name, value in found.items())
            if weights.kl:
                found["kl"] = divergence(mean, logvar)
            tokens = group.noise[0, 0].numel() if self.by_token else 1
            groups.append(_Group(reconstruction, seen, pixels, more, tokens / total))
            losses.append(weights.kl * found.get("kl", 0.0) + (0.0 if judged else pixels + sum(more)))
            for name, value in found.items():
                parts[name].append(value)
        if judged:
            heard = ramp(step - start - self.warmup, self.warmup)  # what a critic says that has learnt nothing is noise
            played = self._play(model, groups, weights.adversarial * heard, parts)
            losses = [a + b for a, b in zip(losses, played, strict=True)]
        return torch.cat(losses), {name: torch.cat(values) for name, values in parts.items()}

    def _call(self, model: nn.Module, group, video: Tensor, judged: bool, move: Tensor | None) -> tuple[Tensor, ...]:
        more = {} if move is None else {"move": move}
        if not judged:
            return model(video, group.noise, **more)
        shift = self._shift(group.numbers, video) if self.weights.r1 else None
        return model(video, group.noise, True, shift, **more)

    def _move(self, model: nn.Module, numbers: Sequence[int], video: Tensor) -> Tensor | None:
        """Pixels [B,2] by which the clips are moved, drawn by the samples' numbers: of a share of them, less than the
        autoencoder's stride in each direction; 0 of the others. None: of no clip.

        Kouzelis et al. 2025 (EQ-VAE) ask as much of changes of scale and of quarter turns. In clips most changes are
        movements, of which most are no whole latent positions.
        """
        if not self.weights.equivariance or not torch.is_grad_enabled():
            return None
        inner = getattr(model, "module", model)
        most, moves = getattr(inner, "vae", inner).spatial_stride - 1, []
        for number in numbers:
            draws = generator(self.seed, number, "equivariance")
            chosen = torch.rand((), generator=draws) < self.weights.equivariance
            moves.append(torch.randint(-most, most + 1, (2,), generator=draws) * chosen)
        move = torch.stack(moves)
        return move.to(video.device) if move.any() else None

    def _play(self, model: nn.Module, groups: Sequence[_Group], weight: float, parts: dict) -> list[Tensor]:
        """Losses [B] of each group: pixels and adversary for the autoencoder, hinge and smoothness for the critic."""
        fakes = [-_mean(group.scores[0]) for group in groups]
        seen = [group.seen for group in groups]
        real_gradients = torch.autograd.grad([group.pixels.sum() for group in groups], seen)
        fake_gradients = torch.autograd.grad([fake.sum() for fake in fakes], seen, retain_graph=True)
        adaptive = self._adaptive(model, groups, real_gradients, fake_gradients)
        losses = []
        for group, fake, real_gradient, fake_gradient in zip(
            groups, fakes, real_gradients, fake_gradients, strict=True
        ):
            value = group.pixels + weight * adaptive * fake
            gradient = real_gradient + weight * adaptive * fake_gradient
            of_fake, of_real, *of_shifted = (score.float() for score in group.scores)
            hinge = 0.5 * (_mean(F.relu(1.0 - of_real)) + _mean(F.relu(1.0 + of_fake)))
            loss = _Known.apply(group.reconstruction, value.detach(), gradient) + hinge
            parts["adversarial"].append(fake)
            parts["adaptive_weight"].append(adaptive.expand_as(fake))
            parts["discriminator"].append(hinge)
            for score in of_shifted:  # at most one
                smooth = _mean((of_real - score).square())
                parts["r1"].append(smooth)
                loss = loss + self.weights.r1 * smooth
            losses.append(loss)
        return losses

    def _adaptive(self, model: nn.Module, groups: Sequence[_Group], *gradients: Sequence[Tensor]) -> Tensor:
        """Norm of the pixel losses' gradient at the decoder's last layer over that of the adversarial loss.

        Esser et al. 2021, equation 7, with the losses' means over the pack; at most `loss.adaptive_max`.
        """
        if not self.weights.adaptive:
            return groups[0].pixels.new_ones(())
        layer = last_layer(getattr(model, "module", model).vae.decoder)
        outputs = [group.reconstruction for group in groups]
        norms = []
        for of_groups in gradients:
            shares = [group.share * gradient for group, gradient in zip(groups, of_groups, strict=True)]
            (at_layer,) = torch.autograd.grad(outputs, layer, shares, retain_graph=True)
            norms.append(at_layer.float().norm())
        return (norms[0] / (norms[1] + ADAPTIVE)).clamp(max=self.weights.adaptive_max)

    def _lpips(self, numbers: Sequence[int], video: Tensor, reconstruction: Tensor) -> Tensor:
        """Mean distance [B] over `lpips_frames` frames of each clip, drawn by the sample's number."""
        count = min(self.weights.lpips_frames, video.shape[2])
        drawn = [torch.randperm(video.shape[2], generator=generator(self.seed, n, "lpips"))[:count] for n in numbers]
        frames = torch.stack(drawn).to(video.device)
        clips = torch.arange(len(frames), device=video.device)[:, None].expand_as(frames)
        pictures = [x.movedim(2, 1)[clips, frames] for x in (reconstruction.float(), video)]  # [B,count,3,H,W]
        # in fp32, whatever the model computes in: near the end pictures differ by less than bf16's features resolve
        distance = self.lpips(*(rearrange(x, "B n C H W -> (B n) C H W") for x in pictures))
        return rearrange(distance, "(B n) -> B n", n=count).mean(1)

    def _shift(self, numbers: Sequence[int], video: Tensor) -> Tensor:
        """Gaussian noise of deviation `r1_sigma`, drawn on the device by the samples' numbers."""
        out = torch.empty(video.shape, device=video.device)  # in row-major order, in which the draws are laid down
        for clip, number in zip(out, numbers, strict=True):
            seed = generator(self.seed, number, "r1").initial_seed()
            clip.normal_(0.0, self.weights.r1_sigma, generator=torch.Generator(video.device).manual_seed(seed))
        return out


def _mean(scores: Tensor) -> Tensor:  # [B,f,h,w] -> [B]
    return scores.float().mean(dim=(1, 2, 3))
