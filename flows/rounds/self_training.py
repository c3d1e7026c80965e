"""Orders the stages of a run: data → teacher → (predict → select → student (→ fine-tuning) → evaluate → gate) → …

This module does not run stages and does not use Prefect: `Answers` turns each request into an artifact.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from selftrain.flows.rounds.stages import (
    check_request,
    dataset_request,
    evaluate_request,
    features_request,
    gate_request,
    given_request,
    predict_request,
    select_request,
    train_request,
    weights_request,
)
from selftrain.ssl_tasks.data.splits import warn_of_earlier_labels
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.execution.stage import Request, derive_seed
from selftrain.ssl_tasks.settings.run_config import (
    LearnerSettings,
    RoundSettings,
    RunConfig,
    checks,
    in_need_of_validation,
)
from selftrain.ssl_tasks.store.artifacts import Artifact
from selftrain.ssl_tasks.store.stage_names import FIRST, PRETRAIN, RoundNames, member_names

log = logging.getLogger("selftrain")
Pending = Callable[[], Artifact]
Weights = dict[tuple[str, bool | str | None], Artifact]  # pretrained weights by network and place


class Answers(Protocol):
    """The interface that runs stages, and waits between them for a person's approval."""

    def fingerprint(self, config: RunConfig) -> str:
        """Returns the digest of the source's contents."""
        ...

    def run(self, request: Request, round_number: int) -> Artifact:
        """Runs or reuses a stage, and returns its artifact."""
        ...

    def submit(self, request: Request, round_number: int) -> Pending:
        """Begins a stage at the same time as others if there is room; reading its result raises the stage's error."""
        ...

    def corrections(self) -> Path | None:
        """Returns the file of people's corrections of this run's labels as it is now (`selftrain labels apply`)."""
        ...

    def hold(self, round_number: int, selection: Artifact) -> None:
        """Waits until a person approves the selection."""
        ...

    def approve(self, selection: Artifact) -> None:
        """Records that the selection is approved, with the corrections that were added while it waited."""
        ...


@dataclass(frozen=True)
class RoundSummary:
    """One row of the result table; round 0 is the teacher."""

    round: int
    model: str
    model_digest: str
    labeled: int
    selected: int | None = None
    pseudo_label_precision: float | None = None  # if the ground truth is known
    validation_accuracy: float | None = None
    test_accuracy: float | None = None
    median_validation_accuracy: float | None = None  # of the last evaluations in training, if the recipe asks for it
    median_test_accuracy: float | None = None
    decision: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Summary:
    """The result of a run: its rounds, and why it stopped."""

    stopped: str
    best_round: int
    rounds: tuple[RoundSummary, ...] = field(default_factory=tuple)
    unmatched_corrections: int = 0  # corrections that no longer fit the data, in the last selection
    unmatched_reasons: tuple[str, ...] = ()  # each reason with its first samples

    def as_json(self) -> dict[str, Any]:
        """Returns plain values for `--json` and for the run's record."""
        return asdict(self)


@dataclass(frozen=True)
class Taught:
    """The models of a round; round 0 is the teacher. The first of several models represents the round."""

    number: int
    name: str
    models: list[Artifact]
    dataset: Artifact  # at the image size of the models
    evaluations: list[Pending]  # one for each model
    features: list[Artifact | None]  # for each model: the features that it reads if it is linear
    trained: tuple[Artifact, ...]  # all trainings behind the first model
    selection: Artifact | None = None
    gate: Artifact | None = None


def self_training(config: RunConfig, answers: Answers) -> Summary:
    """Runs all rounds and returns the summary; without rounds, trains and evaluates one model."""
    fingerprint = answers.fingerprint(config)
    dataset = answers.run(dataset_request(config.data, fingerprint), 0)
    _refuse_without_validation(config, dataset)
    weights = _first_weights(config, dataset, answers)
    teachers, features = _first_teachers(config, dataset, answers, weights)
    evaluations = _evaluate(FIRST, config, dataset, teachers, features, answers)
    rounds = [Taught(0, _teacher_name(config), teachers, dataset, evaluations, features, (teachers[0],))]
    selection: Artifact | None = None
    stopped = (
        f"{len(config.rounds)} round{'s' if len(config.rounds) > 1 else ''} done"
        if config.rounds
        else "teacher trained; the recipe has no rounds"
    )
    for number, settings in enumerate(config.rounds, 1):
        names, teacher = RoundNames(number), rounds[-1]
        predictions = _predict(names, settings, config, teacher, answers)
        selection = _select(names, settings, teacher.dataset, predictions, selection, answers)
        if not selection.summary["kept"]:
            stopped = f"round {number}: no unlabelled image passed the selection"
            break
        init = teacher.models[0] if settings.student.init == "teacher" else None
        learners = [settings.student] * settings.student.members
        students, features = _members(names, learners, config, dataset, answers, weights, selection, init)
        taught = Taught(
            number, settings.student.model.label, students, dataset, [], features, (students[0],), selection
        )
        if settings.finetune is not None:
            taught = _fine_tuned(taught, settings, config, fingerprint, answers)
        evaluations = _evaluate(names, config, taught.dataset, taught.models, taught.features, answers)
        judged = gate_request(names.gate, settings.gate, dataset, teacher.evaluations[0](), evaluations[0](), selection)
        gate = answers.run(judged, number)
        rounds.append(replace(taught, evaluations=[*evaluations, *taught.evaluations], gate=gate))
        if gate.summary["decision"] == "stop":
            stopped = f"round {number}: {gate.summary['reason']}"
            break
    lines = [_summarise(one, dataset) for one in rounds]
    chosen = selection.summary if selection is not None else {}
    reasons = tuple(chosen.get("unmatched_corrections", ()))
    return Summary(stopped, _best_round(lines), tuple(lines), chosen.get("forgotten_overrides", 0), reasons)


