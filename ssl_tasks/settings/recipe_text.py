"""Reads the text of a recipe or the value of a `--set`: YAML 1.2's core schema, limited in size, depth and length.

PyYAML follows YAML 1.1: it reads `off` as false, `12:30` as 750, `010` as 8 and `1e-3` as text, and keeps the last of
two equal keys. Here words are text unless they are `true`, `false` or `null`, and a repeated key is an error.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml import MappingNode, MarkedYAMLError, Node, ScalarNode

from selftrain.ssl_tasks.errors import cut
from selftrain.ssl_tasks.regular_file import read_regular

LARGEST_BYTES = 1 << 20
DEEPEST = 30  # levels of nested sections and lists
MOST_VALUES = 100_000  # a part counts as often as aliases repeat it
MOST_DIGITS = 100  # digits of a whole number

TAG = "tag:yaml.org,2002:"
MERGE = f"{TAG}merge"
SCHEMA = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", "<<", ["<"]),
)


class _Composer(yaml.SafeLoader):
    """PyYAML's reader with the core schema's scalars; it stops at parts that are nested too deeply."""

    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.depth > DEEPEST:
            raise MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.peek_event().start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_Composer.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in SCHEMA:
    _Composer.add_implicit_resolver(TAG + _kind, re.compile(f"^(?:{_pattern})$"), _first)

_TOO_DEEP = f"sections and lists lie more than {DEEPEST} deep in each other"


class _Dumper(yaml.SafeDumper):
    """Writes YAML that both schemas read alike, by quoting words that one of them would misread."""


for _kind, _pattern, _first in SCHEMA:
    _Dumper.add_implicit_resolver(TAG + _kind, re.compile(f"^(?:{_pattern})$"), _first)


def dump_values(values: Any) -> str:
    """Returns plain values as YAML."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def read_file(path: Path) -> str:
    """Reads a recipe's file; a ValueError says in one sentence why it cannot be read."""
    try:
        data = read_regular(path, LARGEST_BYTES)
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror or error})") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not text in UTF-8; save the file in that encoding") from error


def read_values(text: str) -> Any:
    """Parses a YAML text into plain values; a ValueError names the line and the problem in one sentence."""
    try:
        loader = _Composer(text)
        node = loader.get_single_node()
        return None if node is None else _Values().of(node)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(where + " ".join(str(error.problem or error.context).split())) from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (ValueError, OverflowError) as error:  # from PyYAML's own conversions
        raise ValueError("an escaped character or the version after %YAML is a number out of range") from error


class _Values:
    """Converts nodes into plain values and counts them, because aliases of aliases multiply a part without limit."""

    def __init__(self) -> None:
        self.count = 0
        self.within: list[Node] = []

    def of(self, node: Node) -> Any:
        self.count += 1
        if self.count > MOST_VALUES:
            raise _problem(node, f"with its aliases (*name) the text has more than {MOST_VALUES:,} values")
        if isinstance(node, ScalarNode):
            return _scalar(node)
        if any(one is node for one in self.within):
            raise _problem(node, "the part behind this anchor (&name) holds an alias of itself")
        if len(self.within) > DEEPEST:
            raise _problem(node, _TOO_DEEP)
        self.within.append(node)
        try:
            return self._mapping(node) if isinstance(node, MappingNode) else self._sequence(node)
        finally:
            self.within.pop()

    def _sequence(self, node: Node) -> list[Any]:
        _require_tag(node, "seq")
        return [self.of(item) for item in node.value]

    def _mapping(self, node: MappingNode) -> dict[str, Any]:
        _require_tag(node, "map")
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise _problem(key, "a list or a section stands where the name of a setting is expected")
            name = str(key.value)
            line = key.start_mark.line + 1
            if name in lines:
                raise _problem(key, f"{_short(name)} is set twice, in lines {lines[name]} and {line}; keep one of them")
            lines[name] = line
            if key.tag == MERGE:
                merged = self._merged(value)
            else:
                own[_text(key)] = self.of(value)
        return {**merged, **own}

    def _merged(self, node: Node) -> dict[str, Any]:
        """Returns the sections behind `<<`, of which an earlier one takes precedence."""
        found = self.of(node)
        sections = found if isinstance(found, list) else [found]
        merged: dict[str, Any] = {}
        for section in reversed(sections):
            if not isinstance(section, dict):
                raise _problem(node, "`<<` takes a section, or a list of sections")
            merged.update(section)
        return merged


def _scalar(node: ScalarNode) -> Any:
    kind, text = node.tag.removeprefix(TAG), node.value
    try:
        if kind in ("str", "merge"):
            return _text(node)
        if kind == "null":
            return None
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind == "int":
            if len(text) > MOST_DIGITS:
                raise _problem(node, f"a whole number of {len(text):,} digits; expected at most {MOST_DIGITS}")
            return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
        if kind == "float":
            return float(re.sub(r"\.(?=[inIN])", "", text))
    except (KeyError, ValueError) as error:
        raise _problem(node, f"found {_short(text)}, expected a value of the kind !!{kind}") from error
    raise _problem(node, f"the tag {_short(node.tag)} means nothing in a recipe; leave it out")


def _text(node: ScalarNode) -> str:
    text = str(node.value)
    if "\0" in text or (not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)):
        raise _problem(node, "the text holds a character that no file or terminal takes (\\0 or half of a pair)")
    return text


def _require_tag(node: Node, kind: str) -> None:
    if node.tag != TAG + kind:
        raise _problem(node, f"the tag {_short(node.tag)} means nothing in a recipe; leave it out")


def _problem(node: Node, sentence: str) -> MarkedYAMLError:
    return MarkedYAMLError(problem=sentence, problem_mark=node.start_mark)


def _short(text: str) -> str:
    return f"'{cut(text, 60)}'"
