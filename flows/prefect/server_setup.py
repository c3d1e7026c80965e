"""Sets up a team's Prefect server for our flows; safe to repeat.

Work pools, the number of GPUs, the automation that notices runs whose process died, the one that starts them again,
and notifications to a webhook.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from selftrain.flows.prefect.events import CHAMPION, NOTHING_NEW, RESTARTED
from selftrain.flows.prefect.tasks import GPU_LIMIT

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.actions import ActionTypes
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

HEARTBEAT_SECONDS = 30  # what workers are told (PREFECT_FLOWS_HEARTBEAT_FREQUENCY); Prefect allows no less
PATIENCE = timedelta(seconds=3 * HEARTBEAT_SECONDS)
PAUSE = timedelta(seconds=15)  # before a crashed run is scheduled again
WEBHOOK = "selftrain-notifications"
ENDED = ("Completed", NOTHING_NEW, "Failed", "Cancelled", "Crashed")


def init_server(pools: Sequence[str], gpus: int, notify: str | None = None) -> list[str]:
    """Creates what is missing and updates what differs; returns the state of each, line by line."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        lines = [ensure_pool(client, pool) for pool in pools]
        client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, gpus)
        lines.append(f"concurrency limit {GPU_LIMIT}: {gpus}")
        wanted = [dead_runs(), restarts()]
        if notify is not None:
            wanted += notifications(_webhook(client, notify))
        lines += [_ensure_automation(client, automation) for automation in wanted]
    return lines


def ensure_pool(client: "SyncPrefectClient", name: str) -> str:
    """Creates a process pool of this name; an existing one is not changed."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        return f"work pool {name}: {client.read_work_pool(name).type}"
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        except ObjectAlreadyExists:  # another one was faster
            return f"work pool {name}: process"
    return f"work pool {name}: process, created"


def dead_runs() -> "AutomationCore":
    """Marks a run as crashed if its process falls silent without an end: after a power cut, or if its worker is
    killed."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, Posture

    heartbeat = "prefect.flow-run.heartbeat"
    trigger = _of_runs(
        after={heartbeat},
        expect={heartbeat, *(f"prefect.flow-run.{state}" for state in ENDED)},
        posture=Posture.Proactive,
        within=PATIENCE,
    )
    message = f"no sign of life for {PATIENCE.total_seconds():.0f} s: its process has probably died"
    return AutomationCore(
        name="selftrain: mark silent runs as crashed",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


def restarts() -> "AutomationCore":
    """Schedules a crashed run again, which resumes at its checkpoints; runtime.restarts limits how often.

    There is a pause before, because a worker of Prefect 3.8 fails if it gets a run back while it still cleans it up.
    """
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, Posture

    on_its_way = ("Scheduled", "AwaitingRetry", "Pending", "Running", *(end for end in ENDED if end != "Crashed"))
    trigger = _of_runs(
        after={"prefect.flow-run.Crashed"},
        expect={f"prefect.flow-run.{state}" for state in on_its_way},
        posture=Posture.Proactive,
        within=PAUSE,
    )
    return AutomationCore(
        name="selftrain: resume crashed runs",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.SCHEDULED, message=RESTARTED)],
    )


def notifications(webhook: "UUID") -> list["AutomationCore"]:
    """Reports failed runs and new champions to a webhook as JSON {"text": …}, which chat programs accept."""
    from prefect.events.actions import CallWebhook
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    def told(text: str) -> list["ActionTypes"]:
        return [CallWebhook(block_document_id=webhook, payload='{"text": {{ (' + text + ") | tojson }}}")]

    return [
        AutomationCore(
            name="selftrain: notify of failed runs",
            trigger=_of_runs(expect={"prefect.flow-run.Failed"}),
            actions=told('"self-training failed: " ~ flow_run.name ~ ": " ~ flow_run.state.message'),
        ),
        AutomationCore(
            name="selftrain: notify of new champions",
            trigger=EventTrigger(expect={CHAMPION}, threshold=1),
            actions=told('"new champion of " ~ event.payload.model ~ ": " ~ event.payload.verdict'),
        ),
    ]


def _of_runs(**options: object) -> "EventTrigger":
    """Returns a trigger for each of our flow runs separately."""
    from prefect.events.schemas.automations import EventTrigger

    related = {"prefect.resource.role": "flow", "prefect.resource.name": "self-training"}
    return EventTrigger.model_validate(
        {
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": related,
            "for_each": {"prefect.resource.id"},
            "threshold": 1,
            **options,
        }
    )


def _ensure_automation(client: "SyncPrefectClient", wanted: "AutomationCore") -> str:
    there = client.read_automations_by_name(wanted.name)
    if not there:
        client.create_automation(wanted)
        return f"automation {wanted.name}: created"
    client.update_automation(there[0].id, wanted)
    for double in there[1:]:
        client.delete_automation(double.id)
    return f"automation {wanted.name}"


def _webhook(client: "SyncPrefectClient", url: str) -> "UUID":
    """Stores the address in a block, which Prefect encrypts, because it may contain a token."""
    from prefect.blocks.webhook import Webhook
    from prefect.types import SecretDict
    from pydantic import SecretStr

    headers = SecretDict({"Content-Type": "application/json"})
    identity = Webhook(method="POST", url=SecretStr(url), headers=headers).save(WEBHOOK, overwrite=True)
    assert isinstance(identity, UUID), "outside of an event loop Prefect answers at once"
    return identity
