"""The settings of a network in a recipe. This module does not import torch."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

ONE_SIZE = (
    "mlp",
    "torchvision:vit",
    "torchvision:maxvit",
    "timm:vit",
)  # beginnings of the names of networks that are built for one image size


class ModelSettings(BaseModel):
    """A network by its registered name, its noise, and where its first weights come from."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    name: str = Field(
        "small_cnn",
        description="the network: wrn-D-K, small_cnn, fast_cnn, mlp, mlp-D, torchvision:<name> or timm:<name>",
    )
    width: int | None = Field(
        None, ge=1, description="channels of the first stage (small_cnn, fast_cnn) or hidden units (mlp)"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="probability of dropout before the classifier")
    stochastic_depth: float = Field(
        0.0, ge=0, lt=1, description="drop rate of the last block; earlier blocks have less"
    )
    batch_norm_momentum: float | None = Field(
        None,
        gt=0,
        le=1,
        description="momentum of batch norm's running statistics; default 0.001 for wrn, as in the "
        "reference (raise it for "
        "short runs), else 0.1",
    )
    pretrained: Path | None = Field(
        None, json_schema_extra={"key": False}, description="local .safetensors file with the first weights"
    )

    @property
    def label(self) -> str:
        """The network's name in tables."""
        return self.name if self.width is None else f"{self.name} {self.width}"
