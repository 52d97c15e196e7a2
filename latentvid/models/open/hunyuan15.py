"""HunyuanVideo 1.5 (`HunyuanVideo15Transformer3DModel`): text and image to video by channels.

Its blocks see, as a sample's text, in this order: states of the given image, of quoted texts, and of the prompt.

Axes: T video tokens, R latent frames, N samples, S prompt tokens, S' tokens of quoted texts, W all text tokens, I image
tokens of a sample, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import UserError
from ...packing import Packed
from ...text.policy import Reading
from .backbone import Conditions, Inputs, OpenBackbone, Patch, pass_of, sample_level
from .hunyuan import dual_block, features_of, level_states, patch_of, patches, prepare_refiner, rotary_of
from .joint import make_joint_context
from .recipe import Recipe

PROMPT, QUOTED, IMAGE = 0, 1, 2  # rows of the embedding that tells the kinds of text tokens apart


class Hunyuan15(OpenBackbone):
    family = "hunyuan15"

    def prepare(self) -> None:
        if self.raw.config.use_meanflow:
            raise UserError(
                "this HunyuanVideo 1.5 was distilled to few steps (use_meanflow) and reads the level of the next step "
                "too, which is not supported: use a checkpoint that is not step-distilled"
            )
        prepare_refiner(self.raw.context_embedder)
        for block in self.raw.transformer_blocks:
            pass_of(block, dual_block)

    @property
    def patch(self) -> Patch:
        return patch_of(self.raw)

    @property
    def text_width(self) -> int:
        return self.raw.config.text_embed_dim

    @property
    def second_width(self) -> int:
        return self.raw.config.text_embed_2_dim

    @property
    def image_width(self) -> int:
        return self.raw.config.image_embed_dim

    def idle(self, name: str) -> bool:
        """What the last block makes of the text is not read."""
        last = f"transformer_blocks.{len(self.raw.transformer_blocks) - 1}"
        return name.startswith((f"{last}.attn.to_add_out", f"{last}.ff_context"))

    def predict(self, inputs: Inputs) -> Tensor:
        raw, layout, text_layout = self.raw, inputs.layout, inputs.text_layout
        x = patches(raw, inputs.tokens)  # [T,D]
        backend, level = self._backend(x), sample_level(inputs.timestep, layout)
        frames = level_states(raw.time_embed, inputs.timestep, x.dtype)  # [R,D]
        samples = level_states(raw.time_embed, level, x.dtype)  # [N,D]
        words = raw.context_embedder(inputs.text, level, text_layout, backend)  # [S,D]
        words, words_layout = self._words(words, inputs)  # [W,D]
        rotary = rotary_of(raw.rope, layout.position)
        context, own = make_joint_context(layout, words_layout, rotary, backend, self.sequence)
        words = own.of(words)
        for block in self.blocks:
            x, words = self._run(block, x, words, frames, samples, context)
        return features_of(raw, x, frames, layout.frame)

    def _words(self, prompts: Tensor, inputs: Inputs) -> tuple[Tensor, Packed]:
        """All text tokens of each sample in turn, [W,D], and their layout. prompts: [S,D].

        Where there is no image or quoted text its layers run on no tokens, so that they have a gradient, of zero.
        """
        raw, layout, text_layout, given = self.raw, inputs.layout, inputs.text_layout, inputs.given
        n = layout.segments
        none = prompts.new_zeros(0, self.second_width), prompts.new_zeros(0, 1, self.image_width)
        second, image = (x if y is None else y for x, y in zip(none, (given.second, given.image), strict=True))
        quoted = given.second_lengths or (0,) * n
        has_image = given.has_image or (given.image is not None,) * n
        pictures = [image.shape[1] * has for has in has_image]
        self._check_words(second, image, quoted, has_image, layout, given)
        second, image = raw.context_embedder_2(second), raw.image_embedder(image).flatten(0, 1)
        parts = zip(image.split(pictures), second.split(quoted), prompts.split(text_layout.lengths), strict=True)
        words = torch.cat([x for part in parts for x in part])
        counts = [count for sample in zip(pictures, quoted, text_layout.lengths, strict=True) for count in sample]
        kinds = torch.tensor([IMAGE, QUOTED, PROMPT] * n).repeat_interleave(
            torch.tensor(counts), output_size=sum(counts)
        )
        lengths = [sum(counts[i : i + 3]) for i in range(0, 3 * n, 3)]
        words_layout = Packed.of_lengths(lengths)
        if layout.whole is not None:
            whole = [a + b for a, b in zip(text_layout.whole.lengths, given.whole_extra, strict=True)]
            words_layout = replace(words_layout, whole=Packed.of_lengths(whole))
        return words + raw.cond_type_embed(kinds.to(words.device, non_blocking=True)), words_layout.to(words.device)

    def _check_words(
        self,
        second: Tensor,
        image: Tensor,
        quoted: tuple[int, ...],
        has_image: tuple[bool, ...],
        layout: Packed,
        given: Conditions,
    ) -> None:
        n = layout.segments
        if len(quoted) != n or sum(quoted) != len(second):
            raise ValueError(
                f"conditions.second has {len(second)} tokens, second_lengths {list(quoted)}: give {n} numbers, which "
                "add up to them"
            )
        if len(has_image) != n or sum(has_image) != len(image):
            raise ValueError(
                f"conditions.image is of {len(image)} samples: give that of all {n}, or tell in has_image whose it is"
            )
        if layout.whole is not None and len(given.whole_extra) != layout.whole.segments:
            raise ValueError(
                f"a piece of a pack of {layout.whole.segments} samples: give conditions.whole_extra, the tokens of "
                "second and image of each of them"
            )


# --- how it was trained and is sampled: pipelines of diffusers/pipelines/hunyuan_video1_5, its conversion script ------

_SYSTEM = (
    "You are a helpful assistant. Describe the video by detailing the following aspects:",
    "1. The main content and theme of the video.",
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects.",
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects.",
    "4. background environment, light, style and atmosphere.",
    "5. camera angles, movements, and transitions used in the video.",
)
SYSTEM = (" " * 9).join(_SYSTEM)
TEMPLATE = (  # the chat template of Qwen2.5-VL, written out
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{{}}<|im_end|>\n<|im_start|>assistant\n"
)


def _recipe(task: Literal["t2v", "i2v"], index: Mapping[str, Any], config: Mapping[str, Any]) -> Recipe:
    """By the size that the transformer was trained for: 480p, or 720p."""
    large = config.get("target_size", 640) > 640
    return Recipe(
        task=task,
        # the published scheduler's configs have 5 at 480p, and at 720p 9 for text to video and 7 for image to video
        scheduler={"path": "rectified_flow", "target": "flow", "shift": 5.0},
        timesteps={"kind": "logit_normal", "shift": 3.0},
        text=(
            Reading(tokens=1000, cut=True, layer=-3, template=TEMPLATE, crop=108, empty=" "),
            Reading(
                part="text_encoder_2", tokenizer="tokenizer_2", gives="second", tokens=256, cut=True, takes="quoted"
            ),
        ),
        image="concat",  # zeros for text to video
        frames=121,
        height=720 if large else 480,
        width=1280 if large else 848,
        fps=24.0,
        guidance=6.0,
        lora=("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )


RECIPES = {
    "HunyuanVideo15Pipeline": partial(_recipe, "t2v"),
    "HunyuanVideo15ImageToVideoPipeline": partial(_recipe, "i2v"),
}
