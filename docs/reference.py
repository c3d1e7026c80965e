"""The generated pages of the documentation: every setting, every command and every function.

python docs/reference.py        writes configuration.md, commands.md and api.md beside this file
"""

import argparse
import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

import selftrain
from selftrain.flows.actions.reference import reference
from selftrain.flows.cli.main import parser

FOLDER = Path(__file__).parent

COMMANDS = """# Commands: what does each one do?

Generated from the command line itself by `python docs/reference.py`; a test keeps it true. `selftrain VERB --help`
prints the same. `--workspace DIR` may stand before or after the verb of any command. Results go to standard output,
progress and messages to standard error. Where a command takes `RUN`, it accepts an id, a unique prefix of one, a name,
or `last`.

| exit code | meaning |
|---|---|
| 0 | done |
| 2 | the input is wrong: a recipe, an option, a run that does not exist, images that cannot be used |
| 3 | a stage failed, or something else that is not the input: a full disk, a damaged file, a server that went away |
| 130 | interrupted by Ctrl-C, SIGTERM or the end of the terminal |
"""

API = """# Python API: which functions are there?

Generated from the signatures and docstrings by `python docs/reference.py`; a test keeps it true. All functions are
attributes of `selftrain`. They have the names and the defaults of the [commands](commands.md). `workspace` is a folder;
None means `SELFTRAIN_HOME`, or `.selftrain` in the current folder. Wrong input raises a `UserError`, and every other
failure a `SelftrainError`; both are in `selftrain.ssl_tasks.errors`. [Python](python.md) shows how to use them.
"""


def pages() -> dict[str, str]:
    """Each generated page by its file name."""
    return {
        "configuration.md": reference(),
        "commands.md": "\n".join([COMMANDS, *_commands()]),
        "api.md": "\n".join([API, *_functions()]),
    }


def _commands() -> Iterator[str]:
    verbs = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, verb in verbs.choices.items():
        yield f"## {name}\n\n{verb.description}\n\n```text\n{_usage(verb)}\n```\n"
        shown = [action for action in verb._actions if action.dest not in ("help", "workspace")]
        if shown:
            yield "\n".join(["| argument | meaning |", "|---|---|", *map(_argument, shown), ""])


def _usage(verb: argparse.ArgumentParser) -> str:
    """The usage that a verb states itself, else its positional arguments and its options in their order."""
    if verb.usage:
        return textwrap.dedent(verb.usage.replace("       selftrain", "selftrain"))
    required = [_name(action) for action in verb._actions if not action.option_strings]
    return " ".join([verb.prog, *required, "[options]"])


def _name(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper())
    if name.startswith("["):  # it says itself what it is made of
        return name
    many = {"?": f"[{name}]", "*": f"[{name} …]", "+": f"{name} …"}
    return many.get(str(action.nargs), name)


def _argument(action: argparse.Action) -> str:
    """A row of the table: how the argument is written, and its help."""
    words = _name(action)
    if action.option_strings:
        value = "" if action.nargs == 0 else f" {action.metavar or _choices(action) or action.dest.upper()}"
        words = f"{', '.join(action.option_strings)}{value}"
    help_text = (action.help or "").replace("%%", "%") % {"default": action.default}
    return "| `{}` | {} |".format(*(text.replace("|", "\\|") for text in (words, help_text))).replace("  ", " ")


def _choices(action: argparse.Action) -> str:
    return "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""


def _functions() -> Iterator[str]:
    for name in selftrain.__all__:
        function = getattr(selftrain, name)
        if not callable(function):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        assert isinstance(node, ast.FunctionDef), f"selftrain.{name} is not a function"
        returned = ast.unparse(node.returns).strip("'") if node.returns else "None"
        arguments = [*_arguments(node.args)]
        call = f"{name}({', '.join(arguments)}) -> {returned}"
        if len(call) > 100:
            call = f"{name}(\n" + "".join(f"    {one},\n" for one in arguments) + f") -> {returned}"
        yield f"## {name}\n\n```\n{call}\n```\n\n{inspect.getdoc(function)}\n"


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + list(arguments.defaults)
    for argument, default in zip(arguments.args, defaults, strict=True):
        kind = ast.unparse(argument.annotation) if argument.annotation else "Any"
        yield f"{argument.arg}: {kind}" + (f" = {ast.unparse(default)}" if default is not None else "")


if __name__ == "__main__":
    for file, text in pages().items():
        (FOLDER / file).write_text(text)
        print(f"docs/{file}: {text.count(chr(10)):,} lines")
