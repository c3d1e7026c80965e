"""The report on MLflow's own artifact page: a real server, a real browser."""

import re
import urllib.request
from pathlib import Path

import pytest

from selftrain.flows.prefect.serving import mlflow_ui
from selftrain.ssl_tasks.execution.listening import entrance
from selftrain.ssl_tasks.report.page import write_report
from selftrain.ssl_tasks.store.runs import Run
from selftrain.ssl_tasks.tracking.client import connect, default_uri
from selftrain.ssl_tasks.tracking.lineage import announced, run_links
from selftrain.ssl_tasks.tracking.tracker import Tracker
from tests.report.conftest import Browser
from tests.report.test_browser import until

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def track(run: Run, page: Path) -> str:
    """The run in MLflow with its report and two of its stages; returns MLflow's id."""
    tracker = Tracker(default_uri(run.workspace), run.workspace)
    local = tracker.start_run(run.id, {}, tags={"selftrain.run": run.id})
    tracker.log_file(local, page)
    for name in ("teacher", "select-1"):
        artifact = run.artifact(name)
        assert artifact is not None
        tracker.finish_stage(tracker.start_stage(local, name), artifact)
    tracker.finish_run(local)
    assert tracker.close(timeout=240).left == 0
    client = connect(default_uri(run.workspace), run.workspace)
    experiments = [one.experiment_id for one in client.search_experiments()]
    return str(client.search_runs(experiments, f"tags.`selftrain.run` = '{run.id}'")[0].info.run_id)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_the_report_is_shown_on_mlflows_artifact_page_and_links_to_it(
    run: Run, page: Path, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow_id = track(run, page)
    with mlflow_ui(run.workspace, 0) as base, announced(run.workspace, base):
        until(lambda: answers(f"{base}/health"), 240)
        browser.open_address(entrance(base))
        until(lambda: browser.driver.current_url.partition("#")[0] == f"{base}/", 120)
        pages = run_links(run)
        assert pages[run.id].endswith(f"/runs/{mlflow_id}")
        browser.open_address(f"{pages[run.id]}/artifacts/report.html")
        until(lambda: len(browser.driver.find_elements("css selector", "iframe")) > 0, 120)
        browser.driver.switch_to.frame(0)
        try:
            until(lambda: browser.run("return document.querySelectorAll('.plot svg').length") >= 6, 60)
            assert browser.run("return document.querySelectorAll('.card').length") == 40
        finally:
            browser.driver.switch_to.default_content()
        assert not [message for message in browser.complaints() if re.search(r"blob:|Content.Security|report", message)]
        assert all(address.startswith(base) for address in browser.requests())
        linked = write_report(run, tmp_path / "linked.html", pages)
        browser.open(linked)
        assert browser.run("return document.querySelector('#summary .note a').href") == pages[run.id]
        browser.run("document.querySelector('[data-stage=teacher]').click()")
        teacher = run.stage("teacher").digest
        assert browser.run("return document.querySelector('.panel a').href") == pages[teacher]
        browser.run("document.querySelector('[data-stage=gate-1]').click()")  # this one MLflow does not know
        assert browser.run("return document.querySelector('.panel a')") is None
        assert browser.complaints() == []
