"""A video transformer of diffusers, called as `VideoDiT` is; what its families share.

Axes: T tokens in a pack, P token features, N samples, R latent frames, S text tokens, D model width, A heads,
K head width. A token's features are (C [t] p q): channels, frames where a patch has several, rows, columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ...attention import resolve_backend
from ...errors import UserError
from ...packing import Packed, Shape, patch_size
from ...sequence import SequenceGroup
from ...words import counted
from ..block_pass import pass_of  # noqa: F401 - for the families
from ..conditions import Conditions
from ..control import Control, Controllable
from ..layers import modulated_norm, per_token, turn_pairs  # noqa: F401 - the last for the families
from ..text_context import TextContext

Patch = tuple[int, int, int]  # latent frames, rows and columns of a token


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a family's pass over a pack reads.

    tokens: [T,P] noised latent patches; [T,P+P'] with `given.channels` after them.
    timestep: [R] noise level of each latent frame, in [0,1]; 0 is clean.
    text: [S,Dt] text states, one segment a sample.
    fps: [N] frames a second of each sample; 0: it has none, or it is not known.
    given: what some families read besides.
    """

    tokens: Tensor
    timestep: Tensor
    text: Tensor
    layout: Packed
    text_layout: Packed
    fps: Tensor
    given: Conditions


class OpenBackbone(Controllable, nn.Module):
    """A family's packed pass over `raw`, diffusers' own module: its weights, names and `save_pretrained` stay.

    The blocks of `raw` get a packed `forward` each, so that hooks, wrappers and adapters see them as ever: use `raw`
    through this alone. The prediction is in the target of the family's recipe whatever sign the network has.
    """

    family: ClassVar[str]
    levels_by_frame: ClassVar[bool] = False  # it was trained, or can be, with another noise level in each latent frame
    # frames and pixels of a latent position, of the autoencoder: for families whose positions count them
    strides: tuple[int, int] | None = None
    reads_fps: ClassVar[bool] = False  # what it makes depends on the frame rate
    tells_motion: ClassVar[bool] = False  # it is told how much moves: `Conditions.motion`
    takes_references: ClassVar[bool] = False  # its pass is exact for tokens of references (packing.py) too

    def __init__(self, raw: ModelMixin) -> None:
        super().__init__()
        self.raw, self.controls = raw, nn.ModuleList()
        self.attention_backend = "auto"
        self.sequence: SequenceGroup | None = None
        self.gradient_checkpointing = False
        self.prepare()
        for name, parameter in raw.named_parameters():
            if self.idle(name):
                parameter.requires_grad_(False)

    # --- what differs from family to family ---

    def prepare(self) -> None:
        """Gives the blocks of `raw` their packed passes."""
        raise NotImplementedError

    def idle(self, name: str) -> bool:
        """Whether what has that dotted name in `raw`, a parameter or a module, takes no part in the pass. It is frozen,
        and nothing in it can be trained: no adapter belongs there."""
        return False

    @property
    def patch(self) -> Patch:
        raise NotImplementedError

    @property
    def latent_channels(self) -> int:
        """C of the latents that are noised and predicted."""
        return self.raw.config.out_channels or self.raw.config.in_channels

    @property
    def channels(self) -> int:
        """Further input channels, of `Conditions.channels`: masks and latents of given frames."""
        return self.raw.config.in_channels - self.latent_channels

    @property
    def text_width(self) -> int:
        raise NotImplementedError

    @property
    def pooled_width(self) -> int:
        """Dp of `Conditions.pooled`; 0: the family reads none."""
        return 0

    @property
    def second_width(self) -> int:
        """D' of `Conditions.second`; 0: the family reads none."""
        return 0

    @property
    def image_width(self) -> int:
        """Di of `Conditions.image`; 0: the model reads none."""
        return 0

    @property
    def of_two_images(self) -> bool:
        """`Conditions.image` has the states of a first and of a last picture, one after the other."""
        return False

    @property
    def takes_guidance(self) -> bool:
        """It is told a guidance scale in each pass: `Conditions.guidance`."""
        return False

    @property
    def no_references(self) -> str | None:
        """Why no sample can have references; None: they can."""
        if not self.takes_references:
            return f"{self.family} has no noise levels, or no positions, for the tokens of references"
        if self.channels:
            return f"this {self.family} model reads {self.channels} channels beside the latents, which references lack"
        return None

    def check_references(self, shapes: Sequence[Shape]) -> None:
        """Raises UserError for references at positions that the model does not have."""

    @property
    def most_frames(self) -> int | None:
        """For how many latent frames it has positions; None: any number."""
        return None

    def check_frames(self, frames: int) -> None:
        """Raises UserError for a clip of more latent frames than `most_frames`."""
        if self.most_frames is not None and frames > self.most_frames:
            raise UserError(
                f"{counted(frames, 'frame')}: {self.family} has positions for at most {self.most_frames}: ask for fewer"
            )

    @property
    def heads(self) -> int:
        return self.raw.config.num_attention_heads

    @property
    def width(self) -> int:
        return self.heads * self.raw.config.attention_head_dim

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Those that are compiled, gathered and recomputed one by one, in the order in which they run."""
        return self.raw.transformer_blocks

    def predict(self, inputs: Inputs) -> Tensor:
        """What `forward` returns, of inputs that are checked."""
        raise NotImplementedError

    def without(self, given: Conditions) -> Conditions:
        """What guidance gives it beside the negative prompt, by what the prompt has."""
        return given

    # --- what is the same ---

    @property
    def config(self) -> Any:
        return self.raw.config

    @property
    def dtype(self) -> torch.dtype:
        return self.raw.dtype

    @property
    def device(self) -> torch.device:
        return self.raw.device

    @property
    def _supports_gradient_checkpointing(self) -> bool:
        return True

    @property
    def _no_split_modules(self) -> list[str]:
        """Classes that strategies gather one by one, by their names."""
        return sorted({type(block).__name__ for block in self.blocks})

    def enable_gradient_checkpointing(self) -> None:
        self.gradient_checkpointing = True

    def disable_gradient_checkpointing(self) -> None:
        self.gradient_checkpointing = False

    def forward(
        self,
        tokens: Tensor,  # [T,P] noised latent patches
        timestep: Tensor,  # [R] noise level of each latent frame, in [0,1]; 0 is clean
        text: Tensor | TextContext,  # [S,Dt] text states, one segment a sample
        layout: Packed,
        text_layout: Packed,
        fps: Tensor | None = None,  # [N] frames a second of each sample; 0: it has none, or it is not known
        conditions: Conditions | None = None,
        control: Control | None = None,  # what the branches of `controls` read; None: none of them acts
    ) -> Tensor:
        """The network's prediction [T,P], in the target of the family's recipe."""
        given = Conditions() if conditions is None else conditions
        states = text.states if isinstance(text, TextContext) else text
        fps = tokens.new_zeros(layout.segments, dtype=torch.float32) if fps is None else fps
        self._check(tokens, timestep, layout, text_layout, given)
        if given.channels is not None:
            tokens = torch.cat([tokens, given.channels], dim=-1)
        with self._controlled(control, layout):
            return self.predict(Inputs(tokens, timestep, states, layout, text_layout, fps, given))

    def _check(self, tokens: Tensor, timestep: Tensor, layout: Packed, text_layout: Packed, given: Conditions) -> None:
        if layout.segments != text_layout.segments:
            raise ValueError(f"{layout.segments} samples but {text_layout.segments} prompts: give one prompt a sample")
        if timestep.shape != layout.frame_segment.shape:
            raise ValueError(f"timestep has shape {tuple(timestep.shape)}, the layout has {layout.frames} frames")
        if layout.whole is not None and self.sequence is None:
            raise ValueError("this is a piece of a pack, but the model has no group of processes to see the rest with")
        if layout.references:
            if (why := self.no_references) is not None:
                raise UserError(f"{why}: leave them out, or take another model")
            self.check_references(layout.shapes)
        wanted = self.latent_channels * patch_size(self.patch), self.channels * patch_size(self.patch)
        held = tokens.shape[-1], 0 if given.channels is None else given.channels.shape[-1]
        if wanted != held:
            raise ValueError(
                f"{self.family} takes {wanted[0]} features a token and {wanted[1]} of further channels, got {held}"
            )

    def _backend(self, x: Tensor) -> str:
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        return resolve_backend(self.attention_backend, x.device, dtype)

    def idle_parameters(self) -> set[int]:
        return {id(parameter) for name, parameter in self.raw.named_parameters() if self.idle(name)}


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[T, A K] -> [T,A,K]."""
    return x.unflatten(-1, (heads, -1))


