"""A version to show: registered and promoted, a second one behind it, and every figure that a version may carry."""

import os
from dataclasses import replace
from typing import Any

import pytest

from tasks.promotion.decision import decide, prove
from tasks.registry.registration import register
from tasks.report.facts import Facts, read_facts
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Promote
from tests.test_tasks.test_promotion.test_verification import PROVENANCE
from tests.workspaces import change_settings, copy_workspace, prune_again

RULES = Promote(max_ratio=100.0, margin=10.0)
MODEL = "<b>tiny & 'co' \"x\""


@pytest.fixture(scope="session")
def registered(finished_template: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Version 1 is champion, with a reason that is somebody's attack; version 2 is the workspace's result."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        ws = copy_workspace(finished_template, tmp_path_factory.mktemp("shown") / "ws")
        named = {"register__model": MODEL, "register__artifact": "masks"}
        register(ws, change_settings(ws, **named), PROVENANCE)
        rules = replace_rules(max_ratio=0.5)
        reason = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
        decide(ws, MODEL, "1", rules, prove(ws, MODEL, "1", rules), force=True, reason=reason)
        register(ws, prune_again(ws, **named, prune__sparsity=0.75), PROVENANCE)
    assert os.environ.get("MLFLOW_TRACKING_URI") is None
    return ws


def replace_rules(**changes: Any) -> Promote:
    return RULES.model_copy(update=changes)


@pytest.fixture(scope="session")
def plain(registered: Workspace) -> Facts:
    """Version 2 with what every version carries."""
    return read_facts(registered, MODEL, "2", RULES)


@pytest.fixture(scope="session")
def full(plain: Facts) -> Facts:
    """The same with every figure that a version may carry."""
    evaluation = {
        **plain.evaluation,
        "dense": {**plain.evaluation["dense"], "word_perplexity": 40.0, "byte_perplexity": 2.0},
        "pruned": {**plain.evaluation["pruned"], "word_perplexity": 80.0, "byte_perplexity": 3.0},
        "interval": {
            "ratio": [1.5, 2.5],
            "level": 0.95,
            "method": "paired block bootstrap over windows",
            "resamples": 9,
        },
        "divergence": {
            "kl": 0.3456,
            "top1_agreement": 0.71,
            "top5_overlap": 0.62,
            "by_position": [{"from": 1, "to": 15, "kl": 0.5}, {"from": 16, "to": 31, "kl": 0.3}],
            "by_frequency": [{"from": 1, "to": 1, "kl": 0.9}, {"from": 2, "to": None, "kl": 0.2}],
        },
        "texts": {
            "<i>code</i>": {
                "tokens": 155,
                "dense": {"perplexity": 3.0},
                "pruned": {"perplexity": 4.5},
                "ratio": 1.5,
                "interval": None,
                "divergence": None,
            }
        },
        "generations": [
            {
                "prompt": "Once <script>",
                "dense": "upon a time",
                "pruned": "once once once",
                "distinct3": {"dense": 1.0, "pruned": 0.25},
                "diverges_at": 0,
            }
        ],
        "overlap": {"evaluation": {"share": 0.125, "grams": 1000}},
        "verdicts": [{"verdict": "anomalous", "told": "pruned is better than dense"}],
    }
    task = {
        "documents": 400,
        "metric": "acc_norm",
        "version": 1.0,
        "dense": {"acc": 0.58, "acc_stderr": 0.02, "acc_norm": 0.52, "acc_norm_stderr": 0.025},
        "pruned": {"acc": 0.51, "acc_stderr": 0.021, "acc_norm": 0.49, "acc_norm_stderr": 0.026},
        "difference": {
            "acc_norm": {
                "value": -0.03,
                "interval": [-0.06, 0.01],
                "level": 0.95,
                "mcnemar_p": 0.04,
                "lost": 31,
                "gained": 19,
            }
        },
    }
    tasks = {"tasks": {"arc_easy": task}, "mean": {"dense": 0.52, "pruned": 0.49}, "verdicts": []}
    return replace(plain, evaluation=evaluation, tasks=tasks)
