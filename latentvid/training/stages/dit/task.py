"""Training the diffusion transformer, from a latent cache or from clips encoded as it trains.

Axes: T tokens, N samples of a pack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ....attention import resolve_backend
from ....config.schema import DitConfig
from ....config.sections import UNKNOWN_FPS
from ....errors import UserError
from ....evaluation.sheet import Row
from ....models.attention_context import attended_pairs
from ....models.flops import GridFlops, dit_flops, vae_flops
from ....models.transformer import VideoDiT
from ....packing import Grid, Packed
from ....pipelines.sampling import Sampling
from ....sequence import makers
from ...checkpoint.init import Source, Wanted, begin_with, goes_on, inherited, open_source
from ...feed.manifests import main_first
from ...task import HeldOut, build_model, shares
from .data import DitPacks
from .pack import DitPack
from .parts import compute_dtype, differing_from, load_parts, make_pipeline
from .sampled_scores import SampledScores
from .seen import defaults_of, seen_by, seen_in
from .validation import HeldOutLatents


class DitTask(DitPacks):
    """What is trained is the transformer; the VAE and the text encoder are frozen."""

    product = "pipeline"
    ragged = False
    apart = ()

    def __init__(self, config: DitConfig, device: torch.device, data: bool = True) -> None:
        """`data=False` leaves the data closed: enough to export."""
        self.config, self.parts = config, load_parts(config, device)
        self.sequence, self.origin = self.parts.sequence, None
        source = self._source() if config.init is not None and data else None
        self.model = self.new_model()
        if source is not None:
            differing = differing_from(source, self.model, self.parts)
            self.origin = begin_with(self.model, source, differing, config.init_partial)
        super().__init__(self.config, self.parts, self.model.config.patch)
        self.fps_dropout = config.data.fps_dropout if self.model.config.fps_condition else 0.0
        if data:
            self._check_prompts()
            self.open()
            self.tokens = self.grids.map(math.prod).array()
            # a block's attention is 4 D a pair of tokens, its linear layers about 24 D^2 a token
            c = self.model.config
            pairs = self.grids.map(lambda grid: attended_pairs(c.attention, c.depth, grid) / c.depth).array()
            self.costs = self.tokens + pairs / (6 * c.width)

    def _check_prompts(self) -> None:
        try:
            self.text.check(self.config.samples.prompts)
        except UserError as error:
            raise UserError(f"samples.prompts: {error}") from None

    @property
    def partial(self) -> bool:
        """Whether some clips have given frames, whose tokens have no loss."""
        return not {"plain", "independent"}.issuperset(self.config.given.names)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.blocks

    @property
    def width(self) -> int:
        return self.model.config.width

    @property
    def recomputes(self) -> bool:
        return self.model._supports_gradient_checkpointing

    @property
    def frozen(self) -> tuple[nn.Module, ...]:
        return self.vae, self.text.encoder

    def _source(self) -> Source | None:
        """What `init` names, which says what `model` leaves out; None where the run goes on, which said it itself."""
        config, source, arguments = self.config, None, {}
        if goes_on(config.run.dir):
            arguments = inherited(config.run.dir)
        else:
            wanted = Wanted(VideoDiT, config.stage, "transformer", self._known)
            source = main_first(lambda: open_source(config.init, config.init_weights, wanted))
            arguments = source.arguments or {}
        told = {key: value for key, value in arguments.items() if key not in self._known}
        self.config = replace(config, model={**told, **config.model})
        return source

    @property
    def _known(self) -> dict[str, int]:
        """The model's arguments that the loaded parts tell."""
        strides = {"temporal_stride": self.vae.temporal_stride}
        return {"latent_channels": self.vae.latent_channels, "text_width": self.text.dim, **strides}

    def new_model(self) -> VideoDiT:
        known = self._known
        for key, value in known.items():
            if self.config.model.get(key, value) != value:
                raise UserError(
                    f"model.{key} is {self.config.model[key]} but the loaded parts have {value}: leave it out"
                )
        torch.manual_seed(self.config.run.seed)
        model = build_model(VideoDiT, {**self.config.model, **known}, "model")
        model.attention_backend = resolve_backend(self.config.attention, self.parts.device, compute_dtype(self.config))
        if self.sequence is not None and model.config.heads % self.sequence.size:
            raise UserError(
                f"train.sequence_parallel is {self.sequence.size}, which does not divide model.heads, "
                f"{model.config.heads}: each process takes as many heads as the others"
            )
        if self.sequence is not None and model.config.attention != "full":
            raise UserError(
                f"train.sequence_parallel is {self.sequence.size}, but model.attention is {model.config.attention!r}: "
                "set train.sequence_parallel to 1, or model.attention to full"
            )
        model.sequence = self.sequence
        return model

    # --- what it costs ---

    def pixels(self, grid: Grid) -> Grid:
        side = self.vae.spatial_stride * self.patch
        return 1 + (grid[0] - 1) * self.vae.temporal_stride, grid[1] * side, grid[2] * side

    @cached_property
    def mean_text(self) -> float:
        """Text tokens of a sample, dropped captions included, by 64 samples spread over the data set."""
        asked = torch.linspace(0, len(self.grids) - 1, min(64, len(self.grids))).long().tolist()
        if self.cache is not None:
            lengths, null = [len(self.cache.load(i).text) for i in asked], len(self.null_text)
        else:
            *lengths, null = map(len, self.text.tokenize([*(self.source.caption(i) for i in asked), ""]))
        dropout = self.config.caption.dropout
        return (1 - dropout) * sum(lengths) / len(lengths) + dropout * null

    def grid_flops(self, grid: Grid) -> GridFlops:
        model = dit_flops(self.model.config, [grid], [self.mean_text])
        online = self.cache is None
        return GridFlops(model, vae_flops(self.vae, self.pixels(grid)).encode if online else 0)

    def flops(self, pack: DitPack) -> float:
        whole = pack.layout.whole or pack.layout
        rank, size = (0, 1) if self.sequence is None else (self.sequence.rank, self.sequence.size)
        made = [g for g, maker in zip(whole.grid, makers(whole.lengths, size), strict=True) if maker == rank]
        if pack.captions is not None:
            text = [len(ids) for ids in self.text.tokenize(pack.captions)]
        else:
            text = [] if pack.text_layout is None else pack.text_layout.lengths
        return dit_flops(self.model.config, made, text)

    def blank_pack(self, grids: Sequence[Grid]) -> DitPack:
        layout, text_layout = Packed.of(grids), Packed.of_lengths([round(self.mean_text)] * len(grids))
        blank = torch.zeros(layout.tokens, self.features)
        text = torch.zeros(text_layout.tokens, self.text.dim)
        rates = torch.zeros(len(grids))
        return DitPack(blank, torch.ones(layout.frames), layout, rates, clean=blank, text=text, text_layout=text_layout)

    # --- training ---

    def loss(self, model: nn.Module, pack: DitPack, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.errors(model, pack)[0], {}

    # --- looks, measurements, export ---

    def sample(self, model: VideoDiT, rank: int, world: int) -> dict[int, Row]:
        prompts = self.config.samples.prompts
        mine = shares(len(prompts), rank, world)
        wanted = [prompts[i] for i, _ in mine]
        sampling = Sampling(precision=compute_dtype(self.config), progress=False, large=True)
        pipeline = make_pipeline(self.config, self.parts, model)
        clips = pipeline(wanted, fps=self.fps, seed=mine[0][0], sampling=sampling).frames
        return {i: Row([clip], prompts[i]) for (i, counts), clip in zip(mine, clips, strict=True) if counts}

    def held_out(self) -> HeldOut | None:
        settings = self.config.validation
        if not settings.every:
            return None
        scores = SampledScores(self.config, self.parts, self.patch) if settings.scores else None
        return HeldOutLatents(self.config, self.parts, self.patch, scores)

    def export(self, model: VideoDiT, folder: Path) -> None:
        """The pipeline, which makes by default what it was trained on; `samples` is of the looks at it alone."""
        seen, inference = self.trained or seen_by(self.config.run.dir), self.config.inference
        pipeline = make_pipeline(self.config, self.parts, model)
        pipeline.register_to_config(
            **defaults_of(seen),
            steps=inference.steps,
            guidance=inference.guidance,
            trained=seen or None,
            given_shares=asdict(self.config.given),
        )
        pipeline.save_pretrained(folder)

    @property
    def fps(self) -> float:
        return self.config.samples.fps or defaults_of(self.trained).get("fps", UNKNOWN_FPS)

    @cached_property
    def trained(self) -> list[dict[str, Any]]:
        """What sizes, lengths and rates the data have; none where they are not open."""
        opened = self.cache or self.source
        return [] if opened is None else seen_in(opened, self.vae)
