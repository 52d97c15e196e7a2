"""Builds the demo's T5 text encoder and its tokenizer, and saves them as one transformers folder.

    python train/train_text_encoder.py OUT --captions DATA/train.jsonl

The same as `latentvid train-text-encoder`: --help says the options.
"""

from latentvid.programs.train_text_encoder import main

if __name__ == "__main__":
    main()
