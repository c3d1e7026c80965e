"""Reading a recipe: YAML, then `--set a.b=c`, then one validation that reports all problems together."""

import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

import configs
from ssl_tasks.config import RunConfig, run_name
from ssl_tasks.errors import ConfigError, nearest

RESOLVED = "config.yaml"
BUILT_IN = Path(configs.__file__).parent


@dataclass(frozen=True)
class Recipe:
    """A validated configuration, and for every value that is not a default, where it came from."""

    config: RunConfig
    path: Path
    origins: Mapping[str, str]  # rounds.1.select.threshold → recipe, --set, --name


def load_recipe(recipe: str | Path, overrides: Iterable[str] = (), name: str | None = None) -> Recipe:
    """A recipe from a file (or the name of a built-in one: quickstart, cifar10/fixmatch), with overrides `a.b=c`.

    A `name` for its runs is taken as it is: as an override, YAML would make a date of 2024-06-01.
    """
    path = find_recipe(recipe)
    try:
        raw = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a YAML recipe: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a {type(raw).__name__}, expected sections such as `data:` and `teacher:`")
    return parse_recipe(raw, path, overrides, name)


def parse_recipe(raw: Mapping[str, Any], path: Path, overrides: Iterable[str] = (), name: str | None = None) -> Recipe:
    """A recipe from its raw values. `round:` says what every round starts from; `rounds:` what each does otherwise."""
    values = {"name": _run_name(path), **raw}
    if "rounds" in values:
        values["rounds"] = _counted(values["rounds"], [])
    origins = dict.fromkeys(leaves(values), "recipe")
    for override in overrides:
        dotted, value = _parse_override(override)
        if dotted == "rounds":
            value = _counted(value, values.get("rounds"))
        _assign(values, dotted, value)
        origins[dotted] = "--set"
    if name is not None:
        values["name"], origins["name"] = name, "--name"
    template = values.pop("round", {})
    if isinstance(values.get("rounds"), (list, tuple)):
        values["rounds"] = [merged(template, one or {}) for one in values["rounds"]]
    elif "rounds" in values:
        what = "a number from 0 on, or a list of what each does otherwise"
        raise ConfigError(f"{path}: rounds: found {values['rounds']!r}; expected {what}")
    elif template:
        raise ConfigError(f"{path} has a `round:` but no `rounds:`; say how many, for example `rounds: 3`")
    try:
        config = RunConfig.model_validate(values, context={"folder": _folder(path)})
    except ValidationError as error:
        problems = "\n".join(f"  {line}" for line in _problems(error))
        count = error.error_count()
        raise ConfigError(f"{path} has {count} problem{'s' if count > 1 else ''}:\n{problems}") from error
    return Recipe(config, path, origins)


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, a run's folder, or the name of a built-in recipe."""
    path = Path(name)
    if path.is_dir():
        path = path / RESOLVED
    if path.is_file():
        return path.absolute()
    if Path(name).is_dir():
        raise ConfigError(
            f"{name} is a folder and not a run's; expected a recipe. For a folder of images, `selftrain init {name}` "
            "writes one"
        )
    built_in = {recipe: file for file in _built_in() for recipe in [_recipe_name(file)]}
    known = str(name).removeprefix("configs/").removesuffix(".yaml")
    if known in built_in:
        return built_in[known]
    raise ConfigError(
        f"no recipe '{name}': there is no such file here, nor a built-in recipe." + nearest(known, built_in)
    )


def merged(base: Any, over: Any) -> Any:
    """`over` on top of `base`, section by section; a section that names another method or source starts anew."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    if "name" in over and over["name"] != base.get("name", over["name"]):
        return over
    return {**base, **{name: merged(base[name], value) if name in base else value for name, value in over.items()}}


def values_with_origin(recipe: Recipe) -> list[tuple[str, Any, str]]:
    """Every value of the resolved configuration as (dotted name, value, default | recipe | --set | --name)."""
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
    """Where relative paths of a recipe start: its folder; for built-in recipes the current one."""
    return Path.cwd() if path in _built_in() else path.parent


def _parse_override(text: str) -> tuple[str, Any]:
    dotted, separator, value = text.partition("=")
    if not separator or not dotted:
        raise ConfigError(f"--set {text}: expected a.b=value, for example --set rounds.0.select.threshold=0.9")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: '{value}' is not a YAML value") from error
    if isinstance(parsed, str) and "/" in parsed and Path(parsed).expanduser().exists():
        parsed = str(Path(parsed).expanduser().absolute())  # a path typed in a shell starts from the current folder
    return dotted.strip(), parsed


def _counted(rounds: Any, given: Any) -> Any:
    """So many rounds: of those given fewer are cut off, more follow the template. Anything but a number stays."""
    if type(rounds) is not int or rounds < 0:
        return rounds
    known = list(given[:rounds]) if isinstance(given, (list, tuple)) else []
    return [*known, *[{}] * (rounds - len(known))]


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Sets a nested value, making the sections on its way."""
    *sections, last = dotted.split(".")
    here: Any = values
    for depth, name in enumerate(sections):
        if isinstance(here, list):
            here = _item(here, name, dotted)
        else:
            if not isinstance(here.get(name), (dict, list)):
                here[name] = {}
            here[name] = here = here[name].copy()  # never through a YAML anchor that other sections share
        if not isinstance(here, (dict, list)):
            raise ConfigError(f"--set {dotted}: '{'.'.join(sections[: depth + 1])}' is not a section")
    if isinstance(here, list):
        _item(here, last, dotted)
        here[int(last)] = value
    else:
        here[last] = value


