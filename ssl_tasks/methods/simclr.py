"""Pre-trains a first teacher by SimCLR (Chen et al. 2020, arXiv 2002.05709; head of three layers in v2, 2006.10029).

Two strong views of every unlabelled image go through the network's features and a projection head, which is discarded
afterwards. NT-Xent: each view must identify the other view of its image among all 2n - 1 views of the batch, by softmax
of cosine similarity / T. Labels train only a linear probe: the classifier's head learns from the features without
their gradient, as in the official code's online evaluation. So the validation accuracy of a pre-trained network is
meaningful, and its best checkpoint can be chosen. Fine-tuning is a second training with `init: teacher`.

Views are `augment.strong`'s. The paper's are random crops to full size with colour distortion and blur: on photographs
set `augment` accordingly. T is .1 on ImageNet, .5 on CIFAR-10.

The loss is the paper's mean over all 2n views. The official code adds the means of the two sides, which is twice this
loss: with SGD, its learning rate equals twice that rate here; with LARS the scale does not matter.

Deviations: labelled images are not contrasted, unless the split puts them into the unlabelled pool too.
v2 fine-tunes from the middle of the head; here it starts from the features. Over several processes the views of all
are contrasted, as in the official code.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.execution.distributed import gather_rows, rank, world
from selftrain.ssl_tasks.methods.base import Losses, Method, labeled_cross_entropy
from selftrain.ssl_tasks.methods.math import exact_products
from selftrain.ssl_tasks.settings.methods import SimCLRSettings


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Returns the mean of -log softmax(cosine / T) at the other view, and how often that is the nearest view."""
    views = F.normalize(torch.cat([first, second]), dim=1)
    with exact_products(views.device):  # in bf16 most similarities near 1 are equal
        similarity = views @ views.T / temperature
    similarity = similarity.masked_fill(torch.eye(len(views), dtype=torch.bool, device=views.device), -torch.inf)
    others = torch.arange(len(views), device=views.device).roll(len(first))
    return F.cross_entropy(similarity, others), (similarity.argmax(dim=1) == others).float().mean()


def with_other_ranks(rows: Tensor) -> Tensor:
    """Returns the rows of all ranks in rank order; only this rank's own rows have a gradient."""
    if world() == 1:
        return rows
    start, everyone = rank() * len(rows), gather_rows(rows)
    return torch.cat([everyone[:start], rows, everyone[start + len(rows) :]])


def projection_head(inputs: int, outputs: int, layers: int) -> nn.Sequential:
    """Returns linear, batch norm and ReLU `layers` - 1 times, then linear and batch norm."""
    hidden = [
        module
        for _ in range(layers - 1)
        for module in (nn.Linear(inputs, inputs, bias=False), nn.BatchNorm1d(inputs), nn.ReLU(inplace=True))
    ]
    return nn.Sequential(*hidden, nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs))


class SimCLR(Method):
    """The method; the projection head is one of its parameters."""

    views = Views(labeled=("weak",), unlabeled=("strong", "strong"))
    settings: SimCLRSettings
    projection: nn.Sequential

    def before_training(self, student: Classifier) -> None:
        self.projection = projection_head(student.num_features, self.settings.projection, self.settings.layers)
        if world() > 1 and next(student.parameters()).is_cuda:
            nn.SyncBatchNorm.convert_sync_batchnorm(self.projection)  # in place, as the engine does for the student

    def loss(self, student: Classifier, batch: Batch, progress: float) -> Losses:
        counts = [len(batch.labels), *(len(view) for view in batch.unlabeled)]
        labeled, first, second = student.features(torch.cat([*batch.labeled, *batch.unlabeled])).split(counts)
        first, second = self.projection(torch.cat([first, second])).float().chunk(2)
        contrast, nearest = nt_xent(with_other_ranks(first), with_other_ranks(second), self.settings.temperature)
        # Each rank has the gradient of its own rows of one loss, so the engine's mean over ranks must become their sum.
        contrast = contrast.detach() + world() * (contrast - contrast.detach())
        logits = student.head(labeled.detach()).float()
        probe = labeled_cross_entropy(logits, batch)
        logs = {"supervised": probe.detach(), "unsupervised": contrast.detach(), "nearest": nearest}
        return Losses(contrast + self.settings.probe_weight * probe, logs)
