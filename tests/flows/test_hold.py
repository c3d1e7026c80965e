"""A person between the rounds: the run waits, the person corrects and approves, the corrections count."""

import json
import subprocess
import time
from pathlib import Path

import pandas as pd

from ssl_tasks.runs import find_run
from tests.flows.tiny import command, environment, last, selftrain


def test_a_held_run_waits_takes_corrections_and_goes_on(copy: Path, recipe: str, tmp_path: Path) -> None:
    words = command(copy, "run", recipe, "--set", "rounds.0.hold=true", "--set", "rounds=1")
    before = last(copy).id
    run = subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (last(copy).id == before or last(copy).info["state"] != "waiting"):
        time.sleep(0.2)
    waiting = last(copy)
    assert waiting.info["state"] == "waiting"
    first = waiting.artifact("select-1")
    assert first is not None
    table = pd.read_parquet(first.file("selection.parquet"))
    wrong = table.iloc[0]
    corrections = tmp_path / "corrections.csv"
    corrections.write_text(f"sample_id,label\n{wrong.sample_id},{(wrong.label + 1) % 10}\n")
    assert selftrain(copy, "labels", "apply", waiting.id, str(corrections)).returncode == 0
    assert selftrain(copy, "approve", waiting.id).returncode == 0
    assert run.wait(timeout=120) == 0
    second = find_run(copy, waiting.id).artifact("select-1")
    assert second is not None
    assert second.digest != first.digest
    corrected = pd.read_parquet(second.file("selection.parquet")).set_index("sample_id").loc[wrong.sample_id]
    assert (corrected.label, corrected.source) == ((wrong.label + 1) % 10, "override")


def test_a_correction_that_cannot_be_used_is_refused_whole(copy: Path, tmp_path: Path) -> None:
    corrections = tmp_path / "corrections.csv"
    corrections.write_text("sample_id,label\ndigits/0000,notaclass\nnobody,3\n")
    refused = selftrain(copy, "labels", "apply", "last", str(corrections))
    assert refused.returncode == 2
    assert "notaclass" in refused.stderr
    assert not (copy / "corrections" / "tiny.csv").exists()


def test_a_run_that_does_not_wait_cannot_be_approved(copy: Path) -> None:
    refused = selftrain(copy, "approve", "last")
    assert refused.returncode == 2
    assert "does not wait" in refused.stderr
    assert json.loads(selftrain(copy, "status", "--json").stdout)["state"] == "done"
