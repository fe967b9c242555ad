"""No secret in what is shown, whatever the scheme and the spelling."""

import logging

import pytest

from tasks.workspace.redaction import RedactingFilter, redacted, shown_address, source_name


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql:///db?host=h&password=s3cr3t", "postgresql:///db"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Ds3cr3t", "mssql+pyodbc:///"),
        ("http://kim:s3cr3t@host:5000/path?token=s3cr3t#s3cr3t", "http://host:5000/path"),
        ("postgresql://kim:s3/cr@s3?cr3t@host/db", "postgresql://host/db"),
        ("https://s3cr3t@host/x", "https://host/x"),
        ("ssh://kim:s3cr3t@host/repository", "ssh://host/repository"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("http://host/a@b", "http://host/a@b"),
        ("https:/kim:s3cr3t@host/x", "https:/host/x"),
        ("models:/tiny@champion", "models:/tiny@champion"),
        ("/home/kim/@here", "/home/kim/@here"),
    ],
)
def test_an_address_is_shown_without_login_and_query(address: str, shown: str) -> None:
    assert shown_address(address) == shown
    assert redacted(f"It is ({address}).") == f"It is ({shown})."


@pytest.mark.parametrize(
    "text",
    [
        "connection to host=h user=kim password='s3cr3t word' failed",
        "DRIVER={x};UID=kim;PWD={s3cr3t;word}",
        '{"api_key": "s3cr3t"}',
        "Authorization: Bearer s3cr3ts3cr3t",
        "MLFLOW_TRACKING_TOKEN=s3cr3t",
        "hf_s3cr3ts3cr3ts3cr3t",
    ],
)
def test_texts_hold_no_secret(text: str) -> None:
    assert "s3cr3t" not in redacted(text)


@pytest.mark.parametrize("text", ["32 tokens = 1 window", "models:/a@b", "prune.sparsity=0.6", "basic auth", "key=3"])
def test_ordinary_texts_stay(text: str) -> None:
    assert redacted(text) == text


def test_what_the_environment_knows_is_hidden_in_every_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://kim:s3%20cr%40t@h/db")
    monkeypatch.setenv("HTTPS_PROXY", "http://kim:pr0xy-word@proxy:3128")
    monkeypatch.setenv("PGPASSWORD", "p0stgres-word")
    told = redacted("s3%20cr%40t, s3 cr@t, pr0xy-word and p0stgres-word")
    assert told == "…, …, … and …"


def test_no_handler_sees_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("dass.redaction")
    log.addFilter(RedactingFilter())
    log.warning("from %s", "http://kim:s3cr3t@host/x")
    assert caplog.messages == ["from http://host/x"]


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("org/model@main", "model@main"),
        ("https://kim:s3cr3t@host/models/x/", "x"),
        (["pypi://a==1/a/model.gguf.part00", "pypi://b==1/b/model.gguf.part01"], "model.gguf"),
        (["pypi://a==1/a/model.gguf"], "model.gguf"),
    ],
)
def test_a_source_has_a_name_for_titles_in_one_part_or_several(uri: str | list[str], name: str) -> None:
    assert source_name(uri) == name
