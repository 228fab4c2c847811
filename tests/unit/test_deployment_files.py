import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    document: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return document["services"]


@pytest.fixture(scope="module")
def dockerfile() -> list[list[str]]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    return [shlex.split(line) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_database_tells_when_it_is_healthy_over_tcp(services: dict[str, Any]) -> None:
    check = services["database"]["healthcheck"]["test"]
    assert check[:2] == ["CMD", "pg_isready"]
    assert "--host=127.0.0.1" in check


def test_one_job_migrates_once_the_database_is_healthy(services: dict[str, Any]) -> None:
    migrate = services["migrate"]
    assert migrate["command"] == ["pgratchet", "up"]
    assert migrate["restart"] == "no"
    assert migrate["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert "deploy" not in migrate


def test_three_replicas_start_after_the_job_and_leave_migrating_to_it(services: dict[str, Any]) -> None:
    app = services["app"]
    assert app["deploy"]["replicas"] == 3
    assert app["environment"]["MIGRATION_MODE"] == "wait"
    assert app["depends_on"] == {
        "database": {"condition": "service_healthy"},
        "migrate": {"condition": "service_completed_successfully"},
    }


def test_each_replica_has_a_port_and_is_asked_whether_it_is_ready(services: dict[str, Any]) -> None:
    app = services["app"]
    (published,) = app["ports"]
    first, last = re.fullmatch(r"127\.0\.0\.1:(\d+)-(\d+):8000", published).groups()  # type: ignore[union-attr]  # no match would fail the test
    assert int(last) - int(first) + 1 == app["deploy"]["replicas"]
    assert "http://127.0.0.1:8000/ready" in app["healthcheck"]["test"][-1]


def test_job_and_replicas_are_the_same_image_on_the_same_database(services: dict[str, Any]) -> None:
    database, migrate, app = (services[name] for name in ("database", "migrate", "app"))
    assert migrate["image"] == app["image"]
    settings = database["environment"]
    url = "postgresql://{POSTGRES_USER}:{POSTGRES_PASSWORD}@database:5432/{POSTGRES_DB}".format(**settings)
    assert migrate["environment"]["DATABASE_URL"] == app["environment"]["DATABASE_URL"] == url


def test_the_image_runs_as_an_ordinary_user(dockerfile: list[list[str]]) -> None:
    users = [words[1] for words in dockerfile if words[0] == "USER"]
    assert users == ["service"]
    assert dockerfile[-1][0] == "CMD"
    assert dockerfile.index(["USER", "service"]) > max(
        number for number, words in enumerate(dockerfile) if words[0] in {"RUN", "COPY"}
    )


def test_what_the_image_copies_exists_and_is_sent_to_its_build(dockerfile: list[list[str]]) -> None:
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
    assert made == ["test", "lint", "types", "model"]


def test_every_target_that_is_called_somewhere_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [
        (ROOT / name).read_text() for name in (".ci/run", ".github/workflows/ci.yml", "README.md", "CONTRIBUTING.md")
    ]
    called = set(re.findall(r"(?:^|`|run: )make ([a-z]+)\b", "\n".join(texts), re.MULTILINE))
    assert {"demo", "test", "lint", "types", "bench", "model", "clean"} <= targets
    assert called <= targets


def test_actions_of_others_are_pinned_and_get_no_rights() -> None:
    path = ROOT / ".github" / "workflows" / "ci.yml"
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {}
    used = re.findall(r"uses: (\S+)", path.read_text())
    assert used
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in used)
