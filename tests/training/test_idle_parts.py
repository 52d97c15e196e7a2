"""What takes no part in a published model's pass, such as the sound of LTX-2, is neither trained nor adapted."""

from types import SimpleNamespace

import pytest
from diffusers import LTX2VideoTransformer3DModel

from latentvid.config.controlnet import ControlNet
from latentvid.config.sections import Adapter
from latentvid.errors import UserError
from latentvid.models.open import OpenBackbone, packed
from latentvid.models.open.ltx2 import RECIPES
from latentvid.training.stages.dit.trained import choose_trained

SMALL = dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24)
SMALL |= dict(audio_in_channels=3, audio_out_channels=3, audio_num_attention_heads=2, audio_attention_head_dim=8)
SMALL |= dict(audio_cross_attention_dim=16, num_layers=1, caption_channels=8)


def chosen(trainable: tuple[str, ...] = (), **adapter) -> tuple[OpenBackbone, set[str]]:
    """The model, and the names of what is trained."""
    sections = {"adapter": Adapter(rank=2, **adapter) if adapter else Adapter(), "controlnet": ControlNet()}
    config = SimpleNamespace(**sections, trainable=trainable, moves=False, run=SimpleNamespace(seed=0))
    model = packed(LTX2VideoTransformer3DModel(**SMALL))
    choose_trained(model, config, RECIPES["LTX2Pipeline"].lora)
    return model, {name for name, p in model.raw.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("targets", [(), ("to_q", "proj_in")])
def test_a_lora_leaves_the_sound_alone(targets):
    model, names = chosen(kind="lora", targets=targets)
    assert names and not any(model.idle(name) for name in names)
    assert any(".attn1.to_q.lora_A" in name for name in names)


def test_chosen_names_are_of_the_video():
    model, names = chosen(trainable=(r"attn1\.to_q",))
    assert names == {f"transformer_blocks.0.attn1.to_q.{kind}" for kind in ("weight", "bias")}
    with pytest.raises(UserError, match="trainable: 'audio_attn1' is found in no parameter's name"):
        chosen(trainable=("audio_attn1",))
