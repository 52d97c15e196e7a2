"""Diffusion-DPO: a model learns which of two samples is preferred, by its errors beside those of what it was at first.

Axes: N pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Preference:
    """Of each pair [N]. loss: has gradients. margin: what the loss is a logistic of, above 0 where the model prefers
    the preferred sample more than the reference does. accuracy: 1 there, 0 where it is below 0, a half where it is 0.
    error_preferred, error_rejected: the model's own errors."""

    loss: Tensor
    margin: Tensor
    accuracy: Tensor
    error_preferred: Tensor
    error_rejected: Tensor


def preference(errors: Tensor, reference: Tensor, beta: float) -> Preference:
    """The loss of pairs, from the errors [N,2] (preferred, rejected) of the model and of the frozen reference.

    Where it comes from (Wallace et al. 2023, sections 3 and 4). The reward of a sample is, up to a term of its prompt,
    beta_0 log(p_model / p_reference) of the whole path from noise to it, and -log sigmoid(reward_w - reward_l) is the
    loss of Bradley and Terry. The path's log ratio is bounded by one term, at a random level t, times the number T of
    levels: the difference of two KL divergences from the true step q(z_s | z_t, x) to the model's and the reference's.
    All are Gaussians of one variance v, and their means are linear in the predicted eps with one factor k, so

        KL_model - KL_reference = k^2 / 2v (|eps - eps_model|^2 - |eps - eps_reference|^2),

    which with omega = k^2 / 2v is eq. 14: -log sigmoid(-beta_0 T omega ((e_w - e_w_ref) - (e_l - e_l_ref))).

    As in the authors' code, omega's dependence on t is left out, T times the rest of k^2 / v is in beta, and an error
    is the mean over a sample's elements, not their sum; so beta = 5000 is what it is in the paper's experiments
    (2000 to 5000), a half stays of 1 / 2v, and beta means the same for clips of any size and length:

        margin = -beta / 2 ((e_w - e_w_ref) - (e_l - e_l_ref)),    loss = -log sigmoid(margin).

    The mean is over the features of the tokens that have a loss: not those of given frames.

    Flow matching, and other targets y = p x + q eps. At one z = alpha x + sigma eps an error d in eps is one of
    -(sigma / alpha) d in x, so of (q - p sigma / alpha) d = (det / alpha) d in y, det = alpha q - sigma p
    (objective.py): |d_eps|^2 = (alpha / det)^2 |d_y|^2. For the velocity of the straight path det is 1 and the
    factor (1 - t)^2. The errors of y take the place of those of eps with that weight by `weighting.kind: snr`; with
    `none`, which is a constant weight for y, omega is 1 / (1 - t)^2 times as large, so that no level counts next to
    nothing: Liu et al. (2025, "Improving video generation with human feedback") derive the same beta (1 - t)^2 for
    flows and find the constant to work better.
    """
    change = errors.float() - reference.detach().float()  # [N,2]
    margin = -beta / 2 * (change[:, 0] - change[:, 1])
    seen = margin.detach()
    return Preference(
        loss=-F.logsigmoid(margin),
        margin=seen,
        accuracy=(seen.sign() + 1) / 2,
        error_preferred=errors.detach()[:, 0],
        error_rejected=errors.detach()[:, 1],
    )
