"""What an adapter changes of one layer, whatever its kind.

Axes: r rank, i inputs of a layer, o its outputs. W [o,i] is the layer's weight, of a convolution [o,i,kt,kh,kw]. Alpha
is in the matrices already, so that an adapter with scale s makes the weight W + s D:

| kind | D | matrices | source |
|------|---|----------|--------|
| LoRA | P = B A | A [r,i], B [o,r] | Hu et al. 2021, equation 3 |
| DoRA | m (W + P) / |W + P| - W, by rows | LoRA's, and m [o] | Liu et al. 2024, equation 5 |
| LoHa | P = (B1 A1) * (B2 A2), by elements | two of LoRA | Hyeon-Woo et al. 2022 (FedPara) |
| LoKr | P = kron(C, B A) or kron(C, D) | C [a,b]; B A or D [o/a,i/b] | Yeh et al. 2024 (LyCORIS) |

Magnitudes m go with any P, as LyCORIS has it. With s between 0 and 1 the weight is between W and W + D, also of DoRA.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["lora", "dora", "loha", "lokr"]
NAMES: dict[str, str] = {"lora": "LoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}


class LayerChange:
    """What the kinds share: magnitudes [o] or None, and what is added to the layer's bias [o], or None."""

    bias: Tensor | None
    magnitude: Tensor | None

    @property
    def kind(self) -> Kind:
        raise NotImplementedError

    @property
    def rank(self) -> int | None:
        """None: the matrices are whole."""
        raise NotImplementedError

    def product(self) -> Tensor:
        """P, with a convolution's kernel as it is in W or flattened."""
        raise NotImplementedError

    def take(self, rows: Tensor) -> LayerChange | None:
        """That of these rows of the layer alone, in their order; None where the kind cannot say it."""
        raise NotImplementedError

    def times(self, factor: float) -> LayerChange:
        """That with P and the bias so many times as large."""
        raise NotImplementedError

    def dense(self, weight: Tensor) -> Tensor:
        """D in fp32. weight: W."""
        weight = weight.float()
        product = self.product().to(weight.device).reshape(weight.shape)
        if self.magnitude is None:
            return product
        return product + _by_rows(self.excess(weight), weight) * (weight + product)

    def excess(self, weight: Tensor) -> Tensor:
        """m / |W + P| - 1 of each row, [o] in fp32; 0 of a row that is all zeros."""
        weight = weight.float()
        norm = (weight + self.product().to(weight.device).reshape(weight.shape)).flatten(1).norm(dim=1)
        magnitude = self.magnitude.to(weight.device, torch.float32)
        return torch.where(norm > 0, magnitude / norm.clamp_min(torch.finfo(norm.dtype).tiny), 1.0) - 1.0

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by the names of the fields; of a LoKr whose matrix is a product both factors."""
        found = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                names = (field.name,) if len(value) == 1 else (f"{field.name}_a", f"{field.name}_b")
                found |= dict(zip(names, value, strict=True))
            elif value is not None:
                found[field.name] = value
        return found

    def _rows_of_rest(self, rows: Tensor) -> dict[str, Tensor | None]:
        return {n: None if (x := getattr(self, n)) is None else x[rows] for n in ("bias", "magnitude")}

    def _bias_times(self, factor: float) -> Tensor | None:
        return None if self.bias is None else self.bias * factor


@dataclass(frozen=True, eq=False)
class Change(LayerChange):
    """LoRA, or DoRA where there are magnitudes.

    a: [r,i], of a convolution [r,i,kt,kh,kw]. b: [o,r]. All tensors of all kinds are float32.
    """

    a: Tensor
    b: Tensor
    bias: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def kind(self) -> Kind:
        return "lora" if self.magnitude is None else "dora"

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def product(self) -> Tensor:
        return self.b @ self.a.flatten(1)

    def take(self, rows: Tensor) -> Change:
        return Change(self.a, self.b[rows], **self._rows_of_rest(rows))

    def times(self, factor: float) -> Change:
        return replace(self, b=self.b * factor, bias=self._bias_times(factor))


@dataclass(frozen=True, eq=False)
class Hadamard(LayerChange):
    """LoHa of a linear layer. w1_a, w2_a: [o,r]. w1_b, w2_b: [r,i]."""

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    bias: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def kind(self) -> Kind:
        return "loha"

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    def product(self) -> Tensor:
        return (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)

    def take(self, rows: Tensor) -> Hadamard:
        return replace(self, w1_a=self.w1_a[rows], w2_a=self.w2_a[rows], **self._rows_of_rest(rows))

    def times(self, factor: float) -> Hadamard:
        return replace(self, w1_a=self.w1_a * factor, bias=self._bias_times(factor))


@dataclass(frozen=True, eq=False)
class Kronecker(LayerChange):
    """LoKr of a linear layer. w1: the matrix [a,b], or two whose product it is; w2: the same of [o/a,i/b]."""

    w1: tuple[Tensor, ...]
    w2: tuple[Tensor, ...]
    bias: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def kind(self) -> Kind:
        return "lokr"

    @property
    def rank(self) -> int | None:
        return next((pair[1].shape[0] for pair in (self.w1, self.w2) if len(pair) == 2), None)

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return (
            self.w1[0].shape[0] * self.w2[0].shape[0],
            self.w1[-1].shape[1] * self.w2[-1].shape[1],
        )

    def product(self) -> Tensor:
        return torch.kron(whole(self.w1), whole(self.w2))

    def take(self, rows: Tensor) -> Kronecker | None:
        """A row of C stands for o/a rows, which can be taken together alone."""
        each = self.w2[0].shape[0]
        blocks = rows[::each] // each
        if not torch.equal((blocks[:, None] * each + torch.arange(each)).flatten(), rows):
            return None
        return replace(self, w1=(self.w1[0][blocks], *self.w1[1:]), **self._rows_of_rest(rows))

    def times(self, factor: float) -> Kronecker:
        return replace(self, w1=(self.w1[0] * factor, *self.w1[1:]), bias=self._bias_times(factor))


def whole(matrix: tuple[Tensor, ...]) -> Tensor:
    """A matrix that is there, or the product of the two that are."""
    return matrix[0] if len(matrix) == 1 else matrix[0] @ matrix[1]


def as_lora(dense: Tensor, bias: Tensor | None = None, magnitude: Tensor | None = None) -> Change:
    """P itself [o,i], or with a convolution's kernel, as a LoRA: beside the unit matrix."""
    if dense.ndim > 2 or len(dense) <= dense.shape[1]:
        return Change(dense, torch.eye(len(dense)), bias, magnitude)
    return Change(torch.eye(dense.shape[1]), dense, bias, magnitude)


def both(one: LayerChange, other: LayerChange) -> Change | None:
    """The sum of two changes of a layer; None where they are not two LoRA."""
    if one.kind != "lora" or other.kind != "lora":
        return None
    biases = [change.bias for change in (one, other) if change.bias is not None]
    a, b = torch.cat([one.a, other.a]), torch.cat([one.b, other.b], dim=1)
    return Change(a, b, sum(biases) if biases else None)


def _by_rows(values: Tensor, weight: Tensor) -> Tensor:
    """[o] for a weight of any shape."""
    return values.reshape(-1, *[1] * (weight.ndim - 1))
