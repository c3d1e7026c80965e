"""The README, docs/results.md and the plot quote what the benchmarks put on file; docs/results.md quotes all of it."""

import importlib.util
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
Record = dict[str, Any]

FIGURES: dict[str, Callable[[Record], list[str]]] = {
    "cifar10": lambda r: cifar10_accuracies(r),
    "cifar10_ablations": lambda r: ablation_effects(r),
    "quickstart": lambda r: [f"{r['mean_teacher']:.1f} %", f"{r['mean_last_student']:.1f} %"],
    "methods_digits": lambda r: [f"{error:.1f} %" for error in digits_errors(r)],
    "fixmatch_digits": lambda r: [f"{r['mean_gain']:.1f} points", f"{r['least_gain']:.1f}"],
    "pseudo_label_digits": lambda r: [
        f"{r['rows'][0]['gain']:.1f} points",
        f"{r['rows'][0]['least gain']:.1f}",
        f"{100 * r['relative_gain']:.0f} %",
        f"{r['rows'][-1]['gain']:.1f} points",
    ],
    "target_precision": lambda r: [f"{100 * r['worst_broken']:.0f} %", f"{r['resamplings']}"],
    "selection": lambda r: [f"{side(r)['seconds']:.1f} s", f"{r['peak_gb']:.2f} GB", f"{side(r)['to_bare']:.2f}"],
    "train_step": lambda r: [f"{r['supervised ratio']:.2f}", f"{r['fixmatch ratio']:.2f}"],
    "method_step": lambda r: [f"{r['worst_ratio']:.2f}"],
    "data_stream": lambda r: [f"{r['strong_32_images_per_second']:,.0f}", f"{r['strong_32_ratio_to_torchvision']:.1f}"],
    "predict": lambda r: [f"{r['ratio']:.2f}"],
    "predict_scale": lambda r: (
        [f"{r['rows'][0][f'{stage}_seconds']:.0f} s" for stage in ("predict", "select")]
        + [f"{r['memory_growth_mb']:.0f} MB"]
    ),
    "ray_predict": lambda r: [f"{r['two_nodes_to_one']:.2f}", f"{r['one_node_to_no_ray']:.2f}"],
    "looking": lambda r: [f"{r['slowest']:.1f} s"],
    "report_size": lambda r: [*page(r), f"{r['file MB']:.1f} MB"],
    "own_images": lambda r: [
        f"{r['seconds'] / 60:.1f} minutes",
        f"{r['mean_teacher']:.1f} % to {r['mean_last_student']:.1f} %",
    ],
    "estimate": lambda r: [f"{r[f'worst_{what}']:.2f}" for what in ("time", "memory", "disk")],
    "pipeline": lambda r: [f"{row['seconds']:.1f} s" for row in r["rows"][:2]],
}
IN_README: dict[str, Callable[[Record], list[str]]] = {
    "quickstart": lambda r: [
        str(len(r["seeds"])),
        f"{r['mean_teacher']:.1f} %",
        f"{r['mean_last_student']:.1f} %",
        f"{statistics.median(row['seconds'] for row in r['rows']):.0f} s",
    ],
    "cifar10": lambda r: chain_of_students(r),
    "own_images": lambda r: [
        str(len(r["rows"])),
        f"{10 * r['labels']:,}",
        f"{r['mean_teacher']:.1f} %",
        f"{r['mean_last_student']:.1f} %",
        f"{r['seconds'] / 60:.0f} minutes",
    ],
}


def cifar10_accuracies(record: Record) -> list[str]:
    """Of single networks, and of the chain of students with what it costs."""
    rows = {row["arm"]: row for row in record["rows"]}
    arms = ("supervised", "fixmatch", "mixmatch", "mixmatch, 4 times the images", "fully supervised")
    single = [rows[arm] for arm in (*arms, "noisy_student, 3 rounds from mixmatch")]
    chain = rows["noisy_student, 3 rounds"]
    times = chain["CPU minutes"] / rows["supervised"]["CPU minutes"]
    return [*(f"{row['accuracy %']:.1f} %" for row in single), chain["models in turn"], f"{times:.1f} times"]


def chain_of_students(record: Record) -> list[str]:
    """Seeds, teacher, last student and time of three rounds of Noisy Student."""
    row = next(row for row in record["rows"] if row["arm"] == "noisy_student, 3 rounds")
    models = row["models in turn"].split(" → ")
    return [str(row["seeds"]), f"{models[0]} %", f"{models[-1]} %", f"{row['CPU minutes']:.0f} CPU minutes"]


