"""The champion against real MLflow: promoted, rolled back, killed at every step, and fought over."""

import json
import signal
import uuid
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from mlflow import MlflowClient

from dass.errors import InputError
from tasks.promotion import champion
from tasks.promotion.champion import ALIAS, DECISION, ForeignChampion, champion_of, settle
from tasks.registry.ledger import HEAD, BrokenLedger, Chain, Entry, Ledger
from tests.bare_versions import bare_model, manifest_of
from tests.processes import at_once, promote, roll_back, start
from tests.stores import Store

STEPS = 12  # at least so many calls of MLflow make a promotion


@pytest.fixture
def ledger(client: MlflowClient, model: str) -> Ledger:
    """Three versions; none was promoted yet."""
    return bare_model(client, model, versions=3)


def crown(client: MlflowClient, ledger: Ledger, version: str, reason: str | None = None) -> Entry:
    entry = champion.crown(
        client, ledger, version, manifest_of(version), "promoted", lambda _: {"forced": False, "reason": reason}
    )
    assert entry is not None
    return entry


def alias_of(client: MlflowClient, model: str) -> str | None:
    version = client.get_registered_model(model).aliases.get(ALIAS)
    return None if version is None else str(version)


def test_a_promoted_version_is_the_champion(client: MlflowClient, ledger: Ledger) -> None:
    assert settle(client, ledger.model) is None
    assert alias_of(client, ledger.model) is None
    entry = crown(client, ledger, "2", reason="größer")
    assert entry.details == {"forced": False, "reason": "größer", "previous": None}
    assert entry.manifest == manifest_of("2")
    assert alias_of(client, ledger.model) == champion_of(ledger.entries()) == "2"
    tags = client.get_model_version(ledger.model, "2").tags
    assert tags[HEAD] == entry.head
    assert json.loads(tags[DECISION]) == {
        "event": "promoted",
        "time": entry.time,
        "reason": "größer",
        "entry": entry.n,
        "digest": entry.digest,
    }
    assert crown(client, ledger, "3").details["previous"] == "2"
    assert settle(client, ledger.model) is None


def test_a_long_reason_is_short_in_the_tag(client: MlflowClient, ledger: Ledger) -> None:
    crown(client, ledger, "1", reason="x" * 1000)
    assert json.loads(client.get_model_version(ledger.model, "1").tags[DECISION])["reason"] == "x" * 200 + "…"


def test_a_decision_against_it_writes_nothing(client: MlflowClient, ledger: Ledger) -> None:
    before = ledger.entries()
    assert champion.crown(client, ledger, "1", manifest_of("1"), "promoted", lambda _: None) is None
    assert ledger.entries() == before
    assert alias_of(client, ledger.model) is None


def test_a_decision_is_made_again_when_there_is_another_champion(client: MlflowClient, ledger: Ledger) -> None:
    told = []

    def decide(chain: Chain) -> dict[str, Any]:
        told.append(chain.champion)
        if len(told) == 1:
            crown(client, ledger, "3")
        return {"reason": None}

    entry = champion.crown(client, ledger, "1", manifest_of("1"), "promoted", decide)
    assert told == [None, "3"]
    assert entry is not None
    assert entry.details["previous"] == "3"


def test_a_decision_may_record_what_it_rests_on(client: MlflowClient, ledger: Ledger) -> None:
    told = []

    def decide(chain: Chain) -> dict[str, Any]:
        told.append(chain.champion)
        ledger.record("gate", "1", manifest_of("1"), {"passed": True, "rules": []})
        return {"reason": None}

    champion.crown(client, ledger, "1", manifest_of("1"), "promoted", decide)
    assert told == [None]
    assert [entry.event for entry in ledger.entries()[4:]] == ["gate", "promoted"]


