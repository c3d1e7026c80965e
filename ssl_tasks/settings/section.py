"""Defines the base class of every section of a recipe: frozen, without unknown keys, and fast to import (no torch)."""

from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

from selftrain.ssl_tasks.errors import ConfigError


class Section(BaseModel):
    """Settings that cannot be changed after they were read, and that refuse unknown keys.

    A field marked `json_schema_extra={"key": False}` says how fast or where a stage runs, not what it computes:
    it is not part of the stage's key. A field marked `{"key": "changed"}` is part of the key only if it is not at its
    default: a setting that is added to a section changes no key of a recipe that does not use it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_the_default(cls, values: Any) -> Any:
        """Completes `method: {weight: 4}` with the default method's name, if that method has such a setting."""
        if not isinstance(values, dict):
            return values
        named = {
            name: {**field.default.model_dump(include={"name"}), **values[name]}
            for name, field in cls.model_fields.items()
            if field.discriminator and _lacks_name_alone(values.get(name), field.default)
        }
        return {**values, **named}

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, values: Any) -> Any:
        """Refuses `steps: true`, which pydantic alone reads as one step."""
        if not isinstance(values, dict):
            return values
        numbers = {name: values[name] for name, field in cls.model_fields.items() if name in values and _number(field)}
        return {**values, **{name: _truth_as_text(value) for name, value in numbers.items()}}

    def identity(self) -> dict[str, Any]:
        """Returns the settings that decide the result, as plain JSON values, for a stage's key."""
        return identity_of(self)


def _number(field: FieldInfo) -> bool:
    kinds: Any = field.annotation
    return any(_takes(kinds, kind) for kind in (int, float)) and not _takes(kinds, bool)


@cache
def _takes(annotation: Any, kind: type) -> bool:
    """Returns whether an annotation, or a part of it such as the 3 of `Literal[1, 3]`, is of a kind."""
    parts = get_args(annotation)
    return annotation is kind or any(type(part) is kind or _takes(part, kind) for part in parts)


def _truth_as_text(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_truth_as_text(one) for one in value]
    return str(value).lower() if isinstance(value, bool) else value


def _lacks_name_alone(given: Any, default: Any) -> bool:
    if not isinstance(given, dict) or "name" in given or not isinstance(default, Section):
        return False
    return given.keys() <= type(default).model_fields.keys()


def _takes_part(field: FieldInfo, value: Any) -> bool:
    marked = field.json_schema_extra.get("key") if isinstance(field.json_schema_extra, dict) else None
    return marked is not False and (marked != "changed" or value != field.default)


def identity_of(value: Any) -> Any:
    """Returns the plain JSON value that stands for a setting in a stage's key."""
    if isinstance(value, BaseModel):
        return {
            name: identity_of(getattr(value, name))
            for name, field in type(value).model_fields.items()
            if _takes_part(field, getattr(value, name))
        }
    if isinstance(value, (list, tuple)):
        return [identity_of(item) for item in value]
    if isinstance(value, dict):
        return {str(name): identity_of(item) for name, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def _beside_recipe(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    return path if folder is None or path.is_absolute() else folder / path


RecipePath = Annotated[Path, AfterValidator(_beside_recipe)]
"""A path in a recipe. A relative path starts from the recipe's folder."""


def existing_file(path: Path, setting: str, kind: str) -> Path:
    """Returns the path if it is a file; raises ConfigError if not."""
    if not path.is_file():
        raise ConfigError(f"{setting}: {path} {'is a folder' if path.is_dir() else 'does not exist'}; expected {kind}")
    return path
