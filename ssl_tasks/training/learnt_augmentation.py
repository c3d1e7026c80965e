"""CTAugment beside any method: after a step, the network that counts looks at the step's probes and moves the rates."""

import torch
from torch.nn import functional as F

from selftrain.ssl_tasks.data.batch import Batch
from selftrain.ssl_tasks.execution.devices import autocast
from selftrain.ssl_tasks.execution.distributed import gather_rows
from selftrain.ssl_tasks.training.run import TrainingRun
from selftrain.ssl_tasks.training.validation import evaluation_mode


@torch.no_grad()
def learn_augmentation(run: TrainingRun, batch: Batch) -> None:
    """How well each probe is recognised, told to the policy in the order of the whole batch; nothing without one."""
    if run.policy is None or batch.probe is None or batch.probe_choices is None:
        return
    with evaluation_mode(run.evaluated()) as network, autocast(run.device, run.dtype):
        probs = network(batch.probe).float().softmax(dim=1)
    match = 1 - (probs - F.one_hot(batch.labels, probs.shape[1])).abs().sum(dim=1) / 2
    run.policy.learn(run.state.step, gather_rows(batch.probe_choices), gather_rows(match))
