"""Defines the settings of pseudo-labels in a recipe: how they are predicted, and which are accepted."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from selftrain.models import ModelSettings
from selftrain.ssl_tasks.settings.section import RecipePath, Section


class FeatureSettings(Section):
    """Settings of the features of a frozen network, which `linear`, `propagate` and `knn` read."""

    views: int = Field(
        1,
        ge=1,
        description="features averaged per image: 1 uses the image itself; 2 add its mirror image; more add weakly "
        "augmented views",
    )
    shard_size: int = Field(8_192, ge=1, description="at most so many images per shard (file)")
    batch_size: int = Field(128, ge=1, description="images per batch; the last bit of results may depend on it")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="number format; auto: bf16 if the hardware multiplies in it, else fp32"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the weakly augmented views")


class FrozenSettings(FeatureSettings):
    """The settings of a request for features, including the network."""

    model: ModelSettings


class GraphSettings(Section):
    """Settings of the neighbours among features, for the sources `propagate` and `knn`."""

    neighbors: int = Field(10, ge=1, description="edges per image of the graph; knn: labelled images that vote")
    power: float = Field(6.0, gt=0, description="an edge, or a vote, has the weight cosine^power, or 0 if negative")
    alpha: float = Field(0.95, ge=0, lt=1, description="only propagate: how far labels travel")
    balance: bool = Field(
        True, description="only propagate: scale the scores so that each class has its share of the labelled images"
    )


class PredictSettings(Section):
    """Settings of the prediction of unlabelled images. The teacher is used as it was evaluated, without noise."""

    source: Literal["model", "propagate", "knn"] = Field(
        "model",
        description="source of the pseudo-labels: the teacher's predictions, or its features: propagate spreads labels "
        "over the graph of nearest neighbours; knn lets the nearest labelled images vote",
    )
    graph: GraphSettings = GraphSettings()
    shard_size: int = Field(65_536, ge=1, description="at most so many images per shard (file)")
    batch_size: int = Field(256, ge=1, description="images per batch; the last bit of results may depend on it")
    views: int = Field(
        1, ge=1, description="predictions averaged per image: 1 uses the image itself; more add weakly augmented views"
    )
    temperature: Annotated[float, Field(gt=0)] | Literal["fit", "each"] = Field(
        1.0,
        description="temperature of the softmax. fit: fitted on one half of the validation images; "
        "thresholds then use the other half. each: also one per teacher, before they are averaged. The sources "
        "propagate and knn always fit theirs",
    )
    top_k: int | None = Field(
        None, ge=1, description="probabilities stored per image; default all for up to 256 classes, else 16"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="number format; auto: bf16 if the hardware multiplies in it, else fp32"
    )
    noise: bool = Field(
        False,
        description="an ablation of Noisy Student's paper: strong augmentation, dropout and stochastic "
        "depth for the teacher",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the views and the noise")


class SelectSettings(Section):
    """Rules that accept pseudo-labels, and how often students see each. A pseudo-label must pass all rules that are
    set.

    Margin and agreement are checked first; the rules about a whole class then use the images that passed.
    """

    threshold: float | None = Field(
        0.3, ge=0, le=1, description="accept pseudo-labels with at least this confidence; 0.3 as in Noisy Student"
    )
    top_k: int | None = Field(None, ge=1, description="accept the most confident of each class, so many per class")
    quantile: float | None = Field(
        None, ge=0, le=1, description="reject this share of each class, the least confident first"
    )
    adaptive: bool = Field(
        False, description="scale the threshold of each class by how many of it pass, as FlexMatch does"
    )
    min_margin: float | None = Field(
        None, ge=0, le=1, description="accept if the two largest probabilities differ by at least this"
    )
    min_agreement: float | None = Field(
        None, ge=0, le=1, description="accept if at least this share of views and ensemble members agree"
    )
    target_precision: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="choose thresholds per class such that at least this share of accepted pseudo-labels is correct, "
        "estimated on validation images",
    )
    precision_confidence: float = Field(0.9, gt=0, lt=1, description="confidence with which target_precision holds")
    balance: Literal["none", "equal", "prior"] = Field(
        "equal", description="class shares of the accepted pseudo-labels: as accepted, equal, or as in `prior`"
    )
    per_class: int | None = Field(
        None,
        ge=1,
        description="images per class after balancing, on average; default the median class's count "
        "(equal) or no limit (prior)",
    )
    prior: tuple[float, ...] | None = Field(
        None, description="class shares for balance=prior; default those of the labelled images"
    )
    scheme: Literal["exact", "bernoulli"] = Field(
        "exact",
        description="how copies are counted to balance classes; bernoulli: floor + a random copy, as in "
        "the official code",
    )
    max_copies: int | None = Field(None, ge=1, description="at most so many copies of an image; default no limit")
    soft: bool = Field(
        True, description="students learn all probabilities (soft labels); false: one class (hard labels)"
    )
    # With at least 0.02, the largest of up to 2¹⁵ probabilities never underflows to 0, so no 0 / 0 can occur.
    sharpen: float = Field(1.0, ge=0.02, le=1, description="temperature of soft labels; lower is sharper")
    overrides: RecipePath | None = Field(
        None,
        json_schema_extra={"key": False},  # its contents are in the key
        description="CSV or Parquet file of corrections: columns sample_id and label, where reject rejects an image",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of scheme=bernoulli")

    @model_validator(mode="after")
    def _rules_fit_together(self) -> "SelectSettings":
        problems = []
        if self.adaptive and self.threshold is None:
            problems.append("adaptive scales `threshold`, which is not set; set one (FlexMatch's is 0.95)")
        if self.balance == "none" and self.scheme == "bernoulli":
            problems.append("scheme=bernoulli needs a balance; set balance to equal or prior")
        if self.balance == "none" and self.per_class is not None:
            problems.append("per_class needs a balance; set balance to equal or prior, or use top_k")
        if self.prior is not None and self.balance != "prior":
            problems.append(f"prior is used only with balance=prior; balance is {self.balance}")
        if self.prior is not None and (min(self.prior) < 0 or sum(self.prior) <= 0):
            problems.append("prior needs shares of at least 0, and one above 0")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class CorrectedSettings(SelectSettings):
    """The settings of a selection in a workspace that has corrections."""

    corrections: Path = Field(json_schema_extra={"key": False})  # its contents are in the key
