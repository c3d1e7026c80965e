"""Applies `--set a.b=c` to a recipe's values. Rounds count from 1; an override without effect is refused."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selftrain.ssl_tasks.errors import ConfigError, cut
from selftrain.ssl_tasks.settings.recipe_text import DEEPEST, read_values
from selftrain.ssl_tasks.settings.run_config import MOST_ROUNDS


@dataclass(frozen=True)
class Override:
    """One `--set`. `round.` addresses every round, `rounds.2.` the second one."""

    dotted: str
    value: Any

    def __str__(self) -> str:
        return f"--set {cut(self.dotted)}"


def parse_override(text: str) -> Override:
    """Parses `a.b=c`. An existing path is made absolute, because a path in a shell starts from the current folder."""
    dotted, separator, value = text.partition("=")
    if not separator or not all(dotted.split(".")):
        raise ConfigError(f"--set {cut(text)}: expected a.b=value, for example --set rounds.1.select.threshold=0.9")
    if dotted.count(".") > DEEPEST:
        raise ConfigError(f"--set {cut(text)}: no setting lies that deep")
    try:
        parsed = read_values(value)
    except ValueError as error:
        raise ConfigError(f"--set {cut(text)}: the part after = is not a YAML value: {error}") from error
    if isinstance(parsed, str) and "/" in parsed and os.path.exists(os.path.expanduser(parsed)):
        parsed = str(Path(os.path.expanduser(parsed)).absolute())
    return Override(dotted.strip(), parsed)


def overridden(values: Mapping[str, Any], overrides: Iterable[Override]) -> dict[str, Any]:
    """Returns a recipe's values with the overrides applied; `rounds: 3` becomes a list of three rounds."""
    result = dict(values)
    if "rounds" in result:
        result["rounds"] = _counted(result["rounds"], [])
    for one in overrides:
        value = _counted(one.value, result.get("rounds")) if one.dotted == "rounds" else one.value
        _assign(result, one, value)
    return result


