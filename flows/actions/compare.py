"""Compares runs, or a grid of methods × label budgets × seeds, paired on the same test images.

Each cell of a grid is a run of its own. Cells run one after the other here, or side by side on the machines of a Ray
cluster.
"""

import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from selftrain.flows.actions.verbs import run
from selftrain.flows.environment import Workspace, make_workspace, set_environment, workspace_folder
from selftrain.ssl_tasks.errors import ConfigError, DataError, NotFound, SelftrainError
from selftrain.ssl_tasks.execution.cluster import spread
from selftrain.ssl_tasks.report.page import Comparison, Point
from selftrain.ssl_tasks.settings.recipe import Recipe, load_recipe
from selftrain.ssl_tasks.settings.run_config import RunConfig
from selftrain.ssl_tasks.store.artifacts import Artifact, verified
from selftrain.ssl_tasks.store.runs import Run, find_run
from selftrain.ssl_tasks.tracking.spool import without_password

if TYPE_CHECKING:
    import numpy as np


TOLD = (
    "PREFECT_API_URL",
    "MLFLOW_TRACKING_URI",
)  # variables sent to Ray's workers; a server's password is in their own environment
PASSWORD = "PREFECT_API_AUTH_STRING"  # also sent if the API is our own, which has a new password at each start


def run_cells(cells: Sequence[Recipe], workspace: Path, prefect: bool) -> list[Run]:
    """Runs the recipes of a comparison and returns their runs in the same order; finished stages are reused."""
    workspace.mkdir(parents=True, exist_ok=True)
    set_environment(workspace)
    from selftrain.flows.prefect.server import prefect_api

    # One Prefect API serves all cells: a run uses an API that exists already.
    with prefect_api(workspace) if prefect else nullcontext():
        if cells[0].config.runtime.task_runner == "ray":
            return by_ray(cells, workspace, prefect)
        return [run(cell, workspace=workspace, prefect=prefect) for cell in cells]


def by_ray(cells: Sequence[Recipe], workspace: Path, prefect: bool) -> list[Run]:
    """Runs every cell as a task of the Ray cluster, which shares the workspace with this machine."""
    from selftrain.flows.prefect.server import server_in_use

    mark = workspace / f"seen-{uuid4().hex}"
    told = TOLD if server_in_use(workspace) else (*TOLD, PASSWORD)
    shared = {
        "workspace": str(workspace.absolute()),
        "mark": mark.name,
        "prefect": prefect,
        "parent": flow_run_of_ours() if prefect else "",
        "environment": {name: os.environ[name] for name in told if name in os.environ},
    }
    asked = [(number, cell.config.model_dump(mode="json")) for number, cell in enumerate(cells)]
    mark.touch()
    try:
        ids = dict(spread("selftrain.flows.actions.compare:run_cell", shared, asked, cells[0].config.runtime))
    finally:
        mark.unlink()
    return [find_run(workspace, ids[number]) for number in range(len(cells))]


