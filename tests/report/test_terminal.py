"""Names from data on a terminal: whatever a verb says, it moves no cursor, colours nothing, turns no writing around."""

import re
from pathlib import Path

import pytest

from selftrain.flows.cli.main import main
from selftrain.ssl_tasks.store.runs import Run
from tests.report.hostile import CLASSES, sample_id

ESCAPES = re.compile(r"[^\n\t\x20-\x7e\xa0-\u2027\u202f-\u2065\u206a-\U0010ffff]|[\x80-\x9f]")


@pytest.fixture
def bad_files(tmp_path: Path) -> Path:
    """An image that is none, with an escape in its name; and corrections that cannot be used."""
    (tmp_path / "pictures\x1b[31m").mkdir()
    (tmp_path / "pictures\x1b[31m" / "not\x1b[2Jan image.png").write_text("no image")
    (tmp_path / "corrections.csv").write_text(f'sample_id,label\n"{sample_id(2)}","\x1b[31mnobody"\n')
    return tmp_path


VERBS = {
    "labels": (["labels", "RUN", "--limit", "300"], 0),
    "labels review": (["labels", "review", "RUN"], 0),
    "labels diff": (["labels", "diff", "RUN", "1", "2"], 0),
    "labels of no class": (["labels", "RUN", "--class", "\x1b[31mnobody"], 2),
    "labels of no length": (["labels", "RUN", "--limit", "0"], 2),
    "labels apply": (["labels", "apply", "RUN", "FILES/corrections.csv"], 2),
    "labels apply without a file": (["labels", "apply", "RUN", "FILES/\x1b[31m.csv"], 2),
    "sql": (["sql", "RUN", "select * exclude (content) from manifest limit 20"], 0),
    "sql of columns": (["sql", "RUN", 'select 1 as "\x1b[2J[bold]x"'], 0),
    "sql that fails with a value": (["sql", "RUN", "select sample_id::int from manifest order by 1"], 2),
    "lineage": (["lineage", "RUN"], 0),
    "lineage as a flow chart": (["lineage", "RUN", "--mermaid"], 0),
    "lineage of a sample": (["lineage", sample_id(2), "--run", "RUN"], 0),
    "lineage of none": (["lineage", "no \x1b[31msample", "--run", "RUN"], 2),
    "status": (["status", "RUN"], 0),
    "status of none": (["status", "\x1b[31mno run"], 2),
    "status of all": (["status", "--all"], 0),
    "predict": (["predict", "RUN", "FILES/pictures\x1b[31m"], 0),
    "predict of nothing": (["predict", "RUN", "FILES/\x1b[31mnowhere"], 2),
}


@pytest.mark.parametrize("name", VERBS)
def test_no_escape_reaches_the_terminal(
    run: Run, bad_files: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, code = VERBS[name]
    filled = [word.replace("RUN", run.id).replace("FILES", str(bad_files)) for word in words]
    assert main(["--workspace", str(run.workspace), *filled]) == code
    said = capsys.readouterr()
    assert said.out or said.err
    assert ESCAPES.findall(said.out + said.err) == []


def test_the_names_are_hostile_and_are_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert any(ESCAPES.search(name) for name in CLASSES)
    assert ESCAPES.search(sample_id(2))
    assert main(["--workspace", str(run.workspace), "labels", run.id, "--limit", "300"]) == 0
    assert "owned" in capsys.readouterr().out
