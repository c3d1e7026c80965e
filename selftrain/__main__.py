"""Starts the command `selftrain` (`python -m selftrain`); signals end it from its first instruction on."""

from selftrain.flows.rounds.interruption import end_on_signals, leave, was_told


def main() -> None:
    """Listens to signals, then imports what the command line needs."""
    try:
        end_on_signals()  # a signal may come before its end
        from selftrain.flows.cli import main as cli

        cli.main()
    except BaseException as error:  # before or after a verb
        # If a signal comes while pydantic is imported, pydantic turns it into an error of its own.
        if isinstance(error, KeyboardInterrupt) or was_told():
            leave()
        raise


if __name__ == "__main__":
    main()
