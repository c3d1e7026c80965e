"""The command `selftrain`: verbs in, one function of `selftrain.flows.actions.verbs` out.

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

from selftrain.flows.cli import data, labelling, looking, modelling, running, serving
from selftrain.flows.cli.verb import Parser, Verbs, Version, add_workspace
from selftrain.flows.environment import refusal, workspace_folder
from selftrain.flows.rounds.interruption import end_on_signals
from selftrain.flows.tables import printable_lines
from selftrain.ssl_tasks.errors import Interrupted, SelftrainError, StageFailed
from selftrain.ssl_tasks.execution.collection import own_process
from selftrain.ssl_tasks.store.process_lock import release

GROUPS = (data, running, looking, labelling, modelling, serving)  # in the order of --help


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code. The process's own command line ends the process with it, at once:
    to free all that Prefect has imported takes another second."""
    if arguments is None:
        end_on_signals()  # for whoever imports us; `python -m selftrain` has done so already
        own_process()
        for stream in (sys.stdout, sys.stderr):  # a terminal without a letter of ours is shown its number
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
    """One verb; no traceback ever reaches the user."""
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
    except Exception as error:  # noqa: BLE001 - a defect of ours; the user gets one line, we get the rest in a file
        from selftrain.ssl_tasks.execution.process import describe, out_of_space

        if out_of_space(error):
            return _fail(describe(error)["message"], 3)
        workspace = workspace_folder(options.workspace)
        if isinstance(error, OSError) and (said := refusal(error, workspace)):
            return _fail(said, 2)
        path = _write_crash(workspace)
        where = f"\nthe details are in {path}" if path else ""
        return _fail(f"unexpected {type(error).__name__}: {error}{where}", 3)


def parser() -> argparse.ArgumentParser:
    """All verbs; importing nothing heavy, so that --help answers at once."""
    top = Parser(
        prog="selftrain",
        description="A few labelled images and many unlabelled ones in, the best classifier they allow out.",
    )
    add_workspace(top)
    top.set_defaults(workspace=None)
    top.add_argument("--version", action=Version)
    parsers = top.add_subparsers(title="verbs", metavar="VERB", required=True)
    for add in (add for group in GROUPS for add in group.VERBS):
        add(Verbs(parsers))
    return top


class _ToStderr(logging.StreamHandler):
    """To what is stderr now: a progress bar takes its place while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """What a signal's handler raises while a line is written is no fault of the line, and must not be lost."""
        if isinstance(sys.exc_info()[1], Interrupted):
            raise
        super().handleError(record)


def _log_to_stderr() -> None:
    """Our own log alone: libraries that log to the root stay quiet."""
    logger = logging.getLogger("selftrain")
    if not logger.handlers:
        logger.addHandler(_ToStderr())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _fail(message: str, code: int) -> int:
    sys.stdout.flush()
    print(f"selftrain: {printable_lines(message)}", file=sys.stderr)  # it may name a file, or a class
    return code


def _how_to_continue(options: argparse.Namespace, arguments: Sequence[str] | None, ended: bool) -> str:
    """The advice about the run that this process made, else, where something was ended, the same command again."""
    import shlex

    from selftrain.ssl_tasks.store.advice import advice
    from selftrain.ssl_tasks.store.runs import all_runs, owner

    if getattr(options, "makes_run", False):
        with contextlib.suppress(SelftrainError, OSError, ValueError):  # it must not hide what has happened
            ours = [run for run in all_runs(workspace_folder(options.workspace)) if owner().items() <= run.info.items()]
            if ours and (said := advice(ours[-1])):
                return f"\n{said}"
    again = shlex.join(["selftrain", *(sys.argv[1:] if arguments is None else arguments)])
    return f"\ncontinue with: {again}" if ended else ""


def _write_crash(workspace: Path) -> Path | None:
    """In the workspace, else where temporary files go; None where neither may be written to."""
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (workspace / "logs", Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(traceback.format_exc())
            return folder / name
    return None
