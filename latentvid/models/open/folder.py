"""A published repository as it is: what its index names, checked part by part, and its transformers' weights.

model_index.json names a library and a class for each part. Only classes of the tables here are taken, and they are
imported by these tables, never by the names in a file: nothing of the folder is run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch

from ...errors import UserError
from ...files import linked_copy
from ...limits import shown
from ...weights import check_folder, read_object
from ..hub import INDEX, fetch, is_name
from ..interchange import FOREIGN as VAES
from ..saved import checked
from .backbone import OpenBackbone
from .recipe import Recipe
from .recipes import OF_UNETS, PIPELINES, recipe_of
from .registry import FAMILIES, UNETS, packed
from .schedule import SCHEDULERS, read_guidance, read_schedule

ENCODERS = (
    *("T5EncoderModel", "UMT5EncoderModel", "CLIPTextModel", "LlamaModel", "LlamaForCausalLM"),
    *("LlavaForConditionalGeneration", "Qwen2_5_VLTextModel", "Qwen2_5_VLForConditionalGeneration"),
    *("Gemma3ForConditionalGeneration", "Gemma3TextModel"),
)
TOKENIZERS = (
    *("T5Tokenizer", "T5TokenizerFast", "CLIPTokenizer", "CLIPTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast"),
    *("Qwen2Tokenizer", "Qwen2TokenizerFast", "ByT5Tokenizer", "GemmaTokenizer", "GemmaTokenizerFast"),
    *("PreTrainedTokenizerFast", "TokenizersBackend"),
)
PARTS: dict[str, Collection[str]] = {  # classes that a part may be of
    "transformer": FAMILIES,
    "transformer_2": FAMILIES,
    "unet": UNETS,
    "motion_adapter": ("MotionAdapter",),
    "vae": [cls.__name__ for cls in VAES],
    "scheduler": SCHEDULERS,
    "text_encoder": ENCODERS,
    "text_encoder_2": ENCODERS,
    "tokenizer": TOKENIZERS,
    "tokenizer_2": TOKENIZERS,
    "image_encoder": ("CLIPVisionModel", "CLIPVisionModelWithProjection", "SiglipVisionModel"),
    "image_processor": ("CLIPImageProcessor", "CLIPImageProcessorFast"),
    "feature_extractor": (
        *("SiglipImageProcessor", "SiglipImageProcessorFast"),
        *("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor"),
    ),
    "guider": ("ClassifierFreeGuidance",),
    "connectors": ("LTX2TextConnectors",),
}
# known, and left where they are
UNUSED = ("safety_checker", "audio_vae", "vocoder", "processor", "prompt_enhancer", "duration_head")
NEEDED = ("vae", "scheduler", "text_encoder", "tokenizer")  # beside the network
NEEDED_OF = {"StableVideoDiffusionPipeline": ("unet", "vae", "scheduler", "image_encoder", "feature_extractor")}
NETWORKS = ("transformer", "transformer_2", "unet")
LIBRARIES = ("diffusers", "transformers", "ltx2")  # the last as diffusers names the connectors of its own


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a repository holds, known before any weight is read.

    folder: where it is. pipeline: the class that its index names. recipe: of its variant, with the repository's own
    schedule. parts: the folder of each part. classes: the class of each. experts: the parts that predict: a U-Net, or
    the transformers, of which the second predicts below the noise level `boundary`. network_config: of the first.
    """

    folder: Path
    pipeline: str
    recipe: Recipe
    parts: Mapping[str, Path]
    classes: Mapping[str, str]
    experts: tuple[str, ...]
    network_config: Mapping[str, Any]

    @property
    def boundary(self) -> float | None:
        return self.recipe.boundary


def is_published(folder: str | Path) -> bool:
    """Whether it is a published model and no pipeline of ours: by a folder's index; a name, where it is no folder's."""
    path = Path(folder)
    if not path.is_dir():
        return is_name(folder)
    index = path / INDEX
    found = read_object(index).get("_class_name") if index.is_file() else None
    return isinstance(found, str) and found in PIPELINES


def parts_of(index: Mapping[str, Any]) -> list[str]:
    """The folders of a published repository that are used, by its index. Raises UserError for one that is not known."""
    return list(_classes(Path(INDEX), index))


