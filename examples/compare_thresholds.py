"""Compares two thresholds with the library, without the command line. The teacher is trained once.

python examples/compare_thresholds.py [round.student.train.steps=60 …]
"""

import sys

from selftrain.flows.actions.looking import tables_of
from selftrain.flows.actions.verbs import run
from selftrain.ssl_tasks.pseudo_labels.inspection import class_summary


def main(changes: list[str]) -> None:
    """Runs the quickstart's first round with two thresholds and prints what each made of it."""
    for threshold in (0.3, 0.95):
        settings = ["rounds=1", f"round.select.threshold={threshold}", *changes]
        finished = run("quickstart", settings, name=f"threshold-{threshold}")
        last = finished.summary["rounds"][-1]  # the teacher's, if no pseudo-label was accepted
        print(f"{threshold}: {last['selected'] or 0} pseudo-labels, test accuracy {last['test_accuracy']:.3f}")
        summary = class_summary(tables_of(finished))
        print(summary[["name", "candidates", "kept", "true_precision"]].to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1:])