def test_rolling_back_goes_to_the_champion_before(client: MlflowClient, ledger: Ledger) -> None:
    checked: list[str] = []
    for version in "123":
        crown(client, ledger, version)
    done = champion.roll_back(client, ledger.model, None, "it was slow", checked.append)
    assert done.told is None
    assert (done.entry.event, done.entry.version, done.entry.manifest) == ("rolled_back", "2", manifest_of("2"))
    assert done.entry.details == {"reason": "it was slow", "previous": "3"}
    assert alias_of(client, ledger.model) == "2"
    assert champion.roll_back(client, ledger.model, None, "still", checked.append).entry.version == "1"
    with pytest.raises(InputError, match=r"no champion of .* before version 1. Name one: --to VERSION"):
        champion.roll_back(client, ledger.model, None, "more", checked.append)
    assert champion.roll_back(client, ledger.model, "3", "forward again", checked.append).entry.version == "3"
    assert champion.roll_back(client, ledger.model, None, "no", checked.append).entry.version == "1"
    assert checked == ["2", "1", "3", "1"]


def test_promoting_the_champion_again_is_not_another_champion(client: MlflowClient, ledger: Ledger) -> None:
    for version in "1223":
        crown(client, ledger, version)
    assert champion.roll_back(client, ledger.model, None, "back").entry.version == "2"
    assert champion.roll_back(client, ledger.model, None, "back").entry.version == "1"


def test_a_target_that_does_not_pass_its_check_changes_nothing(client: MlflowClient, ledger: Ledger) -> None:
    def refuse(_: str) -> None:
        raise RuntimeError("its proof is not valid")

    crown(client, ledger, "1")
    crown(client, ledger, "2")
    before = ledger.entries()
    with pytest.raises(RuntimeError, match="proof"):
        champion.roll_back(client, ledger.model, None, "back", refuse)
    assert ledger.entries() == before
    assert alias_of(client, ledger.model) == "2"


@pytest.mark.parametrize(
    ("to", "reason", "said"),
    [
        ("3", "why", r"Version 3 of .* was never the champion; those were: 1, 2. Run: dass promote 3"),
        ("77", "why", r"Version 77 of .* was never the champion"),
        ("2", "why", r"Version 2 of .* is the champion already"),
        ("1", "  ", r"A rollback needs a reason"),
    ],
)
def test_a_rollback_that_cannot_be_done_is_refused(
    client: MlflowClient, ledger: Ledger, to: str, reason: str, said: str
) -> None:
    crown(client, ledger, "1")
    crown(client, ledger, "2")
    before = ledger.entries()
    with pytest.raises(InputError, match=said):
        champion.roll_back(client, ledger.model, to, reason)
    assert ledger.entries() == before


def test_a_rollback_before_any_promotion_is_refused(client: MlflowClient, ledger: Ledger) -> None:
    for to in (None, "1"):
        with pytest.raises(InputError, match="No version of .* has ever been the champion"):
            champion.roll_back(client, ledger.model, to, "why")


def test_a_rollback_to_a_deleted_version_is_refused(client: MlflowClient, ledger: Ledger) -> None:
    crown(client, ledger, "1")
    crown(client, ledger, "2")
    client.delete_model_version(ledger.model, "1")
    with pytest.raises(InputError, match="Version 1 of .* was deleted from MLflow"):
        champion.roll_back(client, ledger.model, None, "why")


def test_a_champion_that_was_deleted_is_told(client: MlflowClient, ledger: Ledger) -> None:
    crown(client, ledger, "1")
    crown(client, ledger, "2")
    client.delete_model_version(ledger.model, "2")
    assert "version 2, was deleted from MLflow" in str(settle(client, ledger.model))
    assert champion.roll_back(client, ledger.model, None, "it is gone").entry.version == "1"
    assert settle(client, ledger.model) is None


def test_a_rollback_does_not_undo_a_promotion_that_it_has_not_seen(client: MlflowClient, ledger: Ledger) -> None:
    crown(client, ledger, "1")
    crown(client, ledger, "2")

    def check(_: str) -> None:
        crown(client, ledger, "3")

    with pytest.raises(InputError, match="Version 3 of .* became the champion meanwhile; nothing was rolled back"):
        champion.roll_back(client, ledger.model, None, "slow", check)
    assert alias_of(client, ledger.model) == champion_of(ledger.entries()) == "3"


