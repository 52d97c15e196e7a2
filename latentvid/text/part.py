"""One text encoder with its tokenizer: prompts to states, as a `Reading` says.

Axes: B L prompts and padded length of a batch, S text tokens, Dt width of the states.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from tokenizers import Encoding
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..words import counted
from .connectors import connect
from .folder import TextError
from .kinds import keys_of
from .packed import Fit
from .policy import Reading
from .prompts import said

TOKENIZED = 4096  # prompts at a time
BATCH_TOKENS = 4096  # of one forward pass, padding included


class TextPart:
    """A frozen encoder. Raises :class:`TextError` when encoder and tokenizer do not belong together.

    connectors: the network that makes the states of the hidden states of all layers, where the reading names one.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        reading: Reading,
        connectors: nn.Module | None = None,
    ) -> None:
        if len(tokenizer) > encoder.config.vocab_size:
            raise TextError(
                f"the tokenizer has {counted(len(tokenizer), 'token')} and the text encoder "
                f"{encoder.config.vocab_size}: "
                "take both from the same model"
            )
        if (reading.layer == "all") != (connectors is not None):
            raise ValueError("connectors take the hidden states of all layers, and nothing else does")
        self.encoder = encoder.eval().requires_grad_(False)
        self.connectors = None if connectors is None else connectors.eval().requires_grad_(False)
        self.tokenizer, self.reading = tokenizer, reading

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.encoder,) if self.connectors is None else (self.encoder, self.connectors)

    @property
    def dim(self) -> int:
        """Width of the states."""
        if self.connectors is not None:
            return self.connectors.video_connector.inner_dim
        return self.encoder.config.hidden_size

    @property
    def fills(self) -> bool:
        """Whether the transformer is given as many tokens of each prompt."""
        return self.reading.pad in ("zero", "encoded") or self.connectors is not None

    # --- tokens ---

    def tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids of the tokens of each prompt that the transformer is given, padding included where it reads that.

        :class:`TextError` for a prompt that is too long; none is cut but where the reading says so.
        """
        every = [ids[self.reading.crop :] for ids in self._ids(prompts)]
        if self.fills:
            every = [ids + [self._pad] * (self.reading.tokens - len(ids)) for ids in every]
        return every

    @property
    def _pad(self) -> int:
        return self.tokenizer.pad_token_id or 0

    def _ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Of each prompt in its template; [] where nothing is read."""
        for prompt in prompts:
            if any("\ud800" <= letter <= "\udfff" for letter in prompt):  # bytes of a command line that are no UTF-8
                raise TextError(f"prompt {prompt[:60]!a} is not UTF-8 text: write it as UTF-8")
        reading = self.reading
        texts = [said(prompt, reading) for prompt in prompts]
        every: list[list[int]] = [[] for _ in texts]
        asked = [i for i, text in enumerate(texts) if text is not None]
        if not asked:
            return every
        most = {"max_length": reading.tokens + reading.crop} if reading.cut else {}
        found = self.tokenizer(
            [self._filled(texts[i]) for i in asked],
            add_special_tokens=True,
            padding=False,
            truncation=reading.cut,
            verbose=False,
            **most,
        )["input_ids"]
        for i, ids in zip(asked, found, strict=True):
            own = len(ids) - reading.crop
            if own > reading.tokens:
                raise TextError(
                    f"prompt of {own} tokens is longer than the text encoder's {reading.tokens}; "
                    f"shorten it: {short(prompts[i])}"
                )
            if own <= 0:
                raise TextError(f"the tokenizer gives no token for the prompt {prompts[i]!r}: it must append </s>")
            every[i] = ids
        return every

    def _filled(self, text: str) -> str:
        template = self.reading.template
        return text if template is None else template.replace("{}", text, 1)

    def fits(self, prompts: Sequence[str]) -> Iterator[Fit]:
        """Of each prompt. Nothing is encoded: some 20,000 a second."""
        tokenizer = getattr(self.tokenizer, "backend_tokenizer", None)
        if tokenizer is None:  # of bytes: it knows all
            yield from (Fit(max(0, len(ids) - self.reading.crop), "", 0.0) for ids in self._ids(prompts))
            return
        tokenizer.no_truncation()
        tokenizer.no_padding()
        begin = (self.reading.template or "").partition("{}")[0]
        for start in range(0, len(prompts), TOKENIZED):
            chunk = [said(prompt, self.reading) for prompt in prompts[start : start + TOKENIZED]]
            found = iter(tokenizer.encode_batch([self._filled(text) for text in chunk if text is not None]))
            for text in chunk:
                yield Fit(0, "", 0.0) if text is None else self._fit(text, next(found), len(begin))

    def _fit(self, text: str, found: Encoding, begin: int) -> Fit:
        """begin: where the text is in what was tokenized."""
        unknown, lost = self.tokenizer.unk_token_id, ""
        if unknown is not None and unknown in found.ids:
            spans = {span for i, span in zip(found.ids, found.offsets, strict=True) if i == unknown}
            inside = ((max(first - begin, 0), last - begin) for first, last in sorted(spans) if last > begin)
            lost = "".join("".join(text[first:last].split()) for first, last in inside)
        return Fit(len(found.ids) - self.reading.crop, lost, len(lost) / max(1, len("".join(text.split()))))

    # --- states ---

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """[S,Dt] of each prompt, or [1,Dt] of one that is pooled, in the encoder's dtype and on its device."""
        every, reading = self._ids(prompts), self.reading
        device = self.encoder.device
        states = [self._given(torch.empty(0, self.encoder.config.hidden_size, device=device, dtype=self.encoder.dtype))]
        states *= len(every)
        rows = every
        if reading.pad in ("encoded", "seen"):
            full = reading.tokens + reading.crop
            rows = [ids + [self._pad] * (full - len(ids)) if ids else [] for ids in every]
        # on CPUs the same states inside and outside a trainer's autocast; a GPU computes as it is told around here
        with nullcontext() if device.type == "cuda" else torch.autocast(device.type, enabled=False):
            for batch in _batches([len(ids) for ids in rows]):
                if not rows[batch[0]]:
                    continue
                out = self._run([rows[i] for i in batch])
                for i, row in zip(batch, out, strict=True):
                    stop = None if reading.pad == "encoded" else len(every[i])
                    states[i] = row if reading.gives == "pooled" else self._given(row[reading.crop : stop])
        return states

    def _run(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states [B,L,Dt] of rows of ids, each padded on the right; of pooled ones [B,1,Dt]."""
        reading, device = self.reading, self.encoder.device
        lengths = torch.tensor([len(ids) for ids in rows])  # [B]
        mask = torch.arange(int(lengths.max())) < lengths[:, None]  # [B,L]
        ids = torch.zeros(mask.shape, dtype=torch.long)
        ids[mask] = torch.tensor([token for row in rows for token in row])
        more = {}
        if reading.side == "left":  # a token's position counts the padding before it
            first = reading.tokens + reading.crop - lengths[:, None]
            more["position_ids"] = (first + torch.arange(mask.shape[1])).to(device, non_blocking=True)
        if reading.layer is not None:
            more["output_hidden_states"] = True
        ids, mask = (x.to(device, non_blocking=True) for x in (ids, mask))
        out = self.encoder(input_ids=ids, attention_mask=mask, **more)
        if reading.gives == "pooled":
            return out.pooler_output[:, None]
        if reading.layer == "all":
            return torch.stack(out.hidden_states, dim=-1).flatten(2)  # [B,L, Dt layers]
        return out.last_hidden_state if reading.layer is None else out.hidden_states[reading.layer]

    def _given(self, states: Tensor) -> Tensor:
        """Of a prompt's own tokens -> those that the transformer is given."""
        if self.connectors is not None:
            return connect(self.connectors, states, self.reading) if len(states) else states.new_empty(0, self.dim)
        if self.reading.pad == "zero":
            return torch.cat([states, states.new_zeros(self.reading.tokens - len(states), states.shape[1])])
        return states

    def fingerprint(self) -> str:
        """sha256 (hex) over the weights, what of the config they do not show, and the tokenizer: a cache key."""
        digest = hashlib.sha256()
        for network in self.networks:
            for name, p in sorted(network.named_parameters()):
                digest.update(f"{name} {p.dtype} {tuple(p.shape)}".encode())
                for tensor in _plain(p.detach()):
                    digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        config = {key: getattr(self.encoder.config, key, None) for key in keys_of(self.encoder)}
        told = [config, self._vocabulary()]
        if self.connectors is not None:
            told.append({key: value for key, value in self.connectors.config.items() if not key.startswith("_")})
        digest.update(json.dumps(told, sort_keys=True).encode())
        return digest.hexdigest()

    def _vocabulary(self) -> object:
        if not hasattr(self.tokenizer, "backend_tokenizer"):
            return self.tokenizer.get_vocab()
        tokenizer = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for volatile in ("padding", "truncation"):  # changed by every call of a tokenizer
            tokenizer.pop(volatile, None)
        return tokenizer


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that a quantised one is made of, or itself."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain(getattr(tensor, name))
    else:
        yield tensor


def short(prompt: str) -> str:
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
