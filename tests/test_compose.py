"""docker-compose.yml without a Docker engine: its schema, and what the schema cannot know."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker-compose.yml"
TEXT = FILE.read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXAMPLE = dict(
    line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line and line[0] != "#"
)
ONE_SHOTS = {"prefect-migrate", "prefect-init", "s3-buckets"}
SECRET = re.compile(r"PASSWORD|SECRET|_KEY$|AUTH$")


def variables(text: str) -> dict[str, str]:
    """Every ${NAME…} that Compose fills in, with what stands behind the name."""
    return dict(re.findall(r"(?<!\$)\$\{(\w+)([^}]*)\}", text))


def test_the_file_follows_the_compose_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_that_others_wait_for_has_a_health_check(name: str) -> None:
    for awaited, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[awaited], f"{name} waits for {awaited}, which never says it is healthy"
        else:
            assert how["condition"] == "service_completed_successfully"
            assert awaited in ONE_SHOTS, f"{name} waits for the end of {awaited}, which does not end"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned_to_a_full_version(name: str) -> None:
    image, _, version = SERVICES[name]["image"].partition(":")
    assert re.match(r"\d+\.\d+", version), f"{image}:{version or 'latest'}"
    assert "minio" not in image, "no longer maintained"


def test_prefect_and_mlflow_are_the_versions_that_were_tested() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert SERVICES["prefect-server"]["image"] == f"prefecthq/prefect:{pins['prefect']}-python3.11"
    assert SERVICES["mlflow"]["image"].endswith(f":{pins['mlflow']}")
    assert f"mlflow[auth]=={pins['mlflow']}" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_ports_are_bound_to_this_host_alone(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_services_restart_and_one_time_jobs_do_not(name: str) -> None:
    restart = SERVICES[name]["restart"]
    assert restart in ({"no", "on-failure"} if name in ONE_SHOTS else {"unless-stopped"})


def test_every_variable_stands_in_the_example_and_none_of_it_is_unused() -> None:
    assert set(variables(TEXT)) == set(EXAMPLE)


@pytest.mark.parametrize("name", sorted(filter(SECRET.search, EXAMPLE)))
def test_secrets_have_no_default(name: str) -> None:
    assert EXAMPLE[name] == ""
    assert variables(TEXT)[name].startswith(":?"), "Compose must refuse to start without it"


def test_no_password_stands_in_the_file() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if SECRET.search(name):
                assert "${" in value, name
    assert not re.search(r"://\w+:[^$@/]+@", TEXT)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_no_password_stands_on_a_command_line(name: str) -> None:
    """`ps` shows it to every user of the host. `$${NAME}` is the shell's, in the container."""
    service = SERVICES[name]
    lines = [service.get("command"), service.get("entrypoint"), service.get("healthcheck", {}).get("test")]
    lines += [service.get("labels"), service.get("build", {})]  # `docker inspect` and the image's history show these
    assert [one for one in variables(json.dumps(lines)) if SECRET.search(one)] == []


def test_servers_without_a_password_are_bound_to_their_container() -> None:
    assert "-ip.bind=127.0.0.1" in SERVICES["s3"]["command"].split()
    assert SERVICES["worker-cpu"]["environment"]["PREFECT_WORKER_WEBSERVER_HOST"] == "127.0.0.1"
    assert SERVICES["worker-gpu"]["environment"].items() >= SERVICES["worker-cpu"]["environment"].items()


def test_volumes_are_named_and_all_of_them_used() -> None:
    used = {mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])}
    assert set(COMPOSE["volumes"]) == {name for name in used if not name.startswith("$")}


def test_configs_are_declared_and_used() -> None:
    used = {config["source"] for service in SERVICES.values() for config in service.get("configs", [])}
    assert set(COMPOSE["configs"]) == used


def test_the_servers_know_the_hosts_that_the_workers_call() -> None:
    environment = SERVICES["worker-cpu"]["environment"]
    allowed = SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert environment["MLFLOW_TRACKING_URI"].removeprefix("http://") in allowed
    called = re.findall(r"(?:@|//)([a-z][a-z0-9-]+):(\d+)", json.dumps(COMPOSE["services"]))
    for host, _port in called:
        assert host in SERVICES or host == "localhost", host


def test_mlflow_asks_for_a_password_and_starts_no_jobs() -> None:
    assert "--app-name basic-auth" in SERVICES["mlflow"]["command"]
    assert SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_gpus_are_reserved_under_their_profile_alone() -> None:
    wanting = {name for name, service in SERVICES.items() if "deploy" in service}
    assert wanting == {"worker-gpu"}
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]
    assert SERVICES["worker-cpu"]["profiles"] == ["cpu"]


def test_images_are_built_from_targets_that_exist() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
    assert {service["build"]["target"] for service in SERVICES.values() if "build" in service} <= targets


def test_images_carry_every_package_of_ours() -> None:
    copied = set(re.findall(r"^COPY (\w+) \w+$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert copied == {"selftrain", "flows", "ssl_tasks", "models", "configs"}
    assert {f"!{name}" for name in copied} <= set(ignored)


def test_prefect_yaml_deploys_valid_recipes_of_a_flow_that_exists() -> None:
    from selftrain.ssl_tasks.settings.run_config import RunConfig

    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        RunConfig.model_validate(deployment["parameters"]["config"])
        module, _, function = deployment["entrypoint"].rpartition(".")
        assert f"def {function}(" in (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert deployment["work_pool"]["name"] in SERVICES["prefect-init"]["command"].split()