def _refuse_without_validation(config: RunConfig, dataset: Artifact) -> None:
    """Raises ConfigError before any training if the recipe needs validation images and there are none."""
    wanting = in_need_of_validation(config)
    if wanting and not dataset.summary["validation"]:
        raise ConfigError(
            f"the data has no validation images, and these settings need them: {', '.join(wanting)}. "
            f"Set data.split.validation, or leave {'it' if len(wanting) == 1 else 'them'} at the default"
        )


def _first_weights(config: RunConfig, dataset: Artifact, answers: Answers) -> Weights:
    """Obtains the pretrained weights of all learners, and checks before training that every network accepts them."""
    found: Weights = {}
    for check, stage, learner in checks(config):
        place = learner.model.name, learner.model.pretrained
        if stage and place not in found:
            found[place] = answers.run(weights_request(stage, learner.model), 0)
        answers.run(check_request(check, learner, dataset, found.get(place)), 0)
    return found


def _first_teachers(
    config: RunConfig, dataset: Artifact, answers: Answers, weights: Weights
) -> tuple[list[Artifact], list[Artifact | None]]:
    """Returns the models of round 0, and the features that each of them reads."""
    if config.given_teacher is not None:
        warn_of_earlier_labels(config.given_teacher, dataset)
        return [answers.run(given_request(FIRST.model, config.given_teacher), 0)], [None]
    init = None
    if config.pretrain is not None:
        seed = derive_seed(config.seed, PRETRAIN)
        given = _weights_of(config.pretrain, weights)
        init = answers.run(train_request(PRETRAIN, config.pretrain, dataset, seed, weights=given), 0)
    return _members(FIRST, config.teachers, config, dataset, answers, weights, init=init)


def _predict(
    names: RoundNames, settings: RoundSettings, config: RunConfig, teacher: Taught, answers: Answers
) -> Artifact:
    """Predicts pseudo-labels with the models of the previous round, or with neighbours among their features."""
    predict, features = settings.predict, teacher.features
    if predict.source != "model" and features[0] is None:
        first = config.teacher if names.number == 1 else config.rounds[names.number - 2].student
        request = features_request(
            names.teacher_features, config.features, first.model, teacher.dataset, init=teacher.models[0]
        )
        features = [answers.run(request, names.number)]
    several_kinds = names.number == 1 and bool(config.other_teachers)
    if several_kinds and predict.temperature == 1 and teacher.dataset.summary["validation"]:
        predict = predict.model_copy(
            update={"temperature": "each"}
        )  # else the most confident model would outvote the others
    return answers.run(predict_request(names.predict, predict, teacher.dataset, teacher.models, features), names.number)


def _select(
    names: RoundNames,
    settings: RoundSettings,
    dataset: Artifact,
    predictions: Artifact,
    previous: Artifact | None,
    answers: Answers,
) -> Artifact:
    """Returns the round's selection with people's current corrections; made again after a review, if there is one."""

    def ask() -> Artifact:
        request = select_request(names.select, settings.select, dataset, predictions, previous, answers.corrections())
        return answers.run(request, names.number)

    selection = ask()
    if settings.hold:
        answers.hold(names.number, selection)
        selection = ask()  # reused, unless corrections were added
        answers.approve(selection)
    return selection