def spread(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values with `round:` merged into each of the `rounds:`."""
    result = dict(values)
    template = result.pop("round", None)
    template = {} if template is None else template
    rounds = result.get("rounds")
    if not isinstance(template, dict):
        raise ConfigError(f"round: found {shown(template)}; expected a section with what every round starts from")
    if isinstance(rounds, (list, tuple)):
        result["rounds"] = [merged(template, {} if one is None else one) for one in rounds]
    elif "rounds" in result:
        what = f"a number from 0 to {MOST_ROUNDS}, or a list of what each round changes"
        raise ConfigError(f"rounds: found {shown(rounds)}; expected {what}")
    elif template:
        raise ConfigError("found a `round:` but no `rounds:`; say how many, for example `rounds: 3`")
    return result


def merged(base: Any, over: Any) -> Any:
    """Merges `over` into `base` by sections; a section with another method or source replaces the base's."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    if "name" in over and over["name"] != base.get("name", over["name"]):
        return over
    return {**base, **{name: merged(base[name], value) if name in base else value for name, value in over.items()}}


def refuse_without_effect(overrides: Sequence[Override], resolved: Mapping[str, Any], by: str = "") -> None:
    """Raises ConfigError for an override whose value is not in the resolved recipe, because something else sets it.

    `by` names the other setting, if it is known.
    """
    for one in overrides:
        first, *inner = one.dotted.split(".")
        if first == "round":
            _require_in_every_round(one, inner, resolved.get("rounds") or ())
        elif first == "rounds" and not inner and isinstance(one.value, int):
            if len(resolved["rounds"]) != one.value:
                raise _without_effect(one, by or "a later --set")
        elif not _holds(_at(resolved, [first, *inner]), one.value):
            raise _without_effect(one, by or "a later --set")


def _require_in_every_round(one: Override, inner: Sequence[str], rounds: Sequence[Any]) -> None:
    """Checks an override of all rounds; rounds with another method or source, which lack the setting, are skipped."""
    if not rounds:
        raise ConfigError(f"{one} has no effect: this recipe has no rounds; add --set rounds=1")
    found = {number: _at(settings, inner) for number, settings in enumerate(rounds, 1)}
    known = {number: value for number, value in found.items() if not isinstance(value, _Missing)}
    others = [number for number, value in (known or found).items() if not _holds(value, one.value)]
    if others:
        numbers = ", ".join(str(number) for number in others[:10]) + (", …" if len(others) > 10 else "")
        path = ".".join(["rounds", str(others[0]), *inner])
        raise ConfigError(
            f"{one} has no effect in round {numbers}: the recipe sets it there itself; name the round, "
            f"for example --set {cut(path)}={cut(str(one.value))}"
        )


def _without_effect(one: Override, by: str) -> ConfigError:
    return ConfigError(f"{one} has no effect: {by} sets the same to another value; leave one of them out")


class _Missing:
    """Marks a value at a path that does not exist."""


def _at(values: Any, path: Sequence[str]) -> Any:
    for name in path:
        if isinstance(values, (list, tuple)) and name in _numbers(values):
            values = values[int(name) - 1]
        elif isinstance(values, Mapping) and name in values:
            values = values[name]
        else:
            return _Missing()
    return values


def _holds(found: Any, asked: Any) -> bool:
    """Returns whether a value contains everything in `asked`; sections may contain more."""
    if isinstance(found, dict) and asked is None:
        return True
    if isinstance(found, dict) and isinstance(asked, dict):
        return all(name in found and _holds(found[name], value) for name, value in asked.items())
    if isinstance(asked, list) and isinstance(found, list):
        return len(found) == len(asked) and all(_holds(*pair) for pair in zip(found, asked, strict=True))
    return type(found) is type(asked) and bool(found == asked or (found != found and asked != asked))


def _counted(rounds: Any, given: Any) -> Any:
    """Returns the given number of rounds: extra ones are removed, missing ones added. Other values are unchanged."""
    if type(rounds) is not int or not 0 <= rounds <= MOST_ROUNDS:
        return rounds
    known = list(given[:rounds]) if isinstance(given, (list, tuple)) else []
    return [*known, *[{}] * (rounds - len(known))]


def _assign(values: dict[str, Any], one: Override, value: Any) -> None:
    """Sets a nested value and creates its sections. Sections are copied, because a YAML alias may share them."""
    *sections, last = one.dotted.split(".")
    here: Any = values
    for depth, name in enumerate(sections):
        if isinstance(here, list):
            at = _round_number(here, name, one) - 1
            here[at] = inner = {} if here[at] is None else here[at]
        else:
            inner = here.get(name)
            inner = {} if inner is None else inner
        path = ".".join(sections[: depth + 1])
        if isinstance(inner, list) and path != "rounds":
            raise ConfigError(f"{one}: {path} is a list; set it whole, --set {path}=[…]")
        if not isinstance(inner, (dict, list)):
            raise ConfigError(f"{one}: {cut(path)} is {shown(inner)}, not a section")
        inner = inner.copy()
        if isinstance(here, list):
            here[at] = inner
        else:
            here[name] = inner
        here = inner
    here[_round_number(here, last, one) - 1 if isinstance(here, list) else last] = value


def _round_number(rounds: Sequence[Any], name: str, one: Override) -> int:
    """Returns the index of a round named by its number; rounds count from 1, as in select-1 and student-1."""
    if name in _numbers(rounds):
        return int(name)
    raise ConfigError(f"{one}: '{cut(name)}' is not one of the {len(rounds)} rounds (they count from 1)")


def _numbers(rounds: Sequence[Any]) -> set[str]:
    return {str(number) for number in range(1, len(rounds) + 1)}


def shown(value: Any) -> str:
    """Formats a value for a message: as Python writes it, and shortened."""
    return cut(repr(value))
