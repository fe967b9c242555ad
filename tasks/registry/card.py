"""The model card of a version: what its README.md says, in the form the hub reads."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.evaluation.task_record import named_entries
from tasks.registry.result import scores_told
from tasks.sources.calibrated_on import sources_of
from tasks.sources.calibrated_on import told as calibrated_on
from tasks.workspace.flat import flat
from tasks.workspace.redaction import redacted, source_name
from tasks.workspace.settings import Settings

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

PLACE = "VERSION"
"""Stands for the version's number, which the registry gives only after the card was signed."""
NUMBER_SAID = f" {PLACE} is the version's number in the registry: `dass history`."

_NOT_QUALIFIED = "unknown"
_METRICS = {"perplexity": "perplexity of the pruned model", "perplexity_ratio": "perplexity, pruned / dense"}


def card(
    manifest: dict[str, Any],
    evaluation: dict[str, Any],
    tasks: dict[str, Any],
    settings: Settings,
    version: dict[str, Any],
    recovery: dict[str, Any],
) -> str:
    """The model card's text. Equal results give equal cards.

    Args:
        manifest: dass/manifest.json.
        evaluation: dass/evaluation.json.
        tasks: dass/tasks.json.
        settings: what the run was made with.
        version: dass/version.json.
        recovery: dass/recovery.json, or {"trained": False}.
    """
    from huggingface_hub import ModelCard

    base, name = manifest["base"], settings.register_.model
    data = _front_matter(manifest, evaluation, tasks, settings, version)
    sections = [
        f"# {name}",
        f"{_uri(base['uri'])} with a share of its MLP weights removed: {described(manifest['settings']['prune'])}."
        + (f" What is left was trained: {trained(recovery)}." if recovery["trained"] else ""),
        "## Results",
        results(evaluation),
        *task_results(tasks),
        "## What was done",
        _what_was_done(manifest, version, recovery),
        "## What it gains",
        "\n".join(f"- {each}" for each in gains(manifest, evaluation, version)),
        "## Licence",
        f"That of the base model: {base['license']}." if base["license"] else "That of the base model; see there.",
        "## Load and verify",
        _use(name, version),
        "## Settings",
        _table(["setting", "value"], [[f"`{key}`", f"`{value}`"] for key, value in _settings(settings).items()]),
    ]
    return str(ModelCard(f"---\n{data}\n---\n\n" + "\n\n".join(sections) + "\n"))


def _front_matter(
    manifest: dict[str, Any],
    evaluation: dict[str, Any],
    tasks: dict[str, Any],
    settings: Settings,
    version: dict[str, Any],
) -> "ModelCardData":
    """What the hub reads of a card: licence, base, and each figure with what it was measured on (model-index)."""
    from huggingface_hub import ModelCardData

    base, prune = manifest["base"], manifest["settings"]["prune"]
    on_hub = {hub_id(source["uri"]) for source in sources_of(manifest["calibration"]).values()}
    base_model = hub_id(base["uri"])
    # The hub has no word for pruning; of those it has, this one claims least.
    relation: dict[str, Any] = {"base_model_relation": "finetune"} if base_model else {}
    kind = "semi-structured" if ":" in prune["pattern"] else "unstructured"
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=base["license"] or _NOT_QUALIFIED,
        base_model=base_model,
        **relation,
        datasets=sorted(each for each in on_hub if each) or None,
        tags=["pruned", "sparse", f"{kind}-sparsity", prune["method"]],
        model_name=settings.register_.model,
        eval_results=[*_on_texts(evaluation, version), *_on_tasks(tasks)],
    )


def _on_texts(evaluation: dict[str, Any], version: dict[str, Any]) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    found = []
    for name, source in version["evaluated_on"].items():
        text = evaluation if name == "evaluation" else evaluation["texts"][name]
        called = redacted(source_name(source["uri"]))
        what: dict[str, Any] = {
            "task_type": "text-generation",
            "dataset_name": called,
            "dataset_type": (isinstance(source["uri"], str) and hub_id(source["uri"])) or called,
            "dataset_args": {"context_length": evaluation["context_length"], "sha256": source["sha256"]},
        }
        figures = {"perplexity": text["pruned"]["perplexity"], "perplexity_ratio": text["ratio"]}
        for kind, value in figures.items():
            found.append(EvalResult(metric_type=kind, metric_value=value, metric_name=_METRICS[kind], **what))
    return found


def _on_tasks(tasks: dict[str, Any]) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_name=name,
            dataset_type=name,
            metric_type=metric,
            metric_value=entry["pruned"][metric],
            metric_name=f"{metric}, zero-shot" if entry.get("num_fewshot") == 0 else metric,
        )
        for name, entry in named_entries(tasks).items()
        for metric in entry["difference"]
    ]


