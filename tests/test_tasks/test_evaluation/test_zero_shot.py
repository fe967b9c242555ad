"""Zero-shot tasks on tiny models: lm_eval's own figures, answers by document, and what a killed evaluation leaves."""

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dass.errors import InputError, NumericalError
from dass.files import read_json, write_json
from dass.masks.proof import ProofError
from dass.model.pretrained import load_model
from tasks.calibration import cache_windows
from tasks.evaluation import zero_shot
from tasks.evaluation.answers import read_answers
from tasks.evaluation.paired import difference
from tasks.evaluation.request_log import RequestLog
from tasks.evaluation.zero_shot import evaluate_tasks
from tasks.promotion.task_proof import check_tasks
from tasks.sources.task_definitions import single_tasks
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings
from tests.hub import COMMIT, hub
from tests.task_documents import (
    arc_documents,
    gsm8k_documents,
    mmlu_documents,
    piqa_documents,
    write_documents,
    write_task_files,
)
from tests.workspaces import change_settings

METRICS = ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache of a test's own."""
    monkeypatch.setenv("DASS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def asked(finished: Workspace, cache: Path) -> tuple[Workspace, Settings]:
    """A workspace whose settings ask two tasks."""
    files = write_task_files(finished.root)
    return finished, change_settings(finished, evaluate__tasks=list(files), evaluate__task_files=files)


def forget(cache: Path) -> None:
    shutil.rmtree(cache / "answers", ignore_errors=True)


def result(ws: Workspace) -> dict[str, Any]:
    record: dict[str, Any] = read_json(ws.metrics / "tasks.json")
    return record


def test_without_a_task_the_outputs_are_there_and_say_so(finished: Workspace, settings: Settings) -> None:
    before = (finished.answers / "answers.parquet").read_bytes()
    evaluate_tasks(finished, settings)
    assert result(finished) == {"tasks": {}}
    assert list(read_answers(finished.answers / "answers.parquet")) == []
    assert (finished.answers / "answers.parquet").read_bytes() == before


def test_figures_are_those_of_the_answers_and_of_every_document(asked: tuple[Workspace, Settings]) -> None:
    ws, settings = asked
    evaluate_tasks(ws, settings)
    record, rows = result(ws), list(read_answers(ws.answers / "answers.parquet"))
    assert list(record["tasks"]) == ["arc_easy", "piqa"]
    assert [(row.task, row.doc) for row in rows] == [(task, doc) for task in ("arc_easy", "piqa") for doc in range(12)]
    assert [row.target for row in rows] == [0, 1, 2, 3] * 3 + [0, 1] * 6
    assert rows[1].choices == arc_documents()[1]["choices"]["text"]
    assert {name: each["share"] for name, each in record["overlap"].items()} == {"arc_easy": 0.0, "piqa": 0.0}
    assert all(each["grams"] > 12 for each in record["overlap"].values())
    for name, entry in record["tasks"].items():
        its = [row for row in rows if row.task == name]
        for which in ("dense", "pruned"):
            answers = [getattr(row, which) for row in its]
            right = [answer.choice == row.target for row, answer in zip(its, answers, strict=True)]
            assert entry[which]["acc"] == sum(right) / 12
            assert all(
                len(answer.log_likelihoods) == len(row.choices) for row, answer in zip(its, answers, strict=True)
            )
            assert entry[which]["acc_stderr"] == pytest.approx(
                math.sqrt(entry[which]["acc"] * (1 - entry[which]["acc"]) / 11)
            )
        between = entry["difference"]["acc"]
        assert between["value"] == pytest.approx(entry["pruned"]["acc"] - entry["dense"]["acc"])
        assert between["lost"] == sum(row.right == (True, False) for row in its)
        assert between["gained"] == sum(row.right == (False, True) for row in its)
    assert record["mean"]["pruned"] == pytest.approx(
        sum(each["pruned"]["acc"] for each in record["tasks"].values()) / 2
    )


def test_documents_that_were_calibrated_on_are_found(asked: tuple[Workspace, Settings]) -> None:
    ws, settings = asked
    (ws.root / "text.txt").write_text(
        "".join(f"{each['goal']} {each['sol1']} {each['sol2']}" for each in piqa_documents())
    )
    settings = change_settings(
        ws,
        calibration__samples=1,
        evaluate__tasks=settings.evaluate.tasks,
        evaluate__task_files=settings.evaluate.task_files,
    )
    cache_windows(ws, settings)
    evaluate_tasks(ws, settings)
    assert result(ws)["overlap"]["piqa"]["share"] > 0


def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which checkpoints are loaded from now on."""
    loaded: list[Path] = []

    def load(folder: Path, dtype: torch.dtype) -> Any:
        loaded.append(folder)
        return load_model(folder, dtype)

    monkeypatch.setattr(zero_shot, "load_model", load)
    return loaded


def writes(monkeypatch: pytest.MonkeyPatch, dies_at: int | None = None) -> list[list[str]]:
    """The requests of every batch that is written down from now on; at batch `dies_at` it is interrupted."""
    written, add = list[list[str]](), RequestLog.add

    def note(log: RequestLog, batch: list[tuple[str, Any]]) -> None:
        if len(written) == dies_at:
            raise KeyboardInterrupt
        written.append([key for key, _ in batch])
        add(log, batch)

    monkeypatch.setattr(RequestLog, "add", note)
    return written


def test_a_second_evaluation_asks_the_dense_model_nothing(
    asked: tuple[Workspace, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, settings = asked
    settings = change_settings(ws, **_evaluate(settings, tasks=["piqa"], limit=3))
    evaluate_tasks(ws, settings)
    first, loaded = (ws.metrics / "tasks.json").read_bytes(), loads(monkeypatch)
    evaluate_tasks(ws, settings)
    assert loaded == [ws.pruned]
    assert (ws.metrics / "tasks.json").read_bytes() == first
    other = change_settings(ws, **_evaluate(settings, limit=2))  # another question: nothing is kept for it
    evaluate_tasks(ws, other)
    assert loaded == [ws.pruned, ws.base, ws.pruned]
    assert result(ws)["tasks"]["piqa"]["documents"] == 2


def _evaluate(settings: Settings, **changes: Any) -> dict[str, Any]:
    kept = {"tasks": settings.evaluate.tasks, "task_files": settings.evaluate.task_files}
    return {f"evaluate__{key}": value for key, value in {**kept, **changes}.items()}


def test_a_task_has_the_same_figures_whatever_else_is_asked(asked: tuple[Workspace, Settings], cache: Path) -> None:
    ws, settings = asked
    evaluate_tasks(ws, change_settings(ws, **_evaluate(settings, limit=3)))
    both = result(ws)["tasks"]["piqa"]
    forget(cache)
    evaluate_tasks(ws, change_settings(ws, **_evaluate(settings, tasks=["piqa"], limit=3)))
    assert result(ws)["tasks"] == {"piqa": both}


def test_parquet_and_compressed_lines_are_the_same_documents(asked: tuple[Workspace, Settings], cache: Path) -> None:
    import gzip

    import pyarrow
    import pyarrow.parquet

    ws, settings = asked
    evaluate_tasks(ws, change_settings(ws, **_evaluate(settings, limit=3)))
    figures = result(ws)["tasks"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(piqa_documents()), ws.root / "piqa.parquet")
    packed = gzip.compress((ws.root / "arc_easy.jsonl").read_bytes())
    (ws.root / "arc.jsonl.gz").write_bytes(packed)
    files = {"arc_easy": "arc.jsonl.gz", "piqa": "piqa.parquet"}
    evaluate_tasks(ws, change_settings(ws, **_evaluate(settings, task_files=files, limit=3)))
    for name, entry in result(ws)["tasks"].items():
        assert {which: entry[which] for which in ("dense", "pruned")} == {
            which: figures[name][which] for which in ("dense", "pruned")
        }


def test_examples_come_from_the_split_that_is_given_for_them(asked: tuple[Workspace, Settings]) -> None:
    ws, settings = asked
    examples = write_documents(ws.root / "examples.jsonl", piqa_documents()[:4])
    files = {"piqa": {"validation": str(ws.root / "piqa.jsonl"), "train": str(examples)}}
    shots = _evaluate(settings, tasks=["piqa"], task_files=files, num_fewshot=1, limit=2)
    evaluate_tasks(ws, change_settings(ws, **shots))
    entry = result(ws)["tasks"]["piqa"]
    assert entry["num_fewshot"] == 1
    assert list(entry["data"]) == ["validation", "train"]
    with pytest.raises(InputError, match="the split train of piqa has 4 documents. Use fewer"):
        evaluate_tasks(ws, change_settings(ws, **{**shots, "evaluate__num_fewshot": 5}))


def test_documents_of_the_hub_give_the_figures_of_the_same_file(
    asked: tuple[Workspace, Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, settings = asked
    one = _evaluate(settings, tasks=["arc_easy"], task_files={"arc_easy": str(ws.root / "arc_easy.jsonl")})
    evaluate_tasks(ws, change_settings(ws, **one))
    from_file = result(ws)["tasks"]["arc_easy"]
    splits = ("train", "validation", "test")
    listed = "".join(f"  - {{split: {split}, path: {split}.jsonl}}\n" for split in splits)
    files = {f"{split}.jsonl": (ws.root / "arc_easy.jsonl").read_bytes() for split in splits}
    files["README.md"] = f"---\nconfigs:\n- config_name: ARC-Easy\n  data_files:\n{listed}---\n".encode()
    with hub("allenai/ai2_arc", files, monkeypatch):
        evaluate_tasks(ws, change_settings(ws, **{**one, "evaluate__task_files": {}}))
    entry = result(ws)["tasks"]["arc_easy"]
    assert entry.pop("data") == {"hub": COMMIT}
    assert entry == {key: value for key, value in from_file.items() if key != "data"}


def test_a_model_that_computes_nan_is_no_result(asked: tuple[Workspace, Settings]) -> None:
    from safetensors.torch import load_file, save_file

    ws, settings = asked
    weights = load_file(ws.pruned / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * float("nan")
    (ws.pruned / "model.safetensors").unlink()
    save_file(weights, ws.pruned / "model.safetensors", {"format": "pt"})
    with pytest.raises(NumericalError, match="pruned arc_easy: the model computes NaN"):
        evaluate_tasks(ws, settings)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "more than there is": ({"limit": 13}, "evaluate.limit is 13: arc_easy has 12 documents. Use at most that"),
    "a split that is not there": (
        {"num_fewshot": 2},
        "the 2 examples of arc_easy come from its split train, and there is test. Give it",
    ),
    "a split of another name": (
        {"task_files": {"arc_easy": {"tset": "arc_easy.jsonl"}, "piqa": "piqa.jsonl"}},
        "arc_easy has no split 'tset': expected train, validation, test",
    ),
    "no file": ({"task_files": {"arc_easy": "none.jsonl", "piqa": "piqa.jsonl"}}, "There is no .*none.jsonl"),
    "no network": ({"tasks": ["arc_challenge"]}, "HF_HUB_OFFLINE is set"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_asked_is_refused(case: str, asked: tuple[Workspace, Settings]) -> None:
    ws, settings = asked
    changes, told = BAD[case]
    with pytest.raises(InputError, match=told):
        evaluate_tasks(ws, change_settings(ws, **_evaluate(settings, **changes)))


DAMAGED: dict[str, tuple[int, dict[str, Any] | None, str]] = {
    "no field": (3, {"goal": "Boil water", "sol1": "Heat it.", "label": 0}, "piqa.jsonl line 4 has no field 'sol2'"),
    "null": (3, {"goal": None, "sol1": "a", "sol2": "b", "label": 0}, "line 4 has null for field 'goal'"),
    "no choice": (5, {"goal": "a", "sol1": "b", "sol2": "c", "label": 2}, "line 6.* has the answer 2, none of its 2"),
    "another kind": (
        5,
        {"goal": "a", "sol1": "b", "sol2": ["c"], "label": 1},
        "piqa.jsonl cannot be documents of piqa",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_document_that_cannot_be_read_is_named_by_its_line(case: str, asked: tuple[Workspace, Settings]) -> None:
    ws, settings = asked
    index, document, told = DAMAGED[case]
    documents: list[Any] = piqa_documents()
    documents[index] = document
    write_documents(ws.root / "piqa.jsonl", documents)
    with pytest.raises(InputError, match=told):
        evaluate_tasks(ws, change_settings(ws, **_evaluate(settings)))


def test_a_file_that_changed_since_it_was_pinned_is_refused(asked: tuple[Workspace, Settings]) -> None:
    ws, settings = asked
    write_documents(ws.root / "piqa.jsonl", piqa_documents()[:5])
    with pytest.raises(InputError, match="it changed since"):
        evaluate_tasks(ws, settings)


def test_a_nested_field_is_named_as_lm_eval_misses_it(asked: tuple[Workspace, Settings]) -> None:
    ws, settings = asked
    documents = arc_documents()
    documents[7]["choices"] = {"text": documents[7]["choices"]["text"], "label": ["1", "2", "3", "4"]}
    write_documents(ws.root / "arc_easy.jsonl", documents)
    with pytest.raises(
        InputError, match="arc_easy.jsonl line 8.* cannot be read .* reads question, choices, answerKey"
    ):
        evaluate_tasks(ws, change_settings(ws, **_evaluate(settings)))


def test_a_tokenizer_without_end_or_beginning_is_refused(asked: tuple[Workspace, Settings]) -> None:
    ws, settings = asked
    path = ws.base / "tokenizer_config.json"
    path.write_text(json.dumps({**read_json(path), "bos_token": None, "eos_token": None}))
    with pytest.raises(InputError, match="names neither a BOS nor an EOS token"):
        evaluate_tasks(ws, settings)


def test_an_evaluation_goes_on_behind_its_last_finished_batch(
    asked: tuple[Workspace, Settings], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, settings = asked
    settings = change_settings(ws, **_evaluate(settings, tasks=["piqa"], batch_size=4))
    evaluate_tasks(ws, settings)
    whole, answers = (ws.metrics / "tasks.json").read_bytes(), (ws.answers / "answers.parquet").read_bytes()
    forget(cache)
    with pytest.MonkeyPatch.context() as patch:
        before = writes(patch, dies_at=8)
        with pytest.raises(KeyboardInterrupt):
            evaluate_tasks(ws, settings)
    after = writes(monkeypatch)
    evaluate_tasks(ws, settings)
    assert (ws.metrics / "tasks.json").read_bytes() == whole
    assert (ws.answers / "answers.parquet").read_bytes() == answers
    assert len(before) + len(after) == 12  # of 2 models, 24 requests in batches of 4: none twice
    assert len(before) == 8


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log.jsonl")
    log.add([("a", [-1.5, True]), ("b", [-2.0, False])])
    log.add([("a", [-1.5, True])])
    with log.path.open("ab") as file:
        file.write(b'[["c", [-1.0, tr')
    again = RequestLog(log.path)
    assert (again.batches, again.take("c")) == (2, None)
    assert [again.take("a"), again.take("a"), again.take("a")] == [[-1.5, True], [-1.5, True], None]
    again.add([("c", [-1.0, True])])
    assert RequestLog(log.path).take("c") == [-1.0, True]


def test_the_difference_is_paired() -> None:
    between = difference([1.0] * 30 + [0.0] * 10, [1.0] * 24 + [0.0] * 6 + [1.0] * 2 + [0.0] * 8, seed=1)
    assert (between.lost, between.gained) == (6, 2)
    assert between.value == pytest.approx(-0.1)
    assert between.mcnemar_p == pytest.approx(2 * sum(math.comb(8, k) for k in range(3)) / 2**8)
    assert between.interval[0] < -0.1 < between.interval[1]
    same = difference([1.0, 0.0], [1.0, 0.0], seed=1)
    assert (same.value, same.interval, same.mcnemar_p) == (0.0, (0.0, 0.0), 1.0)


def lm_eval_command(
    ws: Workspace, checkpoint: Path, name: str, include: Path, out: Path, *options: str
) -> dict[str, float]:
    """The figures that lm_eval's own command prints for a task or group, from its own reading of the same files."""
    arguments = f"pretrained={checkpoint},dtype=float32,trust_remote_code=False"
    command = ["run", "--model", "hf", "--model_args", arguments, "--device", "cpu", "--tasks", name]
    where = ["--include_path", str(include), "--output_path", str(out)]
    subprocess.run(
        [sys.executable, "-m", "lm_eval", *command, *where, *options], check=True, capture_output=True, cwd=ws.root
    )
    results: dict[str, Any] = read_json(next(out.rglob("results_*.json")))["results"][name]
    found = {}
    for key, value in results.items():
        metric, comma, filter_ = key.partition(",")
        if comma and isinstance(value, float):
            base, error, _ = metric.partition("_stderr")
            found[metric if filter_ == "none" else f"{base}-{filter_}{error}"] = value
    return found


def include_for(folder: Path, name: str, file: Path) -> None:
    """A definition for lm_eval's command: its own of `name`, called `name`_file, with the documents of `file`."""
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    folder_of_all = Path(lm_eval.tasks.__file__).parent
    read = ((path, load_yaml(path, resolve_func=False)) for path in folder_of_all.rglob(f"{name}.yaml"))
    definition, config = next((path, found) for path, found in read if found.get("task") == name)  # others share names
    asked = config.get("test_split") or config["validation_split"]
    others = {config.get(key) for key in ("training_split", "validation_split", "fewshot_split")} - {None, asked}
    keys = [key for key in ("training_split", "validation_split", "fewshot_split") if config.get(key) in others]
    lines = [f"include: {definition}", f"task: {name}_file", "dataset_path: json", "dataset_name: null", "tag: null"]
    lines += [f"dataset_kwargs: {{data_files: {{{asked}: {file}}}}}", *(f"{key}: null" for key in keys)]
    folder.mkdir(exist_ok=True)
    (folder / f"{name}_file.yaml").write_text("\n".join(lines) + "\n")


def test_a_task_that_writes_more_than_the_context_is_refused(asked: tuple[Workspace, Settings]) -> None:
    ws, settings = asked
    write_documents(ws.root / "gsm8k.jsonl", gsm8k_documents())
    how = {"tasks": ["gsm8k"], "task_files": {"gsm8k": str(ws.root / "gsm8k.jsonl")}, "limit": 2, "num_fewshot": 0}
    with pytest.raises(InputError, match=r"gsm8k lets a model write 256 tokens, and its context is 128"):
        evaluate_tasks(ws, change_settings(ws, **_evaluate(settings, **how)))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["arc_easy", "piqa", "gsm8k"])
