"""Says when nothing is being learned from the unlabelled images, and which settings to change."""

import math

from selftrain.ssl_tasks.settings.section import Section
from selftrain.ssl_tasks.training.history import History

EARLY = 0.2  # of the run: by then a method should use some unlabelled images
COLLAPSE = 0.9  # share of pseudo-labels that one class may take
ENOUGH = 10  # images that must count in a step before their classes are judged


def diagnose(
    history: History, method: Section, steps: int, unlabeled_batch: int, largest_prior: float = 0.0
) -> dict[str, str]:
    """The warnings that a history gives rise to, by kind, after the first fifth of the run."""
    if not len(history) or history.column("step")[-1] < EARLY * steps:
        return {}
    findings = {
        "nothing_selected": _nothing_selected(history, method, steps),
        "collapsed": _collapsed(history, method, unlabeled_batch, largest_prior),
    }
    return {kind: finding for kind, finding in findings.items() if finding}


def _nothing_selected(history: History, method: Section, steps: int) -> str | None:
    rows = zip(history.column("step"), history.column("mask"), strict=True)
    early = [mask for step, mask in rows if step <= EARLY * steps and not math.isnan(mask)]
    if not early or max(early) > 0:
        return None
    threshold = getattr(method, "threshold", None)
    lower = f"lower method.threshold (now {threshold:g}), " if isinstance(threshold, float) and threshold else ""
    return (
        f"no unlabelled image counted in the first {EARLY:.0%} of the run (mask = 0): only the labelled images taught "
        f"it. To change that, {lower}raise train.steps (now {steps}) or train.learning_rate, or give more labels."
    )


def _collapsed(history: History, method: Section, unlabeled_batch: int, largest_prior: float) -> str | None:
    rows = zip(history.column("pseudo_largest_class"), history.column("mask"), strict=True)
    shares = [
        share
        for share, mask in rows
        if share == share and (1.0 if math.isnan(mask) else mask) * unlabeled_batch >= ENOUGH
    ]
    recent = shares[-max(1, len(shares) // 10) :]
    if not recent or sum(recent) / len(recent) <= max(COLLAPSE, largest_prior + (1 - largest_prior) / 2):
        return None
    known = type(method).model_fields
    align = "set method.distribution_alignment, " if "distribution_alignment" in known else ""
    raise_threshold = "raise method.threshold, " if "threshold" in known else ""
    return (
        f"one class takes {sum(recent) / len(recent):.0%} of the pseudo-labels: the model tells itself what it already "
        f"believes. To change that, {align}{raise_threshold}lower method.weight or train.learning_rate, or set "
        "train.class_balanced where the labels are imbalanced."
    )
