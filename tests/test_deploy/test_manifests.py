"""Image, compose file and Kubernetes manifests: of the form their tools ask for, closed, and of one mind."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema.validators import validator_for  # type: ignore[import-untyped]
from ruamel.yaml import YAML

from flows.environment import NOTHING_LEAVES
from flows.stack.accounts import ROLES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
LATEST = kubernetes_validate.latest_version()
SECRET = re.compile(r"PASSWORD|LOGIN|AUTH_STRING|SECRET|TOKEN|KEY\Z")


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


def manifests() -> Iterator[dict[str, Any]]:
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        yield from YAML(typ="safe").load_all(path.read_text(encoding="utf-8"))


def pods() -> dict[str, dict[str, Any]]:
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in manifests() if "template" in each["spec"]
    }


def secrets_needed() -> set[str]:
    lines = (DEPLOY / "secrets.env.example").read_text(encoding="utf-8").splitlines()
    return {line.partition("=")[0] for line in lines if "=" in line and not line.startswith("#")}


def test_the_compose_files_are_of_the_form_that_the_specification_asks_for() -> None:
    schema = get_builtin_schema("vendor.compose-spec")
    form = validator_for(schema)(schema)
    for path in (COMPOSE, DEPLOY / "compose.gpu.yaml"):
        assert not [error.message for error in form.iter_errors(read(path))]
    wrong = read(COMPOSE)
    wrong["services"]["worker"]["healthchek"] = {}
    assert "healthchek" in next(form.iter_errors(wrong)).message


def test_every_manifest_is_of_the_form_that_kubernetes_asks_for() -> None:
    found = list(manifests())
    for each in found:
        kubernetes_validate.validate(each, LATEST, strict=True)
    kinds = {each["kind"] for each in found}
    assert kinds == {"Service", "StatefulSet", "Deployment", "Job", "PersistentVolumeClaim", "NetworkPolicy"}
    found[0]["spec"]["selectr"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="selectr"):
        kubernetes_validate.validate(found[0], LATEST, strict=True)


def test_kustomize_has_every_manifest_and_file_that_is_there() -> None:
    asked = read(DEPLOY / "kustomization.yaml")
    assert {DEPLOY / name for name in asked["resources"]} == set((DEPLOY / "kubernetes").glob("*.yaml"))
    generated = {each["name"]: each["files"] for each in asked["configMapGenerator"]}
    mounted = {
        volume["configMap"]["name"]
        for pod in pods().values()
        for volume in pod.get("volumes", [])
        if "configMap" in volume
    }
    assert mounted == set(generated)
    assert all((DEPLOY / name).is_file() for files in generated.values() for name in files)


@pytest.mark.parametrize("name", pods())
def test_no_pod_is_root_or_becomes_it(name: str) -> None:
    pod = pods()[name]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    for container in pod["containers"]:
        asked = container["securityContext"]
        assert not asked["allowPrivilegeEscalation"]
        assert asked["capabilities"] == {"drop": ["ALL"]}
        assert asked.get("readOnlyRootFilesystem") or name == "postgres"
        assert "memory" in container["resources"]["limits"]


def test_secrets_are_named_and_stand_nowhere() -> None:
    named = set()
    for pod in pods().values():
        for variable in (each for container in pod["containers"] for each in container.get("env", [])):
            if SECRET.search(variable["name"]):
                named.add(variable["valueFrom"]["secretKeyRef"]["key"])
    assert named == secrets_needed()
    text = COMPOSE.read_text()
    assert set(re.findall(r"\$\{(\w+):\?\}", text)) == secrets_needed()
    for service in read(COMPOSE)["services"].values():
        for variable, value in service["environment"].items():
            is_file = variable in ("DASS_SIGNING_KEY",)
            assert not SECRET.search(variable) or is_file or re.fullmatch(r"\$\{\w+:\?\}", value)
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/deploy/secrets.env" in ignored


def test_compose_listens_on_loopback_only_and_each_container_is_closed() -> None:
    for name, service in read(COMPOSE)["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert name == "postgres" or (service["read_only"] and service["cap_drop"] == ["ALL"])


def test_from_outside_nobody_reaches_a_pod_that_no_rule_names() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in manifests() if each["kind"] == "NetworkPolicy"}
    assert policies["closed"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    for name in ("postgres", "mlflow", "prefect"):
        assert all(rule["from"] for rule in policies[f"to-{name}"]["ingress"])


def test_compose_and_kubernetes_run_the_same_commands() -> None:
    services = read(COMPOSE)["services"]
    for name, pod in pods().items():
        (container,) = pod["containers"]
        command = container.get("command", []) + container.get("args", [])
        asked = services[name].get("command", command)
        assert command == asked
    worker = pods()["worker"]["containers"][0]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert re.search(rf"CMD \[{', '.join(map(repr, worker['command']))}\]".replace("'", '"'), dockerfile())
    assert services["accounts"]["command"][4:6] == ["--role", "runner"]
    assert "runner" in ROLES


def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def test_the_image_ends_as_a_user_who_owns_nothing_of_it_and_tells_its_health() -> None:
    last = dockerfile().rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*127\.0\.0\.1:8081/health", last, re.MULTILINE | re.DOTALL)
    assert "PREFECT_WORKER_WEBSERVER_HOST=127.0.0.1" in last
    for name, value in NOTHING_LEAVES.items():
        assert f"{name}={value}" in last
    assert "--requirement requirements.lock" in dockerfile()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile(), re.MULTILINE)
    sources = {name for line in copied for name in line.split()}
    let_in = {
        line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert sources == let_in
    assert all((ROOT / name).exists() for name in sources)