def test_figures_are_those_of_lm_evals_own_command_to_the_last_digit(
    task: str, asked: tuple[Workspace, Settings], tmp_path: Path
) -> None:
    ws, settings = asked
    write_documents(ws.root / "gsm8k.jsonl", gsm8k_documents())
    if task == "gsm8k":  # which lets a model write 256 tokens
        for folder in (ws.base, ws.pruned):
            write_json(folder / "config.json", read_json(folder / "config.json") | {"max_position_embeddings": 1024})
    how = {"tasks": [task], "task_files": {task: str(ws.root / f"{task}.jsonl")}, "batch_size": 4, "limit": 5}
    evaluate_tasks(ws, change_settings(ws, **_evaluate(settings, **how, num_fewshot=0)))
    include_for(tmp_path / "include", task, ws.root / f"{task}.jsonl")
    options = ["--batch_size", "4", "--limit", "5", "--num_fewshot", "0", "--seed", "1234"]
    for which, checkpoint in (("dense", ws.base), ("pruned", ws.pruned)):
        theirs = lm_eval_command(ws, checkpoint, f"{task}_file", tmp_path / "include", tmp_path / which, *options)
        assert theirs
        assert result(ws)["tasks"][task][which] == theirs


@pytest.mark.slow
def test_a_group_s_figures_are_those_of_lm_evals_own_command(asked: tuple[Workspace, Settings], tmp_path: Path) -> None:
    ws, settings = asked
    include, files = tmp_path / "include", {}
    for number, name in enumerate(single_tasks(["mmlu_stem"])):
        file = write_documents(ws.root / f"{name}.jsonl", mmlu_documents()[: 2 + number % 3])
        include_for(include, name, file)
        files[name] = str(file)
    group = [*("group: stem_file", "task:"), *(f"- {name}_file" for name in files)]
    group += ["aggregate_metric_list:", "- {metric: acc, weight_by_size: true}"]
    (include / "stem_file.yaml").write_text("\n".join(group) + "\n")
    how = {"tasks": ["mmlu_stem"], "task_files": files, "batch_size": 4, "num_fewshot": 0}
    settings = change_settings(ws, **_evaluate(settings, **how))
    evaluate_tasks(ws, settings)
    found = result(ws)["groups"]["mmlu_stem"]
    assert len(found["tasks"]) == len(files) > 10
    for which, checkpoint in (("dense", ws.base), ("pruned", ws.pruned)):
        options = ["--batch_size", "4", "--num_fewshot", "0", "--seed", "1234"]
        assert found[which] == lm_eval_command(ws, checkpoint, "stem_file", include, tmp_path / which, *options)
    proof = ws.metrics / "tasks.json", ws.answers / "answers.parquet", settings.evaluate.model_dump()
    check_tasks(*proof)
    record = result(ws)
    record["groups"]["mmlu_stem"]["difference"]["acc"]["value"] += 0.01
    proof[0].write_text(json.dumps(record))
    with pytest.raises(ProofError, match=r"mmlu_stem\.difference\.acc\.value is .* and follows as"):
        check_tasks(*proof)


