"""The settings of every method, with the defaults of its paper. No torch here: reading a recipe must be quick.

What each setting means is said in the method's own file.
"""

from typing import Annotated, Literal

from pydantic import Field

from ssl_tasks.section import Section

Probability = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(gt=0)]


class SupervisedSettings(Section):
    name: Literal["supervised"] = "supervised"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    mixup: float = Field(0.0, ge=0, description="Beta(a, a) of MixUp; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="Beta(a, a) of CutMix; 0 is off")


class PseudoLabelSettings(Section):
    name: Literal["pseudo_label"] = "pseudo_label"
    weight: Weight = 3.0
    ramp_start: Probability = Field(1 / 6, description="T1 as a share of the run")
    ramp_end: Probability = Field(1.0, description="T2 as a share of the run")
    threshold: Probability = Field(0.0, description="0 is Lee's: every image counts")


class FixMatchSettings(Section):
    name: Literal["fixmatch"] = "fixmatch"
    threshold: Probability = 0.95
    weight: Weight = 1.0
    temperature: Temperature | None = Field(None, description="None is the official hard label; else soft targets")
    distribution_alignment: bool = False
    separate_weak_forward: bool = Field(
        False, description="weak views in a no-grad forward of their own: faster, but batch norm sees them apart"
    )


class MeanTeacherSettings(Section):
    name: Literal["mean_teacher"] = "mean_teacher"
    weight: Weight = 50.0
    decay: Probability = 0.999
    decay_warmup: bool = True
    ramp_up: Probability = Field(0.4, description="share of the run over which the weight rises")
    consistency: Literal["mse", "kl"] = "mse"


class NoisyStudentSettings(Section):
    name: Literal["noisy_student"] = "noisy_student"
    weight: Weight = 1.0
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="on labelled and hard pseudo-labels alone")


MethodSettings = Annotated[
    SupervisedSettings | PseudoLabelSettings | FixMatchSettings | MeanTeacherSettings | NoisyStudentSettings,
    Field(discriminator="name"),
]
