"""Defines the verb `completion`, which prints a script that completes verbs, options and file names in a shell.

The scripts are made from the parsers, so no list is kept twice. Completing a word starts no Python.
"""

from argparse import Action, ArgumentParser, Namespace
from collections.abc import Iterator
from shlex import quote

from selftrain.flows.cli.verb import Parser, Verbs

BASH = """_selftrain() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} verb= word words options
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $word in {verbs}) verb=$word; break ;; esac
    done
    case $verb in
{cases}
    esac
    [[ $current == -* ]] && words=$options
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _selftrain selftrain
"""
ZSH = """#compdef selftrain
_selftrain() {{
    local -a verbs=(
{verbs}
    )
    local verb= word
    for word in ${{words[2,CURRENT-1]}}; do
        [[ -n ${{verbs[(r)$word:*]}} ]] && verb=$word && break
    done
    case $verb in
{cases}
    esac
}}
compdef _selftrain selftrain
"""


def add_completion(verbs: Verbs) -> None:
    verb = verbs.add(
        "completion",
        _completion,
        "Print a script that completes verbs, options and file names in your shell.",
        ("completion bash >> ~/.bashrc", "for bash; for zsh: completion zsh >> ~/.zshrc, after the line with compinit"),
        ("completion fish > ~/.config/fish/completions/selftrain.fish", "for fish"),
    )
    verb.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")


def _completion(options: Namespace) -> None:
    from selftrain.flows.cli.main import parser

    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell](parser()), end="")


def _options(parser: ArgumentParser) -> Iterator[tuple[str, Action]]:
    """Yields the long options of a verb."""
    for action in parser._actions:
        for name in action.option_strings:
            if name.startswith("--"):
                yield name, action


def _choices(parser: ArgumentParser) -> list[str]:
    """Returns the words that a verb's argument can be, if they are few."""
    return [str(word) for action in parser._actions if not action.option_strings for word in action.choices or ()]


def _bash(top: Parser) -> str:
    known = {"''": top, **top.verbs()}
    cases = [
        f'        {name}) words="{" ".join(_choices(one))}"; options="{" ".join(name for name, _ in _options(one))}" ;;'
        for name, one in known.items()
    ]
    return BASH.format(verbs="|".join(top.verbs()), cases="\n".join(cases))


def _zsh(top: Parser) -> str:
    def arguments(one: ArgumentParser, rest: str) -> str:
        shown = [f"{name}[{_escaped(action.help)}]{_value(action)}" for name, action in _options(one)]
        return " ".join(quote(text) for text in [*shown, rest])

    verbs = [f"        {quote(f'{name}:{_line(one)}')}" for name, one in top.verbs().items()]
    cases = [f"        '') _arguments {arguments(top, '*:verb:{_describe verb verbs}')} ;;"]
    for name, one in top.verbs().items():
        words = _choices(one)
        rest = f"*:argument:({name} {' '.join(words)})" if words else "*:file:_files"
        cases.append(f"        {name}) _arguments {arguments(one, rest)} ;;")
    return ZSH.format(verbs="\n".join(verbs), cases="\n".join(cases))


def _value(action: Action) -> str:
    """Returns the value of an option in the notation of zsh's `_arguments`."""
    if action.nargs == 0:
        return ""
    words = f"({' '.join(map(str, action.choices))})" if action.choices else "_files"
    return f":{_escaped(str(action.metavar or action.dest))}:{words}"


def _escaped(text: str | None) -> str:
    return "".join(f"\\{letter}" if letter in "\\[]:" else letter for letter in text or "")


def _fish(top: Parser) -> str:
    first = "-n __fish_use_subcommand"
    lines = [f"complete -c selftrain {first} -f"]
    lines += [_fish_option(first, name, action) for name, action in _options(top)]
    for verb, one in top.verbs().items():
        lines.append(f"complete -c selftrain {first} -a {verb} -d {quote(_line(one))}")
        seen = f"-n '__fish_seen_subcommand_from {verb}'"
        lines += [_fish_option(seen, name, action) for name, action in _options(one)]
        if words := _choices(one):
            lines.append(f"complete -c selftrain {seen} -f -a {quote(' '.join(words))}")
    return "\n".join(lines) + "\n"


def _fish_option(condition: str, name: str, action: Action) -> str:
    value = "" if action.nargs == 0 else " -r"
    words = f" -f -a {quote(' '.join(map(str, action.choices)))}" if action.choices else ""
    return f"complete -c selftrain {condition} -l {name[2:]}{value}{words} -d {quote(action.help or '')}"


def _line(verb: ArgumentParser) -> str:
    return verb.description or ""