@pytest.mark.parametrize("promoted", [True, False])
def test_an_alias_set_by_hand_is_told_and_left_alone(client: MlflowClient, ledger: Ledger, promoted: bool) -> None:
    model = ledger.model
    if promoted:
        crown(client, ledger, "1")
        crown(client, ledger, "2")
    before = ledger.entries()
    client.set_registered_model_alias(model, ALIAS, "3")
    advice = "its champion is version 2. Run: dass rollback --to 2" if promoted else "Remove the alias in MLflow"
    with pytest.raises(ForeignChampion, match=f"on version 3, which the ledger never promoted; .*{advice}"):
        settle(client, model)
    if promoted:
        with pytest.raises(ForeignChampion, match=advice):
            champion.roll_back(client, model, None, "why")
    assert ledger.entries() == before
    assert alias_of(client, model) == "3"
    if promoted:
        done = champion.roll_back(client, model, "2", "set by hand")
        assert done.entry.details == {"reason": "set by hand", "previous": "2", "foreign": "3"}
        assert alias_of(client, model) == "2"
        assert settle(client, model) is None


@pytest.mark.parametrize("by_hand", ["1", None])
def test_an_alias_behind_the_ledger_is_put_right(client: MlflowClient, ledger: Ledger, by_hand: str | None) -> None:
    crown(client, ledger, "1")
    entry = crown(client, ledger, "2")
    if by_hand:
        client.set_registered_model_alias(ledger.model, ALIAS, by_hand)
    else:
        client.delete_registered_model_alias(ledger.model, ALIAS)
    told = settle(client, ledger.model)
    assert told is not None
    assert ("was on version 1" if by_hand else "was missing") in told
    assert f"is on version 2 again, as entry {entry.n} of the ledger says (promoted by {entry.actor})" in told
    assert alias_of(client, ledger.model) == "2"
    assert settle(client, ledger.model) is None


def test_a_broken_ledger_moves_no_alias(client: MlflowClient, ledger: Ledger, store: Store) -> None:
    entry = crown(client, ledger, "1")
    client.delete_registered_model_alias(ledger.model, ALIAS)
    store.execute("DELETE FROM params WHERE run_uuid = ? AND key = ?", ledger.run_id, f"entry.{entry.n:06d}")
    with pytest.raises(BrokenLedger, match="its end was cut off"):
        settle(client, ledger.model)
    with pytest.raises(BrokenLedger, match="its end was cut off"):
        champion.roll_back(client, ledger.model, None, "why")
    assert alias_of(client, ledger.model) is None


on_both_stores_in_time = pytest.mark.parametrize(
    "store", ["sqlite", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow])], indirect=True
)


def killed_at_every_step(work: Callable[[int], Any], before: Callable[[], None], after: Callable[[], None]) -> None:
    """Do `work` again and again, killed before its first call of MLflow, its second, …, until it comes to its end."""
    for step in range(1, 100):
        before()
        process = work(step)
        process.join(120)
        after()
        if process.exitcode == 0:
            assert step > STEPS
            return
        assert process.exitcode == -signal.SIGKILL
    pytest.fail("it never ended")


def settled(client: MlflowClient, ledger: Ledger) -> str | None:
    """The champion after the next command, which says what it repaired, and repairs it once."""
    entries, alias = ledger.entries(), alias_of(client, ledger.model)
    named = champion_of(entries)
    told = settle(client, ledger.model)
    assert alias_of(client, ledger.model) == named
    if alias != named:
        assert told is not None
        assert f"is on version {named} again" in told
    assert ledger.entries() == entries
    if named is not None:
        tags = client.get_model_version(ledger.model, named).tags
        assert json.loads(tags[DECISION])["digest"] == [e for e in entries if e.version == named][-1].digest
    assert settle(client, ledger.model) is None
    return named


