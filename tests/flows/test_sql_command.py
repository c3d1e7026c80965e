"""`selftrain sql`: answers of any size in bounded memory, rows and time; files appear whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from selftrain.flows.cli import labelling
from selftrain.flows.cli.main import main
from selftrain.ssl_tasks.pseudo_labels import views
from tests.flows.tiny import command, environment
from tests.made_run import make_run

ENDLESS = "select count(*) from range(10000000000) a, range(1000000) b"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a run of one round."""
    workspace = tmp_path_factory.mktemp("made")
    make_run(workspace)
    return workspace


def ask(workspace: Path, query: str, *options: str) -> int:
    """The exit code of a query in this process."""
    return main(["--workspace", str(workspace), "sql", "last", query, *options])


def test_a_terminal_shows_the_first_rows_and_says_that_there_are_more(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(labelling, "MOST_ROWS", 3)
    assert ask(made, "select range as n from range(1000000000000)") == 0
    shown = capsys.readouterr()
    assert shown.out.split() == ["n", "0", "1", "2"]
    assert "the first 3 rows are shown. More: --limit N. All: --csv FILE" in shown.err
    assert ask(made, "select range as n from range(3)") == 0
    assert "rows are shown" not in capsys.readouterr().err
    assert ask(made, "select range as n from range(9)", "--limit", "2") == 0
    assert capsys.readouterr().out.split() == ["n", "0", "1"]
    assert ask(made, "select repeat('x', 1000000)") == 0
    assert len(capsys.readouterr().out) < 10_000


def test_files_have_every_row_of_many_batches(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(views, "BATCH_ROWS", 2048)
    columns = "range as n, nullif(range, 3) as gap, 'a,\"b\"' as text, sum(range) over () as sum"
    query = f"select {columns} from range(5000) order by n"
    for kind in ("csv", "json", "parquet"):
        assert ask(made, query, f"--{kind}", str(tmp_path / kind)) == 0
    assert capsys.readouterr().err.count("5,000 rows") == 3
    table = pd.read_csv(tmp_path / "csv", dtype={"gap": "Int64"})
    assert table["n"].tolist() == list(range(5000))
    assert "\n2,2," in (tmp_path / "csv").read_text(), "a whole number stays whole where others are missing"
    rows = json.loads((tmp_path / "json").read_text())
    assert [row["n"] for row in rows] == list(range(5000))
    assert (rows[3]["gap"], rows[4]["gap"], rows[0]["text"], rows[0]["sum"]) == (None, 4, 'a,"b"', 12497500)
    assert len(pd.read_parquet(tmp_path / "parquet")) == 5000
    assert ask(made, "select 1 as a, 2 as a where false", "--csv", "-") == 0
    assert capsys.readouterr().out == "a,a_1\n"
    assert ask(made, "select 1 as a where false", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_query_that_fails_leaves_no_file_and_the_old_one(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    failing = "select case when range < 100000 then range else error('late') end from range(200000)"
    for kind in ("csv", "json", "parquet"):
        assert ask(made, failing, f"--{kind}", str(path)) == 2
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("query", [ENDLESS, "select * from range(100000000000000)"])
def test_a_query_ends_at_its_time_limit_with_code_3(made: Path, query: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(made, query, "--timeout", "0.5", "--csv", "/dev/null") == 3
    said = capsys.readouterr().err
    assert "took longer than 0.5 s" in said
    assert "--timeout SECONDS" in said


@pytest.mark.parametrize(
    "options", [["--timeout", "-1"], ["--timeout", "nan"], ["--timeout", "1e300"], ["--limit", "0"]]
)
def test_limits_out_of_range_are_refused(made: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(made, "select 1", *options) == 2
    assert "expected" in capsys.readouterr().err


def test_one_huge_value_is_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(made, "select range(1000000000) from range(4)") == 3
    assert "memory" in capsys.readouterr().err


def test_no_cell_of_an_answer_is_a_formula(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = """select '=1+1' as "@name", -2 as number, 'a' || chr(13) || 'b' as text"""
    assert main(["--workspace", str(made), "sql", "last", query, "--csv", "-"]) == 0
    assert capsys.readouterr().out == "'@name,number,text\n'=1+1,-2,\"a\rb\"\n"


def test_an_answer_of_four_gigabytes_is_written_within_the_memory_limit(made: Path) -> None:
    query = "select repeat('x', 4000) || range as t from range(1000000)"
    words = command(made, "sql", "last", query, "--parquet", str(made / "big.parquet"))
    with subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert usage.ru_maxrss < 3 * 1024 * 1024, "KiB: 0.3 GiB on an idle machine, 1.9 GiB seen where the writer waits"


def test_ctrl_c_ends_a_query_with_code_130_and_leaves_nothing(made: Path, tmp_path: Path) -> None:
    words = command(made, "sql", "last", ENDLESS)
    process = subprocess.Popen(
        words, env=environment(TMPDIR=str(tmp_path)), stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not list(tmp_path.glob("selftrain-spill-*/*/in-use.lock")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert "RuntimeError" not in said
    assert not [path for path in tmp_path.glob("selftrain-spill-*/*") if path.is_dir()]


def test_a_query_that_does_not_notice_the_end_of_its_time_is_ended(made: Path) -> None:
    code = (
        "import sys, time, selftrain.flows.cli.verb as answers\n"
        "import selftrain.ssl_tasks.pseudo_labels.views as views\n"
        "answers.LEEWAY_SECONDS, views.open_tables = 0.2, lambda *_: time.sleep(600)\n"
        f"sys.argv[1:] = ['--workspace', {str(made)!r}, 'sql', 'last', 'select 1', '--timeout', '0.1']\n"
        "from selftrain.flows.cli.main import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert "was ended. Allow more: --timeout SECONDS" in ended.stderr
