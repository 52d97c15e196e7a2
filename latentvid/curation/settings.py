"""What a curation is told (curation.yaml). Each default lives here once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..limits import check_fields
from ..limits import setting as _help
from .columns import COLUMNS, LOOKED_AT, SEGMENT, Column
from .expressions import Filter

Detector = Literal["adaptive", "content", "transnet", "none"]
Network = Literal["aesthetic", "clip"]
CaptionSource = Literal["manifest", "sidecar", "model", "template"]


@dataclass(kw_only=True)
class Shots:
    detector: Detector = _help(
        "adaptive and content are PySceneDetect's, transnet TransNetV2 (weights); none takes each file as one shot",
        default="adaptive",
    )
    threshold: float | None = _help("the detector's; null: 3 (adaptive), 27 (content), 0.5 (transnet)", default=None)
    min_content: float = _help("of adaptive: least difference of two frames that is a cut", default=15.0)
    shortest_s: float = _help("seconds between two cuts, at least", default=0.3)
    weights: Path | None = _help("TransNetV2 as an ONNX file, for transnet", default=None)

    def __post_init__(self) -> None:
        check_fields(self, "shots")
        if (self.detector == "transnet") != (self.weights is not None):
            raise ValueError("weights is TransNetV2's ONNX file: it and detector: transnet go together")


@dataclass(kw_only=True)
class Segments:
    """Lengths are in frames as training takes them: at `fps`, or else the file's own."""

    min_frames: int = _help("shorter shots, and remainders of shots, are left out", default=17)
    max_frames: int = _help("longer shots are cut into segments that follow each other", default=121)
    temporal_stride: int = _help("of the autoencoder: segments have 1 + a multiple of it frames", default=4)
    margin: int = _help("frames of the file left out on both sides of each cut: they may hold both shots", default=1)
    fps: float | None = _help("frames a second that training will take (data.fps); null: the file's own", default=None)

    def __post_init__(self) -> None:
        check_fields(self, "segments")
        if self.min_frames > self.max_frames:
            raise ValueError(f"min_frames ({self.min_frames}) is above max_frames ({self.max_frames})")


@dataclass(kw_only=True)
class Measures:
    area: int = _help("pixels that frames are fitted to, never enlarged, before they are measured", default=147_456)
    networks: tuple[Network, ...] = _help(
        "aesthetic: LAION's predictor; clip: how well the caption fits; both need weights", default=()
    )
    weights: Path | None = _help(
        "folder of networks, as latentvid.evaluation takes it (docs/evaluation.md)", default=None
    )
    text: Path | None = _help("detector of text as an ONNX file, for the column text (needs onnxruntime)", default=None)
    own: dict[str, str] = _help(
        "measures of one's own, column: module:function of uint8 frames [F,H,W,3] (watermarks)",
        default_factory=dict,
    )
    frames: int = _help("frames of a segment that networks and measures of one's own see, evenly spaced", default=4)

    def __post_init__(self) -> None:
        check_fields(self, "measures")
        if self.networks and self.weights is None:
            raise ValueError(f"networks {', '.join(self.networks)} need weights: the folder that holds them")
        for name, function in self.own.items():
            if name in COLUMNS or not name.isidentifier():
                raise ValueError(f"own.{name}: the name is taken, or no name: give another")
            if function.count(":") != 1:
                raise ValueError(f"own.{name}={function}: write module:function")


@dataclass(kw_only=True)
class Duplicates:
    remove: bool = _help("of segments that show the same, keep the largest", default=True)
    distance: float = _help("bits of 64 in which perceptual hashes of the same picture differ, on average", default=9.0)
    mirrored: bool = _help("look for mirrored ones too", default=False)
    similarity: float | None = _help(
        "cosine of CLIP's features (measures.weights) from which segments are the same too; null: hashes alone",
        default=None,
    )

    def __post_init__(self) -> None:
        check_fields(self, "duplicates")


@dataclass(kw_only=True)
class Captions:
    sources: tuple[CaptionSource, ...] = _help(
        "where captions come from, the first that has one: manifest (a table given as SOURCE), sidecar (NAME.txt), "
        "model, template",
        default=("manifest", "sidecar", "model", "template"),
    )
    template: str | None = _help("with {column}s in it, such as `a clip of {stem}`; null: none", default=None)
    model: str | None = _help("folder or hub name of a vision-language model of transformers; null: none", default=None)
    prompt: str = _help(
        "what the model is asked", default="Describe this video in one sentence: what is seen, and how it moves."
    )
    frames: int = _help("that the model sees, evenly spaced", default=4)
    batch: int = _help("segments that the model describes together", default=8)
    max_tokens: int = _help("of a description", default=128)

    def __post_init__(self) -> None:
        check_fields(self, "captions")


@dataclass(kw_only=True)
class Split:
    validation: float = _help("share of the sources that are held out", default=0.05)
    seed: int = _help("of which these are", default=0)

    def __post_init__(self) -> None:
        check_fields(self, "split")


@dataclass(kw_only=True)
class Curation:
    shots: Shots = field(default_factory=Shots)
    segments: Segments = field(default_factory=Segments)
    measures: Measures = field(default_factory=Measures)
    duplicates: Duplicates = field(default_factory=Duplicates)
    captions: Captions = field(default_factory=Captions)
    encode: Literal["never", "borders", "all"] = _help(
        "which segments become files of their own, without their borders: none, those that have some, all",
        default="never",
    )
    filters: tuple[str, ...] = _help(
        "expressions over columns, such as `motion > 0.2`; a segment stays where all are true", default=()
    )
    split: Split = field(default_factory=Split)

    def __post_init__(self) -> None:
        if self.duplicates.similarity is not None and self.measures.weights is None:
            raise ValueError(
                "duplicates.similarity is of CLIP's features: give measures.weights, the folder that has clip/"
            )
        for text in self.filters:
            Filter.of(text, self.columns)

    @property
    def columns(self) -> dict[str, Column]:
        """All that a segment can have: what filters may name."""
        own = {name: Column("number", SEGMENT, function, LOOKED_AT) for name, function in self.measures.own.items()}
        return {**COLUMNS, **own}

    @property
    def parsed(self) -> list[Filter]:
        return [Filter.of(text, self.columns) for text in self.filters]
