"""diffusers' video autoencoders behind the interface of ours: one adapter a class, a file a family."""

from .adapter import DiffusersVae
from .cogvideox import CogVideoXVae
from .hunyuan import HunyuanVideo15Vae, HunyuanVideoVae
from .image import ImageVae
from .ltx import LTX2VideoVae, LTXVideoVae
from .mochi import MochiVae
from .temporal_decoder import TemporalDecoderVae
from .wan import WanVae

__all__ = [
    "CogVideoXVae",
    "DiffusersVae",
    "HunyuanVideo15Vae",
    "HunyuanVideoVae",
    "ImageVae",
    "LTX2VideoVae",
    "LTXVideoVae",
    "MochiVae",
    "TemporalDecoderVae",
    "WanVae",
]
