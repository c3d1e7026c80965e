"""Defines the settings of every method, with the defaults of its paper.

This module does not import torch, because reading a recipe must be fast. Each method's own file explains its settings
and the equation that they belong to.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from selftrain.ssl_tasks.settings.section import Section

Probability = Annotated[float, Field(ge=0, le=1)]
Threshold = Annotated[float, Field(ge=0, le=1, description="least confidence of a pseudo-label that counts")]
Decay = Annotated[float, Field(ge=0, le=1, description="decay of the moving average per step; higher is slower")]
DecayWarmup = Annotated[bool, Field(description="a smaller decay in the first steps: at most 1 - 1/(step + 1)")]
Smoothing = Annotated[
    float, Field(ge=0, lt=1, description="share of a label that is spread over all classes; 0: no smoothing")
]
Weight = Annotated[float, Field(ge=0, description="weight of the loss on unlabelled images")]
Temperature = Annotated[float, Field(gt=0, description="temperature of the targets; lower is sharper")]
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
    Literal["sigmoid", "linear"], Field(description="how the weight rises: exp(-5 (1 - t)²), or linearly from 0")
]


class SupervisedSettings(Section):
    """Supervised training on labels, the baseline of all methods."""

    name: Literal["supervised"] = "supervised"
    view: Literal["weak", "strong"] = Field(
        "weak",
        description="augmentation of the images; strong as for the teachers trained with noise in Noisy "
        "Student's paper",
    )
    label_smoothing: Smoothing = 0.0
    mixup: float = Field(0.0, ge=0, description="a of MixUp's Beta(a, a); 0: no MixUp")
    cutmix: float = Field(0.0, ge=0, description="a of CutMix's Beta(a, a); 0: no CutMix")


class PseudoLabelSettings(Section):
    """Pseudo-Label (Lee 2013): the own prediction is the label."""

    name: Literal["pseudo_label"] = "pseudo_label"
    weight: Weight = 3.0
    ramp_start: Probability = Field(1 / 6, description="T1, where the weight begins to rise, as a share of the run")
    ramp_end: Probability = Field(1.0, description="T2, where the weight is full, as a share of the run")
    threshold: Probability = Field(
        0.0, description="least confidence of an image that counts; 0, as in the paper, counts every image"
    )
    units: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="kind of outputs; sigmoid, with a binary cross-entropy per class, as in the paper"
    )

    @model_validator(mode="after")
    def _ramp_rises(self) -> "PseudoLabelSettings":
        if self.ramp_end < self.ramp_start:
            raise ValueError(f"ramp_end ({self.ramp_end:g}) is before ramp_start ({self.ramp_start:g}); swap them")
        return self


class FixMatchSettings(Section):
    """FixMatch (arXiv 2001.07685): pseudo-labels from weak views for strong views, above a fixed threshold."""

    name: Literal["fixmatch"] = "fixmatch"
    threshold: Threshold = 0.95
    weight: Weight = 1.0
    temperature: Temperature | None = Field(
        None, description="temperature of soft targets; default hard labels, as in the official code"
    )
    distribution_alignment: bool = Field(False, description="pull the mean prediction to the labelled class shares")
    separate_weak_forward: bool = Field(
        False,
        description="a separate forward pass without gradient for weak views: faster, but batch norm sees "
        "them separately",
    )
    confidence_temperature: ConfidenceTemperature = 1.0


class MeanTeacherSettings(Section):
    """Mean Teacher (arXiv 1703.01780): predictions must agree with those of the student's moving average."""

    name: Literal["mean_teacher"] = "mean_teacher"
    weight: Weight = 50.0
    decay: Decay = 0.999
    decay_warmup: DecayWarmup = True
    ramp_up: Probability = Field(0.4, description="share of the run over which the weight rises from 0")
    ramp: Ramp = "sigmoid"
    consistency: Literal["mse", "kl"] = Field(
        "mse", description="loss between the predictions: mean squared error, or KL(teacher ‖ student)"
    )


