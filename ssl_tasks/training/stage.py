"""Runs the stage `train`, which turns a data set, with or without a selection and first weights, into a model."""

import json
import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from selftrain.models.classifier import members
from selftrain.models.settings import Normalisation
from selftrain.models.sources import obtain
from selftrain.models.tuning import merged
from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.data.stream import PseudoPool
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.devices import computed_by, prepare_backends, resolve_device
from selftrain.ssl_tasks.execution.distributed import rank
from selftrain.ssl_tasks.execution.stage import StageContext, StageResult
from selftrain.ssl_tasks.methods import method_class
from selftrain.ssl_tasks.settings.run_config import LearnerSettings, TunedSettings, unfit_to_begin_with
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.trained import BASE, WEIGHTS
from selftrain.ssl_tasks.trained.model import Base, Card, load_card, load_trained, load_weights, save_card, save_weights
from selftrain.ssl_tasks.trained.weights import body_tensors, difference, facts_of, normalisation_of, with_file
from selftrain.ssl_tasks.training.checkpoints import Checkpoints
from selftrain.ssl_tasks.training.launch import train_in_processes
from selftrain.ssl_tasks.training.loop import diagnose_run, train
from selftrain.ssl_tasks.training.run import TrainingRun, build_run

LAST = "last.safetensors"


def train_model(context: StageContext) -> StageResult:
    """Trains one network in one or several processes, on one or several hosts; resumes at a checkpoint."""
    if context.runtime.processes * context.runtime.nodes > 1:
        return train_in_processes(context)
    return train_here(context, resolve_device(context.runtime.device))


def train_here(context: StageContext, device: torch.device) -> StageResult:
    """Trains in this process, which may be one rank of several; only rank 0 writes files."""
    run, dataset = open_run(context, device)
    checkpoints = Checkpoints(context.scratch / "checkpoints", context.runtime.checkpoint_every, writes=rank() == 0)

    speeds: list[float] = []

    def report(step: int, values: Mapping[str, float]) -> None:
        speeds.append(values["images_per_second"])
        if rank() == 0:
            context.metrics(step, {name: value for name, value in values.items() if math.isfinite(value)})
            context.progress(step, run.learner.train.steps, "train")

    stopped = train(run, checkpoints, report, context.runtime.workers)
    return write_model(context, run, dataset, stopped, speeds) if rank() == 0 else StageResult()


def open_run(context: StageContext, device: torch.device) -> tuple[TrainingRun, Dataset]:
    """Builds the run of a context at step 0, from its settings and its inputs."""
    learner = context.section
    assert isinstance(learner, LearnerSettings)
    prepare_backends(learner.train.precision, context.runtime.threads)
    dataset = Dataset.open(context.inputs["dataset"], context.cache, context.runtime)
    selection = open_selection(context, learner)
    init, pretrained = context.inputs.get("init"), context.inputs.get("weights")
    weights = first_weights(learner, init)
    built_for = first_size(init) if isinstance(learner, TunedSettings) and init is not None else None
    normalisation = first_normalisation(learner, dataset, pretrained, init)
    alone = learner.model.model_copy(update={"pretrained": None})
    started = learner.model_copy(update={"model": with_file(learner.model, pretrained) if init is None else alone})
    return build_run(started, dataset, context.seed, device, selection, weights, built_for, normalisation), dataset


def open_selection(context: StageContext, learner: LearnerSettings) -> PseudoPool | None:
    """Returns the pseudo-labels to learn from; they are soft if the method has a view for them."""
    if "selection" not in context.inputs:
        return None
    soft = bool(method_class(learner.method.name).views.pseudo)
    return PseudoPool.open(context.inputs["selection"], context.scratch, soft)


def first_weights(learner: LearnerSettings, init: Artifact | None) -> dict[str, Tensor] | None:
    """Returns all weights of the network that a student starts from, which must have the same architecture."""
    if init is None:
        if getattr(learner, "init", "scratch") == "teacher":
            raise ConfigError("init: teacher needs the teacher's model as the input `init`, and none was given")
        return None
    card = load_card(init.path)
    if problem := unfit_to_begin_with(card.model, card.members, learner.model):
        raise ConfigError(problem)
    if card.base is not None:
        return load_trained(init.path, "cpu", "fp32").network.state_dict()
    return load_weights(init.file(WEIGHTS))


def first_normalisation(
    learner: LearnerSettings, dataset: Dataset, pretrained: Artifact | None, init: Artifact | None
) -> Normalisation | None:
    """Returns the mean and deviation of the first weights; None for those of the labelled images."""
    facts = facts_of(pretrained)
    if facts is None and learner.model.pretrained is not None:
        facts = obtain(learner.model).facts
    given = None if init is None else load_card(init.path).own_normalisation
    return normalisation_of(learner.model, (facts.normalisation if facts else None) or given, dataset.channels)


