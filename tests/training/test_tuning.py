"""Networks that start from pretrained weights and are tuned in part: what moves, what is stored, what resumes."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from selftrain.flows.rounds.stages import check_request, given_request, train_request, weights_request
from selftrain.models import ModelSettings, build_model
from selftrain.models.settings import Normalisation
from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.errors import ConfigError, DamagedArtifact
from selftrain.ssl_tasks.execution.stage import execute
from selftrain.ssl_tasks.settings.recipe import load_recipe
from selftrain.ssl_tasks.settings.run_config import LearnerSettings, RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Artifact, Store
from selftrain.ssl_tasks.tracking.trace import store_lineage
from selftrain.ssl_tasks.trained.export import export_model
from selftrain.ssl_tasks.trained.model import Trained, load_card, load_trained
from selftrain.ssl_tasks.training.checkpoints import checkpoint_files
from selftrain.ssl_tasks.training.loop import take_step
from selftrain.ssl_tasks.training.run import build_run
from tests.training.small_runs import kill, learner, request_of, train_apart, train_in, weights_of
from tests.training.test_resume import EACH_STEP, wait_for_new_checkpoint

MODEL: dict[str, Any] = {"name": "wrn-10-1"}
RUNTIME = RuntimeSettings(threads=1, device="cpu")
METHODS: dict[str, dict[str, Any]] = {
    "supervised": {},
    "fixmatch": {"threshold": 0.1},
    "mean_teacher": {"weight": 5.0},
    "meta_pseudo_labels": {"uda_threshold": 0.1},
    "dividemix": {"warmup": 0.2},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights whose statistics and norms are not those of a fresh network."""
    torch.manual_seed(7)
    body = build_model(ModelSettings(**MODEL), 3, 1, 8).body
    body.train()(torch.rand(64, 1, 8, 8))
    path = tmp_path_factory.mktemp("given") / "given.safetensors"
    save_file(body.state_dict(), path)
    return path


def tuned(file: Path, tune: str, method: str = "supervised", model: Any = None, **train: Any) -> LearnerSettings:
    """A learner that starts from the file."""
    settings = {"tune": tune, "lora": {"rank": 2}, "ema_decay": 0.9, **train}
    return learner({"name": method, **METHODS[method]}, {**MODEL, "pretrained": str(file), **(model or {})}, **settings)


def kept(workspace: Path, file: Path) -> Artifact:
    """The weights as an artifact of the workspace."""
    request = weights_request("weights", ModelSettings(**MODEL, pretrained=file))
    return execute(request, workspace, RUNTIME).artifact


def train_tuned(
    workspace: Path, section: LearnerSettings, inputs: dict[str, Artifact], file: Path, **runtime: Any
) -> Artifact:
    """Trains as a run does: from the weights of the workspace."""
    (workspace / "cache").mkdir(parents=True, exist_ok=True)
    return train_in(workspace, section, {**inputs, "weights": kept(workspace, file)}, **runtime)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tune", ["lora", "head"])
def test_frozen_weights_are_bit_for_bit_the_given_ones_under_every_kind_of_step(
    tmp_path: Path, dataset: Artifact, file: Path, tune: str, method: str
) -> None:
    section = tuned(file, tune, method, learning_rate=0.005)
    data = Dataset.open(dataset, tmp_path / "cache")
    before = load_file(file)
    run = build_run(section, data, 0, torch.device("cpu"))
    trained = {id(one) for one in run.state.parameters}
    train_tuned(tmp_path, section, {"dataset": dataset}, file)
    first = {name: one.clone() for name, one in run.state.student.named_parameters() if one.requires_grad}
    for batch in run.batches(0):
        take_step(run, batch)
    networks = [run.state.student, run.state.average]
    networks += [one for name in ("teacher", "second") if (one := getattr(run.state.method, name, None)) is not None]
    for network in (getattr(one, "network", one) for one in networks):
        state = network.body.state_dict()
        assert all(torch.equal(one, state[name]) for name, one in before.items())
    moved = {name for name, one in run.state.student.named_parameters() if name in first and one.ne(first[name]).any()}
    assert {"head.weight", "head.bias"} <= moved
    assert len(moved) == len(first)
    for name, one in run.state.student.named_parameters():
        assert (id(one) in trained) == (name.startswith("head.") or ".lora." in name)
        assert id(one) in trained or one.grad is None


