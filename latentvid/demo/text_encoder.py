"""The demo's text encoder: a small T5 and its tokenizer, from nothing but captions.

Captions of the same facts in other words ("a red 7 moves up", "the digit seven in red moving upwards") are pulled
together, those of other facts apart (InfoNCE on mean token states). Measured on linear probes of token states: random
weights hold the facts but nothing joins "7" and "seven" (a probe fitted on numerals reads words at chance); T5's span
corruption blurs the digits besides; text-to-text paraphrase joins them at three times the cost of this.

Axis letters: B captions, L padded length, D width of the encoder.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as nnf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from ..text import TextEncoder
from ..training.monitor.bar import Progress
from ..training.monitor.metrics import ThroughputMeter
from .digits import Label, caption

SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2 as in published T5s
MAX_TOKENS = 128
TEMPERATURE = 0.1


def build_tokenizer(captions: Sequence[str], vocab_size: int = 2000) -> PreTrainedTokenizerFast:
    """Byte-level BPE fitted to the captions, lower-casing; ``</s>`` is appended. Any text is representable."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(captions, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    pad, eos, unk = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=pad, eos_token=eos, unk_token=unk, model_max_length=MAX_TOKENS
    )


def build_encoder(vocab: int, seed: int, width: int = 128, layers: int = 2) -> T5EncoderModel:
    """An untrained T5 encoder; 0.4M parameters at the default width."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5EncoderModel(
            T5Config(
                vocab_size=vocab,
                d_model=width,
                d_kv=width // 4,
                d_ff=2 * width,
                num_layers=layers,
                num_heads=4,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
            )
        )


def paraphrase_loss(first: Tensor, second: Tensor, facts: Tensor) -> Tensor:
    """InfoNCE between the mean states [B, D] of two wordings of each of B captions; ``facts`` [B] tells equal ones."""
    logits = nnf.normalize(first, dim=-1) @ nnf.normalize(second, dim=-1).T / TEMPERATURE  # [B, B]
    same = facts[:, None] == facts[None, :]
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, -torch.inf)  # another caption of the same facts is no wrong answer
    target = torch.arange(len(facts))
    return (nnf.cross_entropy(logits, target) + nnf.cross_entropy(logits.T, target)) / 2


def train_text_encoder(
    labels: Sequence[Label], *, steps: int = 200, batch: int = 32, lr: float = 2e-3, seed: int = 0
) -> TextEncoder:
    """A text encoder for the captions of ``labels`` (those of the training split); a pure function of its arguments."""
    if not labels or steps < 1 or batch < 2:
        raise ValueError(f"{len(labels)} labels, {steps} steps, batches of {batch}: give labels, 1 step and 2 at least")
    rng = np.random.default_rng(seed)
    tokenizer = build_tokenizer([caption(label, rng) for label in labels for _ in range(4)])
    model = build_encoder(len(tokenizer), seed)
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    warmup = max(1, steps // 8)
    meter = ThroughputMeter()
    with Progress(steps, desc="text encoder", every=40) as progress:
        for step in range(steps):
            rate = lr * min(1.0, (step + 1) / warmup) * 0.5 * (1 + np.cos(np.pi * step / steps))
            optimizer.param_groups[0]["lr"] = rate
            drawn = [labels[i] for i in rng.integers(len(labels), size=batch)]
            ids = _padded(tokenizer, [caption(label, rng) for label in drawn + drawn])  # [2B, L]
            first, second = _mean_states(model, ids).chunk(2)  # [B, D] each
            loss = paraphrase_loss(first, second, torch.tensor([numbers[label] for label in drawn]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            meter.update(int((ids > 0).sum()), 2 * batch)
            progress.update(loss=loss.item(), tokens_per_s=meter.tokens_per_s)
    return TextEncoder(model, tokenizer)


def paraphrase_match(encoder: TextEncoder, labels: Sequence[Label], seed: int) -> float:
    """How often, among one new caption of each distinct label, the nearest to a second wording is the same label's."""
    rng = np.random.default_rng((seed, 1))
    distinct = list(dict.fromkeys(labels))
    sides = []
    for _ in range(2):
        packed = encoder.encode([caption(label, rng) for label in distinct])
        sides.append(nnf.normalize(torch.stack([states.mean(0) for states in packed.split()]), dim=-1))  # [B, D]
    nearest = (sides[0] @ sides[1].T).argmax(dim=1)
    return (nearest == torch.arange(len(distinct))).float().mean().item()


def _padded(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """Token ids [B, L], zero (``<pad>``) past each end."""
    rows = [torch.tensor(ids) for ids in tokenizer(list(texts))["input_ids"]]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _mean_states(model: T5EncoderModel, ids: Tensor) -> Tensor:
    """Mean over each caption's tokens of the last hidden states: [B, L] -> [B, D]."""
    mask = ids > 0
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, L, D]
    return (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
