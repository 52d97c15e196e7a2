"""Networks of diffusers without a packed pass: their own forward, over batches of equal shapes of a pack.

What is computed is what the class computes. It is slower than a packed pass: each shape of a pack is a call.

Axes: N samples, B samples of a batch, T tokens, P token features (C t p q), S text tokens, f h w of a sample's tokens.
"""

from __future__ import annotations

import inspect
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.rnn import pad_sequence

from ...errors import UserError
from ...packing import Grid, Packed
from ...transfer import to_device
from .backbone import Conditions, Inputs, OpenBackbone, Patch, sample_level

logger = logging.getLogger(__name__)

READ = ("hidden_states", "timestep", "encoder_hidden_states")  # what the forward of every such class reads
GIVEN = {  # further inputs that a class may have: which of the conditions they are
    "inpaint_latents": "channels",
    "encoder_hidden_states_image": "image",
    "image_embeds": "image",
    "pooled_projections": "pooled",
    "guidance": "guidance",
}
# Inputs without which a class computes something else than it was trained for, or fails, although it has a default.
NEEDED = ("image_rotary_emb", "visual_rope_pos", "control_hidden_states", "pose_hidden_states", "padding_mask")
MASKED = ("SanaVideoTransformer3DModel", "MotifVideoTransformer3DModel")  # padded and masked text changes nothing
STEPS = ("LatteTransformer3DModel",)  # timesteps are steps 0 to 999 of DDPM: our level i/1000 is step i - 1


class ByShape(OpenBackbone):
    """Samples of one shape pass together, each at one noise level, and `run` calls the class.

    It has no blocks that could be compiled or gathered one by one: processes call them unequally often for a pack.
    """

    ragged = True  # a pack takes a call of `raw` for each of its shapes
    masks_text: ClassVar[bool] = False  # prompts of any lengths pass together, the shorter ones padded and masked
    takes: Mapping[str, str] = {}  # which conditions the class has inputs for, and their names

    def run(self, latents: Tensor, level: Tensor, text: Tensor, mask: Tensor | None, given: Conditions) -> Tensor:
        """The prediction [B,C,f,h,w] for a batch.

        latents: [B,C+C',f,h,w], further channels last. level: [B] in [0,1]. text: [B,S,Dt]. mask: bool [B,S], which
        text tokens are the prompt's own; None: all are. given: of these samples; `channels` are in the latents.
        """
        raise NotImplementedError

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return ()

    @property
    def _supports_gradient_checkpointing(self) -> bool:
        return self.raw._supports_gradient_checkpointing

    @property
    def gradient_checkpointing(self) -> bool:
        return self._recomputes

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        self._recomputes = on
        if self._supports_gradient_checkpointing:
            self._recompute(on)

    def _recompute(self, on: bool) -> None:
        """As the class has it."""
        if on:
            self.raw.enable_gradient_checkpointing()
        else:
            self.raw.disable_gradient_checkpointing()

    def predict(self, inputs: Inputs) -> Tensor:
        layout, text_layout = inputs.layout, inputs.text_layout
        self._refuse(inputs.timestep, layout, inputs.given)
        given = replace(inputs.given, channels=None)  # they are in the tokens
        level = sample_level(inputs.timestep, layout)  # [N]
        videos, texts = inputs.tokens.split(layout.lengths), inputs.text.split(text_layout.lengths)
        parts: list[Tensor | None] = [None] * layout.segments
        for grid, members in self._groups(layout.grid, text_layout.lengths):
            of_batch = to_device(members, level.device)
            out = self._call(
                torch.stack([videos[i] for i in members]),
                grid,
                level[of_batch],
                [texts[i] for i in members],
                given.map(lambda x, of_batch=of_batch: x[of_batch]),
            )
            for i, part in zip(members, out, strict=True):
                parts[i] = part
        return torch.cat(parts)

    def _groups(self, grids: Sequence[Grid], words: Sequence[int]) -> list[tuple[Grid, list[int]]]:
        """The samples that can pass together."""
        groups: dict[tuple[Grid, int], list[int]] = defaultdict(list)
        for i, (grid, n) in enumerate(zip(grids, words, strict=True)):
            groups[grid, 0 if self.masks_text else n].append(i)
        return [(grid, members) for (grid, _), members in groups.items()]

    def _call(self, videos: Tensor, grid: Grid, level: Tensor, texts: Sequence[Tensor], given: Conditions) -> Tensor:
        """A batch's prediction [B,T,P] for tokens [B,T,P], levels [B] and texts [S,Dt] each."""
        t, p, q = self.patch
        f, h, w = grid
        axes = dict(f=f, h=h, w=w, t=t, p=p, q=q)
        latents = rearrange(videos, "B (f h w) (C t p q) -> B C (f t) (h p) (w q)", **axes)
        mask, lengths = None, [len(text) for text in texts]
        if len(set(lengths)) > 1:
            mask = torch.arange(max(lengths), device=level.device) < to_device(lengths, level.device)[:, None]
        out = self.run(latents, level, pad_sequence(list(texts), batch_first=True), mask, given)
        return rearrange(out, "B C (f t) (h p) (w q) -> B (f h w) (C t p q)", **axes)

    def _refuse(self, timestep: Tensor, layout: Packed, given: Conditions) -> None:
        """Raises UserError for what batches of equal shapes cannot do."""
        if layout.whole is not None:
            raise UserError(
                f"{self.family} runs as batches of whole samples, which processes cannot share: set "
                "train.sequence_parallel to 1"
            )
        alike = sample_level(timestep, layout).index_select(0, layout.frame_segment)
        if not isinstance(alike, FakeTensor) and not torch.equal(timestep, alike):  # without storage none is known
            raise UserError(
                f"{self.family} takes one noise level a sample: given frames, and noise levels by frame, need a model "
                "with a packed pass of its own"
            )
        if given.has_image and not all(given.has_image):
            raise UserError(f"{self.family} takes images for all samples of a pack, or for none")
        asked = {f.name for f in fields(given) if isinstance(getattr(given, f.name), Tensor)}
        if wrong := asked - self.takes.keys() - {"channels"}:
            raise UserError(f"{self.family} has no input for {', '.join(sorted(wrong))}")


