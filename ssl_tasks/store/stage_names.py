"""Defines the names of a run's stages and their order, for runs, plans and readers of a run's record."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from selftrain.ssl_tasks.settings.run_config import LearnerSettings, RunConfig, checks

PRETRAIN = "pretrain"


@dataclass(frozen=True)
class RoundNames:
    """The names of the stages of one round. Round 0 reads the data and trains the teacher."""

    number: int

    @property
    def dataset(self) -> str:
        """Returns the stage with the run's images; in later rounds, with the same images in fine-tuning's size."""
        return self._name("dataset", "dataset")

    @property
    def features(self) -> str:
        """Returns the stage with the features that the round's linear model, or the first of several, learns from."""
        return self._name("features", "features")

    @property
    def teacher_features(self) -> str:
        """Returns the stage with the features for neighbours, if the teacher itself reads no features."""
        return self._name("teacher-features")

    @property
    def predict(self) -> str:
        return self._name("predict")

    @property
    def select(self) -> str:
        return self._name("select")

    @property
    def model(self) -> str:
        """Returns the stage of the round's training, or of the first of an ensemble."""
        return self._name("student", "teacher")

    @property
    def finetune(self) -> str:
        return self._name("finetune")

    @property
    def evaluate(self) -> str:
        return self._name("evaluate", "evaluate-teacher")

    @property
    def evaluate_before_finetuning(self) -> str:
        return self._name("evaluate-student")

    @property
    def gate(self) -> str:
        return self._name("gate")

    def _name(self, kind: str, of_the_first: str = "") -> str:
        assert self.number or of_the_first, f"round 0 has no stage '{kind}'"
        return f"{kind}-{self.number}" if self.number else of_the_first


FIRST = RoundNames(0)


def member_names(name: str, members: int) -> list[str]:
    """Returns the stages of an ensemble's members: the first has the plain name."""
    return [name] + [f"{name}-member-{number}" for number in range(2, members + 1)]


def linear_names(name: str, learners: Sequence[LearnerSettings]) -> list[str]:
    """Returns the stages with the features of the learners that read features."""
    named = zip(member_names(name, len(learners)), learners, strict=False)
    return [one for one, learner in named if learner.method.name == "linear"]


def stage_names(config: RunConfig) -> Iterator[str]:
    """Yields the stages of a run through all of its rounds, in their order."""
    yield FIRST.dataset
    met = {""}
    for check, weights, _ in checks(config):
        if weights not in met:
            met.add(weights)
            yield weights
        yield check
    if config.pretrain is not None and config.given_teacher is None:
        yield PRETRAIN
    teachers = config.teachers
    yield from linear_names(FIRST.features, teachers)
    yield from member_names(FIRST.model, max(1, len(teachers)))
    yield from member_names(FIRST.evaluate, max(1, len(teachers)))
    first = teachers[0] if teachers else None  # none is trained if one is given
    for number, settings in enumerate(config.rounds, 1):
        names, members = RoundNames(number), settings.student.members
        if settings.predict.source != "model" and (first is None or first.method.name != "linear"):
            yield names.teacher_features
        first = settings.student if settings.finetune is None else None
        yield names.predict
        yield names.select
        yield from linear_names(names.features, [settings.student])
        yield from member_names(names.model, members)
        if settings.finetune is not None:
            yield names.evaluate_before_finetuning
            yield names.dataset
            yield from member_names(names.finetune, members)
        yield from member_names(names.evaluate, members)
        yield names.gate
