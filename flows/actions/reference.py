"""Generates the configuration reference from the typed settings, for `selftrain config --reference`."""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from selftrain.ssl_tasks.settings.run_config import RunConfig

HEAD = """# Configuration reference

This page is generated from the typed settings by `selftrain config --reference`; a test checks that it is up to date.
Each section of a recipe is a table here. In a recipe, `round:` holds the settings that every round starts from, and
`rounds:` is their number (at most 100) or a list of what each round changes. Rounds are counted from 1, as in the names
of stages: `--set rounds.2.select.threshold=0.9` changes `select-2`, and `--set round.select.threshold=0.9` changes
every round. A `--set` without effect is an error.

A recipe is YAML 1.2: only `true` and `false` are truth values; `off`, `no` and `12:30` are text; `1e-3` is a number;
`010` is ten. A key that is set twice is an error. A recipe has at most 1 MiB, 30 levels of nesting and 100,000 values.

Settings marked ° say where or how fast a stage runs, not what it computes: changing them recomputes nothing.
"""


def reference() -> str:
    """Returns the whole reference as Markdown."""
    return "\n".join([HEAD, *_sections(RunConfig, "", set())])


def _sections(model: type[BaseModel], where: str, seen: set[type[BaseModel]]) -> Iterator[str]:
    seen.add(model)
    title = where or "top level"
    doc = " ".join((model.__doc__ or "").strip().split("\n\n")[0].split())  # Python 3.13 strips the indentation
    yield f"## {title}\n\n{doc}\n\n| setting | type | default | meaning |\n|---|---|---|---|"
    inner: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        members = list(_models(field.annotation))
        inner += [(f"{where}.{name}".lstrip("."), member) for member in members]
        yield _row(name, field, members)
    yield ""
    for dotted, member in inner:
        if member in seen:
            continue
        tag = _tag(member)
        yield from _sections(
            member, f"{dotted} (name: {tag})" if tag and len(inner) > 1 and "." in dotted else dotted, seen
        )


def _row(name: str, field: FieldInfo, members: list[type[BaseModel]]) -> str:
    mark = "°" if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("key") is False else ""
    kind = "section" if members else _kind(field.annotation)
    limits = [str(part) for part in (_limit(rule) for rule in field.metadata) if part]
    words = "; ".join([*limits, field.description or _meaning(name, members)])
    return f"| `{name}`{mark} | {kind} | {_default(field, members)} | {words} |".replace("  ", " ")


def _meaning(name: str, members: list[type[BaseModel]]) -> str:
    """Returns the meaning of a section, or of the `name` that chooses among sections."""
    if len(members) == 1:
        words = " ".join((members[0].__doc__ or "").split()).partition(". ")[0].rstrip(".")
        return words[:1].lower() + words[1:] if words[1:2].islower() else words
    tags = ", ".join(f"`{tag}`" for member in members for tag in _tag(member).split(", "))
    return f"one of {tags}, by its `name`" if members else "chooses this section"


def _default(field: FieldInfo, members: list[type[BaseModel]]) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "*required*"
    if members:
        return "" if value is not None else "none"
    if value is None:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _limit(rule: Any) -> str:
    for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
        if (bound := getattr(rule, name, None)) is not None:
            return f"{sign} {bound:g}" if bound < 2**53 else ""
    return ""


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in arguments if part is not type(None))
    if origin is tuple:
        return f"list of {_kind(arguments[0])}" if arguments else "list"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""), "path" if annotation is Path else str(annotation)
    )


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yields the sections that a type annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _tag(model: type[BaseModel]) -> str:
    field = model.model_fields.get("name")
    return ", ".join(map(str, get_args(field.annotation))) if field and get_origin(field.annotation) is Literal else ""
