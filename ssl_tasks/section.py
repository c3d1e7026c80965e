"""The base of every typed section of the configuration: frozen, closed, and cheap to import (no torch)."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Settings that cannot be changed after they were read, and that refuse keys they do not know.

    A field marked `json_schema_extra={"key": False}` says how fast or where a stage runs, not what it computes:
    it takes no part in the stage's key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The settings that decide the result, as plain JSON values, for a stage's key."""
        return {
            name: _identity(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("key") is False)
        }


def _identity(value: Any) -> Any:
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, (list, tuple)):
        return [_identity(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _identity(item) for name, item in value.items()}
    return value
