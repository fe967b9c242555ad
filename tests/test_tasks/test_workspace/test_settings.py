"""params.yaml: what is taken and what is refused, in one line that says what to do."""

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from dass.errors import InputError
from tasks.workspace.settings import Settings, load_settings, validate_settings

SHIPPED = Path(__file__).parents[3] / "params.yaml"


def changed(key: str, value: Any) -> dict[str, Any]:
    values: dict[str, Any] = copy.deepcopy(YAML(typ="safe", pure=True).load(SHIPPED.read_text(encoding="utf-8")))
    section, name = key.rsplit(".", 1)
    target = values
    for part in section.split("."):
        target = target[part]
    target[name] = value
    return values


def refusal(key: str, value: Any) -> str:
    with pytest.raises(InputError) as error:
        validate_settings(changed(key, value), "params.yaml")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_shipped_file_is_valid() -> None:
    settings = load_settings(SHIPPED)
    assert settings.prune.method == "dass"
    assert settings.sources.dtype == "auto"


def test_every_setting_has_a_line_in_the_shipped_file() -> None:
    values = YAML(typ="safe", pure=True).load(SHIPPED.read_text(encoding="utf-8"))
    assert list(values) == [field.alias or name for name, field in Settings.model_fields.items()]
    for name, field in Settings.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseModel)
        assert list(values[field.alias or name]) == list(field.annotation.model_fields)


