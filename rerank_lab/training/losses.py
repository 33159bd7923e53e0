"""Losses for rerankers: small pure functions of a group's scores."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["listwise_kl", "pairwise_bce", "teacher_target"]


def teacher_target(cosine: Tensor, gain: Tensor, temperature: float = 0.08, boost: float = 6.0) -> Tensor:
    """Mix what a bi-encoder thinks of a group with what its labels say: softmax(cosine / temperature + boost * gain).

    The cosine orders the passages that no label tells apart, and keeps the student from forgetting it.

    Args:
        cosine: bi-encoder similarities, shape (groups, G).
        gain: graded relevance scaled to 0..1, shape (groups, G).

    Returns:
        A distribution over each group, shape (groups, G).

    >>> import torch
    >>> teacher_target(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.0]])).round(decimals=4)
    tensor([[0.9526, 0.0474]])
    """
    return F.softmax(cosine / temperature + boost * gain, dim=-1)


def listwise_kl(scores: Tensor, target: Tensor) -> Tensor:
    """KL(target || softmax(scores)), averaged over groups; zero when the scores say exactly the target.

    The listwise softmax loss of Cao et al., ListNet, ICML 2007, with a distribution as its target.

    Args:
        scores: shape (groups, G).
        target: rows sum to 1, shape (groups, G).

    >>> import torch
    >>> listwise_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.5, 0.5]])).item()
    0.0
    >>> round(listwise_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])).item(), 4)
    0.6931
    """
    return F.kl_div(F.log_softmax(scores, dim=-1), target, reduction="batchmean")


def pairwise_bce(log_odds: Tensor, chance: Tensor) -> Tensor:
    """Binary cross-entropy of the chance that the first passage of a pair beats the second, averaged over pairs.

    Burges et al., Learning to Rank using Gradient Descent (RankNet), ICML 2005, eq. 3, with a soft target.

    Args:
        log_odds: the model's, shape (pairs,).
        chance: the teacher's, in 0..1, shape (pairs,).

    >>> import torch
    >>> round(pairwise_bce(torch.tensor([0.0]), torch.tensor([1.0])).item(), 4)
    0.6931
    """
    return F.binary_cross_entropy_with_logits(log_odds, chance)
