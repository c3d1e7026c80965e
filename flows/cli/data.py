"""Defines the verbs that prepare and check a run's input and machine: data, init, doctor."""

import json
from argparse import Namespace
from pathlib import Path

from selftrain.flows.cli.running import add_recipe
from selftrain.flows.cli.verb import JSON, Verbs
from selftrain.flows.environment import workspace_folder
from selftrain.flows.tables import print_table, printable, share


def add_data(verbs: Verbs) -> None:
    verb = verbs.add(
        "data",
        _data,
        "Check every image of a recipe: counts, unreadable files, duplicates, leaks.",
        ("data selftrain.yaml", "check your own images before the first run"),
        ("data selftrain.yaml --json", "the whole report, with every file name, as JSON"),
        exit_codes="0 no problem found · 2 invalid input, or a problem that a run would stop at · 130 interrupted",
    )
    add_recipe(verb)
    verb.add_argument("--labels", action="store_true", help="list given labels that features of the images contradict")
    verb.add_argument("--limit", metavar="N", type=int, default=20, help="with --labels: show at most N (default 20)")
    verb.add_argument("--json", action="store_true", help=f"{JSON}; it lists every file")


def add_init(verbs: Verbs) -> None:
    verb = verbs.add(
        "init",
        _init,
        "Write a recipe for a folder or table of your own images.",
        ("init images", "write selftrain.yaml for the class folders in images/"),
        ("init labels.csv --output birds.yaml", "write birds.yaml for a table with image paths and labels"),
    )
    words = "folder with one subfolder per class (and unlabeled/, test/), or a CSV or Parquet table"
    verb.add_argument("data", metavar="DATA", type=Path, help=words)
    verb.add_argument("--output", metavar="FILE", type=Path, help="recipe to write (default: selftrain.yaml)")
    words = "follow symbolic links to folders outside DATA (default: refuse them)"
    verb.add_argument("--follow-links", action="store_true", help=words)
    words = "pretrained weights to start from: a .safetensors file, an https URL or a hub id; none: random weights"
    words += " (default: timm's for photographs, if they can be had)"
    verb.add_argument("--weights", metavar="PLACE", help=words)


def add_doctor(verbs: Verbs) -> None:
    verb = verbs.add(
        "doctor",
        _doctor,
        "Check Python, packages, GPUs, disk space and servers.",
        ("doctor", "check this machine before the first run"),
        ("doctor --json", "the same checks for a script"),
        exit_codes="0 every check passed · 2 invalid input · 3 a check failed · 130 interrupted",
    )
    verb.add_argument("--json", action="store_true", help=JSON)


def _data(options: Namespace) -> int:
    if options.labels:
        return _suspect_labels(options)
    from selftrain.flows.actions.looking import data

    report = data(options.config, options.set, options.workspace)
    if options.json:
        print(json.dumps(report.to_dict()))
        return 0 if report.ok else 2
    rows = []
    for split, counts in report.counts.items():
        per_class = counts.get("per_class", [])  # absent for unlabelled images, whose classes must not be counted
        held_out = {
            "images": counts["images"],
            "unreadable": counts["unreadable"],
            "also held out": counts["in_held_out"],
        }
        spread = f"{min(per_class)} to {max(per_class)}" if any(per_class) else ""
        rows.append({"split": split, **held_out, "per class": spread})
    print_table(rows, right=("images", "unreadable", "also held out"))
    print(f"{len(report.classes)} classes, {report.image_size}×{report.image_size}, {report.channels} channel(s)")
    for heading, lines in (
        ("unreadable", [f"{sample}: {reason}" for sample, reason in report.unreadable]),
        ("duplicates: the same image", [" = ".join(group) for group in report.duplicates]),
        ("duplicates with different labels", [" ≠ ".join(f"{s} ({c})" for s, c in g) for g in report.conflicts]),
        ("leaks into validation or test", [f"{a} ({b}) = {c} ({d})" for a, b, c, d in report.leaks]),
        ("classes with few labels", [f"{name}: {count}" for name, count in report.few_labels.items()]),
        ("notes", list(report.notes)),
        ("problems", list(report.problems)),
    ):
        if lines:
            print(f"\n{heading} ({len(lines)})")
            for line in lines[:10]:
                print(f"  {printable(line)}")
            if len(lines) > 10:
                print(f"  … and {len(lines) - 10} more; all of them: --json")
    return 0 if report.ok else 2


def _suspect_labels(options: Namespace) -> int:
    from selftrain.flows.actions.measuring import check_labels

    found = check_labels(options.config, options.set, options.workspace)
    if options.json:
        print(json.dumps({"labels": json.loads(found.to_json(orient="records"))}))
        return 0
    rows = found.head(options.limit).to_dict("records")
    print_table(
        [
            {
                "image": printable(str(row["sample_id"])),
                "label": printable(row["label"]),
                "": share(row["probability"]),
                "suggested": printable(row["suggested"]),
                " ": share(row["suggested_probability"]),
            }
            for row in rows
        ],
        right=("", " "),
    )
    print(f"{len(found)} labels are suspect" + (f", {len(rows)} are shown" if len(rows) < len(found) else ""))
    return 0


def _init(options: Namespace) -> None:
    from selftrain.flows.actions.first_recipe import write_recipe

    output = options.output or Path("selftrain.yaml")
    found = write_recipe(options.data, output, options.follow_links, options.weights)
    for line in found:
        print(printable(line))
    print(f"\nwrote {output}. Next:\n  selftrain data {output}\n  selftrain run {output}")


def _doctor(options: Namespace) -> int:
    from selftrain.flows.actions.housekeeping import examine

    findings = examine(workspace_folder(options.workspace))
    if options.json:
        print(json.dumps({"findings": [finding._asdict() for finding in findings]}))
    else:
        print_table([{"": "ok" if one.ok else "PROBLEM", "checked": one.what, "found": one.found} for one in findings])
    return 0 if all(finding.ok for finding in findings) else 3
