"""Defines the verbs that use a trained model (predict, evaluate, export), and the tables that show an evaluation."""

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftrain.flows.cli.labelling import add_outputs, check_writable, show_frame
from selftrain.flows.cli.verb import JSON, SET, STAGE_CODES, Verbs
from selftrain.flows.tables import print_table, share
from selftrain.ssl_tasks.errors import ConfigError

if TYPE_CHECKING:
    from selftrain.ssl_tasks.trained.export import Format
if TYPE_CHECKING:
    from selftrain.flows.actions.measuring import Evaluation


def add_predict(verbs: Verbs) -> None:
    verb = verbs.add(
        "predict",
        _predict,
        "Classify images with a trained model; one row per image with its probabilities.",
        ("predict last photos/", "the class and confidence of every image in photos/"),
        ("predict champion:digits photos/ --csv labels.csv", "the probabilities of all classes, as CSV"),
    )
    add_model(verb)
    verb.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="image files, and folders of image files")
    verb.add_argument("--batch-size", type=int, default=256, metavar="N", help="images per batch (default: 256)")
    words = "where to compute: auto, cpu, cuda or cuda:1 (default: auto, a GPU if there is one)"
    verb.add_argument("--device", default="auto", metavar="DEVICE", help=words)
    add_outputs(verb)


def add_evaluate(verbs: Verbs) -> None:
    verb = verbs.add(
        "evaluate",
        _evaluate,
        "Evaluate a model on a recipe's validation and test images. Results are cached.",
        ("evaluate last quickstart", "accuracy, calibration, and a paired comparison with the model's teacher"),
        ("evaluate last quickstart --attacks 8/255 --corruptions", "robustness as well"),
        exit_codes=STAGE_CODES,
    )
    add_model(verb)
    words = "a recipe, whose data:, evaluate: and runtime: settings are used"
    verb.add_argument("data", metavar="CONFIG", help=words)
    verb.add_argument("--set", action="append", default=[], metavar="A.B=C", help=SET)
    words = "accuracy under FGSM attacks of these sizes, as shares of the pixel range: 0.01,8/255 (default: none)"
    verb.add_argument("--attacks", metavar="ε,ε,…", type=_steps, default=(), help=words)
    words = "accuracy under noise, blur, weather and digital corruptions, in five severities each"
    verb.add_argument("--corruptions", action="store_true", help=words)
    words = "second model to evaluate and compare with (default: the student's teacher; none: no comparison)"
    verb.add_argument("--against", metavar="MODEL", default="", help=words)
    verb.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def add_export(verbs: Verbs) -> None:
    verb = verbs.add(
        "export",
        _export,
        "Export a model as one file (torch.export or ONNX), with a model card beside it. "
        "The file is checked: its outputs are compared with the model's.",
        ("export last", "write RUN-STAGE.pt2 and its model card into the current folder"),
        ("export champion:digits --output digits.onnx", "the best model of all runs named digits, as ONNX"),
    )
    add_model(verb)
    words = "file to write, such as model.pt2 or model.onnx (default: a new file, named by run and stage)"
    verb.add_argument("--output", metavar="FILE", type=Path, help=words)
    words = "torch (torch.export) or onnx (default: by the suffix of FILE, else torch)"
    verb.add_argument("--format", choices=("torch", "onnx"), help=words)
    verb.add_argument("--json", action="store_true", help=JSON)


def add_model(verb: ArgumentParser) -> None:
    """Adds the argument of every verb that uses a model."""
    words = (
        "a run (its best model; last is the last run), a stage of the last run such as student-2, RUN:STAGE, "
        "champion:NAME (the best model of all runs of a name), a digest, or a model folder"
    )
    verb.add_argument("model", metavar="MODEL", help=words)


def _predict(options: Namespace) -> None:
    from selftrain.flows.actions.models import predict

    if options.batch_size < 1:
        raise ConfigError(f"--batch-size is {options.batch_size}; expected at least 1")
    check_writable(options.csv, options.json, options.parquet)
    table = predict(options.model, options.paths, options.workspace, options.device, options.batch_size)
    if not (options.csv or options.json or options.parquet):
        table = table[["path", "label", "confidence", "error"]]  # only files hold the probabilities of all classes
    show_frame(table, options)
    if unread := int(table["error"].notna().sum()):
        print(
            f"{unread} of {len(table)} images could not be read; the column `error` holds the reasons", file=sys.stderr
        )


