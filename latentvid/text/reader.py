"""Frozen text encoders of a model, one or several, as its readings say: prompts to packed states.

Axes: N prompts, S text tokens, Dt width of the text.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Literal, Self

import torch
from torch import nn

from ..words import counted
from .connectors import load_connectors
from .folder import TextError, check_encoder, check_tokenizer
from .loading import check_quantization, load_encoder, load_tokenizer
from .packed import Fit, PackedText
from .part import TextPart, short
from .policy import Reading

logger = logging.getLogger(__name__)

Place = Literal["device", "offload", "cpu"]
_NAMES = ("part", "tokenizer", "connectors")  # of a reading: where its files are, which changes no state


class TextReader:
    """Text encoders, of which one gives the transformer's text; others a pooled state, or a second text.

    place: where the encoders are. "device": where `to` puts them. "offload": in main memory, and on the device while
    they encode, one after another. "cpu": in main memory, and they encode there. States are on the device.
    """

    def __init__(self, parts: Sequence[TextPart], place: Place = "device", quantization: str | None = None) -> None:
        by_use = {part.reading.gives: part for part in parts}
        if "text" not in by_use or len(by_use) != len(parts):
            raise ValueError("one encoder must give the text, and at most one each a pooled state and a second text")
        if place not in ("device", "offload", "cpu"):
            raise TextError(f"place of text encoders {place!r:.60}: must be device, offload or cpu")
        if quantization is not None and place != "device":
            raise TextError(f"text encoders with quantization {quantization} stay on the device: set their place to it")
        self.parts, self.place, self.quantization = tuple(parts), place, quantization
        self.text, self.pooled, self.second = (by_use.get(use) for use in ("text", "pooled", "second"))
        self._device: torch.device | None = None

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return tuple(network for part in self.parts for network in part.networks)

    @property
    def dim(self) -> int:
        """Dt, the width of the states."""
        return self.text.dim

    @property
    def pooled_dim(self) -> int | None:
        """Width of the pooled state."""
        return None if self.pooled is None else self.pooled.dim

    @property
    def second_dim(self) -> int | None:
        """Width of the second text."""
        return None if self.second is None else self.second.dim

    @property
    def max_tokens(self) -> int:
        """The longest prompt in tokens, ``</s>`` included; a huge number when the tokenizer sets no limit."""
        return self.text.reading.tokens

    @property
    def device(self) -> torch.device:
        """Where states are given."""
        return self._device or self.text.encoder.device

    def to(self, device: torch.device | str) -> Self:
        self._device = torch.device(device)
        if self.place == "device":
            self._move(self.parts, self._device)
        return self

    def _move(self, parts: Iterable[TextPart], device: torch.device) -> None:
        for network in (network for part in parts for network in part.networks):
            if self.quantization is None or network.device.type != device.type:  # its package has put it there
                network.to(device)

    # --- prompts ---

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids of the tokens of each prompt that the transformer is given as its text.

        :class:`TextError` for a prompt that is too long; none is cut.
        """
        return self.text.tokenize(prompts)

    def fits(self, prompts: Sequence[str]) -> Iterator[Fit]:
        """Of each prompt. Nothing is encoded: some 20,000 a second."""
        return self.text.fits(prompts)

    def shortened(self, prompt: str) -> str:
        """As many of the prompt's first words as the encoder takes, or of its characters where one word is too long."""
        words = prompt.split()
        if len(words) > 1:
            most = self._most(len(words), lambda n: " ".join(words[:n]))
            if most:
                return " ".join(words[:most])
        return prompt[: self._most(len(prompt), lambda n: prompt[:n])]

    def _most(self, high: int, part: Callable[[int], str]) -> int:
        """The largest n of at most `high` whose part fits, by halving."""
        low = 0
        while low < high:
            middle = (low + high + 1) // 2
            if next(self.fits([part(middle)])).tokens <= self.max_tokens:
                low = middle
            else:
                high = middle - 1
        return low

    def check(self, prompts: Iterable[str]) -> None:
        """For prompts of a user: :class:`TextError` for one that is too long, or of which the encoder knows nothing; a
        warning where it knows, or reads, only a part."""
        prompts = list(dict.fromkeys(prompts))
        self.tokenize(prompts)
        for prompt, fit in zip(prompts, self.fits(prompts), strict=True):
            if fit.tokens > self.max_tokens:
                warn_once(
                    f"the text encoder reads the first {self.max_tokens} of "
                    f"{counted(fit.tokens, 'token')} of the prompt "
                    f"{short(prompt)}"
                )
            if fit.share == 1:
                raise TextError(
                    f"the text encoder knows no character of the prompt {short(prompt)}: all such prompts are the same"
                    " to it; write it in a language that the model was trained with"
                )
            if fit.unknown:
                warn_once(
                    f"the text encoder does not know {short(''.join(dict.fromkeys(fit.unknown)))} in the prompt "
                    f"{short(prompt)}: it reads the rest"
                )

    # --- states ---

    def encode(self, prompts: Sequence[str]) -> PackedText:
        """States of the tokens that the transformer reads, [S,Dt], and what further encoders give; in the encoders'
        types.

        Of an encoder of its own an empty prompt is one ``</s>``: the null condition of classifier-free guidance.
        """
        text = self._states(self.text, prompts)
        pooled = None if self.pooled is None else self._states(self.pooled, prompts)
        second = None if self.second is None else self._states(self.second, prompts)
        return PackedText(
            states=text.states,
            lengths=text.lengths,
            pooled=None if pooled is None else pooled.states,
            second=None if second is None else second.states,
            second_lengths=None if second is None else second.lengths,
        )

    def _states(self, part: TextPart, prompts: Sequence[str]) -> PackedText:
        device = self.device
        if self.place == "offload":
            self._move([part], device)
        try:
            states = part.encode(prompts)
            none = torch.empty(0, part.dim, device=part.encoder.device, dtype=part.encoder.dtype)
            packed = (torch.cat(states) if states else none).to(device)
        finally:
            if self.place == "offload":
                self._move([part], torch.device("cpu"))
        return PackedText(states=packed, lengths=[len(one) for one in states])

    def fingerprint(self) -> str:
        """sha256 (hex) over all encoders and how they are read: a cache key."""
        read = [
            [part.fingerprint(), {k: v for k, v in asdict(part.reading).items() if k not in _NAMES}]
            for part in self.parts
        ]
        return hashlib.sha256(json.dumps([read, self.quantization]).encode()).hexdigest()


