"""Deployments: a recipe that a server runs by a schedule, or from its UI, on the workers of a pool."""

import os
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from selftrain.flows.prefect.local_api import check_reachable
from selftrain.flows.prefect.serving import Schedule
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.settings.run_config import RunConfig


@dataclass(frozen=True)
class Deployed:
    """A deployment on the server, and the flow run that was asked for at once, if any."""

    name: str  # self-training/NAME, as Prefect's commands take it
    id: str
    flow_run: str = ""


def deploy(
    config: RunConfig,
    name: str,
    pool: str,
    schedule: Schedule | None = None,
    workspace: Path | None = None,
    now: bool = False,
) -> Deployed:
    """Creates or updates the deployment. Workers import the flow from the installed package: no code is sent.

    Without a workspace, each worker uses its own (SELFTRAIN_HOME).
    """
    require_server()
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment
    from prefect.types.entrypoint import EntrypointType

    from selftrain.flows.prefect.flow import self_training_flow
    from selftrain.flows.prefect.server_setup import ensure_pool

    with get_client(sync_client=True) as client:
        ensure_pool(client, pool)
    schedule = schedule or Schedule()
    deployment = RunnerDeployment.from_flow(
        self_training_flow,
        name=name,
        parameters={
            "config": config.model_dump(mode="json"),
            **({"workspace": str(workspace)} if workspace is not None else {}),
        },
        work_pool_name=pool,
        entrypoint_type=EntrypointType.MODULE_PATH,
        # One run per data set at a time; the next one waits.
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
        **schedule.as_options(),
    )
    identity = deployment.apply()
    assert isinstance(identity, UUID), "outside of an event loop Prefect answers at once"
    with get_client(sync_client=True) as client:
        if not schedule.as_options():  # an update without a schedule would keep the old one
            for old in client.read_deployment_schedules(identity):
                client.delete_deployment_schedule(identity, old.id)
        flow_run = client.create_flow_run_from_deployment(identity).id if now else ""
    return Deployed(deployment.full_name, str(identity), str(flow_run))


def require_server() -> None:
    """ConfigError unless PREFECT_API_URL names a server; an error in one sentence where it does not answer."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise ConfigError(
            "found no Prefect server: PREFECT_API_URL is not set. With docker-compose.yml: "
            "export PREFECT_API_URL=http://127.0.0.1:4200/api. "
            "Without a server, `selftrain up CONFIG --cron …` runs schedules on this machine."
        )
    check_reachable(url)
