"""A newcomer's whole way with a folder of images: init, data, run, a correction, the next run, export."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from selftrain.flows.actions.first_recipe import write_recipe
from selftrain.models import ModelSettings
from selftrain.models.sources import find_source
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.settings.recipe import load_recipe
from tests.flows.tiny import last, selftrain, states

SHORT = [
    *("--set", "teacher.train.steps=40", "--set", "teacher.model.width=8"),
    *("--set", "round.student.train.steps=20", "--set", "round.student.model.width=8"),
    *("--set", "rounds=1", "--set", "round.select.threshold=0", "--set", "runtime.threads=1"),
]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of ten labelled images, eighty without a label, a test set, one file that is no image."""
    pixels, labels = load_digits(return_X_y=True)
    root = tmp_path / "my images"
    for digit, name in ((0, "nought"), (1, "one")):
        for number, image in enumerate(pixels[labels == digit][:65]):
            folder = root / (name if number < 10 else "unlabeled" if number < 50 else f"test/{name}")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image.reshape(8, 8) * 15.9).astype("uint8")).save(folder / f"{name} {number}.png")
    (root / "unlabeled" / "broken.png").write_text("no image")
    return root


@pytest.mark.parametrize(("folder", "name"), [("2024", "2024"), ("no", "no"), ("Blüten", "Bl-ten"), ("...", "images")])
def test_a_recipe_for_a_folder_of_any_name_can_be_read(images: Path, folder: str, name: str) -> None:
    output = images.parent / "selftrain.yaml"
    write_recipe(images.rename(images.with_name(folder)), output)
    assert load_recipe(output).config.name == name


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two classes of four coloured images, 90 pixels wide."""
    for number in range(8):
        folder = tmp_path / "photographs" / ("red" if number % 2 else "blue")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (120, 90), (200, number, 0) if number % 2 else (0, number, 200)).save(folder / f"{number}.png")
    return tmp_path / "photographs"


def test_photographs_start_from_the_given_weights(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, weights = photographs.parent / "photos.yaml", photographs.parent / "lite0.safetensors"
    save_file({"conv_stem.weight": torch.zeros(2)}, weights)
    monkeypatch.chdir(photographs.parent)
    lines = write_recipe(photographs, output, weights="lite0.safetensors")
    assert "images will be resized to 90" in "\n".join(lines)
    assert "pretrained weights of timm:tf_efficientnet_lite0" in lines[-2]
    assert lines[-1] == "no image is held out for validation, because a class has 4 labels"
    config = load_recipe(output).config
    learners = [config.teacher, *(one.student for one in config.rounds)]
    assert {learner.model.pretrained for learner in learners} == {str(weights)}
    assert (config.data.image_size, config.data.split.validation) == (90, 0)
    assert output.read_text().count(str(weights)) == len(learners) - 1, "once for the teacher, once for all students"


def test_photographs_start_from_published_weights_where_these_are_on_the_machine(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("torch.hub._hub_dir", str(photographs.parent / "hub"))
    first, second = photographs.parent / "first.yaml", photographs.parent / "second.yaml"
    lines = write_recipe(photographs, first)
    assert "cannot be fetched from here" in lines[-1]
    assert "--weights FILE" in lines[-1]
    assert load_recipe(first).config.teacher.model.pretrained is None
    place = find_source(ModelSettings(name="timm:tf_efficientnet_lite0", pretrained=True)).place
    place.parent.mkdir(parents=True)
    save_file({"conv_stem.weight": torch.zeros(2)}, place)
    assert any("licence apache-2.0" in line for line in write_recipe(photographs, second))
    assert load_recipe(second).config.teacher.model.pretrained is True


def test_a_person_can_refuse_weights_and_is_told_about_wrong_ones(photographs: Path) -> None:
    output = photographs.parent / "recipe.yaml"
    with pytest.raises(ConfigError, match=r"--weights: .*nowhere.safetensors does not exist"):
        write_recipe(photographs, output, weights="/nowhere.safetensors")
    with pytest.raises(ConfigError, match="expected true, a tag, a hub id"):
        write_recipe(photographs, output, weights="a b/c")
    assert not output.exists()
    write_recipe(photographs, output, weights="none")
    assert load_recipe(output).config.teacher.model.name == "fast_cnn"


@pytest.mark.slow
def test_a_newcomer_comes_from_a_folder_to_a_model(images: Path, tmp_path: Path) -> None:
    workspace, recipe = tmp_path / "workspace", tmp_path / "selftrain.yaml"

    def done(*words: str) -> str:
        result = selftrain(workspace, *words)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "20 images labeled" in done("init", str(images), "--output", str(recipe))
    assert "unlabeled/broken.png: not an image" in done("data", str(recipe))
    first = json.loads(done("run", str(recipe), *SHORT, "--json"))
    assert [line["round"] for line in first["rounds"]] == [0, 1]

    wrong = json.loads(done("labels", "last", "--selected", "--limit", "1", "--json", "-"))[0]
    other = "one" if wrong["class"] == "nought" else "nought"
    corrections = tmp_path / "corrections.csv"
    corrections.write_text(f"sample_id,label\n{wrong['sample_id']},{other}\n")
    done("labels", "apply", "last", str(corrections))
    done("run", str(recipe), *SHORT)
    after = states(last(workspace))
    assert (after["teacher"], after["predict-1"], after["select-1"]) == ("reused", "reused", "computed")
    query = f"select class from selection where sample_id = '{wrong['sample_id']}'"
    assert json.loads(done("sql", "last", query, "--json", "-"))[0]["class"] == other

    assert "<html" in Path(done("report", "last", "--output", str(tmp_path / "report.html")).strip()).read_text()
    done("export", "last", "--output", str(tmp_path / "model.pt2"))
