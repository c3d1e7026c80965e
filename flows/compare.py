"""Runs side by side, paired on the same test images; and a grid of methods × label budgets × seeds to compare."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.environment import set_environment, workspace_folder
from flows.verbs import Workspace, run
from ssl_tasks.artifacts import Artifact
from ssl_tasks.errors import ConfigError, DataError, NotFound
from ssl_tasks.recipes import load_recipe
from ssl_tasks.runs import Run, find_run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def compare_runs(names: Sequence[str], workspace: Workspace = None) -> "pd.DataFrame":
    """A row for each run: its best round's accuracies with intervals, its cost, and how it differs from the first.

    The difference (with a paired bootstrap interval) and McNemar's p are over the test images, over validation where
    there is no test set. They are empty, and `note` says why, where a run was tested on other images than the first.
    """
    import pandas as pd

    if len(names) < 2:
        raise ConfigError(f"found {len(names)} run to compare; expected two or more, the first is the reference")
    runs = [find_run(workspace_folder(workspace), name) for name in names]
    first = _evaluation(runs[0])
    rows = [{**_line(runs[0]), **_paired(first, first, is_first=True)}]
    rows += [{**_line(one), **_paired(first, _evaluation(one))} for one in runs[1:]]
    return pd.DataFrame(rows)


def _line(one: Run) -> dict[str, Any]:
    summary = _evaluation(one).summary
    line: dict[str, Any] = {"run": one.id, "round": best_round(one)}
    for split in ("validation", "test"):
        low, high = summary[f"{split}_interval"] or (None, None)
        line |= {split: summary[f"{split}_accuracy"], f"{split}_low": low, f"{split}_high": high}
    return {**line, "seconds": cost(one)}


def best_round(one: Run) -> int:
    """The round whose model a run chose by validation; NotFound while it has not ended."""
    if "best_round" not in one.summary:
        raise NotFound(f"run {one.id} has not ended, so it has no best round; it is {one.info['state']}")
    return int(one.summary["best_round"])


def cost(one: Run) -> float:
    """Seconds that the stages of a run took when they were computed, in this run or in an earlier one."""
    artifacts = [one.artifact(stage.name) for stage in one.stages()]
    return round(sum(artifact.manifest["seconds"] for artifact in artifacts if artifact is not None), 3)


def _evaluation(one: Run) -> Artifact:
    number = best_round(one)
    evaluation = one.rounds()[number].evaluation
    if evaluation is None:
        raise NotFound(f"the evaluation of round {number} of run {one.id} is gone; run its recipe again")
    return evaluation


def _paired(first: Artifact, other: Artifact, is_first: bool = False) -> dict[str, Any]:
    from ssl_tasks.evaluation.comparison import compare_evaluations

    empty = {"difference": None, "low": None, "high": None, "p": None, "note": "the reference" if is_first else None}
    if is_first:
        return empty
    try:
        found = compare_evaluations(first, other, "test" if first.summary["test_count"] else "validation")
    except DataError:
        return {**empty, "note": "tested on other images than the first"}
    if not found["count"]:
        return {**empty, "note": "no image with a label to test on"}
    between = found["difference_interval"]
    paired = {"difference": found["difference"], "low": between["low"], "high": between["high"]}
    return {**paired, "p": found["mcnemar"]["p_value"], "note": None}


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    method: str
    labels: int
    seed: int
    run: Run


def compare_methods(
    recipe: str | Path,
    methods: Sequence[str] = (),
    labels: Sequence[int] = (),
    seeds: Sequence[int] = (0,),
    overrides: Iterable[str] = (),
    workspace: Workspace = None,
    prefect: bool = True,
) -> "pd.DataFrame":
    """A recipe's first model trained by every method, with every label budget, from every seed: mean ± std over seeds.

    Each cell is a run without rounds; cells that were run before are answered from the store. A seed draws the split
    as well. The paired columns compare with the first method on the same images, those of all seeds together.
    """
    import pandas as pd

    planned = list(_planned(recipe, methods, labels, seeds, list(overrides)))
    folder = workspace_folder(workspace)
    with _one_api(folder) if prefect else nullcontext():
        cells = [
            Cell(method, count, seed, run(recipe, changes, workspace=folder, prefect=prefect, command="compare"))
            for method, count, seed, changes in planned
        ]
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.method, cell.labels), []).append(cell)
    reference = cells[0].method
    return pd.DataFrame([_group(group, groups[reference, group[0].labels]) for group in groups.values()])


def _planned(
    recipe: str | Path, methods: Sequence[str], labels: Sequence[int], seeds: Sequence[int], overrides: list[str]
) -> Iterator[tuple[str, int, int, list[str]]]:
    """Every cell's method, budget and seed, and the overrides that make it; a wrong one is refused here."""
    config = load_recipe(recipe, overrides).config
    own, budget = config.teacher.method.name, config.data.split.labels_per_class
    counts = labels or ([] if budget is None else [budget])
    if not counts:
        raise ConfigError("this recipe does not set data.split.labels_per_class; say which budgets with --labels 5,10")
    for count, seed, method in product(counts, seeds, methods or [own]):
        changes = [*overrides, "rounds=[]", f"seed={seed}", f"data.split.seed={seed}"]
        changes += [f"data.split.labels_per_class={count}", f"name={config.name}-{method}-{count}-seed{seed}"]
        if method != own:
            changes.append(f"teacher.method={{name: {method}}}")
        load_recipe(recipe, changes)
        yield method, count, seed, changes


def _one_api(workspace: Path) -> AbstractContextManager[object]:
    """Prefect's API for all cells: a run starts none of its own where one is there."""
    workspace.mkdir(parents=True, exist_ok=True)
    set_environment(workspace)
    from flows.local_api import prefect_api

    return prefect_api(workspace)


def _group(cells: Sequence[Cell], reference: Sequence[Cell]) -> dict[str, Any]:
    """Cells that differ by their seed alone, against those of the first method."""
    import numpy as np

    from ssl_tasks.evaluation.paired import compare_right

    line: dict[str, Any] = {"method": cells[0].method, "labels": cells[0].labels, "seeds": len(cells)}
    for split in ("validation", "test"):
        found = [_evaluation(cell.run).summary[f"{split}_accuracy"] for cell in cells]
        known = np.array([value for value in found if value is not None])
        line[split] = float(known.mean()) if len(known) else None
        line[f"{split}_std"] = float(known.std(ddof=1)) if len(known) > 1 else None
    line["seconds"] = round(float(np.mean([cost(cell.run) for cell in cells])), 3)
    paired: dict[str, Any] = {"difference": None, "low": None, "high": None, "p": None}
    if cells[0].method != reference[0].method:
        right = [np.concatenate([_right(cell.run) for cell in group]) for group in (reference, cells)]
        compared = compare_right(right[0], right[1])
        if compared["count"]:
            paired = {"difference": compared["difference"], "p": compared["mcnemar"]["p_value"]}
            paired |= {side: compared["difference_interval"][side] for side in ("low", "high")}
    return {**line, **paired}


def _right(one: Run) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Whether each test image (validation, where there is none) was taken for what it is."""
    from ssl_tasks.evaluation.comparison import read_predictions

    evaluation = _evaluation(one)
    table = read_predictions(evaluation, "test" if evaluation.summary["test_count"] else "validation")
    return (table["predicted"] == table["label"]).to_numpy()
