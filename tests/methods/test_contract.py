"""Every method has finite losses, gradients in the right places, a state that resumes, and no dead knob."""

import time
from dataclasses import replace
from functools import cache
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from selftrain.ssl_tasks.data.batch import Views
from selftrain.ssl_tasks.methods import method_class
from selftrain.ssl_tasks.methods.table import METHODS
from selftrain.ssl_tasks.settings.section import Section
from tests.methods.trial import METHOD_NAMES, PROBLEM, SETTINGS, Trial, batch_of, same, settings_of, student_of

EAGER: dict[str, dict[str, Any]] = {  # so that the unlabelled images count in a run of six steps on noise
    "pseudo_label": {"ramp_start": 0.0, "ramp_end": 0.5},
    "fixmatch": {"threshold": 0.3},
    "uda": {"threshold": 0.3},
    "softmatch": {"decay": 0.5},
    "label_propagation": {"warmup": 0.0, "neighbors": 3},
    "meta_pseudo_labels": {"uda_threshold": 0.3, "uda_ramp_up": 0.5, "student_wait": 0.0},
    "confirmation_bias": {"warmup": 0.0},
    "mixmatch": {"ramp_up": 0.5},
    "remixmatch": {"ramp_up": 0.5, "views": 2},
    "dividemix": {"warmup": 0.0, "ramp_up": 0.5},
}
CONTEXT: dict[tuple[str, str], dict[str, Any]] = {  # what another setting must be for this one to matter
    ("dividemix", "asymmetric"): {"warmup": 1.0},
    ("flexmatch", "mapping"): {"threshold": 0.7},
}
NO_PSEUDO_LABELS = {"supervised", "simclr", "noisy_student", "distillation", "dividemix"}
NOT_SUPERVISED_AT_ZERO = {  # their labelled loss is another one
    "mixmatch",  # mixes labelled images too
    "remixmatch",
    "dividemix",
    "label_propagation",  # weighs labelled images by class
    "noisy_student",  # smooths labels, under strong augmentation
    "distillation",  # (1 - α) of the labels' loss
}


def eager(name: str, **knobs: Any) -> Section:
    return settings_of(name, **{**EAGER.get(name, {}), **knobs})


def test_every_method_has_settings_and_a_class_and_a_test_file(request: pytest.FixtureRequest) -> None:
    assert set(METHODS) == set(SETTINGS)
    for name in METHODS:
        assert isinstance(method_class(name).views, Views)
        assert (request.path.parent / f"test_{name}.py").is_file(), name


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_losses_are_finite_and_logs_are_detached_numbers(name: str) -> None:
    Trial(eager(name)).step(0)  # imports, first kernels
    trial, started = Trial(eager(name)), time.process_time()
    for number in range(PROBLEM.steps):
        losses = trial.step(number)
        assert losses.total.isfinite()
        assert "supervised" in losses.logs
        for key, value in losses.logs.items():
            assert value.ndim == 0, key
            assert not value.requires_grad, key
            assert not value.isinf(), key
    assert time.process_time() - started < 1


@pytest.mark.parametrize("name", [name for name in METHOD_NAMES if name not in NO_PSEUDO_LABELS])
def test_methods_log_what_their_pseudo_labels_are(name: str) -> None:
    trial = Trial(eager(name))
    logs = [trial.step(number).logs for number in range(PROBLEM.steps - 1)][-1]
    assert {"unsupervised", "mask", "pseudo_largest_class", "pseudo_accuracy", "gradient_share"} <= set(logs)
    assert 0 < logs["mask"] <= 1
    assert 1 / PROBLEM.num_classes <= logs["pseudo_largest_class"] <= 1
    assert 0 <= logs["pseudo_accuracy"] <= 1
    assert 0 < logs["gradient_share"] < 1


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_the_student_learns_from_what_is_not_labelled(name: str) -> None:
    if not (views := Trial(eager(name)).method.views).unlabeled and not views.pseudo:
        assert name == "supervised"
        return

    def weights(changed: bool) -> Tensor:
        trial = Trial(eager(name))
        for number in range(PROBLEM.steps):
            batch = batch_of(trial.method.views, number)
            if changed:
                other = batch_of(trial.method.views, number + 50)
                batch = type(batch)(**{**vars(batch), "unlabeled": other.unlabeled, "pseudo": other.pseudo})
            trial.step(number, batch)
        return torch.cat([one.flatten() for one in trial.student.parameters()])

    assert (weights(False) - weights(True)).abs().max() > 1e-4


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_the_hidden_truth_is_never_learned(name: str) -> None:
    def left(truths: str) -> dict[str, Tensor]:
        trial = Trial(eager(name))
        for number in range(PROBLEM.steps):
            batch = batch_of(trial.method.views, number)
            known = batch.unlabeled_truth
            told = {"right": known, "wrong": (known + 1) % PROBLEM.num_classes, "unknown": torch.full_like(known, -1)}
            trial.step(number, replace(batch, unlabeled_truth=told[truths]))
        return trial.state()

    assert same(left("right"), left("wrong"))
    assert same(left("right"), left("unknown"))


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_no_gradient_reaches_what_is_not_trained(name: str) -> None:
    trial = Trial(eager(name))
    trial.step(0)
    trained = {id(one) for group in trial.optimizer.param_groups for one in group["params"]}
    for one in trial.method.parameters():
        assert one.grad is None or id(one) in trained


