import math

import pytest
import torch

from dass.errors import InputError
from dass.method.allocation import outlier_ratio, owl_patterns, owl_sparsities
from dass.method.pattern import parse_pattern

RATIOS = [0.02, 0.005, 0.01, 0.001, 0.03, 0.004]
SIZES = [100, 200, 150, 100, 300, 250]


def _mean(values, sizes) -> float:
    return math.fsum(v * s for v, s in zip(values, sizes, strict=True)) / sum(sizes)


def test_outliers_are_counted_against_the_mean_of_the_whole_layer():
    # mean = (98 + 12 + 10) / 100 = 1.2, five times that is 6
    scores = [torch.ones(98), torch.tensor([[12.0, 10.0]])]
    assert outlier_ratio(scores) == 0.02
    assert outlier_ratio(scores, multiple=9.0) == 0.01


def test_scaling_and_bfloat16_leave_the_ratio():
    score = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).pow(4).bfloat16()
    assert outlier_ratio([score]) == outlier_ratio([score.float() * 8]) > 0


def test_two_layers_stand_at_the_edges_of_the_band():
    assert owl_sparsities([0.01, 0.03], [1, 1], 0.5) == pytest.approx([0.58, 0.42])


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("sizes", [[1] * 6, SIZES])
def test_the_weighted_mean_is_the_total_inside_the_band(sparsity, sizes):
    found = owl_sparsities(RATIOS, sizes, sparsity)
    assert _mean(found, sizes) == pytest.approx(sparsity, abs=1e-12)
    assert max(abs(s - sparsity) for s in found) == pytest.approx(0.08)


def test_more_outliers_mean_less_sparsity():
    found = owl_sparsities(RATIOS, SIZES, 0.5)
    assert sorted(range(6), key=lambda i: RATIOS[i]) == sorted(range(6), key=lambda i: -found[i])


def test_equal_ratios_are_a_uniform_allocation():
    assert owl_sparsities([0.1] * 7, [1, 2, 3, 4, 5, 6, 7], 0.5) == [0.5] * 7
    assert owl_sparsities([0.0, 0.0], [1, 1], 0.5) == [0.5] * 2
    assert owl_sparsities([0.02], [10], 0.6) == [0.6]


def test_unstructured_steps_keep_the_total_exact_when_masks_are_made():
    steps = 1536
    patterns = owl_patterns(RATIOS, [steps] * 6, parse_pattern("unstructured", 0.5), steps=steps)
    assert sum(p.removed_from(steps) for p in patterns) == 3 * steps
    assert sum(p.removed_from(3 * steps) for p in patterns) == 9 * steps
    assert len({p.sparsity for p in patterns}) > 3


@pytest.mark.parametrize("steps", [3, 7, 192, 1536, 11008])
def test_every_step_survives_the_way_through_decimals(steps):
    from dass.method.allocation import _unstructured

    assert all(_unstructured(count, steps).removed_from(steps) == count for count in range(1, steps))


def test_unstructured_without_steps_is_not_rounded():
    patterns = owl_patterns(RATIOS, SIZES, parse_pattern("unstructured", 0.5))
    assert [p.sparsity for p in patterns] == owl_sparsities(RATIOS, SIZES, 0.5)


@pytest.mark.parametrize(
    ("pattern", "bound"), [("4:8", 0.08), ("4:8", 0.2), ("2:4", 0.24), ("8:16", 0.08), ("3:8", 0.2)]
)
def test_mixed_n_m_keeps_m_and_the_total(pattern, bound):
    asked = parse_pattern(pattern)
    patterns = owl_patterns(RATIOS, [64] * 6, asked, bound)
    assert {p.group for p in patterns} == {asked.group}
    assert sum(p.sparsity for p in patterns) == pytest.approx(6 * asked.sparsity, abs=1e-12)
    assert len({p.keep for p in patterns}) > 1
    assert all(str(p) == str(parse_pattern(str(p))) and p.sparsity == parse_pattern(str(p)).sparsity for p in patterns)


def test_a_band_too_narrow_for_m_rounds_to_the_same_pattern_everywhere():
    assert {str(p) for p in owl_patterns(RATIOS, [64] * 6, parse_pattern("2:4"), 0.08)} == {"2:4"}


def test_layers_of_different_size_come_within_half_of_the_largest_step():
    patterns = owl_patterns(RATIOS, SIZES, parse_pattern("4:8"), 0.2)
    removed = sum(p.removed_from(8) * size for p, size in zip(patterns, SIZES, strict=True))
    assert abs(removed - 4 * sum(SIZES)) <= max(SIZES) / 2


def test_bad_values_are_refused():
    with pytest.raises(InputError, match="2 outlier ratios for 1 layer sizes"):
        owl_sparsities([0.1, 0.2], [1], 0.5)
    with pytest.raises(InputError, match=r"expected a bound from 0 to below 0\.05"):
        owl_sparsities([0.1, 0.2], [1, 1], 0.05)
    with pytest.raises(InputError, match="must be finite"):
        owl_sparsities([0.1, float("nan")], [1, 1], 0.5)
    with pytest.raises(InputError, match="no scores"):
        outlier_ratio([])
    with pytest.raises(ValueError, match="NaN or infinity"):
        outlier_ratio([torch.tensor([float("nan")])])
