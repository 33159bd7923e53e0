"""Losses for rerankers: small pure functions of the scores of a group and of what they should say.

All take `scores` and `wanted`, shape (groups, G), and give a mean. `wanted` is not negative, and higher is better:
labels of 0 and 1, grades, or a teacher's distribution over the group. What they ask of the scores differs:

    pointwise_bce      sigmoid(s_i) is the chance that i is relevant         each passage by itself
    pairwise_margin    s_i - s_j reaches a margin where i is the better one  pairs
    ranknet            sigmoid(s_i - s_j) is the chance that i beats j       pairs
    margin_mse         s_i - s_j is the teacher's margin                     pairs
    listwise_softmax   softmax(s) is high where the list says so             lists
    listwise_kl        the same, and 0 where softmax(s) is the target        lists
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_lab.core import DataError

__all__ = [
    "LOSSES",
    "listwise_kl",
    "listwise_softmax",
    "loss_of",
    "margin_mse",
    "pairwise_bce",
    "pairwise_margin",
    "pointwise_bce",
    "ranknet",
    "teacher_target",
]


def teacher_target(teacher: Tensor, gain: Tensor, temperature: float, boost: float) -> Tensor:
    """Mix what a teacher thinks of a group with what its labels say: softmax(teacher / temperature + boost * gain).

    The teacher orders the passages that no label tells apart.

    Args:
        teacher: similarities, as `teacher.Teacher` gives them, shape (groups, G).
        gain: graded relevance scaled to 0..1, shape (groups, G).
        temperature: the smaller, the more the teacher counts.
        boost: the larger, the more the labels count.

    Returns:
        A distribution over each group, shape (groups, G).

    >>> teacher_target(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.0]]), 0.08, 6.0).round(decimals=4)
    tensor([[0.9526, 0.0474]])
    """
    return F.softmax(teacher / temperature + boost * gain, dim=-1)


def pointwise_bce(scores: Tensor, wanted: Tensor) -> Tensor:
    """Binary cross-entropy of each passage by itself; `wanted` is its chance to be relevant, in 0..1.

    Nogueira and Cho, Passage Re-ranking with BERT, 2019, eq. 1. https://arxiv.org/abs/1901.04085

    >>> round(pointwise_bce(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]])).item(), 4)
    0.41
    """
    return F.binary_cross_entropy_with_logits(scores, wanted)


def pairwise_margin(scores: Tensor, wanted: Tensor, margin: float = 1.0) -> Tensor:
    """Hinge loss of all pairs of a group of which one is the better; a pair counts by how much better it is.

    With labels of 0 and 1 that is the plain mean over pairs of max(0, margin - (s_i - s_j)).
    Joachims, Optimizing Search Engines using Clickthrough Data, KDD 2002. https://doi.org/10.1145/775047.775067

    >>> pairwise_margin(torch.tensor([[2.0, 0.5, 1.5]]), torch.tensor([[1.0, 0.0, 0.0]])).item()
    0.25
    """
    better = _differences(wanted).clamp(min=0)  # (groups, G, G)
    short = (margin - _differences(scores)).clamp(min=0)
    return (better * short).sum() / better.sum().clamp(min=1e-9)


def ranknet(scores: Tensor, wanted: Tensor) -> Tensor:
    """`pairwise_bce` of all pairs of a group; the chance that i beats j is w_i / (w_i + w_j), 1/2 between equals.

    Burges et al., Learning to Rank using Gradient Descent, ICML 2005. https://doi.org/10.1145/1102351.1102363

    >>> round(ranknet(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]])).item(), 4)
    0.1269
    """
    i, j = _pairs(scores)
    strength = wanted.clamp(min=1e-12).log()
    chance = torch.sigmoid(strength[:, i] - strength[:, j])  # (groups, G (G - 1) / 2)
    return pairwise_bce(scores[:, i] - scores[:, j], chance)


def margin_mse(scores: Tensor, wanted: Tensor) -> Tensor:
    """Squared error of the margins of all pairs; the teacher's margin is the difference of the logarithms of `wanted`.

    A teacher's softmax over the group has its scores as logarithms, up to a level that no difference shows.
    Hofstätter et al., Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation, 2020.
    https://arxiv.org/abs/2010.02666

    >>> teacher = torch.tensor([[3.0, 1.0]])
    >>> round(margin_mse(torch.tensor([[0.5, 0.0]]), teacher.softmax(-1)).item(), 4)
    2.25
    """
    i, j = _pairs(scores)
    teacher = wanted.clamp(min=1e-12).log()
    return F.mse_loss(scores[:, i] - scores[:, j], teacher[:, i] - teacher[:, j])


def listwise_softmax(scores: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of softmax(scores) and the list's wanted values, scaled to sum to 1, averaged over groups.

    Cao et al., Learning to Rank: From Pairwise to Listwise Approach (ListNet), ICML 2007.
    https://doi.org/10.1145/1273496.1273513. With one passage wanted it is InfoNCE: van den Oord et al., 2018.
    https://arxiv.org/abs/1807.03748

    >>> round(listwise_softmax(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])).item(), 4)
    0.5514
    """
    return F.cross_entropy(scores, wanted / wanted.sum(-1, keepdim=True))


def listwise_kl(scores: Tensor, target: Tensor) -> Tensor:
    """KL(target || softmax(scores)), averaged over groups; zero when the scores say exactly the target.

    Distillation: Hinton et al., Distilling the Knowledge in a Neural Network, 2015. https://arxiv.org/abs/1503.02531
    Its gradient is that of `listwise_softmax`; only the level differs, by the target's entropy.

    Args:
        scores: shape (groups, G).
        target: rows sum to 1, shape (groups, G).

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
        log_odds: the model's, any shape.
        chance: the teacher's, in 0..1, the same shape.

    >>> round(pairwise_bce(torch.tensor([0.0]), torch.tensor([1.0])).item(), 4)
    0.6931
    """
    return F.binary_cross_entropy_with_logits(log_odds, chance)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # what the key `loss` of a config may say
    "pointwise_bce": pointwise_bce,
    "pairwise_margin": pairwise_margin,
    "ranknet": ranknet,
    "margin_mse": margin_mse,
    "listwise_softmax": listwise_softmax,
    "listwise_kl": listwise_kl,
}


def loss_of(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a name.

    Raises:
        DataError: an unknown name.
    """
    if name not in LOSSES:
        raise DataError(f"loss {name!r} is unknown: give {', '.join(LOSSES)}")
    return LOSSES[name]


def _differences(values: Tensor) -> Tensor:
    """values_i - values_j, shape (groups, G, G)."""
    return values[:, :, None] - values[:, None, :]


def _pairs(scores: Tensor) -> Tensor:
    """Places i < j of the pairs of a group, shape (2, G (G - 1) / 2)."""
    return torch.triu_indices(scores.shape[1], scores.shape[1], offset=1, device=scores.device)
