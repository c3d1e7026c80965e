"""`run`, `status` and the report say the same about a run that has not ended well; and what a damaged artifact was."""

import logging
import re
import signal
from pathlib import Path

import pytest

from selftrain.flows.actions import verbs
from selftrain.flows.cli.main import _how_to_continue, main, parser
from selftrain.flows.rounds.conductor import Conductor, reason_of
from selftrain.ssl_tasks import errors
from selftrain.ssl_tasks.errors import DataError, Interrupted, StageFailed
from selftrain.ssl_tasks.execution.stage import Request
from selftrain.ssl_tasks.report.page import report_data
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.runs import Run, StageRecord, advice, find_run
from tests.bodies import Behaviour

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("state", ["failed", "interrupted", "crashed", "waiting", "running", "done"])
def test_run_status_and_report_give_the_same_advice(
    workspace: Path, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.create(workspace, RunConfig())
    run.record(StageRecord("teacher", "train", "failed", reason="why", log=str(workspace / "log")))
    run.update(state=state, stopped="")
    said = advice(run)
    command = {"waiting": "approve", "running": "", "done": ""}.get(state, "rerun")
    assert said.count(f"selftrain --workspace {workspace} {command} {run.id}") == bool(command)
    assert bool(said) == bool(command)
    options = parser().parse_args(["--workspace", str(workspace), "run", "quickstart"])
    assert _how_to_continue(options, None, ended=False) == (f"\n{said}" if said else "")
    assert main(["--workspace", str(workspace), "status"]) == 0
    assert (said in capsys.readouterr().out) or not said
    assert report_data(run).run["advice"] == said


def test_advice_leaves_out_a_workspace_that_is_found_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFTRAIN_HOME", str(tmp_path / "here"))
    run = Run.create(tmp_path / "here", RunConfig())
    run.update(state="failed")
    assert f"selftrain rerun {run.id}" in advice(run)


def test_a_run_of_another_process_is_not_taken_for_ours(workspace: Path) -> None:
    run = Run.create(workspace, RunConfig())
    run.update(state="failed", pid_started=1.0)
    options = parser().parse_args(["--workspace", str(workspace), "run", "quickstart"])
    assert _how_to_continue(options, ["run", "quickstart"], ended=False) == ""
    assert _how_to_continue(options, ["run", "quickstart"], ended=True) == "\nresume with: selftrain run quickstart"


def test_rerun_without_a_stage_resumes_the_run(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Run.create(workspace, RunConfig(seed=7))
    asked = {}
    monkeypatch.setattr(verbs, "run", lambda recipe, **how: asked.update(how, seed=recipe.config.seed) or before)
    verbs.rerun("last", workspace=workspace)
    assert (asked["force"], asked["seed"]) == ([], 7)
    verbs.rerun("last", "teacher", workspace=workspace)
    assert asked["force"] == ["teacher"]


def test_a_cancelled_stage_was_asked_to_stop() -> None:
    from prefect.exceptions import TerminationSignal

    assert reason_of(TerminationSignal(signal=signal.SIGTERM)) == "asked to stop"
    assert reason_of(KeyboardInterrupt()) == "asked to stop"
    assert reason_of(Interrupted("the run ended before there was room")) == "the run ended before there was room"
    assert reason_of(ValueError()) == "ValueError"
    assert reason_of(StageFailed("a", "took too long")) == "took too long"


def test_a_damaged_artifact_is_named_on_the_terminal_and_in_the_status(
    workspace: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("selftrain"), "propagate", True)  # `main` turns it off
    config = RunConfig()
    request = Request("dataset", "dataset", 1, "tests.bodies:behave", Behaviour())
    for damaged in (False, True):
        run = Run.create(workspace, config)
        conductor = Conductor(config, workspace, run)
        with caplog.at_level(logging.WARNING, logger="selftrain"):
            caplog.clear()
            made = conductor.run(request, 0)
        conductor.close()
        assert bool(caplog.text) == damaged
        if not damaged:
            file = next(path for path in made.path.rglob("*") if path.name != "artifact.json")
            file.write_bytes(b"other")
    (aside,) = (workspace / "store" / "quarantine").iterdir()
    assert str(aside) in caplog.text
    assert main(["--workspace", str(workspace), "status"]) == 0
    assert "was damaged" in capsys.readouterr().out
    assert str(aside) in find_run(workspace).stage("dataset").reason


@pytest.mark.parametrize("words", [["--workspace", "W", "status"], ["status", "--workspace", "W"]])
def test_the_workspace_is_named_before_the_verb_or_after_it(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert f"no runs in {tmp_path / 'W'}" in capsys.readouterr().err


def test_without_the_option_the_workspace_is_none() -> None:
    assert parser().parse_args(["status"]).workspace is None


@pytest.mark.parametrize(("verb", "meant"), [("rnu", "run"), ("lables", "labels"), ("sttaus", "status"), ("xyz", "")])
def test_a_mistyped_verb_is_answered_with_the_nearest_in_one_sentence(
    verb: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "quickstart"])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "usage" not in said
    assert said.count("\n") == 1
    assert said.startswith(f"selftrain: no verb '{verb}'.")
    assert (f"Did you mean '{meant}'?" in said) == bool(meant)


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"selftrain \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_the_exit_codes_of_the_documentation_are_those_of_the_errors() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    named = {int(code) for code in re.findall(r"^    (\d+) +[a-z]", errors.__doc__ or "", re.MULTILINE)}
    kinds = [errors.SelftrainError, DataError, Interrupted, StageFailed]
    assert documented == named == {0, *(kind.exit_code for kind in kinds)}


@pytest.mark.parametrize("name", ["what?", "line\nend", "x" * 250 + "/" + "y" * 250, "z" * 256, "half\udcff"])
def test_a_workspace_that_its_databases_cannot_hold_is_refused_by_every_verb(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["run", "quickstart"], ["status"], ["doctor"], ["clean"], ["sync"], ["report"]):
        assert main(["--workspace", str(tmp_path / name), *words]) == 2, words
        said = capsys.readouterr().err
        assert said.startswith("selftrain: the workspace ")
        assert len(said) < 400
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a b", "a%20b", "a#b", "aüb", "a:b@c", "a;b&c=d", "a'b\"c", "a[b]$"])
def test_the_address_of_a_database_holds_any_other_letter(tmp_path: Path, name: str) -> None:
    from sqlalchemy import make_url

    from selftrain.flows.environment import workspace_folder
    from selftrain.ssl_tasks.tracking.client import default_uri

    folder = workspace_folder(tmp_path / name)
    assert make_url(default_uri(folder)).database == str(folder / "mlflow.db")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cron", "nonsense"], "--cron 'nonsense' is not a schedule"),
        (["--cron", "* * * *"], "is not a schedule"),
        (["--cron", ""], "is not a schedule"),
        (["--cron", "99 * * * *"], "is not a schedule"),
        (["--interval", "0"], "--interval is 0; expected 1 to"),
        (["--interval=-5"], "--interval is -5; expected 1 to"),
        (["--interval", "nan"], "--interval is nan; expected 1 to"),
        (["--interval", "1e300"], "--interval is 1e+300; expected 1 to"),
        (["--rrule", "nonsense"], "--rrule 'nonsense' is not a schedule"),
    ],
)
@pytest.mark.parametrize("verb", ["up", "serve", "deploy"])
def test_a_schedule_that_is_none_is_refused_before_anything_starts(
    tmp_path: Path,
    words: list[str],
    sentence: str,
    verb: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE"):
        monkeypatch.delenv(name, raising=False)  # put back as they were
    monkeypatch.setattr("selftrain.flows.cli.serving.set_environment", lambda _: None)
    monkeypatch.setattr("selftrain.flows.cli.serving.set_environment", lambda _: None)
    assert main(["--workspace", str(tmp_path / "workspace"), verb, "quickstart", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "workspace").exists()
