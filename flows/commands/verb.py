"""How a verb is added to the command line."""

import argparse
from collections.abc import Callable

Verb = Callable[[argparse.Namespace], int | None]


class Verbs:
    """`verbs.add("status", function, "how a run stands")` returns the verb's parser, for its own arguments."""

    def __init__(self, parsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        self.parsers = parsers

    def add(self, name: str, function: Verb, help_line: str) -> argparse.ArgumentParser:
        """Adds one verb."""
        description = help_line[0].upper() + help_line[1:] + "."
        parser = self.parsers.add_parser(name, help=help_line, description=description)
        parser.set_defaults(verb=function)
        return parser