@pytest.mark.parametrize(("tune", "stored"), [("lora", ".lora."), ("head", "head."), ("norms", "norm")])
def test_a_model_stores_the_difference_and_is_whole_again_when_it_is_read(
    tmp_path: Path, dataset: Artifact, file: Path, tune: str, stored: str
) -> None:
    section = tuned(file, tune, keep="last")
    model = train_tuned(tmp_path, section, {"dataset": dataset}, file)
    names = {name for name in weights_of(model) if not name.endswith("num_batches_tracked")}
    assert names
    assert all(stored in name or name.startswith("head.") for name in names)
    whole = load_trained(model.path, "cpu")
    given = load_file(file)
    state = whole.network.state_dict()
    assert not any(".lora." in name for name in state)
    same = {name for name, one in given.items() if torch.equal(one, state[f"body.{name}"])}
    if tune == "head":
        assert same == set(given)
    pool = Dataset.open(dataset, tmp_path / "cache").pool("validation")
    accuracy = float((logits_of(whole, pool).argmax(1).numpy() == pool.labels).mean())
    assert accuracy == pytest.approx(read_metrics(model)["validation_accuracy"], abs=0.011)


def logits_of(trained: Trained, pool: Any) -> torch.Tensor:
    return trained.logits(pool.images(np.arange(len(pool))))


def read_metrics(model: Artifact) -> dict[str, Any]:
    return json.loads(model.file("metrics.json").read_text())


def test_the_weights_are_found_again_or_missed_in_one_sentence(tmp_path: Path, dataset: Artifact, file: Path) -> None:
    model = train_tuned(tmp_path, tuned(file, "lora"), {"dataset": dataset}, file)
    images = np.zeros((2, 8, 8, 1), np.uint8)
    expected = load_trained(model.path, "cpu", "fp32").logits(images)
    assert export_model(model.path, tmp_path / "model.pt2", "torch") < 1e-4
    given = execute(given_request("given", model.path), tmp_path / "elsewhere", RUNTIME).artifact
    assert load_card(given.path).base is None
    assert torch.allclose(load_trained(given.path, "cpu", "fp32").logits(images), expected)
    alone = tmp_path / "alone"
    shutil.copytree(model.path, alone)
    (alone / "artifact.json").unlink()
    with pytest.raises(DamagedArtifact, match=r"the weights that it started from .* neither beside it"):
        load_trained(alone, "cpu")
    shutil.copyfile(kept(tmp_path, file).file("weights.safetensors"), alone / "weights.safetensors")
    assert torch.equal(load_trained(alone, "cpu", "fp32").logits(images), expected)
    (alone / "weights.safetensors").write_bytes(b"changed")
    with pytest.raises(DamagedArtifact):
        load_trained(alone, "cpu")


@pytest.mark.parametrize("tune", ["lora", "all"])
def test_a_student_starts_from_a_tuned_teacher_and_its_head(
    tmp_path: Path, dataset: Artifact, file: Path, tune: str
) -> None:
    teacher = train_tuned(tmp_path, tuned(file, "lora", learning_rate=0.1), {"dataset": dataset}, file)
    section = tuned(file, tune, learning_rate=1e-12, weight_decay=0.0, steps=1, ema_decay=0.0)
    inputs = {"dataset": dataset, "init": teacher}
    student = train_tuned(tmp_path, section, inputs, file)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    one, other = (load_trained(model.path, "cpu", "fp32") for model in (teacher, student))
    assert torch.allclose(one.network.head.weight, other.network.head.weight, atol=1e-6)
    if tune == "lora":  # where all is trained, batch norm has seen a batch
        assert torch.allclose(one.logits(images), other.logits(images), atol=1e-4)


@pytest.mark.parametrize("method", ["supervised", "mean_teacher"])
def test_a_killed_run_of_low_rank_additions_resumes_bit_for_bit(
    tmp_path: Path, dataset: Artifact, file: Path, method: str
) -> None:
    section = tuned(file, "lora", method, steps=60, evaluate_every=20)
    whole = train_tuned(tmp_path / "whole", section, {"dataset": dataset}, file)
    weights = kept(tmp_path / "killed", file)
    key = request_of(section, {"dataset": dataset, "weights": weights}).key
    folder = tmp_path / "killed" / "store" / "attempts" / f"train-{key}" / "scratch" / "checkpoints"
    seen: Path | None = None
    for _ in range(2):
        body = partial(train_tuned, file=file)
        process = train_apart(tmp_path / "killed", section, dataset, body, checkpoint_every=EACH_STEP)
        wait_for_new_checkpoint(folder, seen)
        kill(process)
        seen = checkpoint_files(folder)[-1]
    resumed = train_tuned(tmp_path / "killed", section, {"dataset": dataset}, file)
    assert resumed.digest == whole.digest


