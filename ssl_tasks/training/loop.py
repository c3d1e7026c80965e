"""Runs the training loop: load → step → log → evaluate → save → stop.

A step is the method's loss, the backward pass, the optimizer and the moving averages. After a step, CTAugment updates
its rates from the step's probes; this does not depend on the method.

Micro-batches (`accumulate`): the batch is cut into equal parts, and the mean of their gradients is the whole batch's
if the loss is a mean over images. Some things see one part at a time: batch norm's statistics, losses that are divided
by the number of accepted images, and running quantities of a method, which are updated once per part.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from selftrain.ssl_tasks.data.batch import Batch
from selftrain.ssl_tasks.errors import Interrupted, OutOfMemory, TrainingDiverged
from selftrain.ssl_tasks.execution.devices import autocast
from selftrain.ssl_tasks.execution.distributed import (
    average_buffers,
    average_gradients,
    gather_rows,
    grouped,
    rank,
    sum_over_ranks,
)
from selftrain.ssl_tasks.execution.progress import Lines
from selftrain.ssl_tasks.execution.stage import derive_seed
from selftrain.ssl_tasks.methods.base import Losses
from selftrain.ssl_tasks.settings.training import TrainSettings
from selftrain.ssl_tasks.training.checkpoints import Checkpoints, StopRequest, stop_requests
from selftrain.ssl_tasks.training.history import diagnose
from selftrain.ssl_tasks.training.run import TrainingRun, evaluation_mode, validate
from selftrain.ssl_tasks.training.state import Best, learning_rate, move_average, set_rates, warmed_decay


@torch.no_grad()
def learn_augmentation(run: TrainingRun, batch: Batch) -> None:
    """Reports to the augmentation policy, if there is one, how well each probe is recognised, in batch order."""
    if run.policy is None or batch.probe is None or batch.probe_choices is None:
        return
    with evaluation_mode(run.evaluated()) as network, autocast(run.device, run.dtype):
        probs = network(batch.probe).float().softmax(dim=1)
    match = 1 - (probs - F.one_hot(batch.labels, probs.shape[1])).abs().sum(dim=1) / 2
    run.policy.learn(run.state.step, gather_rows(batch.probe_choices), gather_rows(match))


def seed_step(seed: int, step: int, what: str = "step") -> None:
    """Seeds all randomness of a step from its number and rank, so that a resumed run needs no stored random state."""
    number = derive_seed(seed, what, step, rank())
    torch.default_generator.manual_seed(number)  # torch.manual_seed takes 0.4 ms if CUDA is not in use
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


def take_step(run: TrainingRun, batch: Batch) -> None:
    """Advances the student, the method and the average by one step; its logs stay on the device."""
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
    """Takes one step of the optimizer along the mean gradient of all micro-batches and ranks."""
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
    """Returns the micro-batch `number` of `parts`."""

    def cut(tensor: Tensor) -> Tensor:
        return tensor[len(tensor) * number // parts : len(tensor) * (number + 1) // parts]

    return batch if parts == 1 else batch.map(cut)


def note(run: TrainingRun, losses: Losses) -> None:
    """Adds a loss and its logs to the meter, without waiting for the device."""
    run.state.meter.watch(losses.total, run.state.step)
    run.state.meter.add({"loss": losses.total, **losses.logs})


GROWTH = 1_000.0  # times the first loss; a loss that grows so much does not recover
Report = Callable[[int, Mapping[str, float]], None]
log = logging.getLogger(__name__)


def train(run: TrainingRun, checkpoints: Checkpoints, report: Report, workers: int = 0) -> str:
    """Trains until the steps or the patience end and returns which of the two; raises Interrupted if asked to stop."""
    state, settings = run.state, run.learner.train
    if (snapshot := checkpoints.newest()) is not None:
        state.restore(snapshot)
        log.info("resumed at step %d of %d", state.step, settings.steps)
    batches, clock, newest = run.batches(workers), Clock(run), ""
    with (
        stop_requests() as request,
        Lines().stage("train") as show,
        memory_advice(settings),
    ):
        while state.step < settings.steps and not out_of_patience(run):
            refresh(run)
            take_step(run, next(batches))
            values: dict[str, float] = {}
            if due(state.step, settings.log_every, settings):
                values |= write_log(run, checkpoints)
            if due(state.step, settings.evaluate_every, settings):
                values |= evaluate(run)
            if values:
                report(state.step, values | clock.images_per_second())
                newest = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if value == value)
            if rank() == 0:
                show(state.step, settings.steps, newest)
            # Several processes stop only at rows of the history, where all ranks hold the same numbers.
            if not grouped() or due(state.step, settings.log_every, settings):
                asked = asked_to_stop(run, request)
                if checkpoints.writes and (asked or checkpoints.due()):
                    refuse_divergence(run, checkpoints)
                    checkpoints.save(state.snapshot())
                if asked:
                    checkpoints.wait()
                    raise Interrupted(f"asked to stop at step {state.step}; {checkpoints.describe()}")
    checkpoints.wait()
    if rank() == 0:
        log.info("trained to step %d of %d: %s", state.step, settings.steps, newest)
    return "steps" if state.step == settings.steps else "patience"


def due(step: int, every: int, settings: TrainSettings) -> bool:
    """Returns whether something that happens every `every` steps, and at the end, is due."""
    return step % every == 0 or step == settings.steps


def out_of_patience(run: TrainingRun) -> bool:
    """Returns whether validation has not improved for as many evaluations as the settings' patience."""
    patience = run.learner.train.patience
    return patience is not None and run.state.stale >= patience