def _steps(text: str) -> tuple[float, ...]:
    """Parses attack sizes such as 0.01,8/255."""
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
    print(f"tempered: with the temperature {metrics['temperature']:.3g}, fitted on the validation images\n")
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
    print(f"wrote {done.file}; its outputs differ from the model's by at most {done.difference:.1e}")
    print(f"wrote {done.card}")


def add_weights(verbs: Verbs) -> None:
    verb = verbs.add(
        "weights",
        _weights,
        "List, download or locate pretrained weights that a network can start from.",
        ("weights list resnet18", "the weights that timm and torchvision publish for resnet18"),
        ("weights where torchvision:resnet18", "the file of the weights, or where to get it and where to put it"),
    )
    words = "list: published weights; fetch: download into the library's cache; where: print the file's path"
    verb.add_argument("action", choices=("list", "fetch", "where"), help=words)
    words = "a network as in model.name, such as timm:resnet18; list takes part of a name, or one with *"
    verb.add_argument("network", metavar="NETWORK", nargs="?", default="", help=words)
    words = "weights as in model.pretrained: a tag, a hub id or a URL (default: true, the library's own)"
    verb.add_argument("weights", metavar="WEIGHTS", nargs="?", default=True, help=words)
    verb.add_argument("--limit", type=int, default=50, metavar="N", help="show at most N rows (default: 50)")
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


SCORES = (
    "images", "accuracy", "95 % interval", "balanced", "NLL", "Brier", "ECE",
    "NLL tempered", "Brier tempered", "ECE tempered",
)  # fmt: skip


def interval(low: float, high: float) -> str:
    """Formats an interval, such as: 71.9 … 90.7 %."""
    return f"{100 * low:.1f} … {100 * high:.1f} %"


def split_row(split: str, found: Mapping[str, Any]) -> dict[str, object]:
    """Returns the scores of one split, without and with the temperature."""
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
    """Returns a row for every class of the test images, or of the validation images without a test set."""
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
    """Returns a row with the accuracy for each attack size."""
    return [
        {
            "FGSM ε": f"{one['epsilon']:g}",
            "accuracy": share(one["accuracy"]),
            "95 % interval": interval(one["low"], one["high"]),
        }
        for one in robustness.get("attacks", ())
    ]


def corruption_rows(robustness: Mapping[str, Any]) -> list[dict[str, object]]:
    """Returns a row for each corruption, with the accuracy at each severity."""
    return [
        {
            "corruption": name,
            **{f"severity {row['severity']}": share(row["accuracy"]) for row in rows},
            "mean": share(sum(row["accuracy"] for row in rows) / len(rows)),
        }
        for name, rows in robustness.get("corruptions", {}).items()
    ]


def corruption_sentence(found: "Evaluation") -> str:
    """States the mean error under corruptions, absolute and relative to the second model."""
    relative = (found.compared or {}).get("mean_corruption_error")
    words = f"mean error under corruptions: {share(1 - mean_accuracy(found.robustness))}"
    if relative is None:
        return f"{words} (no second model to relate it to)"
    return f"{words}; mean corruption error relative to {found.against}: {relative:.1f} (100 is equal, lower is better)"


def mean_accuracy(robustness: Mapping[str, Any]) -> float:
    """Returns the mean accuracy over all corruptions and severities."""
    accuracies = [row["accuracy"] for rows in robustness["corruptions"].values() for row in rows]
    return float(sum(accuracies) / len(accuracies))


def comparison_sentence(found: "Evaluation") -> str:
    """States how the model compares with the second model on the same images."""
    compared = found.compared or {}
    between, test = compared["difference_interval"], compared["mcnemar"]
    return (
        f"{found.model} against {found.against} on {compared['count']} {compared['split']} images: "
        f"{100 * compared['difference']:+.1f} points ({100 * between['low']:+.1f} … {100 * between['high']:+.1f}), "
        f"{test['gains']} images gained and {test['losses']} lost, "
        f"McNemar p = {test['p_value']:.3g}"
    )
