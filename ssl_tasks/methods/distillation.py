"""Distils a teacher into a student by stored soft labels (SimCLRv2: Chen et al. 2020, arXiv 2006.10029).

loss = (1 - α) · CE(labelled) + α · mean of -Σ p_teacher(T) · log p_student(T), where p(T) = softmax(logits / T).
The teacher's probabilities come from the selection (`select.soft`), after a temperature if one was set there.
p^(1/T), normalised, is softmax(logits / T), so logits need not be stored. The paper's main distillation is α = 1,
unlabelled images only; it adds true labels if there are many.

Deviations: hard stored labels stay one-hot at any T. As in the paper, and unlike Hinton et al., the loss is not
multiplied by T².
"""

from torch import Tensor

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.methods.base import (
    Losses,
    Method,
    combine,
    forward_together,
    labeled_cross_entropy,
    supervised_alone,
)
from selftrain.ssl_tasks.methods.math import sharpen, soft_cross_entropy
from selftrain.ssl_tasks.settings.methods import DistillationSettings


def distillation_loss(logits: Tensor, teacher_probs: Tensor, temperature: float) -> Tensor:
    """Returns the mean cross-entropy of teacher and student, both at the temperature."""
    return soft_cross_entropy(logits / temperature, sharpen(teacher_probs, temperature)).mean()


class Distillation(Method):
    """The method; the student learns stored soft labels."""

    views = Views(labeled=("weak",), pseudo=("weak",))
    settings: DistillationSettings

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        weight = self.settings.weight
        if weight == 0:
            return supervised_alone(student, batch)
        logits, logits_pseudo = forward_together(student, batch.labeled[0], batch.pseudo[0])
        supervised = labeled_cross_entropy(logits, batch)
        unsupervised = distillation_loss(logits_pseudo, batch.pseudo_targets, self.settings.temperature)
        logs = {"supervised": supervised.detach()}
        return combine((1 - weight) * supervised, unsupervised, weight, (logits, logits_pseudo), logs)