def refresh(run: TrainingRun) -> None:
    """Lets the method read whole pools, if it asks for that and its interval has passed."""
    state, every = run.state, run.state.method.refresh_every()
    since = state.step - state.method.refresh_from()
    if every is not None and since >= 0 and since % every == 0:
        seed_step(run.seed, state.step, "refresh")
        with autocast(run.device, run.dtype):
            state.method.before_epoch(state.student, run.pools())


def write_log(run: TrainingRun, checkpoints: Checkpoints) -> dict[str, float]:
    """Adds a row to the history with the means since the previous row; this waits for the device."""
    state, settings = run.state, run.learner.train
    values = {"learning_rate": learning_rate(settings, state.step - 1), **state.meter.read()}
    state.meter.clear()
    state.history.add(state.step, values)
    refuse_divergence(run, checkpoints)
    return values


def refuse_divergence(run: TrainingRun, checkpoints: Checkpoints) -> None:
    """Raises TrainingDiverged if a loss since the last check was not finite, or has grown a thousandfold."""
    state, settings = run.state, run.learner.train
    losses = state.history.column("loss")
    first = next(
        (loss for loss in losses if not math.isnan(loss)), 0.0
    )  # rows that hold only an evaluation have no loss
    grown = len(losses) > 1 and losses[-1] > GROWTH * max(first, 1.0)
    if (step := state.meter.bad_step()) is None and not grown:
        return
    checkpoints.wait()
    what = f"grew from {first:.3g} to {losses[-1]:.3g}" if step is None else "is not a finite number"
    step = state.step - 1 if step is None else step
    raise TrainingDiverged(
        f"the loss {what} at step {step} (learning rate {learning_rate(settings, step):.3g}); "
        f"{checkpoints.describe()}. Lower train.learning_rate, set train.clip_gradient or train.warmup_steps, or "
        "lower the method's weight."
    )


def evaluate(run: TrainingRun) -> dict[str, float]:
    """Evaluates on validation, and keeps the weights if they are the best so far."""
    state, scores = run.state, validate(run)
    for kind, warning in diagnose_run(run).items():
        if kind not in state.warned and rank() == 0:
            log.warning("%s", warning)
        state.warned.add(kind)
    if scores:
        state.history.add(state.step, scores)
    if "validation_accuracy" not in scores:
        return scores
    accuracy, loss = scores["validation_accuracy"], scores["validation_loss"]
    if state.best is None or (accuracy, -loss) > (state.best.accuracy, -state.best.loss):
        weights = {name: tensor.detach().clone() for name, tensor in run.evaluated().state_dict().items()}
        state.best, state.stale = Best(state.step, accuracy, loss, weights), 0
    else:
        state.stale += 1
    return scores


def diagnose_run(run: TrainingRun) -> dict[str, str]:
    """Returns the warnings that the history gives about the run so far."""
    problem = run.problem
    return diagnose(
        run.state.history, run.learner.method, problem.steps, problem.unlabeled_batch, max(problem.class_prior)
    )


def asked_to_stop(run: TrainingRun, request: StopRequest) -> bool:
    """Returns whether a signal reached any of the processes."""
    if not grouped():
        return request.received is not None
    return bool(sum_over_ranks(torch.tensor(float(request.received is not None), device=run.device)))


class Clock:
    """Measures images per second since the last reading."""

    def __init__(self, run: TrainingRun) -> None:
        self.run, self.step, self.time = run, run.state.step, time.perf_counter()

    def images_per_second(self) -> dict[str, float]:
        """Returns the speed, for the tracker only; the history must be the same on every machine."""
        step, now = self.run.state.step, time.perf_counter()
        speed = (step - self.step) * self.run.images_a_step / (now - self.time)
        self.step, self.time = step, now
        return {"images_per_second": speed}


@contextmanager
def memory_advice(settings: TrainSettings) -> Iterator[None]:
    """Adds the settings to lower to an error about too little accelerator memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the accelerator's memory is not enough ({str(error).splitlines()[0]}). Raise train.accumulate (now "
            f"{settings.accumulate}; same batch, less memory), set train.precision to bf16, or lower train.batch_size "
            f"(now {settings.batch_size}), train.unlabeled_ratio (now {settings.unlabeled_ratio}) or data.image_size."
        ) from error
