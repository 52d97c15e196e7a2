"""Distribution matching distillation (DMD, Yin et al. 2023; DMD2, Yin et al. 2024): the student's clips become such as
the teacher would make, whatever noise each came from.

A student's clip x is noised to a level t. The teacher, with guidance, says from which clean clip that came, and so does
a critic, which is trained on the student's clips alone. Where both agree, the student's clips are as the teacher's; the
difference of the two leads there, and is the gradient of the divergence of the two distributions (DMD2, equation 1).

Axes: T tokens of a pack, P token features, R latent frames, N samples.
"""

from __future__ import annotations

from torch import Tensor

from ...packing import Packed
from ..objective import loss_per_sample


def matching_loss(x: Tensor, of_teacher: Tensor, of_critic: Tensor, t: Tensor, layout: Packed) -> Tensor:
    """Of each sample [N], the half of the mean square of g; its gradient at x is g over the number of elements.

    g = (critic's x - teacher's x) / mean |x - teacher's x|, where the mean is of the sample: this makes the gradient
    alike at all noise levels (DMD, equation 8).

    x: [T,P], the student's. of_teacher, of_critic: [T,P], as both recover it from level t [R]; 0 where it is given.
    """
    away = (x - of_teacher).abs().mean(-1).detach()  # [T]
    own = (t > 0).to(away).index_select(0, layout.frame)
    zeros = away.new_zeros(layout.segments)
    tokens = zeros.index_add(0, layout.segment, own).clamp_min(1.0)
    mean = zeros.index_add(0, layout.segment, away * own) / tokens  # [N]
    g = (of_critic - of_teacher) / mean.clamp_min(1e-8).index_select(0, layout.segment)[:, None]
    return 0.5 * loss_per_sample(x, (x - g).detach(), t, layout)
