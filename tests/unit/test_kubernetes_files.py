"""The manifests and the chart: valid for Kubernetes, and in step with the code, the image and one another."""

import re
import signal
from collections.abc import Callable, Iterator
from copy import deepcopy
from inspect import signature
from typing import Any, NamedTuple, get_args
from urllib.parse import urlsplit

import kubernetes_validate as kubernetes  # type: ignore[import-untyped]  # has none
import pytest
import yaml

from pgratchet import BudgetExceededError, FilesError, Gate, HistoryError, MigrationFailedError, ServerError
from pgratchet.cli import program, settings, troubles
from pgratchet.web.background import STOP_SECONDS
from pgratchet.web.lifespan import Mode
from tests.deployment import CHART, KUBERNETES, ROOT, Document, dockerfile, image_command, manifests, rendered, services
from tests.pages import parsed

VERSIONS = ("1.30", "1.34", kubernetes.latest_version().rpartition(".")[0])
APPLICATION = (ROOT / "examples" / "service" / "app.py").read_text()
GATE = {name: parameter.default for name, parameter in signature(Gate).parameters.items()}
ALL = manifests()


class Pod(NamedTuple):
    """The specification of a pod, and the document that has it."""

    name: str
    kind: str
    spec: Document

    def containers(self) -> Iterator[Document]:
        yield from self.spec.get("initContainers", [])
        yield from self.spec["containers"]


def pods(kind: str) -> list[Pod]:
    found = [Pod(name, kind, each["spec"]["template"]["spec"]) for name, each in ALL.items() if each["kind"] == kind]
    assert len(found) >= 2
    return found


JOBS, DEPLOYMENTS = pods("Job"), pods("Deployment")
SERVING = [(pod.name, pod.spec["containers"][0]) for pod in DEPLOYMENTS]
RUNNING = [(pod.name, container) for pod in JOBS + DEPLOYMENTS for container in pod.containers()]


def environment(container: Document) -> dict[str, Any]:
    """Return the variables: a text, or a Secret's name and key."""
    values = {
        each["name"]: each.get("value") or tuple(each["valueFrom"]["secretKeyRef"].values())
        for each in container["env"]
    }
    assert len(values) == len(container["env"])
    return values


def variables_of_the_service() -> set[str]:
    return set(re.findall(r'os\.environ(?:\.get\(|\[)"(\w+)"', APPLICATION))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ALL)
def test_every_manifest_is_one_for_each_version_of_kubernetes(name: str, version: str) -> None:
    assert kubernetes.validate(ALL[name], version, strict=True) == version


