"""Verbs that use a trained model (predict, evaluate, export), and the tables that show an evaluation."""

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftrain.flows.cli.labelling import add_outputs, check_writable, show_frame
from selftrain.flows.cli.verb import Verbs
from selftrain.flows.tables import print_table, share
from selftrain.ssl_tasks.errors import ConfigError

if TYPE_CHECKING:
    from selftrain.ssl_tasks.trained.export import Format
if TYPE_CHECKING:
    from selftrain.flows.actions.measuring import Evaluation


def add_predict(verbs: Verbs) -> None:
    verb = verbs.add("predict", _predict, "what a model takes images for, with probabilities")
    add_model(verb)
    verb.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="image files, and folders of them")
    verb.add_argument("--batch-size", type=int, default=256, help="images at a time; default 256")
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add_outputs(verb)


def add_evaluate(verbs: Verbs) -> None:
    verb = verbs.add("evaluate", _evaluate, "a model on a recipe's validation and test images; asked twice, done once")
    add_model(verb)
    verb.add_argument("data", metavar="DATA", help="a recipe: its data, its `evaluate:` and its `runtime:` are used")
    verb.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override a setting of the recipe")
    verb.add_argument("--attacks", metavar="ε,ε,…", type=_steps, default=(), help="FGSM, such as 0.01,8/255 of white")
    verb.add_argument("--corruptions", action="store_true", help="noise, blur, weather, digital; five severities each")
    words = "measure this one too, and compare; default the teacher of a student; `none` compares with nobody"
    verb.add_argument("--against", metavar="MODEL", default="", help=words)
    verb.add_argument("--json", action="store_true")


def add_export(verbs: Verbs) -> None:
    verb = verbs.add("export", _export, "a model as one file for other programs, checked, with a model card beside it")
    add_model(verb)
    words = "such as model.pt2 or model.onnx; default named by run and stage, in this folder, and replaces nothing"
    verb.add_argument("--output", metavar="FILE", type=Path, help=words)
    words = "torch.export or ONNX; default what the suffix says, else torch"
    verb.add_argument("--format", choices=("torch", "onnx"), help=words)
    verb.add_argument("--json", action="store_true")


def add_model(verb: ArgumentParser) -> None:
    """The argument of every verb that uses a model."""
    words = "a stage of the last run (student-2), RUN:STAGE, a run (its best), champion:NAME, a digest, or a folder"
    verb.add_argument("model", metavar="MODEL", help=words)


def _predict(options: Namespace) -> None:
    from selftrain.flows.actions.models import predict

    if options.batch_size < 1:
        raise ConfigError(f"--batch-size is {options.batch_size}; expected at least 1")
    check_writable(options.csv, options.json, options.parquet)
    table = predict(options.model, options.paths, options.workspace, options.device, options.batch_size)
    if not (options.csv or options.json or options.parquet):
        table = table[["path", "label", "confidence", "error"]]  # the probabilities of all classes are for files
    show_frame(table, options)
    if unread := int(table["error"].notna().sum()):
        print(f"{unread} of {len(table)} images could not be read; column `error` says why", file=sys.stderr)


def _steps(text: str) -> tuple[float, ...]:
    """0.01,8/255"""
    try:
        return tuple(float(Fraction(word.strip())) for word in text.split(",") if word.strip())
    except (ValueError, ZeroDivisionError) as error:
        raise ArgumentTypeError(f"found {text!r}, expected numbers such as 0.01,0.03 or 8/255") from error


def _evaluate(options: Namespace) -> None:
    from selftrain.flows.actions.measuring import evaluate

    against = None if options.against == "none" else options.against
    asked = options.set, options.workspace, options.attacks, options.corruptions, against
    found = evaluate(options.model, options.data, *asked)
    if options.json:
        parts = {"metrics": found.metrics, "robustness": found.robustness, "against": found.against or None}
        whole = {"model": found.model, **parts, "compared": found.compared, "note": found.note}
        print(json.dumps({**whole, "evaluation": found.artifact.digest}))
        return
    metrics, robustness = found.metrics, found.robustness
    measured = {split: metrics[split] for split in ("validation", "test") if metrics[split]["count"]}
    print_table([split_row(split, one) for split, one in measured.items()], right=SCORES)
    print(f"tempered: at the temperature {metrics['temperature']:.3g}, which validation fits best\n")
    print_table(class_rows(measured), right=("images", "recall", "precision"))
    for rows in (attack_rows(robustness), corruption_rows(robustness)):
        if rows:
            print()
            print_table(rows, right=tuple(rows[0])[1:])
    if "corruptions" in robustness:
        print(corruption_sentence(found))
    sentences = [found.note, comparison_sentence(found) if found.compared is not None else ""]
    print("\n" + ": ".join(filter(None, sentences)))


def _export(options: Namespace) -> None:
    from selftrain.flows.actions.models import export

    suffix: Format = "onnx" if options.output and options.output.suffix.lower() == ".onnx" else "torch"
    done = export(options.model, options.output, options.workspace, options.format or suffix)
    if options.json:
        print(json.dumps({"file": str(done.file), "card": str(done.card), "difference": done.difference}))
        return
    print(f"wrote {done.file}, whose outputs differ from the model's by {done.difference:.1e} at the most")
    print(f"wrote {done.card}")


def add_weights(verbs: Verbs) -> None:
    verb = verbs.add("weights", _weights, "find and download pretrained weights to start from")
    verb.usage = (
        "selftrain weights list [PATTERN]            the weights that timm and torchvision publish\n"
        "       selftrain weights fetch NETWORK [WEIGHTS]   download into the library's cache\n"
        "       selftrain weights where NETWORK [WEIGHTS]   print the file, or where to get it and where to put it"
    )
    verb.add_argument("action", choices=("list", "fetch", "where"))
    words = "as model.name: timm:resnet18; for list, a part of a name, or one with *"
    verb.add_argument("network", metavar="NETWORK", nargs="?", default="", help=words)
    words = "as model.pretrained: a tag, a hub id or a URL (default true, the library's own)"
    verb.add_argument("weights", metavar="WEIGHTS", nargs="?", default=True, help=words)
    verb.add_argument("--limit", type=int, default=50, metavar="N", help="show at most N rows (default 50)")
    add_outputs(verb)


def _weights(options: Namespace) -> None:
    from selftrain.flows.actions.models import fetch_weights, find_weights, weights

    if options.action != "list":
        if not options.network:
            raise ConfigError(f"weights {options.action}: expected a network, such as timm:resnet18")
        find = fetch_weights if options.action == "fetch" else find_weights
        print(find(options.network, options.weights))
        return
    if options.limit < 1:
        raise ConfigError(f"--limit is {options.limit}; expected at least 1")
    found = weights(options.network)
    if options.csv or options.json or options.parquet:
        show_frame(found, options)
        return
    columns = ["network", "tag", "licence", "image_size", "interpolation", "crop", "here"]
    show_frame(found[columns].head(options.limit), options)
    if len(found) > options.limit:
        print(f"{options.limit} of {len(found):,}; --limit N shows more, a PATTERN fewer", file=sys.stderr)


VERBS = [add_predict, add_evaluate, add_export, add_weights]


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
