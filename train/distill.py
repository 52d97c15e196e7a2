"""Distils a trained pipeline to one that needs fewer passes through the network.

    python train/distill.py CONFIG.yaml [--section.key value ...]

The same as `latentvid distill`: --help says the options.
"""

from latentvid.programs.distill import main

if __name__ == "__main__":
    main()
