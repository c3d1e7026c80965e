"""FixRes: a trained network is taught larger images, where it was weak; its body stays as it was unless asked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selftrain.flows.rounds.stages import dataset_request
from selftrain.models import build_model
from selftrain.models.settings import ModelSettings
from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.stage import execute
from selftrain.ssl_tasks.settings.data import DataSettings, SplitSettings
from selftrain.ssl_tasks.settings.recipe import load_recipe
from selftrain.ssl_tasks.settings.run_config import FineTuneSettings, LearnerSettings, RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.trained.model import Card, load_card, load_trained, save_trained
from selftrain.ssl_tasks.training.run import refuse_one_size
from tests.training.small_runs import learner, train_in, weights_of

SMALL = {"name": "small_cnn", "width": 8, "dropout": 0.2, "stochastic_depth": 0.1}
LARGER = 14
STEPS = {"steps": 40, "batch_size": 25, "learning_rate": 0.02, "evaluate_every": 20, "precision": "fp32"}


def tuning(student: LearnerSettings, **settings: Any) -> LearnerSettings:
    """Returns the settings of the stage."""
    asked = {"image_size": LARGER, "train": STEPS, **settings}
    return FineTuneSettings.model_validate(asked).of(student)


def enlarged(dataset: Artifact, image_size: int) -> Artifact:
    """The same digits, larger."""
    data = DataSettings(split=SplitSettings(labels_per_class=5), image_size=image_size)
    return execute(dataset_request(data, "digits"), dataset.path.parents[2], RuntimeSettings(threads=1)).artifact


@pytest.fixture(scope="module")
def larger(dataset: Artifact) -> Artifact:
    """Of a size that the network was not trained on."""
    return enlarged(dataset, LARGER)


@pytest.fixture(scope="module")
def student(dataset: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A network that knows digits of 8×8."""
    section = learner(model=SMALL, steps=150, batch_size=25, learning_rate=0.1, ema_decay=0, evaluate_every=150)
    return train_in(tmp_path_factory.mktemp("student"), section, {"dataset": dataset})


def accuracy(model: Artifact, dataset: Artifact) -> float:
    """On validation, at the data set's resolution."""
    pool = Dataset.open(dataset, dataset.path.parents[2] / "cache").pool("validation")
    logits = load_trained(model.path, "cpu").logits(pool.images(np.arange(len(pool))))
    return float((logits.argmax(1).numpy() == pool.labels).mean())


def test_larger_images_are_learnt_by_the_classifier_and_the_norms_alone(
    here: Path, larger: Artifact, student: Artifact
) -> None:
    tuned = train_in(here, tuning(learner(model=SMALL)), {"dataset": larger, "init": student})
    assert accuracy(tuned, larger) > accuracy(student, larger) + 0.05
    before, after = weights_of(student), weights_of(tuned)
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    kernels = {name for name, weight in after.items() if weight.ndim == 4}
    assert kernels
    assert not moved & kernels
    assert "head.weight" in moved
    assert {name.rpartition(".")[2] for name in moved} == {
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


def test_the_card_says_the_new_size_and_the_network_is_without_noise(
    here: Path, larger: Artifact, student: Artifact
) -> None:
    card = load_card(train_in(here, tuning(learner(model=SMALL)), {"dataset": larger, "init": student}).path)
    assert (card.image_size, card.built_for) == (LARGER, 8)
    assert (card.model.dropout, card.model.stochastic_depth) == (0, 0)
    assert load_card(student.path).built_for is None


def test_all_layers_move_where_asked(here: Path, larger: Artifact, student: Artifact) -> None:
    tuned = train_in(here, tuning(learner(model=SMALL), layers="all"), {"dataset": larger, "init": student})
    before, after = weights_of(student), weights_of(tuned)
    assert all(not np.array_equal(before[name], after[name]) for name in after if after[name].ndim == 4)


def test_a_network_that_is_built_by_its_image_size_keeps_its_shape(here: Path) -> None:
    """torchvision's ResNets leave the first reductions out where images are small: these weights know no others."""
    model = ModelSettings(name="torchvision:resnet18")
    card = Card(model=model, classes=("a", "b"), in_channels=1, image_size=64, mean=(0.5,), std=(0.2,), built_for=8)
    network = build_model(model, 2, 1, 8)
    save_trained(here, network, card)
    images = np.zeros((1, 64, 64, 1), np.uint8)
    with torch.inference_mode():
        expected = network.eval()(torch.full((1, 1, 64, 64), -2.5))
    assert torch.allclose(load_trained(here, "cpu", "fp32").logits(images), expected, atol=1e-5)


def test_a_network_that_would_shrink_larger_images_is_refused(here: Path, dataset: Artifact, larger: Artifact) -> None:
    section = learner(steps=1)  # a multi-layer perceptron
    student = train_in(here, section, {"dataset": dataset})
    with pytest.raises(ConfigError, match=r"mlp takes images of 8×8 alone.*small_cnn"):
        train_in(here, tuning(section), {"dataset": larger, "init": student})


def test_a_network_that_cannot_take_larger_images_is_refused() -> None:
    vit = build_model(ModelSettings(name="torchvision:vit_b_16"), 10, 3, 32)
    with pytest.raises(ConfigError, match=r"vit_b_16 takes images of 32×32 alone.*small_cnn"):
        refuse_one_size(vit, "torchvision:vit_b_16", 3, 48, 32)
    refuse_one_size(build_model(ModelSettings(), 10, 3, 32), "small_cnn", 3, 48, 32)


def test_a_recipe_is_refused_whose_student_takes_one_size_or_whose_images_are_no_larger() -> None:
    with pytest.raises(ConfigError, match="finetune needs a student that takes images of any size, and mlp-2 is built"):
        load_recipe("quickstart", ["round.student.model={name: mlp-2}", "rounds.3.finetune.image_size=12"])
    with pytest.raises(ConfigError, match=r"rounds.3.finetune.image_size is 8 and data.image_size 8; expected larger"):
        load_recipe("quickstart", ["data.image_size=8", "rounds.3.finetune.image_size=8"])
    assert load_recipe("quickstart", ["rounds.3.finetune.image_size=12"]).config.rounds[1].finetune is None
