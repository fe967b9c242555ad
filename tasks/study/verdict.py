"""What the numbers say: figures with their error bars, and sentences that follow from them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.study.cells import MAGNITUDE, PUBLISHED, WANDA

Rows = Sequence[Mapping[str, Any]]
Study = tuple[Mapping[str, Any], Mapping[str, Rows]]
"""What was studied, and its tables."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """Of several seeds.

    Attributes:
        value: their mean.
        half: half the width of its interval at CONFIDENCE by Student's t; None of one seed.
        count: seeds.
    """

    value: float
    half: float | None
    count: int

    def __format__(self, form: str) -> str:
        value = format(self.value, form)
        return value if self.half is None else f"{value} ± {format(self.half, form)}"


def mean(values: Iterable[float]) -> Mean:
    """Mean of at least one value, with its interval."""
    from scipy import stats

    listed = list(values)
    count = len(listed)
    centre = math.fsum(listed) / count
    if count == 1:
        return Mean(centre, None, 1)
    deviation = math.sqrt(math.fsum((value - centre) ** 2 for value in listed) / (count - 1))
    return Mean(centre, float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count), count)


def where(rows: Rows, **wanted: Any) -> list[Mapping[str, Any]]:
    """Rows in which all these columns have these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def measured(rows: Rows, column: str = "kl", **wanted: Any) -> Mean | None:
    """Mean over the rows so chosen; None where there are none."""
    found = [row[column] for row in where(rows, **wanted)]
    return mean(found) if found else None


@dataclass(frozen=True)
class Against:
    """DaSS against Wanda on gate and up at one pattern: seed by seed, so the windows' luck cancels.

    Attributes:
        model, pattern: of what.
        score: DaSS with which exponent.
        ratio: KL of DaSS over Wanda's, their geometric mean over seeds.
        low, high: its interval; None of one seed.
        count: seeds.
    """

    model: str
    pattern: str
    score: str
    ratio: float
    low: float | None
    high: float | None
    count: int

    @property
    def word(self) -> str:
        """ "better", "worse" or "undecided"."""
        if self.low is None or self.high is None:
            return "undecided" if self.ratio == 1.0 else ("better" if self.ratio < 1.0 else "worse")
        if self.high < 1.0:
            return "better"
        return "worse" if self.low > 1.0 else "undecided"

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.ratio:.2f} (one seed)"
        return f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f})"


def against_wanda(about: Mapping[str, Any], ablation: Rows, pattern: str, score: str = str(PUBLISHED)) -> Against:
    """DaSS against Wanda at the study's own source and number of windows."""
    chosen = main_rows(about, ablation, pattern, "gate+up")
    of = {name: {row["seed"]: row["kl"] for row in where(chosen, score=name)} for name in (score, str(WANDA))}
    found = mean(_log_ratio(of[score][seed], of[str(WANDA)][seed]) for seed in about["seeds"])
    low, high = (
        (None, None) if found.half is None else (math.exp(found.value - found.half), math.exp(found.value + found.half))
    )
    return Against(about["model"], pattern, score, math.exp(found.value), low, high, found.count)


def main_rows(about: Mapping[str, Any], ablation: Rows, pattern: str, part: str) -> list[Mapping[str, Any]]:
    """The ablation itself: cells of the study's own source and number of windows, and magnitude's, which have none."""
    return [
        row
        for row in where(ablation, pattern=pattern, part=part)
        if row["method"] == str(MAGNITUDE) or (row["source"], row["samples"]) == ("calibration", about["samples"])
    ]


def best_score(about: Mapping[str, Any], ablation: Rows, pattern: str) -> str:
    """Which score leaves gate and up nearest to dense, by its mean over seeds."""
    chosen = main_rows(about, ablation, pattern, "gate+up")
    return _least(sorted({row["score"] for row in chosen}), lambda score: _value(measured(chosen, score=score)))


def best_alpha(about: Mapping[str, Any], ablation: Rows, pattern: str) -> str:
    """The same among DaSS's exponents."""
    chosen = where(main_rows(about, ablation, pattern, "gate+up"), method="dass")
    return _least(sorted({row["score"] for row in chosen}), lambda score: _value(measured(chosen, score=score)))


def concentrated(outliers: Rows, activation: str, column: str, about: Mapping[str, Any]) -> Mean | None:
    """Mean over layers of one figure of an activation, over seeds."""
    chosen = where(outliers, source="calibration", activation=activation)
    return mean(
        math.fsum(values) / len(values)
        for seed in about["seeds"]
        if (values := [row[column] for row in where(chosen, seed=seed)])
    )


