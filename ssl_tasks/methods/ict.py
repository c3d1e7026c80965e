"""Implements Interpolation Consistency Training, ICT (Verma et al. 2019, arXiv 1903.03825).

Two unlabelled images are mixed, λ u + (1 - λ) u'; the student's prediction for the mixture is pulled to the same
mixture of the mean teacher's: loss = CE(mixed labelled) + w(t) · mean over images and classes of
(softmax student(mixture) - softmax(λ teacher(u) + (1 - λ) teacher(u')))², where w rises by exp(-5 (1 - t)²).
As in the official code, the teacher's LOGITS are mixed, and λ ~ Beta(α, α), one per batch, is used as drawn;
FixMatch's baseline mixes probabilities by max(λ, 1 - λ). The teacher runs in train mode and is evaluated.

`weight` w_max; `alpha` α of the unlabelled and `labeled_alpha` of the labelled images (official: both 1 for CIFAR,
both .1 for SVHN; 0 mixes nothing); `decay`, `decay_warmup` of the teacher; `ramp_up` share of the run over which w
rises.

Deviations: mixtures of labelled and of unlabelled images pass the student together, so that batch norm sees both; the
official code has a forward pass for each, and further ones of unmixed images for its log, which update the running
statistics too. Its CIFAR-10 is whitened (ZCA). Its L2 is on all weights, ours only on kernels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.methods.base import Losses, Method, MovingTeacher, combine, forward_together, supervised_alone
from selftrain.ssl_tasks.methods.math import (
    draw_lambda,
    mix,
    pseudo_label_logs,
    sigmoid_ramp,
    soft_cross_entropy,
    squared_difference,
)
from selftrain.ssl_tasks.settings.methods import ICTSettings


def draw_partners(images: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Returns the partner that each image is mixed with, and the λ of the batch."""
    return torch.randperm(len(images), device=images.device), draw_lambda(alpha, 1, images.device)


def interpolation_loss(mixed_logits: Tensor, teacher_logits: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """Returns the mean squared difference to the softmax of the teacher's logits, mixed as the images were."""
    target = mix(teacher_logits, teacher_logits[partner], lam).detach().softmax(dim=1)
    return squared_difference(mixed_logits.softmax(dim=1), target).mean()


class ICT(Method):
    """The method; the student learns from mixtures, and its moving average is the teacher."""

    mixes_labels = True
    views = Views(labeled=("weak",), unlabeled=("weak",))
    settings: ICTSettings

    def before_training(self, student: Classifier) -> None:
        self.teacher = MovingTeacher(student)

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        settings = self.settings
        if settings.weight == 0:
            return supervised_alone(student, batch)
        (labeled,), (unlabeled,) = batch.labeled, batch.unlabeled
        teacher_logits = self.teacher(unlabeled).float()
        partner_labeled, lam_labeled = draw_partners(labeled, settings.labeled_alpha)
        partner, lam = draw_partners(unlabeled, settings.alpha)
        logits, mixed_logits = forward_together(
            student, mix(labeled, labeled[partner_labeled], lam_labeled), mix(unlabeled, unlabeled[partner], lam)
        )
        supervised = self.supervised(logits, batch, partner_labeled, lam_labeled)
        unsupervised = interpolation_loss(mixed_logits, teacher_logits, partner, lam)
        weight = settings.weight * sigmoid_ramp(progress, settings.ramp_up)
        labels = teacher_logits.argmax(dim=1)
        logs = pseudo_label_logs(labels, labels >= 0, batch.unlabeled_truth, self.problem.num_classes)
        return combine(supervised, unsupervised, weight, (logits, mixed_logits), logs)

    def supervised(self, logits: Tensor, batch: Batch, partner: Tensor, lam: Tensor) -> Tensor:
        """Returns the cross-entropy with the mixed labels, each with the weight of its class."""
        targets = F.one_hot(batch.labels, self.problem.num_classes).float()
        if batch.label_weights is not None:
            targets = targets * batch.label_weights[:, None]
        return soft_cross_entropy(logits, mix(targets, targets[partner], lam)).mean()

    def after_step(self, student: Classifier) -> None:
        self.teacher.follow(student, self.settings.decay, self.settings.decay_warmup)

    def evaluated(self, average: Classifier) -> Classifier:
        return self.teacher.network if self.settings.weight else average
