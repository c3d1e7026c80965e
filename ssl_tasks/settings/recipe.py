"""Reads a recipe: parses the YAML, applies `--set a.b=c`, and reports all problems together."""

import json
import os
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from selftrain import configs
from selftrain.ssl_tasks.errors import ConfigError, cut, nearest
from selftrain.ssl_tasks.settings.overrides import (
    Override,
    overridden,
    parse_override,
    refuse_without_effect,
    shown,
    spread,
)
from selftrain.ssl_tasks.settings.recipe_text import read_file, read_values
from selftrain.ssl_tasks.settings.run_config import RunConfig, run_name

RESOLVED = "config.yaml"  # in a run's folder: every value of its recipe
WRITTEN = "recipe.json"  # in a run's folder: the recipe as it was written, with its overrides
BUILT_IN = Path(configs.__file__).parent
MOST_PROBLEMS = 10  # problems listed in one message


@dataclass(frozen=True)
class Recipe:
    """A validated configuration, with the origin of every value that is not a default."""

    config: RunConfig
    path: Path
    origins: Mapping[str, str]  # rounds.1.select.threshold → recipe, --set, --name
    written: Mapping[str, Any] | None = None  # {folder: start of relative paths, values: as written in the recipe}


def load_recipe(
    recipe: str | Path, overrides: Iterable[str] = (), name: str | None = None, fixed: Iterable[str] = ()
) -> Recipe:
    """Loads a recipe from a file or by the name of a built-in one (quickstart, cifar10/fixmatch), with overrides
    `a.b=c`.

    `name` is always text, even if YAML would read a number. `fixed` are the command's own overrides and come last. From
    a run's folder, the recipe is loaded as it was written, if that still gives the run's configuration.
    """
    path, overrides = find_recipe(recipe), list(overrides)
    if (written := _written(path)) is not None:
        return parse_recipe(written["values"], path, overrides, name, fixed, Path(written["folder"]))
    raw = _read(path)
    if _of_a_run(path):
        _refuse_more_rounds(raw, path, overrides)
    found = parse_recipe(raw, path, overrides, name, fixed)
    assert found.written is not None
    data = found.written["values"].get("data")
    if not isinstance(data, dict) or "source" not in data:
        raise ConfigError(
            f"{path} does not say where its images are: expected data.source, for example "
            "`data: {source: {name: folder, path: images}}`. `selftrain init FOLDER` writes a recipe for a folder"
        )
    return found


def parse_recipe(
    raw: Mapping[str, Any],
    path: Path,
    overrides: Iterable[str] = (),
    name: str | None = None,
    fixed: Iterable[str] = (),
    folder: Path | None = None,
) -> Recipe:
    """Parses a recipe from its raw values. Every round starts from `round:`; `rounds:` lists what each changes."""
    given, commands = [parse_override(text) for text in overrides], [parse_override(text) for text in fixed]
    own = [] if name is None else [Override("name", name)]
    folder = _folder(path) if folder is None else folder
    values = {"name": _run_name(path), **raw}
    origins = dict.fromkeys(leaves(overridden(values, [])), "recipe")
    for one in given:
        origins.update(dict.fromkeys([one.dotted, *leaves(one.value, one.dotted)], "--set"))
    origins |= {"name": "--name"} if own else {}
    try:
        written = overridden(values, [*given, *own])
        resolved = spread(written)
        refuse_without_effect([one for one in given if one.dotted != "name" or not commands], resolved)
        if commands:
            written = overridden(written, commands)
            resolved = spread(written)
            apart = [one for one in given if one.dotted.split(".")[0] not in ("name", "round", "rounds")]
            refuse_without_effect(apart, resolved, "this command")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    config = _validated(resolved, path, folder)
    return Recipe(config, path, origins, {"folder": str(folder), "values": written})


