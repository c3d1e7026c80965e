"""The help of every verb, the scripts that complete them, and the time zone of a schedule."""

import asyncio
import re
import shlex
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from selftrain.flows.cli.main import main, parser
from selftrain.flows.environment import set_environment

VERBS = parser().verbs()


def examples(verb: str) -> list[str]:
    """The command lines of a verb's examples, without what a shell does with their output."""
    found = re.findall(r"^  selftrain (.*)$", VERBS[verb].epilog or "", flags=re.MULTILINE)
    return [re.split(r"\s>", line)[0] for line in found]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_two_examples_that_its_parser_accepts(verb: str) -> None:
    found = examples(verb)
    assert len(found) == 2
    for line in found:
        words = shlex.split(line)
        assert words[0] == verb
        assert parser().parse_args(words).verb is VERBS[verb].get_default("verb")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_states_its_exit_codes_and_every_argument_its_meaning(verb: str) -> None:
    assert "exit codes: " in VERBS[verb].format_help()
    silent = [action.dest for action in VERBS[verb]._actions if not action.help]
    assert silent == []


def test_the_top_help_names_every_verb_once_and_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = parser().format_help()
    assert re.findall(r"^  ([a-z][a-z-]+) +[A-Z]", text, flags=re.MULTILINE) == list(VERBS)
    assert max(map(len, text.splitlines())) <= 100
    assert text.index("prepare:") < text.index("train:") < text.index("look into a run:")


def script(shell: str, capsys: pytest.CaptureFixture[str], folder: Path) -> Path:
    assert main(["completion", shell]) == 0
    path = folder / f"completion.{shell}"
    path.write_text(capsys.readouterr().out)
    return path


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["rer"], ["rerun"]),
        (["run", "--n"], ["--name", "--no-prefect"]),
        (["--workspace", "here", "labels", "--fl"], ["--flipped"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["run", ""], []),  # bash then offers file names
    ],
)
def test_bash_completes(
    words: list[str], completed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = " ".join(shlex.quote(word) for word in ["selftrain", *words])
    code = f'source "$1"; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _selftrain; echo "${{COMPREPLY[@]}}"'
    path = script("bash", capsys, tmp_path)
    done = subprocess.run(["bash", "-c", code, "bash", str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == completed


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script("fish", capsys, tmp_path)
    words = ["fish", "--no-config", "-c", f"source {path}; complete -C 'selftrain export --format '"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["onnx", "torch"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_accepts_its_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(["zsh", "-n", str(script("zsh", capsys, tmp_path))], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("verb", ["up", "serve"])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--cron", "0 2 * * *", "--timezone", "Berlin"], "'Berlin' is not a time zone; expected an IANA name, for"),
        (["--cron", "0 2 * * *", "--timezone", "europe/berlin"], "Did you mean 'Europe/Berlin'?"),
        (["--timezone", "Europe/Berlin"], "--timezone is given without a schedule; add --cron"),
    ],
)
def test_a_wrong_time_zone_is_refused_in_one_sentence(
    verb: str, options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--workspace", str(tmp_path), verb, "quickstart", *options]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1


def test_a_schedule_follows_the_clock_of_its_time_zone(tmp_path: Path) -> None:
    set_environment(tmp_path)
    from prefect.deployments.runner import RunnerDeployment
    from prefect.server.schemas.schedules import CronSchedule

    from selftrain.flows.prefect.flow import self_training_flow
    from selftrain.flows.prefect.serving import Schedule

    schedule = Schedule(cron="0 2 * * *", timezone="Europe/Berlin")
    made = RunnerDeployment.from_flow(self_training_flow, name="nightly", **schedule.as_options())
    assert made.schedules is not None
    (stored,) = made.schedules
    assert stored.schedule.timezone == "Europe/Berlin"
    assert str(schedule) == "cron 0 2 * * * (Europe/Berlin)"
    fired = CronSchedule.model_validate(stored.schedule.model_dump())
    for day, hour in ((datetime(2026, 7, 1, tzinfo=UTC), 0), (datetime(2026, 12, 1, tzinfo=UTC), 1)):
        (first,) = asyncio.run(fired.get_dates(n=1, start=day))
        assert first.astimezone(UTC).hour == hour
    assert str(Schedule()) == "on demand"
    assert Schedule().as_options() == {}
