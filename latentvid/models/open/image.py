"""The image encoder of a published image-to-video model: pictures to states that the transformer attends to.

Axes: I image tokens, Di width of the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    SiglipImageProcessor,
    SiglipVisionModel,
)
from transformers.image_processing_utils import BaseImageProcessor

from ...errors import UserError, brief
from ...limits import shown
from ...weights import check_finite, read_object


@dataclass(frozen=True)
class Kind:
    """processor: of pictures, and its folder. layer: which hidden state; None: the last, after its norm."""

    model: type[PreTrainedModel]
    processor: type[BaseImageProcessor]
    folder: str
    layer: int | None


KINDS = {  # by the class in config.json
    "CLIPVisionModel": Kind(CLIPVisionModel, CLIPImageProcessor, "image_processor", -2),  # Wan 2.1
    "CLIPVisionModelWithProjection": Kind(CLIPVisionModel, CLIPImageProcessor, "image_processor", -2),
    "SiglipVisionModel": Kind(SiglipVisionModel, SiglipImageProcessor, "feature_extractor", None),  # HunyuanVideo 1.5
}


class ImageReader:
    """A frozen image encoder with its processor."""

    def __init__(self, encoder: PreTrainedModel, processor: BaseImageProcessor, layer: int | None) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.processor, self.layer = processor, layer

    @torch.no_grad()
    def read(self, pictures: Sequence[Tensor], device: torch.device) -> Tensor:
        """uint8 [H,W,3] each -> states [I,Di] of all of them, one after another, on `device`."""
        arrays = [picture.cpu().numpy() for picture in pictures]
        pixels = self.processor(images=arrays, return_tensors="pt")["pixel_values"]
        out = self.encoder(pixels.to(self.encoder.device, self.encoder.dtype), output_hidden_states=True)
        states = out.last_hidden_state if self.layer is None else out.hidden_states[self.layer]
        return states.flatten(0, 1).to(device)


class EmbeddingReader(ImageReader):
    """One state a picture, CLIP's embedding of it, as Stable Video Diffusion reads it."""

    @torch.no_grad()
    def read(self, pictures: Sequence[Tensor], device: torch.device) -> Tensor:
        side = self.encoder.config.image_size
        found = []
        for picture in pictures:
            pixels = picture.cpu().permute(2, 0, 1)[None].float() / 127.5 - 1.0
            pixels = (_resize_with_antialiasing(pixels, (side, side)) + 1.0) / 2.0
            options = dict.fromkeys(("do_center_crop", "do_resize", "do_rescale"), False)
            seen = self.processor(images=pixels, do_normalize=True, return_tensors="pt", **options)["pixel_values"]
            found.append(self.encoder(seen.to(self.encoder.device, self.encoder.dtype)).image_embeds)
        return torch.cat(found).to(device)


EMBEDDING = Kind(CLIPVisionModelWithProjection, CLIPImageProcessor, "feature_extractor", None)


def load_image_reader(
    folders: Mapping[str, Path], dtype: torch.dtype = torch.float32, embeds: bool = False
) -> ImageReader:
    """Of a repository's folders, which are here. embeds: the embedding of a whole picture is its state.

    Raises UserError where weights are missing or not finite.
    """
    folder = folders["image_encoder"]
    names = read_object(folder / "config.json").get("architectures")
    if not isinstance(names, list) or not names or names[0] not in KINDS:
        raise UserError(f"{folder / 'config.json'}: architectures={shown(names)}: must be one of {', '.join(KINDS)}")
    kind = EMBEDDING if embeds else KINDS[names[0]]
    if kind.folder not in folders:
        raise UserError(f"{folder} needs {kind.folder} beside it: copy the repository again")
    options = {"local_files_only": True}
    try:
        encoder, info = kind.model.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
        processor = kind.processor.from_pretrained(folders[kind.folder], **options)
    except MemoryError:
        raise
    except Exception as error:  # transformers raises what the files lead it to
        raise UserError(f"image encoder {folder} cannot be loaded: {brief(error, 300)}") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"the weights in {folder} lack {len(missing)} tensors, e.g. {missing[0]}: copy them again")
    check_finite(encoder, folder)
    return (EmbeddingReader if embeds else ImageReader)(encoder, processor, kind.layer)
