"""Proof of every file of a version that is neither weights nor masks, from its base and from its own manifest.

Beside the weights lies what pruning the base writes; MLflow's files say what `register` has them say; the records
agree with the manifest; and the model card is the one that follows from them.
"""

import re
from collections.abc import Callable, Mapping
from importlib.metadata import version as version_of
from itertools import product, zip_longest
from math import isclose
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import files_in, read_json, sha256_file
from dass.masks.beside import difference, differing_keys, prove_beside
from dass.masks.proof import ProofError
from dass.measures.perplexity import perplexity, perplexity_of
from dass.model.checkpoint_folder import CONFIG_FILE, INDEX_FILE, contents
from tasks.evaluation.verdicts import verdicts
from tasks.promotion.task_proof import check_tasks
from tasks.pruning.recovered import check_recovery_fits
from tasks.registry.bom import bill_of_materials
from tasks.registry.card import card
from tasks.registry.served import SIGNATURE as SERVED
from tasks.registry.signing import FROM_MLFLOW, SIGNATURE, signed_files
from tasks.registry.version_folder import (
    ANSWERS,
    BOM,
    CARD,
    CHECKPOINT,
    EVALUATION,
    FORMAT,
    LOADER,
    MANIFEST,
    MASKS,
    RECOVERED,
    RECOVERY,
    RUNS_WITH,
    SETTINGS,
    STATISTICS,
    TASKS,
    TOKENIZER,
    TOKENIZER_CLASS,
    UPDATES,
    VERSION,
    architecture_of,
    recovery_of,
    tasks_of,
)
from tasks.sources.calibrated_on import SELF, sources_of
from tasks.workspace.settings import validate_settings
from tasks.workspace.small_files import parse_yaml, read_small

_MLMODEL, _CONDA, _REQUIREMENTS, _PYTHON = "MLmodel", "conda.yaml", "requirements.txt", "python_env.yaml"
_RECORDS = {MANIFEST, MASKS, STATISTICS, EVALUATION, SETTINGS, VERSION, SIGNATURE, CARD, BOM}
_NUMBER = r"\d[0-9A-Za-z.]*"  # of a version; no place to fetch it from, and no second requirement
_RELATIVE = 1e-9  # what two machines' exp may differ by

# What an MLmodel says besides how the model is loaded: ids, times and sizes.
_PASSING = (
    *("artifact_path", "databricks_runtime", "mlflow_version", "model_id", "model_size_bytes", "model_uuid", "run_id"),
    "utc_time_created",
)


def check_configuration(folder: Path, base: Callable[[], Path]) -> str:
    """Prove every file of a version's folder but weights, masks and updates. Whose the signature is is not looked at.

    Args:
        folder: the version's.
        base: gives a folder with the base that the manifest names; called when the version has a checkpoint.

    Returns:
        What was found, in a few words.

    Raises:
        ProofError: names the first file that is not as it must be, and the key where it has keys.
        InputError: a record cannot be read; or as `base`.
    """
    manifest, version = read_json(folder / MANIFEST), read_json(folder / VERSION)
    evaluation, settings = read_json(folder / EVALUATION), read_json(folder / SETTINGS)
    _check_version(version)
    has_checkpoint = version["artifact"] == "checkpoint"
    asks = {TASKS, ANSWERS} if settings["evaluate"]["tasks"] else set()
    trained = {RECOVERY} if settings["recover"]["steps"] else set()
    beside = _check_checkpoint(folder, manifest, base()) if has_checkpoint else set()
    _check_names(folder, asks | trained | beside)
    _check_records(folder, manifest, evaluation, settings, version)
    _check_origin(folder, settings, version, has_checkpoint)
    if trained:
        _check_recovery(folder, manifest, settings)
    if asks:
        check_tasks(folder / TASKS, folder / ANSWERS, settings["evaluate"])
    _check_mlmodel(folder, settings, has_checkpoint)
    not_compared = _check_told(folder, manifest, evaluation, settings, version)
    told = (
        "config, tokenizer and templates are the base's, the rest" if has_checkpoint else "everything beside the masks"
    )
    return f"{told} is what was written for this manifest{not_compared}"


def _check_version(version: Mapping[str, Any]) -> None:
    checkpoint_of = {"checkpoint": CHECKPOINT, "masks": None}
    if version["format"] != FORMAT:
        raise ProofError(f"{VERSION}: format is {version['format']!r}, expected {FORMAT!r}.")
    if not isinstance(version["dass"], str):
        raise ProofError(f"{VERSION}: dass is {version['dass']!r}, expected the version that wrote it.")
    if version["artifact"] not in checkpoint_of or version["checkpoint"] != checkpoint_of[version["artifact"]]:
        raise ProofError(
            f"{VERSION}: artifact {version['artifact']!r} has its checkpoint in {version['checkpoint']!r}."
        )