class PiModelSettings(Section):
    """Π-model (arXiv 1610.02242): two views of an image must be predicted alike."""

    name: Literal["pi_model"] = "pi_model"
    weight: Weight = 100.0
    ramp_up: Probability = Field(80 / 300, description="share of the run over which the weight rises from 0")
    ramp: Ramp = "sigmoid"
    target_gradient: bool = Field(
        True, description="false: no gradient flows through the first prediction, which halves the gradient"
    )


class TemporalEnsemblingSettings(Section):
    """Temporal ensembling (arXiv 1610.02242): predictions must agree with their average over epochs."""

    name: Literal["temporal_ensembling"] = "temporal_ensembling"
    weight: Weight = 30.0
    alpha: float = Field(0.6, ge=0, lt=1, description="decay of the average over epochs; 0 uses the last epoch only")
    ramp_up: Probability = Field(80 / 300, description="share of the run over which the weight rises from 0")


class VATSettings(Section):
    """VAT (arXiv 1704.03976): predictions must not change under the worst small change of the image."""

    name: Literal["vat"] = "vat"
    weight: Weight = 1.0
    epsilon: float = Field(8.0, gt=0, description="length of the adversarial change, in normalised pixels")
    xi: float = Field(1.0, gt=0, description="step of the finite difference")
    iterations: int = Field(1, ge=1, description="iterations of the power method")
    entropy_weight: Weight = Field(0.0, description="weight of the entropy; 1 is VAT+EntMin")
    ramp_up: Probability = Field(0.0, description="share of the run over which the weight rises linearly from 0")


class ICTSettings(Section):
    """ICT (arXiv 1903.03825): a mixture of images must be predicted as the mixture of the teacher's predictions."""

    name: Literal["ict"] = "ict"
    weight: Weight = 100.0
    alpha: float = Field(1.0, ge=0, description="a of Beta(a, a) for mixtures of unlabelled images; 0: no mixing")
    labeled_alpha: float = Field(1.0, ge=0, description="a of Beta(a, a) for mixtures of labelled images; 0: no mixing")
    decay: Decay = 0.999
    decay_warmup: DecayWarmup = True
    ramp_up: Probability = Field(0.25, description="share of the run over which the weight rises from 0")


class UDASettings(Section):
    """UDA (arXiv 1904.12848): strong views must be predicted like weak views, for confident images."""

    name: Literal["uda"] = "uda"
    weight: Weight = 1.0
    threshold: Threshold = 0.8
    temperature: Temperature = Field(0.4, description="temperature of the target only")
    tsa: Literal["none", "linear", "exp", "log"] = Field(
        "none", description="schedule of the training signal annealing"
    )
    entropy_weight: Weight = Field(0.0, description="weight of the entropy of predictions for weak views")
    in_domain_share: float = Field(
        1.0, gt=0, le=1, description="share of a batch that may count, the most confident first"
    )
    confidence_temperature: ConfidenceTemperature = 1.0


class FlexMatchSettings(Section):
    """FlexMatch (arXiv 2110.08263): FixMatch with a threshold per class, lower for classes that are learned less."""

    name: Literal["flexmatch"] = "flexmatch"
    threshold: Threshold = 0.95
    weight: Weight = 1.0
    warmup: bool = Field(True, description="count images without a pseudo-label so far as a class of their own")
    mapping: Literal["convex", "linear"] = Field(
        "convex", description="from a class's learning status x to its threshold: x / (2 - x), or x"
    )
    confidence_temperature: ConfidenceTemperature = 1.0


class FreeMatchSettings(Section):
    """FreeMatch (arXiv 2205.07246): FixMatch with thresholds that follow the model's confidence."""

    name: Literal["freematch"] = "freematch"
    weight: Weight = 1.0
    fairness_weight: Weight = Field(0.001, description="weight of the term for equal classes")
    decay: Decay = 0.999
    quantile: Probability | None = Field(
        None, description="quantile of the largest probabilities that becomes the global threshold; default their mean"
    )
    clip: Probability | None = Field(None, description="upper limit of the global threshold; default none")