def test_images_are_normalised_as_the_weights_were_trained(tmp_path: Path, dataset: Artifact, file: Path) -> None:
    own = Normalisation(mean=(0.25,), std=(0.5,))
    cards = {}
    for name, preprocess in (("given", own.model_dump()), ("data", "data"), ("unknown", "backbone")):
        section = tuned(file, "all", model={"preprocess": preprocess}, steps=2)
        model = train_tuned(tmp_path / name, section, {"dataset": dataset}, file)
        cards[name] = load_card(model.path)
        init = {"dataset": dataset, "init": model}
        after = train_in(tmp_path / name, learner(model=MODEL, steps=2), init)  # as a fine-tuning starts
        assert (load_card(after.path).mean, load_card(after.path).std) == (cards[name].mean, cards[name].std)
    assert (cards["given"].mean, cards["given"].std) == (own.mean, own.std)
    info = read_info(dataset)
    assert cards["data"].mean == cards["unknown"].mean == tuple(info["mean"])
    colours = tuned(file, "all", model={"preprocess": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    with pytest.raises(ConfigError, match=r"the mean has 3 channels and the images have 1; set data\.channels: 3"):
        train_tuned(tmp_path, colours, {"dataset": dataset}, file)


def read_info(dataset: Artifact) -> dict[str, Any]:
    return json.loads(dataset.file("info.json").read_text())


@pytest.mark.parametrize(
    ("model", "train", "sentence"),
    [
        ({"name": "wrn-16-1"}, {}, "does not fit this network: the file lacks body"),
        ({}, {"lora": {"targets": ["qkv"]}}, "'qkv' is in the name of no linear"),
        ({}, {"tune": "last-99"}, "the network has 4 layers"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_trains(
    tmp_path: Path, dataset: Artifact, file: Path, model: Any, train: Any, sentence: str
) -> None:
    section = tuned(file, "lora", model=model, **train) if "tune" not in train else tuned(file, model=model, **train)
    with pytest.raises(ConfigError, match=sentence):
        execute(check_request("check", section, dataset, kept(tmp_path, file)), tmp_path, RUNTIME)


def test_the_check_counts_what_is_trained(tmp_path: Path, dataset: Artifact, file: Path) -> None:
    found = execute(check_request("check", tuned(file, "head"), dataset, kept(tmp_path, file)), tmp_path, RUNTIME)
    assert found.artifact.summary["trained_parameters"] == 64 * 10 + 10
    assert found.artifact.summary["parameters"] > found.artifact.summary["trained_parameters"]


def test_the_weights_are_an_input_of_the_key_and_a_node_of_the_lineage(
    tmp_path: Path, dataset: Artifact, file: Path
) -> None:
    section = tuned(file, "lora")
    weights = kept(tmp_path, file)
    moved = file.with_name("moved.safetensors")
    moved.write_bytes(file.read_bytes())
    assert (
        train_request("t", section, dataset, 0, weights=weights).key
        == train_request("t", tuned(moved, "lora"), dataset, 0, weights=kept(tmp_path, moved)).key
    )
    other = file.with_name("other.safetensors")
    save_file({name: one + 1 for name, one in load_file(file).items()}, other)
    changed = train_request("t", tuned(other, "lora"), dataset, 0, weights=kept(tmp_path, other))
    assert changed.key != train_request("t", section, dataset, 0, weights=weights).key
    model = train_tuned(tmp_path, section, {"dataset": dataset}, file)
    graph = store_lineage(Store(tmp_path / "store"), model)
    node = graph.nodes[weights.key]
    assert (node.kind, node.digest) == ("weights", weights.digest)
    assert "wrn-10-1 · given.safetensors" in node.label


def test_settings_at_their_defaults_take_no_part_in_a_key() -> None:
    def names(**train: Any) -> set[str]:
        return set(learner(**train).identity()["train"])

    assert not {"tune", "lora", "layer_decay", "head_learning_rate"} & names()
    assert names(layer_decay=0.5) - names() == {"layer_decay"}
    assert "preprocess" not in learner().identity()["model"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["teacher.train.tune=head"], "teacher.train.tune is head, and the network starts from drawn weights"),
        (["rounds.2.student.train.tune=lora"], r"rounds\.2\.student.train.tune is lora.* or init: teacher"),
        (["teacher.train.tune=last-0"], "teacher.train.tune"),
    ],
)
def test_a_recipe_that_freezes_drawn_weights_is_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_recipe("quickstart", overrides)
