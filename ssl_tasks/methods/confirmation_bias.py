"""Implements Pseudo-Labeling and Confirmation Bias (Arazo et al. 2020, arXiv 1908.02983).

Every unlabelled image has a soft label: the network's own prediction from the last time the image was seen, of the
image without augmentation and the network in train mode without dropout. Labelled and unlabelled images train
together under MixUp with one raw λ ~ Beta(α, α) a batch: loss = λ CE(ŷ) + (1 - λ) CE(ŷ of the partner)
+ class_regulariser · KL(uniform ‖ mean prediction) + entropy_regulariser · mean entropy. Both regularisers are needed:
the first against one class for all, the second against flat predictions. So is a minimum of labelled images in every
batch: it is `train.batch_size`, 16 of 100 in the paper, beside unlabeled_ratio · batch_size. The warm-up
learns from labelled images alone (10 epochs of them in the paper, before 400 of the unlabelled ones); the first soft
labels come from a pass over all images after it.

As in the official code, the passes over plain images update the batch-norm statistics. The KL's constant, -log C, is
left out there and kept here, so that the term is 0 if the mean is uniform.

Deviations: the official code stores an epoch's new labels separately until its end; in a pass that shows each image
once this is the same as overwriting them. It averages weights late in the run (SWA); here, use the engine's moving
average. Its weak view has colour jitter; ours has none.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from selftrain.models.classifier import Classifier
from selftrain.models.noise import without_noise
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.execution.distributed import gather_rows, mean_over_ranks
from selftrain.ssl_tasks.methods.base import Losses, Method, Pools, Problem, gradient_share
from selftrain.ssl_tasks.methods.math import (
    draw_lambda,
    entropy,
    first_step,
    frozen_statistics,
    mix_with_shuffled,
    pseudo_label_logs,
    soft_cross_entropy,
)
from selftrain.ssl_tasks.settings.methods import ConfirmationBiasSettings


def distance_from_uniform(logits: Tensor) -> Tensor:
    """Returns KL(uniform ‖ mean prediction of all ranks)."""
    mean = logits.softmax(dim=1).mean(dim=0)
    mean = mean + (mean_over_ranks(mean) - mean).detach()  # each rank's gradient, at the mean of all ranks
    return -mean.clamp_min(torch.finfo(mean.dtype).tiny).log().mean() - math.log(len(mean))


@torch.no_grad()
def plain_prediction(student: Classifier, images: Tensor) -> Tensor:
    """Predicts soft labels: without augmentation and dropout, with batch norm as in training."""
    with without_noise(student):
        return student(images).float().softmax(dim=1)


class ConfirmationBias(Method):
    """The method; its memory of soft labels, [unlabelled images, classes], is a buffer."""

    mixes_labels = True
    views = Views(labeled=("weak",), unlabeled=("weak", "none"))
    settings: ConfirmationBiasSettings
    memory: Tensor

    def __init__(self, settings: ConfirmationBiasSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        uniform = torch.full((problem.num_unlabeled, problem.num_classes), 1 / problem.num_classes)
        self.register_buffer("memory", uniform)

    def refresh_every(self) -> int:
        return self.problem.steps

    def refresh_from(self) -> int:
        return first_step(self.settings.warmup, self.problem.steps)

    def before_epoch(self, student: Classifier, pools: Pools) -> None:
        """Predicts the first soft labels after the warm-up; later ones are updated during training."""
        training = student.training
        student.train()
        with frozen_statistics(student):
            for index, images in pools.unlabeled():
                self.memory[index] = plain_prediction(student, images)
        student.train(training)

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        count, classes = len(batch.labels), self.problem.num_classes
        images, targets = batch.labeled[0], F.one_hot(batch.labels, classes).float()
        logs = {}
        if progress >= self.settings.warmup:
            soft_labels = self.memory[batch.unlabeled_index]
            self.remember(batch.unlabeled_index, plain_prediction(student, batch.unlabeled[1]))
            images, targets = torch.cat([images, batch.unlabeled[0]]), torch.cat([targets, soft_labels])
            hard = soft_labels.argmax(dim=1)
            logs = pseudo_label_logs(hard, torch.ones_like(hard), batch.unlabeled_truth, classes)
        images, targets = mix_with_shuffled(images, targets, draw_lambda(self.settings.alpha, 1, images.device))
        logits = student(images).float()
        losses = soft_cross_entropy(logits, targets)
        return self.regularised(logits, losses[:count], losses[count:], batch.label_weights, logs)

    def remember(self, index: Tensor, probs: Tensor) -> None:
        """Stores the predictions of all ranks as the soft labels of their images."""
        self.memory[gather_rows(index)] = gather_rows(probs)

    def regularised(
        self, logits: Tensor, labeled: Tensor, unlabeled: Tensor, weights: Tensor | None, logs: dict[str, Tensor]
    ) -> Losses:
        """Returns the mean loss over labelled and unlabelled images, and the two regularisers."""
        known = labeled if weights is None else weights * labeled
        supervised, unsupervised = known.sum() / len(logits), unlabeled.sum() / len(logits)
        uniform, flat = distance_from_uniform(logits), entropy(logits).mean()
        logs = logs | {"supervised": known.mean().detach(), "uniform": uniform.detach(), "entropy": flat.detach()}
        if len(unlabeled):
            logs["unsupervised"] = unlabeled.mean().detach()
            logs["gradient_share"] = gradient_share(supervised, unsupervised, [logits])
        settings = self.settings
        penalty = settings.class_regulariser * uniform + settings.entropy_regulariser * flat
        return Losses(supervised + unsupervised + penalty, logs)
