"""The README's plot, drawn from result files: test accuracy of the teacher and of each round's student.

python docs/plots.py            writes docs/accuracy.png from benchmarks/results/{quickstart,cifar10}.json
"""

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OUTPUT = ROOT / "docs" / "accuracy.png"
BLUE, ORANGE, GREY, LIGHT = "#1a5fc4", "#c2571a", "#6b7075", "#c9cdd1"
CHAINS = {"noisy_student, 3 rounds": BLUE, "noisy_student, 3 rounds from mixmatch": ORANGE}


def main() -> None:
    """Draws the plot into its file."""
    drawn().savefig(OUTPUT, metadata={"Software": None})
    print(f"{OUTPUT.relative_to(ROOT)}: {OUTPUT.stat().st_size / 1000:.0f} kB")


def drawn() -> Figure:
    """Two panels side by side: the quickstart's seeds, and CIFAR-10's means."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), dpi=110, layout="constrained")
    draw_quickstart(left, read("quickstart"))
    draw_cifar10(right, read("cifar10"))
    for axes in (left, right):
        axes.set_xlim(-0.25, 3.25)
        axes.set_xticks(range(4), ["teacher", "round 1", "round 2", "round 3"])
        axes.set_ylabel("test accuracy, %")
        axes.grid(axis="y", color="#e4e6e8")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def read(name: str) -> dict[str, Any]:
    """One benchmark's result file."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return record


def draw_quickstart(axes: Axes, record: dict[str, Any]) -> None:
    """One thin line for each seed, and the mean of all."""
    lines = [[row["teacher"], row["student 1"], row["student 2"], row["student 3"]] for row in record["rows"]]
    for number, line in enumerate(lines):
        axes.plot(line, color=LIGHT, linewidth=1, label=f"{len(lines)} seeds" if number == 0 else None)
    means = [statistics.mean(column) for column in zip(*lines, strict=True)]
    axes.plot(means, color=BLUE, linewidth=2.2, marker="o", label="mean")
    number_points(axes, means, BLUE, below=False)
    axes.set_title("Digits, 50 labels (quickstart)", loc="left", fontsize=10.5)
    axes.set_ylim(85, 99)
    axes.legend(frameon=False, loc="lower right")


def draw_cifar10(axes: Axes, record: dict[str, Any]) -> None:
    """The two chains of students, and the two ends: one supervised network with few labels, and one with all."""
    rows = {row["arm"]: row for row in record["rows"]}
    for arm, colour in CHAINS.items():
        means = [float(one) for one in rows[arm]["models in turn"].split(" → ")]
        teacher = "MixMatch teacher" if arm.endswith("from mixmatch") else "supervised teacher"
        axes.plot(
            means, color=colour, linewidth=2.2, marker="o", label=f"{teacher}, mean of {rows[arm]['seeds']} seeds"
        )
        number_points(axes, means, colour, below=teacher.startswith("supervised"))
    for arm, words in (("supervised", "one network, 1,000 labels"), ("fully supervised", "one network, all labels")):
        accuracy = rows[arm]["accuracy %"]
        axes.axhline(accuracy, color=GREY, linewidth=1, linestyle="--")
        axes.annotate(f"{words}: {accuracy:.1f}", (3.2, accuracy), (0, 3), textcoords="offset points", ha="right",
                      fontsize=8.5, color=GREY)  # fmt: skip
    axes.set_title("CIFAR-10, 1,000 labels, a small budget", loc="left", fontsize=10.5)
    axes.set_ylim(52, 81)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.84))


def number_points(axes: Axes, values: list[float], colour: str, below: bool) -> None:
    """Each value beside its point."""
    for place, value in enumerate(values):
        axes.annotate(f"{value:.1f}", (place, value), (0, -13 if below else 7), textcoords="offset points", ha="center",
                      fontsize=8.5, color=colour)  # fmt: skip


if __name__ == "__main__":
    main()
