"""A frozen T5 text encoder of one's own, from one folder: prompts to packed per-token states, without padding."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from .folder import check_encoder, check_folder, check_tokenizer, hub_options
from .loading import load_encoder, load_tokenizer
from .part import TextPart
from .policy import Reading
from .reader import TextReader


class TextEncoder(TextReader):
    """A frozen T5 encoder with its tokenizer, read masked, each prompt alone.

    Raises :class:`TextError` when the two do not belong together.
    """

    def __init__(self, encoder: T5EncoderModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__([TextPart(encoder, tokenizer, Reading(tokens=tokenizer.model_max_length))])
        self.encoder, self.tokenizer = encoder, tokenizer

    @classmethod
    def from_pretrained(cls, model: str | Path, *, dtype: torch.dtype = torch.float32) -> TextEncoder:
        """From a transformers folder that holds encoder and tokenizer, the hub name of one, or a pipeline's folder.

        Weights must be safetensors. Raises :class:`TextError` for a folder that is missing or incomplete.
        """
        if not Path(model).is_dir():
            where = hub_options(str(model))
            return cls(load_encoder(str(model), dtype, "t5", **where), load_tokenizer(str(model), **where))
        if (Path(model) / "model_index.json").is_file():
            return cls.from_folders(Path(model) / "text_encoder", Path(model) / "tokenizer", dtype=dtype)
        check_folder(Path(model))
        return cls.from_folders(Path(model), Path(model), dtype=dtype)

    @classmethod
    def from_folders(cls, encoder: Path, tokenizer: Path, *, dtype: torch.dtype = torch.float32) -> TextEncoder:
        """From the two folders of a pipeline; nothing is fetched, and no code in them is run. Raises UserError."""
        check_encoder(encoder, only="t5")
        check_tokenizer(tokenizer)
        return cls(load_encoder(encoder, dtype, "t5"), load_tokenizer(tokenizer))

    def fingerprint(self) -> str:
        """Of the encoder alone, which is read as it was trained."""
        return self.text.fingerprint()
