"""A small random repository of Stable Video Diffusion."""

from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

UNET = dict(
    in_channels=8, out_channels=4, block_out_channels=(64, 64), layers_per_block=1, cross_attention_dim=16,
    down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), num_attention_heads=(2, 2),
    addition_time_embed_dim=16, projection_class_embeddings_input_dim=48, num_frames=5,
)  # fmt: skip
CLIP = dict(
    hidden_size=16, projection_dim=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=56,
    intermediate_size=16,
)  # fmt: skip
SCHEDULER = dict(  # that of the published checkpoints
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", interpolation_type="linear",
    num_train_timesteps=1000, prediction_type="v_prediction", sigma_min=0.002, sigma_max=700.0, steps_offset=1,
    timestep_spacing="leading", timestep_type="continuous", use_karras_sigmas=True,
)  # fmt: skip


def unet() -> UNetSpatioTemporalConditionModel:
    return UNetSpatioTemporalConditionModel(**UNET)


def vae() -> AutoencoderKLTemporalDecoder:
    return AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4
    )


def svd() -> StableVideoDiffusionPipeline:
    return StableVideoDiffusionPipeline(
        vae=vae().eval(),
        image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP)).eval(),
        unet=unet().eval(),
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        feature_extractor=CLIPImageProcessor(),
    )
