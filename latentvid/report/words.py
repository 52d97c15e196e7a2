"""What a page calls the keys of a run's files: words a reader knows, instead of identifiers."""

from __future__ import annotations

WEIGHTS = {"ema": "averaged weights", "raw": "raw weights"}
NAMES = {
    # parts of a step's time
    "data_wait": "waiting for data",
    "encode": "encoding",
    "compute": "forward and backward",
    "optimizer": "optimiser",
    "checkpoint": "checkpoints",
    "validation": "validation and samples",
    # losses and measures
    "mse": "mean square error",
    "l1": "mean absolute error",
    "kl": "KL divergence",
    "r1": "gradient penalty (R1)",
    "x_mse": "square error of the clean latents",
    "accuracy": "share of pairs in which the preferred clip is preferred",
    "margin": "margin of the preferred clip",
    "error_preferred": "square error of the preferred clips",
    "error_rejected": "square error of the rejected clips",
    "prior_loss": "loss of prior preservation",
    "end_distance": "distance to the end of the teacher's path",
    # scores
    "fid": "FID",
    "kid": "KID",
    "fvd": "FVD",
    "kvd": "KVD",
    "inception_score": "Inception score",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "clip_text": "CLIP similarity to the prompt",
    "clip_frames": "CLIP similarity of neighbouring frames",
    "warp": "warping error",
    # scores of the demo
    "vae_psnr": "PSNR of the autoencoder, dB",
    "vae_ssim": "SSIM of the autoencoder",
    "heldout_both": "both, held-out pairs",
    "heldout_strict": "strict, held-out pairs",
    "shuffled_both": "both, captions shuffled",
    # machines
    "cpu": "CPU",
    "gpu": "GPU",
    "mfu": "MFU",
}


def words(key: str) -> str:
    """Of a key: its name, or the key with spaces."""
    return NAMES.get(key, str(key).replace("_", " "))


def title(key: str) -> str:
    """The same as a heading begins."""
    found = words(key)
    return found[:1].upper() + found[1:]


def weights(name: object) -> str:
    """Of the weights that a file names `ema` or `raw`."""
    return WEIGHTS.get(str(name), str(name))
