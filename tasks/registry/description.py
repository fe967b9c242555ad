"""What MLflow shows at the top of a run: what was made, what it cost, where it comes from, and how to check it."""

from typing import Any

from tasks.registry.card import described, trained
from tasks.registry.result import Result, scores_told
from tasks.sources.calibrated_on import told as calibrated_on


def description(model: str, result: Result, provenance: dict[str, Any]) -> str:
    """The run's description, Markdown. Every name in it is set as code: it may be anybody's.

    Args:
        model: the registered model.
        result: what is registered.
        provenance: as `tasks.registry.registration.register` takes.
    """
    manifest, evaluation = result.manifest, result.evaluation
    interval = (evaluation.get("interval") or {}).get("ratio")
    sure = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    calibration, read = manifest["calibration"], result.evaluation_set["source"]
    rows = [
        ("model", _code(model)),
        ("pruned by", described(manifest["settings"]["prune"])),
        *([("auto chose", told)] if (told := scores_told(manifest)) else []),
        *([("trained behind it", trained(result.recovery))] if result.recovery["trained"] else []),
        ("perplexity, dense", f"{evaluation['dense']['perplexity']:.3f}"),
        ("perplexity, pruned", f"{evaluation['pruned']['perplexity']:.3f}"),
        ("ratio", f"{evaluation['ratio']:.3f}{sure}"),
        ("zeros in the MLPs", f"{evaluation['sparsity']['mlp']:.2%}"),
        ("base", _source(manifest["base"])),
        (
            "calibration",
            f"{calibration['tokens']:,} tokens of {calibrated_on(calibration, _code)}",
        ),
        ("evaluation", f"{evaluation['tokens']:,} tokens of {_source(read)}"),
        ("commit", _code(provenance["git_commit"]) if provenance["git_commit"] else "not in git"),
    ]
    if run := provenance.get("flow_run"):
        shown = f"[{_word(run['name'])}](<{run['url']}>)" if "url" in run else f"{_code(run['name'])} (`dass ui`)"
        rows.append(("Prefect flow run", f"{shown}, {_code(run['id'])}"))
    rows += [(f"DVC {_code(path)}", f"md5 {_code(md5)}") for path, md5 in provenance["dvc"].items()]
    table = "\n".join(f"| {name} | {value} |" for name, value in [("", ""), ("---", "---"), *rows])
    return (
        f"{table}\n\n"
        "`report.html` among the artifacts shows all of it: figures with intervals, layers, neurons, history. "
        "Charts by layer: the metrics that begin with `layer.`, whose step is the layer. "
        "`dass verify VERSION` proves the version."
    )


def _source(source: dict[str, Any]) -> str:
    uri = source["uri"]
    return _code(uri) if isinstance(uri, str) else f"{_code(uri[0])} and {len(uri) - 1} more"


def _code(text: str) -> str:
    """A text as code in a table, whatever is in it."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39)).replace('|', '¦')}`"


def _word(text: str) -> str:
    return "".join(each for each in text if each.isalnum() or each in " -_")
