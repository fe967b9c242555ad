"""Reading sparsity patterns."""

import math

import pytest

from dass.errors import InputError
from dass.method.pattern import parse_pattern


@pytest.mark.parametrize(
    ("pattern", "keep", "group", "sparsity"), [("2:4", 2, 4, 0.5), ("1:4", 1, 4, 0.75), ("8:16", 8, 16, 0.5)]
)
def test_n_m_keeps_n_of_m(pattern: str, keep: int, group: int, sparsity: float) -> None:
    parsed = parse_pattern(pattern)
    assert (parsed.keep, parsed.group, parsed.sparsity) == (keep, group, sparsity)
    assert str(parsed) == pattern
    assert not parsed.is_unstructured


def test_unstructured_removes_half_when_no_sparsity_is_given() -> None:
    parsed = parse_pattern("unstructured")
    assert parsed.is_unstructured
    assert parsed.sparsity == 0.5


@pytest.mark.parametrize(("share", "size", "removed"), [(0.29, 100, 29), (0.5, 7, 3), (0.1, 10, 1), (0.7, 10, 7)])
def test_the_removed_count_is_exact_where_floating_point_is_not(share: float, size: int, removed: int) -> None:
    assert parse_pattern("unstructured", share).removed_from(size) == removed


@pytest.mark.parametrize("pattern", ["4:2", "4:4", "0:4", "a:b", "2:4:8", "2-4", "", " 2:4", "-1:4", "2:4\n"])
def test_a_pattern_that_cannot_be_is_refused_with_what_was_expected(pattern: str) -> None:
    with pytest.raises(InputError, match=r'Expected|expected.*"unstructured", or N:M') as error:
        parse_pattern(pattern)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sparsity", [0.0, 1.0, 1.5, -0.1, math.nan, math.inf])
def test_a_sparsity_outside_0_and_1_is_refused(sparsity: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        parse_pattern("unstructured", sparsity)


def test_a_sparsity_that_contradicts_the_pattern_is_refused_with_the_one_it_implies() -> None:
    with pytest.raises(InputError, match=r"Set sparsity to 0\.75"):
        parse_pattern("1:4", 0.5)


def test_a_sparsity_that_agrees_with_the_pattern_is_taken() -> None:
    assert parse_pattern("1:3", 2 / 3).sparsity == 2 / 3
