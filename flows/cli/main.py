"""Runs the command `selftrain`: parses a command line, runs one verb, and turns errors into messages and exit codes.

Exit codes are listed in `selftrain.ssl_tasks.errors`. Logs go to stderr, results to stdout.
"""

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from selftrain.flows.cli import completion, data, labelling, looking, modelling, running, serving
from selftrain.flows.cli.verb import Formatter, Parser, Verbs, Version, add_workspace
from selftrain.flows.environment import refusal, workspace_folder
from selftrain.flows.rounds.interruption import end_on_signals, was_told
from selftrain.flows.tables import printable_lines
from selftrain.ssl_tasks.errors import Interrupted, SelftrainError, StageFailed, describe, out_of_space
from selftrain.ssl_tasks.execution.startup import own_process
from selftrain.ssl_tasks.store.locks import release

GROUPS = {  # in the order of --help, with the verbs that a newcomer needs first
    "prepare": (data.add_init, data.add_data, looking.add_config, data.add_doctor),
    "train": (
        running.add_run, looking.add_plan, running.add_rerun, running.add_approve, running.add_train,
        running.add_compare,
    ),
    "look into a run": (
        looking.add_status, looking.add_report, labelling.add_labels, labelling.add_sql, looking.add_lineage,
        looking.add_explain,
    ),
    "use a model": (modelling.add_predict, modelling.add_evaluate, modelling.add_export, modelling.add_weights),
    "schedule and share": (
        serving.add_up, serving.add_serve, serving.add_deploy, serving.add_init_server, serving.add_assist,
    ),
    "maintain": (running.add_clean, looking.add_sync, completion.add_completion),
}  # fmt: skip
PURPOSE = """Train an image classifier from a few labelled and many unlabelled images:
a teacher, then rounds of students that learn from pseudo-labels."""
EXIT_CODES = """exit codes:
  0    done
  2    invalid input: an option, a recipe, or the data; the message says what to change
  3    a stage failed, or another error that is not your input; the message names the log
  130  interrupted by Ctrl-C, SIGTERM or the end of the terminal

`selftrain VERB --help` shows the options and two examples of a verb."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code.

    Without `arguments`, the process's own command line is run, and the process ends here: freeing all that Prefect has
    imported would take another second.
    """
    if arguments is None:
        end_on_signals()  # for a program that imports us; `python -m selftrain` has done so already
        own_process()
        for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter shows its number instead
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
    code = answer(arguments)
    if arguments is None:
        sys.stdout.flush()
        sys.stderr.flush()
        release()
        os._exit(code)
    return code


def answer(arguments: Sequence[str] | None) -> int:
    """Runs one verb; an error becomes a message and an exit code, never a traceback."""
    options = parser().parse_args(arguments)
    _log_to_stderr()
    try:
        code = options.verb(options)
        sys.stdout.flush()
        return code or 0
    except KeyboardInterrupt:
        return _fail(f"interrupted{_how_to_continue(options, arguments, True)}", 130)
    except SelftrainError as error:
        ended = isinstance(error, (StageFailed, Interrupted))
        return _fail(f"{error}{_how_to_continue(options, arguments, ended)}", error.exit_code)
    except BrokenPipeError:  # the reader of a pipe (head, less) has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - a defect of ours: one line for the user, the traceback in a file
        if was_told():  # pydantic turns the KeyboardInterrupt of a signal into an error of its own
            return _fail(f"interrupted{_how_to_continue(options, arguments, True)}", 130)
        if out_of_space(error):
            return _fail(describe(error)["message"], 3)
        workspace = workspace_folder(options.workspace)
        if isinstance(error, OSError) and (said := refusal(error, workspace)):
            return _fail(said, 2)
        path = _write_crash(workspace)
        where = f"\ntraceback: {path}" if path else ""
        return _fail(f"unexpected {type(error).__name__}: {error}{where}", 3)


def parser() -> Parser:
    """Builds the parser of all verbs; it imports nothing heavy, so that --help is fast."""
    usage = "selftrain [-h] [--workspace DIR] [--version] VERB …"
    top = Parser(prog="selftrain", usage=usage, epilog=EXIT_CODES, formatter_class=Formatter)
    add_workspace(top)
    top.set_defaults(workspace=None)
    top.add_argument("--version", action=Version)
    verbs = Verbs(top.add_subparsers(prog="selftrain", metavar="VERB", required=True, help=argparse.SUPPRESS))
    lines = [PURPOSE, "", "first run: selftrain run quickstart"]
    for title, group in GROUPS.items():
        known = len(verbs.help_lines)
        for add in group:
            add(verbs)
        added = list(verbs.help_lines.items())[known:]
        lines += ["", f"{title}:", *(f"  {name:<12} {line.partition('. ')[0].rstrip('.')}" for name, line in added)]
    top.description = "\n".join(lines)
    return top


class _ToStderr(logging.StreamHandler):
    """Logs to the current stderr, which a progress bar replaces while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Lets an interruption pass that a signal handler raised while a line was written."""
        if isinstance(sys.exc_info()[1], Interrupted):
            raise
        super().handleError(record)


def _log_to_stderr() -> None:
    """Shows our own log; libraries that log to the root logger stay quiet."""
    logger = logging.getLogger("selftrain")
    if not logger.handlers:
        logger.addHandler(_ToStderr())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _fail(message: str, code: int) -> int:
    sys.stdout.flush()
    print(
        f"selftrain: {printable_lines(message)}", file=sys.stderr
    )  # a message may contain a file name or a class name
    return code


def _how_to_continue(options: argparse.Namespace, arguments: Sequence[str] | None, ended: bool) -> str:
    """Returns the advice about the run of this process; without a run, the same command if it was stopped or failed."""
    import shlex

    from selftrain.ssl_tasks.store.runs import advice, all_runs, owner

    if getattr(options, "makes_run", False):
        with contextlib.suppress(SelftrainError, OSError, ValueError):  # a second error must not hide the first
            ours = [run for run in all_runs(workspace_folder(options.workspace)) if owner().items() <= run.info.items()]
            if ours and (said := advice(ours[-1])):
                return f"\n{said}"
    again = shlex.join(["selftrain", *(sys.argv[1:] if arguments is None else arguments)])
    return f"\nresume with: {again}" if ended else ""


def _write_crash(workspace: Path) -> Path | None:
    """Writes the traceback into the workspace, else into the temporary folder; None if neither can be written."""
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (workspace / "logs", Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(traceback.format_exc())
            return folder / name
    return None
