"""The content of the files that deploy this project's example."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
KUBERNETES = ROOT / "examples" / "kubernetes"
CHART = KUBERNETES / "helm"

Document = dict[str, Any]


def services() -> dict[str, Document]:
    """Return the services of docker-compose.yml by name."""
    document: dict[str, dict[str, Document]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return document["services"]


def dockerfile() -> list[list[str]]:
    """Return the words of each instruction."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    return [shlex.split(line) for line in text.splitlines() if line and not line.startswith("#")]


def image_command() -> list[str]:
    """Return the default command of the image."""
    command: list[str] = yaml.safe_load((ROOT / "Dockerfile").read_text().rpartition("CMD ")[2])
    return command


def manifests() -> dict[str, Document]:
    """Return all documents for Kubernetes by path and kind, the chart's with its default values."""
    return dict(_manifests())


def rendered(text: str) -> str:
    """Return one of the chart's templates as a release called `service` has it.

    Helm has no part in it: all that the templates contain is names of values, and those inside of strings.
    """
    values = {
        f".Values.{name}": str(value) for name, value in yaml.safe_load((CHART / "values.yaml").read_text()).items()
    }
    known = {**values, ".Release.Name": "service"}
    return re.sub(r"\{\{ (\S+) \}\}", lambda found: known[found[1]], text)


def _manifests() -> Iterator[tuple[str, Document]]:
    for path in sorted([*KUBERNETES.glob("*.yaml"), *(CHART / "templates").glob("*.yaml")]):
        text = rendered(path.read_text()) if path.is_relative_to(CHART) else path.read_text()
        for number, document in enumerate(yaml.safe_load_all(text)):
            yield f"{path.relative_to(KUBERNETES)}#{number}", document
