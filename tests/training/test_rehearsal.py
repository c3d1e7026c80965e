"""A training is estimated by counting: with a clock that adds one second to every part, the sums are known."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from selftrain.ssl_tasks.execution.stage import Rehearsing, begin_attempt
from selftrain.ssl_tasks.settings.run_config import RuntimeSettings
from selftrain.ssl_tasks.store.artifacts import Store
from selftrain.ssl_tasks.training import rehearsal
from selftrain.ssl_tasks.training.checkpoints import checkpoint_files
from tests.training.small_runs import digits, learner, request_of

CHECKPOINT_SECONDS = 100.0


def measured(
    workspace: Path, growth: int = 1, method: str = "supervised", checkpoints: float = 1e6, **train: Any
) -> dict[str, Any]:
    """What a rehearsal measures by a clock of which every look is a second later; the data set grows by `growth`."""
    dataset = digits(workspace)
    request = request_of(learner({"name": method}, **train), {"dataset": dataset})
    runtime = RuntimeSettings(threads=1, device="cpu", checkpoint_every=checkpoints)
    context = begin_attempt(request, Store(workspace / "store"), runtime)
    counts = {name: growth * dataset.summary[name] for name in ("labeled", "unlabeled", "validation", "test")}
    context = Rehearsing(**vars(context), body=request.body, source_counts=counts)
    seconds = itertools.count()
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(rehearsal.time, "perf_counter", lambda: float(next(seconds)))
        result = rehearsal.measure(context)
    assert (context.output / "model.safetensors").exists()
    found: dict[str, Any] = result.summary[rehearsal.MEASURED]
    return found | {"files": len(checkpoint_files(context.scratch / "checkpoints"))}


def test_time_is_that_of_all_steps_and_all_evaluations(workspace: Path) -> None:
    found = measured(workspace, steps=90, evaluate_every=10)
    assert found["step_seconds"] == 1
    assert found["loop_seconds"] == 90 + 9
    assert found["checkpoint_bytes"] == 0, "the training ends before the first checkpoint"


def test_twice_the_steps_take_twice_the_time(workspace: Path) -> None:
    once, twice = (measured(workspace, steps=steps, evaluate_every=10)["loop_seconds"] for steps in (40, 80))
    assert twice == 2 * once


def test_checkpoints_are_counted_and_at_most_two_are_kept(workspace: Path) -> None:
    once, often = (
        measured(workspace, checkpoints=CHECKPOINT_SECONDS, steps=steps, evaluate_every=steps) for steps in (150, 950)
    )
    assert once["loop_seconds"] == 150 + 1 + 1
    assert often["loop_seconds"] == 950 + 1 + 9
    assert once["files"] == 1
    assert often["checkpoint_bytes"] == 2 * once["checkpoint_bytes"] > 0


def test_evaluations_of_the_whole_data_set_take_as_many_times_longer_as_it_is_larger(workspace: Path) -> None:
    found = measured(workspace, growth=5, steps=20, evaluate_every=10)
    assert found["loop_seconds"] == 20 + 5 * 2


def test_evaluations_on_test_are_counted_where_they_are_asked_for(workspace: Path) -> None:
    """The last two of four evaluations look at test, too. Both splits together take one second."""
    summary = digits(workspace).summary
    found = measured(workspace, steps=40, evaluate_every=10, median_of=2)
    validation, test = summary["validation"], summary["test"]
    assert found["loop_seconds"] == pytest.approx(40 + (4 * validation + 2 * test) / (validation + test))


@pytest.mark.parametrize("growth", [1, 3])
def test_passes_over_whole_pools_are_counted_for_the_whole_data_set(workspace: Path, growth: int) -> None:
    """Temporal ensembling passes once an epoch: of more images, longer and less often."""
    unlabeled = digits(workspace).summary["unlabeled"] + digits(workspace).summary["labeled"]
    every = -(-growth * unlabeled // 16)
    steps = 10 * every
    found = measured(workspace, growth, "temporal_ensembling", steps=steps, evaluate_every=steps)
    assert found["loop_seconds"] == steps + 10 * growth + growth


def test_a_phase_that_begins_later_is_measured_by_itself(workspace: Path) -> None:
    found = measured(workspace, method="dividemix", steps=40, evaluate_every=40)
    assert found["loop_seconds"] > 40 + 1, "from the end of the warm-up, it looks at all images"


def test_a_process_of_several_takes_its_share_of_the_batch() -> None:
    from selftrain.flows.rounds.estimate import share_of_batch

    alone = learner(batch_size=8)
    assert share_of_batch(alone, 4) == replace_batch(alone, 2)
    assert share_of_batch(alone, 16) == replace_batch(alone, 1)


def replace_batch(section: Any, batch_size: int) -> Any:
    """The same settings with another size of batches."""
    return section.model_copy(update={"train": section.train.model_copy(update={"batch_size": batch_size})})
