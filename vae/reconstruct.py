"""Shows what an autoencoder keeps of videos and images: original | reconstruction, with PSNR and SSIM.

    python vae/reconstruct.py --vae RUN/vae INPUT... --output OUT.mp4

The same as `latentvid reconstruct`: --help says the options.
"""

from latentvid.programs.reconstruct import main

if __name__ == "__main__":
    main()