class NoText(TextReader):
    """Of a model that reads no text: gives one state of one zero for every prompt, which the model leaves alone."""

    reading = Reading(tokens=2**31 - 1)

    def __init__(self) -> None:
        self.parts, self.place, self.quantization = (), "device", None
        self.pooled = self.second = None
        self._device = torch.device("cpu")

    @property
    def text(self) -> Self:
        return self

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return ()

    @property
    def dim(self) -> int:
        return 1

    @property
    def device(self) -> torch.device:
        return self._device

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        return [[0] for _ in prompts]

    def fits(self, prompts: Sequence[str]) -> Iterator[Fit]:
        return (Fit(tokens=1, unknown="", share=0.0) for _ in prompts)

    def check(self, prompts: Iterable[str]) -> None:
        if any(prompts):
            warn_once("this model reads no text: what a prompt says changes nothing")

    def encode(self, prompts: Sequence[str]) -> PackedText:
        return PackedText(torch.zeros(len(prompts), 1, device=self._device), [1] * len(prompts))

    def fingerprint(self) -> str:
        return hashlib.sha256(b"no text").hexdigest()


def load_reader(
    folders: Mapping[str, Path],
    readings: Sequence[Reading],
    dtype: torch.dtype = torch.float32,
    *,
    place: Place = "device",
    quantization: str | None = None,
) -> TextReader:
    """The text encoders of a published model; `NoText` where it has none.

    folders: those of the repository, by the names that readings have. place: as in `TextReader`. quantization: of
    `QUANTIZATIONS`, where the weights are to take less room. Nothing is fetched, and no code in the folders is run.
    Raises UserError.
    """
    if not readings:
        return NoText()
    if quantization is not None:
        check_quantization(quantization)
    names = [name for r in readings for name in (r.part, r.tokenizer, r.connectors) if name is not None]
    if lacking := [name for name in names if name not in folders]:
        raise TextError(f"the model has no folder {lacking[0]}, which its text needs: it has {', '.join(folders)}")
    kinds = [check_encoder(Path(folders[r.part])) for r in readings]  # all, before any is read
    classes = [check_tokenizer(Path(folders[r.tokenizer]), others=True) for r in readings]
    parts = []
    for reading, kind, cls in zip(readings, kinds, classes, strict=True):
        connectors = None if reading.connectors is None else load_connectors(Path(folders[reading.connectors]), dtype)
        encoder = load_encoder(folders[reading.part], dtype, kind, quantization)
        parts.append(TextPart(encoder, load_tokenizer(folders[reading.tokenizer], cls), reading, connectors))
    return TextReader(parts, place, quantization)


@cache
def warn_once(message: str) -> None:
    logger.warning(message)