def _check_checkpoint(folder: Path, manifest: Mapping[str, Any], base: Path) -> set[str]:
    """Compare the checkpoint's files with the base's, and the tokenizer that MLflow reads with the checkpoint's.

    Returns:
        Names of all their files in the version's folder.
    """
    signed, prefix = signed_files(folder / SIGNATURE), f"{CHECKPOINT}/"
    digests = {name.removeprefix(prefix): sha256 for name, sha256 in signed.items() if name.startswith(prefix)}
    how = manifest["settings"]["prune"], manifest["base"]["pruned"]
    try:
        names = prove_beside(base, folder / CHECKPOINT, digests, *how)
    except ProofError as error:
        raise ProofError(f"{prefix}{error}") from None
    found = contents(base)
    for name in found.beside:
        if not (folder / TOKENIZER / name).exists():
            raise ProofError(f"{TOKENIZER}/{name} is missing: the checkpoint has it.")
        if told := difference(folder / CHECKPOINT / name, folder / TOKENIZER / name):
            raise ProofError(f"{TOKENIZER}/{name} is not the checkpoint's: {told}.")
    weights = {name for name in found.weights if name != INDEX_FILE}
    return {f"{prefix}{name}" for name in {*names, *weights}} | {f"{TOKENIZER}/{name}" for name in found.beside}


def _check_names(folder: Path, more: set[str]) -> None:
    expected = {*_RECORDS, _MLMODEL, _CONDA, _REQUIREMENTS, _PYTHON, *more}
    of_values = (f"{UPDATES}/", f"{RECOVERED}/")  # compared where the weights are
    present = {name for name in files_in(folder) if name != FROM_MLFLOW and not name.startswith(of_values)}
    for name in sorted(expected ^ present):
        raise ProofError(f"{name} is " + ("missing: every such version has it." if name in expected else "extra."))


def _check_records(
    folder: Path,
    manifest: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    settings: Mapping[str, Any],
    version: Mapping[str, Any],
) -> None:
    """Statistics, evaluation and settings, as far as the manifest repeats them or they follow from each other."""
    if sha256_file(folder / STATISTICS) != manifest["statistics"]["sha256"]:
        raise ProofError(f"{STATISTICS} is not the file that the manifest names.")
    asked = {key: value for key, value in settings["prune"].items() if value is not None}  # None: the method's own
    named = manifest["settings"]["prune"]
    _same(SETTINGS, named, named | asked, "prune")
    _same(SETTINGS, manifest["calibration"]["settings"], settings["calibration"], "calibration")
    windows = settings["calibration"]
    texts = {"calibration": settings["sources"]["calibration"], **windows["texts"]}
    uris = {name: text["uri"] for name, text in texts.items()}
    if windows["source"] == SELF:
        uris["calibration"] = SELF
    _same(SETTINGS, manifest["base"]["uri"], settings["sources"]["model"]["uri"], "sources.model")
    made_from = sources_of(manifest["calibration"])
    _same(SETTINGS, {name: each["uri"] for name, each in made_from.items()}, uris, "sources")
    _same(SETTINGS, version["artifact"], settings["register"]["artifact"], "register.artifact")
    _same(SETTINGS, evaluation["context_length"], settings["evaluate"]["sequence_length"], "evaluate.sequence_length")
    _same(EVALUATION, manifest["sparsity"], evaluation["mask_sparsity"], "mask_sparsity")
    _check_ratio("", evaluation)
    _check_measures(evaluation, settings["evaluate"])


def _check_origin(folder: Path, settings: Mapping[str, Any], version: Mapping[str, Any], has_checkpoint: bool) -> None:
    """What version.json says of weights, architecture and held-out texts, as far as other files say it too."""
    texts = {"evaluation": settings["sources"]["evaluation"], **settings["evaluate"]["texts"]}
    said = version["evaluated_on"]
    uris = {name: each["uri"] for name, each in said.items()}
    _same(VERSION, {name: text["uri"] for name, text in texts.items()}, uris, "evaluated_on")
    for name, text in texts.items():
        if text["sha256"] is not None:
            _same(VERSION, text["sha256"], said[name]["sha256"], f"evaluated_on.{name}.sha256")
    if has_checkpoint:
        signed = signed_files(folder / SIGNATURE)
        weights = {name: signed.get(f"{CHECKPOINT}/{name}") for name in contents(folder / CHECKPOINT).weights}
        weights = {name: sha256 for name, sha256 in weights.items() if name.endswith(".safetensors")}
        _same(VERSION, weights, version["weights"], "weights")
        _same(VERSION, architecture_of(folder / CHECKPOINT), version["architecture"], "architecture")


