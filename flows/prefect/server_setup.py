"""What our flows expect of a team's Prefect server; setting it up twice is setting it up once.

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
    """Creates what is missing and updates what differs; returns what stands, line by line."""
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
    """A process pool of this name; one that is there is left as it is."""
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
    """A run whose process fell silent without an end is crashed: after a power cut, or with its worker killed."""
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
    message = f"no sign of life for {PATIENCE.total_seconds():.0f} s: its process is believed dead"
    return AutomationCore(
        name="selftrain: silent runs are crashed",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


def restarts() -> "AutomationCore":
    """A crashed run is scheduled again, and goes on from its checkpoints; runtime.restarts says how often.

    Not at once: a worker of Prefect 3.8 that gets a run back while it still clears it away ends with an error.
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
        name="selftrain: crashed runs go on",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.SCHEDULED, message=RESTARTED)],
    )


def notifications(webhook: "UUID") -> list["AutomationCore"]:
    """A failed run, and a new champion, are told to a webhook as JSON {"text": …}, which chat programs take."""
    from prefect.events.actions import CallWebhook
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    def told(text: str) -> list["ActionTypes"]:
        return [CallWebhook(block_document_id=webhook, payload='{"text": {{ (' + text + ") | tojson }}}")]

    return [
        AutomationCore(
            name="selftrain: failed runs are told",
            trigger=_of_runs(expect={"prefect.flow-run.Failed"}),
            actions=told('"self-training failed: " ~ flow_run.name ~ ": " ~ flow_run.state.message'),
        ),
        AutomationCore(
            name="selftrain: champions are told",
            trigger=EventTrigger(expect={CHAMPION}, threshold=1),
            actions=told('"new champion of " ~ event.payload.model ~ ": " ~ event.payload.verdict'),
        ),
    ]


def _of_runs(**options: object) -> "EventTrigger":
    """A trigger on each flow run of ours apart."""
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
    """The block that holds the address; it may carry a token, so Prefect keeps it encrypted."""
    from prefect.blocks.webhook import Webhook
    from prefect.types import SecretDict
    from pydantic import SecretStr

    headers = SecretDict({"Content-Type": "application/json"})
    identity = Webhook(method="POST", url=SecretStr(url), headers=headers).save(WEBHOOK, overwrite=True)
    assert isinstance(identity, UUID), "outside of an event loop Prefect answers at once"
    return identity