def _validated(values: Mapping[str, Any], path: Path, folder: Path) -> RunConfig:
    try:
        return RunConfig.model_validate(values, context={"folder": folder})
    except ValidationError as error:
        count = error.error_count()
        problems = [f"  {line}" for line in _problems(error)]
        if count > MOST_PROBLEMS:
            problems.append(f"  and {count - MOST_PROBLEMS} more")
        raise ConfigError(f"{path} has {count} problem{'s' if count > 1 else ''}:\n" + "\n".join(problems)) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = read_values(read_file(path))
    except ValueError as error:
        raise ConfigError(f"{path} is not a YAML recipe: {error}") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a {type(raw).__name__}, expected sections such as `data:` and `teacher:`")
    return raw


def _of_a_run(path: Path) -> bool:
    return path.name == RESOLVED and (path.parent / "run.json").is_file()


def _written(path: Path) -> dict[str, Any] | None:
    """Returns the recipe of a run as it was written; None if it is unknown or now gives another configuration."""
    file = path.parent / WRITTEN
    if not (_of_a_run(path) and file.is_file()):
        return None
    try:
        written = json.loads(file.read_text())
        now = parse_recipe(written["values"], path, folder=Path(written["folder"])).config
        return written if now == _validated(_read(path), path, path.parent) else None
    except (ConfigError, OSError, ValueError, KeyError, TypeError):
        return None


def _refuse_more_rounds(raw: Mapping[str, Any], path: Path, overrides: Iterable[str]) -> None:
    """Refuses additional rounds of a resolved recipe, which does not record the values they would start from."""
    rounds = len(raw.get("rounds") or ())
    for one in map(parse_override, overrides):
        if one.dotted == "rounds" and isinstance(one.value, int) and one.value > rounds:
            raise ConfigError(
                f"{one}: {path.parent} holds what its {rounds} rounds were, and not the recipe that a further one "
                f"would start from; give the recipe's file, or change rounds.1 to rounds.{rounds}"
            )
        if one.dotted.split(".")[0] == "round":
            raise ConfigError(
                f"{one}: {path.parent} holds its rounds written out, and not the recipe with its `round:`; "
                f"name each round, for example --set rounds.1.{cut(one.dotted.partition('.')[2])}={cut(str(one.value))}"
            )


def find_recipe(name: str | Path) -> Path:
    """Finds a recipe's file by a path, a run's folder, or the name of a built-in recipe."""
    path = Path(name)
    if os.path.isdir(path):  # unlike Path.is_dir, this accepts names that are too long
        path = path / RESOLVED
    if os.path.isfile(path):
        return path.absolute()
    if os.path.isdir(name):
        raise ConfigError(
            f"{name} is a folder and not a run's; expected a recipe. For a folder of images, `selftrain init {name}` "
            "writes one"
        )
    if os.path.exists(name):
        raise ConfigError(f"{name} is not a YAML recipe: it is a pipe or a device; expected a file")
    built_in = {recipe: file for file in _built_in() for recipe in [_recipe_name(file)]}
    known = str(name).removeprefix("configs/").removesuffix(".yaml")
    if known in built_in:
        return built_in[known]
    raise ConfigError(
        f"no recipe '{cut(str(name), 200)}': there is no such file here, nor a built-in recipe."
        + nearest(cut(known), built_in)
    )


def values_with_origin(recipe: Recipe) -> list[tuple[str, Any, str]]:
    """Yields every value of the resolved configuration as (dotted name, value, default | recipe | --set | --name)."""
    rows = []
    for dotted, value in leaves(recipe.config.model_dump(mode="json")).items():
        parts = dotted.split(".")
        spellings = [dotted] + ([".".join(["round", *parts[2:]])] if parts[0] == "rounds" else [])
        origin = next((recipe.origins[one] for one in spellings if one in recipe.origins), "default")
        rows.append((dotted, value, origin))
    return rows


def _built_in() -> list[Path]:
    return sorted(BUILT_IN.rglob("*.yaml"))


def _recipe_name(file: Path) -> str:
    return str(file.relative_to(BUILT_IN)).removesuffix(".yaml")


