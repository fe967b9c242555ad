"""What `dass history`, `diff` and `compare` show on a terminal: every cell whole at 80 columns, readable at 60."""

from datetime import UTC, datetime
from typing import Any

import pytest

from dass.errors import InputError
from tasks.promotion.compare import compare_tables
from tasks.promotion.diff import diff_tables
from tasks.promotion.history import history_tables, read_time
from tests.printing import printed

TIME = "2026-11-26T08:17:31.123+00:00"
RULE = {"rule": "max_ratio", "limit": 2.5, "value": 3.12345678, "passed": False, "told": "0.6235 above"}
PROOF = {"rule": "proof", "limit": True, "value": False, "passed": False, "told": "failed at: weights"}


def version(number: str, **changes: Any) -> dict[str, Any]:
    row = {
        "version": number,
        "aliases": ["challenger"],
        "method": "sparsegpt",
        "pattern": "unstructured",
        "sparsity": 0.5,
        "ratio": 1.4031234,
        "tasks_mean": 0.51,
        "when": TIME,
        "by": "alice@host",
        "commit": "0123abcdef",
        "proof": "passed",
        "events": [],
    }
    return {**row, **changes}


def decision(n: int, told: str, **changes: Any) -> dict[str, Any]:
    row = {"n": n, "time": TIME, "actor": "alice", "version": "1", "decision": told}
    return {**row, "rules": [], "reason": None, "previous": None, **changes}


RECORD = {
    "model": "tiny",
    "repaired": None,
    "champion": "1",
    "versions": [version("12"), version("1", aliases=[], proof=None, tasks_mean=None, pattern="2:4")],
    "decisions": [
        decision(9, "rolled back", reason="worse [answers] in \x1b[31mproduction"),
        decision(8, "promoted by force", rules=[RULE], reason="a demo"),
        decision(7, "refused", rules=[RULE, PROOF]),
        decision(6, "promoted"),
    ],
}


@pytest.mark.parametrize(("width", "when"), [(80, "2026-11-26"), (60, "11-26")])
def test_a_history_is_readable(width: int, when: str) -> None:
    text = printed(history_tables(RECORD), width)
    for words in ("challenger", "sparsegpt", "unstructured", "1.403", when, "passed", "none", "rolled back"):
        assert words in text, words
    joined = " ".join(text.split())
    assert "every rule held" in joined
    assert "\x1b" not in text


def test_a_decision_names_its_rules_and_reason() -> None:
    text = printed(history_tables(RECORD), 160)
    assert r"worse [answers] in \x1b[31mproduction" in text
    assert "max_ratio is 3.123, limit 2.5; a demo" in text
    assert "max_ratio is 3.123, limit 2.5; proof: failed at: weights" in text


def test_wide_shows_the_rest() -> None:
    text = printed(history_tables(RECORD, wide=True), 120)
    for words in ("50.0%", "0.510", "2026-11-26 08:17", "alice@host", "0123abcd"):
        assert words in text
        assert words not in printed(history_tables(RECORD), 120)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2026-11-26", datetime(2026, 11, 26, tzinfo=UTC)),
        ("2026-11-26T08:17+01:00", datetime(2026, 11, 26, 7, 17, tzinfo=UTC)),
    ],
)
def test_since_is_a_date_in_utc_unless_it_says_another(text: str, told: datetime) -> None:
    assert read_time(text) == told


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", ""])
def test_since_that_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--since is .*: expected a date such as 2026-11-26"):
        read_time(text)


def difference(name: str, moved: int) -> dict[str, Any]:
    return {"tensor": name, "moved": moved, "weights": 6144, "share": moved / 6144, "jaccard": 0.5}


DIFF = {
    "model": "tiny",
    "before": "1",
    "after": "12",
    "settings": {"prune.pattern": ["unstructured", "2:4"], "prune.sparsity": [0.5, None]},
    "calibration": {"digest": ["0" * 64, "a" * 64]},
    "figures": {"ratio": [1.020677337241365, 1.5], "tokens": [155, 310], "generations": [[{"a": 1}], [{"a": 2}]]},
    "values": {},
    "masks": [difference("model.layers.0.mlp.gate_proj.weight", 1000)],
    "layers": [difference("layer 0", 1000), difference("layer 1", 0)],
    "moved": difference("all", 1000),
}


@pytest.mark.parametrize("width", [60, 80])
def test_a_diff_is_rounded_with_changes_and_totals(width: int) -> None:
    lines = [line.split() for line in printed(diff_tables(DIFF), width).splitlines()]
    for line in (
        ["prune.pattern", "unstructured", "2:4"],
        ["digest", "0" * 12, "a" * 12],
        ["ratio", "1.021", "1.5", "+0.4793"],
        ["tokens", "155", "310", "+155"],
        ["values:", "the", "same"],
        ["layer", "0", "1,000", "16.28%", "50.00%"],
        ["all", "1,000", "16.28%", "50.00%"],
        ["Also", "different,", "with", "--json:", "generations"],
    ):
        assert line in lines, line


@pytest.mark.parametrize("width", [60, 80])
def test_a_comparison_has_a_column_a_run(width: int) -> None:
    runs = [{"asked": each, "version": each, "run_id": "x", "when": TIME, "by": "a"} for each in ("1", "2", "3")]
    figures = {"ratio": [1.1, 1.2, None], "pruned.perplexity": [20.123456, 21.0, 22], "windows": [5, 5, 5]}
    record = {"model": "m", "runs": runs, "settings": {"prune.alpha": [0.5, 1.0, 1.5]}, "figures": figures}
    lines = [line.split() for line in printed(compare_tables(record), width).splitlines()]
    assert ["settings", "v1", "v2", "v3"] in lines
    assert ["prune.alpha", "0.5", "1", "1.5"] in lines
    assert ["pruned.perplexity", "20.12", "21", "22"] in lines
    assert ["ratio", "1.1", "1.2"] in lines
    assert not [line for line in lines if "windows" in line]
