"""Trains the diffusion transformer.

    python train/train_dit.py CONFIG.yaml [--section.key value ...]

The same as `latentvid train-dit`: --help says the options.
"""

from latentvid.programs.train_dit import main

if __name__ == "__main__":
    main()
