"""Implements Meta Pseudo Labels (Pham et al. 2021, arXiv 2003.10580).

A teacher labels the strong views. A student, which is never trained on a true label, takes a step on these hard labels.
The decrease of the student's loss on labelled images is the teacher's feedback. In one step:
1. teacher forward on labelled, weak and strong views; ŷ = its argmax on the strong views;
2. student step on CE(strong, ŷ); feedback h = CE(labelled, old student) - CE(labelled, new student), minus its moving
   average;
3. teacher step on CE(labelled) + uda_weight(t) · UDA + feedback_weight · h · CE(teacher on strong, ŷ), where UDA is the
   mean of 1[max q ≥ threshold] · CE(q, strong) with q the weak view's prediction at `uda_temperature`.
Only the teacher trains for the first `student_wait` of the run. In the last `finetune`, the student learns only from
labelled images, at `finetune_rate` times the learning rate and without decay. `train.warmup_steps` warms up both
networks: the teacher from the first step, the student from its own first step.

The sign of h: the objective is the labelled loss of the student after it has learned labels drawn by the teacher. Its
exact gradient for the teacher (REINFORCE) is the mean over these labels of h · ∇CE(teacher on strong, ŷ) with
h = old - new (`feedback_sign: theory`, the default): labels that helped become more probable. The official code has
new - old (`feedback_sign: official`), which increases the objective for hard labels. There it has no effect: that code
multiplies h with CE(p, p) for soft, detached p, whose gradient is exactly zero. So ŷ must be hard, and the logits of
h's factor must not be detached, as they are in one much-used port. The feedback has no label smoothing.

Deviations: both networks share one optimizer and its learning rate (in the official recipes the two rates are equal;
the student's cosine starts `student_wait` later there). ŷ is the argmax; the paper draws it from the teacher's
prediction. The student learns hard labels; in the official code, the teacher's soft ones. The moving average starts at
0, not at a random number. The official code decays all weights but batch norm's, including biases.
`train.clip_gradient` and `train.accumulate` do not apply to these steps.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from selftrain.models.classifier import Classifier
from selftrain.ssl_tasks.data.batch import Batch, Views
from selftrain.ssl_tasks.execution.distributed import average_buffers, average_gradients, mean_over_ranks
from selftrain.ssl_tasks.methods.base import (
    Losses,
    Method,
    Problem,
    combine,
    forward_together,
    labeled_cross_entropy,
    supervised_alone,
    twin,
)
from selftrain.ssl_tasks.methods.math import (
    confident,
    first_step,
    linear_ramp,
    pseudo_label_logs,
    soft_cross_entropy,
)
from selftrain.ssl_tasks.settings.methods import MetaPseudoLabelsSettings


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Takes one step along the gradient of the loss; parameters that it does not depend on are unchanged."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(parameter for group in optimizer.param_groups for parameter in group["params"])
    optimizer.step()


@contextlib.contextmanager
def at_rate(optimizer: torch.optim.Optimizer, factor: float, decay: bool = True) -> Iterator[None]:
    """Scales the learning rate within the block, with or without weight decay."""
    before = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["lr"] *= factor
            group["weight_decay"] *= decay
        yield
    finally:
        for group, (rate, decay) in zip(optimizer.param_groups, before, strict=True):
            group["lr"], group["weight_decay"] = rate, decay


def uda_loss(weak: Tensor, strong: Tensor, temperature: float, threshold: float) -> tuple[Tensor, Tensor]:
    """Returns the mean over all images of mask · CE(softmax(weak / T), strong), and the mask.

    The target has no gradient."""
    targets = (weak.detach() / temperature).softmax(dim=1)
    mask = confident(targets, threshold)
    return (mask * soft_cross_entropy(strong, targets)).mean(), mask


class MetaPseudoLabels(Method):
    """The method; it owns the teacher, the engine owns the student, and one optimizer holds both."""

    views = Views(labeled=("weak",), unlabeled=("weak", "strong"))
    settings: MetaPseudoLabelsSettings
    teacher: Classifier
    usual: Tensor

    def __init__(self, settings: MetaPseudoLabelsSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        self.register_buffer("usual", torch.tensor(0.0))

    def before_training(self, student: Classifier) -> None:
        self.teacher = twin(student, self.settings.teacher, self.another)

    def train_step(
        self, student: Classifier, optimizer: torch.optim.Optimizer, batch: Batch, progress: float
    ) -> Losses:
        """Takes one step of the student, then one of the teacher."""
        if progress > 1 - self.settings.finetune:
            losses = supervised_alone(student, batch)
            with at_rate(optimizer, self.settings.finetune_rate, decay=False):
                descend(optimizer, losses.total)
            return losses
        self.teacher.train()
        labeled, weak, strong = forward_together(self.teacher, *batch.labeled, *batch.unlabeled)
        hard = strong.detach().argmax(dim=1)
        feedback = torch.zeros_like(self.usual)
        if progress >= self.settings.student_wait:
            feedback = self.teach(student, optimizer, batch, hard, progress)
        losses = self.teacher_losses((labeled, weak, strong), hard, feedback, batch, progress)
        descend(optimizer, losses.total)
        return losses

    def teach(
        self, student: Classifier, optimizer: torch.optim.Optimizer, batch: Batch, hard: Tensor, progress: float
    ) -> Tensor:
        """Takes the student's step; returns the decrease of its loss on labelled images, minus the usual decrease."""
        labeled, strong = forward_together(student, *batch.labeled, batch.unlabeled[1])
        old = F.cross_entropy(labeled.detach(), batch.labels)
        with at_rate(optimizer, self.student_rate(progress)):
            descend(optimizer, F.cross_entropy(strong, hard, label_smoothing=self.settings.label_smoothing))
        with torch.no_grad():
            new = F.cross_entropy(student(batch.labeled[0]).float(), batch.labels)
            gain = mean_over_ranks(old - new)
            change = gain if self.settings.feedback_sign == "theory" else -gain
            self.usual.lerp_(change, 1 - self.settings.feedback_decay)
            return change - self.usual

    def student_rate(self, progress: float) -> float:
        """Returns the student's learning rate as a share of the engine's, which has warmed up from the first step."""
        last = max(1, self.problem.steps - 1)
        step, wait = round(progress * last), first_step(self.settings.student_wait, self.problem.steps)
        warmup = max(1, self.problem.warmup_steps)
        return min(1.0, (step - wait + 1) / warmup) / min(1.0, (step + 1) / warmup)

    def teacher_losses(
        self, logits: tuple[Tensor, Tensor, Tensor], hard: Tensor, feedback: Tensor, batch: Batch, progress: float
    ) -> Losses:
        """Returns the teacher's losses: labels, UDA, and the student's feedback."""
        (labeled, weak, strong), settings = logits, self.settings
        supervised = labeled_cross_entropy(labeled, batch, settings.label_smoothing)
        uda, mask = uda_loss(weak, strong, settings.uda_temperature, settings.uda_threshold)
        logs = pseudo_label_logs(hard, mask, batch.unlabeled_truth, self.problem.num_classes)
        weight = settings.uda_weight * linear_ramp(progress, settings.uda_ramp_up)
        taught = combine(supervised, uda, weight, (labeled, strong), logs | {"feedback": feedback})
        meta = settings.feedback_weight * feedback * F.cross_entropy(strong, hard)
        return Losses(taught.total + meta, taught.logs)

    def after_step(self, student: Classifier) -> None:
        average_buffers(self.teacher)