def _check_recovery(folder: Path, manifest: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """What the record of recovery says, as far as it follows from settings, manifest and its own history."""
    recovery, asked = recovery_of(folder), settings["recover"]
    try:
        check_recovery_fits(recovery, manifest, folder / RECOVERY)
    except InputError as error:
        raise ProofError(str(error)) from None
    said = recovery["settings"]
    _same(RECOVERY, said, {key: asked[key] for key in said}, "settings")
    looked = {entry["step"]: entry["held_back"] for entry in recovery["history"] if "held_back" in entry}
    last = recovery["history"][-1]["step"]
    best = min(looked, key=lambda step: (looked[step], step)) if looked else last
    _same(RECOVERY, {"steps": last, "best_step": best}, {key: recovery[key] for key in ("steps", "best_step")})
    text = recovery["text"]
    _same(RECOVERY, text["windows"] * text["sequence_length"], text["tokens"], "text.tokens")
    if not text["drawn"]:
        _same(RECOVERY, manifest["calibration"]["digest"], text["digest"], "text.digest")


def _check_measures(evaluation: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Everything of an evaluation that follows from what stands beside it."""
    _same(EVALUATION, sorted(asked["texts"]), sorted(evaluation["texts"]), "texts")
    _check_predictions("", evaluation)
    for name, text in evaluation["texts"].items():
        _check_ratio(f"texts.{name}.", text)
        _check_predictions(f"texts.{name}.", text)
    _same(EVALUATION, sorted(["evaluation", *evaluation["texts"]]), sorted(evaluation["overlap"]), "overlap")
    _same(EVALUATION, verdicts(evaluation, asked["samples"]), evaluation["verdicts"], "verdicts")


def _check_ratio(where: str, text: Mapping[str, Any]) -> None:
    for which in ("dense", "pruned"):
        measured = text[which]
        _close(f"{where}{which}.perplexity", perplexity(measured["mean_loss"]), measured["perplexity"])
    _close(f"{where}ratio", text["pruned"]["perplexity"] / text["dense"]["perplexity"], text["ratio"])


def _check_predictions(where: str, text: Mapping[str, Any]) -> None:
    for which, unit in product(("dense", "pruned"), ("word", "byte")):
        expected = perplexity_of(text[which]["mean_loss"], text["tokens"], text[f"{unit}s"])
        _close(f"{where}{which}.{unit}_perplexity", expected, text[which][f"{unit}_perplexity"])
    divergence = text["divergence"]
    for bands in () if divergence is None else ("by_position", "by_frequency"):
        _same(EVALUATION, divergence["tokens"], sum(band["tokens"] for band in divergence[bands]), f"{where}{bands}")
        for key in ("kl", "top1_agreement", "top5_overlap"):
            mean = sum(band["tokens"] * band[key] for band in divergence[bands]) / divergence["tokens"]
            _close(f"{where}divergence.{key}", mean, divergence[key])


def _same(file: str, expected: Any, found: Any, where: str = "") -> None:
    for told in differing_keys(expected, found, where):
        raise ProofError(f"{file}: {told}.")


def _close(what: str, expected: float | None, found: float | None) -> None:
    if expected is None or found is None:
        follows = expected is found
    else:
        follows = isclose(expected, found, rel_tol=_RELATIVE, abs_tol=_RELATIVE)
    if not follows:
        raise ProofError(f"{EVALUATION}: {what} is {found!r}, and follows as {expected!r} from what stands beside it.")


def _check_mlmodel(folder: Path, settings: Mapping[str, Any], has_checkpoint: bool) -> None:
    """What MLflow loads, with which code and in which environment."""
    versions = _check_environment(folder)
    expected: dict[str, Any] = {
        "flavors": _flavors(folder, settings, versions, has_checkpoint),
        "prompts": None,
        "signature": SERVED,
        "is_signature_from_type_hint": False,
        "type_hint_from_example": False,
    }
    found = _yaml(folder, _MLMODEL)
    for key in _PASSING:
        if isinstance(found.get(key), dict | list):
            raise ProofError(f"{_MLMODEL}: {key} holds several values, expected one.")
    _same(_MLMODEL, expected, {key: value for key, value in found.items() if key not in _PASSING})
    if found.get("mlflow_version") != versions["mlflow"]:
        raise ProofError(f"{_MLMODEL}: mlflow_version is not the {versions['mlflow']} of {_REQUIREMENTS}.")


def _flavors(
    folder: Path, settings: Mapping[str, Any], versions: Mapping[str, str], has_checkpoint: bool
) -> dict[str, Any]:
    function: dict[str, Any] = {
        "env": {"conda": _CONDA, "virtualenv": _PYTHON},
        "loader_module": "mlflow.transformers" if has_checkpoint else LOADER,
        "python_version": versions["python"],
    }
    if not has_checkpoint:
        return {"python_function": {**function, "code": None, "streamable": False}}
    transformers = {
        "code": None,
        "components": ["tokenizer"],
        "instance_type": "TextGenerationPipeline",
        "model_binary": CHECKPOINT,
        "pipeline_model_type": read_json(folder / CHECKPOINT / CONFIG_FILE)["architectures"][0],
        "source_model_name": settings["register"]["model"],
        "task": "text-generation",
        "tokenizer_type": TOKENIZER_CLASS,
        "torch_dtype": None,
        "transformers_version": versions["transformers"],
    }
    return {"python_function": function, "transformers": transformers}


def _check_environment(folder: Path) -> dict[str, str]:
    """Whether the files that an environment is made from ask for our packages by version, and for nothing else.

    Returns:
        Package -> version, with "python".
    """
    lines = read_small(folder / _REQUIREMENTS).split("\n")
    wanted = ["mlflow", *RUNS_WITH]
    for name, line in zip_longest(wanted, lines):
        if name is None or line is None or not re.fullmatch(rf"{name}=={_NUMBER}", line):
            raise ProofError(f"{_REQUIREMENTS} says {line!r}, expected {f'{name}==' if name else 'nothing more'}.")
    python = str(_yaml(folder, _PYTHON).get("python"))
    if not re.fullmatch(_NUMBER, python):
        raise ProofError(f"{_PYTHON}: python is {python!r}, expected a version.")
    _same(_PYTHON, {"python": python, "dependencies": [f"-r {_REQUIREMENTS}"]}, _without_builders(folder))
    pip = f"(pip(<={_NUMBER})?)"
    conda = _yaml(folder, _CONDA)
    asked = conda.get("dependencies")
    named = asked[1] if isinstance(asked, list) and len(asked) == 3 else None
    if not isinstance(named, str) or not re.fullmatch(pip, named):
        raise ProofError(f"{_CONDA}: dependencies are {asked!r:.80}, expected python, pip and {_REQUIREMENTS}'s.")
    dependencies = [f"python={python}", named, {"pip": lines}]
    _same(_CONDA, {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": dependencies}, conda)
    return {"python": python, **dict(line.split("==") for line in lines)}


def _without_builders(folder: Path) -> dict[str, Any]:
    """python_env.yaml without the packages that others are built with, once those are found to be no others."""
    values = _yaml(folder, _PYTHON)
    for each in values.pop("build_dependencies", []):
        if not re.fullmatch(rf"(pip|setuptools|wheel)(=={_NUMBER})?", str(each)):
            raise ProofError(f"{_PYTHON}: build_dependencies has {each!r:.80}, expected pip, setuptools or wheel.")
    return values


def _yaml(folder: Path, name: str) -> dict[str, Any]:
    values = parse_yaml(read_small(folder / name), name)
    if not isinstance(values, dict):
        raise ProofError(f"{name} holds no keys.")
    return values


def _check_told(
    folder: Path,
    manifest: dict[str, Any],
    evaluation: dict[str, Any],
    settings: dict[str, Any],
    version: dict[str, Any],
) -> str:
    """Compare model card and bill of materials with those made again. Another release may word them differently: then
    that is told."""
    made_by, here = version["dass"], version_of("dass")
    if made_by != here:
        return f"; {CARD} was written by dass {made_by}, and this is {here}: not compared"
    tasks, recovery = tasks_of(folder), recovery_of(folder)
    _check_card(folder, card(manifest, evaluation, tasks, validate_settings(settings, SETTINGS), version, recovery))
    bom = bill_of_materials(manifest, evaluation, tasks, settings, version, recovery)
    _same(BOM, bom, read_json(folder / BOM))
    return ""


def _check_card(folder: Path, expected: str) -> None:
    text = read_small(folder / CARD)
    for number, (ours, theirs) in enumerate(zip_longest(expected.split("\n"), text.split("\n")), start=1):
        if ours != theirs:
            told = "missing" if theirs is None else repr(theirs[:80])
            raise ProofError(
                f"{CARD} line {number} is {told}, expected {'no more' if ours is None else repr(ours[:80])}."
            )
    if (folder / CARD).read_bytes() != expected.encode():
        raise ProofError(f"{CARD} has the expected lines with other line ends.")
