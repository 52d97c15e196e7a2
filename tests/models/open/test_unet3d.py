"""The 3D U-Net over packs: equal shapes as a batch equal each sample alone; saved and loaded as diffusers' class."""

import copy

import pytest
import torch
from diffusers import UNet3DConditionModel
from open_models import Sample, check_packed_equals_alone, lively, run_packed, samples
from torch.utils.flop_counter import FlopCounterMode

from latentvid.errors import UserError
from latentvid.models.flops import backbone_flops
from latentvid.models.open import Conditions, packed
from latentvid.models.open.flops import blank_inputs
from latentvid.models.open.unet3d import UNet3D
from latentvid.packing import Packed, spans

GRIDS = [(3, 4, 4), (1, 6, 4), (3, 4, 4), (2, 3, 5), (3, 4, 4), (1, 6, 4)]  # two of one frame; one of uneven sides
WORDS = [7, 3, 5, 1, 7, 6]
LEVELS = [0.9, 0.25, 0.5, 0.125, 0.75, 1.0]
SMALL = dict(
    in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
    down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    attention_head_dim=2, cross_attention_dim=12,
)  # fmt: skip


def unet() -> UNet3DConditionModel:
    return UNet3DConditionModel(**SMALL)


def alone(raw: UNet3DConditionModel, s: Sample) -> torch.Tensor:
    """Told DDPM's step, of which level 1 is 999."""
    return raw(s.latent[None], 1000 * s.level[None] - 1, s.text[None], return_dict=False)[0][0]


def made() -> list[Sample]:
    return samples(4, (1, 1, 1), 12, GRIDS, WORDS, LEVELS)


def test_a_pack_equals_each_sample_alone():
    check_packed_equals_alone(unet(), alone, made())


def test_equal_shapes_are_one_call_whatever_their_prompts():
    model, seen = packed(unet()), []
    model.raw.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    run_packed(model, made(), model.patch, None)
    assert sorted(seen) == [(1, 4, 2, 3, 5), (2, 4, 1, 6, 4), (3, 4, 3, 4, 4)]


def test_recomputation_changes_nothing_and_keeps_less():
    check_packed_equals_alone(unet(), alone, made(), change=lambda model: model.enable_gradient_checkpointing())
    kept = []
    for recomputes in (False, True):
        model, held = packed(unet()), {}
        model.gradient_checkpointing = recomputes
        assert model.gradient_checkpointing == recomputes

        def keep(x, held=held):
            held[x.untyped_storage()._cdata] = x
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            run_packed(model, made(), model.patch, None)
        kept.append(sum(x.untyped_storage().nbytes() for x in held.values()))
    assert kept[1] < kept[0] / 2


def test_a_copy_computes_with_its_own_weights():
    model = packed(lively(unet()))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.raw.mid_block.resnets[0].conv1.weight.zero_()
    first, second = (torch.cat(run_packed(m, made(), model.patch, None)) for m in (model, other))
    assert (first - second).abs().max() > 1e-3


def test_it_is_saved_and_loaded_as_diffusers_does(tmp_path):
    model = packed(lively(unet()))
    assert isinstance(model, UNet3D)
    model.save_pretrained(tmp_path)
    want = run_packed(model, made(), model.patch, None)
    plain, again = UNet3DConditionModel.from_pretrained(tmp_path), UNet3D.from_pretrained(tmp_path)
    with torch.no_grad():
        found = alone(plain, made()[0]).flatten(1).T
    torch.testing.assert_close(found, want[0].detach(), rtol=0, atol=1e-5 * float(want[0].detach().abs().max()))
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in again.named_parameters())
    (tmp_path / "config.json").write_text('{"_class_name": "VideoDiT"}')
    with pytest.raises(UserError, match="holds a VideoDiT, not a UNet3DConditionModel"):
        UNet3D.from_pretrained(tmp_path)


def test_what_it_cannot_do_is_refused_by_name():
    model, given = packed(unet()), made()
    given[0].levels[0] = 0.0
    with pytest.raises(UserError, match="unet3d takes one noise level a sample"):
        run_packed(model, given, model.patch, None)
    with pytest.raises(UserError, match="unet3d has no input for pooled"):
        run_packed(model, made(), model.patch, Conditions(pooled=torch.randn(len(GRIDS), 3)))
    layout = Packed.of(GRIDS)
    here = layout.piece(spans(layout.lengths, 2)[0])
    model.sequence = object()
    with pytest.raises(UserError, match=r"unet3d .* set train\.sequence_parallel to 1"):
        model(torch.randn(here.tokens, 4), torch.rand(here.frames), torch.randn(here.segments, 12), here,
              Packed.of_lengths([1] * here.segments))  # fmt: skip
    assert "unet3d" in model.no_references


def test_flops_are_what_torch_counts():
    """Exact where its levels divide height and width, near elsewhere; equal shapes pass together."""
    model = packed(unet())
    for grids, text, rel in (([(5, 4, 4), (1, 6, 2)], [7, 2], 1e-6), ([(3, 5, 7)], [4], 0.15)):
        arguments, conditions = blank_inputs(model, grids, text)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*arguments, **conditions)
        assert backbone_flops(model, grids, text) == pytest.approx(counter.get_total_flops(), rel=rel)