def described(prune: dict[str, Any]) -> str:
    """The settings that made the masks, in words; defaults that change nothing are left out."""
    told = [prune["method"], prune["pattern"], f"sparsity {prune['sparsity']:g}"]
    if prune["method"] == "dass":
        told.append(f"α {prune['alpha']:g}")
    if prune["layout"] != "paper":
        told.append(f"layout {prune['layout']}")
    if prune["refine"] != "none":
        told.append(f"refined by at most {prune['max_swaps']} {prune['refine']} a row")
    if prune["update"] != "none":
        told.append(f"update {prune['update']}")
    if prune["update"] == "reconstruct-block":
        told.append(f"{prune['epochs']} epochs at most" + (", norms too" if prune["tune_norms"] else ""))
    if prune["validation_share"]:
        told.append(f"{prune['validation_share']:g} of the windows held back")
    if prune["allocation"] != "uniform":
        told.append(f"allocation {prune['allocation']} within {prune['owl_bound']:g}")
    if prune["propagation"] != "pruned":
        told.append(f"propagation {prune['propagation']}")
    return ", ".join(told)


def trained(recovery: dict[str, Any]) -> str:
    """How the pruned model was trained, in words."""
    if not recovery["trained"]:
        return "none"
    asked, held_back = recovery["settings"], recovery["held_back"]
    told = f"{asked['train']}, {recovery['steps']} steps on {recovery['tokens']:,} tokens against its base"
    if held_back is not None:
        told += f", held-back loss {held_back['start']:.4f} to {held_back['stored']:.4f}"
        told += f" (step {recovery['best_step']})"
    return told


def results(evaluation: dict[str, Any]) -> str:
    """What was measured, as a table."""
    rows = [
        ["perplexity, dense", f"{evaluation['dense']['perplexity']:.3f}"],
        ["perplexity, pruned", f"{evaluation['pruned']['perplexity']:.3f}"],
        ["ratio", f"{evaluation['ratio']:.3f}"],
        *([what, value] for what, value in more_figures(evaluation).items()),
        ["zeros in the MLPs", f"{evaluation['sparsity']['mlp']:.2%}"],
        ["zeros in the model", f"{evaluation['sparsity']['model']:.2%}"],
    ]
    measured_on = f"Measured on {evaluation['tokens']:,} tokens of held-out text, context length "
    return _table(["", "value"], rows) + f"\n\n{measured_on}{evaluation['context_length']}."


def task_results(tasks: dict[str, Any]) -> list[str]:
    """A table of the zero-shot tasks, where any was asked."""
    rows = []
    for name, entry in named_entries(tasks).items():
        for metric, between in entry["difference"].items():
            low, high = between["interval"]
            flips = "" if between["lost"] is None else f"{between['lost']} lost, {between['gained']} gained"
            p = "" if between["mcnemar_p"] is None else f"{between['mcnemar_p']:.3g}"
            measured = [_measured(entry[which], metric) for which in ("dense", "pruned")]
            change = f"{between['value']:+.4f} [{low:+.4f}, {high:+.4f}]"
            rows.append([f"{name}, {metric}", str(entry["documents"]), *measured, change, flips, p])
    if not rows:
        return []
    header = ["task", "documents", "dense", "pruned", "pruned − dense [95 %]", "answers that flipped", "McNemar p"]
    told = f"Zero-shot tasks, asked by lm_eval {tasks['settings']['versions']['lm_eval']}; ± is a standard error."
    return [told, _table(header, rows)]


def _measured(figures: dict[str, float], metric: str) -> str:
    error = figures.get(f"{metric}_stderr")
    return f"{figures[metric]:.4f}" + ("" if error is None else f" ± {error:.4f}")


def more_figures(evaluation: dict[str, Any]) -> dict[str, str]:
    """What else was measured of the predictions, in words."""
    told: dict[str, str] = {}
    if (interval := evaluation["interval"]) is not None:
        low, high = interval["ratio"]
        told[f"{interval['level']:.0%} interval of the ratio"] = f"{low:.3f} to {high:.3f}"
    for unit in ("word", "byte"):
        values = [evaluation[which][f"{unit}_perplexity"] for which in ("dense", "pruned")]
        if None not in values:
            told[f"{unit} perplexity, dense and pruned"] = f"{values[0]:,.3f} and {values[1]:,.3f}"
    for name, text in evaluation["texts"].items():
        told[f"ratio on {name}"] = f"{text['ratio']:.3f}"
    if (divergence := evaluation["divergence"]) is not None:
        told["KL from dense"] = f"{divergence['kl']:.4f} nats a token"
        told["same most likely token"] = f"{divergence['top1_agreement']:.2%}"
        told["shared of the five most likely"] = f"{divergence['top5_overlap']:.2%}"
    for name, each in evaluation["overlap"].items():
        share = "not measured" if each["share"] is None else f"{each['share']:.2%} of its 13-grams"
        told[f"{name} text met in calibration"] = share
    for number, each in enumerate(evaluation["verdicts"], start=1):
        told[f"verdict {number}"] = f"{each['verdict']}: {each['told']}"
    return told