def first_size(init: Artifact) -> int:
    """Returns the image size that a given network was built for; some networks differ between sizes."""
    card = load_card(init.path)
    return card.built_for or card.image_size


def write_model(
    context: StageContext, run: TrainingRun, dataset: Dataset, stopped: str, speeds: list[float]
) -> StageResult:
    """Writes the artifact's files: the kept network and its card, the last network, the history and the metrics."""
    state, train = run.state, run.learner.train
    last = run.evaluated().state_dict()
    keep_best = train.keep == "best" and state.best is not None
    kept = state.best.weights if keep_best and state.best else last
    base = base_of(context, run)
    save_weights(context.output / WEIGHTS, to_store(context, run, kept, base))
    save_weights(context.output / LAST, to_store(context, run, last, base))
    save_card(context.output, card_of(run, dataset, base))
    state.history.write(context.output / "history.parquet")
    metrics = summarise(run, stopped, keep_best)
    (context.output / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    speed = {"images_per_second": round(statistics.median(speeds), 1)} if speeds else {}
    logs = context.output / "logs"
    logs.mkdir()
    (logs / "throughput.json").write_text(json.dumps(speed) + "\n")
    return StageResult(summary={**metrics, **speed, "computed_by": computed_by(run.device, run.dtype)})


def base_of(context: StageContext, run: TrainingRun) -> Base | None:
    """Returns the weights that the model's files differ from; None if the files hold the whole model."""
    train, pretrained = run.learner.train, context.inputs.get("weights")
    if pretrained is None or train.tune == "all":
        return None
    return Base(sha256=pretrained.manifest["files"][BASE]["sha256"], lora_scale=train.lora.alpha / train.lora.rank)


def to_store(
    context: StageContext, run: TrainingRun, state: Mapping[str, Tensor], base: Base | None
) -> Mapping[str, Tensor]:
    """Returns the tensors to write: the difference from the pretrained weights, or the whole state with LoRA merged.

    The temperature of the training becomes part of the head.
    """
    if (temperature := run.learner.train.temperature) != 1:
        state = {name: one / temperature if name.startswith("head.") else one for name, one in state.items()}
    if base is not None:
        return difference(state, body_tensors(context.inputs["weights"].file(BASE)))
    lora = run.learner.train.lora
    return merged(state, lora.alpha / lora.rank) if run.learner.train.tune == "lora" else state


def card_of(run: TrainingRun, dataset: Dataset, base: Base | None = None) -> Card:
    """Returns the facts needed to use the network."""
    own = (run.mean, run.std) != (dataset.mean, dataset.std)
    preprocess = Normalisation(mean=run.mean, std=run.std) if own else "data"
    return Card(
        model=run.learner.model.model_copy(update={"preprocess": preprocess}),
        classes=dataset.classes,
        in_channels=dataset.channels,
        image_size=dataset.image_size,
        built_for=run.built_for if run.built_for != dataset.image_size else None,
        mean=run.mean,
        std=run.std,
        precision=run.learner.train.precision,
        members=members(run.evaluated()),
        base=base,
        resizing=dataset.resizing or None,
    )


def summarise(run: TrainingRun, stopped: str, keep_best: bool) -> dict[str, Any]:
    """Returns the best and the last evaluation, the amount of training, the reason for its end, and warnings."""
    state = run.state
    best = None if state.best is None else evaluation(state.best.step, state.best.accuracy, state.best.loss)
    names = ("step", "validation_accuracy", "validation_loss")
    rows = [row for row in zip(*map(state.history.column, names), strict=True) if not math.isnan(row[1])]
    last = evaluation(*rows[-1]) if rows else None
    return {
        "kept": "best" if keep_best else "last",
        "validation_accuracy": kept["accuracy"] if (kept := best if keep_best else last) else None,
        "best": best,
        "last": last,
        **median_of_the_last(run),
        "steps": state.step,
        "images_seen": state.step * run.images_a_step,
        "stopped": stopped,
        "warnings": list(diagnose_run(run).values()),
    }


def median_of_the_last(run: TrainingRun) -> dict[str, Any]:
    """Returns each split's median accuracy over the last evaluations, and their number, if the recipe asks for it."""
    if not (wanted := run.learner.train.median_of):
        return {}
    columns = {split: run.state.history.column(f"{split}_accuracy") for split in ("validation", "test")}
    measured = {split: [one for one in column if not math.isnan(one)][-wanted:] for split, column in columns.items()}
    medians = {f"median_{split}_accuracy": statistics.median(one) if one else None for split, one in measured.items()}
    return {"median_of": max(map(len, measured.values())), **medians}


def evaluation(step: float, accuracy: float, loss: float) -> dict[str, float]:
    """Returns one evaluation as JSON values."""
    return {"step": int(step), "accuracy": accuracy, "loss": loss}
