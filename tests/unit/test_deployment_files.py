import inspect
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from pgratchet import Gate
from pgratchet.web.background import STOP_SECONDS
from tests import deployment
from tests.deployment import ROOT, Document

GATE = inspect.signature(Gate).parameters
PROXY = (ROOT / "examples" / "haproxy.cfg").read_text()


@pytest.fixture(scope="module")
def services() -> dict[str, Document]:
    return deployment.services()


@pytest.fixture(scope="module")
def dockerfile() -> list[list[str]]:
    return deployment.dockerfile()


def test_the_database_tells_when_it_is_healthy_over_tcp(services: dict[str, Document]) -> None:
    check = services["database"]["healthcheck"]["test"]
    assert check[:2] == ["CMD", "pg_isready"]
    assert "--host=127.0.0.1" in check


def test_one_job_migrates_once_the_database_is_healthy(services: dict[str, Document]) -> None:
    migrate = services["migrate"]
    assert migrate["command"][:2] == ["pgratchet", "up"]
    assert migrate["restart"] == "no"
    assert migrate["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert "deploy" not in migrate


def test_three_replicas_start_beside_the_job_and_leave_migrating_to_it(services: dict[str, Document]) -> None:
    app = services["app"]
    assert app["deploy"]["replicas"] == 3
    assert app["environment"]["MIGRATION_MODE"] == "wait"
    assert app["depends_on"] == {"database": {"condition": "service_healthy"}}


def test_a_replica_is_given_the_time_that_its_end_may_take(services: dict[str, Document]) -> None:
    app = services["app"]
    patience = float(app["environment"]["MIGRATION_SLOW_AFTER"])
    assert float(app["stop_grace_period"].removesuffix("s")) > patience + STOP_SECONDS


def test_only_the_proxy_is_reached_from_outside_and_it_asks_the_gate(services: dict[str, Document]) -> None:
    assert [name for name, service in services.items() if "ports" in service] == ["proxy"]
    (published,) = services["proxy"]["ports"]
    assert published.startswith("127.0.0.1:")
    assert f"bind :{published.rpartition(':')[2]}\n" in PROXY
    assert f"uri {GATE['ready'].default}\n" in PROXY


def test_the_proxy_has_room_for_every_replica_at_the_images_port(services: dict[str, Document]) -> None:
    found = re.search(r"^ +server-template \S+ (\d+) (\w+):(\d+)$", PROXY, re.MULTILINE)
    assert found
    room, name, port = found.groups()
    command = deployment.image_command()
    assert int(room) >= services[name]["deploy"]["replicas"]
    assert port == command[command.index("--port") + 1]


def test_each_replica_is_asked_whether_it_is_ready(services: dict[str, Document]) -> None:
    assert f'"http://127.0.0.1:8000{GATE["ready"].default}"' in services["app"]["healthcheck"]["test"][-1]


def test_every_file_that_a_service_mounts_exists_and_is_read_only(services: dict[str, Document]) -> None:
    mounts = [mount for service in services.values() for mount in service.get("volumes", [])]
    assert len(mounts) == 2
    for mount in mounts:
        source, _, rights = mount.split(":")
        assert (ROOT / source).is_file()
        assert rights == "ro"


def test_job_and_replicas_are_one_image_on_one_database_and_history(services: dict[str, Document]) -> None:
    database, migrate, app = (services[name] for name in ("database", "migrate", "app"))
    assert migrate["image"] == app["image"]
    assert migrate["environment"]["PGRATCHET_TABLE"] == app["environment"]["PGRATCHET_TABLE"]
    urls = [urlsplit(service["environment"]["DATABASE_URL"]) for service in (migrate, app)]
    assert {(url.hostname, url.port, url.path) for url in urls} == {
        ("database", 5432, f"/{database['environment']['POSTGRES_DB']}")
    }


def test_job_and_replicas_log_in_as_roles_of_their_own(services: dict[str, Document]) -> None:
    roles = (ROOT / "examples" / "roles.sql").read_text()
    urls = [urlsplit(services[name]["environment"]["DATABASE_URL"]) for name in ("migrate", "app")]
    assert len({url.username for url in urls}) == 2
    for url in urls:
        assert f"CREATE ROLE {url.username} LOGIN PASSWORD '{url.password}';" in roles
    assert f"--reader={urls[1].username}" in services["migrate"]["command"]


def test_the_image_runs_as_an_ordinary_user(dockerfile: list[list[str]]) -> None:
    (user,) = [words[1] for words in dockerfile if words[0] == "USER"]
    assert user.isdecimal()
    assert any(words[1:] == ["useradd", "--system", "--uid", user, "service"] for words in dockerfile)
    assert dockerfile[-1][0] == "CMD"
    assert dockerfile.index(["USER", user]) > max(
        number for number, words in enumerate(dockerfile) if words[0] in {"RUN", "COPY"}
    )


def test_every_file_that_the_image_copies_exists_and_is_sent_to_its_build(dockerfile: list[list[str]]) -> None:
    sources = [Path(word) for words in dockerfile if words[0] == "COPY" for word in words[1:-1]]
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore[0] == "*"
    sent = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert source.parts[0] in sent


def test_continuous_integration_is_one_executable_file_that_runs_everything() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    made = [line.removeprefix("make ") for line in lines if line.startswith("make ")]
    assert made == [
        "ready --jobs=2",
        'test-14 test-18 lint types model ARGS="-m every_major" JOBS=3 --output-sync &',
        "test || failed=1",
    ]
    assert lines[-2:] == ["wait $! || failed=1", "exit $failed"]


def test_actions_of_others_are_pinned_and_get_no_rights() -> None:
    path = ROOT / ".github" / "workflows" / "ci.yml"
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {}
    used = re.findall(r"uses: (\S+)", path.read_text())
    assert used
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in used)
