"""Prefect's page of a run can be read in both of its UIs."""

from pathlib import Path

from selftrain.flows.prefect.flow import page_of
from tests.flows.tiny import last


def test_the_lineage_is_a_tree_that_needs_no_drawing_and_a_diagram(finished: Path) -> None:
    run = last(finished)
    _, _, below = page_of(run).partition("### Lineage of the best model\n\n")
    tree, _, diagram = below.partition("### The lineage as a diagram\n\n")
    best = run.rounds()[run.summary["best_round"]].model
    assert best is not None
    lines = tree.strip("\n").splitlines()
    assert all(line.startswith("    ") for line in lines), "one indented block"
    assert lines[0].split()[-1] == best.digest[:12]
    assert any("labeled · 40 images" in line for line in lines), "down to the labels of people"
    assert diagram.startswith("```mermaid\nflowchart LR\n")
    assert diagram.endswith("\n```")
