"""What a recipe may say of pseudo-labels: how they are predicted, and which are chosen."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from selftrain.models.settings import ModelSettings
from selftrain.ssl_tasks.settings.section import RecipePath, Section


class FeatureSettings(Section):
    """Features of a frozen network, computed once for every image. `linear`, `propagate` and `knn` read them."""

    views: int = Field(
        1,
        ge=1,
        description="1 is the image itself; 2 averages it with its mirror image, more with weak views of it too",
    )
    shard_size: int = Field(8_192, ge=1, description="most images a shard may hold")
    batch_size: int = Field(128, ge=1, description="images at a time; products may differ in their last bit by it")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = Field(0, ge=0, lt=2**63, description="of the weak views")


class FrozenSettings(FeatureSettings):
    """The features stage as it is requested: which network's features."""

    model: ModelSettings


class GraphSettings(Section):
    """Neighbours in the space of features, for the sources `propagate` and `knn`."""

    neighbors: int = Field(10, ge=1, description="edges of an image in the graph; of knn: labelled images that vote")
    power: float = Field(6.0, gt=0, description="an edge, or a vote, weighs [cosine]₊^power")
    alpha: float = Field(0.95, ge=0, lt=1, description="of propagate: how far labels travel")
    balance: bool = Field(True, description="of propagate: classes get the labelled images' shares")


class PredictSettings(Section):
    """A teacher, as evaluated and without noise, labels the unlabelled images in shards. Or the labels spread to them
    among neighbours in the space of the teacher's features."""

    source: Literal["model", "propagate", "knn"] = Field(
        "model",
        description="propagate: label propagation over the graph of nearest neighbours, on features of the teacher's "
        "network; knn: vote of the nearest labelled images",
    )
    graph: GraphSettings = GraphSettings()
    shard_size: int = Field(65_536, ge=1, description="most samples a shard may hold")
    batch_size: int = Field(256, ge=1, description="images at a time; products may differ in their last bit by it")
    views: int = Field(1, ge=1, description="1 is the image itself; more are averaged with weak views of it")
    temperature: Annotated[float, Field(gt=0)] | Literal["fit", "each"] = Field(
        1.0,
        description="fit: chosen on one half of validation; thresholds are then chosen on the other. each: also one "
        "for every teacher, before they are averaged. The sources propagate and knn always fit",
    )
    top_k: int | None = Field(None, ge=1, description="probabilities stored; default all up to 256 classes, then 16")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    noise: bool = Field(
        False, description="the paper's ablation: strong views, dropout and stochastic depth for the teacher too"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of the views and the noise")


class SelectSettings(Section):
    """Which pseudo-labels are believed, and how often each is shown. All rules that are set must hold.

    Margin and agreement judge first; the rules that look at a whole class see what these leave.
    """

    threshold: float | None = Field(0.3, ge=0, le=1, description="least confidence; 0.3 is Noisy Student's")
    top_k: int | None = Field(None, ge=1, description="most confident per class")
    quantile: float | None = Field(
        None, ge=0, le=1, description="share of each class that is dropped, least confident first"
    )
    adaptive: bool = Field(False, description="threshold per class scaled by how many of it pass, as FlexMatch does")
    min_margin: float | None = Field(None, ge=0, le=1)
    min_agreement: float | None = Field(None, ge=0, le=1, description="of views and ensemble members")
    target_precision: float | None = Field(
        None, gt=0, lt=1, description="thresholds per class that promise this precision"
    )
    precision_confidence: float = Field(0.9, gt=0, lt=1)
    balance: Literal["none", "equal", "prior"] = "equal"
    per_class: int | None = Field(
        None, ge=1, description="N of a balance, on average; default the median class's count (equal) or none (prior)"
    )
    prior: tuple[float, ...] | None = Field(None, description="class shares for `prior`; default the labelled set's")
    scheme: Literal["exact", "bernoulli"] = Field(
        "exact", description="bernoulli: the official floor + Bernoulli copies"
    )
    max_copies: int | None = Field(None, ge=1)
    soft: bool = Field(True, description="students learn the probabilities; else one label")
    # Of up to 2¹⁵ classes, the likeliest's probability to the power of 1 / 0.02 is no zero: nothing becomes 0 / 0.
    sharpen: float = Field(1.0, ge=0.02, le=1, description="temperature of soft labels; soft: false is 0")
    overrides: RecipePath | None = Field(
        None,
        json_schema_extra={"key": False},  # its contents are in the key
        description="CSV or Parquet of sample_id, label (or reject) from people",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of Bernoulli copies")

    @model_validator(mode="after")
    def _rules_fit_together(self) -> "SelectSettings":
        problems = []
        if self.adaptive and self.threshold is None:
            problems.append("adaptive scales `threshold`: set one (FlexMatch's is 0.95)")
        if self.balance == "none" and self.scheme == "bernoulli":
            problems.append("scheme=bernoulli copies towards a balance: set balance to equal or prior")
        if self.balance == "none" and self.per_class is not None:
            problems.append("per_class is the size of a balance: set balance to equal or prior, or use top_k")
        if self.prior is not None and self.balance != "prior":
            problems.append(f"prior is read by balance=prior alone; balance is {self.balance}")
        if self.prior is not None and (min(self.prior) < 0 or sum(self.prior) <= 0):
            problems.append("prior needs shares of 0 or more, not all 0")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class CorrectedSettings(SelectSettings):
    """A selection as a stage is asked for it where a workspace has corrections of its own."""

    corrections: Path = Field(json_schema_extra={"key": False})  # its contents are in the key