def ablation_effects(record: Record) -> list[str]:
    """Returns the gain of three rounds over one, and the worst and best changes of one round."""
    effects = {row["arm"]: row["above 1 round"] for row in record["rows"]}
    changed = [effect for arm, effect in effects.items() if arm.startswith("1 round, ")]
    rounds = effects["noisy_student, 3 rounds"]
    return [f"{rounds:.1f} points", f"from {min(changed):.1f} to {max(changed):.1f} points"]


def digits_errors(record: Record) -> list[float]:
    """The ends, the best and the worst method between them; of DivideMix, which has all labels, and of its baseline."""
    errors = {row["method"]: row["error %"] for row in record["rows"]}
    named = [errors.pop(name) for name in ("supervised", "fully supervised", "dividemix", "supervised, 40 % wrong")]
    return [*named, min(errors.values()), max(errors.values())]


def side(record: Record) -> Record:
    """Our side of the largest selection."""
    ours: list[Record] = [row for row in record["rows"] if row["side"] == "select"]
    return ours[-1]


def page(record: Record) -> list[str]:
    """The report on a million predictions."""
    row = next(row for row in record["rows"] if row["predictions"] == 1_000_000)
    return [f"{row['seconds']:.1f} s", f"{row['peak GB']:.2f} GB", f"{row['file MB']:.1f} MB"]


def quoting_lines(page: str, name: str) -> list[str]:
    """The lines of a page that link to a result file."""
    return [line for line in (ROOT / page).read_text().splitlines() if f"results/{name}.md)" in line]


def test_the_results_page_quotes_every_result() -> None:
    quoted = set(re.findall(r"\(\.\./benchmarks/results/(\w+)\.md\)", PAGE.read_text()))
    assert quoted == {path.stem for path in RESULTS.glob("*.md")} == set(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_of_the_results_page_are_those_on_file(name: str) -> None:
    lines = quoting_lines("docs/results.md", name)
    missing = [figure for figure in FIGURES[name](record_of(name)) if not any(figure in line for line in lines)]
    assert not missing, f"the lines of docs/results.md on {name} lack {missing}"


@pytest.mark.parametrize("name", IN_README)
def test_the_figures_of_the_readme_are_those_on_file(name: str) -> None:
    (line,) = quoting_lines("README.md", name)
    missing = [figure for figure in IN_README[name](record_of(name)) if f"| {figure} |" not in line]
    assert not missing, f"the README's line on {name} lacks {missing}"


def test_the_readmes_words_on_cifar10_are_those_on_file() -> None:
    accuracies = {row["arm"]: f"{row['accuracy %']:.1f} %" for row in record_of("cifar10")["rows"]}
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"reaches {accuracies['fully supervised']} with all labels" in text
    assert f"with as many images reaches {accuracies['mixmatch, 4 times the images']} (2 seeds)" in text


def test_the_plot_shows_what_is_on_file(tmp_path: Path) -> None:
    """The curves of `docs/plots.py`, which draws docs/accuracy.png, are the numbers of the result files."""
    spec = importlib.util.spec_from_file_location("plots", ROOT / "docs" / "plots.py")
    assert spec is not None
    assert spec.loader is not None
    plots = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plots)
    figure = plots.drawn()
    left, right = figure.axes
    rows = record_of("quickstart")["rows"]
    for line, row in zip(left.lines, rows, strict=False):
        assert list(line.get_ydata()) == [row["teacher"], row["student 1"], row["student 2"], row["student 3"]]
    chain = next(row for row in record_of("cifar10")["rows"] if row["arm"] == "noisy_student, 3 rounds")
    assert " → ".join(f"{value:.1f}" for value in right.lines[0].get_ydata()) == chain["models in turn"]
    figure.savefig(tmp_path / "accuracy.png", metadata={"Software": None})
    with Image.open(tmp_path / "accuracy.png") as drawn, Image.open(ROOT / "docs" / "accuracy.png") as written:
        shades = [np.asarray(one.convert("L").resize((110, 40)), float) for one in (drawn, written)]
    assert np.abs(shades[0] - shades[1]).mean() < 2, "run `python docs/plots.py`: the results have changed"


def test_the_arithmetic_for_300_million_images_begins_with_the_rate_on_file() -> None:
    rate = statistics.median(row["stage_per_second"] for row in record_of("predict")["rows"])
    text = " ".join((ROOT / "docs" / "operations.md").read_text().split())
    hours = 300e6 / rate / 3600
    assert f"{rate:.0f} images a second on 2 cores" in text
    assert f"that is {hours:.0f} hours, with 100 such machines {hours / 100:.1f}." in text


def record_of(name: str) -> Record:
    """Reads the record of a benchmark."""
    record: Record = json.loads((RESULTS / f"{name}.json").read_text())
    return record
