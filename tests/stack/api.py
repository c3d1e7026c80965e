"""Prefect's REST API as a person's browser uses it, patient with servers that are restarted."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx

T = TypeVar("T")
PATIENCE = 600.0  # seconds, for what only has to happen in the end


class Api:
    """A logged-in client."""

    def __init__(self, url: str, login: str) -> None:
        user, _, password = login.partition(":")
        self.http = httpx.Client(base_url=f"{url}/api", auth=(user, password), timeout=30)

    def get(self, path: str) -> Any:
        answer = self.http.get(path)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, **body: Any) -> Any:
        answer = self.http.post(path, json=body)
        answer.raise_for_status()
        return answer.json()

    def start(self, deployment: str, **parameters: Any) -> str:
        """Asks for a run; returns the flow run's id."""
        return self.post(f"/deployments/{deployment}/create_flow_run", parameters=parameters)["id"]

    def state(self, flow_run: str) -> dict[str, Any]:
        return self.get(f"/flow_runs/{flow_run}")["state"]

    def history(self, flow_run: str) -> list[str]:
        """The names of all states that a run has been in."""
        states = self.http.get("/flow_run_states/", params={"flow_run_id": flow_run}).json()
        return [state["name"] for state in sorted(states, key=lambda state: state["timestamp"])]

    def wait_for(self, flow_run: str, *types: str, patience: float = PATIENCE) -> dict[str, Any]:
        """Waits until a run is in a state of one of these types."""
        return until(lambda: self._state_in(flow_run, types), patience, lambda: self.story(flow_run))

    def _state_in(self, flow_run: str, types: tuple[str, ...]) -> dict[str, Any] | None:
        state = self.state(flow_run)
        return state if state["type"] in types else None

    def story(self, flow_run: str) -> str:
        """A run's states and logs, for the message of a failed test."""
        wanted = {"flow_run_id": {"any_": [flow_run]}}
        logs = self.post("/logs/filter", logs=wanted, limit=200)
        return f"{self.history(flow_run)}\n" + "\n".join(entry["message"] for entry in logs)


def until(answer: Callable[[], T | None], patience: float = PATIENCE, story: Callable[[], str] = str) -> T:
    """Polls until there is an answer. A server that is away just now has none."""
    deadline = time.monotonic() + patience
    while True:
        try:
            if found := answer():
                return found
        except httpx.HTTPError:
            pass
        if time.monotonic() > deadline:
            raise AssertionError(f"nothing within {patience:g} s. {story()}")
        time.sleep(0.25)
