"""CLIP: how well frames fit the caption, and how well neighbouring frames fit each other.

Axes: F frames, H W height and width in pixels, D CLIP's width.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as nnf
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from ...data.cache.latents import module_fingerprint
from ...errors import UserError, brief
from ..mean_score import MeanScore
from ..rows import Clip, check_motion

HUB = "openai/clip-vit-base-patch32"
BATCH_PIXELS = 2**22  # frames x height x width, as they come or as CLIP takes them, that go through together


class ClipNetwork:
    """A CLIP model with its processor. Features have unit length; those of the last clip's frames are kept, for the
    next extractor that looks at the same clip."""

    def __init__(self, model: CLIPModel, processor: CLIPProcessor) -> None:
        self.model, self.processor = model.eval().requires_grad_(False), processor
        self.fingerprint = _fingerprint(model, processor)[:16]
        self._seen: weakref.ref[Tensor] | None = None
        self._features = torch.empty(0)

    def images(self, pixels: Tensor) -> Tensor:
        """[F,D] of uint8 [F,H,W,3], on the CPU, as the model's processor resizes and crops them; some at a time."""
        if self._seen is None or self._seen() is not pixels:
            self._features, self._seen = self._images(pixels), weakref.ref(pixels)
        return self._features

    @torch.no_grad()
    def _images(self, pixels: Tensor) -> Tensor:
        side = self.model.config.vision_config.image_size
        step = max(1, BATCH_PIXELS // max(side**2, pixels.shape[1] * pixels.shape[2]))
        found = []
        for frames in pixels.cpu().split(step):
            inputs = self.processor(images=[frame.movedim(-1, 0) for frame in frames], return_tensors="pt")
            pictures = inputs["pixel_values"].to(self.model.device)
            found.append(self.model.get_image_features(pixel_values=pictures).pooler_output)
        return nnf.normalize(torch.cat(found).double(), dim=-1).cpu()

    @torch.no_grad()
    def text(self, caption: str) -> tuple[Tensor, bool]:
        """[D] of the caption, and whether it was cut to the tokens that the model reads (its last one stays)."""
        most = self.model.config.text_config.max_position_embeddings
        longer = len(self.processor.tokenizer(caption, truncation=False)["input_ids"]) > most
        cut = {"truncation": True, "max_length": most} if longer else {"truncation": False}
        inputs = self.processor(text=[caption], return_tensors="pt", **cut)
        found = self.model.get_text_features(**inputs.to(self.model.device)).pooler_output
        return nnf.normalize(found[0].double(), dim=-1).cpu(), longer


class _ClipRows:
    """weights: a folder that holds clip/, a transformers folder of a CLIP model with its processor; without one, the
    hub's `HUB`, where it is in the hub's cache. Nothing is downloaded. Raises UserError where there is neither."""

    name: str

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        self.network = open_clip(weights, device)
        self.fingerprint = f"{self.name}: CLIP {self.network.fingerprint}"


class ClipTextRows(_ClipRows):
    """A row a frame, float64: CLIPScore (Hessel et al. 2021, with w = 100 as torchmetrics has it), which is
    max(0, 100 cos(frame, caption)); and 1 where the caption was cut to what the model reads, else 0."""

    name = "clip_text"
    needs = frozenset({"caption"})
    alike = frozenset({"levels"})

    def __call__(self, clip: Clip) -> Tensor:
        if clip.caption is None:
            raise ValueError(f"{clip.name} has no caption")
        text, longer = self.network.text(clip.caption)
        scores = (100 * self.network.images(clip.pixels) @ text).clamp_min(0)
        return torch.stack([scores, torch.full_like(scores, float(longer))], dim=1)

    def remarks(self, rows: Sequence[Tensor]) -> list[str]:
        """What a reader must know of the rows of all clips."""
        count = sum(bool(clip[0, 1]) for clip in rows)
        most = self.network.model.config.text_config.max_position_embeddings
        cut = f"{count} of {len(rows)} captions are longer than the {most} tokens that this CLIP reads and were cut"
        return [f"clip_text: {cut}; a CLIP for long texts in WEIGHTS/clip reads all"] if count else []


class ClipFrameRows(_ClipRows):
    """A row a pair of neighbouring frames, float64: the cosine of their features, -1..1 (Esser et al. 2023's frame
    consistency)."""

    name = "clip_frames"
    needs = frozenset()
    alike = frozenset({"rate", "levels"})

    def __call__(self, clip: Clip) -> Tensor:
        check_motion(clip)
        frames = self.network.images(clip.pixels)
        return (frames[1:] * frames[:-1]).sum(dim=-1, keepdim=True)


# Extractors share a network: it is here for as long as one of them is.
_OPEN: weakref.WeakValueDictionary[tuple[str, torch.device], ClipNetwork] = weakref.WeakValueDictionary()


def open_clip(weights: Path | None, device: torch.device) -> ClipNetwork:
    """Of `weights`/clip, or of the hub's cache, in float32. Raises UserError where there is none."""
    source = HUB
    if weights is not None and (weights / "clip").is_dir():
        source = str((weights / "clip").resolve())
    elif not isinstance(try_to_load_from_cache(HUB, "config.json"), str):
        raise UserError(
            "there is no CLIP: save a CLIP model with its processor into WEIGHTS/clip, as transformers does, or fetch "
            f"one into the hub's cache: hf download {HUB}"
        )
    network = _OPEN.get((source, device))
    if network is None:
        model, processor = _load(source)
        network = _OPEN[source, device] = ClipNetwork(model.to(device), processor)
    return network


def _load(source: str) -> tuple[CLIPModel, CLIPProcessor]:
    try:
        model, info = CLIPModel.from_pretrained(
            source, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        processor = CLIPProcessor.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise UserError(f"{source} cannot be loaded as CLIP with its processor: {brief(error, 300)}") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{source} is no CLIP: its weights lack {len(missing)} tensors, e.g. {missing[0]}")
    return model, processor


def _fingerprint(model: CLIPModel, processor: CLIPProcessor) -> str:
    config = {
        part: {key: getattr(settings, key) for key in ("num_attention_heads", "hidden_act", "layer_norm_eps")}
        for part, settings in (("text", model.config.text_config), ("vision", model.config.vision_config))
    }
    image = {key: value for key, value in processor.image_processor.to_dict().items() if not key.startswith("_")}
    tokens = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    for volatile in ("padding", "truncation"):  # changed by every call of a tokenizer
        tokens.pop(volatile, None)
    rest = json.dumps([image, tokens], sort_keys=True, default=str).encode()
    return module_fingerprint(model, config | {"processor": hashlib.sha256(rest).hexdigest()})


CLIP_SCORES = tuple(
    MeanScore(name=name, extractor=name, compares="none", better="higher") for name in ("clip_text", "clip_frames")
)
