"""The one reader of params.yaml, and what it says of settings that cannot be used."""

from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dass.errors import InputError
from tasks.workspace.settings.sections import Settings
from tasks.workspace.small_files import parse_for_dvc, read_small


def validate_settings(values: Any, origin: str) -> Settings:
    """Check raw settings.

    Raises:
        InputError: one line: the first wrong value, what was expected, and `origin`.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        where = _named(errors[0], values)
        # A value that may be of several types gets one error from each.
        told = list(dict.fromkeys(_message(each) for each in errors if _named(each, values) == where))
        message = " or ".join([told[0], *(each.removeprefix("expected ") for each in told[1:])])
        named = f"{'.'.join(where)}{_given(errors[0])}: " if where else ""
        raise InputError(f"{origin}: {named}{message}") from None


def _named(error: ErrorDetails, values: Any) -> list[str]:
    """The setting an error is about. pydantic's location also names the type it tried; no setting is called that."""
    path: list[str] = []
    for part in error["loc"]:
        known = isinstance(values, dict) and part in values
        if not known and error["type"] != "missing":
            break
        path.append(str(part))
        values = values[part] if known else None
    return path


def _given(error: ErrorDetails) -> str:
    told = error["type"] not in ("extra_forbidden", "missing") and not isinstance(error["input"], dict)
    return f" is {_short(repr(error['input']))}" if told else ""


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def _message(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown key. Expected one of {', '.join(_keys(error['loc'][:-1]))}"
    if error["type"] == "missing":
        return "missing. Add it"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"expected a section with {', '.join(_keys(error['loc']))}"
    if error["type"] == "string_pattern_mismatch" and error["loc"][-1] == "sha256":
        return "expected 64 hexadecimal digits in lower case"
    return error["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ")


def _keys(section: tuple[int | str, ...]) -> list[str]:
    model: Any = Settings
    for part in section:
        if get_origin(model) is dict:  # sections with names of their own, as evaluate.texts has
            model = get_args(model)[1]
        else:
            fields = {field.alias or name: field for name, field in model.model_fields.items()}
            model = fields[str(part)].annotation
    if get_origin(model) is dict:
        return ["NAME"]
    return [field.alias or name for name, field in model.model_fields.items()]


def load_settings(params: Path) -> Settings:
    """Read and check params.yaml.

    Raises:
        InputError: the file is missing, is not YAML, or holds a value that cannot be used.
    """
    return validate_settings(read_params(params), params.name)


def read_params(params: Path) -> dict[str, Any]:
    """The raw content of params.yaml.

    Raises:
        InputError: the file is missing or unreadable, is not YAML, or holds no sections.
    """
    try:
        text = read_small(params, "Restore it, or make a workspace with: dass init FOLDER")
        values = parse_for_dvc(text, params.name)
    except FileNotFoundError:
        raise InputError(f"No {params}. Run: dass init {params.parent}") from None
    if not isinstance(values, dict):
        raise InputError(f"{params.name} holds no sections: expected {', '.join(_keys(()))}.")
    return values