def misspelt(document: Document) -> None:
    probe = document["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    probe["httpget"] = probe.pop("httpGet")


def a_text_for_a_number(document: Document) -> None:
    document["spec"]["replicas"] = "3"


def without_containers(document: Document) -> None:
    del document["spec"]["template"]["spec"]["containers"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("spoil", [misspelt, a_text_for_a_number, without_containers])
def test_an_invalid_manifest_is_refused(spoil: Callable[[Document], None], version: str) -> None:
    broken = deepcopy(ALL["deployment.yaml#0"])
    spoil(broken)
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(broken, version, strict=True)


@pytest.mark.parametrize(("name", "container"), RUNNING)
def test_every_container_runs_the_image_with_a_command_that_it_has(name: str, container: Document) -> None:
    assert container["image"] == services()["app"]["image"]
    if "command" in container:
        assert parsed(container["command"])
    else:
        assert name.partition("#")[0] in {pod.name.partition("#")[0] for pod in DEPLOYMENTS}
        assert "args" not in container


def test_a_command_that_is_not_there_would_be_noticed() -> None:
    for wrong in (["pgratchet", "upp"], ["pgratchet", "up", "--readers=app"], ["pgratchet", "wait", "--reader=app"]):
        with pytest.raises(program._WrongUseError):
            parsed(wrong)


@pytest.mark.parametrize(("name", "container"), RUNNING)
def test_every_variable_is_one_that_is_read(name: str, container: Document) -> None:
    read = variables_of_the_service()
    if "command" in container:
        options = parsed(container["command"])[0].params
        read = {variable for option in options for variable in _as_list(option.envvar)}
    assert set(environment(container)) <= read, name


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def test_one_role_migrates_and_another_serves_except_where_pods_migrate_themselves() -> None:
    secrets = {each["metadata"]["name"]: each["stringData"] for each in ALL.values() if each["kind"] == "Secret"}
    used: dict[str, set[str]] = {}
    for name, container in RUNNING:
        secret, key = environment(container)["DATABASE_URL"]
        assert key in secrets[secret]
        used.setdefault(name, set()).add(secret)

    assert {name for name, names in used.items() if names == {"service-migrator"}} == {
        "job.yaml#0",
        "helm/templates/migrate.yaml#0",
        "deployment-migrates-itself.yaml#0",
    }
    assert all(len(names) == 1 for names in used.values())


def test_the_job_lets_the_role_read_that_serves() -> None:
    secrets = {each["metadata"]["name"]: each["stringData"] for each in ALL.values() if each["kind"] == "Secret"}
    roles = {name: urlsplit(data["DATABASE_URL"]).username for name, data in secrets.items()}
    made = re.findall(r"^CREATE ROLE (\w+) LOGIN", (ROOT / "examples" / "roles.sql").read_text(), re.MULTILINE)

    assert sorted(str(role) for role in roles.values()) == sorted(made)
    for pod in JOBS:
        (container,) = pod.containers()
        assert list(parsed(container["command"])[1]["readers"]) == [roles["service"]]


@pytest.mark.parametrize(("name", "container"), SERVING)
def test_probes_ask_the_gate_at_the_images_port(name: str, container: Document) -> None:
    command, (port,) = image_command(), container["ports"]
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}

    assert str(port["containerPort"]) == command[command.index("--port") + 1]
    assert ["EXPOSE", str(port["containerPort"])] in dockerfile()
    assert {probe["port"] for probe in probes.values()} == {port["name"]}, name
    assert probes["readiness"]["path"] == GATE["ready"]
    assert {probes["startup"]["path"], probes["liveness"]["path"]} <= set(GATE["live"])
    assert f'@app.get("{probes["liveness"]["path"]}")' in APPLICATION


@pytest.mark.parametrize(("name", "container"), SERVING)
def test_no_probe_ends_a_pod_that_waits_for_its_schema(name: str, container: Document) -> None:
    (default,) = re.findall(r'"MIGRATION_SLOW_AFTER", "(\d+)"', APPLICATION)
    patience = float(environment(container).get("MIGRATION_SLOW_AFTER", default))
    startup = container["startupProbe"]

    assert startup["periodSeconds"] * startup["failureThreshold"] >= 3 * patience, name


@pytest.mark.parametrize(("name", "container"), SERVING)
def test_each_pod_says_how_it_gets_its_schema(name: str, container: Document) -> None:
    mode = environment(container)["MIGRATION_MODE"]
    waits_before = len(next(pod for pod in DEPLOYMENTS if pod.name == name).spec.get("initContainers", []))

    assert mode in get_args(Mode)
    assert mode == ("check" if waits_before else "apply" if "itself" in name else "wait")


@pytest.mark.parametrize("pod", JOBS + DEPLOYMENTS, ids=lambda pod: pod.name)
def test_every_pod_has_time_to_end(pod: Pod) -> None:
    paused = [
        each.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0) for each in pod.containers()
    ]

    assert pod.spec["terminationGracePeriodSeconds"] >= 2 * STOP_SECONDS + max(paused)


@pytest.mark.parametrize("pod", JOBS + DEPLOYMENTS, ids=lambda pod: pod.name)
def test_every_pod_has_only_the_rights_that_it_needs(pod: Pod) -> None:
    user = int(next(words[1] for words in dockerfile() if words[0] == "USER"))

    assert pod.spec["automountServiceAccountToken"] is False
    assert pod.spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for container in pod.containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"].keys() == {"requests", "limits"}


