"""Defines the settings of training in a recipe."""

from typing import Literal, Self

from pydantic import Field, model_validator

from selftrain.models.settings import LoraSettings
from selftrain.ssl_tasks.settings.section import Section

Schedule = Literal["constant", "cosine", "cosine_7_16", "exponential"]


class TrainSettings(Section):
    """The optimisation of one network."""

    steps: int = Field(1_000, ge=1, description="optimizer steps")
    batch_size: int = Field(64, ge=1, description="labelled images per step, over all processes")
    unlabeled_ratio: int = Field(7, ge=1, description="μ: unlabelled (or pseudo-labelled) images per labelled image")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum, or AdamW")
    learning_rate: float = Field(0.03, gt=0, description="learning rate after the warm-up")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd; not used by adamw")
    nesterov: bool = Field(True, description="Nesterov's momentum; only with sgd")
    weight_decay: float = Field(
        5e-4, ge=0, description="weight decay of kernels only, not of biases and norms; decoupled with adamw"
    )
    momentum_warmup_steps: int = Field(
        0,
        ge=0,
        description="steps over which momentum rises from 0.5; gradients are scaled by 1 - momentum, as in Hinton 2012",
    )
    schedule: Schedule = Field(
        "cosine_7_16", description="learning rate over the run; cosine_7_16: cos(7πt/16), as in FixMatch"
    )
    final_rate: float = Field(0.01, gt=0, le=1, description="schedule=exponential: last learning rate ÷ first")
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises from 0")
    clip_gradient: float | None = Field(
        None, gt=0, description="largest norm of the gradient; longer gradients are scaled down"
    )
    accumulate: int = Field(
        1, ge=1, description="micro-batches per step: less memory, the same gradient except for batch norm"
    )
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="decay of the moving average of weights that is evaluated; 0: no average"
    )
    ema_warmup: bool = Field(True, description="a smaller decay in the first steps")
    ema_buffers: Literal["copy", "average"] = Field(
        "copy", description="running statistics of the average: copied from the network, or averaged"
    )
    class_balanced: bool = Field(False, description="draw labelled images equally often from every class")
    class_weights: Literal["none", "inverse", "effective"] = Field(
        "none", description="weights of classes in the loss: by inverse frequency, or by the effective number of images"
    )
    log_every: int = Field(
        20, ge=1, description="steps between two rows of the history; each row is the mean over them"
    )
    evaluate_every: int = Field(200, ge=1, description="steps between two evaluations on validation")
    patience: int | None = Field(
        None,
        ge=1,
        description="stop early after so many evaluations without a better validation accuracy; default never",
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="the checkpoint that becomes the model: best on validation, or last; both accuracies are reported",
    )
    median_of: int | None = Field(
        None,
        ge=1,
        description="number of last evaluations whose median accuracy is also reported, on validation and test, as in "
        "FixMatch's paper (20); it chooses nothing",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="number format; auto: bf16 if the hardware multiplies in it, else fp32"
    )
    compile: Literal["auto", "off", "on"] = Field(
        "off", description="compile the network with torch.compile; auto: on CUDA in long runs"
    )
    tune: str = Field(
        "all",
        pattern=r"^(all|head|norms|lora|last-[1-9][0-9]*)$",
        json_schema_extra={"key": "changed"},
        description="which weights of a network that starts from given ones are trained beside the head: all, none "
        "(head), those of its norms, of its last N layers (last-N), or low-rank additions (lora)",
    )
    lora: LoraSettings = Field(LoraSettings(), json_schema_extra={"key": "changed"})
    head_learning_rate: float | None = Field(
        None, gt=0, json_schema_extra={"key": "changed"}, description="of the head alone; default learning_rate"
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        json_schema_extra={"key": "changed"},
        description="factor on the learning rate for each layer below the head; 0.65 to 0.8 is usual for transformers",
    )

    loss: Literal["cross_entropy", "logit_adjusted", "balanced_softmax"] = Field(
        "cross_entropy",
        json_schema_extra={"key": "changed"},
        description="of the labelled images; the two others add the log of each class's share of the labels to the "
        "logits in training (2007.07314, 2007.10740), for long-tailed labels",
    )
    adjustment: float = Field(
        1.0,
        gt=0,
        json_schema_extra={"key": "changed"},
        description="τ of logit_adjusted: strength; at 1 it is balanced_softmax",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        json_schema_extra={"key": "changed"},
        description="divides the logits in every loss and prediction, and becomes part of the trained head; below 1 "
        "for a pretrained network whose softmax is flat (SWIFT, 2512.10244)",
    )

    @model_validator(mode="after")
    def _imbalance_is_corrected_once(self) -> Self:
        others = [self.class_balanced and "class_balanced: true", self.class_weights != "none" and "class_weights"]
        if self.loss != "cross_entropy" and (other := next(filter(None, others), None)):
            raise ValueError(f"loss: {self.loss} and {other} both correct for imbalanced labels; use one of them")
        if self.adjustment != 1 and self.loss != "logit_adjusted":
            raise ValueError(f"adjustment is {self.adjustment:g}, and loss: {self.loss} has none; use logit_adjusted")
        return self

    @model_validator(mode="after")
    def _last_evaluations_are_known(self) -> Self:
        if self.median_of is not None and self.patience is not None:
            raise ValueError(
                f"median_of ({self.median_of}) needs the last evaluations of the whole run, and patience "
                f"({self.patience}) may end it early; expected one of the two"
            )
        return self

    @model_validator(mode="after")
    def _momentum_that_rises_is_plain_sgds(self) -> Self:
        if self.momentum_warmup_steps and (self.optimizer != "sgd" or self.nesterov):
            raise ValueError(
                f"momentum_warmup_steps is {self.momentum_warmup_steps}, with optimizer: {self.optimizer} "
                "and nesterov: "
                f"{str(self.nesterov).lower()}; expected optimizer: sgd and nesterov: false"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_are_alike(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be split into {self.accumulate} equal micro-batches; "
                "expected a multiple of accumulate"
            )
        return self


class FineTuneTrainSettings(TrainSettings):
    """The optimisation of a fine-tuning: a few steps with a small learning rate, and no moving average."""

    steps: int = Field(200, ge=1, description="optimizer steps")
    learning_rate: float = Field(0.001, gt=0, description="learning rate after the warm-up")
    schedule: Schedule = Field("cosine", description="learning rate over the run; cosine: falls to 0")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay of the moving average of weights; 0: no average")
    evaluate_every: int = Field(50, ge=1, description="steps between two evaluations on validation")

    @model_validator(mode="after")
    def _layers_are_chosen_once(self) -> Self:
        if self.tune != "all":
            raise ValueError(f"tune is {self.tune}, and in a fine-tuning `layers` says what is trained; leave it out")
        return self
