"""VideoDiT: a diffusion transformer over packed spacetime patches with a noise level for each latent frame.

Axes: T tokens in a pack, P token features, N segments (samples), R latent frames, S text tokens,
D model width, A heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from timm.layers import Mlp
from torch import Tensor, nn

from ..attention import resolve_backend
from ..errors import UserError
from ..packing import Packed, Patch, Shape
from ..sequence import SequenceGroup
from .attention_context import ATTENTIONS, AttentionContext, make_contexts
from .conditions import NO_MOTION, Conditions
from .control import Control, Controllable
from .inputs import check_inputs
from .key_value_cache import KeyValueCache
from .layers import Block, modulated_norm, rate_embedding, rotary_table, time_positions, timestep_embedding
from .saved import SavedModel
from .temporal import TemporalBlock, in_order, temporal_count
from .text_context import BlockText, TextContext

TIMESTEP_FEATURES = 256
FPS_FEATURES = 256
CONDITION_CHANNELS = ("none", "mask_and_latents", "latents")
GUIDANCE_FEATURES = 256
MOTION_FEATURES = 256


class VideoDiT(Controllable, SavedModel, ModelMixin, ConfigMixin):
    """AdaLN-Zero diffusion transformer conditioned on packed text states.

    Text acts twice: token by token through cross-attention, and as a mean that joins the noise level in the modulation
    (the pooled path of Stable Diffusion 3, Esser et al. 2024).

    Given a piece of a pack, the processes of `sequence` (None: this one alone) work on its pieces together.

    Args:
        latent_channels: C of the VAE's latent.
        patch: spatial patch size; a token is patch x patch latent positions of one latent frame.
        width: D, of the tokens between the blocks; a multiple of heads.
        depth: number of blocks.
        heads: A, of attention.
        mlp_ratio: hidden width of the SwiGLU MLP over D; 8/3 has the parameters of a plain MLP at 4.
        text_width: width of the text encoder's states.
        rope_theta: base of the rotary frequencies.
        attention: what self-attention joins (table in attention_context.py): "full", a whole sample; "factorised", in
            turn a latent frame and a position through time; "causal", the latent frames up to a token's own;
            "inflated", a latent frame, and in temporal blocks between the others a position through time.
        fps_condition: the frame rate of each clip joins the noise level in the modulation; pictures, and clips whose
            rate is not known, have a learned state of their own. At first it changes nothing.
        rope_fps: positions in time are seconds, counted in latent frames of a clip of this rate, so that clips of other
            rates have positions that agree in time; null: numbers of latent frames.
        temporal_stride: frames of a latent frame after the first, which is one frame: the VAE's (for rope_fps).
        condition_channels: further input channels: "mask_and_latents", by which it is told what is known of a clip, a
            mask of the known latent positions and their latents (`conditions.known_channels`); "latents", by which it
            sees the clip made smaller, with the noise in it (`conditions.low_channels`); "none". At first they change
            nothing.
        guidance_condition: the scale of guidance joins the noise level in the modulation, so that one pass does what
            guidance does with two: of students (docs/distillation.md). At first it changes nothing.
        motion_condition: how much moves in each clip joins the noise level in the modulation, as a number from 0 up
            (docs/frame_rates.md); where it is not known it has a learned state of its own. At first it changes nothing.
        temporal_every: of inflated attention, a temporal block follows one block in so many: blocks 0, k, 2 k and so
            on. At first they change nothing.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # temporal ones are such too
    _repeated_blocks = ["Block", "TemporalBlock"]  # of diffusers' compile_repeated_blocks

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        patch: int = 2,
        width: int = 384,
        depth: int = 6,
        heads: int = 6,
        mlp_ratio: float = 8 / 3,
        text_width: int = 512,
        rope_theta: float = 10_000.0,
        attention: str = "full",
        fps_condition: bool = False,
        rope_fps: float | None = None,
        temporal_stride: int = 1,
        condition_channels: str = "none",
        guidance_condition: bool = False,
        motion_condition: bool = False,
        temporal_every: int = 1,
    ) -> None:
        super().__init__()
        if width % heads or width // heads % 2 or width // heads < 6:
            raise ValueError(f"width {width} / heads {heads}: the head width must be a whole even number, at least 6")
        if attention not in ATTENTIONS:
            raise ValueError(f"attention {attention!r}: one of {', '.join(ATTENTIONS)}")
        if attention == "factorised" and depth < 2:
            raise ValueError(
                f"factorised attention takes blocks of space and of time in turn: depth {depth} is below 2"
            )
        if attention == "inflated" and temporal_every > depth:
            raise ValueError(f"temporal_every {temporal_every}: there are {depth} blocks: give at most so many")
        if attention != "inflated" and temporal_every != 1:
            raise ValueError(f"temporal_every {temporal_every} is of inflated attention, and this is {attention}")
        if condition_channels not in CONDITION_CHANNELS:
            raise ValueError(f"condition_channels {condition_channels!r}: one of {', '.join(CONDITION_CHANNELS)}")
        features = latent_channels * patch**2
        self.tokens_in = nn.Linear(features, width)
        self.timestep_in = Mlp(TIMESTEP_FEATURES, width, width, act_layer=nn.SiLU)
        self.text_norm_in = nn.LayerNorm(text_width, eps=1e-6)  # encoders' states differ tenfold in scale
        self.text_in = Mlp(text_width, width, width, act_layer=nn.GELU)
        self.text_norm = nn.LayerNorm(width, eps=1e-6)
        self.pooled_norm = nn.LayerNorm(text_width, eps=1e-6)
        self.pooled_in = Mlp(text_width, width, width, act_layer=nn.SiLU)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.tokens_out = nn.Linear(width, features)
        self.fps_in = Mlp(FPS_FEATURES, width, width, act_layer=nn.SiLU) if fps_condition else None
        # a map of its own beside that of the tokens, which their sum makes one map of all channels: while it is 0, what
        # comes out is equal to the last bit
        self.channels_in = nn.Linear(self.channels * patch**2, width, bias=False) if self.channels else None
        scaled = guidance_condition
        self.guidance_in = Mlp(GUIDANCE_FEATURES, width, width, act_layer=nn.SiLU) if scaled else None
        self.motion_in = Mlp(MOTION_FEATURES, width, width, act_layer=nn.SiLU) if motion_condition else None
        inserted = temporal_count(attention, depth, temporal_every)
        self.temporal = nn.ModuleList(TemporalBlock(width, heads, mlp_ratio) for _ in range(inserted))
        self.controls = nn.ModuleList()
        self.attention_backend = "auto"
        self.sequence: SequenceGroup | None = None
        self.gradient_checkpointing = False
        self.initialise()

    # --- what any backbone tells of itself, as the packed passes over published models do (open/backbone.py) ---

    levels_by_frame = True  # each latent frame may have a noise level of its own

    @property
    def tells_motion(self) -> bool:
        return self.motion_in is not None

    def without(self, given: Conditions) -> Conditions:
        return given

    @property
    def channels(self) -> int:
        """Further input channels, of `Conditions.channels`."""
        return 0 if self.config.condition_channels == "none" else 1 + self.config.latent_channels

    @property
    def no_references(self) -> str | None:
        """Why no sample can have references (packing.py); None: they can."""
        kind = self.config.attention
        return None if kind == "full" else f"model.attention is {kind}, and references need full attention"

    def check_references(self, shapes: Sequence[Shape]) -> None:
        """Any positions will do."""

    def check_frames(self, frames: int) -> None:
        """Any number will do."""

    @property
    def in_order(self) -> list[nn.Module]:
        """The blocks of a pass, each temporal one after the block that it is inserted after."""
        return in_order(self.blocks, self.temporal, self.config.temporal_every)

    @property
    def patch(self) -> Patch:
        """Latent frames, rows and columns of a token."""
        return 1, self.config.patch, self.config.patch

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    @property
    def text_width(self) -> int:
        return self.config.text_width

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def heads(self) -> int:
        return self.config.heads

    @property
    def head_width(self) -> int:
        return self.config.width // self.config.heads

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        if len(self.controls):
            raise UserError("the model has control branches, which have folders of their own: save it without them")
        super().save_pretrained(*args, **kwargs)

    def initialise(self) -> None:
        """Xavier-uniform maps; modulations, cross-attention outputs and the last map at zero (AdaLN-Zero), and what
        is taken of the frame rate, of motion, of the scale of guidance and of further channels."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in (*self.blocks, *self.temporal):
            nn.init.zeros_(block.modulation.weight)
            nn.init.zeros_(block.cross.out.weight)
        for linear in (self.final_modulation, self.tokens_out):
            nn.init.zeros_(linear.weight)
        if self.fps_in is not None:
            nn.init.zeros_(self.fps_in.fc2.weight)
        if self.channels_in is not None:
            nn.init.zeros_(self.channels_in.weight)
        if self.guidance_in is not None:
            nn.init.zeros_(self.guidance_in.fc2.weight)
        if self.motion_in is not None:
            nn.init.zeros_(self.motion_in.fc2.weight)

    def forward(
        self,
        tokens: Tensor,  # [T,P] noised latent patches
        timestep: Tensor,  # [R] noise level of each frame, in [0,1]; 0 is clean
        text: Tensor | TextContext,  # [S,Dt] text states, one segment a sample
        layout: Packed,
        text_layout: Packed,
        cache: KeyValueCache | None = None,
        fps: Tensor | None = None,  # [N] frame rate of each sample; 0: it has none, or it is not known
        conditions: Conditions | None = None,  # channels, guidance and motion are read, by models of these conditions
        control: Control | None = None,  # what the branches of `controls` read; None: none of them acts
    ) -> Tensor:
        """The network's prediction [T,P], in the target that the scheduler's config names.

        The rates (None: all 0) are read by models of `fps_condition` or `rope_fps` alone. What is in a cache keeps
        the positions that it was recorded with: give a sample the same rate in every pass.

        With a cache (causal attention only) the layout is of each sample's new frames, which follow those in the cache.
        Tokens of references (full attention only) are of noise level 0, and what is predicted for them has no meaning.
        A text context is for passes of other noise levels or tokens with the same prompts, in the same precision.
        """
        fps = tokens.new_zeros(layout.segments, dtype=torch.float32) if fps is None else fps
        given = conditions or Conditions()
        check_inputs(self, timestep, layout, text_layout, cache, fps, given)
        if cache is not None and control is not None:
            raise ValueError("a cache of past frames has no place for control branches: sample whole clips with them")
        x = self.tokens_in(tokens)  # [T,D]
        if self.channels_in is not None:
            x = x + self.channels_in(given.channels)
        pooled, texts = self._read(text, text_layout)  # [N,D], and each block's [S,D]
        of_sample = pooled if self.fps_in is None else pooled + self._rate(fps, x.dtype)  # [N,D]
        if self.guidance_in is not None:
            of_sample = of_sample + self.guidance_in(rate_embedding(given.guidance, GUIDANCE_FEATURES).to(x.dtype))
        if self.motion_in is not None:
            of_sample = of_sample + self._motion(given.motion, fps, x.dtype)
        condition = self._level(timestep, x.dtype) + of_sample.index_select(0, layout.frame_segment)  # [R,D]
        contexts = self._contexts(x, layout, text_layout, cache, fps)
        with self._controlled(control, layout):
            for block, words, context in zip(self.in_order, texts, contexts, strict=True):
                # control branches have copies of the image model's blocks alone
                run = self._computed if isinstance(block, TemporalBlock) else self._run
                x = run(block, x, condition, words, context)  # [T,D]
        if cache is not None and cache.records:
            cache.append(layout, [context.cache for context in contexts])
        shift, scale = self.final_modulation(F.silu(condition)).chunk(2, dim=-1)  # [R,D] each
        return self.tokens_out(modulated_norm(x, shift, scale, layout.frame))  # [T,P]

    def _level(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """What the modulation takes of the noise levels: [R] -> [R,D]."""
        return self.timestep_in(timestep_embedding(timestep, TIMESTEP_FEATURES).to(dtype))

    def _rate(self, fps: Tensor, dtype: torch.dtype) -> Tensor:
        """What the modulation takes of the frame rates: [N] -> [N,D]; of an unknown one what the biases make."""
        return self.fps_in(rate_embedding(fps, FPS_FEATURES).to(dtype))

    def _motion(self, motion: Tensor | None, fps: Tensor, dtype: torch.dtype) -> Tensor:
        """What the modulation takes of motion strengths: [N] -> [N,D]; of an unknown one what the biases make."""
        motion = torch.full_like(fps, NO_MOTION) if motion is None else motion
        # log(1 + motion), of which all features of an unknown one are 0
        return self.motion_in(rate_embedding((1.0 + motion.float()).clamp_min(0.0), MOTION_FEATURES).to(dtype))

    def _positions(self, position: Tensor, layout: Packed, fps: Tensor) -> Tensor:
        """[T,3], with seconds instead of frame numbers where `rope_fps` asks for them: clips whose rate is not
        known are taken for such of that rate."""
        reference = self.config.rope_fps
        if reference is None:
            return position
        rate = torch.where(fps > 0, reference / fps.float().clamp_min(1e-3), 1.0).index_select(0, layout.segment)  # [T]
        time = time_positions(position[:, 0], self.config.temporal_stride, rate)
        return torch.cat([time[:, None], position[:, 1:].float()], dim=1)

    def _contexts(
        self, x: Tensor, layout: Packed, text_layout: Packed, cache: KeyValueCache | None, fps: Tensor
    ) -> list[AttentionContext]:
        """The attention context of each block of a pass."""
        config, depth = self.config, len(self.blocks)
        position, past = (layout.position, None) if cache is None else (cache.positions(layout), cache.lengths)
        position = self._positions(position, layout, fps)
        rotary = rotary_table(position, config.width // config.heads, config.rope_theta)
        backend = resolve_backend(self.attention_backend, x.device, x.dtype, self.head_width)
        still = None
        if config.attention == "inflated":
            at_rest = torch.cat([torch.zeros_like(position[:, :1]), position[:, 1:]], dim=1)
            still = rotary_table(at_rest, config.width // config.heads, config.rope_theta)
        turns = make_contexts(config.attention, layout, text_layout, rotary, backend, self.sequence, past, still)
        if still is not None:
            return [turns[isinstance(block, TemporalBlock)] for block in self.in_order]
        contexts = [turns[i % len(turns)] for i in range(depth)]
        if cache is None:
            return contexts
        return [replace(c, cache=of_block) for c, of_block in zip(contexts, cache.for_blocks(depth), strict=True)]

    def _read(self, text: Tensor | TextContext, layout: Packed) -> tuple[Tensor, Sequence[Tensor | BlockText]]:
        """What the modulation [N,D] and each block of a pass [S,D] take of the text."""
        depth = len(self.blocks) + len(self.temporal)
        if isinstance(text, TextContext) and text.pooled is not None:
            text.check(depth)
            return text.pooled, text.blocks
        states = text.states if isinstance(text, TextContext) else text
        pooled = self.pooled_in(self.pooled_norm(_segment_mean(states, layout)))  # [N,D]
        states = self.text_norm(self.text_in(self.text_norm_in(states)))  # [S,D]
        if isinstance(text, TextContext):
            text.fill(pooled, states, depth)
            return text.pooled, text.blocks
        return pooled, [states] * depth


def _segment_mean(x: Tensor, layout: Packed) -> Tensor:
    """Mean of x [S,D] over each segment: [N,D]."""
    total = x.new_zeros(layout.cu_seqlens.shape[0] - 1, x.shape[1]).index_add(0, layout.segment, x)
    return total / layout.cu_seqlens.diff().to(x.dtype)[:, None]