@on_both_stores_in_time
def test_a_first_promotion_killed_at_every_step_ends_with_the_champion_that_the_ledger_names(
    store: Store, client: MlflowClient
) -> None:
    ledgers: list[Ledger] = []
    champions = []
    killed_at_every_step(
        lambda step: start(promote, store.uri, store.workspace, ledgers[-1].model, "1", 1, step),
        before=lambda: ledgers.append(bare_model(client, uuid.uuid4().hex, versions=1)),
        after=lambda: champions.append(settled(client, ledgers[-1])),
    )
    switch = champions.index("1")
    assert set(champions[:switch]) == {None}
    assert set(champions[switch:]) == {"1"}


@pytest.mark.faults("kill -9 in a promotion", times=STEPS)
@on_both_stores_in_time
def test_a_promotion_killed_at_every_step_leaves_one_champion_that_the_ledger_names(
    store: Store, client: MlflowClient, ledger: Ledger
) -> None:
    crown(client, ledger, "1")
    other = {"1": "2", "2": "1"}
    champions = ["1"]

    def after() -> None:
        assert alias_of(client, ledger.model) in other  # never none, not even before the repair
        now = settled(client, ledger)
        assert now in other
        champions.append(str(now))

    killed_at_every_step(
        lambda step: start(promote, store.uri, store.workspace, ledger.model, other[champions[-1]], 1, step),
        before=lambda: None,
        after=after,
    )
    switched = [one != two for one, two in pairwise(champions)]
    assert switched == sorted(switched)  # from the ledger's entry on, every kill ends with the new champion
    assert True in switched


@pytest.mark.slow
@on_both_stores_in_time
def test_a_rollback_killed_at_every_step_leaves_one_champion_that_the_ledger_names(
    store: Store, client: MlflowClient, ledger: Ledger
) -> None:
    crown(client, ledger, "1")
    champions = []

    def before() -> None:
        if champion_of(ledger.entries()) == "1":
            crown(client, ledger, "2")

    def after() -> None:
        assert alias_of(client, ledger.model) in ("1", "2")
        champions.append(str(settled(client, ledger)))

    killed_at_every_step(
        lambda step: start(roll_back, store.uri, store.workspace, ledger.model, None, step), before, after
    )
    switch = champions.index("1")
    assert set(champions[:switch]) == {"2"}
    assert set(champions[switch:]) == {"1"}


def test_a_rollback_that_was_killed_is_finished_and_not_done_twice(client: MlflowClient, ledger: Ledger) -> None:
    for version in "123":
        crown(client, ledger, version)
    done = ledger.record("rolled_back", "2", manifest_of("2"), {"reason": "slow", "previous": "3"})  # and killed here
    again = champion.roll_back(client, ledger.model, None, "slow")
    assert again.entry == done
    assert "was on version 3; it is on version 2 again" in str(again.told)
    assert ledger.entries()[-1] == done


def test_promotions_at_once_end_with_one_champion_which_the_ledger_names_last(
    store: Store, client: MlflowClient, ledger: Ledger
) -> None:
    at_once(promote, *((store.uri, store.workspace, ledger.model, version, 5) for version in ("1", "2")))
    entries = ledger.entries()
    crowned = [entry for entry in entries if entry.event == "promoted"]
    assert sorted(entry.version for entry in crowned) == ["1"] * 5 + ["2"] * 5
    assert [entry.details["previous"] for entry in crowned] == [None, *(entry.version for entry in crowned[:-1])]
    assert alias_of(client, ledger.model) == crowned[-1].version
    assert settle(client, ledger.model) is None


def test_a_promotion_and_a_rollback_at_once_end_with_the_champion_that_the_ledger_names_last(
    store: Store, client: MlflowClient, ledger: Ledger
) -> None:
    crown(client, ledger, "1")
    crown(client, ledger, "2")
    process = start(promote, store.uri, store.workspace, ledger.model, "3", 3)
    roll_back(store.uri, store.workspace, ledger.model, "1")
    process.join(120)
    assert process.exitcode == 0
    assert alias_of(client, ledger.model) == champion_of(ledger.entries())
    assert settle(client, ledger.model) is None
