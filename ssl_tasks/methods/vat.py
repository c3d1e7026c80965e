"""Virtual Adversarial Training, VAT (Miyato et al. 2017, arXiv 1704.03976).

The prediction for an unlabelled image is kept under the small change r that changes it most:
loss = CE(labelled) + weight · mean KL(softmax f(u) ‖ softmax f(u + r)) + entropy_weight · mean H(softmax f(u)).
r is found by power iteration: from a random unit d, d ← ∇_d KL(f(u) ‖ f(u + ξ d)), and r = ε d / ‖d‖ for each image.
f(u) as a target and r carry no gradient; Google's baselines use the opposite KL.

As in the official code unlabelled images pass the network by themselves, so that clean and changed ones meet the same
batch norm, and only labelled ones move its running statistics.

`weight` λ; `epsilon` ε, a length in normalised pixels; `xi` ξ; `iterations` of the power method; `entropy_weight` (1 is
the paper's VAT+EntMin).

Deviations: ξ is 1, where the official code has 1e-6, which bf16 cannot tell from 0. On CIFAR-10 images r then raises
the KL to .28 in fp32 and .26 in bf16, against .26 and .24 with 1e-6, and .28 with the exact second derivative.
"""

import torch
from torch import Tensor

from models.classifier import Classifier
from ssl_tasks.batch import Batch, Views
from ssl_tasks.functional import entropy, kl_divergence, pseudo_label_logs, weighted_cross_entropy
from ssl_tasks.methods.base import Losses, Method, combine, supervised_alone
from ssl_tasks.methods.settings import VATSettings
from ssl_tasks.mixing import frozen_statistics


def unit(direction: Tensor) -> Tensor:
    """Each image's direction at length 1; first divided by its largest entry, lest squares of tiny ones underflow."""
    flat = direction.flatten(1)
    flat = flat / (flat.abs().amax(dim=1, keepdim=True) + 1e-12)
    return (flat / (flat.square().sum(dim=1, keepdim=True) + 1e-6).sqrt()).view_as(direction)


def adversarial_direction(student: Classifier, images: Tensor, logits: Tensor, xi: float, iterations: int) -> Tensor:
    """The unit change of each image that raises KL(logits ‖ changed) most, by power iteration from a random one."""
    direction = torch.randn_like(images)
    for _ in range(iterations):
        direction = unit(direction).requires_grad_()
        divergence = kl_divergence(logits.detach(), student(images + xi * direction).float()).sum()
        (direction,) = torch.autograd.grad(divergence, direction)
    return unit(direction)


class VAT(Method):
    """Smoothness where the network is least smooth."""

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
        supervised = weighted_cross_entropy(logits, batch.labels, batch.label_weights)
        unsupervised = kl_divergence(logits_clean.detach(), logits_changed).mean()
        labels = logits_clean.detach().argmax(dim=1)
        logs = pseudo_label_logs(labels, labels >= 0, batch.unlabeled_truth, self.problem.num_classes)
        losses = combine(supervised, unsupervised, settings.weight, (logits, logits_changed), logs)
        if settings.entropy_weight:
            return Losses(losses.total + settings.entropy_weight * entropy(logits_clean).mean(), losses.logs)
        return losses
