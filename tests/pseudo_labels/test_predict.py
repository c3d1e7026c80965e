"""The stage `predict` with small networks on small pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.errors import ConfigError, TrainingDiverged
from selftrain.ssl_tasks.execution.stage import Request, execute
from selftrain.ssl_tasks.pseudo_labels.engine import open_duckdb
from selftrain.ssl_tasks.pseudo_labels.labeller import Labeller
from selftrain.ssl_tasks.pseudo_labels.schema import Predictions
from selftrain.ssl_tasks.settings.pseudo_labels import PredictSettings
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.trained.model import load_trained
from tests.pseudo_labels.teachers import CLASSES, draw_pictures, from_folder, synthetic, teacher

RUNTIME = RuntimeSettings(threads=1, device="cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact, Artifact]:
    """A workspace with a data set and a teacher."""
    workspace = tmp_path_factory.mktemp("workspace")
    return workspace, synthetic(workspace), teacher(workspace / "teacher")


@pytest.fixture
def fresh(prepared: tuple[Path, Artifact, Artifact], tmp_path: Path) -> tuple[Path, Artifact, Artifact]:
    """The same without cached shards."""
    shutil.copytree(prepared[0], tmp_path / "workspace")
    return tmp_path / "workspace", *prepared[1:]


def run(workspace: Path, dataset: Artifact, *models: Artifact, **wanted: Any) -> Artifact:
    inputs = {"dataset": dataset} | {
        "model" if number == 1 else f"model_{number}": model for number, model in enumerate(models, 1)
    }
    settings = PredictSettings.model_validate({"shard_size": 100, "batch_size": 32, **wanted})
    request = Request("predict", "predict", 1, "selftrain.ssl_tasks.pseudo_labels.predict:predict", settings, inputs)
    return execute(request, workspace, RUNTIME, force=True).artifact


def table(artifact: Artifact) -> dict[str, list[Any]]:
    """All shards' rows."""
    shards = [pq.read_table(path).to_pydict() for path in Predictions.open(artifact.path).files]
    return {name: [value for shard in shards for value in shard[name]] for name in shards[0]}


