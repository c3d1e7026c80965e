"""Verbs that use a trained model: predict."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from flows.commands.labelling import add_outputs, show_frame
from flows.commands.verb import Verbs
from ssl_tasks.errors import ConfigError


def add_predict(verbs: Verbs) -> None:
    verb = verbs.add("predict", _predict, "what a model takes images for, with probabilities")
    add_model(verb)
    verb.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="image files, and folders of them")
    verb.add_argument("--batch-size", type=int, default=256, help="images at a time; default 256")
    verb.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add_outputs(verb)


def add_model(verb: ArgumentParser) -> None:
    """The argument of every verb that uses a model."""
    words = "a stage of the last run (student-2), RUN:STAGE, a run (its best), champion:NAME, a digest, or a folder"
    verb.add_argument("model", metavar="MODEL", help=words)


def _predict(options: Namespace) -> None:
    from flows.models import predict

    if options.batch_size < 1:
        raise ConfigError(f"--batch-size is {options.batch_size}; expected at least 1")
    table = predict(options.model, options.paths, options.workspace, options.device, options.batch_size)
    if not (options.csv or options.json or options.parquet):
        table = table[["path", "label", "confidence", "error"]]  # the probabilities of all classes are for files
    show_frame(table, options)
    if unread := int(table["error"].notna().sum()):
        print(f"{unread} of {len(table)} images could not be read; column `error` says why", file=sys.stderr)


VERBS = [add_predict]
