"""Implements FixMatch (Sohn et al. 2020, arXiv 2001.07685).

The prediction for the weak view is the pseudo-label of the strong view if its largest probability reaches the
threshold τ: loss = CE(labelled) + weight · mean over ALL unlabelled images of 1[max q ≥ τ] · CE(argmax q, strong).
The pseudo-label carries no gradient and comes from the live network, not from its average; labelled, weak and strong
images go through one forward pass in train mode, so that batch norm sees them together.

`threshold` τ; `weight` λ_u; `temperature` None is the official hard label, else the target is the sharpened
prediction; `distribution_alignment` first pulls the predictions' running mean (128 batches, as ReMixMatch) to the
labelled classes' shares, as in the paper's appendix; `confidence_temperature` sharpens the prediction only for the
comparison with τ, for pretrained networks with a flat softmax (SWIFT, 2512.10244; UDA and FlexMatch have it too);
`separate_weak_forward` sends the weak views through a separate pass without a gradient.

Deviations: with a temperature, the mask uses the prediction before sharpening, as in the official code.
`separate_weak_forward` saves a third to a half of the work, but normalises weak views separately from the others.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.methods.base import (
    Losses,
    Method,
    Problem,
    combine,
    forward_together,
    labeled_cross_entropy,
    supervised_alone,
)
from selftrain.ssl_tasks.methods.math import (
    RunningMean,
    confident,
    pseudo_label_logs,
    sharpen,
    soft_cross_entropy,
)
from selftrain.ssl_tasks.settings.methods import FixMatchSettings


def masked_cross_entropy(logits_strong: Tensor, probs_weak: Tensor, mask: Tensor, temperature: float | None) -> Tensor:
    """Returns the mean over all rows of mask · CE with the hard (or sharpened) prediction for the weak view."""
    if temperature is None:
        losses = F.cross_entropy(logits_strong, probs_weak.argmax(dim=1), reduction="none")
    else:
        losses = soft_cross_entropy(logits_strong, sharpen(probs_weak, temperature))
    return (mask * losses).mean()


class FixMatch(Method):
    """The method, with one fixed threshold for all classes."""

    views = Views(labeled=("weak",), unlabeled=("weak", "strong"))
    settings: FixMatchSettings

    def __init__(self, settings: FixMatchSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        if settings.distribution_alignment:
            self.guesses = RunningMean(problem.class_prior)

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        if self.settings.weight == 0:
            return supervised_alone(student, batch)
        logits, logits_weak, logits_strong = self.forward_views(student, batch)
        probs_weak = logits_weak.detach().softmax(dim=1)
        if self.settings.distribution_alignment:
            probs_weak = self.guesses.align(probs_weak)
        sharpness = self.settings.confidence_temperature
        mask = confident(probs_weak if sharpness == 1 else sharpen(probs_weak, sharpness), self.settings.threshold)
        supervised = labeled_cross_entropy(logits, batch)
        unsupervised = masked_cross_entropy(logits_strong, probs_weak, mask, self.settings.temperature)
        logs = pseudo_label_logs(probs_weak.argmax(dim=1), mask, batch.unlabeled_truth, self.problem.num_classes)
        return combine(supervised, unsupervised, self.settings.weight, (logits, logits_strong), logs)

    def forward_views(self, student: Classifier, batch: Batch) -> tuple[Tensor, ...]:
        """Returns the logits of the labelled images, the weak views and the strong views."""
        (labeled,), (weak, strong) = batch.labeled, batch.unlabeled
        if not self.settings.separate_weak_forward:
            return forward_together(student, labeled, weak, strong)
        with torch.no_grad():
            logits_weak = student(weak).float()
        logits, logits_strong = forward_together(student, labeled, strong)
        return logits, logits_weak, logits_strong
