"""Encodes a manifest once into a cache of latents and text states, for train/train_dit.py's data.latents.

    [accelerate launch] vae/encode_latents.py --manifest M.jsonl --vae RUN/vae --text-encoder T5 --out CACHE

The same as `latentvid encode`: --help says the options.
"""

from latentvid.programs.encode_latents import main

if __name__ == "__main__":
    main()
