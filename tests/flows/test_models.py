"""Trained models put to use: what predict, evaluate and export promise."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from selftrain.flows.actions.housekeeping import clean
from selftrain.flows.actions.measuring import evaluate
from selftrain.flows.actions.models import export, find_model, predict
from selftrain.flows.cli.main import main
from selftrain.models.settings import ModelSettings
from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.errors import ConfigError, NotFound, SelftrainError, UserError
from selftrain.ssl_tasks.tracking.model_card import model_card
from selftrain.ssl_tasks.trained.export import Format, write_torch
from selftrain.ssl_tasks.trained.model import Card, load_trained
from tests.flows.tiny import last, selftrain


@pytest.fixture(scope="session")
def test_images(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images of the finished run as PNG files, named by their sample ids."""
    folder = tmp_path_factory.mktemp("images")
    dataset = last(finished).dataset
    assert dataset is not None
    pool = Dataset.open(dataset, finished / "cache").pool("test")
    index = np.arange(len(pool))
    for name, pixels in zip(pool.sample_ids(), pool.images(index), strict=True):
        Image.fromarray(pixels.squeeze(-1)).save(folder / f"{name.replace('/', '_')}.png")
    return folder


def test_files_are_taken_for_what_evaluation_took_them_for(finished: Path, test_images: Path) -> None:
    table = predict("student-2", [test_images], finished, batch_size=25)
    evaluation = last(finished).artifact("evaluate-2")
    assert evaluation is not None
    evaluated = pd.read_parquet(evaluation.file("predictions.parquet")).query("split == 'test'")
    by_name = evaluated.assign(name=evaluated["sample_id"].str.replace("/", "_")).set_index("name")
    expected = by_name.loc[[Path(path).stem for path in table["path"]]]
    assert len(table) == 60
    assert table["label"].astype(int).tolist() == expected["predicted"].tolist()
    probs = table.filter(like="p_").to_numpy()
    # Products in bf16 may differ in their last bit by the size of the batch.
    np.testing.assert_allclose(probs, np.stack(expected["probs"].to_list()), atol=0.01)


def test_an_unreadable_image_gets_a_row_that_says_why(copy: Path, test_images: Path, tmp_path: Path) -> None:
    good, bad, missing = sorted(test_images.iterdir())[0], tmp_path / "bad.png", tmp_path / "no.png"
    bad.write_text("no image")
    written = tmp_path / "labels.json"
    done = selftrain(copy, "predict", "last", str(bad), str(good), "--json", str(written))
    assert done.returncode == 0, done.stderr
    assert "1 of 2 images could not be read" in done.stderr
    first, second = json.loads(written.read_text())
    assert "not an image" in first["error"]
    assert (first["label"], first["p_0"]) == (None, None)
    assert second["error"] is None
    assert sum(second[f"p_{digit}"] for digit in range(10)) == pytest.approx(1, abs=1e-4)
    refused = selftrain(copy, "predict", "last", str(missing))
    assert refused.returncode == 2
    assert "no.png does not exist" in refused.stderr


def test_a_model_has_many_names(copy: Path) -> None:
    run = last(copy)
    best = run.summary["best_round"]
    names = [f"student-{number}" if number else "teacher" for number in range(3)]
    for name in names:
        model = run.artifact(name)
        assert model is not None
        for said in (name, f"{run.id}:{name}", f"last:{name}", model.digest[:10], str(model.path)):
            assert find_model(copy, said).folder == model.path
    champion = run.artifact(names[best])
    assert champion is not None
    for said in ("last", run.id, "tiny", "champion:tiny"):
        assert find_model(copy, said).folder == champion.path


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("studnet-2", "Did you mean 'student-2'"),
        ("last:evaluate-1", "not a model"),
        ("last:student-9", "has no stage 'student-9'"),
        ("champion:nobody", "no champion of 'nobody'"),
    ],
)
def test_a_wrong_name_is_answered_with_what_was_expected(copy: Path, name: str, sentence: str) -> None:
    with pytest.raises(NotFound, match=sentence):
        find_model(copy, name)


