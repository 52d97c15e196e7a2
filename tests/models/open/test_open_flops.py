"""FLOPs of open transformers equal what torch counts; sizes of the published ones are those of their weights."""

import pytest
import torch
from lora_models import FAMILIES
from torch.utils.flop_counter import FlopCounterMode

from latentvid.models.flops import backbone_flops
from latentvid.models.open import packed
from latentvid.models.open.flops import blank_inputs, flops_of
from latentvid.models.open.published import PUBLISHED, PublishedSize
from latentvid.models.open.registry import FAMILIES as KNOWN

PACKS = [([(5, 4, 4), (1, 3, 2), (2, 3, 5)], [7, 2, 11]), ([(3, 8, 8)] * 2, [4, 4])]
HERE = [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in ("wan", "hunyuan15")))  # some seconds each
    for name, family in FAMILIES.items()
    if family.cls in KNOWN
]


@pytest.mark.parametrize("family", HERE)
def test_flops_of_any_pack_are_what_torch_counts(family):
    model = packed(FAMILIES[family].make(num_layers=4))
    model.attention_backend = "sdpa"  # each sample by itself, without padding
    for grids, text in PACKS:
        arguments, conditions = blank_inputs(model, grids, text)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*arguments, **conditions)
        assert backbone_flops(model, grids, text) == pytest.approx(counter.get_total_flops(), rel=1e-3)


@pytest.mark.slow
def test_a_dry_run_of_a_size(monkeypatch):
    """FLOPs of its one clip are those of any pack's, and LoRA over a frozen base in bf16 takes less."""
    monkeypatch.syspath_prepend("benchmarks")
    import open_dry_run

    small = dict(num_attention_heads=2, attention_head_dim=32, text_dim=24, freq_dim=32, ffn_dim=96, num_layers=6)
    size = PublishedSize(
        cls="WanTransformer3DModel", config=small, parameters=1, text=8, frames=9, height=64, width=64, strides=(4, 8)
    )
    with torch.device("meta"):
        model = packed(size.make())
    grid = size.grid(model.patch)
    assert grid == (3, 4, 4)
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    assert flops_of(type(model.raw), config, grid, 8) == pytest.approx(backbone_flops(model, [grid], [8]), rel=1e-3)
    full, tuned = (open_dry_run.memory(size, way, model, grid) for way in (False, True))
    assert full["trained"] == sum(p.numel() for p in model.parameters())
    assert tuned["trained"] == 6 * 2 * 4 * 16 * (64 + 64) and tuned["single"] < full["single"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_parameters_of_the_published_weights(name):
    with torch.device("meta"):
        raw = PUBLISHED[name].make()
    assert sum(p.numel() for p in raw.parameters()) == pytest.approx(PUBLISHED[name].parameters, rel=0.01)
