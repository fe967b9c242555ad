"""Outlier figures against values worked out by hand, and what two masks have in common."""

import math

import pytest
import torch

from dass.errors import InputError, NumericalError
from dass.measures.outliers import jaccard, outliers


def test_equal_channels_hold_no_outlier() -> None:
    found = outliers(torch.full((200,), 3.0))
    assert set(found.beyond.values()) == {0.0}
    assert math.isclose(found.kurtosis, 1.0)
    assert math.isclose(found.top_share, 0.01)
    assert math.isclose(found.largest, 1.0)


def test_one_channel_that_holds_nearly_everything() -> None:
    norms = torch.ones(100)
    norms[17] = 901.0  # the mean is 10
    found = outliers(norms)
    assert found.beyond == {5.0: 0.01, 7.0: 0.01, 10.0: 0.01}
    assert math.isclose(found.largest, 90.1)
    squares = 901.0**2 + 99.0
    assert math.isclose(found.top_share, 901.0**2 / squares)
    assert math.isclose(found.kurtosis, ((901.0**4 + 99.0) / 100.0) / (squares / 100.0) ** 2)


def test_a_multiple_is_exceeded_not_met() -> None:
    norms = torch.tensor([5.0, *[0.5] * 8])  # mean 1
    assert outliers(norms, multiples=(5.0, 4.9)).beyond == {5.0: 0.0, 4.9: pytest.approx(1 / 9)}


def test_an_activation_that_is_zero_has_channels_alike() -> None:
    found = outliers(torch.zeros(50))
    assert (found.kurtosis, found.largest, found.beyond[5.0]) == (1.0, 1.0, 0.0)


def test_no_channel_and_no_number_are_refused() -> None:
    with pytest.raises(InputError):
        outliers(torch.zeros(0))
    with pytest.raises(NumericalError):
        outliers(torch.tensor([1.0, math.nan]))


def test_jaccard() -> None:
    one = torch.tensor([True, True, False, False])
    other = torch.tensor([True, False, True, False])
    assert jaccard(one, one) == 1.0
    assert jaccard(one, ~one) == 0.0
    assert math.isclose(jaccard(one, other), 1 / 3)
    assert jaccard(torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)) == 1.0
    with pytest.raises(InputError):
        jaccard(one, one[:2])
