"""How a verb is added to the command line."""

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from selftrain.ssl_tasks.errors import nearest

Verb = Callable[[argparse.Namespace], int | None]


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistyped verb with the nearest one."""

    def error(self, message: str) -> NoReturn:
        if found := re.match(r"argument VERB: invalid choice: '?(.*?)'? \(choose from", message, re.DOTALL):
            known = next(one.choices for one in self._actions if one.metavar == "VERB") or ()
            tail = nearest(found[1][:100], map(str, known))
            self.exit(2, f"{self.prog}: no verb '{found[1][:100]}'.{tail} `{self.prog} --help` says what each does.\n")
        super().error(message)


class Version(argparse.Action):
    """`--version`; the version is looked up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version of selftrain, and end")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(parser.prog, version("selftrain"))
        parser.exit()


def add_workspace(parser: argparse.ArgumentParser) -> None:
    """`--workspace`, before the verb or after it: where it is absent it must not hide the other place's."""
    words = "store, runs and tracking (SELFTRAIN_HOME, or ./.selftrain)"
    parser.add_argument("--workspace", metavar="DIR", default=argparse.SUPPRESS, help=words)


class Verbs:
    """`verbs.add("status", function, "how a run stands")` returns the verb's parser, for its own arguments."""

    def __init__(self, parsers: "argparse._SubParsersAction[Parser]") -> None:
        self.parsers = parsers

    def add(self, name: str, function: Verb, help_line: str) -> argparse.ArgumentParser:
        """Adds one verb."""
        description = help_line[0].upper() + help_line[1:] + "."
        parser = self.parsers.add_parser(name, help=help_line, description=description)
        parser.set_defaults(verb=function)
        add_workspace(parser)
        return parser
