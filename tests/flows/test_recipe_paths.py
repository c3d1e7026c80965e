"""A wrong path costs no time: it is found before Prefect, MLflow or torch start, and leaves no run."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from selftrain.flows.rounds.pipeline import check_paths
from selftrain.ssl_tasks.errors import UserError
from selftrain.ssl_tasks.settings.recipe import load_recipe
from tests.flows.tiny import command, environment, selftrain

NOWHERE = "/nowhere/at/all"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Class folders, a table of one row and a text file."""
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no folder")
    pd.DataFrame({"image": ["cat/0.png"], "label": ["cat"]}).to_csv(tmp_path / "table.csv", index=False)
    pd.DataFrame({"image": ["cat/0.png"], "label": ["cat"]}).to_parquet(tmp_path / "table.parquet")
    return tmp_path


def source(**values: Any) -> str:
    return f"data.source={json.dumps(values)}"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (source(name="folder", path="IN/imagse"), "imagse does not exist. Did you mean"),
        (
            source(name="folder", path="IN/text.txt"),
            "is a file; expected a folder with one subfolder of images per class",
        ),
        (source(name="folder", path="IN/empty"), "has no class folders"),
        (source(name="folder", path="IN/images", unlabeled="IN/nothing"), "the unlabeled images' place"),
        (source(name="folder", path="IN/images", test="IN/nothing"), "the test images' place"),
        (source(name="table", path="IN/tabel.csv"), "the table"),
        (source(name="table", path="IN/images"), "is a folder; expected a CSV or Parquet file"),
        (source(name="table", path="IN/table.csv", label="class"), "has no column 'class'"),
        (source(name="table", path="IN/table.parquet", image="file"), "has no column 'file'"),
        (source(name="table", path="IN/table.csv", root="IN/nothing"), "the root of the table's paths"),
        (source(name="table", path="IN/table.csv", test_path="IN/nothing.csv"), "the test table"),
        (source(name="cifar10", path="IN/nothing", download=False), "the folder of CIFAR10"),
        ("given_teacher=IN/empty", "given_teacher: IN/empty holds no model.safetensors"),
        ("teacher.model.pretrained=IN/nothing", "teacher.model.pretrained: IN/nothing does not exist"),
        ("rounds.2.student.model.pretrained=IN/empty", "rounds.2.student.model.pretrained: IN/empty is a folder"),
        ("rounds.1.select.overrides=IN/nothing.csv", "rounds.1.select.overrides: IN/nothing.csv does not exist"),
    ],
)
def test_every_path_of_a_recipe_is_checked(images: Path, override: str, sentence: str) -> None:
    config = load_recipe("quickstart", [override.replace("IN", str(images))]).config
    with pytest.raises(UserError) as error:
        check_paths(config, images / "cache")
    assert sentence.replace("IN", str(images)) in str(error.value)
    assert "\n" not in str(error.value)


def test_existing_paths_are_accepted(images: Path) -> None:
    for good in (
        source(name="folder", path=f"{images}/images"),
        source(name="table", path=f"{images}/table.csv"),
        source(name="table", path=f"{images}/table.parquet"),
        source(name="digits"),
        "rounds.1.select.overrides=" + str(images / "table.csv"),
    ):
        check_paths(load_recipe("quickstart", [good]).config, images / "cache")


def test_all_wrong_paths_are_named_in_one_message(images: Path) -> None:
    overrides = [source(name="folder", path=NOWHERE), f"given_teacher={NOWHERE}"]
    with pytest.raises(UserError, match="2 paths cannot be used") as error:
        check_paths(load_recipe("quickstart", overrides).config, images / "cache")
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("verb", ["run", "train"])
def test_a_wrong_source_fails_in_under_a_second_and_leaves_nothing(tmp_path: Path, verb: str) -> None:
    words = command(tmp_path / "workspace", verb, "quickstart", "--set", source(name="folder", path=NOWHERE))
    seconds = []
    for _ in range(3):
        process = subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)  # processor time: the machine may have other work
        process.stderr.close()
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds.append(usage.ru_utime + usage.ru_stime)
        assert process.returncode == 2, errors
    assert min(seconds) < 1.0
    assert errors.startswith(f"selftrain: the image folder {NOWHERE} does not exist.")
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "workspace").exists(), "neither a run nor Prefect's or MLflow's databases"


def test_a_workspace_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = selftrain(tmp_path / "file", "run", "quickstart")
    assert done.returncode == 2
    assert f"the workspace {tmp_path / 'file'} cannot be created" in done.stderr
