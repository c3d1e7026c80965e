"""An evaluation as rows of tables."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from selftrain.flows.tables import share

if TYPE_CHECKING:
    from selftrain.flows.actions.measuring import Evaluation

SCORES = (
    "images", "accuracy", "95 % interval", "balanced", "NLL", "Brier", "ECE",
    "NLL tempered", "Brier tempered", "ECE tempered",
)  # fmt: skip


def interval(low: float, high: float) -> str:
    """71.9 … 90.7 %"""
    return f"{100 * low:.1f} … {100 * high:.1f} %"


def split_row(split: str, found: Mapping[str, Any]) -> dict[str, object]:
    """One split's scores, before and after temperature."""
    accuracy, tempered = found["accuracy_interval"], found["tempered"]
    return {
        "split": split,
        "images": found["count"],
        "accuracy": share(found["accuracy"]),
        "95 % interval": interval(accuracy["low"], accuracy["high"]),
        "balanced": share(found["balanced_accuracy"]),
        "NLL": f"{found['nll']:.4f}",
        "Brier": f"{found['brier']:.4f}",
        "ECE": f"{found['ece']:.4f}",
        "NLL tempered": f"{tempered['nll']:.4f}",
        "Brier tempered": f"{tempered['brier']:.4f}",
        "ECE tempered": f"{tempered['ece']:.4f}",
    }


def class_rows(measured: Mapping[str, Mapping[str, Any]]) -> list[dict[str, object]]:
    """Every class of the test images; of validation where there is no test set."""
    split, found = list(measured.items())[-1]
    return [
        {
            f"class ({split})": one["class"],
            "images": one["count"],
            "recall": share(one["recall"]),
            "precision": share(one["precision"]),
        }
        for one in found["per_class"]
    ]


def attack_rows(robustness: Mapping[str, Any]) -> list[dict[str, object]]:
    """Accuracy by the attack's step."""
    return [
        {
            "FGSM ε": f"{one['epsilon']:g}",
            "accuracy": share(one["accuracy"]),
            "95 % interval": interval(one["low"], one["high"]),
        }
        for one in robustness.get("attacks", ())
    ]


def corruption_rows(robustness: Mapping[str, Any]) -> list[dict[str, object]]:
    """Accuracy by corruption and severity."""
    return [
        {
            "corruption": name,
            **{f"severity {row['severity']}": share(row["accuracy"]) for row in rows},
            "mean": share(sum(row["accuracy"] for row in rows) / len(rows)),
        }
        for name, rows in robustness.get("corruptions", {}).items()
    ]


def corruption_sentence(found: "Evaluation") -> str:
    """The mean error under corruptions, and relative to the model that it was compared with."""
    relative = (found.compared or {}).get("mean_corruption_error")
    words = f"mean error under corruptions: {share(1 - mean_accuracy(found.robustness))}"
    if relative is None:
        return f"{words}; no model to relate it to"
    return f"{words}; mean corruption error relative to {found.against}: {relative:.1f} (100 is equal, less is better)"


def mean_accuracy(robustness: Mapping[str, Any]) -> float:
    """Over all corruptions and severities."""
    accuracies = [row["accuracy"] for rows in robustness["corruptions"].values() for row in rows]
    return float(sum(accuracies) / len(accuracies))


def comparison_sentence(found: "Evaluation") -> str:
    """How the model compares with the other one on the same images."""
    compared = found.compared or {}
    between, test = compared["difference_interval"], compared["mcnemar"]
    return (
        f"{found.model} against {found.against} on {compared['count']} {compared['split']} images: "
        f"{100 * compared['difference']:+.1f} points ({100 * between['low']:+.1f} … {100 * between['high']:+.1f}), "
        f"right where the other was wrong {test['gains']}, the reverse {test['losses']}, "
        f"McNemar p = {test['p_value']:.3g}"
    )