class SoftMatchSettings(Section):
    """SoftMatch (arXiv 2301.10921): FixMatch with a weight by confidence instead of a threshold."""

    name: Literal["softmatch"] = "softmatch"
    weight: Weight = 1.0
    sigmas: float = Field(2.0, gt=0, description="width of the Gaussian: the running deviation ÷ this")
    decay: Decay = 0.999
    uniform_alignment: bool = Field(True, description="align the mean prediction to equal classes before weighting")


class NoisyStudentSettings(Section):
    """Noisy Student (arXiv 1911.04252): learns labels and stored pseudo-labels under strong noise."""

    name: Literal["noisy_student"] = "noisy_student"
    weight: Weight = 1.0
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="label smoothing of labels and hard pseudo-labels, not of soft ones"
    )


class MixMatchSettings(Section):
    """MixMatch (arXiv 1905.02249): sharpened mean predictions of several views, mixed with labelled images."""

    name: Literal["mixmatch"] = "mixmatch"
    weight: Weight = 75.0
    views: int = Field(2, ge=1, description="K: number of weak views whose predictions are averaged")
    temperature: Temperature = 0.5
    alpha: float = Field(0.75, ge=0, description="a of MixUp's Beta(a, a); 0: no MixUp")
    ramp_up: Probability = Field(1 / 64, description="share of the run over which the weight rises from 0")


class ReMixMatchSettings(Section):
    """ReMixMatch (arXiv 1911.09785): MixMatch with distribution alignment and strong views."""

    name: Literal["remixmatch"] = "remixmatch"
    weight: Weight = 1.5
    views: int = Field(
        8, ge=1, description="K: number of strong views that are trained towards the weak view's prediction"
    )
    temperature: Temperature = 0.5
    alpha: float = Field(0.75, ge=0, description="a of MixUp's Beta(a, a); 0: no MixUp")
    anchor_weight: Weight = Field(0.5, description="w_kl: weight of the first strong view before MixUp")
    rotation_weight: Weight = Field(0.5, description="weight of the loss that predicts quarter turns")
    alignment: bool = Field(True, description="align the mean prediction to the labelled class shares")
    alignment_batches: int = Field(128, ge=1, description="number of batches in the running mean of predictions")
    ramp_up: Probability = Field(1 / 64, description="share of the run over which weight and anchor_weight rise")


class ConfirmationBiasSettings(Section):
    """Pseudo-Labeling and Confirmation Bias (arXiv 1908.02983): soft pseudo-labels and MixUp."""

    name: Literal["confirmation_bias"] = "confirmation_bias"
    alpha: float = Field(1.0, ge=0, description="a of MixUp's Beta(a, a); 0: no MixUp")
    class_regulariser: Weight = Field(
        0.8, description="weight of the term that pulls the mean prediction to the uniform prior"
    )
    entropy_regulariser: Weight = Field(0.4, description="weight of the mean entropy of predictions")
    warmup: Probability = Field(0.025, description="share of the run that uses labelled images only")


class LabelPropagationSettings(Section):
    """Label propagation (arXiv 1904.04717): pseudo-labels from a graph of nearest neighbours, per epoch."""

    name: Literal["label_propagation"] = "label_propagation"
    weight: Weight = 1.0
    neighbors: int = Field(50, ge=1, description="nearest neighbours of an image in the graph")
    alpha: float = Field(0.99, ge=0, lt=1, description="α of the diffusion: how far labels spread")
    power: float = Field(3.0, gt=0, description="exponent of similarities: an edge is sim^power")
    iterations: int = Field(20, ge=1, description="iterations of the conjugate gradient method")
    entropy_weights: bool = Field(True, description="weight pseudo-labels by certainty; false: all alike")
    class_weights: bool = Field(True, description="weight classes by inverse frequency; false: all alike")
    warmup: Probability = Field(0.05, description="share of the run that uses labelled images only")
    refreshes: int | None = Field(
        None, ge=1, description="number of graphs built in the rest of the run; default one per epoch"
    )