def test_settings_are_frozen() -> None:
    settings = load_settings(SHIPPED)
    with pytest.raises(ValueError, match="frozen"):
        settings.prune.alpha = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("engine.nodes", 2, "nodes is 2 without rdzv_endpoint: expected HOST:PORT of the machine where dass run works"),
        ("engine.rdzv_endpoint", "node0", "rdzv_endpoint is 'node0': expected HOST:PORT, for example node0:29500"),
        ("engine.rdzv_endpoint", "node0:99999", "rdzv_endpoint is 'node0:99999': expected HOST:PORT"),
        ("prune.methd", "dass", "prune.methd: unknown key. Expected one of method, pattern, sparsity, alpha"),
        ("prune.method", "obs", "prune.method is 'obs': expected 'dass', 'wanda', 'magnitude', 'sparsegpt' or 'auto'"),
        ("prune.auto_budget", -1, "auto_budget is -1: expected 0 or more changes of a layer"),
        ("prune.auto_windows", 0, "auto_windows is 0: expected 1 or more windows"),
        ("prune.pattern", "4:2", "pattern is '4:2'"),
        ("prune.pattern", "a:b", "pattern is 'a:b'"),
        ("prune.sparsity", 0, "sparsity is 0.0: expected a share between 0 and 1"),
        ("prune.sparsity", 1, "between 0 and 1"),
        ("prune.sparsity", 1.5, "between 0 and 1"),
        ("prune.sparsity", math.nan, "between 0 and 1"),
        ("prune.sparsity", "half", "prune.sparsity is 'half': expected a valid number"),
        ("prune.alpha", -1, "prune.alpha is -1"),
        ("prune.alpha", math.inf, "prune.alpha is inf: expected a finite number"),
        ("calibration.samples", 0, "calibration.samples is 0: expected greater than 0"),
        ("calibration.samples", 1.5, "calibration.samples is 1.5"),
        ("calibration.samples", True, "calibration.samples is True"),
        ("calibration.sequence_length", 1, "calibration.sequence_length is 1"),
        ("calibration.seed", -1, "calibration.seed is -1"),
        ("calibration.bos", "maybe", "calibration.bos is 'maybe': expected 'auto', 'always' or 'never'"),
        ("calibration.source", "web", "calibration.source is 'web': expected 'text' or 'self'"),
        ("calibration.temperature", 0, "calibration.temperature is 0: expected greater than 0"),
        ("calibration.top_k", 0, "calibration.top_k is 0: expected greater than 0"),
        ("calibration.texts.code", {"uri": "./x"}, "calibration.texts.code.share: missing. Add it"),
        ("calibration.texts.code", {"uri": "./x", "share": 1.5}, "calibration.texts.code.share is 1.5: expected less"),
        ("calibration.texts", {"self": {"uri": "./x", "share": 0.5}}, "a text is called 'self'"),
        (
            "calibration.texts",
            {"one": {"uri": "./x", "share": 0.7}, "two": {"uri": "./y", "share": 0.3}},
            "the shares add up to 1: expected less than 1, the rest is the source's",
        ),
        ("engine.device", "tpu", 'engine.device is \'tpu\': expected "auto", "cpu", "cuda" or "cuda:N"'),
        ("engine.batch_tokens", "many", "engine.batch_tokens is 'many': expected 'auto' or a valid integer"),
        ("engine.batch_tokens", 0, 'engine.batch_tokens is 0: expected "auto" or a positive number of tokens'),
        ("evaluate.samples", 0, "evaluate.samples is 0"),
        ("evaluate.texts", ["code"], "evaluate.texts is ['code']: expected a valid dictionary"),
        ("evaluate.texts", {"a b": {"uri": "./x"}}, "a text is called 'a b': expected letters, digits, _ and -"),
        ("evaluate.texts", {"evaluation": {"uri": "./x"}}, "not the name of sources.evaluation"),
        ("evaluate.texts.code", {"url": "./x"}, "evaluate.texts.code.uri: missing. Add it"),
        (
            "evaluate.texts.code",
            {"uri": "./x", "url": "./x"},
            "evaluate.texts.code.url: unknown key. Expected one of uri",
        ),
        ("evaluate.texts.code", "./x", "evaluate.texts.code is './x': expected a section with uri, sha256"),
        ("promote.min_top1_agreement", 2, "promote.min_top1_agreement is 2"),
        ("recover.steps", -1, "recover.steps is -1: expected greater than or equal to 0"),
        ("recover.learning_rate", 0, "recover.learning_rate is 0: expected greater than 0"),
        ("recover.learning_rate", -1e-3, "recover.learning_rate is -0.001"),
        ("recover.learning_rate", math.nan, "recover.learning_rate is nan"),
        ("recover.train", "attention", "recover.train is 'attention': expected 'mlp', 'mlp+norms', 'norms', 'all' or"),
        ("recover.validation_share", 1, "recover.validation_share is 1: expected less than 1"),
        ("recover.teacher", "other", "recover.teacher is 'other': expected 'live' or 'stored'"),
        ("recover.sequence_length", 128, "sequence_length is set and windows null"),
        ("register.model", "a/b", "register.model is 'a/b'"),
        ("register.model", "", "register.model is ''"),
        ("sources.dtype", "int8", "sources.dtype is 'int8'"),
        ("sources.model", None, "sources.model is None: expected a section with uri, sha256"),
        ("sources.model.sha256", None, "sources.model: sha256 is missing"),
        ("sources.model.sha256", "ABC", "sources.model.sha256 is 'ABC': expected 64 hexadecimal digits"),
        ("sources.model.uri", 5, "sources.model.uri is 5: expected a valid string"),
        ("sources.model.uri", "", "uri is empty"),
        ("sources.model.uri", [], "uri is empty"),
        ("sources.model.uri", ["pypi://a==1/x", "b"], "only files inside wheels"),
        ("sources.model.url", "x", "sources.model.url: unknown key. Expected one of uri, sha256"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_what_was_expected(key: str, value: Any, told: str) -> None:
    assert told in refusal(key, value)


def test_sparsity_must_agree_with_the_pattern() -> None:
    values = changed("prune.pattern", "1:4")
    with pytest.raises(InputError, match=r"params.yaml: prune: sparsity is 0\.5 .* Set sparsity to 0\.75"):
        validate_settings(values, "params.yaml")
    values["prune"]["sparsity"] = None
    assert validate_settings(values, "params.yaml").prune.sparsity is None


def test_auto_leaves_windows_to_prune_with() -> None:
    values = changed("prune.method", "auto")
    assert validate_settings(values, "params.yaml").prune.plan.held_back == 4
    values["calibration"]["samples"] = 4
    with pytest.raises(
        InputError, match=r"^params.yaml: prune: method is \"auto\" and auto_windows 4: .* there are 4\."
    ):
        validate_settings(values, "params.yaml")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 5, "step_tokens": 99999}, "params.yaml: recover has 29 windows of 512 tokens to train on"),
        ({"steps": 5, "windows": 4}, "params.yaml: recover has 3 windows of 512 tokens to train on"),
        ({"mse": 1.0, "teacher": "stored"}, 'params.yaml: recover: mse is above 0 and teacher "stored"'),
    ],
)
def test_a_recovery_that_cannot_be_is_refused_before_any_work(changes: dict[str, Any], told: str) -> None:
    values = changed("prune.pattern", "2:4")
    values["recover"] |= changes
    with pytest.raises(InputError, match=re.escape(told)):
        validate_settings(values, "params.yaml")
    values["recover"] = {}
    assert validate_settings(values, "params.yaml").recover.steps == 0


def test_a_missing_setting_is_named() -> None:
    values = changed("prune.pattern", "2:4")
    del values["prune"]["method"]
    with pytest.raises(InputError, match=r"params.yaml: prune.method: missing\. Add it"):
        validate_settings(values, "params.yaml")


def test_an_unknown_section_is_refused_with_the_sections() -> None:
    values = {**changed("prune.pattern", "2:4"), "prunning": {}}
    with pytest.raises(InputError, match=r"prunning: unknown key\. Expected one of sources, calibration, .*register"):
        validate_settings(values, "params.yaml")


def test_an_unquoted_pattern_is_text_and_not_a_sexagesimal_number(tmp_path: Path) -> None:
    text = SHIPPED.read_text(encoding="utf-8").replace("pattern: unstructured", "pattern: 2:4")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    assert load_settings(tmp_path / "params.yaml").prune.pattern == "2:4"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a: [1", r"params.yaml line \d+: not YAML"),
        (b"a: 1\na: 2\n", r"params.yaml line \d: not YAML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"", "holds no sections: expected sources, calibration, prune"),
        (b"- 1\n", "holds no sections"),
    ],
)
def test_a_file_that_is_no_settings_file_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(InputError, match=told) as error:
        load_settings(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Run: dass init"):
        load_settings(tmp_path / "params.yaml")
