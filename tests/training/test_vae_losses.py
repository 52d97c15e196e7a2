"""The autoencoder's losses: each is its formula, and the game's gradients are those of its two separate losses."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from latentvid.config.schema import VaeLoss
from latentvid.data.transforms import from_uint8
from latentvid.errors import UserError
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.discriminator import PatchCritic, VaeWithCritic
from latentvid.models.interchange import build_vae
from latentvid.models.moving import moved_latents, moved_pixels
from latentvid.training.stages.vae.losses import VaeObjective, divergence, last_layer, pixel_losses
from latentvid.training.stages.vae.task import ClipGroup, ClipPack, VaeTask

CPU = torch.device("cpu")


class Distance(nn.Module):
    """In the place of LPIPS: notes what it was shown."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.shown = a.detach(), b.detach()
        return (a - b).square().mean((1, 2, 3))


def pack_of(*shapes: tuple[int, int, int, int]) -> ClipPack:
    """Clips of (B,F,H,W), numbered through."""
    groups, tokens, first = [], [], 0
    for clips, frames, height, width in shapes:
        grid = (1 + (frames - 1) // 4, height // 4, width // 4)
        video = torch.randint(0, 256, (clips, frames, height, width, 3), dtype=torch.uint8)
        groups.append(ClipGroup(video, torch.randn(clips, 4, *grid), tuple(range(first, first + clips))))
        tokens += [math.prod(grid)] * clips
        first += clips
    return ClipPack(groups, tokens)


@pytest.fixture
def model() -> VaeWithCritic:
    vae = CausalVideoAutoencoder(latent_channels=4, widths=(8, 8, 8))
    return VaeWithCritic(vae, PatchCritic(widths=(8, 8), time_strides=(1, 2)))


def objective(vae_config, tmp_path, *overrides: str, lpips: nn.Module | None = None) -> VaeObjective:
    return VaeObjective(vae_config(tmp_path, *overrides), lpips)


def test_pixel_losses_are_their_formulas_and_only_those_with_a_weight():
    a, b = torch.rand(2, 3, 5, 6, 7), torch.rand(2, 3, 5, 6, 7)
    found = pixel_losses(VaeLoss(charbonnier=1, mse=1, temporal=1), a, b)
    e = b - a
    want = {
        "l1": e.abs(),
        "charbonnier": torch.sqrt(e**2 + 1e-6),
        "mse": e**2,
        "temporal": ((b[:, :, 1:] - b[:, :, :-1]) - (a[:, :, 1:] - a[:, :, :-1])).abs(),
    }
    assert found.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(found[name], value.flatten(1).mean(1))
    assert pixel_losses(VaeLoss(l1=0, mse=1), a, b).keys() == {"mse"}


def test_what_does_not_flicker_has_no_temporal_loss():
    weights = VaeLoss(temporal=1)
    clip, image = torch.rand(2, 3, 5, 6, 7), torch.rand(2, 3, 1, 6, 7)
    still = 0.3 * torch.rand(2, 3, 1, 6, 7)
    assert pixel_losses(weights, clip, clip + still)["temporal"].abs().max() < 1e-6
    assert torch.equal(pixel_losses(weights, image, image + still)["temporal"], torch.zeros(2))


def test_divergence_is_that_of_the_gaussians():
    mean, logvar = torch.randn(2, 4, 1, 3, 3), torch.randn(2, 4, 1, 3, 3)
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(normal(mean, (0.5 * logvar).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(divergence(mean, logvar), want.flatten(1).mean(1))


@pytest.mark.parametrize("by", ["token", "sample"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_one_backward_pass_gives_both_players_the_gradients_of_their_own_loss(
    by, adaptive, model, vae_config, tmp_path
):
    """Against each loss by itself: the critic's on cut reconstructions, the autoencoder's through a fixed critic."""
    options = ["loss.adversarial=0.7", "loss.r1=3", "loss.lpips=0.5", "loss.lpips_frames=99", "loss.kl=0.01"]
    options += ["loss.temporal=0.2", f"loss.adaptive={adaptive}", f"train.loss_by={by}", "optim.warmup=4"]
    goal = objective(vae_config, tmp_path, *options, lpips=Distance())
    pack = pack_of((2, 5, 8, 12), (3, 1, 8, 8))
    losses, parts = goal(model, pack, 5)  # the second of four steps in which the verdict's weight rises
    share = torch.tensor(pack.tokens if by == "token" else [1] * 5).float()
    share /= share.sum()
    (losses * share).sum().backward()

    twin = copy.deepcopy(model)
    twin.zero_grad()
    fixed = {name: p.detach() for name, p in twin.critic.named_parameters()}
    pixels, fakes, kls, hinges, smooths = [], [], [], [], []
    for group in pack.groups:
        video = from_uint8(group.video)
        r, mean, logvar = twin.vae(video, group.noise)
        e = (r - video).flatten(1)
        flicker = (r - video).diff(dim=2).abs().flatten(1)
        flicker = flicker.mean(1) if flicker.shape[1] else torch.zeros(len(r))
        pixels.append(e.abs().mean(1) + 0.5 * e.square().mean(1) + 0.2 * flicker)
        fakes.append(-functional_call(twin.critic, fixed, (r,)).flatten(1).mean(1))
        kls.append(divergence(mean, logvar))
        real, fake = twin.critic(video).flatten(1), twin.critic(r.detach()).flatten(1)
        hinges.append(0.5 * ((1 - real).relu().mean(1) + (1 + fake).relu().mean(1)))
        shifted = twin.critic(video + goal._shift(group.numbers, video)).flatten(1)
        smooths.append((real - shifted).square().mean(1))
    pixels, fakes, kls, hinges, smooths = map(torch.cat, (pixels, fakes, kls, hinges, smooths))
    layer = twin.vae.decoder.conv_out.weight
    norms = [torch.autograd.grad((share * x).sum(), layer, retain_graph=True)[0].norm() for x in (pixels, fakes)]
    scale = norms[0] / norms[1] if adaptive else torch.tensor(1.0)
    want = pixels + 0.5 * 0.7 * scale.detach() * fakes + 0.01 * kls + hinges + 3 * smooths
    (share * want).sum().backward()

    torch.testing.assert_close(losses, want)
    torch.testing.assert_close(parts["adaptive_weight"], scale.expand(5), rtol=1e-3, atol=0)
    torch.testing.assert_close(parts["adversarial"], fakes)
    torch.testing.assert_close(parts["discriminator"], hinges)
    torch.testing.assert_close(parts["r1"], smooths)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6 + 1e-4 * float(q.grad.abs().max()))


def test_the_critic_plays_from_its_start_and_the_log_names_what_is_played(model, vae_config, tmp_path):
    goal = objective(vae_config, tmp_path, "loss.adversarial=1", "loss.adversarial_start=3", "loss.kl=0", "loss.mse=1")
    pack = pack_of((1, 5, 8, 8))
    before, started = goal(model, pack, 2)[1], goal(model, pack, 3)[1]
    assert before.keys() == {"l1", "mse"}
    assert started.keys() == {"l1", "mse", "adversarial", "adaptive_weight", "discriminator", "r1"}
    without = objective(vae_config, tmp_path, "loss.mse=1", "loss.kl=0")(model.vae, pack, 3)[0]
    torch.testing.assert_close(goal(model, pack, 2)[0], without)
    of_vae = []  # what its gradients are made of: a warm-up (2 steps) of the critic alone, then a rising weight
    for step in (3, 4, 5, 6, 7):
        losses, parts = goal(model, pack, step)
        own = losses - parts["discriminator"] - goal.weights.r1 * parts["r1"] - without
        of_vae.append(float((own / (parts["adaptive_weight"] * parts["adversarial"])).detach()))
    assert of_vae == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-3)


def test_a_vae_of_diffusers_plays_too(vae_config, tmp_path):
    wan = {"_class_name": "AutoencoderKLWan", "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 1}
    vae = build_vae(wan | {"attn_scales": [], "temperal_downsample": [True, True]}, "model")
    model = VaeWithCritic(vae, PatchCritic(widths=(8, 8), time_strides=(1, 2)))
    losses, parts = objective(vae_config, tmp_path, "loss.adversarial=1")(model, pack_of((1, 5, 8, 8), (1, 1, 8, 8)), 0)
    losses.sum().backward()
    assert (parts["adaptive_weight"] > 0).all() and losses.isfinite().all()
    assert vae.encoder.conv_in.weight.grad.abs().sum() > 0 and all(p.grad is not None for p in model.parameters())


def test_the_adaptive_weight_has_a_limit(model, vae_config, tmp_path):
    goal = objective(vae_config, tmp_path, "loss.adversarial=1", "loss.adaptive_max=0.01", "loss.r1=0")
    parts = goal(model, pack_of((1, 5, 8, 8)), 0)[1]
    assert parts["adaptive_weight"].item() == pytest.approx(0.01) and "r1" not in parts


def test_the_noise_of_r1_and_the_frames_of_lpips_follow_the_samples_number(vae_config, tmp_path):
    network = Distance()
    goal = objective(vae_config, tmp_path, "loss.lpips=1", "loss.lpips_frames=2", lpips=network)
    video = torch.arange(9.0).reshape(1, 1, 9, 1, 1).expand(3, 3, 9, 4, 4).contiguous()  # a frame's number is its value
    value = goal._lpips((7, 8, 7), video, video + 1.0)
    torch.testing.assert_close(value, torch.ones(3))
    first, second, third = network.shown[1][:, 0, 0, 0].reshape(3, 2).tolist()
    assert first == third != second and all(len(set(frames)) == 2 for frames in (first, second))
    assert len(goal._lpips((7,), video[:1, :, :1], video[:1, :, :1])) == 1  # an image has one
    a, b = goal._shift((7, 8), video[:2]), goal._shift((8, 7), video[:2])
    assert torch.equal(a[0], b[1]) and torch.equal(a[1], b[0]) and not torch.equal(a[0], a[1])
    goal.weights = replace(goal.weights, r1_sigma=0.3)
    assert goal._shift((7,), torch.zeros(1, 3, 9, 32, 32)).std().item() == pytest.approx(0.3, rel=0.03)


def test_the_last_layer_is_the_decoders_own_output():
    vae = CausalVideoAutoencoder(latent_channels=4, widths=(8, 8, 8))
    assert last_layer(vae.decoder) is vae.decoder.conv_out.weight
    assert last_layer(nn.Sequential(nn.Conv3d(1, 2, 1), nn.Conv3d(2, 1, 1), nn.LayerNorm(3))).shape == (1, 2, 1, 1, 1)


def test_lpips_that_is_not_there_is_an_error_unless_it_may_be_left_out(vae_config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"loss\.lpips is 0\.3, but LPIPS \(vgg\) has no.*lpips_optional=true"):
        VaeTask(vae_config(tmp_path, "loss.lpips=0.3"), CPU)
    task = VaeTask(vae_config(tmp_path, "loss.lpips=0.3", "loss.lpips_optional=true"), CPU)
    assert task.objective.lpips is None and not task.frozen
    assert "warning: trained without loss.lpips=0.3: LPIPS (vgg) has no weights here" in task.summary()
    with pytest.raises(UserError, match=r"no LPIPS weights at .*gone\.safetensors"):
        VaeTask(vae_config(tmp_path, "loss.lpips=0.3", f"loss.lpips_path={tmp_path / 'gone.safetensors'}"), CPU)
    assert "lpips" not in VaeTask(vae_config(tmp_path), CPU).summary()
    VaeTask(vae_config(tmp_path, "loss.lpips=0.3", "loss.lpips_path=gone"), CPU, data=False)  # as an export does


def test_pictures_too_small_for_lpips_are_refused_at_the_start(vae_config, tmp_path, monkeypatch):
    monkeypatch.setattr("latentvid.training.stages.vae.task.load_lpips", lambda path, net: Distance())
    assert VaeTask(vae_config(tmp_path, "loss.lpips=1", "loss.lpips_net=vgg"), CPU).frozen
    with pytest.raises(UserError, match=r"at least 32 pixels a side for alex, the data has some of 24"):
        VaeTask(vae_config(tmp_path, "loss.lpips=1", "loss.lpips_net=alex"), CPU)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.l1=0", "l1, charbonnier and mse are all 0"),
        ("loss.adversarial=-1", "adversarial=-1"),
        ("loss.lpips_frames=0", "lpips_frames=0"),
        ("loss.critic={depth: 3}", "loss.critic: .*depth"),
        ("freeze_encoder=true", "freeze_encoder needs init"),
    ],
)
def test_settings_that_make_no_sense_are_said(override, message, vae_config, tmp_path):
    with pytest.raises(UserError, match=message):
        VaeTask(vae_config(tmp_path, "loss.adversarial=1", override), CPU)


def test_moved_pixels_and_latents_agree_where_latents_are_pixels():
    """A mean of blocks, moved by whole positions, is that of the moved clip; by parts it lies between."""
    x, move = torch.rand(3, 2, 4, 8, 12), torch.tensor([[0, 0], [4, -4], [-8, 4]])
    pooled = nn.functional.avg_pool3d(x, (1, 4, 4))
    found = moved_latents(pooled, move, 4)
    torch.testing.assert_close(found, moved_pixels(pooled, move // 4))
    assert torch.equal(found[0], pooled[0])
    assert torch.equal(moved_pixels(x, move)[1, :, :, 4:, :8], x[1, :, :, :4, 4:])
    assert torch.equal(moved_pixels(x, move)[1, :, :, :4, 0], x[1, :, :, :1, 4].expand(2, 4, 4))  # the edge, repeated
    half = moved_latents(pooled, torch.tensor([[0, 2]] * 3), 4)
    torch.testing.assert_close(half[..., 1:], (pooled[..., 1:] + pooled[..., :-1]) / 2)


def test_a_share_of_the_clips_must_come_out_moved(vae_config, tmp_path):
    """Each clip's loss is that of its moved self, by its number, whatever clips are beside it."""
    torch.manual_seed(0)
    vae, pack = CausalVideoAutoencoder(latent_channels=4, widths=(8, 8, 8)), pack_of((8, 5, 16, 24))
    told = objective(vae_config, tmp_path, "loss.equivariance=0.5", "loss.kl=0")
    moves = told._move(vae, pack.groups[0].numbers, from_uint8(pack.groups[0].video))
    moved = moves.any(1)
    assert moved.any() and not moved.all() and moves.abs().max() <= vae.spatial_stride - 1
    losses, _ = told(vae, pack, 0)
    for number, (clip, noise) in enumerate(zip(pack.groups[0].video, pack.groups[0].noise, strict=True)):
        alone = ClipPack([ClipGroup(clip[None], noise[None], (number,))], [pack.tokens[0]])
        torch.testing.assert_close(told(vae, alone, 0)[0][0], losses[number])
        plain = objective(vae_config, tmp_path, "loss.kl=0")(vae, alone, 0)[0][0]
        assert torch.equal(told(vae, alone, 0)[0][0], plain) != bool(moved[number])
    video = from_uint8(pack.groups[0].video)
    mean, logvar = vae.encode(video).latent_dist.mean, vae.encode(video).latent_dist.logvar
    z = moved_latents(mean + (0.5 * logvar).exp() * pack.groups[0].noise, moves, vae.spatial_stride)
    want = pixel_losses(told.weights, moved_pixels(video, moves), vae.decode(z).sample)
    torch.testing.assert_close(losses, sum(getattr(told.weights, k) * v for k, v in want.items()), rtol=1e-4, atol=1e-6)
    with torch.no_grad():  # measured as it will be used
        torch.testing.assert_close(told(vae, pack, 0)[0], objective(vae_config, tmp_path, "loss.kl=0")(vae, pack, 0)[0])
