"""The command line's promises: exit codes, one clear sentence, never a traceback."""

import errno
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from selftrain.flows.actions.housekeeping import clean
from selftrain.flows.cli.main import _ToStderr, main
from selftrain.flows.tables import printable
from selftrain.ssl_tasks.errors import Interrupted, UserError
from selftrain.ssl_tasks.store.locks import file_lock
from selftrain.ssl_tasks.store.runs import Run, owner
from selftrain.ssl_tasks.tracking.tracker import Tracker
from tests.flows.tiny import command, environment, last, selftrain


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "nowhere.yaml"], "no recipe 'nowhere.yaml'"),
        (["run", "quickstart", "--set", "teacher.train.stepz=1"], "Did you mean 'steps'"),
        (["run", "quickstart", "--set", "data.source={name: folder, path: /nowhere/at/all}"], "/nowhere/at/all"),
        (["status", "nothing"], "no runs in"),
        (["labels"], "no runs in"),
        (["approve"], "no runs in"),
        (["explain", "last", "teacher"], "no runs in"),
        (["init", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_bad_input_gets_one_sentence_and_code_2(tmp_path: Path, words: list[str], sentence: str) -> None:
    done = selftrain(tmp_path, *words)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_failed_stage_exits_with_3_and_names_the_command_that_resumes(copy: Path, recipe: str) -> None:
    steep = ["--set", "teacher.train.learning_rate=1.0e+30", "--set", "teacher.train.schedule=constant"]
    done = selftrain(copy, "run", recipe, *steep, "--set", "teacher.train.precision=fp32", "--no-prefect")
    assert done.returncode == 3, done.stderr
    assert "stage 'teacher' failed" in done.stderr
    assert "resume with: selftrain" in done.stderr
    assert "Traceback" not in done.stderr
    stages = {stage["name"]: stage for stage in json.loads(selftrain(copy, "status", "--json").stdout)["stages"]}
    assert stages["teacher"]["state"] == "failed"
    assert stages["teacher"]["reason"]
    assert Path(stages["teacher"]["log"]).exists()
    assert stages["student-1"]["state"] == "pending"


def test_json_results_stand_alone_on_stdout(copy: Path) -> None:
    for words in (["status", "--json"], ["status", "--all", "--json"], ["config", "quickstart", "--json"]):
        json.loads(selftrain(copy, *words).stdout)


def test_labels_and_sql_answer(copy: Path) -> None:
    shown = selftrain(copy, "labels", "last", "--round", "1", "--limit", "3", "--csv", "-")
    assert len(shown.stdout.splitlines()) == 4, shown.stderr
    count = selftrain(copy, "sql", "last", "select count(*) as n from selection", "--json", "-")
    assert json.loads(count.stdout)[0]["n"] > 0
    refused = selftrain(copy, "sql", "last", "copy selection to 'stolen.csv'")
    assert refused.returncode == 2
    assert "read-only" in refused.stderr


def test_lineage_reaches_the_labelled_images_and_finds_damage(copy: Path) -> None:
    tree = selftrain(copy, "lineage", "last", "--verify")
    assert tree.returncode == 0, tree.stderr
    assert "labeled · 40 images" in tree.stdout
    assert "verified" in tree.stdout
    teacher = last(copy).artifact("teacher")
    assert teacher is not None
    weights = teacher.file("model.safetensors")
    for changed in (weights.read_bytes()[:-1] + b"!", b"cut off"):
        weights.write_bytes(changed)
        damaged = selftrain(copy, "lineage", "last", "--verify")
        assert damaged.returncode == 3
        assert "model.safetensors has changed" in damaged.stderr
        (_, _, rest) = damaged.stderr.partition("models made from it: ")
        assert {name.split(" ")[0] for name in rest.strip().split(", ")} == {"teacher", "student-1", "student-2"}


@pytest.mark.parametrize("words", [["labels", "last"], ["sql", "last", "select 1"], ["report", "last"]])
def test_a_damaged_table_is_named_with_the_remedy(
    copy: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = last(copy).artifact("predict-1")
    assert predictions is not None
    next(predictions.path.glob("shards/*.parquet")).write_bytes(b"")
    assert main(["--workspace", str(copy), *words]) == 3
    said = capsys.readouterr().err
    assert "has 0 bytes, expected" in said
    assert "run its recipe again" in said


def test_csv_goes_to_the_end_of_what_stdout_has_already(copy: Path, tmp_path: Path) -> None:
    output = tmp_path / "all.csv"
    output.write_text("before\n")
    words = command(copy, "sql", "last", "select 1 as one", "--csv", "-")
    with output.open("a") as stdout:
        subprocess.run(words, env=environment(), stdout=stdout, check=True)
    assert output.read_text() == "before\none\n1\n"


def test_clean_deletes_only_artifacts_that_no_run_references(copy: Path, recipe: str) -> None:
    stray = copy / "store" / "train" / "stray"
    stray.mkdir()
    some = next(copy.glob("store/train/*/artifact.json"))
    (stray / "artifact.json").write_text(some.read_text())
    assert "can be deleted" in selftrain(copy, "clean").stdout
    assert stray.exists()
    assert "1 folder, " in selftrain(copy, "clean", "--yes").stdout
    assert not stray.exists()
    assert some.exists()


def test_clean_deletes_nothing_while_a_run_may_reference_it(copy: Path) -> None:
    stray = copy / "store" / "train" / "stray"
    stray.mkdir()
    (stray / "artifact.json").write_text(next(copy.glob("store/train/*/artifact.json")).read_text())
    run = last(copy)
    state = run.info["state"]
    run.update(state="running", **owner())
    said = selftrain(copy, "clean", "--yes").stdout
    assert f"unreferenced artifacts are kept while these run: {run.id}" in said
    assert stray.exists()
    run.update(state=state)
    assert clean(copy).paths == (stray,)


def test_clean_deletes_the_cache_only_if_asked(copy: Path) -> None:
    def kept() -> dict[str, int]:
        return {str(file): file.stat().st_size for file in copy.glob("store/*/*/**/*") if file.is_file()}

    pixels = next(copy.glob("cache/decoded/*/pixels-*.u8")).stat().st_size
    before, offered = kept(), clean(copy)
    assert offered.paths == ()
    assert offered.cache_bytes >= pixels
    assert f"{offered.cache_bytes / 1e6:.1f} MB that the next run would write again" in selftrain(copy, "clean").stdout
    assert (copy / "cache" / "decoded").exists()
    with file_lock(copy / "store" / "locks" / "train-key"):
        (copy / "store" / "attempts" / "train-key").mkdir(parents=True)
        with pytest.raises(UserError, match="a run is using the cache"):
            clean(copy, dry_run=False, cache=True)
    assert clean(copy, dry_run=False, cache=True).cache_bytes == offered.cache_bytes
    assert not list((copy / "cache").iterdir())
    assert kept() == before


def test_a_shard_that_an_artifact_holds_frees_nothing(tmp_path: Path) -> None:
    shard = tmp_path / "cache" / "shards" / "ab" / "ab12.parquet"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"rows")
    assert clean(tmp_path).cache_bytes == 4
    os.link(shard, tmp_path / "part-00000.parquet")
    assert clean(tmp_path).cache_bytes == 0


def test_a_signal_that_comes_while_a_line_is_logged_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def write(self, _text: str) -> int:
            raise Interrupted("asked to stop")

    handler = _ToStderr()
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(Interrupted):
        handler.handle(logging.LogRecord("selftrain", logging.INFO, "", 0, "done", None, None))


@pytest.mark.parametrize("words", [["plan", "quickstart"], ["run", "quickstart", "--no-prefect"]])
def test_a_workspace_without_write_permission_is_reported(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "file").touch()
    done = selftrain(tmp_path / "file" / "workspace", *words)
    assert done.returncode == 2, done.stderr
    assert f"the workspace {tmp_path / 'file' / 'workspace'} cannot be" in done.stderr
    assert "--workspace DIR" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("code", "exit_code"), [(errno.EROFS, 2), (errno.EACCES, 2), (errno.EIO, 3)])
def test_an_error_is_printed_even_if_it_cannot_be_logged(
    tmp_path: Path,
    code: int,
    exit_code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workspace = tmp_path / "file" / "workspace"
    workspace.parent.touch()

    def stages(*_: object) -> None:
        raise OSError(code, os.strerror(code), str(workspace / "runs" / "one" / "run.json"))

    monkeypatch.setattr("selftrain.flows.actions.verbs.stages", stages)
    monkeypatch.setattr(
        "selftrain.ssl_tasks.store.runs.all_runs", lambda _workspace: iter([Run(workspace / "runs" / "one")])
    )
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert main(["--workspace", str(workspace), "status"]) == exit_code
    said = capsys.readouterr().err
    assert os.strerror(code) in said
    assert ("--workspace DIR" in said) == (exit_code == 2)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_a_letter_is_shown_another(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "images" / "日本").mkdir(parents=True)
    init = ["init", str(tmp_path / "images"), "--output", str(tmp_path / "recipe.yaml")]
    for words, code in ((["evaluate", "--help"], 0), (["config", "nichts→日本"], 2), (init, 0)):
        done = subprocess.run(
            command(tmp_path, *words),
            env=environment(PYTHONIOENCODING=encoding),
            capture_output=True,
            encoding=encoding,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert "unexpected" not in done.stderr


def test_a_table_is_shown_where_a_terminal_lacks_its_letters(copy: Path) -> None:
    done = selftrain(copy, "labels", "last", "--limit", "3", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    done = selftrain(copy, "plan", "quickstart", "--set", "seed=9", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


def test_no_message_shows_a_password(tmp_path: Path) -> None:
    uri = "http://me:secret@127.0.0.1:1"
    Tracker(uri, tmp_path, ship=False).close()
    for words in (["sync"], ["sync", "--to", uri], ["doctor"], ["run", "quickstart"]):
        said = selftrain(tmp_path, *words, MLFLOW_TRACKING_URI=uri, PREFECT_API_URL=f"{uri}/api")
        assert "127.0.0.1:1" in said.stdout + said.stderr
        assert "secret" not in said.stdout + said.stderr
    assert "secret" not in (tmp_path / "tracking" / "shipper.log").read_text()


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from selftrain.flows.cli.main import parser; parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pandas", "prefect", "mlflow", "duckdb", "pyarrow", "numpy"} & set(loaded)


def test_names_from_data_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\u202ec\x07") == "a\ufffd[2Jb\ufffdc\ufffd"
