"""MLflow's server as our child, with all of its processes: it dies with us, whatever kills us.

`python -m ssl_tasks.tracking.server WORDS` is `mlflow WORDS`, until standard input ends: the kernel closes that pipe.
"""

import os
import sys

from ssl_tasks.parent import end_group_after


def main() -> None:
    """In a process group of its own, started by `selftrain up`."""
    end_group_after(_standard_input_ends)
    from mlflow.cli import cli

    cli.main(prog_name="mlflow")


def _standard_input_ends() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass


if __name__ == "__main__":
    main()