def paragraph(about: Mapping[str, Any], tables: Mapping[str, Rows]) -> str:
    """Whether the paper's finding holds for this model: sentences that follow from the numbers."""
    ablation, outliers = tables["ablation"], tables["outliers"]
    against = [against_wanda(about, ablation, pattern) for pattern in about["patterns"]]
    count = about["seeds"]
    inside, between = (concentrated(outliers, which, "top_share", about) for which in ("input", "intermediate"))
    told = []
    if inside is not None and between is not None:
        share = f"the largest 1 % of channels hold {100 * inside.value:.0f} % of the input's energy"
        more = "more" if between.value > inside.value else "less"
        told.append(f"In the mean over layers {share} and {100 * between.value:.0f} % of the intermediate's: {more}.")
    told.append(_judgement(about["model"], against))
    told.append(
        "KL of gate and up pruned by DaSS over Wanda's, α = 0.5: "
        + "; ".join(f"{each.pattern} {each}, {each.word}" for each in against)
        + "."
    )
    best = {pattern: best_alpha(about, ablation, pattern) for pattern in about["patterns"]}
    told.append("Best exponent: " + ", ".join(f"{score} at {pattern}" for pattern, score in best.items()) + ".")
    tuned = [against_wanda(about, ablation, pattern, score) for pattern, score in best.items()]
    told.append(
        "With it DaSS over Wanda is " + ", ".join(f"{each} at {each.pattern}" for each in tuned) + ", an exponent "
        "chosen on the windows it is judged by."
    )
    told.append(_norms_matter(about, ablation))
    if len(count) == 1:
        told.append("One seed: without error bars none of this is sure.")
    return " ".join(told)


def _judgement(model: str, against: Sequence[Against]) -> str:
    words = {each.word for each in against}
    without = "DaSS, which leaves the input's norms out,"
    if words == {"better"}:
        return f"The finding holds for {model}: {without} is ahead of Wanda at every pattern."
    if words == {"worse"}:
        return f"The finding does not hold for {model}: {without} loses to Wanda at every pattern."
    if words == {"undecided"}:
        return f"For {model} DaSS and Wanda cannot be told apart."
    if "better" not in words:
        return f"The finding does not hold for {model}: {without} is behind Wanda at some patterns, ahead at none."
    ahead = ", ".join(each.pattern for each in against if each.word == "better")
    return f"The finding holds for {model} at {ahead} only."


def _norms_matter(about: Mapping[str, Any], ablation: Rows) -> str:
    """Whether Wanda's ‖x‖ is worth anything in gate and up, against magnitude in the same groups."""
    told = []
    for pattern in about["patterns"]:
        chosen = main_rows(about, ablation, pattern, "gate+up")
        wanda, magnitude = (_value(measured(chosen, score=str(score))) for score in (WANDA, MAGNITUDE))
        told.append(f"{wanda / magnitude:.2f} at {pattern}" if magnitude else f"not to be said at {pattern}")
    return f"Wanda's KL there is {', '.join(told)} of magnitude's, which looks at no activation."


def by_size(studies: Sequence[Study]) -> list[Study]:
    """The smallest model first."""
    return sorted(studies, key=lambda study: study[0]["parameters"])


def shared_patterns(studies: Sequence[Study]) -> list[str]:
    """Patterns that every study has, in the first one's order."""
    return [
        pattern for pattern in studies[0][0]["patterns"] if all(pattern in about["patterns"] for about, _ in studies)
    ]


def across_models(studies: Sequence[Study]) -> str:
    """How DaSS against Wanda moves with the size of the model."""
    from scipy import stats

    ordered = by_size(studies)
    shared = shared_patterns(ordered)
    told = []
    for pattern in shared:
        ratios = [against_wanda(about, tables["ablation"], pattern) for about, tables in ordered]
        line = f"{pattern}: " + ", ".join(
            f"{about['model']} {each.ratio:.2f}" for (about, _), each in zip(ordered, ratios, strict=True)
        )
        if len(ratios) > 2:
            rank = float(stats.spearmanr([a["parameters"] for a, _ in ordered], [e.ratio for e in ratios]).statistic)
            line += f" (rank correlation with size {rank:.2f})"
        told.append(line)
    held = [a["model"] for a, t in ordered if all(against_wanda(a, t["ablation"], p).word == "better" for p in shared)]
    lead = (
        f"The finding holds at every pattern for {', '.join(held)}."
        if held
        else ("The finding holds at every pattern for none of these models.")
    )
    return f"{lead} KL of DaSS over Wanda's on gate and up, smallest model first. {'; '.join(told)}."


def _log_ratio(one: float, other: float) -> float:
    tiny = 1e-12
    return math.log(max(one, tiny) / max(other, tiny))


def _value(found: Mean | None) -> float:
    return math.nan if found is None else found.value


def _least(names: Sequence[str], of: Callable[[str], float]) -> str:
    return min(names, key=of)