def _item(items: list[Any], name: str, dotted: str) -> Any:
    if not name.isdigit() or int(name) >= len(items):
        raise ConfigError(f"--set {dotted}: '{name}' is not one of the {len(items)} rounds (they count from 0)")
    items[int(name)] = dict(items[int(name)] or {})
    return items[int(name)]


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values as {dotted name: value}."""
    if isinstance(value, dict) and value:
        pairs = ((str(name), inner) for name, inner in value.items())
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        pairs = ((str(index), inner) for index, inner in enumerate(value))
    else:
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, inner in pairs:
        found.update(leaves(inner, f"{prefix}.{name}" if prefix else name))
    return found


def _problems(error: ValidationError) -> Iterable[str]:
    """One line a problem: where, what was found, what was expected."""
    for item in error.errors(include_url=False):
        where, owner = _locate(item["loc"])
        if item["type"] == "extra_forbidden":
            fields = owner.model_fields if owner else ()
            yield f"{where}: unknown setting." + nearest(str(item["loc"][-1]), fields)
        elif item["type"] == "union_tag_invalid":
            known = [tag.strip().strip("'") for tag in item["ctx"]["expected_tags"].split(",")]
            yield f"{where}.name: unknown name '{item['ctx']['tag']}'." + nearest(str(item["ctx"]["tag"]), known)
        elif item["type"] == "union_tag_not_found":
            assert owner is not None
            yield _without_name(where, item["input"], owner)
        else:
            yield f"{where}: found {item['input']!r}; {item['msg'][0].lower()}{item['msg'][1:]}"


def _without_name(where: str, given: Mapping[str, Any], owner: type[BaseModel]) -> str:
    """A section that does not say what it is, and that is not the default: this has no such settings."""
    field = owner.model_fields[where.rpartition(".")[2]]
    default = field.default
    fitting = [name for name, kind in _members(field.annotation).items() if given.keys() <= kind.model_fields.keys()]
    foreign = [str(name) for name in given if name not in type(default).model_fields]
    if not fitting:
        return f"{where}.{foreign[0]}: unknown setting." + nearest(foreign[0], type(default).model_fields)
    head = f"{where}: '{default.name}', the default, has no setting '{foreign[0]}'"
    return f"{head}; set {where}.name, too, to one that has: {', '.join(fitting)}."


def _locate(location: tuple[int | str, ...]) -> tuple[str, type[BaseModel] | None]:
    """The dotted name of a problem, without pydantic's names of union members, and the section that it is in."""
    here: Any = RunConfig
    owner: type[BaseModel] | None = RunConfig
    words: list[str] = []
    for part in location:
        if isinstance(part, str) and (member := _member(here, part)):
            here = owner = member
            continue
        words.append(str(part))
        if isinstance(here, type) and issubclass(here, BaseModel):
            owner = here
            field = here.model_fields.get(str(part))
            here = field.annotation if field else None
        elif get_origin(here) is tuple:
            here = get_args(here)[0]
    return ".".join(words), owner


def _member(union: Any, tag: str) -> type[BaseModel] | None:
    """The member of a discriminated union that a tag names."""
    return _members(union).get(tag)


def _members(union: Any) -> dict[str, type[BaseModel]]:
    """The members of a discriminated union by their names; none of anything else."""
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    if get_origin(union) not in (Union, types.UnionType):
        return {}
    members = (one for one in get_args(union) if isinstance(one, type) and issubclass(one, BaseModel))
    named = ((one, one.model_fields["name"]) for one in members if "name" in one.model_fields)
    return {name: one for one, field in named for name in get_args(field.annotation)}
