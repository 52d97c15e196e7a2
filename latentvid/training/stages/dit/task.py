"""Training the diffusion transformer, from a latent cache or from clips encoded as it trains.

Axes: T tokens, N samples of a pack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ....attention import describe_backend, resolve_backend
from ....config.schema import DitConfig
from ....config.sections import UNKNOWN_FPS
from ....errors import UserError
from ....evaluation.sheet import Row
from ....models.adapters.lora import save_lora
from ....models.flops import TRAINING, GridFlops, backbone_flops, vae_flops
from ....models.kinds import DIT, kind_of
from ....models.open import OpenBackbone
from ....models.transformer import VideoDiT
from ....packing import Grid, Reference, Shape
from ....references import header_of, save_roles
from ....sequence import makers
from ....world import shards_weights
from ...checkpoint.init import Source, Wanted, goes_on, inherited, open_source
from ...feed.manifests import main_first
from ...origin import Base, Origin
from ...parallel.deferred import without_storage
from ...task import HeldOut
from .before import Before
from .blank import blank
from .conditions import ConditionMaker
from .data import DitPacks
from .inflated import check_new, export_module, of_base, take, told_by_motion, trains_motion
from .known import check_length, check_told
from .looks import check_looks, check_sizes, looked_at
from .network import check_shared, costs_of, new_network, published_network, told_by
from .pack import DitPack
from .parts import compute_dtype, load_parts, make_pipeline, roles_of
from .prior_maker import make_prior
from .product import export_branch, export_motion, export_pipeline, export_repository, notes_of_student
from .published import part_of, published_of, settled
from .sampled_scores import SampledScores
from .seen import defaults_of, seen_by, seen_in
from .trained import OF_VIDEO_DIT, choose_trained, dropout_of
from .validation import HeldOutLatents


class DitTask(DitPacks):
    """What is trained is the transformer; the VAE and the text encoder are frozen.

    Where the model that the run begins with is needed beside it (`before`), it is that also where the run goes on:
    `init` (or `model.from`) is read again. With an adapter it is the model itself with the adapter off. Where weights
    are trained it is a copy, whole on every process whatever the strategy, so that it computes what the model computed.
    """

    apart = ()
    settled = staticmethod(settled)
    dit: type[VideoDiT] | None = None  # what is built instead of a VideoDiT

    def __init__(self, config: DitConfig, device: torch.device, data: bool = True, begin: bool | None = None) -> None:
        """`data=False` leaves the data closed: enough to export. begin: whether the model gets the weights that the run
        begins with; None: where the data are open."""
        begin = data if begin is None else begin
        self.config = config = settled(config)
        self.published = published_of(config)
        self.parts = load_parts(config, device, self.published)
        self.sequence, self.base, self.origin = self.parts.sequence, None, None
        self.weights = self._source() if config.init is not None and (begin or config.keeps_base) else None
        self.model = self._first_model()
        self.motion = config.keeps_base and trains_motion(self.model, self.weights)
        self.origin = self._begun() if begin else None
        super().__init__(self.config, self.parts, self.model.patch, self._conditions())
        self.motion_dropout = 0.0 if self.published else config.data.motion_dropout
        self.fps_dropout = config.data.fps_dropout if getattr(self.model.config, "fps_condition", False) else 0.0
        if data:
            check_looks(self.config, self.published, self.text)
            if self.config.samples.every:
                check_sizes(self.config, make_pipeline(self.config, self.parts, self.model))
            self.open()
            self.notes += notes_of_student(self.config, self.weights)
            self._check_references()
            check_length(self.model, self.shapes.table)
            self.tokens = self.shapes.map(lambda shape: shape.tokens).array()
            self.costs = costs_of(self.model, self.shapes, self.tokens)
            if config.preference.on or config.prior.by_model:
                self.before = Before(self.model, self._copy(device), self.config, device)

    def _copy(self, device: torch.device) -> nn.Module | None:
        """The model as the run begins with it, where no adapter can be switched off."""
        if self.config.adapter.kind != "none":
            return None
        origin = self.origin  # which is of the model that is trained, and of a run's start
        copy = self.new_model().requires_grad_(False).eval()
        self.origin = origin
        return copy if self.config.run.dry_run else copy.to(device)

    @classmethod
    def prepare_run(
        cls, config: DitConfig, device: torch.device, may_stop: Callable[[], AbstractContextManager]
    ) -> None:
        if config.prior.wanted and not goes_on(config.run.dir):
            with may_stop():
                make_prior(config, device, cls)

    def follow(self, before: Path | None) -> None:
        """It learns from its data alone, whatever was before."""

    def _check_references(self) -> None:
        """Raises UserError where the model does not take those that the data have."""
        check_told(self.config, self.model)
        if any(role.as_tokens for role in roles_of(self.config).values()):
            if (why := self.model.no_references) is not None:
                raise UserError(f"data.references: {why}: leave them out, or train another model")
            try:
                self.model.check_references(self.shapes.table)
            except UserError as error:
                raise UserError(f"data.references: {error}") from None

    @property
    def partial(self) -> bool:
        """Whether some clips have given frames, or references, whose tokens have no loss."""
        given = not {"plain", "independent"}.issuperset(self.config.given.names)
        return given or (bool(self.config.data.references) and not self.controlled)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [*self.model.blocks, *getattr(self.model, "temporal", ())]

    @property
    def width(self) -> int:
        return self.model.width

    @property
    def product(self) -> str:
        if self.controlled:
            return "controlnet"
        moves = self.motion or self.config.moves
        return "motion" if moves else "pipeline" if self.config.adapter.kind == "none" else "lora"

    @property
    def ragged(self) -> bool:
        """Whether a pack takes a call of the network for each of its shapes."""
        return getattr(self.model, "ragged", False)

    @property
    def recomputes(self) -> bool:
        return self.model._supports_gradient_checkpointing

    @property
    def frozen(self) -> tuple[nn.Module, ...]:
        copy = () if self.before is None or self.before.copy is None else (self.before.copy,)
        return self.vae, *self.text.networks, *copy

    def _source(self) -> Source | None:
        """What `init` names, which says what `model` leaves out; None where the run goes on, which said it itself, with
        all its weights."""
        config, source, going = self.config, None, goes_on(self.config.run.dir)
        if not going or config.keeps_base:
            kind = kind_of(config.model) if "kind" in config.model else None
            wanted = Wanted(kind, config.stage, "transformer", self._known)
            source = main_first(lambda: open_source(config.init, config.init_weights, wanted))
        arguments = inherited(config.run.dir) if going else source.arguments or {}
        self.config = replace(config, model={**{k: v for k, v in arguments.items() if k == "kind"}, **config.model})
        told = {key: value for key, value in arguments.items() if key not in self._known}
        told |= told_by_motion(config, source, self._known)
        self.config = replace(config, model={**told, **config.model})
        return source

    @property
    def _known(self) -> dict[str, int]:
        """The model's arguments that the loaded parts tell."""
        return told_by(self.config, self.parts)

    def _first_model(self) -> VideoDiT | OpenBackbone:
        """`new_model`; where all its weights are new, and processes shard them, without storage: each makes its own."""
        new = self.published is None and self.weights is None and not self.config.keeps_base
        if not (new and shards_weights() and self.config.stage == "dit" and kind_of(self.config.model) == DIT):
            return self.new_model()
        model, model.deferred = without_storage(self.new_model, self.config.run.seed)
        return model

    def new_model(self) -> VideoDiT | OpenBackbone:
        torch.manual_seed(self.config.run.seed)
        model = new_network(self.config, self.parts, self.dit) if self.published is None else self._published_model()
        device, dtype = self.parts.device, compute_dtype(self.config)
        width = getattr(model, "head_width", None)
        model.attention_backend = resolve_backend(self.config.attention, device, dtype, width)
        check_shared(self.sequence, model)
        model.sequence = self.sequence
        if self.config.keeps_base:
            if self.published is None:
                self._take(model, self.weights)
            where = self.weights.where if self.published is None else self._where
            self.base = Base(where, of_base(model, self.weights, self.config))
            usual = getattr(model, "lora", OF_VIDEO_DIT) if self.published is None else self.published.recipe.lora
            choose_trained(model, self.config, usual)
            check_new(model, self.weights, self.config)
        return model

    def _published_model(self) -> OpenBackbone:
        return published_network(self.config, self.parts)

    @property
    def _where(self) -> str:
        return str(self.published.folder / part_of(self.config, self.published))

    def _begun(self) -> Origin | None:
        """Where the weights are from that the run begins with."""
        if self.published is not None and not goes_on(self.config.run.dir):
            total = sum(p.numel() for p in self.model.parameters())
            motion = isinstance(self.config.model.get("motion"), dict)
            beside = self.config.adapter.kind != "none" or self.controlled or motion
            new = sum(p.numel() for p in self.model.parameters() if p.requires_grad) if beside else 0
            return Origin(self._where, total - new, total)
        if self.weights is None or self.base is not None:
            return self.origin if not goes_on(self.config.run.dir) else None
        return self._take(self.model, self.weights)

    def _take(self, model: VideoDiT, source: Source) -> Origin:
        self.origin = take(model, source, self.parts, self.config)
        return self.origin

    def _conditions(self) -> ConditionMaker | None:
        if self.published is None:
            return None
        by_encoder = self.parts.image is not None
        return ConditionMaker(self.published.recipe, self.model, self.text, self.vae.temporal_stride, by_encoder)

    # --- what it costs ---

    def pixels(self, grid: Grid) -> Grid:
        (t, p, q), side = self.patch, self.vae.spatial_stride
        return 1 + (grid[0] * t - 1) * self.vae.temporal_stride, grid[1] * p * side, grid[2] * q * side

    @cached_property
    def mean_text(self) -> float:
        """Text tokens of a sample, dropped captions included, by 64 samples spread over the data set."""
        asked = torch.linspace(0, len(self.grids) - 1, min(64, len(self.grids))).long().tolist()
        if self.cache is not None:
            filled = (lambda text: text) if self.conditions is None else self.conditions.filled
            lengths, null = [len(filled(self.cache.load(i).text)) for i in asked], len(filled(self.null_text))
        else:
            *lengths, null = map(len, self.text.tokenize([*(self.source.caption(i) for i in asked), ""]))
        dropout = self.config.caption.dropout
        return (1 - dropout) * sum(lengths) / len(lengths) + dropout * null

    @property
    def _passes_too(self) -> float:
        """Of the model and of the one before it, which has no backward pass, over one of the model."""
        return 1 + (self.before is not None) / TRAINING

    def grid_flops(self, grid: Grid, references: Sequence[Reference] = ()) -> GridFlops:
        shape = Shape(grid, tuple(references))
        model = round(self._passes_too * backbone_flops(self.model, [grid], [self.mean_text], [shape.references]))
        encoded = shape.grids if self.cache is None else ()
        return GridFlops(model, sum(vae_flops(self.vae, self.pixels(each)).encode for each in encoded))

    def flops(self, pack: DitPack) -> float:
        whole = pack.layout.whole or pack.layout
        rank, size = (0, 1) if self.sequence is None else (self.sequence.rank, self.sequence.size)
        made = [s for s, maker in zip(whole.shapes, makers(whole.lengths, size), strict=True) if maker == rank]
        if pack.captions is not None:
            text = [len(ids) for ids in self.text.tokenize(pack.captions)]
        else:
            text = [] if pack.text_layout is None else pack.text_layout.lengths
        each = [s.grid for s in made], text, [s.references for s in made]
        return self._passes_too * backbone_flops(self.model, *each)

    blank_pack = blank

    def summary(self) -> str:
        return f"{super().summary()}\n{describe_backend(self.model.attention_backend, self.parts.device)}"

    # --- training ---

    def loss(self, model: nn.Module, pack: DitPack, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        with dropout_of(self.config, self.model, pack.numbers[0] if pack.numbers else 0):
            return self.errors(model, pack)[0], {}

    # --- looks, measurements, export ---

    def sample(self, model: VideoDiT, rank: int, world: int) -> dict[int, Row]:
        return looked_at(self.config, make_pipeline(self.config, self.parts, model), self.fps, rank, world)

    def held_out(self) -> HeldOut | None:
        settings = self.config.validation
        if not settings.every:
            return None
        scores = SampledScores(self.config, self.parts, self.patch) if settings.scores else None
        return HeldOutLatents(self.config, self.parts, self.patch, scores, self.conditions)

    def export(self, model: VideoDiT | OpenBackbone, folder: Path) -> None:
        """The pipeline, which makes by default what it was trained on (`samples` is of the looks at it alone); the
        repository of a published model; an adapter's file; or the folder of a control branch, or of motion modules."""
        if self.config.adapter.kind != "none":
            save_lora(model, folder, note=header_of(roles_of(self.config)))
        elif self.controlled:
            export_branch(model, self.config, self.base, self.published, folder)
        elif self.config.moves:
            export_motion(model, self.parts.scheduler, folder)
        elif self.published is not None:
            export_repository(model, self.published, part_of(self.config, self.published), folder)
            save_roles(folder, roles_of(self.config))
        elif self.motion:
            export_module(model, self.config, self.base, self.parts, self._seen, folder)
        else:
            pipeline = make_pipeline(self.config, self.parts, model)
            export_pipeline(pipeline, self.config, self.weights, self._seen, folder)

    @property
    def _seen(self) -> list[dict[str, Any]]:
        return self.trained or seen_by(self.config.run.dir)

    @property
    def fps(self) -> float:
        return self.config.samples.fps or defaults_of(self.trained).get("fps", UNKNOWN_FPS)

    @cached_property
    def trained(self) -> list[dict[str, Any]]:
        """What sizes, lengths and rates the data have; none where they are not open."""
        opened = self.cache or self.source
        return [] if opened is None else seen_in(opened, self.vae)
