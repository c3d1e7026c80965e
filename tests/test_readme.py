"""The README's commands, in their order, in one fresh workspace."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from selftrain.ssl_tasks.methods.table import METHODS
from tests.flows.tiny import selftrain

README = Path(__file__).parent.parent / "README.md"
QUICKER = ["--set", "teacher.train.steps=20", "--set", "round.student.train.steps=20", "--set", "rounds=2"]
COMPUTES = {"run", "plan", "compare"}  # the same recipe, with fewer steps


def commands() -> list[list[str]]:
    """Every `selftrain …` line of the README's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("selftrain ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.slow
def test_every_command_of_the_readme_works(tmp_path: Path) -> None:
    found = commands()
    assert {"run", "plan", "labels", "sql", "lineage", "report", "explain", "status", "rerun"} <= {c[0] for c in found}
    assert selftrain(tmp_path, "run", "quickstart", *QUICKER).returncode == 0
    for words in found:
        verb, rest = words[0], words[1:]
        done = selftrain(tmp_path, verb, *rest[:1], *(QUICKER if verb in COMPUTES else []), *rest[1:])
        assert done.returncode == 0, f"selftrain {shlex.join(words)}: {done.stderr}"
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    quicker = block.replace('["seed=1"]', repr(QUICKER[1::2]))
    assert quicker != block
    environment = {**os.environ, "SELFTRAIN_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", quicker], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_example_compares_two_thresholds(tmp_path: Path) -> None:
    script = README.parent / "examples" / "compare_thresholds.py"
    done = subprocess.run(
        [sys.executable, str(script), "round.student.train.steps=20"],
        env={**os.environ, "SELFTRAIN_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = re.findall(r"^(\S+): \d+ pseudo-labels, test accuracy 0\.\d+$", done.stdout, flags=re.MULTILINE)
    assert said == ["0.3", "0.95"], done.stdout
    assert done.stdout.count("true_precision") == 2  # a table of the classes for each


def test_the_readme_names_every_method() -> None:
    text = README.read_text()
    assert not [name for name in METHODS if f"`{name}`" not in text]


def test_the_readmes_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (README.parent / target).exists(), f"the README links to {target}, which is not there"
