"""One step of training: the method's loss, backward, the optimizer, the averages. Everything else is the loop's.

Micro-batches (`accumulate`): the batch is cut into equal parts, and the mean of their gradients is the whole batch's
wherever a loss is a mean over images. What looks at a batch as a whole sees a part instead: batch norm's statistics,
losses divided by how many images counted, and running quantities of a method, which move once a part.
"""

import torch
from torch import Tensor

from selftrain.ssl_tasks.data.batch import Batch
from selftrain.ssl_tasks.execution.devices import autocast
from selftrain.ssl_tasks.execution.distributed import average_buffers, average_gradients, rank
from selftrain.ssl_tasks.execution.stage import derive_seed
from selftrain.ssl_tasks.methods.base import Losses
from selftrain.ssl_tasks.training.ema import move_average, warmed_decay
from selftrain.ssl_tasks.training.learnt_augmentation import learn_augmentation
from selftrain.ssl_tasks.training.optimization import set_rates
from selftrain.ssl_tasks.training.run import TrainingRun


def seed_step(seed: int, step: int, what: str = "step") -> None:
    """All randomness of a step: so a resumed run needs no random state, and every rank draws its own."""
    number = derive_seed(seed, what, step, rank())
    torch.default_generator.manual_seed(number)  # torch.manual_seed takes 0.4 ms where CUDA is not in use
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


def take_step(run: TrainingRun, batch: Batch) -> None:
    """Moves the student, the method and the average by one step, and notes the logs on the device."""
    state, train = run.state, run.learner.train
    state.student.train()
    seed_step(run.seed, state.step)
    set_rates(state.optimizer, train, state.step)
    progress = state.step / max(1, train.steps - 1)
    own_step = getattr(state.method, "train_step", None)
    if own_step is None:
        descend(run, batch, progress)
    else:
        with autocast(run.device, run.dtype, moving=True):
            note(run, own_step(state.student, state.optimizer, batch, progress))
    state.step += 1
    with torch.no_grad():
        average_buffers(state.student)
        state.method.after_step(state.student)
        if state.average is not state.student:
            decay = warmed_decay(train.ema_decay, state.step, train.ema_warmup)
            move_average(state.average, state.student, decay, train.ema_buffers)
    learn_augmentation(run, batch)


def descend(run: TrainingRun, batch: Batch, progress: float) -> None:
    """One step of the optimizer along the mean gradient of all micro-batches and ranks."""
    state, train = run.state, run.learner.train
    state.optimizer.zero_grad(set_to_none=True)
    for number in range(train.accumulate):
        with autocast(run.device, run.dtype):
            losses = state.method.loss(state.student, micro_batch(batch, number, train.accumulate), progress)
        (losses.total / train.accumulate).backward()
        note(run, losses)
    average_gradients(state.parameters)
    if train.clip_gradient is not None:
        torch.nn.utils.clip_grad_norm_(state.parameters, train.clip_gradient)
    state.optimizer.step()


def micro_batch(batch: Batch, number: int, parts: int) -> Batch:
    """Part `number` of `parts` of every tensor."""

    def cut(tensor: Tensor) -> Tensor:
        return tensor[len(tensor) * number // parts : len(tensor) * (number + 1) // parts]

    return batch if parts == 1 else batch.map(cut)


def note(run: TrainingRun, losses: Losses) -> None:
    """Remembers what a loss said, without waiting for the device."""
    run.state.meter.watch(losses.total, run.state.step)
    run.state.meter.add({"loss": losses.total, **losses.logs})