def test_evaluating_again_what_a_run_evaluated_computes_nothing(copy: Path, recipe: str) -> None:
    before = set(copy.glob("store/*/*"))
    evaluation = last(copy).artifact("evaluate-1")
    assert evaluation is not None
    found = evaluate("student-1", recipe, workspace=copy)
    assert found.artifact.digest == evaluation.digest
    assert found.against == f"{last(copy).id}:teacher", "whose labels it learned from"
    assert set(copy.glob("store/*/*")) == before


def test_attacks_corruptions_and_the_own_teacher_stand_beside_the_accuracy(copy: Path, recipe: str) -> None:
    few = ("--set", "evaluate.robustness_images=5", "--set", "evaluate.bootstrap=50")
    words = (recipe, "--attacks", "0.02,0.05", "--corruptions", *few)
    done = selftrain(copy, "evaluate", "student-2", *words, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["metrics"]["test"]["count"] == 60
    assert [one["epsilon"] for one in found["robustness"]["attacks"]] == [0.02, 0.05]
    assert found["against"] == f"{last(copy).id}:student-1"
    assert found["compared"]["count"] == 60
    assert found["compared"]["mean_corruption_error"] > 0
    shown = selftrain(copy, "evaluate", "student-2", *words).stdout
    for part in ("FGSM ε", "severity 5", "ECE tempered", "precision", "compared with its own teacher", "McNemar p ="):
        assert part in shown
    assert f"mean corruption error relative to {found['against']}: " in shown
    alone = selftrain(copy, "evaluate", "student-2", *words, "--against", "none").stdout
    assert "mean error under corruptions: " in alone
    assert "no second model to relate it to" in alone


def test_a_model_without_a_teacher_is_measured_alone(copy: Path, recipe: str) -> None:
    found = evaluate("teacher", recipe, workspace=copy)
    assert (found.against, found.compared) == ("", None)
    assert "was not trained on pseudo-labels, so it has no teacher" in found.note


def test_clean_says_what_evaluate_measured_before_it_removes_it(copy: Path, recipe: str) -> None:
    assert clean(copy).evaluations == 0
    evaluate("student-1", recipe, ["evaluate.bootstrap=60"], workspace=copy, against=None)
    said = selftrain(copy, "clean").stdout
    assert "1 of them come from `selftrain evaluate` and would be recomputed when needed" in said
    assert clean(copy).evaluations == 1


def test_a_failed_evaluation_says_how_to_continue(copy: Path, recipe: str) -> None:
    words = ("evaluate", "student-1", recipe, "--set", "evaluate.bootstrap=61", "--set", "runtime.stage_timeout=0.001")
    done = selftrain(copy, *words)
    assert done.returncode == 3, done.stderr
    assert "stage 'evaluate' failed: took longer than" in done.stderr
    assert f"resume with: selftrain --workspace {copy} evaluate student-1 {recipe}" in done.stderr
    assert "log: " in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["evaluate", "student-1", "FOLDER"], "`selftrain init"),
        (["evaluate", "student-1", "RECIPE", "--attacks", "much"], "expected numbers such as"),
        (["evaluate", "student-1", "RECIPE", "--attacks", "8/255,3"], "above 0 and at most 1"),
        (["evaluate", "nobody", "RECIPE"], "no model 'nobody'"),
        (["predict", "student-1", "FOLDER"], "no image in"),
        (["predict", "student-1", "FOLDER", "--csv", "FOLDER"], "it is a folder"),
        (["predict", "student-1", "IMAGE", "--device", "abacus"], "abacus"),
        (["export", "student-1", "--output", "FOLDER"], "expected a file"),
        (["export", "dataset", "--output", "FOLDER/model.pt2"], "not a model"),
    ],
)
def test_wrong_input_gets_one_sentence(
    copy: Path, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    meant = {"FOLDER": str(tmp_path / "empty"), "RECIPE": recipe, "IMAGE": str(tmp_path / "image.png")}
    filled = [meant.get(word, word.replace("FOLDER", meant["FOLDER"])) for word in words]
    try:
        code = main(["--workspace", str(copy), *filled])
    except SystemExit as refused:  # an argument's own form
        code = int(str(refused.code))
    said = capsys.readouterr().err
    assert code == 2, said
    assert sentence in said


def test_a_model_from_elsewhere_is_measured_alike_unless_its_classes_differ(copy: Path, recipe: str) -> None:
    run = last(copy)
    teacher, evaluation = run.artifact("teacher"), run.artifact("evaluate-teacher")
    assert teacher is not None
    assert evaluation is not None
    outside = copy / "outside"
    outside.mkdir()
    for name in ("model.safetensors", "model.json"):
        shutil.copy(teacher.file(name), outside / name)
    assert evaluate(str(outside), recipe, workspace=copy).artifact.digest == evaluation.digest
    card = json.loads((outside / "model.json").read_text())
    card["classes"] = list("abcdefghij")
    (outside / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="classes"):
        evaluate(str(outside), recipe, workspace=copy)


def test_an_exported_file_gives_the_logits_of_the_model_and_has_a_card_beside_it(copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "student.pt2"
    done = export("student-2", file, copy)
    assert done.difference <= 1e-4
    model = find_model(copy, "student-2")
    trained = load_trained(model.folder, "cpu", "fp32")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    logits = torch.export.load(file).module()(torch.from_numpy(images))
    torch.testing.assert_close(logits, trained.logits(images).clone(), atol=1e-4, rtol=0)
    card = done.card.read_text()
    assert done.card == tmp_path / "student.md"
    evaluation, dataset = last(copy).artifact("evaluate-2"), last(copy).dataset
    assert model.artifact is not None
    assert evaluation is not None
    assert dataset is not None
    low, high = evaluation.summary["test_interval"]
    for part in (model.artifact.digest, dataset.digest, dataset.parts["labeled"], "select-2", "teacher"):
        assert part in card
    assert f"({100 * low:.1f} … {100 * high:.1f})" in card


def test_an_export_without_a_file_name_is_named_by_run_and_stage_and_replaces_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = export("last:teacher", workspace=finished)
    assert (done.file, done.card) == (Path("tiny-teacher.pt2"), Path("tiny-teacher.md"))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {tmp_path / "tiny-teacher.pt2", tmp_path / "tiny-teacher.md"}
    formats: tuple[Format, ...] = ("torch", "onnx")
    for format in formats:  # the card is there already
        with pytest.raises(ConfigError, match=r"exists already\. Name the file to write"):
            export("teacher", workspace=finished, format=format)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_onnx_computes_the_same_where_it_is_installed(copy: Path, tmp_path: Path) -> None:
    done = selftrain(copy, "export", "teacher", "--output", str(tmp_path / "teacher.onnx"), "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["difference"] <= 1e-4
    assert Path(answer["file"]).stat().st_size > 1000


def test_without_onnx_the_remedy_is_named_and_nothing_is_written(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install 'selftrain\[onnx\]'"):
        export("teacher", tmp_path / "teacher.onnx", finished, "onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_whose_outputs_differ_is_not_kept(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = write_torch
    monkeypatch.setattr(
        "selftrain.ssl_tasks.trained.export.write_torch",
        lambda *given: lambda images: right(*given)(images) + np.float32(0.01),
    )
    with pytest.raises(SelftrainError, match="nothing was written"):
        export("teacher", tmp_path / "teacher.pt2", finished)
    assert not list(tmp_path.iterdir())


def test_hostile_class_names_stay_text_in_the_card() -> None:
    card = Card(
        model=ModelSettings(),
        classes=("a|b", "<script>x</script>", "c\nd"),
        in_channels=1,
        image_size=8,
        mean=(0,),
        std=(1,),
    )
    text = model_card("m", card, {}, [], None)
    assert "a\\|b" in text
    assert "<script" not in text
    assert "c\nd" not in text