@pytest.mark.parametrize("pod", JOBS, ids=lambda pod: pod.name)
def test_a_job_has_no_clock_and_tries_again_only_what_may_be_otherwise_then(pod: Pod) -> None:
    job = ALL[pod.name]["spec"]
    (given_up,) = [rule for rule in job["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    codes = troubles.EXIT_CODES

    assert "activeDeadlineSeconds" not in (*job, *pod.spec)
    assert (pod.spec["restartPolicy"], job["backoffLimit"]) == ("Never", 3)
    assert given_up["onExitCodes"]["containerName"] == pod.spec["containers"][0]["name"]
    assert set(given_up["onExitCodes"]["values"]) == {
        codes[MigrationFailedError],
        codes[FilesError],
        codes[HistoryError],
    }
    assert not {codes[BudgetExceededError], troubles.exit_code(ServerError(""))} & set(
        given_up["onExitCodes"]["values"]
    )
    assert settings.read(parsed(pod.spec["containers"][0]["command"])[1])["budget"] > 0


def test_each_release_has_a_job_of_its_own() -> None:
    job = ALL["job.yaml#0"]
    tag = job["spec"]["template"]["spec"]["containers"][0]["image"].rpartition(":")[2]

    assert job["metadata"]["name"].endswith("-" + tag.replace(".", "-"))
    assert job["spec"]["ttlSecondsAfterFinished"] > 0


def test_the_service_finds_the_pods_of_every_deployment() -> None:
    for service, folder in (("service.yaml#0", ""), ("helm/templates/service.yaml#0", "helm")):
        selector = ALL[service]["spec"]["selector"]
        ports = {port["targetPort"] for port in ALL[service]["spec"]["ports"]}
        for pod in (pod for pod in DEPLOYMENTS if pod.name.startswith("helm") == bool(folder)):
            deployment = ALL[pod.name]["spec"]
            assert deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"] == selector
            assert {port["name"] for port in pod.spec["containers"][0]["ports"]} == ports


def test_the_chart_is_what_the_manifests_are() -> None:
    hook, job = deepcopy(ALL["helm/templates/migrate.yaml#0"]), deepcopy(ALL["job.yaml#0"])
    annotations = hook["metadata"].pop("annotations")
    del hook["metadata"]["name"], job["metadata"]["name"], job["spec"]["ttlSecondsAfterFinished"]

    assert hook == job
    assert ALL["helm/templates/deployment.yaml#0"] == ALL["deployment.yaml#0"]
    assert ALL["helm/templates/service.yaml#0"] == ALL["service.yaml#0"]
    assert annotations == {
        "helm.sh/hook": "pre-install,pre-upgrade",
        "helm.sh/hook-weight": "0",
        "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded",
    }


def test_the_chart_has_all_of_its_values_and_no_others() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    texts = [path.read_text() for path in (CHART / "templates").iterdir()]
    used = {name for text in texts for name in re.findall(r"\.Values\.(\w+)", text)}

    assert used == set(values)
    assert not any("{{" in rendered(text) for text in texts)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["apiVersion"], values["image"].rpartition(":")[2]) == ("v2", chart["appVersion"])


def test_the_page_has_every_manifest_every_exit_code_and_the_annotations_of_the_hook() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}

    assert {f"[{path.name}]" for path in KUBERNETES.glob("*.yaml")} <= set(re.findall(r"\[[\w.-]+\]", page))
    assert codes == {0, *troubles.EXIT_CODES.values(), troubles.UNWRITTEN, 128 + signal.SIGTERM}
    for name, value in ALL["helm/templates/migrate.yaml#0"]["metadata"]["annotations"].items():
        assert re.search(rf'^{name}: "?{value}"?$', page, re.MULTILINE)
