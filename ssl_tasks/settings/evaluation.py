"""What a recipe may say of evaluation and of the gate between rounds."""

from pydantic import Field

from selftrain.ssl_tasks.settings.section import Section


class EvaluateSettings(Section):
    """What is measured of every model, on validation and on test."""

    batch_size: int = Field(256, ge=1, description="images at a time; bf16 products may differ in their last bit by it")
    bootstrap: int = Field(1_000, ge=0, description="resamplings behind the 95 % intervals")
    attacks: tuple[float, ...] = Field((), description="FGSM steps, as a share of the pixel range")
    corruptions: bool = False
    robustness_images: int = Field(1_000, ge=1, description="most test images that are attacked and corrupted")
    seed: int = Field(0, ge=0, lt=2**63)


class GateSettings(Section):
    """When the rounds stop. The student is compared with its teacher on the same validation images."""

    enabled: bool = True
    max_p_value_worse: float = Field(
        0.05, ge=0, le=1, description="stop where the student is worse at this level (McNemar)"
    )
    require_gain: bool = Field(False, description="stop unless the student is better on validation")
    max_class_share: float = Field(
        0.9, gt=0, le=1, description="of one class among the student's predictions: collapse"
    )
    min_selected: int = Field(1, ge=0, description="pseudo-labels that a round must choose")
    max_drift: float = Field(1.0, ge=0, le=1, description="total variation between selected and labelled class shares")
