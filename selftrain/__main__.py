"""The command `selftrain` (`python -m selftrain`): a signal ends it from its first instruction on."""

from selftrain.flows.rounds.interruption import end_on_signals, leave


def main() -> None:
    """Listens to signals, then imports what the command line needs."""
    end_on_signals()
    try:
        from selftrain.flows.cli import main as cli

        cli.main()
    except KeyboardInterrupt:  # before or after a verb
        leave()


if __name__ == "__main__":
    main()
