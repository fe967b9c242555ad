"""The ledger against real MLflow: its chain, what breaks it, and writers that come at once."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dass.errors import InputError
from tasks.registry.key_file import fingerprint, key_name, public_key
from tasks.registry.ledger import HEAD, PENDING, BrokenLedger, Entry, Ledger, Overtaken, champion_of
from tasks.registry.ledger_run import EXPERIMENT, TAG
from tasks.registry.tracking import TrackingError, tracking
from tests.bare_versions import bare_model, manifest_of
from tests.forgeries import altered, line_with
from tests.processes import at_once, open_ledger, write_entries
from tests.stores import Store

WRITERS, ENTRIES = 2, 20


@pytest.fixture
def ledger(client: MlflowClient, model: str) -> Ledger:
    """Keys (0), version 1 registered (1), version 2 registered (2), 1 promoted (3), a gate of 2 (4), 2 promoted (5)."""
    made = bare_model(client, model)
    made.record("promoted", "1", manifest_of("1"), {"forced": False, "reason": None, "previous": None})
    made.record("gate", "2", manifest_of("2"), {"passed": True, "rules": []})
    made.record("promoted", "2", manifest_of("2"), {"forced": True, "reason": "größer", "previous": "1"})
    return made


def line_of(store: Store, ledger: Ledger, n: int, text: str) -> None:
    """Write another line into the database."""
    sql = "UPDATE params SET value = ? WHERE run_uuid = ? AND key = ?"
    assert store.execute(sql, text, ledger.run_id, f"entry.{n:06d}") == 1


def edited(store: Store, ledger: Ledger, entries: list[Entry], n: int) -> None:
    line_of(store, ledger, n, altered(entries[n].line, time="2001-01-01T00:00:00.000+00:00"))


def cut(store: Store, ledger: Ledger, n: int) -> None:
    assert store.execute("DELETE FROM params WHERE run_uuid = ? AND key = ?", ledger.run_id, f"entry.{n:06d}") == 1


def renumbered(entry: Entry, n: int) -> str:
    return altered(entry.line, n=n)


def test_a_new_ledger_is_empty(client: MlflowClient, model: str) -> None:
    ledger, is_new = Ledger.start(client, model)
    assert is_new
    assert ledger.entries() == []
    assert champion_of([]) is None
    again, is_new = Ledger.start(client, model)
    assert (again.run_id, is_new) == (ledger.run_id, False)
    assert client.get_registered_model(model).tags[TAG] == ledger.run_id
    run = client.get_run(ledger.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", model)
    assert client.get_experiment(run.info.experiment_id).name == EXPERIMENT


def test_a_model_that_does_not_exist_is_named(client: MlflowClient) -> None:
    with pytest.raises(InputError, match="no registered model 'nobody'.*dass run"):
        Ledger.open(client, "nobody")


def test_entries_are_lines_that_name_the_line_before(ledger: Ledger, model: str) -> None:
    entries = ledger.entries()
    ledger.check_heads(entries)
    assert [entry.n for entry in entries] == [0, 1, 2, 3, 4, 5]
    assert [entry.before for entry in entries] == ["0" * 64, *(entry.digest for entry in entries[:-1])]
    assert {entry.model for entry in entries} == {model}
    assert len({entry.id for entry in entries}) == 6
    assert entries[5].details == {"forced": True, "reason": "größer", "previous": "1"}
    assert {entry.actor for entry in entries} == {key_name()}
    assert {entry.key for entry in entries} == {fingerprint(public_key())}
    assert champion_of(entries) == "2"


def test_a_version_names_the_last_entry_about_it(ledger: Ledger, client: MlflowClient, model: str) -> None:
    entries = ledger.entries()
    assert client.get_model_version(model, "1").tags[HEAD] == f"3 {entries[3].digest}"
    assert client.get_model_version(model, "2").tags[HEAD] == f"5 {entries[5].digest}"


def test_an_entry_is_written_once(ledger: Ledger, client: MlflowClient) -> None:
    chain = ledger.chain()
    entries = chain.entries
    with pytest.raises(Overtaken):
        ledger.append("verified", "1", manifest_of("1"), {}, behind=replace(chain, entries=entries[:3]))
    with pytest.raises(MlflowException):
        client.log_param(ledger.run_id, "entry.000003", "another line")
    client.log_param(ledger.run_id, "entry.000003", entries[3].line)  # a request sent twice
    assert ledger.entries() == entries


def test_an_event_can_be_recorded_once(ledger: Ledger) -> None:
    known = ledger.entries()[1]
    assert ledger.record("registered", "1", manifest_of("1"), {}, once=True) == known
    assert len(ledger.entries()) == 6


def test_an_answer_that_is_lost_is_no_second_entry(ledger: Ledger, client: MlflowClient) -> None:
    class Losing:
        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def log_param(self, *arguments: Any, **options: Any) -> None:
            client.log_param(*arguments, **options)
            raise MlflowException("the connection was reset")

    lossy = Ledger(Losing(), ledger.model, ledger.run_id)
    assert lossy.record("verified", "1", manifest_of("1"), {}) == ledger.entries()[6]


def test_a_model_whose_making_was_asked_for_twice_is_new(client: MlflowClient, model: str) -> None:
    class Stammering:
        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def create_registered_model(self, *arguments: Any, **options: Any) -> None:
            client.create_registered_model(*arguments, **options)
            client.create_registered_model(*arguments, **options)

    ledger, is_new = Ledger.start(Stammering(), model)
    assert is_new
    assert client.get_run(ledger.run_id).info.lifecycle_stage == "active"


@pytest.mark.parametrize("reason", ["x" * 6000, "broken \udcff"])
def test_what_mlflow_cannot_hold_is_refused(ledger: Ledger, reason: str) -> None:
    with pytest.raises(InputError, match="reason"):
        ledger.record("promoted", "1", manifest_of("1"), {"reason": reason})
    assert len(ledger.entries()) == 6


def edit_one(store: Store, ledger: Ledger, entries: list[Entry]) -> None:
    edited(store, ledger, entries, 3)


def edit_the_link(store: Store, ledger: Ledger, entries: list[Entry]) -> None:
    line_of(store, ledger, 3, altered(entries[3].line, before=entries[1].digest))


def edit_the_first(store: Store, ledger: Ledger, entries: list[Entry]) -> None:
    edited(store, ledger, entries, 0)


def edit_the_last(store: Store, ledger: Ledger, entries: list[Entry]) -> None:
    edited(store, ledger, entries, 5)


def write_rubbish(store: Store, ledger: Ledger, entries: list[Entry]) -> None:
    line_of(store, ledger, 4, "{}")


def nest(store: Store, ledger: Ledger, entries: list[Entry]) -> None:
    line_of(store, ledger, 4, "[" * 6000)


def nest_the_payload(store: Store, ledger: Ledger, entries: list[Entry]) -> None:
    line_of(store, ledger, 4, line_with(entries[4].line, b"[" * 3000))


def add_a_space(store: Store, ledger: Ledger, entries: list[Entry]) -> None:
    line_of(store, ledger, 5, entries[5].line + " ")


def exchange(store: Store, ledger: Ledger, entries: list[Entry]) -> None:
    line_of(store, ledger, 2, entries[3].line)
    line_of(store, ledger, 3, entries[2].line)


def exchange_and_renumber(store: Store, ledger: Ledger, entries: list[Entry]) -> None:
    line_of(store, ledger, 2, renumbered(entries[3], 2))
    line_of(store, ledger, 3, renumbered(entries[2], 3))


def take_one_out(store: Store, ledger: Ledger, entries: list[Entry]) -> None:
    cut(store, ledger, 4)


def take_one_out_and_close_up(store: Store, ledger: Ledger, entries: list[Entry]) -> None:
    line_of(store, ledger, 4, renumbered(entries[5], 4))
    cut(store, ledger, 5)


def cut_the_end(store: Store, ledger: Ledger, entries: list[Entry]) -> None:
    cut(store, ledger, 5)


def cut_more(store: Store, ledger: Ledger, entries: list[Entry]) -> None:
    cut(store, ledger, 5)
    cut(store, ledger, 4)


def empty(store: Store, ledger: Ledger, entries: list[Entry]) -> None:
    assert store.execute("DELETE FROM params WHERE run_uuid = ?", ledger.run_id) == 6


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (edit_one, "entry 3 was edited: entry 4 names another digest"),
        (edit_the_link, "entry 3 was edited: entry 4 names another digest"),
        (edit_the_first, "entry 0 was edited: entry 1 names another digest"),
        (edit_the_last, "entry 5 (promoted) was edited or forged: its signature does not hold"),
        (write_rubbish, "entry 4 was edited: it is no line of a ledger"),
        (nest, "entry 4 was edited: it is no line of a ledger"),
        (nest_the_payload, "entry 4 was edited: it is no line of a ledger"),
        (add_a_space, "entry 5 was edited: it is no line of a ledger"),
        (exchange, "entry 2 holds the line of entry 3: lines were moved"),
        (exchange_and_renumber, "entry 3 was edited: entry 4 names another digest"),
        (take_one_out, "entry 4 is missing"),
        (take_one_out_and_close_up, "entry 3 was edited: entry 4 names another digest"),
        (cut_the_end, "its end was cut off: entry 5, which version 2 names, is not there"),
        (cut_more, "its end was cut off: entry 5, which version 2 names, is not there"),
        (empty, "its end was cut off: entry 5, which version 2 names, is not there"),
    ],
)
def test_an_attack_on_a_line_is_named_by_one_who_never_saw_the_ledger(
    ledger: Ledger,
    store: Store,
    attack: Callable[[Store, Ledger, list[Entry]], None],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attack(store, ledger, ledger.entries())
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(BrokenLedger) as caught:
        ledger.check_heads(ledger.entries())
    assert said in str(caught.value)
    assert repr(ledger.model) in str(caught.value)


def test_a_head_that_names_nothing_is_told(ledger: Ledger, client: MlflowClient) -> None:
    client.set_model_version_tag(ledger.model, "1", HEAD, "none")
    with pytest.raises(BrokenLedger, match="version 1 has the tag ledger.head = 'none'"):
        ledger.check_heads(ledger.entries())
    client.set_model_version_tag(ledger.model, "1", HEAD, "9" * 4900)
    with pytest.raises(BrokenLedger, match=r"version 1 has the tag ledger.head = '9+', which names no entry"):
        ledger.check_heads(ledger.entries())


def test_a_ledger_of_another_model_is_told(ledger: Ledger, client: MlflowClient) -> None:
    other = bare_model(client, uuid.uuid4().hex)
    client.set_registered_model_tag(ledger.model, TAG, other.run_id)
    with pytest.raises(BrokenLedger, match=f"entry 0 is about the model '{other.model}'"):
        Ledger.open(client, ledger.model).entries()


def test_a_deleted_run_is_told(ledger: Ledger, client: MlflowClient) -> None:
    client.delete_run(ledger.run_id)
    with pytest.raises(BrokenLedger, match=f"was deleted. Run: mlflow runs restore --run-id {ledger.run_id}"):
        ledger.entries()


def test_a_run_that_is_gone_is_told(ledger: Ledger, client: MlflowClient) -> None:
    client.set_registered_model_tag(ledger.model, TAG, "0" * 32)
    with pytest.raises(BrokenLedger, match=f"MLflow run {'0' * 32}, which held it, is gone"):
        Ledger.open(client, ledger.model).entries()


def test_a_lost_tag_is_no_new_ledger(ledger: Ledger, client: MlflowClient) -> None:
    client.delete_registered_model_tag(ledger.model, TAG)
    with pytest.raises(BrokenLedger, match="is lost: the model has no tag 'ledger', though it has 2 versions"):
        Ledger.open(client, ledger.model)


def test_a_broken_ledger_takes_no_entry(ledger: Ledger, store: Store) -> None:
    edit_one(store, ledger, ledger.entries())
    with pytest.raises(BrokenLedger):
        ledger.record("verified", "1", manifest_of("1"), {})


def test_a_head_that_was_not_written_is_written_with_the_next_entry(ledger: Ledger, client: MlflowClient) -> None:
    last = ledger.entries()[-1]
    client.set_model_version_tag(ledger.model, "2", HEAD, PENDING)
    ledger.record("verified", "1", manifest_of("1"), {})
    assert client.get_model_version(ledger.model, "2").tags[HEAD] == last.head


def test_an_entry_about_a_deleted_version_stays(ledger: Ledger, client: MlflowClient) -> None:
    client.delete_model_version(ledger.model, "2")
    ledger.record("verified", "1", manifest_of("1"), {})
    entries = ledger.entries()
    ledger.check_heads(entries)
    assert [entry.version for entry in entries[-2:]] == ["2", "1"]


def test_a_refusal_of_mlflow_is_one_line(ledger: Ledger, store: Store, client: MlflowClient) -> None:
    chain = ledger.chain()
    client.delete_run(ledger.run_id)
    with pytest.raises(TrackingError, match=r"^MLflow at .*"), tracking(store.workspace):
        ledger.append("verified", "2", manifest_of("2"), {}, behind=chain)


def test_a_version_without_a_head_is_told(ledger: Ledger, client: MlflowClient) -> None:
    client.delete_model_version_tag(ledger.model, "1", HEAD)
    with pytest.raises(BrokenLedger, match="version 1 has no tag ledger.head"):
        ledger.check_heads(ledger.entries())


def test_two_writers_at_once_write_every_entry_once(store: Store, client: MlflowClient, model: str) -> None:
    ledger = bare_model(client, model, versions=1)
    writers = [str(number) for number in range(WRITERS)]
    at_once(write_entries, *((store.uri, store.workspace, model, writer, ENTRIES) for writer in writers))
    entries = ledger.entries()
    ledger.check_heads(entries)
    found = [(entry.details["writer"], entry.details["number"]) for entry in entries[2:]]
    assert sorted(found) == sorted((writer, number) for writer in writers for number in range(ENTRIES))
    assert client.get_model_version(model, "1").tags[HEAD] == entries[-1].head


@pytest.mark.parametrize("existing", [True, False], ids=["a model without a ledger", "no model"])
def test_processes_that_come_at_once_agree_on_the_ledger(
    store: Store, client: MlflowClient, model: str, existing: bool
) -> None:
    if existing:
        client.create_registered_model(model)
    at_once(open_ledger, *[(store.uri, store.workspace, model)] * 3)
    ledger = Ledger.open(client, model)
    assert len(ledger.entries()) == 4
    experiment = client.get_run(ledger.run_id).info.experiment_id
    kept = [run for run in client.search_runs([experiment]) if run.info.run_name == model]
    assert [run.info.run_id for run in kept] == [ledger.run_id]
