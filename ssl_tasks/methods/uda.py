"""Implements Unsupervised Data Augmentation, UDA (Xie et al. 2019, arXiv 1904.12848).

The prediction for the strong view is pulled to the sharpened one for the weak view if the latter is confident:
loss = CE(labelled that count) + weight · mean over ALL unlabelled images of
1[max softmax(weak) > threshold] · KL(softmax(weak / T) ‖ softmax(strong)) + entropy_weight · H(softmax(weak)).
T divides the target's logits only, the mask uses the prediction before T, and the target has no gradient.
With training signal annealing (TSA) a labelled image counts while the probability of its TRUE class is at most a
threshold that rises from 1/K to 1; the labelled loss is then the sum over those that count, over max(their number, 1).

`weight` λ; `threshold` (0 is no mask); `temperature` T; `tsa` none, linear, exp (few labels) or log (many);
`entropy_weight` the official ent_min_coeff (.1 for 500 to 2,000 labels); `in_domain_share` below 1 drops, in each
batch, the unlabelled images of least confidence, which may be from another domain.

Deviations: the paper filters an out-of-domain set once, by a model trained before; here the current model filters each
batch.
"""

import math

from torch import Tensor
from torch.nn import functional as F

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.execution.distributed import gather_rows, sum_over_ranks, world
from selftrain.ssl_tasks.methods.base import Losses, Method, adjusted, combine, forward_together, supervised_alone
from selftrain.ssl_tasks.methods.math import entropy, kl_divergence, pseudo_label_logs, tsa_threshold
from selftrain.ssl_tasks.settings.methods import UDASettings


def annealed_cross_entropy(logits: Tensor, labels: Tensor, threshold: float, weights: Tensor | None = None) -> Tensor:
    """Returns the mean cross-entropy over the images whose true class has at most `threshold`; 0 if none has."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    counted = (losses.detach().neg().exp() <= threshold).float()
    number = (sum_over_ranks(counted.sum()) / world()).clamp_min(1 / world())
    return (counted * losses * (1.0 if weights is None else weights)).sum() / number


def in_domain(confidence: Tensor, share: float) -> Tensor:
    """Returns 1 for the most confident `share` of the whole batch's images, 0 for the others."""
    everyone = gather_rows(confidence)
    kept = max(1, math.ceil(share * len(everyone)))
    return (confidence >= everyone.topk(kept).values[-1]).float()


def consistency_loss(logits_strong: Tensor, logits_weak: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Returns the mean over all rows of mask · KL(softmax(weak / T) ‖ softmax(strong))."""
    return (mask * kl_divergence(logits_weak.detach() / temperature, logits_strong)).mean()


class UDA(Method):
    """The method; a strong view's prediction must agree with the sharpened one of a weak view."""

    views = Views(labeled=("weak",), unlabeled=("weak", "strong"))
    settings: UDASettings

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        settings = self.settings
        if settings.weight == settings.entropy_weight == 0:
            return supervised_alone(student, batch)
        logits, logits_weak, logits_strong = forward_together(student, *batch.labeled, *batch.unlabeled)
        confidence, labels = (logits_weak.detach() / settings.confidence_temperature).softmax(dim=1).max(dim=1)
        mask = (confidence > settings.threshold).float()
        if settings.in_domain_share < 1:
            mask = mask * in_domain(confidence, settings.in_domain_share)
        unsupervised = consistency_loss(logits_strong, logits_weak, mask, settings.temperature)
        supervised = self.supervised(logits, batch, progress)
        logs = pseudo_label_logs(labels, mask, batch.unlabeled_truth, self.problem.num_classes)
        losses = combine(supervised, unsupervised, settings.weight, (logits, logits_strong), logs)
        if settings.entropy_weight:
            return Losses(losses.total + settings.entropy_weight * entropy(logits_weak).mean(), losses.logs)
        return losses

    def supervised(self, logits: Tensor, batch: Batch, progress: float) -> Tensor:
        """Returns the labelled loss; with TSA, only over images that are not yet predicted confidently."""
        tsa = self.settings.tsa
        threshold = math.inf if tsa == "none" else tsa_threshold(progress, self.problem.num_classes, tsa)
        return annealed_cross_entropy(adjusted(logits, batch), batch.labels, threshold, batch.label_weights)
