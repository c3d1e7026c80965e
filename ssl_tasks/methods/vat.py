"""Implements Virtual Adversarial Training, VAT (Miyato et al. 2017, arXiv 1704.03976).

The prediction for an unlabelled image must stay the same under the small change r that changes it most:
loss = CE(labelled) + w(t) · mean KL(softmax f(u) ‖ softmax f(u + r)) + entropy_weight · mean H(softmax f(u)).
r is found by power iteration: from a random unit d, d ← ∇_d KL(f(u) ‖ f(u + ξ d)), and r = ε d / ‖d‖ for each image.
f(u) as a target and r have no gradient; Google's baselines use the opposite KL.

As in the official code, unlabelled images pass the network by themselves, so that clean and changed ones have the same
batch norm, and only labelled ones update its running statistics.

`weight` of the KL; `ramp_up` share of the run over which it rises linearly from 0 (official: 0, no rise; .4 in the
baselines of MixMatch's authors, USB and TorchSSL); `xi` ξ; `iterations` of the power method; `entropy_weight` (1 is the
paper's VAT+EntMin).

`epsilon` ε is a length in normalised pixels: of images minus the data set's mean over its standard deviation s, which
is .247, .243, .262 by channel for CIFAR-10 and .198, .201, .197 for SVHN. A length on pixels in [-1, 1] is 1 / (2 s)
times as long here: the 6 of MixMatch's authors is 12.0 on CIFAR-10 and 15.1 on SVHN (3 / s, the mean of the channels).
TorchSSL standardises CIFAR-10 as here, so its 6 is 6; for SVHN it divides by .175, so its 6 is 5.3. The official code's
3.5 on SVHN is on pixels in [-.5, .5]: 17.6 here; its 8 on CIFAR-10 is on whitened images and has no equivalent.

Deviations: ξ is 1; the official code has 1e-6, which bf16 cannot tell from 0. On CIFAR-10 images r then raises
the KL to .28 in fp32 and .26 in bf16, against .26 and .24 with 1e-6, and .28 with the exact second derivative.
"""

import torch
from torch import Tensor

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.methods.base import Losses, Method, combine, labeled_cross_entropy, supervised_alone
from selftrain.ssl_tasks.methods.math import (
    entropy,
    frozen_statistics,
    kl_divergence,
    linear_ramp,
    pseudo_label_logs,
)
from selftrain.ssl_tasks.settings.methods import VATSettings


def unit(direction: Tensor) -> Tensor:
    """Returns each image's direction at length 1, however short it is; 0 stays 0.

    It is divided by its largest entry first, so that squares of tiny entries do not underflow. No floor is added: the
    official ones (1e-12 and 1e-6) shorten the directions that a small ξ finds.
    """
    flat = direction.float().flatten(1)
    flat = flat / one_for_zero(flat.abs().amax(dim=1, keepdim=True))
    return (flat / one_for_zero(flat.norm(dim=1, keepdim=True))).to(direction.dtype).view_as(direction)


def one_for_zero(lengths: Tensor) -> Tensor:
    """Returns the lengths, with 1 for 0, to divide by."""
    return torch.where(lengths > 0, lengths, torch.ones_like(lengths))


def adversarial_direction(student: Classifier, images: Tensor, logits: Tensor, xi: float, iterations: int) -> Tensor:
    """Returns each image's unit change that raises KL(logits ‖ changed) most, by power iteration."""
    direction = torch.randn_like(images)
    for _ in range(iterations):
        direction = unit(direction).requires_grad_()
        divergence = kl_divergence(logits.detach(), student(images + xi * direction).float()).sum()
        (direction,) = torch.autograd.grad(divergence, direction)
    return unit(direction)


class VAT(Method):
    """The method; it makes the network smooth in the direction in which it is least smooth."""

    views = Views(labeled=("weak",), unlabeled=("weak",))
    settings: VATSettings

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        settings = self.settings
        if settings.weight == settings.entropy_weight == 0:
            return supervised_alone(student, batch)
        logits, (images,) = student(batch.labeled[0]).float(), batch.unlabeled
        with frozen_statistics(student):
            with torch.set_grad_enabled(settings.entropy_weight > 0):
                logits_clean = student(images).float()
            direction = adversarial_direction(student, images, logits_clean, settings.xi, settings.iterations)
            logits_changed = student(images + settings.epsilon * direction).float()
        supervised = labeled_cross_entropy(logits, batch)
        unsupervised = kl_divergence(logits_clean.detach(), logits_changed).mean()
        labels = logits_clean.detach().argmax(dim=1)
        logs = pseudo_label_logs(labels, labels >= 0, batch.unlabeled_truth, self.problem.num_classes)
        weight = settings.weight * linear_ramp(progress, settings.ramp_up)
        losses = combine(supervised, unsupervised, weight, (logits, logits_changed), logs)
        if settings.entropy_weight:
            return Losses(losses.total + settings.entropy_weight * entropy(logits_clean).mean(), losses.logs)
        return losses
