"""What a recipe may say of training, and of the machine that it runs on."""

from typing import Literal, Self

from pydantic import Field, model_validator

from selftrain.models.settings import LoraSettings
from selftrain.ssl_tasks.settings.section import Section

Schedule = Literal["constant", "cosine", "cosine_7_16", "exponential"]


class TrainSettings(Section):
    """The optimisation of one network."""

    steps: int = Field(1_000, ge=1)
    batch_size: int = Field(64, ge=1, description="labelled images a step, over all processes")
    unlabeled_ratio: int = Field(7, ge=1, description="μ: unlabelled (or pseudo-labelled) images for each labelled one")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(0.03, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0, description="on kernels alone; AdamW's is decoupled")
    momentum_warmup_steps: int = Field(
        0,
        ge=0,
        description="steps over which momentum rises from 0.5, and a gradient counts 1 - momentum, as Hinton 2012",
    )
    schedule: Schedule = "cosine_7_16"
    final_rate: float = Field(0.01, gt=0, le=1, description="of exponential: the last learning rate over the first")
    warmup_steps: int = Field(0, ge=0)
    clip_gradient: float | None = Field(None, gt=0, description="largest norm of the whole gradient")
    accumulate: int = Field(1, ge=1, description="micro-batches a step: less memory, the same batch (but batch norm's)")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="0 evaluates the student itself")
    ema_warmup: bool = True
    ema_buffers: Literal["copy", "average"] = "copy"
    class_balanced: bool = Field(False, description="labelled images drawn class by class alike")
    class_weights: Literal["none", "inverse", "effective"] = "none"
    log_every: int = Field(20, ge=1, description="steps between two rows of the history, each a mean over them")
    evaluate_every: int = Field(200, ge=1)
    patience: int | None = Field(None, ge=1, description="evaluations without a gain before stopping early")
    keep: Literal["best", "last"] = Field("best", description="which checkpoint becomes the model; both are reported")
    median_of: int | None = Field(
        None,
        ge=1,
        description="last evaluations whose median accuracy is reported beside the kept model's, on validation and on "
        "test, as FixMatch's authors report theirs (20); nothing is chosen by it",
    )
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "off", "on"] = Field("off", description="auto: on CUDA, for long runs")
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
                f"median_of ({self.median_of}) looks at the last evaluations of the whole run, and patience "
                f"({self.patience}) may end it before; expected one of the two"
            )
        return self

    @model_validator(mode="after")
    def _momentum_that_rises_is_plain_sgds(self) -> Self:
        if self.momentum_warmup_steps and (self.optimizer != "sgd" or self.nesterov):
            raise ValueError(
                f"momentum_warmup_steps is {self.momentum_warmup_steps}, with {self.optimizer} and nesterov "
                f"{str(self.nesterov).lower()}; expected optimizer: sgd and nesterov: false"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_are_alike(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be split into {self.accumulate} equal micro-batches; "
                "expected a batch_size that accumulate divides"
            )
        return self


class FineTuneTrainSettings(TrainSettings):
    """The optimisation of a fine-tuning: few steps, small ones, and no average of them."""

    steps: int = Field(200, ge=1)
    learning_rate: float = Field(0.001, gt=0)
    schedule: Schedule = "cosine"
    ema_decay: float = Field(0.0, ge=0, lt=1, description="0 evaluates the network itself")
    evaluate_every: int = Field(50, ge=1)

    @model_validator(mode="after")
    def _layers_are_chosen_once(self) -> Self:
        if self.tune != "all":
            raise ValueError(f"tune is {self.tune}, and in a fine-tuning `layers` says what is trained; leave it out")
        return self
