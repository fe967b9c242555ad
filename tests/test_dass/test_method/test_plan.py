"""What is asked for is checked once, and what goes wrong is said before any work."""

from typing import Any

import pytest

from dass.errors import InputError
from dass.method.methods import Score
from dass.method.plan import Plan, plan


def test_the_defaults_are_the_papers() -> None:
    made = plan()
    assert (made.method, str(made.pattern), made.pattern.sparsity, made.alpha) == ("dass", "unstructured", 0.5, 0.5)
    assert (made.layout, made.update, made.allocation, made.propagation) == ("paper", "none", "uniform", "pruned")
    assert plan() == Plan("dass", made.pattern)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "random"}, "method is 'random': expected one of dass, wanda, magnitude, sparsegpt, auto"),
        ({"layout": "rows"}, "layout is 'rows': expected one of paper, contraction, transposable"),
        (
            {"update": "finetune"},
            "update is 'finetune': expected one of none, reconstruct, reconstruct-mlp, reconstruct-block",
        ),
        ({"allocation": "layered"}, "allocation is 'layered': expected one of uniform, owl"),
        ({"propagation": "both"}, "propagation is 'both': expected one of pruned, dense"),
        ({"alpha": -0.1}, "alpha is -0.1: expected a finite exponent of 0 or more"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"damping": 0.0}, "damping is 0.0: expected a share above 0 and up to 10"),
        ({"damping": 11.0}, "damping is 11.0"),
        ({"damping": float("nan")}, "damping is nan"),
        ({"min_expert_tokens": -1}, "min_expert_tokens is -1: expected 0 or more tokens"),
        ({"refine": "some"}, "refine is 'some': expected one of none, swaps"),
        ({"max_swaps": 0}, "max_swaps is 0: expected 1 or more swaps a row"),
        ({"max_swaps": True}, "max_swaps is True: expected 1 or more swaps a row"),
        ({"auto_windows": 0}, "auto_windows is 0: expected 1 or more windows"),
        ({"auto_budget": -1}, "auto_budget is -1: expected 0 or more changes"),
        ({"auto_budget": 1.5}, "auto_budget is 1.5"),
        ({"validation_share": 0.51}, "validation_share is 0.51: expected a share .* from 0 to 0.5"),
        ({"validation_share": -0.1}, "validation_share is -0.1: expected"),
        ({"validation_share": float("nan")}, "validation_share is nan: expected"),
        ({"validation_share": "some"}, "validation_share is 'some': expected a number"),
        ({"validation_share": None}, "validation_share is None: expected a number"),
        ({"validation_share": 0.1}, 'validation_share is 0.1 and update "none": there is no re-fit'),
        (
            {"validation_share": 0.1, "update": "reconstruct", "propagation": "dense"},
            'validation_share is 0.1 and propagation "dense"',
        ),
        ({"epochs": 0}, "epochs is 0: expected 1 or more"),
        ({"epochs": 1.5}, "epochs is 1.5: expected 1 or more"),
        ({"epochs": True}, "epochs is True: expected 1 or more"),
        ({"tune_norms": 1}, "tune_norms is 1: expected true or false"),
        (
            {"tune_norms": True, "update": "reconstruct-mlp"},
            'tune_norms is true and update "reconstruct-mlp": only update: reconstruct-block',
        ),
        ({"pattern": "4:2"}, "keeping 4 of 2"),
        ({"pattern": "2:4", "sparsity": 0.6}, "removes exactly 0.5"),
        ({"sparsity": 1.0}, "between 0 and 1"),
        ({"layout": "contraction"}, 'layout is "contraction" and pattern "unstructured": only N:M has groups'),
        ({"layout": "transposable"}, 'layout is "transposable" and pattern "unstructured": expected pattern 2:4'),
        (
            {"layout": "transposable", "pattern": "4:8"},
            'layout is "transposable" and pattern "4:8": expected pattern 2:4',
        ),
        *(
            (
                {"update": update, "propagation": "dense"},
                f'update is "{update}" and propagation "dense": it needs the tokens.*update: reconstruct',
            )
            for update in ("reconstruct-mlp", "reconstruct-block")
        ),
        (
            {"allocation": "owl", "layout": "transposable", "pattern": "2:4"},
            'allocation is "owl" and layout "transposable": every layer is 2:4 there. Use uniform',
        ),
        (
            {"allocation": "sensitivity", "layout": "transposable", "pattern": "2:4"},
            'allocation is "sensitivity" and layout "transposable"',
        ),
        ({"allocation": "sensitivity", "pattern": "4:8"}, "less than 0.125 moves no layer"),
        ({"allocation": "owl", "sparsity": 0.05}, "owl_bound is 0.08: expected above 0 and less than 0.05"),
        ({"allocation": "owl", "sparsity": 0.95}, "owl_bound is 0.08: expected above 0 and less than 0.05"),
        ({"allocation": "owl", "owl_bound": 0.0}, "owl_bound is 0: expected above 0 and less than 0.5"),
        (
            {"allocation": "owl", "pattern": "2:4"},
            "owl_bound is 0.08: a group of 4 gives up whole weights, so less than 0.125 moves no layer",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        plan(**options)
    assert "\n" not in str(caught.value)


def test_a_band_is_looked_at_under_owl_only() -> None:
    assert plan(sparsity=0.05).allocation == "uniform"
    assert plan(owl_bound=-1.0).owl_bound == -1.0


@pytest.mark.parametrize(
    ("options", "x", "z"),
    [
        ({}, False, False),
        ({"method": "sparsegpt"}, True, True),
        ({"update": "reconstruct"}, True, False),  # down is fitted to what the pruned gate and up feed it
        ({"update": "reconstruct", "propagation": "dense"}, True, True),
        ({"method": "wanda", "update": "reconstruct-mlp"}, True, False),
        # It takes those of the fitted windows alone.
        ({"update": "reconstruct", "validation_share": 0.1}, False, False),
        ({"method": "sparsegpt", "update": "reconstruct", "validation_share": 0.1}, True, True),
    ],
)
def test_gram_matrices_are_collected_only_where_they_are_used(options: dict[str, Any], x: bool, z: bool) -> None:
    made = plan(**options)
    assert (made.needs_gram_x, made.needs_gram_z) == (x, z)
    assert made.changes_kept_weights == (x or "update" in options)


@pytest.mark.parametrize(
    ("options", "gate", "down"),
    [
        ({}, 0, 1),
        ({"pattern": "2:4"}, 0, 1),
        ({"pattern": "2:4", "layout": "contraction"}, 1, 1),
        ({"method": "wanda"}, 1, 1),
        ({"method": "magnitude"}, None, None),
        ({"method": "magnitude", "pattern": "2:4"}, 1, 1),
        ({"method": "sparsegpt"}, None, None),
        ({"method": "sparsegpt", "pattern": "2:4"}, 1, 1),
    ],
)
def test_dass_competes_along_the_intermediate_axis(options: dict[str, Any], gate: int | None, down: int | None) -> None:
    made = plan(**options)
    assert (made.axis("gate_proj"), made.axis("up_proj"), made.axis("down_proj")) == (gate, gate, down)


def test_auto_tries_wanda_and_dass_with_the_exponent_that_is_set_among_others() -> None:
    assert list(map(str, plan("auto").candidates)) == ["wanda", "dass α 0.5", "dass α 1", "dass α 1.5"]
    assert list(map(str, plan("auto", alpha=0.0).candidates))[:2] == ["wanda", "dass α 0"]
    assert list(map(str, plan("dass", alpha=2.0).candidates)) == ["dass α 2"]
    assert list(map(str, plan("auto", None, "2:4", layout="contraction").candidates)) == ["wanda"]


def test_a_layer_s_plan_is_the_plan_with_its_score() -> None:
    made = plan("auto", None, "2:4", alpha=0.7)
    assert made.scored(Score("wanda")) == plan("wanda", None, "2:4", alpha=0.7)
    assert made.scored(Score("dass", 1.5)) == plan("dass", None, "2:4", alpha=1.5)
    assert (made.scored(Score("wanda")).axis("gate_proj"), made.scored(Score("dass", 1.0)).axis("gate_proj")) == (1, 0)


def test_only_auto_holds_windows_back() -> None:
    assert (plan().held_back, plan("auto").held_back, plan("auto", auto_windows=2).held_back) == (0, 4, 2)
    plan().check_samples(1)
    with pytest.raises(InputError, match=r"auto_windows 4: .* but there are 4"):
        plan("auto").check_samples(4)


@pytest.mark.parametrize(
    ("share", "windows", "held_back"),
    [(0.0, 1, 0), (0.1, 2, 1), (0.5, 2, 1), (0.5, 3, 2), (0.1, 32, 3), (0.29, 100, 29), (0.001, 1000, 1)],
)
def test_some_windows_are_held_back_and_some_are_left_to_fit_to(share: float, windows: int, held_back: int) -> None:
    assert plan(update="reconstruct", validation_share=share).validation_windows(windows) == held_back < windows


def test_one_window_cannot_be_both() -> None:
    told = "validation_share is 0.2 and 1 calibration window is left to fit to: expected 2 or more"
    for what, windows in (
        (plan(update="reconstruct", validation_share=0.2), 1),
        (plan("auto", update="reconstruct", validation_share=0.2), 5),
    ):
        with pytest.raises(InputError, match=told):
            what.check_samples(windows)