def test_labels_and_confidences_are_the_network_s_own(prepared: tuple[Path, Artifact, Artifact]) -> None:
    workspace, dataset, model = prepared
    found = table(run(workspace, dataset, model))
    pool = Dataset.open(dataset, workspace / "cache", RUNTIME).pool("unlabeled")
    logits = load_trained(model.path, "cpu").logits(pool.images(np.arange(len(pool))))
    probs = torch.softmax(logits, dim=1)
    best = probs.sort(dim=1, descending=True).values
    assert found["sample_id"] == pool.sample_ids()
    assert found["label"] == probs.argmax(dim=1).tolist()
    assert len(set(found["label"])) > 1
    np.testing.assert_allclose(found["confidence"], best[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found["margin"], best[:, 0] - best[:, 1], atol=1e-5)
    np.testing.assert_allclose(found["entropy"], -(probs * probs.log()).sum(dim=1), atol=1e-4)
    np.testing.assert_allclose(np.array(found["probs"], np.float32), probs, atol=1e-3)
    assert set(found["view_agreement"]) == {1.0}
    assert set(found["error"]) == {None}


def test_feature_distance_is_the_cosine_distance_to_the_class_s_mean(prepared: tuple[Path, Artifact, Artifact]) -> None:
    workspace, dataset, model = prepared
    found = table(run(workspace, dataset, model))
    opened = Dataset.open(dataset, workspace / "cache", RUNTIME)
    network, pools = load_trained(model.path, "cpu"), {name: opened.pool(name) for name in ("validation", "unlabeled")}  # type: ignore[arg-type]
    unit = {
        name: torch.nn.functional.normalize(network.features(pool.images(np.arange(len(pool)))), dim=1)
        for name, pool in pools.items()
    }
    for number in (0, 17, 200):
        members = unit["validation"][pools["validation"].labels == found["label"][number]]
        mean = torch.nn.functional.normalize(members.mean(dim=0), dim=0)
        expected = 1 - float(unit["unlabeled"][number] @ mean)
        assert found["feature_distance"][number] == pytest.approx(expected, abs=1e-5)


def test_the_same_question_has_the_same_bytes_with_and_without_the_cache(
    fresh: tuple[Path, Artifact, Artifact],
) -> None:
    workspace, dataset, model = fresh
    first = run(workspace, dataset, model, views=2)
    reused = run(workspace, dataset, model, views=2)
    shutil.rmtree(workspace / "cache" / "shards")
    again = run(workspace, dataset, model, views=2)
    assert first.digest == reused.digest == again.digest
    assert (first.summary["shards_reused"], again.summary["shards_reused"]) == (0, 0)
    assert reused.summary["shards_reused"] == reused.summary["shards"]


def test_another_batch_size_has_another_key_because_it_may_round_differently(
    fresh: tuple[Path, Artifact, Artifact],
) -> None:
    workspace, dataset, model = fresh
    whole, alone = (run(workspace, dataset, model, batch_size=size) for size in (32, 1))
    assert whole.key != alone.key
    assert alone.summary["shards_reused"] == 0
    shutil.rmtree(workspace / "cache" / "shards")
    assert run(workspace, dataset, model, batch_size=1).digest == alone.digest


def test_a_cached_shard_with_a_flipped_bit_is_computed_again(fresh: tuple[Path, Artifact, Artifact]) -> None:
    workspace, dataset, model = fresh
    whole = run(workspace, dataset, model)
    path = sorted((workspace / "cache" / "shards").rglob("*.parquet"))[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.unlink()  # the artifact's own name of the file keeps the good bytes
    path.write_bytes(content)
    again = run(workspace, dataset, model)
    assert again.summary["shards_reused"] == whole.summary["shards"] - 1
    assert again.digest == whole.digest


def test_new_images_cost_only_the_shards_that_they_are_in(tmp_path: Path) -> None:
    model, pictures = teacher(tmp_path / "teacher"), tmp_path / "pictures"
    draw_pictures(pictures, [f"{number:04d}" for number in range(600)])
    before = run(tmp_path, from_folder(tmp_path, pictures), model)
    draw_pictures(pictures, ["0133-new", "0599-new"])
    after = run(tmp_path, from_folder(tmp_path, pictures), model)
    assert after.summary["images"] == before.summary["images"] + 2
    assert 1 <= after.summary["shards"] - after.summary["shards_reused"] <= 3
    shutil.rmtree(tmp_path / "cache" / "shards")
    assert run(tmp_path, from_folder(tmp_path, pictures), model).digest == after.digest


def test_unreadable_images_have_a_row_with_the_reason_and_no_label(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    draw_pictures(pictures, [f"{number:03d}" for number in range(120)])
    (pictures / "unlabeled" / "060.png").write_bytes(b"no picture")
    artifact = run(tmp_path, from_folder(tmp_path, pictures), teacher(tmp_path / "teacher"))
    assert (artifact.summary["images"], artifact.summary["unreadable"]) == (119, 1)
    with open_duckdb(tmp_path / "duckdb") as connection:
        rows = (
            f"FROM {Predictions.open(artifact.path).with_positions()} SELECT sample_id, position, label, probs, error "
            "ORDER BY position"
        )
        found = connection.execute(rows).fetchall()
    (broken,) = [row for row in found if row[4] is not None]
    assert broken[0].endswith("060.png")
    assert broken[1:4] == (None, None, None)
    assert [row[1] for row in found if row[4] is None] == list(range(119))


def test_the_network_meets_few_batch_sizes(fresh: tuple[Path, Artifact, Artifact]) -> None:
    workspace, dataset, model = fresh
    network = load_trained(model.path, "cpu")
    sizes: set[int] = set()
    network.network.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
    labeller = Labeller([network], batch_size=32)
    pool = Dataset.open(dataset, workspace / "cache", RUNTIME).pool("unlabeled")
    alone = [labeller.opinion([pool.images(np.arange(count))]).log_probs for count in range(1, 33)]
    assert sizes == set(range(4, 33, 4))
    assert [len(one) for one in alone] == list(range(1, 33))
    torch.testing.assert_close(alone[0], alone[-1][:1], atol=1e-4, rtol=1e-4)


def test_a_view_of_an_image_does_not_depend_on_its_batch(fresh: tuple[Path, Artifact, Artifact]) -> None:
    workspace, dataset, model = fresh
    one, other = (table(run(workspace, dataset, model, views=3, shard_size=size, batch_size=size)) for size in (50, 7))
    assert one["sample_id"] == other["sample_id"]
    np.testing.assert_allclose(one["confidence"], other["confidence"], atol=1e-5)
    assert one["label"] == other["label"]


def test_views_and_members_are_averaged_and_their_agreement_counted(prepared: tuple[Path, Artifact, Artifact]) -> None:
    workspace, dataset, model = prepared
    second = teacher(workspace / "second", seed=1)
    alone, other = table(run(workspace, dataset, model)), table(run(workspace, dataset, second))
    both = table(run(workspace, dataset, model, second))
    mean = (np.array(alone["probs"], np.float32) + np.array(other["probs"], np.float32)) / 2
    np.testing.assert_allclose(np.array(both["probs"], np.float32), mean, atol=2e-3)
    agree = [(a == m) / 2 + (b == m) / 2 for a, b, m in zip(alone["label"], other["label"], both["label"], strict=True)]
    assert both["view_agreement"] == agree
    assert len(set(agree)) > 1
    views = table(run(workspace, dataset, model, views=4))
    assert set(views["view_agreement"]) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert views["probs"] != alone["probs"]


def test_a_noised_teacher_sees_strong_views_and_drops_features(
    fresh: tuple[Path, Artifact, Artifact], tmp_path: Path
) -> None:
    workspace, dataset, model = fresh
    clean, noised = (run(workspace, dataset, model, noise=noise) for noise in (False, True))
    assert noised.summary["shards_reused"] == 0
    assert table(noised)["probs"] != table(clean)["probs"]
    card = json.loads((model.path / "model.json").read_text())
    card["model"]["dropout"] = 0.5
    shutil.copytree(model.path, tmp_path / "dropping")
    (tmp_path / "dropping" / "model.json").write_text(json.dumps(card))
    dropping = Artifact(tmp_path / "dropping", {**model.manifest, "digest": "dropping"})
    assert table(run(workspace, dataset, dropping))["probs"] == table(clean)["probs"]
    first = run(workspace, dataset, dropping, noise=True)
    assert table(first)["probs"] != table(noised)["probs"]
    shutil.rmtree(workspace / "cache" / "shards")
    torch.rand(1)  # what others drew before changes nothing
    assert run(workspace, dataset, dropping, noise=True).digest == first.digest


def test_top_k_stores_the_most_likely_classes_alone(prepared: tuple[Path, Artifact, Artifact]) -> None:
    workspace, dataset, model = prepared
    dense, sparse = table(run(workspace, dataset, model)), table(run(workspace, dataset, model, top_k=2))
    for label, classes, few, every in zip(
        dense["label"], sparse["classes"], sparse["probs"], dense["probs"], strict=True
    ):
        assert classes[0] == label
        assert few == [every[number] for number in classes] == sorted(every, reverse=True)[:2]


def test_a_fitted_temperature_calibrates_and_is_measured_on_other_images(
    fresh: tuple[Path, Artifact, Artifact],
) -> None:
    workspace, dataset, model = fresh
    plain, fitted = run(workspace, dataset, model), run(workspace, dataset, model, temperature="fit")
    report = json.loads(fitted.file("calibration.json").read_text())
    assert report["temperature"] == fitted.summary["temperature"] > 1
    assert report["fitted_on"] + report["before"]["images"] == 60
    assert report["after"]["nll"] < report["before"]["nll"]
    assert table(plain)["label"] == table(fitted)["label"]
    assert np.mean(table(fitted)["confidence"]) < np.mean(table(plain)["confidence"])
    held_out = pq.read_table(fitted.file("validation.parquet")).to_pydict()
    assert sum(held_out["fitted"]) == report["fitted_on"]
    assert len(held_out["truth"]) == 60


def test_without_validation_images_a_temperature_cannot_be_fitted_but_one_can_be_given(tmp_path: Path) -> None:
    dataset, model = synthetic(tmp_path, validation=0), teacher(tmp_path / "teacher")
    with pytest.raises(ConfigError, match="validation"):
        run(tmp_path, dataset, model, temperature="fit")
    found = run(tmp_path, dataset, model, temperature=2.0)
    assert set(table(found)["feature_distance"]) == {None}
    assert pq.read_table(found.file("validation.parquet")).num_rows == 0


def test_the_file_says_what_it_is(prepared: tuple[Path, Artifact, Artifact]) -> None:
    workspace, dataset, model = prepared
    artifact = run(workspace, dataset, model, temperature=1.5)
    stored = pq.read_schema(Predictions.open(artifact.path).files[0]).metadata[b"selftrain"]
    said = json.loads(stored)
    assert said["classes"] == [f"class-{number:03d}" for number in range(CLASSES)]
    assert (said["schema"], said["temperature"], len(said["teachers"])) == (1, 1.5, 1)
    positions = [shard["first"] for shard in Predictions.open(artifact.path).description["shards"]]
    assert positions[0] == 0
    assert positions == sorted(positions)


def test_a_teacher_of_other_classes_is_refused(fresh: tuple[Path, Artifact, Artifact]) -> None:
    workspace, dataset, _ = fresh
    stranger = teacher(workspace / "stranger", classes=("cat", "dog"))
    with pytest.raises(ConfigError, match="cat, dog"):
        run(workspace, dataset, stranger)


def test_a_teacher_that_says_no_numbers_is_refused(fresh: tuple[Path, Artifact, Artifact]) -> None:
    workspace, dataset, _ = fresh
    broken = teacher(workspace / "broken", seed=2, gain=float("nan"))
    with pytest.raises(TrainingDiverged, match="not numbers"):
        run(workspace, dataset, broken)
