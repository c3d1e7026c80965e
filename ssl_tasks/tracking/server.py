"""MLflow's server as our child, with all of its processes: it dies with us, whatever kills us.

`python -m ssl_tasks.tracking.server WORDS` is `mlflow WORDS`, until standard input ends: the kernel closes that pipe.
"""

import os
import signal
import sys
import threading


def main() -> None:
    """In a process group of its own, started by `selftrain up`."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    from mlflow.cli import cli

    cli.main(prog_name="mlflow")


def _die_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
