"""Frozen T5 text encoders: prompts to packed per-token states, without padding.

Axis letters: S text tokens of all prompts together, Dt width of the encoder; B L prompts and padded length of a batch.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5EncoderModel

from ..errors import brief
from ..weights import check_finite
from .folder import TOKENIZERS, TextError, check_encoder, check_folder, check_tokenizer, hub_options

logger = logging.getLogger(__name__)

TOKENIZED = 4096  # prompts at a time
BATCH_TOKENS = 4096  # of one forward pass, padding included
# What changes the states and is in no parameter's shape.
_CONFIG_KEYS = (
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
    "feed_forward_proj",
)


@dataclass(frozen=True)
class PackedText:
    """Token states of several prompts one after another: ``states`` [S, Dt], ``lengths`` tokens of each prompt."""

    states: Tensor
    lengths: list[int]

    def split(self) -> tuple[Tensor, ...]:
        """One [tokens, Dt] a prompt."""
        return self.states.split(self.lengths)


@dataclass(frozen=True)
class Fit:
    """How a prompt suits the encoder. tokens: how many, ``</s>`` included. unknown: its characters that the encoder has
    no token for, white space aside; share: of all its characters. Prompts that differ in these alone have equal states.
    """

    tokens: int
    unknown: str
    share: float


class TextEncoder:
    """A frozen T5 encoder with its tokenizer.

    Raises :class:`TextError` when the two do not belong together.
    """

    def __init__(self, encoder: T5EncoderModel, tokenizer: PreTrainedTokenizerBase) -> None:
        if len(tokenizer) > encoder.config.vocab_size:
            raise TextError(
                f"the tokenizer has {len(tokenizer)} tokens and the text encoder {encoder.config.vocab_size}: "
                "take both from the same model"
            )
        self.encoder = encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, model: str | Path, *, dtype: torch.dtype = torch.float32) -> "TextEncoder":
        """From a transformers folder that holds encoder and tokenizer, or the hub name of one.

        Weights must be safetensors. Raises :class:`TextError` for a folder that is missing or incomplete.
        """
        if not Path(model).is_dir():
            return cls._load(str(model), str(model), dtype, hub_options(str(model)))
        check_folder(Path(model))
        return cls.from_folders(Path(model), Path(model), dtype=dtype)

    @classmethod
    def from_folders(cls, encoder: Path, tokenizer: Path, *, dtype: torch.dtype = torch.float32) -> "TextEncoder":
        """From the two folders of a pipeline; nothing is fetched, and no code in them is run. Raises UserError."""
        check_encoder(encoder)
        check_tokenizer(tokenizer)
        found = cls._load(str(encoder), str(tokenizer), dtype, {"local_files_only": True})
        check_finite(found.encoder, encoder)
        return found

    @classmethod
    def _load(cls, encoder: str, tokenizer: str, dtype: torch.dtype, where: dict[str, bool]) -> "TextEncoder":
        try:
            loaded, info = T5EncoderModel.from_pretrained(
                encoder, dtype=dtype, use_safetensors=True, output_loading_info=True, **where
            )
        except MemoryError:
            raise
        except Exception as error:  # transformers raises what the files lead it to
            raise TextError(f"text encoder {encoder} cannot be loaded as a T5: {brief(error, 300)}") from error
        try:
            words = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False, **where)
        except MemoryError:
            raise
        except Exception as error:  # tokenizers raises plain ones
            names = f"{' or '.join(TOKENIZERS)}, tokenizer_config.json"
            raise TextError(f"the tokenizer in {tokenizer} ({names}) cannot be loaded: {brief(error, 300)}") from error
        missing = sorted(info["missing_keys"])
        if missing:
            raise TextError(
                f"text encoder {encoder} is no T5: its weights lack {len(missing)} tensors, e.g. {missing[0]}"
            )
        return cls(loaded, words)

    @property
    def dim(self) -> int:
        """Dt, the width of the states."""
        return self.encoder.config.d_model

    @property
    def max_tokens(self) -> int:
        """The longest prompt in tokens, ``</s>`` included; a huge number when the tokenizer sets no limit."""
        return self.tokenizer.model_max_length

    def to(self, device: torch.device | str) -> "TextEncoder":
        self.encoder.to(device)
        return self

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, ``</s>`` last. :class:`TextError` for a prompt that is too long; none is cut."""
        if not prompts:
            return []
        for prompt in prompts:
            if any("\ud800" <= letter <= "\udfff" for letter in prompt):  # bytes of a command line that are no UTF-8
                raise TextError(f"prompt {prompt[:60]!a} is not UTF-8 text: write it as UTF-8")
        every = self.tokenizer(list(prompts), add_special_tokens=True, padding=False, truncation=False, verbose=False)
        for prompt, ids in zip(prompts, every["input_ids"], strict=True):
            if len(ids) > self.max_tokens:
                raise TextError(
                    f"prompt of {len(ids)} tokens is longer than the text encoder's {self.max_tokens}; "
                    f"shorten it: {_short(prompt)}"
                )
            if not ids:
                raise TextError(f"the tokenizer gives no token for the prompt {prompt!r}: it must append </s>")
        return every["input_ids"]

    def fits(self, prompts: Sequence[str]) -> Iterator[Fit]:
        """Of each prompt. Nothing is encoded: some 20,000 a second."""
        tokenizer, unknown = self.tokenizer.backend_tokenizer, self.tokenizer.unk_token_id
        tokenizer.no_truncation()
        tokenizer.no_padding()
        for start in range(0, len(prompts), TOKENIZED):
            chunk = list(prompts[start : start + TOKENIZED])
            for prompt, found in zip(chunk, tokenizer.encode_batch(chunk), strict=True):
                ids, lost = found.ids, ""
                if unknown is not None and unknown in ids:
                    spans = {span for i, span in zip(ids, found.offsets, strict=True) if i == unknown}
                    lost = "".join("".join(prompt[begin:end].split()) for begin, end in sorted(spans))
                yield Fit(len(ids), lost, len(lost) / max(1, len("".join(prompt.split()))))

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
        warning where it knows only a part."""
        prompts = list(dict.fromkeys(prompts))
        self.tokenize(prompts)
        for prompt, fit in zip(prompts, self.fits(prompts), strict=True):
            if fit.share == 1:
                raise TextError(
                    f"the text encoder knows no character of the prompt {_short(prompt)}: all such prompts are the same"
                    " to it; write it in a language that the model was trained with"
                )
            if fit.unknown:
                warn_once(
                    f"the text encoder does not know {_short(''.join(dict.fromkeys(fit.unknown)))} in the prompt "
                    f"{_short(prompt)}: it reads the rest"
                )

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PackedText:
        """Last hidden states of each prompt's tokens, [S, Dt] in the encoder's dtype and on its device.

        An empty prompt is one ``</s>``: the null condition of classifier-free guidance.
        """
        every = self.tokenize(prompts)
        device = self.encoder.device
        states: list[Tensor] = [torch.empty(0)] * len(every)
        with torch.autocast(device.type, enabled=False):  # the same states inside and outside a trainer's autocast
            for batch in _batches([len(ids) for ids in every]):
                lengths = torch.tensor([len(every[i]) for i in batch])  # [B]
                mask = torch.arange(int(lengths.max())) < lengths[:, None]  # [B, L]
                ids = torch.zeros(mask.shape, dtype=torch.long)
                ids[mask] = torch.tensor([t for i in batch for t in every[i]])
                out = self.encoder(
                    input_ids=ids.to(device), attention_mask=mask.to(device)
                ).last_hidden_state  # [B, L, Dt]
                for i, row, length in zip(batch, out, lengths.tolist(), strict=True):
                    states[i] = row[:length]
            none = torch.empty(0, self.dim, device=device, dtype=self.encoder.dtype)
            packed = torch.cat(states) if states else none
        return PackedText(states=packed, lengths=[len(ids) for ids in every])

    def fingerprint(self) -> str:
        """sha256 (hex) over the weights, what of the config they do not show, and the tokenizer: a cache key."""
        digest = hashlib.sha256()
        for name, p in sorted(self.encoder.named_parameters()):
            digest.update(f"{name} {p.dtype} {tuple(p.shape)}".encode())
            digest.update(p.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for volatile in ("padding", "truncation"):  # changed by every call of a tokenizer
            tokenizer.pop(volatile, None)
        config = {key: getattr(self.encoder.config, key, None) for key in _CONFIG_KEYS}
        digest.update(json.dumps([config, tokenizer], sort_keys=True).encode())
        return digest.hexdigest()


@cache
def warn_once(message: str) -> None:
    logger.warning(message)


def _short(prompt: str) -> str:
    return f"{prompt[:80]!r}{'...' if len(prompt) > 80 else ''}"


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Prompt numbers in batches of like length, each at most BATCH_TOKENS with its padding (or one prompt)."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # A batch's first prompt is its longest; half as long would waste half.
        if batches:
            longest = lengths[batches[-1][0]]
            if (len(batches[-1]) + 1) * longest <= BATCH_TOKENS and 2 * lengths[i] >= longest:
                batches[-1].append(i)
                continue
        batches.append([i])
    return batches
