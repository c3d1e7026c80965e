"""RunConfig: the one place where the sections of a recipe meet; loading, overriding, and where each value came from."""

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from models.settings import ModelSettings
from ssl_tasks.data.settings import AugmentSettings, DataSettings
from ssl_tasks.errors import ConfigError, nearest
from ssl_tasks.evaluation.settings import EvaluateSettings, GateSettings
from ssl_tasks.methods.settings import MethodSettings, NoisyStudentSettings, SupervisedSettings
from ssl_tasks.pseudo_labels.settings import PredictSettings, SelectSettings
from ssl_tasks.section import Section
from ssl_tasks.training.settings import RuntimeSettings, TrainSettings


class LearnerSettings(Section):
    """How one network is trained: the network, the method, the optimisation and the images' noise."""

    model: ModelSettings = ModelSettings()
    method: MethodSettings = SupervisedSettings()
    train: TrainSettings = TrainSettings()
    augment: AugmentSettings = AugmentSettings()
    init: Literal["scratch", "teacher"] = Field("scratch", description="first weights of a student")
    members: int = Field(1, ge=1, description="networks of an ensemble, alike but for their seed")


class RoundSettings(Section):
    """One turn of predict → select → student → evaluate → gate."""

    predict: PredictSettings = PredictSettings()
    select: SelectSettings = SelectSettings()
    student: LearnerSettings = LearnerSettings(method=NoisyStudentSettings())
    gate: GateSettings = GateSettings()
    hold: bool = Field(False, description="wait after select until a person approves")


class RunConfig(Section):
    """A whole run. Without rounds it is an online run: one method, then evaluation."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0, lt=2**62)
    data: DataSettings = DataSettings()
    teacher: LearnerSettings = LearnerSettings()
    rounds: tuple[RoundSettings, ...] = ()
    evaluate: EvaluateSettings = EvaluateSettings()
    runtime: RuntimeSettings = RuntimeSettings()
