"""Pieces of tensors in files: any cut is read by any other, and what is missing is said."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from latentvid.errors import UserError
from latentvid.training.parallel.pieces import (
    Piece,
    PieceReader,
    load_moments,
    load_values,
    model_tensors,
    optimizer_tensors,
    pack_scalar,
    saved_state,
    unpack_scalar,
)

SHAPES = {"a.weight": (5, 3), "a.bias": (5,), "scale": (1,)}
WHOLE = {name: torch.randn(shape) for name, shape in SHAPES.items()}


def cut(owners: int) -> list[list[Piece]]:
    """Each parameter cut evenly over `owners` processes, as ZeRO does; the last ones may hold nothing."""
    parts = []
    for rank in range(owners):
        pieces = []
        for name, whole in WHOLE.items():
            each = -(-whole.numel() // owners)
            start = min(rank * each, whole.numel())
            value = whole.flatten()[start : start + each].clone()
            moments = {"exp_avg": value * 2, "exp_avg_sq": value * 3}
            piece = Piece(name, SHAPES[name], start, value, moments=moments, scalars={"step": torch.tensor(4.0)})
            pieces.append(piece)
        parts.append(pieces)
    return parts


@given(writers=st.integers(1, 6), readers=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_what_some_processes_write_others_read(writers, readers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    for rank, pieces in enumerate(cut(writers)):
        save_file(model_tensors(pieces), folder / f"model-{rank:05d}-of-{writers:05d}.safetensors")
        save_file(optimizer_tensors(pieces), folder / f"optimizer-{rank:05d}-of-{writers:05d}.safetensors")
    model, optimizer = PieceReader(folder, "model"), PieceReader(folder, "optimizer")
    for name, whole in WHOLE.items():
        assert torch.equal(model.full(name, SHAPES[name]), whole)
    moments, scalars = saved_state(optimizer)
    assert all(sorted(moments[name]) == ["exp_avg", "exp_avg_sq"] and scalars[name] == {"step": 4.0} for name in SHAPES)
    for wanted in cut(readers):
        got = [Piece(p.name, p.shape, p.start, torch.zeros_like(p.value)) for p in wanted]
        for piece in got:
            piece.moments = {key: torch.zeros_like(piece.value) for key in ("exp_avg", "exp_avg_sq")}
        load_values(got, model)
        load_moments(got, optimizer)
        for a, b in zip(got, wanted, strict=True):
            assert torch.equal(a.value, b.value) and all(torch.equal(a.moments[k], b.moments[k]) for k in a.moments)


def test_a_whole_tensor_keeps_its_name_and_shape(tmp_path):
    """So that a checkpoint of one process or DDP is plain safetensors for anyone; strides do not matter."""
    conv = torch.randn(4, 2, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    tensors = model_tensors([Piece("conv", tuple(conv.shape), 0, conv), Piece("other", (2,), 0, conv[0, 0, 0, 0, :2])])
    assert torch.equal(tensors["conv"], conv) and tensors["conv"].is_contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    back = Piece("conv", tuple(conv.shape), 0, torch.zeros_like(conv))
    load_values([back], PieceReader(tmp_path, "model"))
    assert torch.equal(back.value, conv)


def test_what_a_checkpoint_lacks_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no model\*\.safetensors"):
        PieceReader(tmp_path, "model")
    first, _ = cut(2)
    save_file(model_tensors(first), tmp_path / "model-00000-of-00002.safetensors")
    reader = PieceReader(tmp_path, "model")
    with pytest.raises(UserError, match=r"holds 8 of the 15 elements asked of a\.weight"):
        reader.full("a.weight", (5, 3))
    with pytest.raises(UserError, match=r"0 of the 4 elements asked of missing"):
        reader.full("missing", (4,))
    save_file({"a.weight": torch.zeros(3, 5)}, tmp_path / "model.safetensors")
    (tmp_path / "model-00000-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"a\.weight has shape \(3, 5\), the model's has \(5, 3\)"):
        PieceReader(tmp_path, "model").full("a.weight", (5, 3))
    with pytest.raises(UserError, match=r"a\.weight has 15 elements, the model's has 16"):
        PieceReader(tmp_path, "model").read("a.weight", 0, 4, 16)


@pytest.mark.parametrize("value", [True, 3, 0.1, torch.tensor(7.0), torch.tensor(2.0, dtype=torch.bfloat16)])
def test_scalars_keep_value_and_type(value):
    back = unpack_scalar(pack_scalar(value))
    assert type(back) is type(value) and back == value
