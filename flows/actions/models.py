"""Trained models by name, and what can be done with one (predict, export); and pretrained weights to start from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selftrain.flows.environment import Workspace, set_environment, workspace_folder
from selftrain.ssl_tasks.errors import ConfigError, DamagedArtifact, NotFound, nearest
from selftrain.ssl_tasks.settings.data import DataSettings
from selftrain.ssl_tasks.store.artifacts import MANIFEST, Artifact, Store, write_atomically
from selftrain.ssl_tasks.store.occupancy import at_work
from selftrain.ssl_tasks.store.runs import Run, all_runs, find_run
from selftrain.ssl_tasks.trained.files import CARD, WEIGHTS

if TYPE_CHECKING:
    import pandas as pd

    from selftrain.models.settings import ModelSettings
    from selftrain.ssl_tasks.trained.export import Format

KINDS = ("train", "given")  # stages whose artifacts are models
CHAMPION = "champion"
SUFFIXES: "Mapping[Format, str]" = {"torch": ".pt2", "onnx": ".onnx"}


@dataclass(frozen=True)
class Model:
    """A trained model: its folder, and where a run of the workspace made it, the artifact."""

    name: str
    folder: Path
    artifact: Artifact | None = None

    def dataset(self, store: Store) -> Artifact | None:
        """The data set that it was trained on, if it is still in the store."""
        source = self.artifact.manifest["inputs"].get("dataset") if self.artifact is not None else None
        return store.find("dataset", source["key"], verify=False) if source else None


def predict(
    model: str, paths: Iterable[str | Path], workspace: Workspace = None, device: str = "auto", batch_size: int = 256
) -> "pd.DataFrame":
    """What a model takes images for: a row each, with the probabilities of all classes.

    `paths` are files and folders; an image that cannot be read gets a row that says why.
    """
    folder = workspace_folder(workspace)
    with at_work(folder):
        found = find_model(folder, model)
        from selftrain.ssl_tasks.trained.classify import classify, listed_images
        from selftrain.ssl_tasks.trained.model import load_trained

        files = listed_images([Path(path) for path in paths])
        dataset = found.dataset(Store(folder / "store"))
        max_pixels = dataset.manifest["settings"]["max_pixels"] if dataset is not None else DataSettings().max_pixels
        return classify(load_trained(found.folder, device), files, max_pixels, batch_size)


def weights(pattern: str = "") -> "pd.DataFrame":
    """The pretrained weights that timm (where it is installed) and torchvision publish, one a row.

    `pattern` is part of a network's name, or one with `*`; `timm:` or `torchvision:` before it asks one library alone.
    Columns: network, tag, source, licence, how images were prepared in training (mean, std, interpolation, image_size,
    crop), and `here`, the file where it is on this machine already.
    """
    import pandas as pd

    from selftrain.models.sources import Facts, published

    rows = [{**one.facts.model_dump(), "here": str(one.here or "")} for one in published(pattern)]
    return pd.DataFrame(rows, columns=[*Facts.model_fields, "here"])


def fetch_weights(network: str, pretrained: bool | str = True) -> Path:
    """Downloads pretrained weights into their library's cache, where they are not there yet; returns the file.

    `pretrained` is what `model.pretrained` may be in a recipe: True, a tag, a hub id or an https URL.
    """
    from selftrain.models.sources import obtain

    file = obtain(model_settings(network, pretrained)).file
    assert file is not None
    return file


def find_weights(network: str, pretrained: bool | str = True) -> Path:
    """The file of pretrained weights on this machine; NotFound says where to get it and where to put it."""
    from selftrain.models.sources import by_hand, find_source

    source = find_source(model_settings(network, pretrained))
    if (file := source.here) is not None:
        return file
    raise NotFound(
        f"the weights {source.facts.source} of {network} are not on this machine. "
        f"`selftrain weights fetch {network}` fetches them where there is a network. Without one: {by_hand(source)}"
    )


def model_settings(network: str, pretrained: bool | str) -> "ModelSettings":
    """The settings of a network that starts from weights; ConfigError where they cannot be named so."""
    from pydantic import ValidationError

    from selftrain.models.settings import ModelSettings

    try:
        return ModelSettings(name=network, pretrained=pretrained)
    except ValidationError as error:
        raise ConfigError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from error


@dataclass(frozen=True)
class Exported:
    """The file, the card beside it, and how far the file's outputs are from the model's."""

    file: Path
    card: Path
    difference: float


def export(
    model: str, output: str | Path | None = None, workspace: Workspace = None, format: "Format" = "torch"
) -> Exported:
    """Writes a model as one file for other programs, checked against the model, and a model card beside it.

    Without `output`, the file is named by the run and the stage, in the current folder, and replaces none.
    """
    folder, given = workspace_folder(workspace), None if output is None else Path(output)
    if given is not None and (given.is_dir() or not given.absolute().parent.is_dir() or given.suffix == ".md"):
        raise ConfigError(f"cannot write {given}: expected a file such as model.pt2 in a folder that is there")
    with at_work(folder):
        return _exported(folder, model, given, format)


def _exported(folder: Path, model: str, given: Path | None, format: "Format") -> Exported:
    found, store = find_model(folder, model), Store(folder / "store")
    output = _unused_file(folder, found, format) if given is None else given
    from selftrain.ssl_tasks.tracking.model_card import model_card
    from selftrain.ssl_tasks.tracking.trace import store_lineage
    from selftrain.ssl_tasks.trained.export import export_model
    from selftrain.ssl_tasks.trained.model import load_card

    difference = export_model(found.folder, output, format)
    facts = {"file": output.name, "format": format, "largest difference of its outputs": f"{difference:.1e}"}
    evaluations, lineage = [], None
    if found.artifact is not None:
        digest = found.artifact.digest
        facts["model"] = digest
        made = [one for one in store.artifacts() if one.stage == "evaluate"]
        evaluations = [one for one in made if one.manifest["inputs"]["model"]["digest"] == digest]
        names = {stage.key: stage.name for run in all_runs(folder) for stage in run.stages()}
        lineage = store_lineage(store, found.artifact, names)
    card = output.with_suffix(".md")
    text = model_card(found.name, load_card(found.folder), facts, sorted(evaluations, key=_age), lineage)
    write_atomically(card, text)
    return Exported(output, card, difference)


def _unused_file(workspace: Path, model: Model, format: "Format") -> Path:
    """quickstart-student-3.pt2, which must not be there yet; nor its card."""
    run, colon, stage = model.name.partition(":")
    name = f"{find_run(workspace, run).info['name']}-{stage}" if colon and model.artifact else Path(model.name).name
    file = Path(name + SUFFIXES[format])
    if there := next((one for one in (file, file.with_suffix(".md")) if one.exists()), None):
        raise ConfigError(f"{there} is here already; name another file with --output, which may replace one")
    return file


def _age(artifact: Artifact) -> tuple[float, str]:
    return artifact.manifest["finished"], artifact.key


def find_model(workspace: Path, name: str) -> Model:
    """A model by a folder, a stage of the last run, RUN:STAGE, a run (its best), champion:NAME, or a digest."""
    if (Path(name) / WEIGHTS).is_file():
        return _in_folder(Path(name))
    run_name, colon, stage = name.partition(":")
    if colon and run_name == CHAMPION:
        return _by_digest(workspace, _champion_digest(workspace, stage))
    if colon:
        run = find_run(workspace, run_name)
        run.stage(stage)  # an unknown one is answered with the nearest
        return _checked(workspace, f"{run.id}:{stage}", run.artifact(stage))
    runs = list(all_runs(workspace))
    if runs and (artifact := runs[-1].artifact(name)) is not None:
        return _checked(workspace, f"{runs[-1].id}:{name}", artifact)
    try:
        return _best(find_run(workspace, name))
    except NotFound:
        if not runs or any(run.id.startswith(name) for run in runs):  # a run, but it has no model or is one of many
            raise
    return _by_digest(workspace, name)


def own_teacher(workspace: Path, model: Model) -> Model:
    """Who invented the labels that a student learned from, the first of several; NotFound says why there is none."""
    store, found = Store(workspace / "store"), model.artifact
    for role in ("selection", "predictions", "model"):
        source = found.manifest["inputs"].get(role) if found is not None else None
        if source is None:
            raise NotFound(
                f"{model.name} learned from no invented labels, so it has no teacher; name one with --against"
            )
        found = store.find(source["stage"], source["key"], verify=False)
        if found is None:
            raise NotFound(f"the {role} of {model.name} is gone from the store; name its teacher with --against")
    assert found is not None
    runs = sorted(all_runs(workspace), key=lambda run: model.name.startswith(f"{run.id}:"))  # its own last
    names = {stage.key: f"{run.id}:{stage.name}" for run in runs for stage in run.stages()}
    return _checked(workspace, names.get(found.key, found.digest[:12]), found)


def _in_folder(folder: Path) -> Model:
    from selftrain.ssl_tasks.trained.model import load_card

    if not (folder / CARD).is_file():
        raise ConfigError(f"{folder} holds {WEIGHTS} but no {CARD}; a model is both files")
    try:
        load_card(folder)
    except DamagedArtifact as error:
        raise ConfigError(f"{error}; expected the one that was written with {WEIGHTS}") from error
    path = folder.absolute()
    inside = (path / MANIFEST).is_file() and path.parent.name in KINDS
    artifact = Store(path.parent.parent).find(path.parent.name, path.name) if inside else None
    return Model(str(folder), path, artifact)


def _best(run: Run) -> Model:
    """The model of the best round; of the newest while the run has not ended."""
    rounds = run.rounds()
    best = run.summary.get("best_round")
    for one in [rounds[best]] if best is not None else reversed(rounds):
        if one.model is not None:
            return _checked(run.workspace, f"{run.id}:{run.model_stage(one.round)}", one.model)
    raise NotFound(f"run {run.id} has no model yet; `selftrain status {run.id}` says how it stands")


def _checked(workspace: Path, name: str, artifact: Artifact | None) -> Model:
    """The model of an artifact, whose files are what their digests say."""
    if artifact is None:
        raise NotFound(f"{name} is not finished, or its artifact is gone; `selftrain status` says how it stands")
    if artifact.stage not in KINDS:
        raise NotFound(f"{name} is no model but the outcome of '{artifact.stage}'; expected teacher or student-1, …")
    Store(workspace / "store").find(artifact.stage, artifact.key)
    return Model(name, artifact.path, artifact)


def _by_digest(workspace: Path, digest: str) -> Model:
    known = [one for one in Store(workspace / "store").artifacts() if one.stage in KINDS]
    fitting = [one for one in known if digest and one.digest.startswith(digest)]
    if len({one.digest for one in fitting}) > 1:
        raise NotFound(f"'{digest}' fits {len(fitting)} models; give more of the digest")
    if not fitting:
        names = [stage.name for run in list(all_runs(workspace))[-1:] for stage in run.stages() if stage.stage in KINDS]
        raise NotFound(
            f"no model '{digest}' in {workspace}; expected a stage, RUN:STAGE, a run, champion:NAME, a digest or a "
            f"folder with {WEIGHTS}." + nearest(digest, names)
        )
    artifact = min(fitting, key=lambda one: one.key)
    return _checked(workspace, digest[:12], artifact)


def _champion_digest(workspace: Path, name: str) -> str:
    """The digest of the model that MLflow's registry calls a name's champion."""
    set_environment(workspace)
    from selftrain.ssl_tasks.tracking.client import connect, default_uri
    from selftrain.ssl_tasks.tracking.entities import DIGEST, champion
    from selftrain.ssl_tasks.tracking.spool import without_password

    uri = default_uri(workspace)
    address = without_password(uri)
    try:
        holder = champion(connect(uri, workspace), name)
    except OSError as error:
        raise NotFound(f"MLflow at {address} does not answer ({error}), so nobody knows the champion") from error
    if holder is None:
        raise NotFound(f"MLflow at {address} has no champion of '{name}'; expected the name of a run that finished")
    return str(holder.tags[DIGEST])
