"""Numbers of the host on a device, without waiting for what the device still has to do.

`torch.tensor(values, device="cuda")` waits until the device has done all that was queued before it, since it copies
from memory that is not pinned. A copy that is told not to wait is staged by the driver, and queued.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_device(values: Sequence[Any] | float, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.tensor(values, dtype=dtype)` on the device."""
    return torch.tensor(values, dtype=dtype, device="cpu").to(device, non_blocking=True)
