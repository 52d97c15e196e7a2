"""Trains the causal video autoencoder on images and clips together.

    python vae/train_vae.py CONFIG.yaml [--section.key value ...]

The same as `latentvid train-vae`: --help says the options.
"""

from latentvid.programs.train_vae import main

if __name__ == "__main__":
    main()
