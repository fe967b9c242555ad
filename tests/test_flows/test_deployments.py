"""The deployments of prefect.yaml: what Prefect makes of them, what its UI asks for, what is tried again."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from prefect.states import Failed
from ruamel.yaml import YAML

from dass.errors import InfrastructureError, InputError, NumericalError
from flows import deployments
from flows.environment import NOTHING_LEAVES
from flows.retries import may_pass
from flows.stages import STAGES, StageName
from flows.timetable import Timetable
from flows.verify import UnprovedError, verify_all
from tasks.registry.tracking import TrackingError, TrackingRefusal
from tasks.workspace.folder import Workspace
from tasks.workspace.lease import LeaseLostError
from tests.test_flows.conftest import Commands

ROOT = Path(__file__).parents[2]
NAMES = {
    "nightly": "compress",
    "by-hand": "compress",
    "promote": "promote",
    "sweep": "sweep",
    "weekly": "verify all",
    "gc": "gc",
}


def told() -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in YAML(typ="safe").load((ROOT / "prefect.yaml").read_text())["deployments"]}


def test_every_deployment_is_one_of_ours_with_a_limit_of_one_and_a_time_limit() -> None:
    assert set(told()) == set(NAMES)
    for name, each in told().items():
        path, _, attribute = each["entrypoint"].partition(":")
        flow = getattr(deployments, attribute)
        assert (path, flow.name) == ("flows/deployments.py", NAMES[name])
        assert flow.timeout_seconds > 3600
        assert each["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
        assert "dass" in each["tags"]
        assert each["parameters"]["workspace"] == "{{ $PWD }}"
        assert set(each["parameters"]) <= set(flow.parameters.properties)
        env = each["work_pool"]["job_variables"]["env"]
        assert env | NOTHING_LEAVES == env
        assert env["DASS_SERVED_WORKSPACE"] == "{{ $PWD }}"
        for schedule in each.get("schedules", []):
            Timetable.read(schedule["cron"], schedule["timezone"])
    active = {name: [at.get("active", True) for at in each.get("schedules", [])] for name, each in told().items()}
    assert {name: each for name, each in active.items() if each} == {"nightly": [True], "weekly": [True], "gc": [False]}
    assert told()["gc"]["parameters"]["dry_run"] is True  # nobody is asked there
    night = told()["nightly"]["work_pool"]["job_variables"]["env"]
    assert (night["DASS_SERVED_CHANGES"], night["DASS_SERVED_REVISION"]) == ("[]", "HEAD")
    works_in_a_checkout = {
        name for name in NAMES if "DASS_SERVED_REVISION" in told()[name]["work_pool"]["job_variables"]["env"]
    }
    assert works_in_a_checkout == {"nightly", "by-hand", "sweep"}


def test_stages_are_picked_from_a_list() -> None:
    asked = deployments.by_hand.parameters.properties["until"]
    (picked,) = [each["enum"] for each in asked["anyOf"] if "enum" in each]
    assert picked == list(STAGES) == list(StageName.__args__)  # type: ignore[attr-defined]
    assert "register" in asked["description"]


@pytest.mark.slow
def test_prefect_takes_the_deployments(commands: Commands) -> None:
    root = Workspace(ROOT)
    commands(root, "prefect", "work-pool", "create", "dass", "--type", "process")
    commands(root, "prefect", "--no-prompt", "deploy", "--all", PWD=str(ROOT))
    with commands.prefect() as client:
        for name, each in told().items():
            made = client.read_deployment_by_name(f"{NAMES[name]}/{name}")
            assert made.entrypoint == each["entrypoint"]
            assert made.parameters == each["parameters"] | {"workspace": str(ROOT)}
            assert made.job_variables["env"]["DASS_SERVED_WORKSPACE"] == str(ROOT)
            assert made.global_concurrency_limit is not None
            assert made.global_concurrency_limit.limit == 1
            assert made.tags == each["tags"]
            crons = [json.loads(schedule.schedule.model_dump_json())["cron"] for schedule in made.schedules]
            assert crons == [schedule["cron"] for schedule in each.get("schedules", [])]
            assert [at.active for at in made.schedules] == [at.get("active", True) for at in each.get("schedules", [])]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (TrackingError("MLflow does not answer"), True),
        (InfrastructureError("gone"), True),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (ConnectionResetError("reset"), True),
        (TrackingRefusal("no such model"), False),
        (InputError("another value is needed"), False),
        (NumericalError("NaN"), False),
        (LeaseLostError("taken over"), False),
        (RuntimeError("a fault"), False),
    ],
)
def test_only_what_may_pass_is_tried_again_and_only_when_nobody_waits(
    monkeypatch: pytest.MonkeyPatch, error: Exception, again: bool
) -> None:
    monkeypatch.delenv("DASS_SERVED_WORKSPACE", raising=False)
    assert not may_pass(None, None, Failed(data=error))
    monkeypatch.setenv("DASS_SERVED_WORKSPACE", "/ws")
    assert may_pass(None, None, Failed(data=error)) == again


def test_every_version_is_proved_and_one_that_is_none_fails_the_flow(
    commands: Commands, finished: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with commands.reporting():
        (proof,) = verify_all(str(finished.root))
        assert not proof.failed
        (masks,) = finished.root.glob("mlartifacts/**/masks.safetensors")
        masks.write_bytes(masks.read_bytes()[:-1] + b"x")
        with pytest.raises(UnprovedError, match=r"not what the registry says: tiny-dass version 1: files"):
            verify_all(str(finished.root))
        monkeypatch.setenv("DASS_SERVED_WORKSPACE", "/another")
        with pytest.raises(InputError, match=r'this schedule works in "/another" only'):
            verify_all(str(finished.root))