CHILD = """
import sys, time
from pathlib import Path
from tasks.evaluation.request_log import RequestLog
from tasks.evaluation.zero_shot import evaluate_tasks
from tasks.sources.task_definitions import single_tasks
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import load_settings

add = RequestLog.add
RequestLog.add = lambda log, batch: (add(log, batch), time.sleep(0.05))
ws = Workspace(Path(sys.argv[1]))
evaluate_tasks(ws, load_settings(ws.params))
"""


def lines_of(ws: Workspace) -> dict[str, list[bytes]]:
    return {path.name: path.read_bytes().splitlines() for path in (ws.private / "tasks").glob("*.jsonl")}


@pytest.mark.slow
def test_a_process_killed_in_the_middle_repeats_no_finished_batch(
    asked: tuple[Workspace, Settings], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, settings = asked
    settings = change_settings(ws, **_evaluate(settings, batch_size=2))
    evaluate_tasks(ws, settings)
    whole, answers = (ws.metrics / "tasks.json").read_bytes(), (ws.answers / "answers.parquet").read_bytes()
    forget(cache)
    with subprocess.Popen([sys.executable, "-c", CHILD, str(ws.root)], cwd=Path(__file__).parents[3]) as process:
        deadline = time.monotonic() + 120
        while sum(map(len, lines_of(ws).values())) < 12 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    before = lines_of(ws)
    assert sum(map(len, before.values())) >= 12
    after = writes(monkeypatch)
    evaluate_tasks(ws, settings)
    assert (ws.metrics / "tasks.json").read_bytes() == whole
    assert (ws.answers / "answers.parquet").read_bytes() == answers
    done = sum(len(json.loads(line)) for lines in before.values() for line in lines)
    assert sum(map(len, after)) == 2 * (48 + 24) - done
