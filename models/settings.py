"""What a recipe may say of a network. No torch here."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

ONE_SIZE = ("mlp", "torchvision:vit", "torchvision:maxvit", "timm:vit")  # how networks for one image size are named


class ModelSettings(BaseModel):
    """A network by its registered name, its noise, and where its first weights come from."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    name: str = Field(
        "small_cnn", description="wrn-D-K, small_cnn, fast_cnn, mlp, mlp-D, torchvision:<name>, timm:<name>"
    )
    width: int | None = Field(
        None, ge=1, description="channels of the first stage (small_cnn, fast_cnn) or hidden units (mlp)"
    )
    dropout: float = Field(0.0, ge=0, lt=1)
    stochastic_depth: float = Field(0.0, ge=0, lt=1, description="drop rate of the last block; earlier ones less")
    batch_norm_momentum: float | None = Field(
        None,
        gt=0,
        le=1,
        description="default the family's: .001 for wrn as in the reference (raise it for short runs), else .1",
    )
    pretrained: Path | None = Field(
        None, json_schema_extra={"key": False}, description="a local .safetensors file to start from"
    )

    @property
    def label(self) -> str:
        """What a table calls the network."""
        return self.name if self.width is None else f"{self.name} {self.width}"