def read_published(source: str | Path) -> Published:
    """A published repository: a folder, or a name on the hub. No weights are read.

    Raises UserError, which names the file and the key, for what is not known.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = fetch(str(source), parts_of)
    file = folder / INDEX
    if not file.is_file():
        hint = " (it holds one part of a repository)" if (folder / "config.json").exists() else ""
        raise UserError(f"{folder} is no published model{hint}: {INDEX} is missing; give the repository's folder")
    index = read_object(file)
    classes = _classes(file, index)
    for part in classes:
        check_folder(folder / part, folder)
    experts = tuple(name for name in NETWORKS if name in classes)
    config = read_object(folder / experts[0] / "config.json")
    pipeline = index["_class_name"]
    recipe = recipe_of(pipeline, index, config)
    if (recipe.boundary is not None) != (len(experts) == 2):
        raise UserError(f"{file}: boundary_ratio and transformer_2 belong together: copy the repository again")
    schedule, solver = read_schedule(folder / "scheduler", recipe, pipeline)
    guidance = read_guidance(folder / "guider") if "guider" in classes else {}
    recipe = replace(recipe, scheduler=schedule, solver=solver, **guidance)
    parts = {part: folder / part for part in classes}
    return Published(
        folder=folder,
        pipeline=pipeline,
        recipe=recipe,
        parts=parts,
        classes=classes,
        experts=experts,
        network_config=config,
    )


def _classes(file: Path, index: Mapping[str, Any]) -> dict[str, str]:
    """The class of each part that is there. Raises UserError for a pipeline, a part or a class that is not known."""
    if (pipeline := index.get("_class_name")) not in PIPELINES:
        raise UserError(f"{file}: _class_name={shown(pipeline)}: must be one of {', '.join(PIPELINES)}")
    network = "unet" if pipeline in OF_UNETS else "transformer"
    found: dict[str, str] = {}
    for part, value in index.items():
        if part.startswith("_") or not isinstance(value, list) or value == [None, None]:
            continue
        if part in UNUSED:
            continue
        if part not in PARTS or (part in NETWORKS and part.removesuffix("_2") != network):
            raise UserError(f"{file}: {part}={shown(value)}: {pipeline} has no such part; nothing is imported")
        if len(value) != 2 or str(value[0]).partition(".")[0] not in LIBRARIES or value[1] not in PARTS[part]:
            names = ", ".join(PARTS[part])
            raise UserError(f"{file}: {part}={shown(value)}: must be one of {names}; nothing else is imported")
        found[part] = value[1]
    if missing := [part for part in NEEDED_OF.get(pipeline, (network, *NEEDED)) if part not in found]:
        raise UserError(f"{file}: {missing[0]} is missing: {pipeline} needs it; copy the repository again")
    return found


def copy_repository(published: Published, out: Path, without: Collection[str]) -> None:
    """The repository's own files and those of its parts, but for some, in a new folder; with parts that nothing here
    reads, such as the sound's of LTX-2. Raises UserError."""
    index = read_object(published.folder / INDEX)
    named = {part for part, value in index.items() if isinstance(value, list) and value and value[0] is not None}

    def wanted(place: Path) -> bool:
        first = place.parts[0]
        of_a_part = len(place.parts) == 1 or first in named | published.parts.keys()
        return of_a_part and first not in without and not first.startswith(".")

    out.mkdir(parents=True)
    linked_copy(published.folder, out, wanted)


def load_backbone(published: Published, part: str | None = None, dtype: torch.dtype = torch.float32) -> OpenBackbone:
    """A network of the repository, one of its `experts` (None: the first), with its weights, in eval mode; in bf16 what
    diffusers keeps in fp32 stays so.

    Raises UserError where a tensor is missing, or one too many, of another shape or not finite.
    """
    part = part or published.experts[0]
    if part not in published.experts:
        raise UserError(f"{published.folder} has no {part}: one of {', '.join(published.experts)}")
    cls, folder = getattr(diffusers, published.classes[part]), published.parts[part]
    model = packed(checked(cls, folder, cls.from_pretrained, folder, {"torch_dtype": dtype})).eval()
    for name, value in published.recipe.backbone.items():
        setattr(model, name, value)
    return model
