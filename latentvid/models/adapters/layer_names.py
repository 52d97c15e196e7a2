"""How files of adapters call the layers of published transformers, beside diffusers' own names.

The names are made from the layers that a model has. So a name without dots, as kohya's and musubi's files have them, is
looked up and never taken apart, and what is not found is not there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .layer import Adapted

# Of each class in diffusers: the name that the model's authors and ComfyUI give a layer, and the layers of diffusers
# whose outputs follow one another in its rows. `*` is a number, `...` any ending. Before a name: `~` the halves of the
# rows stand the other way round in diffusers; `<` the name is read, and not written. Facts from diffusers' conversions
# of whole checkpoints (loaders/single_file_utils.py) and of LoRA, and from the authors' code.
_WAN = """
blocks.*.self_attn.q            blocks.*.attn1.to_q
blocks.*.self_attn.k            blocks.*.attn1.to_k
blocks.*.self_attn.v            blocks.*.attn1.to_v
blocks.*.self_attn.o            blocks.*.attn1.to_out.0
blocks.*.cross_attn.q           blocks.*.attn2.to_q
blocks.*.cross_attn.k           blocks.*.attn2.to_k
blocks.*.cross_attn.v           blocks.*.attn2.to_v
blocks.*.cross_attn.o           blocks.*.attn2.to_out.0
blocks.*.cross_attn.k_img       blocks.*.attn2.add_k_proj
blocks.*.cross_attn.v_img       blocks.*.attn2.add_v_proj
blocks.*.ffn.0                  blocks.*.ffn.net.0.proj
blocks.*.ffn.2                  blocks.*.ffn.net.2
time_embedding.0                condition_embedder.time_embedder.linear_1
time_embedding.2                condition_embedder.time_embedder.linear_2
time_projection.1               condition_embedder.time_proj
text_embedding.0                condition_embedder.text_embedder.linear_1
text_embedding.2                condition_embedder.text_embedder.linear_2
img_emb.proj.1                  condition_embedder.image_embedder.ff.net.0.proj
img_emb.proj.3                  condition_embedder.image_embedder.ff.net.2
head.head                       proj_out
"""
_LTX = """
patchify_proj                   proj_in
adaln_single...                 time_embed...
"""
_LTX2 = """
audio_patchify_proj                        audio_proj_in
audio_adaln_single...                      audio_time_embed...
av_ca_video_scale_shift_adaln_single...    av_cross_attn_video_scale_shift...
av_ca_a2v_gate_adaln_single...             av_cross_attn_video_a2v_gate...
av_ca_audio_scale_shift_adaln_single...    av_cross_attn_audio_scale_shift...
av_ca_v2a_gate_adaln_single...             av_cross_attn_audio_v2a_gate...
prompt_adaln_single...                     prompt_adaln...
audio_prompt_adaln_single...               audio_prompt_adaln...
"""
_COGVIDEOX = """
<transformer.layers.*.attention.query_key_value  transformer_blocks.*.attn1.to_q transformer_blocks.*.attn1.to_k transformer_blocks.*.attn1.to_v
<transformer.layers.*.attention.dense            transformer_blocks.*.attn1.to_out.0
<transformer.layers.*.mlp.dense_h_to_4h          transformer_blocks.*.ff.net.0.proj
<transformer.layers.*.mlp.dense_4h_to_h          transformer_blocks.*.ff.net.2
"""  # noqa: E501
_REFINER = "context_embedder.token_refiner.refiner_blocks.*"
_HUNYUAN = f"""
double_blocks.*.img_attn_qkv    transformer_blocks.*.attn.to_q transformer_blocks.*.attn.to_k transformer_blocks.*.attn.to_v
double_blocks.*.img_attn_proj   transformer_blocks.*.attn.to_out.0
double_blocks.*.img_mlp.fc1     transformer_blocks.*.ff.net.0.proj
double_blocks.*.img_mlp.fc2     transformer_blocks.*.ff.net.2
double_blocks.*.img_mod.linear  transformer_blocks.*.norm1.linear
double_blocks.*.txt_attn_qkv    transformer_blocks.*.attn.add_q_proj transformer_blocks.*.attn.add_k_proj transformer_blocks.*.attn.add_v_proj
double_blocks.*.txt_attn_proj   transformer_blocks.*.attn.to_add_out
double_blocks.*.txt_mlp.fc1     transformer_blocks.*.ff_context.net.0.proj
double_blocks.*.txt_mlp.fc2     transformer_blocks.*.ff_context.net.2
double_blocks.*.txt_mod.linear  transformer_blocks.*.norm1_context.linear
single_blocks.*.linear1         single_transformer_blocks.*.attn.to_q single_transformer_blocks.*.attn.to_k single_transformer_blocks.*.attn.to_v single_transformer_blocks.*.proj_mlp
single_blocks.*.linear2         single_transformer_blocks.*.proj_out
single_blocks.*.modulation.linear  single_transformer_blocks.*.norm.linear
<double_blocks.*.img_attn.qkv   transformer_blocks.*.attn.to_q transformer_blocks.*.attn.to_k transformer_blocks.*.attn.to_v
<double_blocks.*.img_attn.proj  transformer_blocks.*.attn.to_out.0
<double_blocks.*.img_mlp.0      transformer_blocks.*.ff.net.0.proj
<double_blocks.*.img_mlp.2      transformer_blocks.*.ff.net.2
<double_blocks.*.img_mod.lin    transformer_blocks.*.norm1.linear
<double_blocks.*.txt_attn.qkv   transformer_blocks.*.attn.add_q_proj transformer_blocks.*.attn.add_k_proj transformer_blocks.*.attn.add_v_proj
<double_blocks.*.txt_attn.proj  transformer_blocks.*.attn.to_add_out
<double_blocks.*.txt_mlp.0      transformer_blocks.*.ff_context.net.0.proj
<double_blocks.*.txt_mlp.2      transformer_blocks.*.ff_context.net.2
<double_blocks.*.txt_mod.lin    transformer_blocks.*.norm1_context.linear
<double_blocks.*.img_attn_q     transformer_blocks.*.attn.to_q
<double_blocks.*.img_attn_k     transformer_blocks.*.attn.to_k
<double_blocks.*.img_attn_v     transformer_blocks.*.attn.to_v
<double_blocks.*.txt_attn_q     transformer_blocks.*.attn.add_q_proj
<double_blocks.*.txt_attn_k     transformer_blocks.*.attn.add_k_proj
<double_blocks.*.txt_attn_v     transformer_blocks.*.attn.add_v_proj
<single_blocks.*.modulation.lin  single_transformer_blocks.*.norm.linear
img_in.proj                     x_embedder.proj
time_in.mlp.0                   time_text_embed.timestep_embedder.linear_1
time_in.mlp.2                   time_text_embed.timestep_embedder.linear_2
time_in.mlp.0                   time_embed.timestep_embedder.linear_1
time_in.mlp.2                   time_embed.timestep_embedder.linear_2
guidance_in.mlp.0               time_text_embed.guidance_embedder.linear_1
guidance_in.mlp.2               time_text_embed.guidance_embedder.linear_2
vector_in.in_layer              time_text_embed.text_embedder.linear_1
vector_in.out_layer             time_text_embed.text_embedder.linear_2
txt_in.input_embedder           context_embedder.proj_in
txt_in.t_embedder.mlp.0         context_embedder.time_text_embed.timestep_embedder.linear_1
txt_in.t_embedder.mlp.2         context_embedder.time_text_embed.timestep_embedder.linear_2
txt_in.c_embedder...            context_embedder.time_text_embed.text_embedder...
txt_in.individual_token_refiner.blocks.*.self_attn_qkv       {_REFINER}.attn.to_q {_REFINER}.attn.to_k {_REFINER}.attn.to_v
txt_in.individual_token_refiner.blocks.*.self_attn_proj      {_REFINER}.attn.to_out.0
txt_in.individual_token_refiner.blocks.*.mlp.fc1             {_REFINER}.ff.net.0.proj
txt_in.individual_token_refiner.blocks.*.mlp.fc2             {_REFINER}.ff.net.2
txt_in.individual_token_refiner.blocks.*.adaLN_modulation.1  {_REFINER}.norm_out.linear
~final_layer.adaLN_modulation.1  norm_out.linear
final_layer.linear              proj_out
"""  # noqa: E501
_MOCHI = """
blocks.*.attn.qkv_x             transformer_blocks.*.attn1.to_q transformer_blocks.*.attn1.to_k transformer_blocks.*.attn1.to_v
blocks.*.attn.qkv_y             transformer_blocks.*.attn1.add_q_proj transformer_blocks.*.attn1.add_k_proj transformer_blocks.*.attn1.add_v_proj
blocks.*.attn.proj_x            transformer_blocks.*.attn1.to_out.0
blocks.*.attn.proj_y            transformer_blocks.*.attn1.to_add_out
~blocks.*.mlp_x.w1              transformer_blocks.*.ff.net.0.proj
blocks.*.mlp_x.w2               transformer_blocks.*.ff.net.2
~blocks.*.mlp_y.w1              transformer_blocks.*.ff_context.net.0.proj
blocks.*.mlp_y.w2               transformer_blocks.*.ff_context.net.2
blocks.*.mod_x                  transformer_blocks.*.norm1.linear
blocks.*.mod_y                  transformer_blocks.*.norm1_context.linear
blocks.*.mod_y                  transformer_blocks.*.norm1_context.linear_1
x_embedder.proj                 patch_embed.proj
t_embedder.mlp.0                time_embed.timestep_embedder.linear_1
t_embedder.mlp.2                time_embed.timestep_embedder.linear_2
t5_y_embedder...                time_embed.pooler...
t5_yproj                        time_embed.caption_proj
~final_layer.mod                norm_out.linear
final_layer.linear              proj_out
"""  # noqa: E501
_TABLES = {
    "WanTransformer3DModel": _WAN,
    "LTXVideoTransformer3DModel": _LTX,
    "LTX2VideoTransformer3DModel": _LTX + _LTX2,
    "CogVideoXTransformer3DModel": _COGVIDEOX,
    "HunyuanVideoTransformer3DModel": _HUNYUAN,
    "HunyuanVideo15Transformer3DModel": _HUNYUAN,
    "MochiTransformer3DModel": _MOCHI,
}


@dataclass(frozen=True)
class Place:
    """Where a layer of a file belongs.

    layers: names here, whose outputs follow one another in the file's rows. swapped: the halves of the rows stand the
    other way round here. written: files that we write may call it so.
    """

    layers: tuple[str, ...]
    swapped: bool = False
    written: bool = True


def layers_of(raw: nn.Module) -> dict[str, nn.Module]:
    """The layers that LoRA can change, by their names: linear maps and convolutions, not those of adapters."""
    found: dict[str, nn.Module] = {}
    wrapped: tuple[str, ...] = ()
    for name, module in raw.named_modules():
        if wrapped and name.startswith(wrapped):
            continue
        if isinstance(module, BaseTunerLayer | Adapted):
            wrapped = (*wrapped, f"{name}.")
            module = module.layer if isinstance(module, Adapted) else module.get_base_layer()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            found[name] = module
    return found


def foreign_places(raw: nn.Module) -> dict[str, Place]:
    """What else than in diffusers the layers of a model are called, as far as its class is known."""
    names, found = list(layers_of(raw)), {}
    for line in _TABLES.get(type(raw).__name__, "").split("\n"):
        if not line:
            continue
        written, *ours = line.split()
        pattern = re.compile(re.escape(ours[0]).replace(r"\*", r"(\d+)").replace(r"\.\.\.", r"(\..+)"))
        for name in names:
            if match := pattern.fullmatch(name):
                place = Place(
                    tuple(_filled(part, match.groups()) for part in ours), written[0] == "~", written[0] != "<"
                )
                if all(part in names for part in place.layers):
                    found[_filled(written.lstrip("~<"), match.groups())] = place
    return found


def places(raw: nn.Module) -> dict[str, Place]:
    """Every name that a file may give a layer, without what comes before it."""
    plain = {name: Place((name,)) for name in layers_of(raw)} | foreign_places(raw)
    return {name.replace(".", "_"): place for name, place in plain.items()} | plain


def _filled(template: str, values: tuple[str, ...]) -> str:
    for value in values:
        template = re.sub(r"\*|\.\.\.", lambda _, value=value: value, template, count=1)
    return template