def resumed(settings: Section, at: int) -> tuple[Trial, Trial]:
    """An uninterrupted run, and one that resumed from another's state at step `at`."""
    whole, before = Trial(settings), Trial(settings)
    for number in range(PROBLEM.steps):
        whole.step(number)
    for number in range(at):
        before.step(number)
    after = Trial(settings, student=student_of(seed=5))
    after.load(before.state())
    for number in range(at, PROBLEM.steps):
        after.step(number)
    return whole, after


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name: str) -> None:
    whole, after = resumed(eager(name), at=3)
    assert same(whole.state(), after.state())


@pytest.mark.parametrize("name", ["label_propagation", "dividemix", "confirmation_bias"])
def test_resuming_before_or_where_or_after_the_warm_up_ends_changes_nothing(name: str) -> None:
    for at in (1, 2, 3, 4):
        whole, after = resumed(eager(name, warmup=0.4), at)
        assert whole.method.refresh_from() == 2
        assert same(whole.state(), after.state()), at


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_the_evaluated_network_classifies(name: str) -> None:
    trial = Trial(eager(name))
    trial.step(0)
    network = trial.method.evaluated(trial.student).eval()
    assert network(batch_of(Views()).labeled[0]).shape == (4, PROBLEM.num_classes)


def alternatives(section: type[Section], field: str, value: Any) -> list[Any]:
    """Other values that a setting may have."""
    kind = section.model_fields[field].annotation
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, str):
        return [choice for choice in get_args(kind) if choice != value]
    if isinstance(value, int):
        return [value + 1, value - 1, 2 * value]
    return [0.5, 0.2, 0.9, 0.0, 1.0] if value is None else [value / 2, 0.0, 2 * value, 0.05, 0.5, 0.9]


def valid(name: str, **knobs: Any) -> Section | None:
    try:
        return eager(name, **knobs)
    except ValidationError:
        return None


@cache
def trace(settings: Section) -> list[Tensor]:
    """Everything that a run of six steps leaves; each settings' once, for all the knobs of a method."""
    trial = Trial(settings)
    totals = [trial.step(number).total.detach() for number in range(PROBLEM.steps)]
    return [*totals, *trial.state().values(), *trial.method.evaluated(trial.student).state_dict().values()]


def differ(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) != len(other) or any(
        a.shape != b.shape or not torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field) for name in METHOD_NAMES for field in SETTINGS[name].model_fields if field != "name"],
)
def test_no_knob_is_dead(name: str, field: str) -> None:
    context = CONTEXT.get((name, field), {})
    base = eager(name, **context)
    changed = (
        valid(name, **{**context, field: value}) for value in alternatives(SETTINGS[name], field, getattr(base, field))
    )
    reference = trace(base)
    assert any(differ(trace(settings), reference) for settings in changed if settings is not None)


OTHER_WEIGHTS = {"uda": ["entropy_weight"], "vat": ["entropy_weight"], "freematch": ["fairness_weight"]}


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, fields in OTHER_WEIGHTS.items() for field in fields]
)
def test_at_weight_zero_another_weight_still_counts(name: str, field: str) -> None:
    alone, with_another = (trace(eager(name, weight=0.0, **{field: value})) for value in (0.0, 0.5))
    assert differ(alone, with_another)


WEIGHTED = [name for name in METHOD_NAMES if "weight" in SETTINGS[name].model_fields]


@pytest.mark.parametrize("name", [name for name in WEIGHTED if name not in NOT_SUPERVISED_AT_ZERO])
def test_weight_zero_is_supervised_learning_bit_for_bit(name: str) -> None:
    nothing = {"weight": 0.0, **dict.fromkeys(OTHER_WEIGHTS.get(name, ()), 0.0)}
    supervised, zero = Trial(settings_of("supervised")), Trial(settings_of(name, **nothing))
    for number in range(3):
        batch = batch_of(zero.method.views, number)
        plain = type(batch)(batch.labeled[:1], batch.labels, batch.labeled_index)
        assert torch.equal(supervised.step(number, plain).total, zero.step(number, batch).total)
    assert all(
        torch.equal(one, other)
        for one, other in zip(supervised.student.parameters(), zero.student.parameters(), strict=True)
    )
    assert zero.method.evaluated(zero.student) is zero.student