def _what_was_done(manifest: dict[str, Any], version: dict[str, Any], recovery: dict[str, Any]) -> str:
    base, calibration, engine = manifest["base"], manifest["calibration"], manifest["engine"]
    rows = [
        ["base", f"{_uri(base['uri'])}, {base['dtype']}, digest `{base['digest']}`"],
        ["calibration", f"{calibration['tokens']:,} tokens of {calibrated_on(calibration, _uri)}"],
        ["calibration digest", f"`{calibration['digest']}`"],
        ["masks", f"digest `{manifest['masks']['digest']}`"],
        *([["auto chose", told]] if (told := scores_told(manifest)) else []),
        ["kept weights", _kept(manifest)],
        *([] if not recovery["trained"] else [["trained", _trained(recovery)]]),
        ["computed", f"{engine['device']}, {engine['dtype']}, engine {engine['version']}"],
        ["versions", ", ".join(f"{package} {number}" for package, number in manifest["versions"].items())],
        ["commit", f"`{version['git']['commit']}`" if version["git"]["commit"] else "not in git"],
        ["signed with key", f"`{version['key']}`"],
    ]
    return _table(["", ""], rows)


def _kept(manifest: dict[str, Any]) -> str:
    updates = manifest["updates"]
    if updates is None:
        return "the base's, bit for bit"
    return f"re-fitted in {len(updates['tensors'])} matrices, digest `{updates['digest']}`"


def _trained(recovery: dict[str, Any]) -> str:
    updates, text = recovery["updates"], recovery["text"]
    changed = "nothing was changed" if updates is None else f"digest `{updates['digest']}`"
    source = f" of {calibrated_on(text, _uri)}" if text["drawn"] else " of the calibration"
    return f"{trained(recovery)}; {text['windows']} windows{source}; {changed}"


def gains(manifest: Mapping[str, Any], evaluation: dict[str, Any], version: dict[str, Any]) -> list[str]:
    """What is saved by what was removed, and what is not, a sentence or two each."""
    runs = [able for layer in manifest["layers"] for able in layer["runs_2_4"].values()]
    if any(runs):
        kernels = (
            f"Sparse tensor cores (2:4, NVIDIA Ampere and later) can run {sum(runs)} of {len(runs)} pruned matrices."
        )
    else:
        kernels = "No pruned matrix has the 2:4 groups along in_features that sparse tensor cores need."
    storage = (
        "It is registered as masks, which are a sixteenth of the MLP weights' size or less; the base is fetched once."
        if version["artifact"] == "masks"
        else "As a checkpoint it is as large as its base: the zeros are stored."
    )
    return [
        kernels,
        "Dense kernels multiply zeros like any other number: with them it is as fast as its base.",
        f"{storage} {evaluation['sparsity']['model']:.1%} of all weights are zero, and compress away.",
    ]


def _use(name: str, version: dict[str, Any]) -> str:
    uri = f"models:/{name}/{PLACE}"
    beside = (
        "MLflow's own loaders read the same files, and check neither signature nor ledger: "
        f'`mlflow.transformers.load_model("{uri}")`.\n\n'
        if version["artifact"] == "checkpoint"
        else ""
    )
    asked = '{"inputs": ["Once upon a time"], "params": {"max_new_tokens": 20}}'
    return (
        f'```python\nimport dass\n\nmodel = dass.load("{uri}")  # checked against the ledger\n```\n\n'
        f"{beside}"
        f"```sh\ndass verify {PLACE}            # files, ledger, weights = base times masks, pattern, configuration\n"
        f"dass verify {PLACE} --replay   # and prune again from the same data\n"
        f"mlflow models serve -m {uri} --env-manager local\n"
        f"curl localhost:5000/invocations -H 'Content-Type: application/json' -d '{asked}'\n```\n\n"
        "`params` of a request: `max_new_tokens`, `do_sample`, `temperature`."
        f"{NUMBER_SAID}"
    )


def numbered(text: str, name: str, number: str) -> str:
    """The card's text with the number that the registry gave the version: its file was signed before there was one."""
    text = text.replace(f"models:/{name}/{PLACE}", f"models:/{name}/{number}").replace(NUMBER_SAID, "")
    return text.replace(f"dass verify {PLACE}", f"dass verify {number}")


def _settings(settings: Settings) -> dict[str, Any]:
    return flat(
        settings.model_dump(
            mode="json", by_alias=True, include={"calibration", "prune", "recover", "engine", "evaluate"}
        )
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _uri(uri: str | list[str]) -> str:
    return f"`{uri if isinstance(uri, str) else f'{uri[0]} and {len(uri) - 1} more'}`"


def hub_id(uri: str | list[str]) -> str | None:
    """A source's name on the hub, where it has one."""
    if isinstance(uri, list) or "://" in uri or uri.startswith((".", "/", "~")) or uri.count("/") != 1:
        return None
    return uri.partition("@")[0]