def of_each(values: Tensor, index: Tensor) -> Tensor:
    """values[index] along the first axis: of each frame or sample -> of each token."""
    return per_token(values, index) if values.requires_grad and values.ndim == 2 else values.index_select(0, index)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, index: Tensor) -> Tensor:
    """x [T,D] scaled and shifted by what is of its frame or sample, [R,D] each."""
    return x * (1 + of_each(scale, index)) + of_each(shift, index)


def norm_modulated(norm: nn.LayerNorm, x: Tensor, shift: Tensor, scale: Tensor, index: Tensor) -> Tensor:
    """`modulate` of the norm of x [T,D], whose weights, where it has any, go into what is of each frame or sample."""
    if norm.weight is not None:
        shift = torch.addcmul(shift, norm.bias, 1 + scale)
        scale = norm.weight * (1 + scale) - 1
    return modulated_norm(x, shift, scale, index, norm.eps)


def turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of pairs (x_i, x_{i+K/2}): x [T,A,K], cos and sin [T,A,K/2] or [T,1,K/2]."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def channels_first(x: Tensor, patch: Patch) -> Tensor:
    """Features ([t] p q C) of each token -> (C [t] p q)."""
    return x.unflatten(-1, (patch_size(patch), -1)).transpose(-1, -2).flatten(-2)


def sample_level(timestep: Tensor, layout: Packed) -> Tensor:
    """[R] -> [N]: a sample's own noise level, that of its frames that are not given."""
    none = timestep.new_zeros(layout.segments)
    return none.scatter_reduce(0, layout.frame_segment, timestep, "amax", include_self=False)
