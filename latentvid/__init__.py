"""latentvid: training and sampling of latent video diffusion transformers."""

__version__ = "0.1.0"
