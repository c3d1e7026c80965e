"""The commands of the README and of every page of docs/ are parsed, and those of ```sh blocks are run."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftrain.flows.cli.main import parser
from selftrain.ssl_tasks.methods.table import METHODS
from tests.flows.tiny import command, environment

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?:\$ |docker compose exec [\w-]+ )?selftrain (.+)$")
QUICKER = ["teacher.train.steps=20", "round.student.train.steps=20", "rounds=2"]
QUICKER_IMAGES = [
    *QUICKER,
    "teacher.model.width=8",
    "teacher.train.batch_size=16",
    "round.student.model.width=8",
    "round.student.train.batch_size=8",
]
OWN_IMAGES = ("selftrain.yaml", "images/")  # a block that has one of these is about a person's own images
FOLDERS = {"cat": 8, "dog": 8, "unlabeled": 24, "test/cat": 4, "test/dog": 4}  # and the number of images in each
CORRECTIONS = "sample_id,label\ndigits/1101,5\n"


def blocks(page: Path, languages: str) -> list[str]:
    """The fenced blocks of a page in one of the languages (a regular expression), in their order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [text for language, text in found if re.fullmatch(languages, language)]


def commands(block: str) -> Iterator[list[str]]:
    """The words of every `selftrain …` line, without the comment."""
    for line in block.splitlines():
        if found := COMMAND.match(line):
            yield shlex.split(found[1], comments=True)


def quicker(words: list[str], images: bool) -> list[str]:
    """A command that computes, with fewer steps."""
    if words[0] != "run" and not (words[0] == "compare" and "--methods" in words):
        return words
    settings = QUICKER_IMAGES if images else QUICKER
    return [*words[:2], *(word for setting in settings for word in ("--set", setting)), *words[2:]]


def in_folder(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Runs a program in a folder, whose workspace is the usual one."""
    return subprocess.run(
        words, cwd=folder, env=environment(SELFTRAIN_HOME=""), capture_output=True, text=True, timeout=900, check=False
    )


def steps(page: Path, images: bool) -> list[list[str]]:
    """The commands of a page's ```sh blocks that are about a person's own images, or those of all other blocks."""
    chosen = [block for block in blocks(page, "sh") if any(word in block for word in OWN_IMAGES) == images]
    return [words for block in chosen for words in commands(block)]


def call(folder: Path, words: list[str], images: bool = False) -> str:
    """Runs a command, with fewer steps; its standard output. Files go into the folder."""
    asked = [word.replace("/tmp/", f"{folder}/") for word in quicker(words, images)]
    ended = in_folder(folder, *command(folder / ".selftrain", *asked))
    assert ended.returncode == 0, f"selftrain {shlex.join(words)}: {ended.stderr}"
    return ended.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)  # two minutes of a processor, most of it eight runs; more on a machine that is busy
def test_every_command_of_the_readme_works(tmp_path: Path) -> None:
    (shown,) = blocks(README, "console")
    found = steps(README, images=False)
    assert {"run", "plan", "labels", "sql", "lineage", "report", "explain", "status", "rerun"} <= {c[0] for c in found}
    for words in found:
        printed = call(tmp_path, words)
        if words == ["run", "quickstart"]:
            assert printed.splitlines()[0].split() == shown.splitlines()[0].split(), "the README's table is another one"


@pytest.mark.long
@pytest.mark.slow
def test_every_command_of_the_pages_works(tmp_path: Path) -> None:
    """Those that the README has too are run by its own test. Each page begins where the quickstart is the last run."""
    (tmp_path / "corrections.csv").write_text(CORRECTIONS)
    done = [*steps(README, images=False)]
    last_is_quickstart = False
    for page in PAGES[1:]:
        for words in steps(page, images=False):
            if words in done:
                continue
            if not last_is_quickstart:
                call(tmp_path, ["run", "quickstart", "--no-prefect"])
                last_is_quickstart = True
            call(tmp_path, words)
            done.append(words)
        last_is_quickstart = last_is_quickstart and not any(
            c[0] in ("run", "compare") for c in steps(page, images=False)
        )
    assert len(done) > 2 * len(steps(README, images=False))


@pytest.mark.slow
def test_every_command_about_your_own_images_works(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0)
    for name, count in FOLDERS.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(pixels.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            image.save(tmp_path / "images" / name / f"{number}.png")
    done: list[list[str]] = []
    for page in PAGES:
        for words in steps(page, images=True):
            if words not in done:
                call(tmp_path, words, images=True)
                done.append(words)
    assert {"init", "data", "run", "predict"} <= {words[0] for words in done}


@pytest.mark.long
@pytest.mark.slow
def test_the_python_of_the_readme_and_of_the_pages_works(tmp_path: Path) -> None:
    found = [(page, block) for page in PAGES for block in blocks(page, "python")]
    assert len(found) >= 2
    for page, block in found:
        shorter = block.replace('["seed=1"]', repr(QUICKER))
        assert shorter != block, f"{page.name}: its run would take a minute"
        ended = in_folder(tmp_path, sys.executable, "-c", shorter)
        assert ended.returncode == 0, f"{page.name}: {ended.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_that_is_shown_is_understood(page: Path) -> None:
    """Those that start servers or need other machines too: the command line accepts their words."""
    for block in blocks(page, "|sh|bash|console"):
        for words in commands(block):
            complaint = io.StringIO()
            try:
                with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(complaint):
                    parser().parse_args(words)
            except SystemExit:
                pytest.fail(f"{page.name}: selftrain {shlex.join(words)}: {complaint.getvalue()}")


@pytest.mark.long
@pytest.mark.slow
def test_the_example_compares_two_thresholds(tmp_path: Path) -> None:
    script = ROOT / "examples" / "compare_thresholds.py"
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
    assert not [name for name in METHODS if f"[`{name}`](ssl_tasks/methods/{name}.py)" not in text]


def test_the_readme_can_be_read_in_minutes() -> None:
    assert len(README.read_text().splitlines()) <= 200
