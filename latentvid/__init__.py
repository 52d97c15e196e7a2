"""latentvid: training and sampling of latent video diffusion transformers."""

import logging

__version__ = "0.1.0"

# diffusers imports it wherever it is installed, and on some processors it then says of every program that kernels which
# nothing here uses were not fetched from a hub
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