def _run_name(path: Path) -> str:
    return run_name(_recipe_name(path) if path in _built_in() else path.stem)


def _folder(path: Path) -> Path:
    """Returns the folder where relative paths of a recipe start: its own; for built-in recipes the current one."""
    return Path.cwd() if path in _built_in() else path.parent


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested values into {dotted name: value}; items of a list of sections count from 1, as rounds do."""
    if isinstance(value, dict) and value:
        pairs = ((str(name), inner) for name, inner in value.items())
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        pairs = ((str(index), inner) for index, inner in enumerate(value, 1))
    else:
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, inner in pairs:
        found.update(leaves(inner, f"{prefix}.{name}" if prefix else name))
    return found


def _problems(error: ValidationError) -> Iterable[str]:
    """Yields one line per problem: its place, the value found, and the value expected."""
    listed: set[type[BaseModel] | None] = set()  # sections whose settings a line has named already
    for item in error.errors(include_url=False)[:MOST_PROBLEMS]:
        where, owner = _locate(item["loc"])
        if item["type"] == "extra_forbidden":
            fields = owner.model_fields if owner else ()
            hint = nearest(cut(str(item["loc"][-1])), fields)
            yield f"{where}: unknown setting." + (hint.partition(" Known:")[0] if owner in listed else hint)
            listed.add(owner)
        elif item["type"] == "union_tag_invalid":
            known = [tag.strip().strip("'") for tag in item["ctx"]["expected_tags"].split(",")]
            tag = cut(str(item["ctx"]["tag"]))
            yield f"{where}.name: unknown name '{tag}'." + nearest(tag, known)
        elif item["type"] == "union_tag_not_found":
            assert owner is not None
            yield _without_name(where, item["input"], owner)
        else:
            yield f"{where}: found {shown(item['input'])}; {item['msg'][0].lower()}{item['msg'][1:]}"


def _without_name(where: str, given: Mapping[str, Any], owner: type[BaseModel]) -> str:
    """Describes a section without a name whose settings the default does not have."""
    field = owner.model_fields[where.rpartition(".")[2]]
    default = field.default
    fitting = [name for name, kind in _members(field.annotation).items() if given.keys() <= kind.model_fields.keys()]
    foreign = [cut(str(name)) for name in given if name not in type(default).model_fields]
    if not fitting:
        return f"{where}.{foreign[0]}: unknown setting." + nearest(foreign[0], type(default).model_fields)
    head = f"{where}: '{default.name}', the default, has no setting '{foreign[0]}'"
    return f"{head}; set {where}.name, too, to one that has: {', '.join(fitting)}."


def _locate(location: tuple[int | str, ...]) -> tuple[str, type[BaseModel] | None]:
    """Returns the dotted name of a problem, without pydantic's names of union members, and its section."""
    here: Any = RunConfig
    owner: type[BaseModel] | None = RunConfig
    words: list[str] = []
    for part in location:
        if isinstance(part, str) and (member := _member(here, part)):
            here = owner = member
            continue
        counts = words == ["rounds"] and isinstance(part, int)
        words.append(str(int(part) + 1) if counts else cut(str(part)))
        if isinstance(here, type) and issubclass(here, BaseModel):
            owner = here
            field = here.model_fields.get(str(part))
            here = field.annotation if field else None
        elif get_origin(here) is tuple:
            here = get_args(here)[0]
    return ".".join(words), owner


def _member(union: Any, tag: str) -> type[BaseModel] | None:
    """Returns the member of a discriminated union with the given tag."""
    return _members(union).get(tag)


def _members(union: Any) -> dict[str, type[BaseModel]]:
    """Returns the members of a discriminated union by their names; empty for other types."""
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    if get_origin(union) not in (Union, types.UnionType):
        return {}
    members = (one for one in get_args(union) if isinstance(one, type) and issubclass(one, BaseModel))
    named = ((one, one.model_fields["name"]) for one in members if "name" in one.model_fields)
    return {name: one for one, field in named for name in get_args(field.annotation)}