class MetaPseudoLabelsSettings(Section):
    """Meta Pseudo Labels (arXiv 2003.10580): the teacher learns from the student's result on labels."""

    name: Literal["meta_pseudo_labels"] = "meta_pseudo_labels"
    uda_weight: Weight = Field(8.0, description="weight of the teacher's UDA loss")
    uda_temperature: Temperature = 0.7
    uda_threshold: Threshold = 0.6
    uda_ramp_up: Probability = Field(1 / 60, description="share of the run over which uda_weight rises")
    label_smoothing: Smoothing = 0.15
    feedback_weight: Weight = Field(1.0, description="weight of the student's feedback in the teacher's loss")
    feedback_decay: float = Field(
        0.99, ge=0, lt=1, description="decay of the moving average that is subtracted from the feedback"
    )
    feedback_sign: Literal["official", "theory"] = Field(
        "theory",
        description="theory: old loss - new loss, the meta-gradient of hard labels; official: new - old, "
        "as in the official code",
    )
    student_wait: Probability = Field(0.01, description="share of the run in which only the teacher is trained")
    finetune: Probability = Field(
        1 / 60, description="last share of the run, in which the student is trained on labelled images only"
    )
    finetune_rate: float = Field(0.01, ge=0, description="factor on the learning rate during `finetune`")
    teacher: Literal["scratch", "student"] = Field(
        "scratch", description="first weights of the teacher: random, or the student's"
    )


class DivideMixSettings(Section):
    """DivideMix (arXiv 2002.07394): two networks separate clean labels from wrong ones."""

    name: Literal["dividemix"] = "dividemix"
    weight: Weight = 25.0
    alpha: float = Field(4.0, ge=0, description="a of MixUp's Beta(a, a); 0: no MixUp")
    temperature: Temperature = 0.5
    clean_threshold: Probability = Field(0.5, description="labels with a higher probability to be clean are trusted")
    labels: Literal["noisy", "clean"] = Field(
        "noisy", description="clean: trust every label, so that nothing is divided"
    )
    use_unlabeled: bool = Field(True, description="false: all images are labelled, some of them wrongly")
    asymmetric: bool = Field(False, description="penalise confidence during the warm-up, for asymmetric label noise")
    loss_history: int = Field(
        1, ge=1, description="number of epochs whose losses are averaged before dividing; 5 for 90 % noise"
    )
    warmup: Probability = Field(10 / 300, description="share of the run that is trained on all labels as given")
    ramp_up: Probability = Field(
        16 / 300, description="share of the run, after the warm-up, over which the weight rises"
    )
    second: Literal["scratch", "student"] = Field(
        "scratch", description="first weights of the second network: random, or the first network's"
    )


class SimCLRSettings(Section):
    """SimCLR (arXiv 2002.05709): pre-trains a network without labels."""

    name: Literal["simclr"] = "simclr"
    temperature: Temperature = 0.5
    projection: int = Field(128, ge=1, description="number of outputs of the projection head")
    layers: int = Field(2, ge=1, description="layers of the projection head; SimCLRv2 has 3")
    probe_weight: Weight = Field(
        1.0, description="weight of the linear probe, which sends no gradient into the features"
    )


class DistillationSettings(Section):
    """Distillation (arXiv 2006.10029): the student learns stored soft labels."""

    name: Literal["distillation"] = "distillation"
    weight: Probability = Field(1.0, description="α: weight of the teacher's labels; the true labels have 1 - α")
    temperature: Temperature = 1.0


class LinearSettings(Section):
    """Logistic regression on the stored features of a frozen network. `model` is the network; `train` is not used."""

    name: Literal["linear"] = "linear"
    penalty: Annotated[float, Field(gt=0)] | Literal["choose"] = Field(
        "choose",
        description="λ of the loss: mean cross-entropy + λ/2 ‖weights‖², for features of unit variance. choose: by the "
        "likelihood of the validation images, or by cross-validation if there are none",
    )
    class_balanced: bool = Field(False, description="give every class the same weight, whatever its number of images")
    weight: Weight = Field(1.0, description="weight of a pseudo-label, if a label has 1")


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
    | DistillationSettings
    | LinearSettings,
    Field(discriminator="name"),
]
