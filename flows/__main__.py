"""The command `selftrain` (`python -m flows`): a signal ends it from its first instruction on."""

from flows.interruption import end_on_signals, leave


def main() -> None:
    """Listens to signals, then imports what the command line needs."""
    end_on_signals()
    try:
        from flows import cli

        cli.main()
    except KeyboardInterrupt:  # before or after a verb
        leave()


if __name__ == "__main__":
    main()
