"""Losses: each against its formula, where it is lowest, and which way it pulls."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rerank_lab.core import DataError
from rerank_lab.training.losses import (
    LOSSES,
    listwise_kl,
    loss_of,
    margin_mse,
    pairwise_bce,
    pairwise_margin,
    pointwise_bce,
    teacher_target,
)


def softplus(x):
    return math.log1p(math.exp(x))


def softmax(values):
    total = sum(map(math.exp, values))
    return [math.exp(v) / total for v in values]


def pairs_of(groups):
    """Scores and wanted values of all pairs i < j of all groups."""
    return [(s[i], s[j], w[i], w[j]) for s, w in groups for i, j in combinations(range(len(s)), 2)]


# each loss from its paper's formula, as loops over groups of (scores, wanted)


def by_hand_pointwise(groups):
    terms = [
        w * softplus(-s) + (1 - w) * softplus(s)
        for scores, wanted in groups
        for s, w in zip(scores, wanted, strict=True)
    ]
    return sum(terms) / len(terms)


def by_hand_margin(groups):
    terms = [(abs(a - b), max(0.0, 1 - (s - t if a > b else t - s))) for s, t, a, b in pairs_of(groups)]
    return sum(w * short for w, short in terms) / sum(w for w, _ in terms)


def by_hand_ranknet(groups):
    terms = [-(a / (a + b)) * (s - t) + softplus(s - t) for s, t, a, b in pairs_of(groups)]
    return sum(terms) / len(terms)


def by_hand_margin_mse(groups):
    terms = [((s - t) - (math.log(a) - math.log(b))) ** 2 for s, t, a, b in pairs_of(groups)]
    return sum(terms) / len(terms)


def by_hand_softmax(groups):
    return sum(
        -sum(w / sum(wanted) * math.log(p) for w, p in zip(wanted, softmax(scores), strict=True))
        for scores, wanted in groups
    ) / len(groups)


def by_hand_kl(groups):
    return sum(
        sum(w * (math.log(w) - math.log(p)) for w, p in zip(wanted, softmax(scores), strict=True))
        for scores, wanted in groups
    ) / len(groups)


BY_HAND = {
    "pointwise_bce": by_hand_pointwise,
    "pairwise_margin": by_hand_margin,
    "ranknet": by_hand_ranknet,
    "margin_mse": by_hand_margin_mse,
    "listwise_softmax": by_hand_softmax,
    "listwise_kl": by_hand_kl,
}


@st.composite
def scores_and_targets(draw):
    """Two groups of four: scores, and a distribution over each group."""
    numbers = st.lists(st.floats(-6, 6), min_size=4, max_size=4)
    return [(draw(numbers), softmax(draw(numbers))) for _ in range(2)]


def tensors(groups):
    scores, wanted = zip(*groups, strict=True)
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(wanted, dtype=torch.float64)


def test_every_loss_has_a_formula_here():
    assert set(BY_HAND) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@given(groups=scores_and_targets())
def test_a_loss_is_its_papers_formula(name, groups):
    if name == "pairwise_margin" and all(max(w) - min(w) < 1e-6 for _, w in groups):
        return  # no pair of which one is the better
    assert LOSSES[name](*tensors(groups)).item() == pytest.approx(BY_HAND[name](groups), abs=1e-8, rel=1e-8)


@pytest.mark.parametrize("name", LOSSES)
@given(groups=scores_and_targets(), order=st.permutations(range(4)))
def test_a_loss_does_not_depend_on_the_order_of_a_groups_passages(name, groups, order):
    scores, wanted = tensors(groups)
    shuffled = LOSSES[name](scores[:, order], wanted[:, order])
    torch.testing.assert_close(shuffled, LOSSES[name](scores, wanted))


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "pointwise_bce"])
@given(groups=scores_and_targets(), level=st.floats(-5, 5))
def test_only_differences_of_scores_count(name, groups, level):
    scores, wanted = tensors(groups)
    torch.testing.assert_close(LOSSES[name](scores + level, wanted), LOSSES[name](scores, wanted), atol=1e-8, rtol=1e-7)


def test_but_in_the_pointwise_loss_their_level_counts():
    scores, wanted = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert pointwise_bce(scores - 1, wanted) < pointwise_bce(scores, wanted) < pointwise_bce(scores + 3, wanted)


@pytest.mark.parametrize("name", LOSSES)
@given(behind=st.floats(-3, 0), ahead=st.lists(st.floats(0, 3), min_size=3, max_size=3))
def test_a_relevant_passage_that_lies_behind_is_pulled_up_and_the_others_are_pushed_down(name, behind, ahead):
    scores = torch.tensor([[behind, *ahead]], dtype=torch.float64, requires_grad=True)
    LOSSES[name](scores, torch.tensor([[0.94, 0.02, 0.02, 0.02]], dtype=torch.float64)).backward()
    up, *down = (-scores.grad[0]).tolist()
    assert up > 0 > sum(down)
    if name != "pointwise_bce":
        assert sum(down) == pytest.approx(-up)  # what one gains the others lose


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in {"pairwise_margin", "pointwise_bce"}])
@given(groups=scores_and_targets(), level=st.floats(-5, 5))
def test_scores_that_say_the_target_are_where_nothing_pulls(name, groups, level):
    _, wanted = tensors(groups)
    scores = (wanted.log() + level).requires_grad_()
    lowest = LOSSES[name](scores, wanted)
    lowest.backward()
    assert scores.grad.abs().max() < 1e-9
    elsewhere = LOSSES[name](*tensors(groups))
    assert lowest <= elsewhere + 1e-12
    if name in {"listwise_kl", "margin_mse"}:
        assert lowest.item() == pytest.approx(0, abs=1e-12)


def test_the_margin_asks_no_more_than_its_margin_and_the_pointwise_loss_asks_for_the_chance_itself():
    wanted = torch.tensor([[1.0, 0.0, 0.0]])
    apart = torch.tensor([[1.5, 0.5, -9.0]])
    assert pairwise_margin(apart, wanted).item() == 0
    assert pairwise_margin(apart, wanted, margin=2.0).item() == pytest.approx(0.5)
    assert pairwise_margin(apart, torch.ones(1, 3)).item() == 0  # equals make no pair
    chances = torch.tensor([[0.9, 0.2, 0.4]])
    scores = chances.logit().requires_grad_()
    pointwise_bce(scores, chances).backward()
    assert scores.grad.abs().max() < 1e-6


@given(groups=scores_and_targets())
def test_the_two_listwise_losses_pull_the_same_way(groups):
    grads = []
    for name in ("listwise_kl", "listwise_softmax"):
        scores, wanted = tensors(groups)
        LOSSES[name](scores.requires_grad_(), wanted).backward()
        grads.append(scores.grad)
    torch.testing.assert_close(*grads, atol=1e-9, rtol=1e-7)


def test_the_teachers_margins_are_those_of_its_scores_whatever_their_level():
    teacher, scores = torch.tensor([[3.0, 1.0, 0.5]]), torch.tensor([[0.2, 0.1, 0.9]])
    expected = ((0.1 - 2) ** 2 + (-0.7 - 2.5) ** 2 + (-0.8 - 0.5) ** 2) / 3
    for level in (0.0, -40.0):
        assert margin_mse(scores, (teacher + level).softmax(-1)).item() == pytest.approx(expected, rel=1e-5)


def test_an_unknown_loss_is_refused_with_the_known_ones():
    assert loss_of("listwise_kl") is listwise_kl
    with pytest.raises(DataError, match=r"loss 'hinge' is unknown: give pointwise_bce, pairwise_margin, ranknet"):
        loss_of("hinge")


# the losses of the bundled models


def test_the_listwise_loss_is_zero_with_zero_gradient_where_the_scores_say_the_target():
    scores = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = listwise_kl(scores, scores.detach().softmax(-1))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert scores.grad.abs().max() < 1e-6


def test_the_gradient_is_what_the_scores_say_less_the_target():
    scores = torch.randn(2, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    target = torch.randn(2, 5, generator=torch.Generator().manual_seed(2)).softmax(-1)
    listwise_kl(scores, target).backward()
    torch.testing.assert_close(scores.grad, (scores.detach().softmax(-1) - target) / 2)


def test_the_loss_does_not_depend_on_the_level_of_the_scores_and_steps_downhill_lower_it():
    scores = torch.zeros(1, 4, requires_grad=True)
    target = torch.tensor([[0.7, 0.2, 0.1, 0.0]])
    assert listwise_kl(scores + 5, target).item() == pytest.approx(listwise_kl(scores, target).item(), abs=1e-6)
    before = listwise_kl(scores, target)
    before.backward()
    with torch.no_grad():
        assert listwise_kl(scores - 0.5 * scores.grad, target) < before


def test_the_target_is_a_distribution_that_follows_gains_first_and_cosines_among_equals():
    cosine, gain = torch.tensor([[0.9, 0.2, 0.5, 0.4]]), torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    target = teacher_target(cosine, gain, temperature=1.0, boost=6.0)
    assert target.sum().item() == pytest.approx(1)
    assert target[0].argsort(descending=True).tolist() == [3, 1, 0, 2]
    torch.testing.assert_close(teacher_target(cosine, gain * 0, 0.08, 6.0), (cosine / 0.08).softmax(-1))


odds_and_chances = st.lists(st.tuples(st.floats(-20, 20), st.floats(0, 1)), min_size=1, max_size=9)


@given(pairs=odds_and_chances)
def test_the_pairwise_loss_is_ranknets(pairs):
    """Burges et al., 2005, eq. 3: C = -P o + log(1 + e^o) for the log-odds o and the wished chance P."""
    expected = sum(-p * o + math.log1p(math.exp(o)) for o, p in pairs) / len(pairs)
    odds, chances = torch.tensor(pairs, dtype=torch.float64).T
    assert pairwise_bce(odds, chances).item() == pytest.approx(expected, abs=1e-9)


def test_the_pairwise_loss_pulls_the_models_chance_to_the_wished_one():
    odds = torch.tensor([1.0, -2.0], requires_grad=True)
    chances = torch.tensor([0.3, 0.6])
    pairwise_bce(odds, chances).backward()
    torch.testing.assert_close(odds.grad, (odds.detach().sigmoid() - chances) / 2)
