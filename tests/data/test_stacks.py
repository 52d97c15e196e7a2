"""Clips come out of a loader process as they went in."""

import pytest
import torch

from latentvid.data.stacks import Stacks


@pytest.mark.parametrize("in_loader", [False, True])
def test_clips_of_each_shape_are_one_tensor(monkeypatch, in_loader):
    monkeypatch.setattr("latentvid.data.stacks.get_worker_info", lambda: in_loader or None)
    shapes = [(2, 3, 4), (1, 5, 5), (2, 3, 4), (2, 3, 4)]
    clips = [torch.randint(0, 256, (*shape, 3), dtype=torch.uint8) for shape in shapes]
    clips[2] = torch.randint(0, 256, (2, 4, 3, 3), dtype=torch.uint8).transpose(1, 2)  # not contiguous
    stacks = Stacks(shapes)
    for clip in clips:
        stacks.append(clip)
    tensors = stacks.tensors()
    assert list(tensors) == [(2, 3, 4), (1, 5, 5)]
    assert torch.equal(tensors[2, 3, 4], torch.stack([clips[0], clips[2], clips[3]]))
    assert torch.equal(tensors[1, 5, 5], clips[1][None])
    del stacks
    assert all(tensor.is_shared() == in_loader for tensor in tensors.values())
    tensors[1, 5, 5].zero_()  # the memory is the tensor's own


def read(count: int) -> torch.Tensor:
    stacks = Stacks([(1, 2, 2)] * count)
    for n in range(count):
        stacks.append(torch.full((1, 2, 2, 3), n, dtype=torch.uint8))
    return stacks.tensors()[1, 2, 2]


def test_through_a_loader_process():
    loader = torch.utils.data.DataLoader([3, 5], batch_size=None, num_workers=1, collate_fn=read)
    assert [batch[:, 0, 0, 0, 0].tolist() for batch in loader] == [[0, 1, 2], [0, 1, 2, 3, 4]]
