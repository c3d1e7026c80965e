"""Builds a training run from its settings (network, method, optimizer, images), and evaluates it during training.

Training reads the test images only for `train.median_of`, the protocol of published results; nothing is chosen by them.
A fine-tuning at a larger size (FixRes, Touvron et al. 2019, 1906.06423) trains only the classifier and the norms, and
refuses networks that are built for one size.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftrain.models import build_model
from selftrain.models.classifier import Classifier, synchronise_batch_norm
from selftrain.models.libraries import check_image_size
from selftrain.models.settings import Normalisation
from selftrain.models.tuning import rate_factors, tune
from selftrain.ssl_tasks.data.batch import Batch
from selftrain.ssl_tasks.data.dataset import Dataset
from selftrain.ssl_tasks.data.loading import StreamPools, loader, normalise, to_device
from selftrain.ssl_tasks.data.stream import BatchStream, Images, LabeledPool, PseudoPool
from selftrain.ssl_tasks.data.views.ctaugment import Policy, build_policy
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.devices import autocast, resolve_precision
from selftrain.ssl_tasks.execution.distributed import grouped, rank, sum_over_ranks, world
from selftrain.ssl_tasks.execution.stage import derive_seed
from selftrain.ssl_tasks.methods import build_method, method_class
from selftrain.ssl_tasks.methods.base import Method, Problem
from selftrain.ssl_tasks.settings.run_config import LearnerSettings, TunedSettings
from selftrain.ssl_tasks.settings.training import TrainSettings
from selftrain.ssl_tasks.training.state import RunState, build_optimizer, frozen_copy

BATCH = 256
LONG_RUN = 5_000  # steps from which compiling saves time on CUDA


@dataclass(frozen=True)
class TrainingRun:
    """Everything that a step, an evaluation and the loop need."""

    learner: LearnerSettings
    seed: int
    device: torch.device
    dtype: torch.dtype
    state: RunState
    problem: Problem
    stream: BatchStream
    validation: Images
    test: Images | None  # only if the recipe asks for its accuracy during training
    mean: tuple[float, ...]
    std: tuple[float, ...]
    built_for: int  # the image size that the network is built for; for a fine-tuned network, that of its first training
    policy: Policy | None = None  # CTAugment's learned rates; saved and moved with the method

    def evaluated(self) -> Classifier:
        """Returns the network to evaluate: the average, the student if there is none, or one of the method's own."""
        return self.state.method.evaluated(self.state.average)

    def batches(self, workers: int) -> Iterator[Batch]:
        """Yields the batches of the remaining steps, on the device."""
        if self.policy is not None:
            self.policy.open(self.state.step)
        cuda = self.device.type == "cuda"
        for batch in loader(self.stream, self.state.step, self.learner.train.steps, workers, pin_memory=cuda):
            yield to_device(batch, self.device, self.mean, self.std)

    def pools(self) -> StreamPools:
        """Returns ordered passes over the pools at the current step."""
        return StreamPools(self.stream, self.device, self.mean, self.std, step=self.state.step)

    @property
    def images_a_step(self) -> int:
        """Returns the number of images (not views) that a step reads, over all ranks."""
        views = self.stream.views
        return self.problem.batch_size + (self.problem.unlabeled_batch if views.unlabeled or views.pseudo else 0)


def build_run(
    learner: LearnerSettings,
    dataset: Dataset,
    seed: int,
    device: torch.device,
    selection: PseudoPool | None = None,
    weights: Mapping[str, Tensor] | None = None,
    built_for: int | None = None,
    normalisation: Normalisation | None = None,
) -> TrainingRun:
    """Builds a run at step 0; `weights` are the student's first weights unless it starts from scratch."""
    train = learner.train
    problem = build_problem(learner, dataset, selection)
    torch.manual_seed(derive_seed(seed, "weights"))
    built_for = built_for or dataset.image_size
    student = build_model(learner.model, dataset.num_classes, dataset.channels, built_for)
    if weights is not None:
        student.load_state_dict(dict(weights))
    if isinstance(learner, TunedSettings):
        refuse_one_size(student, learner.model.name, dataset.channels, dataset.image_size, built_for)
        if learner.layers == "classifier_and_norms":  # larger images change the statistics of activations
            tune(student, "norms", train.lora)
    tune(student, train.tune, train.lora)
    student.head.temperature = train.temperature
    if grouped() and device.type == "cuda":
        synchronise_batch_norm(student)
    student = student.to(device).to(memory_format=torch.channels_last)
    method = build_method(learner.method, problem)
    method.another = partial(build_another, student, learner, dataset, built_for, seed)
    method.before_training(student)
    policy = build_policy(learner.augment, method.views)
    board = None if policy is None else policy.board
    method.add_module("augmentation", policy)
    method.to(device)
    refuse_what_methods_ignore(method, train)
    average = frozen_copy(student) if train.ema_decay else student
    if train.compile == "on" or (train.compile == "auto" and device.type == "cuda" and train.steps >= LONG_RUN):
        student.compile()
    networks = [student, *(one for one in method.modules() if isinstance(one, Classifier))]
    head_factor = (train.head_learning_rate or train.learning_rate) / train.learning_rate
    factors = rate_factors(networks, head_factor, train.layer_decay)
    optimizer = build_optimizer(train, [*student.parameters(), *method.parameters()], factors)
    return TrainingRun(
        learner=learner,
        seed=seed,
        device=device,
        dtype=resolve_precision(train.precision, device),
        state=RunState(student, average, method, optimizer),
        problem=problem,
        stream=BatchStream(dataset, method.views, train, learner.augment, seed, rank(), world(), selection, board),
        validation=dataset.pool("validation"),
        test=dataset.pool("test") if train.median_of else None,
        mean=normalisation.mean if normalisation else dataset.mean,
        std=normalisation.std if normalisation else dataset.std,
        built_for=built_for,
        policy=policy,
    )