def run_cell(shared: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Runs one cell on a Ray worker and returns the id of its run."""
    workspace = Path(shared["workspace"])
    if not (workspace / shared["mark"]).exists():
        raise ConfigError(
            f"{workspace} on {socket.gethostname()} is not the workspace of this comparison; expected one workspace "
            "for all machines. Put it on a disk that all of them mount under the same path"
        )
    os.environ.update(shared["environment"])
    set_environment(workspace)
    if shared["prefect"]:
        refuse_unreachable(os.environ["PREFECT_API_URL"])
    cell = Recipe(RunConfig.model_validate(config), workspace, {})
    with within(shared["parent"]):
        return run(cell, workspace=workspace, prefect=shared["prefect"]).id


def flow_run_of_ours() -> str:
    """Returns the id of the current flow run; empty outside of a flow run."""
    from prefect.runtime import flow_run

    return str(flow_run.get_id() or "")


def within(flow_run: str) -> AbstractContextManager[None]:
    """Makes runs in this block children of the given flow run, if there is one."""
    if not flow_run:
        return nullcontext()
    from selftrain.flows.prefect.flow import child_of

    return child_of(flow_run)


def refuse_unreachable(url: str) -> None:
    """Raises ConfigError if the Prefect API cannot be reached, because each worker would then start its own."""
    from selftrain.flows.prefect.server import check_reachable

    try:
        check_reachable(url)
    except SelftrainError as error:
        raise ConfigError(
            f"Ray's worker on {socket.gethostname()} cannot reach the Prefect API at {without_password(url)}. Set "
            "PREFECT_API_URL to a server that all machines reach, or run without Prefect: --no-prefect"
        ) from error


Split = Literal["test", "validation"]
PAIRED = ("images", "difference", "low", "high", "gains", "losses", "p")


def compare_runs(names: Sequence[str], workspace: Workspace = None) -> Comparison:
    """Compare runs with the first one, on the same images; returns a table with a row for each run.

    A row has the accuracies of the best round with intervals, the cost, the difference to the first run with a paired
    bootstrap interval, and McNemar's p. They are computed on the test images, or on validation without a test set.
    Gains are images that only this run classifies correctly, losses those that only the first run does. If a run was
    tested on different images, these columns are empty and `note` says why.
    """
    import pandas as pd

    if len(names) < 2:
        raise ConfigError(f"found {len(names)} run to compare; expected two or more. The first is the reference")
    runs = [find_run(workspace_folder(workspace), name) for name in names]
    first = _evaluation(runs[0])
    split = _split(first)
    rows = [{**_line(runs[0]), **dict.fromkeys(PAIRED), "note": "the reference"}]
    rows += [{**_line(one), **_paired(first, _evaluation(one), split)} for one in runs[1:]]
    names_of = [one.info["name"] for one in runs]
    return Comparison(
        kind="runs",
        title=" and ".join(dict.fromkeys(names_of)),
        asked={"runs": ", ".join(one.id for one in runs)},
        split=split,
        table=pd.DataFrame(rows),
        points=tuple((_point(one),) for one in runs),
    )


def _line(one: Run) -> dict[str, Any]:
    summary = _evaluation(one).summary
    line: dict[str, Any] = {"run": one.id, "round": best_round(one)}
    for split in ("validation", "test"):
        low, high = summary[f"{split}_interval"] or (None, None)
        line |= {split: summary[f"{split}_accuracy"], f"{split}_low": low, f"{split}_high": high}
    return {**line, "seconds": cost(one)}


def best_round(one: Run) -> int:
    """Returns the round whose model was best on validation; raises NotFound for an unfinished run."""
    if "best_round" not in one.summary:
        state = one.info["state"]
        raise NotFound(
            f"run {one.id} is {state} and has no best round yet; expected a run that is done. See: "
            f"selftrain status {one.id}"
        )
    return int(one.summary["best_round"])


def cost(one: Run) -> float:
    """Returns the seconds that computing the stages of a run took, in this run or in an earlier one."""
    artifacts = [one.artifact(stage.name) for stage in one.stages()]
    return round(sum(artifact.manifest["seconds"] for artifact in artifacts if artifact is not None), 3)


def _evaluation(one: Run) -> Artifact:
    number = best_round(one)
    evaluation = one.rounds()[number].evaluation
    if evaluation is None:
        raise NotFound(
            f"the evaluation of round {number} of run {one.id} is no longer in the store. Compute it "
            f"again: selftrain rerun {one.id}"
        )
    return verified(evaluation)


def _split(evaluation: Artifact) -> Split:
    """Returns the split on whose images models are compared."""
    return "test" if evaluation.summary["test_count"] else "validation"


def _point(one: Run, seed: int | None = None) -> Point:
    summary = _evaluation(one).summary
    return Point(one.id, seed, summary["validation_accuracy"], summary["test_accuracy"], cost(one))


def _paired(first: Artifact, other: Artifact, split: Split) -> dict[str, Any]:
    """Compares a run with the first one on the same images; if the images differ, a note says so."""
    from selftrain.ssl_tasks.evaluation.comparison import compare_evaluations

    empty: dict[str, Any] = dict.fromkeys(PAIRED)
    try:
        found = compare_evaluations(first, other, split)
    except DataError:
        return {**empty, "note": "tested on different images than the first run"}
    return {**_columns(found), "note": None if found["count"] else "no labelled image to test on"}


def _columns(found: dict[str, Any]) -> dict[str, Any]:
    """Returns a paired comparison as columns of the table."""
    if not found["count"]:
        return dict.fromkeys(PAIRED)
    between, test = found["difference_interval"], found["mcnemar"]
    line = {"images": found["count"], "difference": found["difference"], "low": between["low"], "high": between["high"]}
    return {**line, "gains": test["gains"], "losses": test["losses"], "p": test["p_value"]}


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    method: str
    labels: int
    seed: int
    run: Run


AXES = ("method", "labels", "seed")


def compare_methods(
    recipe: str | Path,
    methods: Sequence[str] = (),
    labels: Sequence[int] = (),
    seeds: Sequence[int] = (0,),
    overrides: Iterable[str] = (),
    workspace: Workspace = None,
    prefect: bool = True,
) -> Comparison:
    """Train a recipe's teacher with every method, label budget and seed, and compare them: mean ± std over seeds.

    Each combination is a run without rounds; finished runs are reused. A seed also determines the split. The paired
    columns compare with the first method on the same images, those of all seeds together.
    With `prefect`, the cells are the children of one flow run.
    """
    overrides = list(overrides)
    planned = list(_planned(recipe, methods, labels, seeds, overrides))
    folder, title = workspace_folder(workspace), load_recipe(recipe, overrides).config.name
    axes = {name: ", ".join(dict.fromkeys(str(cell[at]) for cell in planned)) for at, name in enumerate(AXES)}
    asked = {"recipe": str(recipe), **({"overrides": ", ".join(overrides)} if overrides else {}), **axes}

    def answer() -> Comparison:
        runs = run_cells([cell for _, _, _, cell in planned], folder, prefect)
        cells = [Cell(method, count, seed, one) for (method, count, seed, _), one in zip(planned, runs, strict=True)]
        return _comparison(title, asked, cells)

    if not prefect:
        return answer()
    make_workspace(folder)
    set_environment(folder)
    from selftrain.flows.prefect.server import prefect_api

    with prefect_api(folder):
        from selftrain.flows.prefect.flow import compare_as_flow

        words = f"compare {title}: {axes['method']} · {axes['labels']} labels · seed {axes['seed']}"
        return compare_as_flow(answer, words, asked)


def _comparison(title: str, asked: dict[str, str], cells: Sequence[Cell]) -> Comparison:
    """Returns the comparison with a row for each method and label budget."""
    import pandas as pd

    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.method, cell.labels), []).append(cell)
    reference, split = cells[0].method, _split(_evaluation(cells[0].run))
    lines = [_group(group, groups[reference, group[0].labels], split) for group in groups.values()]
    return Comparison(
        kind="methods",
        title=title,
        asked=asked,
        split=split,
        table=pd.DataFrame(lines),
        points=tuple(tuple(_point(cell.run, cell.seed) for cell in group) for group in groups.values()),
    )


def _planned(
    recipe: str | Path, methods: Sequence[str], labels: Sequence[int], seeds: Sequence[int], overrides: list[str]
) -> Iterator[tuple[str, int, int, Recipe]]:
    """Yields the method, label budget, seed and recipe of every cell; a wrong recipe is refused here."""
    config = load_recipe(recipe, overrides).config
    own, budget = config.teacher.method.name, config.data.split.labels_per_class
    counts = labels or ([] if budget is None else [budget])
    if not counts:
        raise ConfigError(
            "this recipe does not set data.split.labels_per_class; expected the label budgets to compare: --labels 5,10"
        )
    grid = product(dict.fromkeys(counts), dict.fromkeys(seeds), dict.fromkeys(methods or [own]))
    for count, seed, method in grid:
        changes = ["rounds=[]", f"seed={seed}", f"data.split.seed={seed}"]
        changes.append(f"data.split.labels_per_class={count}")
        if method != own:
            changes.append(f"teacher.method={{name: {method}}}")
        name = f"{config.name}-{method}-{count}-seed{seed}"
        yield method, count, seed, load_recipe(recipe, overrides, name, changes)


def _group(cells: Sequence[Cell], reference: Sequence[Cell], split: Split) -> dict[str, Any]:
    """Returns the row of cells that differ only in their seed, compared with those of the first method."""
    import numpy as np

    from selftrain.ssl_tasks.evaluation.comparison import compare_right

    line: dict[str, Any] = {"method": cells[0].method, "labels": cells[0].labels, "seeds": len(cells)}
    for name in ("validation", "test"):
        found = [_evaluation(cell.run).summary[f"{name}_accuracy"] for cell in cells]
        known = np.array([value for value in found if value is not None])
        line[name] = float(known.mean()) if len(known) else None
        line[f"{name}_std"] = float(known.std(ddof=1)) if len(known) > 1 else None
    line["seconds"] = round(float(np.mean([cost(cell.run) for cell in cells])), 3)
    if cells[0].method == reference[0].method:
        return {**line, **dict.fromkeys(PAIRED)}
    right = [np.concatenate([_right(cell.run, split) for cell in group]) for group in (reference, cells)]
    return {**line, **_columns(compare_right(right[0], right[1]))}


def _right(one: Run, split: Split) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Returns, for each image of a split, whether its class was predicted correctly."""
    from selftrain.ssl_tasks.evaluation.comparison import read_predictions

    table = read_predictions(_evaluation(one), split)
    return (table["predicted"] == table["label"]).to_numpy()
