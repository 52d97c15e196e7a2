"""diffusers' video autoencoders instead of ours: small random instances of the real classes."""

import json

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanUpsample
from torch import Tensor

from latentvid.errors import UserError
from latentvid.models.autoencoder import CausalVideoAutoencoder
from latentvid.models.interchange import (
    CLASSES,
    DiffusersVae,
    arguments_of,
    as_vae,
    build_vae,
    channels_last,
    load_vae,
    raw_vae,
)

WAN = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "latents_mean": [0.1, -0.2, 0.3, 0.0],
    "latents_std": [0.5, 2.0, 1.0, 4.0],
}
LTX = {
    "_class_name": "AutoencoderKLLTXVideo",
    "latent_channels": 6,
    "block_out_channels": [4, 4, 8, 8],
    "decoder_block_out_channels": [4, 4, 8, 8],
    "layers_per_block": [1] * 5,
    "decoder_layers_per_block": [1] * 5,
    "scaling_factor": 0.8,
}
SMALL = {
    "wan 2.1": WAN,
    "wan 2.2": WAN | {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12},
    "cogvideox": {
        "_class_name": "AutoencoderKLCogVideoX",
        "block_out_channels": [4, 4, 8, 8],
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "invert_scale_latents": True,  # is about another pipeline's condition image
    },
    "ltx": LTX,
    "ltx 0.9.5": LTX
    | {
        "block_out_channels": [4, 4, 8, 8, 8],
        "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
        "layers_per_block": [1] * 5,
        "spatio_temporal_scaling": [True] * 4,
        "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
        "timestep_conditioning": True,
        "decoder_spatio_temporal_scaling": [True] * 3,
        "decoder_block_out_channels": [8, 16, 32],
        "decoder_layers_per_block": [1] * 4,
        "decoder_inject_noise": [False] * 4,
        "upsample_residual": [True] * 3,
        "upsample_factor": [2, 2, 2],
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    },
    "ltx 2": {
        "_class_name": "AutoencoderKLLTX2Video",
        "latent_channels": 6,
        "block_out_channels": [8, 8, 8, 8],
        "layers_per_block": [1] * 5,
        "decoder_block_out_channels": [8, 16, 32],
        "decoder_layers_per_block": [1] * 4,
        "scaling_factor": 0.8,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    },
    "hunyuan": {
        "_class_name": "AutoencoderKLHunyuanVideo",
        "block_out_channels": [4, 4, 8, 8],
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
    "hunyuan 1.5": {
        "_class_name": "AutoencoderKLHunyuanVideo15",
        "block_out_channels": [4, 4, 8, 8, 8],
        "latent_channels": 4,
        "layers_per_block": 1,
    },
    "mochi": {
        "_class_name": "AutoencoderKLMochi",
        "encoder_block_out_channels": [32] * 4,
        "decoder_block_out_channels": [32] * 4,
        "latent_channels": 4,
        "layers_per_block": [1] * 5,
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [0.5, 2.0, 1.0, 4.0],
        "scaling_factor": 0.8,
    },
}
STRIDES = {
    "wan 2.1": (4, 8),
    "wan 2.2": (4, 16),
    "cogvideox": (4, 8),
    "ltx": (8, 32),
    "ltx 0.9.5": (8, 32),
    "ltx 2": (8, 32),
    "hunyuan 1.5": (4, 16),
    "mochi": (6, 8),
}
kinds = pytest.mark.parametrize("kind", SMALL)


@pytest.fixture(scope="module")
def vaes() -> dict[str, DiffusersVae]:
    torch.manual_seed(0)
    made = {kind: build_vae(arguments, "model").eval() for kind, arguments in SMALL.items()}
    for kind in ("ltx", "ltx 0.9.5", "ltx 2"):
        made[kind].raw.latents_mean.copy_(torch.randn(6))
        made[kind].raw.latents_std.copy_(torch.rand(6) + 0.5)
    return made


def clip(vae: DiffusersVae, groups: int, batch: int = 1) -> Tensor:
    """In [-1,1]: 1 + so many groups of frames, 1 x 2 latent positions, or 2 x 2 where 1 is too few."""
    side, mirrors = vae.spatial_stride, vae.config.get("decoder_spatial_padding_mode") == "reflect"
    return torch.rand(batch, 3, 1 + groups * vae.temporal_stride, (1 + mirrors) * side, 2 * side) * 2 - 1


@kinds
@torch.no_grad()
def test_strides_and_grid_are_what_the_class_gives(vaes, kind):
    vae = vaes[kind]
    assert (vae.temporal_stride, vae.spatial_stride) == STRIDES.get(kind, (4, 8))
    for groups in (0, 1, 2, 5):  # above 16 frames HunyuanVideo tiles time
        x = clip(vae, groups)
        z = vae.encode(x).latent_dist.mode()
        assert z.shape[1:] == (vae.latent_channels, *vae.latent_grid(*x.shape[2:]))
        assert torch.equal(z, vae.raw.encode(x).latent_dist.mode())
        y = vae.decode(z).sample
        assert y.shape == x.shape
        if kind != "ltx 0.9.5" and (kind != "cogvideox" or z.shape[2] % 2):
            assert torch.equal(y, vae.raw.decode(z).sample)


@kinds
def test_illegal_sizes_are_refused_with_legal_ones(vaes, kind):
    vae = vaes[kind]
    t, s = vae.temporal_stride, vae.spatial_stride
    with pytest.raises(UserError, match=rf"this VAE takes 1 \+ {t}k frames, such as 1 or {1 + t}"):
        vae.encode(torch.zeros(1, 3, t, s, s))
    with pytest.raises(UserError, match=rf"multiples of {s}, such as {s} x {2 * s}"):
        vae(torch.zeros(1, 3, 1, s, 2 * s - 2), torch.zeros(1))


@kinds
def test_normalising_is_that_of_diffusers_own_pipeline(vaes, kind):
    vae = vaes[kind]
    raw, c = vae.raw, vae.config
    z = torch.randn(2, vae.latent_channels, 2, 1, 2)
    wide = (1, -1, 1, 1, 1)
    if kind.startswith("wan"):
        expected = (z - torch.tensor(c.latents_mean).view(wide)) * (1.0 / torch.tensor(c.latents_std)).view(wide)
    elif kind.startswith("ltx"):
        expected = (z - raw.latents_mean.view(wide)) * c.scaling_factor / raw.latents_std.view(wide)
    elif kind == "mochi":
        mean, std = (torch.tensor(values).view(wide) for values in (c.latents_mean, c.latents_std))
        back = z * std / c.scaling_factor + mean  # its pipeline only decodes
        torch.testing.assert_close(vae.denormalise(z), back)
        expected = (z - mean) * c.scaling_factor / std
    else:
        expected = z * c.scaling_factor
    torch.testing.assert_close(vae.normalise(z), expected)
    torch.testing.assert_close(vae.denormalise(vae.normalise(z)), z)


@kinds
def test_measured_statistics_are_kept_in_diffusers_own_format(vaes, kind, tmp_path):
    vae = build_vae(SMALL[kind], "model").eval()
    z = torch.randn(64, vae.latent_channels, 2, 4, 4) * torch.rand(vae.latent_channels, 1, 1, 1).add(0.5) + 0.3
    channels = z.transpose(0, 1).flatten(1)
    vae.set_statistics(channels.mean(1).tolist(), channels.std(1, correction=0).tolist())
    vae.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == SMALL[kind]["_class_name"]
    theirs, ours = type(vae.raw).from_pretrained(tmp_path), load_vae(tmp_path.parent, tmp_path.name)
    assert type(ours) is type(vae) and not ours.training
    for (name, a), (_, b), (_, c) in zip(
        *(sorted(m.state_dict().items()) for m in (vae.raw, theirs, ours.raw)), strict=True
    ):
        assert torch.equal(a, b) and torch.equal(a, c), name
    normal = ours.normalise(z)
    if kind.startswith(("wan", "ltx", "mochi")):
        channels = normal.transpose(0, 1).flatten(1)
        torch.testing.assert_close(channels.mean(1), torch.zeros(len(channels)), atol=1e-5, rtol=0)
        torch.testing.assert_close(channels.std(1, correction=0), torch.ones(len(channels)))
    else:
        torch.testing.assert_close(normal.std(correction=0), torch.tensor(1.0))


@kinds
@pytest.mark.parametrize("groups", [0, 1])
def test_a_training_pass_reconstructs_and_gives_each_weight_a_gradient(vaes, kind, groups):
    vae = build_vae(SMALL[kind], "model")
    x = clip(vae, groups, batch=2)
    reconstruction, mean, logvar = vae(x, torch.zeros(2, vae.latent_channels, *vae.latent_grid(*x.shape[2:])))
    (reconstruction.square().mean() + mean.square().mean() + logvar.mean()).backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        torch.testing.assert_close(mean, posterior.mean)
        torch.testing.assert_close(logvar, posterior.logvar)
        torch.testing.assert_close(
            reconstruction.clamp(-1, 1), vae.decode(posterior.mean).sample.clamp(-1, 1), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("kind", ["wan 2.1", "wan 2.2", "cogvideox"])  # the others work in one piece
def test_gradients_pass_through_chunks_and_caches(kind, monkeypatch):
    """By central differences in double precision: a direction of all weights, and one of the pixels of a frame."""
    monkeypatch.setattr(WanUpsample, "forward", torch.nn.Upsample.forward)  # its own computes in single precision
    vae = build_vae(SMALL[kind], "model").double()
    x = clip(vae, 4).double()  # two chunks for CogVideoX, five for Wan
    noise = torch.randn(1, vae.latent_channels, *vae.latent_grid(*x.shape[2:]), dtype=torch.float64)
    target = torch.randn_like(x)
    values = [x, *vae.parameters()]
    x.requires_grad_()
    gradients = torch.autograd.grad((vae(x, noise)[0] * target).sum(), values)

    @torch.no_grad()
    def slope(directions: list[Tensor], step: float = 1e-6) -> float:
        ends = []
        for move in (step, -2 * step, step):  # there, to the other side, and back
            torch._foreach_add_(values, directions, alpha=move)
            ends.append(float((vae(x, noise)[0] * target).sum()))
        return (ends[0] - ends[1]) / (2 * step)

    def check(directions: list[Tensor]) -> None:
        expected = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
        assert slope(directions) == pytest.approx(expected, rel=1e-4, abs=1e-5)

    zeros = [torch.zeros_like(value) for value in values]
    check([zeros[0], *(torch.randn_like(value) for value in values[1:])])
    for frame in (0, 1, x.shape[2] - 1):
        direction = torch.zeros_like(x)
        direction[:, :, frame] = torch.randn_like(direction[:, :, frame])
        check([direction, *zeros[1:]])


def test_training_wan_is_not_stopped_where_its_own_decoder_clamps():
    vae = build_vae(WAN, "model")
    torch.nn.init.constant_(vae.raw.decoder.conv_out.bias, 3.0)
    x = clip(vae, 1)
    reconstruction, *_ = vae(x, torch.zeros(1, 4, *vae.latent_grid(*x.shape[2:])))
    assert reconstruction.min() > 1.5 and vae.decode(torch.zeros(1, 4, 1, 1, 1)).sample.max() == 1.0
    reconstruction.mean().backward()
    assert vae.raw.decoder.conv_out.bias.grad.abs().min() > 0.3


@kinds
@torch.no_grad()
def test_channels_last_changes_nothing_but_the_layout(vaes, kind):
    vae = vaes[kind]
    x = clip(vae, 1)
    before = vae.decode(vae.encode(x).latent_dist.mode()).sample
    other = channels_last(build_vae(arguments_of(vae), "model").eval())
    other.load_state_dict(vae.state_dict())
    after = other.decode(other.encode(x.contiguous(memory_format=torch.channels_last_3d)).latent_dist.mode()).sample
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_ours_is_built_and_passed_through_as_it_is(tiny_vae):
    vae = build_vae({"latent_channels": 4, "widths": [8, 8, 8]}, "model")
    assert type(vae) is CausalVideoAutoencoder and as_vae(vae) is vae and raw_vae(vae) is vae
    assert type(build_vae({**arguments_of(vae), "_class_name": "CausalVideoAutoencoder"}, "model")) is type(vae)
    assert type(load_vae(tiny_vae)) is CausalVideoAutoencoder
    raw = build_vae(WAN, "model").raw
    assert raw_vae(as_vae(raw)) is raw and as_vae(raw).encoder is raw.encoder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"_class_name": "AutoencoderKLWhan"}, rf"model\._class_name 'AutoencoderKLWhan'.*one of {', '.join(CLASSES)}"),
        (WAN | {"base_dims": 3}, "model: AutoencoderKLWan: .*base_dims"),
        (WAN | {"base_dim": "wide"}, "model.base_dim='wide': must be a whole number"),
        (WAN | {"temperal_downsample": [True]}, "model: AutoencoderKLWan: "),
        (WAN | {"temperal_downsample": [True] * 3}, "temporal stride of 8: .* works with 4 only"),
        (WAN | {"in_channels": 12, "out_channels": 12}, "12 pixel channels: only RGB"),
        (LTX | {"patch_size_t": 2}, r"patch_size_t 2 cannot take 1 \+ k frames"),
        ({"kernel": "full"}, "model: CausalVideoAutoencoder: .*kernel"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        build_vae(arguments, "model")


def test_a_decoder_that_mirrors_at_the_borders_needs_two_positions_a_side(vaes):
    with pytest.raises(UserError, match="32 x 64 pixels: the decoder mirrors at the borders, so give 64 at least"):
        vaes["ltx 2"].encode(torch.zeros(1, 3, 1, 32, 64))


def test_a_config_that_promises_another_size_is_said():
    vae = build_vae(SMALL["hunyuan"] | {"spatial_compression_ratio": 32}, "model")  # it has four levels
    with pytest.raises(UserError, match="its network makes .* correct the compression ratios"):
        vae.encode(torch.zeros(1, 3, 5, 32, 32))


def test_folders_that_hold_no_such_vae_are_said(vaes, tmp_path):
    with pytest.raises(UserError, match="holds no VAE"):
        load_vae(tmp_path)
    vaes["wan 2.1"].save_pretrained(tmp_path / "vae")
    with pytest.raises(UserError, match="is a whole pipeline: give its VAE, .*vae"):
        load_vae(tmp_path)
    (tmp_path / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="vae has no weights"):
        load_vae(tmp_path, "vae")
    (tmp_path / "vae/config.json").write_text(json.dumps({"_class_name": "AutoencoderKLAllegro"}))
    with pytest.raises(UserError, match="holds a AutoencoderKLAllegro, not a VAE that latentvid knows"):
        load_vae(tmp_path / "vae")
    with pytest.raises(UserError, match="a Linear is not a VAE"):
        as_vae(torch.nn.Linear(1, 1))