def build_another(
    student: Classifier, learner: LearnerSettings, dataset: Dataset, image_size: int, seed: int
) -> Classifier:
    """Returns a network of the student's kind with other weights: all, or only the head if the body is partly frozen.

    A body that is not trained as a whole must have the student's first weights.
    """
    torch.manual_seed(derive_seed(seed, "another network's weights"))
    fresh = learner.model.model_copy(update={"pretrained": None})
    network = build_model(fresh, dataset.num_classes, dataset.channels, image_size)
    tune(network, learner.train.tune, learner.train.lora)
    if learner.train.tune != "all":
        network.body.load_state_dict(student.body.state_dict())
    return network


def build_problem(learner: LearnerSettings, dataset: Dataset, selection: PseudoPool | None) -> Problem:
    """Returns the method's problem; without a `pseudo` view, accepted images count as labelled ones."""
    train, unlabeled = learner.train, dataset.pool("unlabeled")
    joined = None if method_class(learner.method.name).views.pseudo else selection
    labeled = LabeledPool(dataset.pool("labeled"), unlabeled, joined)
    counts = np.bincount(labeled.labels, labeled.copies, minlength=dataset.num_classes)
    return Problem(
        num_classes=dataset.num_classes,
        num_labeled=len(labeled),
        num_unlabeled=len(unlabeled),
        steps=train.steps,
        batch_size=train.batch_size,
        unlabeled_batch=train.batch_size * train.unlabeled_ratio,
        class_prior=tuple((counts / counts.sum()).tolist()),
        warmup_steps=train.warmup_steps,
    )


def refuse_what_methods_ignore(method: Method, train: TrainSettings) -> None:
    """Refuses settings that this method would ignore; one with its own `train_step` neither accumulates nor clips."""
    unadjusted = method.mixes_labels or getattr(method.settings, "units", "softmax") != "softmax"
    if unadjusted and train.loss != "cross_entropy":
        raise ConfigError(
            f"train.loss is {train.loss}, and {method.settings.name} has a loss of its own for labelled images. Leave "
            "train.loss at its default, or set train.class_balanced."
        )
    if not hasattr(method, "train_step"):
        return
    for name, value, off in (("accumulate", train.accumulate, 1), ("clip_gradient", train.clip_gradient, None)):
        if value != off:
            raise ConfigError(
                f"train.{name} is {value}, and {method.settings.name} takes its own steps, which know no {name}. "
                f"Leave train.{name} at its default."
            )


@torch.no_grad()
def validate(run: TrainingRun) -> dict[str, float]:
    """Returns accuracy and cross-entropy of the evaluated network on every split that is due and has images."""
    scores: dict[str, float] = {}
    for split, pool in (("validation", run.validation), ("test", run.test if among_the_last(run) else None)):
        if pool is not None and len(known := np.flatnonzero(pool.labels >= 0)):
            correct, loss = _measure(run, pool, known)
            scores |= {f"{split}_accuracy": correct, f"{split}_loss": loss}
    return scores


def among_the_last(run: TrainingRun) -> bool:
    """Returns whether this evaluation is one of the last `train.median_of`."""
    train = run.learner.train
    return math.ceil((train.steps - run.state.step) / train.evaluate_every) < (train.median_of or 0)


def _measure(run: TrainingRun, pool: Images, known: np.ndarray) -> tuple[float, float]:
    index = known[rank() :: world()]
    with evaluation_mode(run.evaluated()) as network:
        parts = [_score(run, network, pool, index[start : start + BATCH]) for start in range(0, len(index), BATCH)]
    total = torch.stack([torch.zeros(2, dtype=torch.float64, device=run.device), *parts]).sum(0)
    correct, loss = (sum_over_ranks(total) / len(known)).tolist()
    return correct, loss


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[nn.Module]:
    """Yields the network in evaluation mode; afterwards every module has its previous mode (a teacher may be noisy)."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    yield network
    for module, mode in modes:
        module.training = mode


def _score(run: TrainingRun, network: nn.Module, pool: Images, index: np.ndarray) -> torch.Tensor:
    images = normalise(torch.from_numpy(pool.images(index)), run.device, run.mean, run.std)
    labels = torch.from_numpy(pool.labels[index]).to(run.device)
    with autocast(run.device, run.dtype):
        logits = network(images).float()
    right = (logits.argmax(1) == labels).sum()
    return torch.stack([right.double(), F.cross_entropy(logits, labels, reduction="sum").double()])


def refuse_one_size(network: Classifier, name: str, channels: int, image_size: int, built_for: int) -> None:
    """Raises ConfigError if a network takes only images of the size that it was built for, and these are others."""
    fixed = getattr(network.body, "image_size", image_size) != image_size  # it would resize them to its own size
    try:
        if not fixed:
            check_image_size(network.body, name, channels, image_size)
            return
    except ConfigError:
        pass
    raise ConfigError(
        f"finetune.image_size is {image_size}, and {name} takes images of {built_for}×{built_for} alone. Leave "
        "finetune out, or use a student that takes any size: small_cnn, wrn-28-2, torchvision:efficientnet_b0"
    )
