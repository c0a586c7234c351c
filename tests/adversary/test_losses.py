import math

import pytest
import torch

from robustsnn.adversary.losses import LOSSES, cross_entropy, dlr, loss_function
from robustsnn.errors import InputError
from robustsnn.models.scoring import margin

LOGITS = torch.tensor([[1.0, 3.0, -2.0, 0.5], [4.0, 3.0, -2.0, 0.0], [2.0, 2.0, 0.0, 1.0]])
LABELS = torch.tensor([1, 1, 0])


def test_cross_entropy_by_hand():
    expected = [
        math.log(sum(math.exp(float(z)) for z in row)) - float(row[label])
        for row, label in zip(LOGITS, LABELS, strict=True)
    ]
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS), torch.tensor(expected))


def test_margin_by_hand_is_positive_where_misclassified_and_zero_at_a_tie():
    assert margin(LOGITS, LABELS).tolist() == [-2.0, 1.0, 0.0]


def test_dlr_by_hand():
    torch.testing.assert_close(dlr(LOGITS, LABELS), torch.tensor([-2 / 2.5, 1 / 4, 0.0]))


def test_dlr_does_not_depend_on_the_scale_of_logits():
    torch.testing.assert_close(dlr(100 * LOGITS, LABELS), dlr(LOGITS, LABELS))


def test_dlr_of_three_equal_logits_is_finite():
    assert dlr(torch.ones(1, 4), torch.tensor([0])).isfinite().all()


def test_dlr_needs_three_classes():
    with pytest.raises(InputError, match="margin"):
        dlr(torch.zeros(1, 2), torch.tensor([0]))


@pytest.mark.parametrize("name", LOSSES)
def test_each_sample_has_its_own_loss_and_gradient(name):
    logits = LOGITS.double().requires_grad_()
    values = LOSSES[name](logits, LABELS)
    assert values.shape == (3,)
    (together,) = torch.autograd.grad(values.sum(), logits)
    for i in range(3):
        alone = LOGITS[i : i + 1].double().requires_grad_()
        (own,) = torch.autograd.grad(LOSSES[name](alone, LABELS[i : i + 1]).sum(), alone)
        torch.testing.assert_close(own[0], together[i])


@pytest.mark.parametrize("name", LOSSES)
def test_raising_a_rival_class_raises_the_loss(name):
    better = LOGITS.clone()
    better[0, 0] += 1.5
    assert LOSSES[name](better, LABELS)[0] > LOSSES[name](LOGITS, LABELS)[0]


def test_unknown_loss():
    with pytest.raises(InputError, match=r"no loss named 'marg'.*'margin'"):
        loss_function("marg")
