"""Prefect's settings, read by Prefect and checked before it works, and where each value comes from.

Prefect reads the environment, then .env, prefect.toml and pyproject.toml in the current folder, then a profile.
"""

import io
import logging
import os
import sys
import tempfile
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dass.errors import InputError

if TYPE_CHECKING:
    from prefect.settings import Settings
    from pydantic import ValidationError


def prefect_settings() -> "Settings":
    """What Prefect is told, checked.

    Raises:
        InputError: a value or a file of them cannot be used. One line names it and where it comes from.
    """
    from pydantic import ValidationError

    try:
        with _quietly():
            import prefect.context
            from prefect.settings import Settings

            settings = Settings()
            prefect.context.refresh_global_settings_context()
    except ValidationError as error:
        raise InputError(_told(error)) from None
    except Exception as error:
        raise InputError(_unreadable(error)) from None
    _check_profile(settings)
    _check_home(settings.home)
    _check_log_levels()
    return settings


def origin(section: str, field: str) -> str | None:
    """Where a setting comes from, in words; None when nobody set it.

    Args:
        section: name of Prefect's settings class, for example "APISettings".
        field: the class's field, for example "url".
    """
    from dotenv import dotenv_values

    sources: Any = sys.modules["prefect.settings.sources"]
    of = _sections()[section]
    names = _variables(of, field)
    for name in names:
        if os.environ.get(name):
            return f"environment variable {name}"
    dotenv = Path(".env").absolute()
    if dotenv.is_file():
        for name in {key.upper() for key in dotenv_values(dotenv)} & set(names):
            return f"{name} in {dotenv}"
    for source in (sources.PrefectTomlConfigSettingsSource, sources.PyprojectTomlConfigSettingsSource):
        table = source(of)
        if field in table.toml_data:
            return f"{'.'.join((*table.toml_table_header, field))} in {Path(table.toml_file_path).absolute()}"
    with _quietly():
        loaded = sources.ProfileSettingsTomlLoader(of)
    for name in names:
        if name in loaded.profile_settings:
            return f'{name} in profile "{_profile(loaded.profiles_path)}" of {loaded.profiles_path.absolute()}'
    return None


@contextmanager
def _quietly() -> Iterator[None]:
    """Prefect prints and warns of what is refused here in one line."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _sections() -> dict[str, Any]:
    """Prefect's settings classes by name. They are there even when a wrong value keeps Prefect from being imported."""
    found: dict[str, Any] = {}
    waiting = [sys.modules["prefect.settings.base"].PrefectBaseSettings]
    while waiting:
        section = waiting.pop()
        found[section.__name__] = section
        waiting += section.__subclasses__()
    return found


def _variables(section: Any, field: str) -> list[str]:
    """The environment variables of a setting, those that count most first."""
    alias = section.model_fields[field].validation_alias
    choices = [alias] if isinstance(alias, str) else getattr(alias, "choices", [])
    named = [choice for choice in choices if isinstance(choice, str) and choice != field]
    return [name.upper() for name in named] or [f"{section.model_config.get('env_prefix', '')}{field}".upper()]


def _told(error: "ValidationError") -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ")
    if not first["loc"] or error.title not in _sections():
        return f"Prefect's settings cannot be used ({message}). Correct them."
    where = origin(error.title, str(first["loc"][0])) or f"Prefect's setting {error.title}.{first['loc'][0]}"
    return f"{where} is {first['input']!r}: {message}. Correct it."


def _unreadable(error: Exception) -> str:
    """Which of the files could not be read, when that is why Prefect could not be imported."""
    sources = sys.modules.get("prefect.settings.sources")
    profiles = [] if sources is None else [_profiles_path(sources)]
    for path in (Path(".env"), Path("prefect.toml"), Path("pyproject.toml"), *profiles):
        if not path.exists():
            continue
        try:
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".toml":
                tomllib.loads(text)
        except OSError as reason:
            return f"{path.absolute()} cannot be read ({reason.strerror}). Prefect reads its settings there: mend it."
        except UnicodeDecodeError:
            return f"{path.absolute()} is not text in UTF-8. Prefect reads its settings there: mend it."
        except tomllib.TOMLDecodeError as reason:
            return f"{path.absolute()} is not TOML ({reason}). Prefect reads its settings there: mend it."
    return f"Prefect's settings cannot be used ({type(error).__name__}: {' '.join(str(error).split())}). Correct them."


def _profiles_path(sources: Any) -> Path:
    try:
        return Path(sources._get_profiles_path())
    except Exception:  # because of the file we are looking for
        return Path(os.environ.get("PREFECT_PROFILES_PATH", ""))


def _profile(path: Path) -> str:
    active = os.environ.get("PREFECT_PROFILE") or tomllib.loads(path.read_text(encoding="utf-8")).get("active")
    return str(active)


def _check_profile(settings: "Settings") -> None:
    """An unknown profile's settings would be missing without a word, and so would those of a broken file."""
    from prefect.settings import load_profiles

    path = settings.profiles_path
    try:
        with _quietly():
            profiles = load_profiles()
    except Exception as error:
        raise InputError(_unreadable(error)) from None
    wanted, where = os.environ.get("PREFECT_PROFILE"), "environment variable PREFECT_PROFILE"
    if not wanted:
        wanted, where = profiles.active_name, f"active in {path}"
    if wanted and wanted not in profiles.names:
        raise InputError(
            f"{where} is {wanted!r}: {path} has no such profile. Expected one of {', '.join(sorted(profiles.names))}."
        )


def _check_home(home: Path) -> None:
    where = origin("Settings", "home")
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        told = "the default" if where is None else where
        raise InputError(
            f"PREFECT_HOME is {home} ({told}), and it cannot be written ({error.strerror}). "
            "Set it to a folder that can be."
        ) from None


def _check_log_levels() -> None:
    """Levels of Prefect's handlers and loggers, which go past its settings."""
    for name, value in os.environ.items():
        is_level = name.startswith("PREFECT_LOGGING_") and name.endswith("_LEVEL")
        if is_level and value not in logging.getLevelNamesMapping():
            raise InputError(
                f"environment variable {name} is {value!r}: expected DEBUG, INFO, WARNING, ERROR or CRITICAL."
            )
