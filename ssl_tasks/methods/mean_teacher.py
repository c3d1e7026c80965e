"""Implements Mean Teacher (Tarvainen & Valpola 2017, arXiv 1703.01780).

The teacher's weights are a moving average of the student's. The student's prediction for one weak view is pulled to
the teacher's for another: loss = CE(labelled) + w(t) · mean over all images, labelled ones included, and classes of
(softmax student - softmax teacher)², where w rises by exp(-5 (1 - t)²). Only the student gets a gradient.
As in the official code, the teacher runs in train mode, with its own batch statistics and noise, and only parameters
are averaged. The teacher is evaluated.

`weight` (the official PyTorch code has 100, FixMatch's baseline 50); `decay` of the average; `decay_warmup` takes
min(1 - 1/(t + 1), decay) at step t; `ramp_up` share of the run over which w rises; `ramp` sigmoid, or linear as the
baselines of MixMatch's authors; `consistency` mse, or the official alternative kl, KL(teacher ‖ student).

Deviations: one head of logits, as the official default; its CIFAR experiments couple two with a cost of .01. In the
baselines of MixMatch's authors, labelled and unlabelled images pass the student separately, only the labelled ones
update batch norm's running statistics, and the consistency loss is on the unlabelled images only.
"""

import torch
from torch import Tensor

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.methods.base import (
    Losses,
    Method,
    MovingTeacher,
    combine,
    forward_together,
    labeled_cross_entropy,
    supervised_alone,
)
from selftrain.ssl_tasks.methods.math import (
    kl_divergence,
    pseudo_label_logs,
    ramp,
    squared_difference,
)
from selftrain.ssl_tasks.settings.methods import MeanTeacherSettings


def consistency_loss(student_logits: Tensor, teacher_logits: Tensor, kind: str) -> Tensor:
    """Returns the mean over images and classes of the squared difference, or the mean over images of KL(teacher ‖
    student)."""
    teacher_logits = teacher_logits.detach()
    if kind == "mse":
        return squared_difference(student_logits.softmax(dim=1), teacher_logits.softmax(dim=1)).mean()
    return kl_divergence(teacher_logits, student_logits).mean()


class MeanTeacher(Method):
    """The method; the teacher is the student's moving average."""

    views = Views(labeled=("weak", "weak"), unlabeled=("weak", "weak"))
    settings: MeanTeacherSettings

    def before_training(self, student: Classifier) -> None:
        self.teacher = MovingTeacher(student)

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        if self.settings.weight == 0:
            return supervised_alone(student, batch)
        (labeled, labeled_again), (unlabeled, unlabeled_again) = batch.labeled, batch.unlabeled
        logits, logits_unlabeled = forward_together(student, labeled, unlabeled)
        teacher_labeled, teacher_unlabeled = forward_together(self.teacher, labeled_again, unlabeled_again)
        supervised = labeled_cross_entropy(logits, batch)
        unsupervised = consistency_loss(
            torch.cat([logits, logits_unlabeled]),
            torch.cat([teacher_labeled, teacher_unlabeled]),
            self.settings.consistency,
        )
        weight = self.settings.weight * ramp(self.settings.ramp, progress, self.settings.ramp_up)
        labels = teacher_unlabeled.argmax(dim=1)
        logs = pseudo_label_logs(labels, torch.ones_like(labels), batch.unlabeled_truth, self.problem.num_classes)
        return combine(supervised, unsupervised, weight, (logits, logits_unlabeled), logs)

    def after_step(self, student: Classifier) -> None:
        self.teacher.follow(student, self.settings.decay, self.settings.decay_warmup)

    def evaluated(self, average: Classifier) -> Classifier:
        return self.teacher.network if self.settings.weight else average
