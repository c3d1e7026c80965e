"""The settings of every method, with the defaults of its paper. No torch here: reading a recipe must be quick.

What each setting means is said in the method's own file.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from selftrain.ssl_tasks.settings.section import Section

Probability = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(gt=0)]
ConfidenceTemperature = Annotated[
    float,
    Field(
        gt=0,
        json_schema_extra={"key": "changed"},
        description="divides the logits for the comparison with the threshold alone; below 1 for a pretrained network "
        "whose softmax is flat (SWIFT, 2512.10244)",
    ),
]
Ramp = Annotated[
    Literal["sigmoid", "linear"], Field(description="how the weight rises: exp(-5 (1 - t)²), or straight from 0")
]


class SupervisedSettings(Section):
    name: Literal["supervised"] = "supervised"
    view: Literal["weak", "strong"] = Field(
        "weak", description="of the images; strong as the noised teachers' in print"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    mixup: float = Field(0.0, ge=0, description="Beta(a, a) of MixUp; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="Beta(a, a) of CutMix; 0 is off")


class PseudoLabelSettings(Section):
    name: Literal["pseudo_label"] = "pseudo_label"
    weight: Weight = 3.0
    ramp_start: Probability = Field(1 / 6, description="T1 as a share of the run")
    ramp_end: Probability = Field(1.0, description="T2 as a share of the run")
    threshold: Probability = Field(0.0, description="0 is Lee's: every image counts")
    units: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="of the outputs; sigmoid, with a binary cross-entropy for each class, is Lee's"
    )

    @model_validator(mode="after")
    def _ramp_rises(self) -> "PseudoLabelSettings":
        if self.ramp_end < self.ramp_start:
            raise ValueError(f"ramp_end ({self.ramp_end:g}) is before ramp_start ({self.ramp_start:g}); swap them")
        return self


class FixMatchSettings(Section):
    name: Literal["fixmatch"] = "fixmatch"
    threshold: Probability = 0.95
    weight: Weight = 1.0
    temperature: Temperature | None = Field(None, description="None is the official hard label; else soft targets")
    distribution_alignment: bool = False
    separate_weak_forward: bool = Field(
        False, description="weak views in a no-grad forward of their own: faster, but batch norm sees them apart"
    )
    confidence_temperature: ConfidenceTemperature = 1.0


class MeanTeacherSettings(Section):
    name: Literal["mean_teacher"] = "mean_teacher"
    weight: Weight = 50.0
    decay: Probability = 0.999
    decay_warmup: bool = True
    ramp_up: Probability = Field(0.4, description="share of the run over which the weight rises")
    ramp: Ramp = "sigmoid"
    consistency: Literal["mse", "kl"] = "mse"


class PiModelSettings(Section):
    name: Literal["pi_model"] = "pi_model"
    weight: Weight = 100.0
    ramp_up: Probability = Field(80 / 300, description="share of the run over which the weight rises")
    ramp: Ramp = "sigmoid"
    target_gradient: bool = Field(
        True, description="false: the first prediction is a target without a gradient, which halves the gradient"
    )


class TemporalEnsemblingSettings(Section):
    name: Literal["temporal_ensembling"] = "temporal_ensembling"
    weight: Weight = 30.0
    alpha: float = Field(0.6, ge=0, lt=1, description="of the average over epochs; 0 is the last epoch alone")
    ramp_up: Probability = Field(80 / 300, description="share of the run over which the weight rises")


class VATSettings(Section):
    name: Literal["vat"] = "vat"
    weight: Weight = 1.0
    epsilon: float = Field(8.0, gt=0, description="length of the change, in normalised pixels")
    xi: float = Field(1.0, gt=0, description="step of the finite difference")
    iterations: int = Field(1, ge=1, description="of the power method")
    entropy_weight: Weight = Field(0.0, description="1 is VAT+EntMin")
    ramp_up: Probability = Field(0.0, description="share of the run over which the weight rises from 0, straight")


class ICTSettings(Section):
    name: Literal["ict"] = "ict"
    weight: Weight = 100.0
    alpha: float = Field(1.0, ge=0, description="Beta(a, a) of unlabelled mixtures; 0 mixes nothing")
    labeled_alpha: float = Field(1.0, ge=0, description="Beta(a, a) of labelled mixtures; 0 mixes nothing")
    decay: Probability = 0.999
    decay_warmup: bool = True
    ramp_up: Probability = Field(0.25, description="share of the run over which the weight rises")


class UDASettings(Section):
    name: Literal["uda"] = "uda"
    weight: Weight = 1.0
    threshold: Probability = 0.8
    temperature: Temperature = Field(0.4, description="of the target alone")
    tsa: Literal["none", "linear", "exp", "log"] = Field("none", description="training signal annealing")
    entropy_weight: Weight = 0.0
    in_domain_share: float = Field(1.0, gt=0, le=1, description="most confident share of a batch that may count")
    confidence_temperature: ConfidenceTemperature = 1.0


class FlexMatchSettings(Section):
    name: Literal["flexmatch"] = "flexmatch"
    threshold: Probability = 0.95
    weight: Weight = 1.0
    warmup: bool = Field(True, description="images without a label yet count as a class of their own")
    mapping: Literal["convex", "linear"] = "convex"
    confidence_temperature: ConfidenceTemperature = 1.0


class FreeMatchSettings(Section):
    name: Literal["freematch"] = "freematch"
    weight: Weight = 1.0
    fairness_weight: Weight = 0.001
    decay: Probability = 0.999
    quantile: Probability | None = Field(None, description="of the largest probabilities; None is their mean")
    clip: Probability | None = Field(None, description="the most that the global threshold may become")


class SoftMatchSettings(Section):
    name: Literal["softmatch"] = "softmatch"
    weight: Weight = 1.0
    sigmas: float = Field(2.0, gt=0, description="the Gaussian's width is the running deviation over this")
    decay: Probability = 0.999
    uniform_alignment: bool = True


class NoisyStudentSettings(Section):
    name: Literal["noisy_student"] = "noisy_student"
    weight: Weight = 1.0
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="on labelled and hard pseudo-labels alone")


class MixMatchSettings(Section):
    name: Literal["mixmatch"] = "mixmatch"
    weight: Weight = 75.0
    views: int = Field(2, ge=1, description="K: weak views whose guesses are averaged")
    temperature: Temperature = 0.5
    alpha: float = Field(0.75, ge=0, description="Beta(a, a) of MixUp; 0 mixes nothing")
    ramp_up: Probability = Field(1 / 64, description="share of the run over which the weight rises")


class ReMixMatchSettings(Section):
    name: Literal["remixmatch"] = "remixmatch"
    weight: Weight = 1.5
    views: int = Field(8, ge=1, description="K: strong views anchored to the weak view's guess")
    temperature: Temperature = 0.5
    alpha: float = Field(0.75, ge=0, description="Beta(a, a) of MixUp; 0 mixes nothing")
    anchor_weight: Weight = Field(0.5, description="w_kl: of the first strong view before MixUp")
    rotation_weight: Weight = 0.5
    alignment: bool = True
    alignment_batches: int = Field(128, ge=1, description="batches of the running mean of guesses")
    ramp_up: Probability = Field(1 / 64, description="share of the run over which weight and anchor_weight rise")


class ConfirmationBiasSettings(Section):
    name: Literal["confirmation_bias"] = "confirmation_bias"
    alpha: float = Field(1.0, ge=0, description="Beta(a, a) of MixUp; 0 mixes nothing")
    class_regulariser: Weight = Field(0.8, description="pulls the mean prediction to the uniform prior")
    entropy_regulariser: Weight = 0.4
    warmup: Probability = Field(0.025, description="share of the run that learns from labelled images alone")


class LabelPropagationSettings(Section):
    name: Literal["label_propagation"] = "label_propagation"
    weight: Weight = 1.0
    neighbors: int = Field(50, ge=1)
    alpha: float = Field(0.99, ge=0, lt=1, description="of the diffusion: how far labels travel")
    power: float = Field(3.0, gt=0, description="of the similarities: edges are sim^power")
    iterations: int = Field(20, ge=1, description="of conjugate gradient")
    entropy_weights: bool = True
    class_weights: bool = True
    warmup: Probability = Field(0.05, description="share of the run that learns from labelled images alone")
    refreshes: int | None = Field(None, ge=1, description="graphs in the rest of the run; default one per epoch")


class MetaPseudoLabelsSettings(Section):
    name: Literal["meta_pseudo_labels"] = "meta_pseudo_labels"
    uda_weight: Weight = 8.0
    uda_temperature: Temperature = 0.7
    uda_threshold: Probability = 0.6
    uda_ramp_up: Probability = Field(1 / 60, description="share of the run over which uda_weight rises")
    label_smoothing: float = Field(0.15, ge=0, lt=1)
    feedback_weight: Weight = 1.0
    feedback_decay: float = Field(0.99, ge=0, lt=1, description="of the moving average taken off the feedback")
    feedback_sign: Literal["official", "theory"] = Field(
        "theory", description="old - new, the meta-gradient of hard labels, or the official code's new - old"
    )
    student_wait: Probability = Field(0.01, description="share of the run that trains the teacher alone")
    finetune: Probability = Field(1 / 60, description="last share of the run: the student on labelled images alone")
    finetune_rate: float = Field(0.01, ge=0, description="factor on the learning rate meanwhile")
    teacher: Literal["scratch", "student"] = Field("scratch", description="first weights of the teacher")


class DivideMixSettings(Section):
    name: Literal["dividemix"] = "dividemix"
    weight: Weight = 25.0
    alpha: float = Field(4.0, ge=0, description="Beta(a, a) of MixUp; 0 mixes nothing")
    temperature: Temperature = 0.5
    clean_threshold: Probability = 0.5
    labels: Literal["noisy", "clean"] = Field("noisy", description="clean trusts every label and divides nothing")
    use_unlabeled: bool = Field(True, description="false for a fully but noisily labelled set")
    asymmetric: bool = Field(False, description="penalise confidence in warm-up, as for asymmetric noise")
    loss_history: int = Field(1, ge=1, description="epochs of losses averaged before dividing; 5 for 90 % noise")
    warmup: Probability = Field(10 / 300, description="share of the run that trains on all labels as given")
    ramp_up: Probability = Field(16 / 300, description="share of the run, after the warm-up, over which weight rises")
    second: Literal["scratch", "student"] = Field("scratch", description="first weights of the second network")


class SimCLRSettings(Section):
    name: Literal["simclr"] = "simclr"
    temperature: Temperature = 0.5
    projection: int = Field(128, ge=1, description="outputs of the projection head")
    layers: int = Field(2, ge=1, description="of the projection head; SimCLRv2 has 3")
    probe_weight: Weight = Field(1.0, description="of the linear probe on features without a gradient")


class DistillationSettings(Section):
    name: Literal["distillation"] = "distillation"
    weight: Probability = Field(1.0, description="α: of the teacher's labels; 1 - α of the true ones")
    temperature: Temperature = 1.0


MethodSettings = Annotated[
    SupervisedSettings
    | PseudoLabelSettings
    | FixMatchSettings
    | MeanTeacherSettings
    | PiModelSettings
    | TemporalEnsemblingSettings
    | VATSettings
    | ICTSettings
    | UDASettings
    | FlexMatchSettings
    | FreeMatchSettings
    | SoftMatchSettings
    | NoisyStudentSettings
    | MixMatchSettings
    | ReMixMatchSettings
    | ConfirmationBiasSettings
    | LabelPropagationSettings
    | MetaPseudoLabelsSettings
    | DivideMixSettings
    | SimCLRSettings
    | DistillationSettings,
    Field(discriminator="name"),
]
