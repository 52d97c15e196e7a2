"""Scores an autoencoder on videos and images: PSNR, SSIM, LPIPS, rFVD, and the quality of its latents.

    python vae/evaluate.py --vae RUN/vae FOLDER... --out DIR --lpips WEIGHTS --i3d WEIGHTS [--size 256x256]

The same as `latentvid evaluate-vae`: --help says the options.
"""

from latentvid.programs.evaluate_vae import main

if __name__ == "__main__":
    main()