def _fine_tuned(
    taught: Taught, settings: RoundSettings, config: RunConfig, fingerprint: str, answers: Answers
) -> Taught:
    """Fine-tunes the students on larger images; the first is also evaluated without fine-tuning."""
    assert settings.finetune is not None
    number, names = taught.number, RoundNames(taught.number)
    before = evaluate_request(
        names.evaluate_before_finetuning, config.evaluate, taught.dataset, taught.models[0], taught.features[0]
    )
    evaluation = answers.submit(before, number)
    data = config.data.model_copy(update={"image_size": settings.finetune.image_size})
    larger = answers.run(dataset_request(data, fingerprint, names.dataset), number)
    learner, tuned = settings.finetune.of(settings.student), member_names(names.finetune, len(taught.models))
    pending = [
        answers.submit(
            train_request(name, learner, larger, derive_seed(config.seed, name), taught.selection, student), number
        )
        for name, student in zip(tuned, taught.models, strict=True)
    ]
    models = [result() for result in pending]
    return replace(
        taught,
        name=f"{taught.name} @ {settings.finetune.image_size}",
        models=models,
        dataset=larger,
        evaluations=[evaluation],
        features=[None] * len(models),
        trained=(*taught.trained, models[0]),
    )


def _members(
    names: RoundNames,
    learners: Sequence[LearnerSettings],
    config: RunConfig,
    dataset: Artifact,
    answers: Answers,
    weights: Weights,
    selection: Artifact | None = None,
    init: Artifact | None = None,
) -> tuple[list[Artifact], list[Artifact | None]]:
    """Trains the models of a round; returns them and the features that each reads. The first is judged by the gate."""
    features: list[Artifact | None] = []
    for name, learner in zip(member_names(names.features, len(learners)), learners, strict=True):
        read = None
        if learner.method.name == "linear":
            if init is None and learner.model.pretrained is None:
                log.warning(
                    "%s has no pretrained weights: method linear will read the features of a random network; "
                    "set model.pretrained",
                    learner.model.label,
                )
            given = _weights_of(learner, weights)
            request = features_request(name, config.features, learner.model, dataset, weights=given, init=init)
            read = answers.run(request, names.number)
        features.append(read)
    requests = [
        train_request(
            one, learner, dataset, derive_seed(config.seed, one), selection, init, _weights_of(learner, weights), read
        )
        for one, learner, read in zip(member_names(names.model, len(learners)), learners, features, strict=True)
    ]
    pending = [answers.submit(request, names.number) for request in requests]
    return [result() for result in pending], features


def _weights_of(learner: LearnerSettings, weights: Weights) -> Artifact | None:
    return weights.get((learner.model.name, learner.model.pretrained))


def _evaluate(
    names: RoundNames,
    config: RunConfig,
    dataset: Artifact,
    models: list[Artifact],
    features: list[Artifact | None],
    answers: Answers,
) -> list[Pending]:
    """Begins the evaluation of every model, without waiting for the results."""
    requests = [
        evaluate_request(one, config.evaluate, dataset, model, read)
        for one, model, read in zip(member_names(names.evaluate, len(models)), models, features, strict=True)
    ]
    return [answers.submit(request, names.number) for request in requests]


def _summarise(made: Taught, dataset: Artifact) -> RoundSummary:
    """Returns the row of a round, after all of its evaluations are done."""
    from selftrain.ssl_tasks.evaluation.metrics import (
        true_precision,
    )  # imports scipy, which verbs that only read do not need

    evaluation, *_ = [one() for one in made.evaluations]
    selection, gate = made.selection, made.gate
    counted = (selection, *made.trained, evaluation, gate)
    return RoundSummary(
        round=made.number,
        model=made.name,
        model_digest=made.models[0].digest,
        labeled=dataset.summary["labeled"],
        selected=selection.summary.get("kept") if selection is not None else None,
        pseudo_label_precision=true_precision(dataset, selection) if selection is not None else None,
        validation_accuracy=evaluation.summary.get("validation_accuracy"),
        test_accuracy=evaluation.summary.get("test_accuracy"),
        median_validation_accuracy=made.models[0].summary.get("median_validation_accuracy"),
        median_test_accuracy=made.models[0].summary.get("median_test_accuracy"),
        decision=gate.summary["decision"] if gate is not None else "",
        seconds=sum(one.manifest["seconds"] for one in counted if one is not None),
    )


def _teacher_name(config: RunConfig) -> str:
    if config.given_teacher is not None:
        return config.given_teacher.name
    return " + ".join(dict.fromkeys(one.model.label for one in (config.teacher, *config.other_teachers)))


def _best_round(lines: list[RoundSummary]) -> int:
    """Returns the round with the best validation accuracy, the first of equals; the test set is never used."""
    known = [line for line in lines if line.validation_accuracy is not None]
    return max(known, key=lambda line: (line.validation_accuracy, -line.round)).round if known else lines[-1].round