class Batches(ByShape):
    """Any other video transformer of diffusers.

    The class is given 1000 t, and its prediction is as it is: the scheduler's configuration says of what.
    """

    def prepare(self) -> None:
        self.family = name = type(self.raw).__name__
        takes = inspect.signature(self.raw.forward).parameters
        unknown = [
            key
            for key, p in takes.items()
            if key in NEEDED or (p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and key not in READ)
            if key not in GIVEN
        ]
        if "3D" not in name or not takes.keys() >= set(READ):
            raise UserError(f"{name} is no video transformer with the usual forward: {', '.join(READ)}")
        if unknown:
            raise UserError(f"{name} reads {', '.join(unknown)}, which only a packed pass of its own could give it")
        self.takes = {of: key for key, of in GIVEN.items() if key in takes}
        logger.warning(
            "%s has no packed pass here: each shape of a pack is a batch of its own, which is exact but slower", name
        )

    @property
    def masks_text(self) -> bool:
        return self.family in MASKED

    @property
    def patch(self) -> Patch:
        config = self.raw.config
        space = config.get("patch_size", 1)
        if not isinstance(space, int):
            return tuple(space)
        return config.get("patch_size_t") or 1, space, space

    @property
    def latent_channels(self) -> int:
        config = self.raw.config
        learned = config.out_channels == 2 * config.in_channels  # it predicts variances too, which are not used
        return config.in_channels if learned else super().latent_channels

    @property
    def text_width(self) -> int:
        names = ("text_dim", "text_embed_dim", "caption_channels", "cross_attention_dim")
        width = next((self.raw.config[name] for name in names if self.raw.config.get(name)), None)
        if width is None:
            raise UserError(f"{self.family}: its configuration has none of {', '.join(names)}, the text's width")
        return width

    def run(self, latents: Tensor, level: Tensor, text: Tensor, mask: Tensor | None, given: Conditions) -> Tensor:
        level = 1000.0 * level
        if self.family in STEPS:
            level = (level - 1.0).clamp_min(0.0)
        more = {key: getattr(given, of) for of, key in self.takes.items() if of != "channels"}
        if "channels" in self.takes and self.channels:
            latents, more["inpaint_latents"] = latents.split([self.latent_channels, self.channels], dim=1)
        if self.masks_text:
            more["encoder_attention_mask"] = text.new_ones(text.shape[:2]) if mask is None else mask.to(text.dtype)
        more = {key: value for key, value in more.items() if value is not None}
        out = self.raw(hidden_states=latents, timestep=level, encoder_hidden_states=text, return_dict=False, **more)[0]
        return out[:, : self.latent_channels]
