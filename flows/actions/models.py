"""Finds trained models by name, classifies images with them or exports them; finds pretrained weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selftrain.flows.environment import Workspace, set_environment, workspace_folder
from selftrain.ssl_tasks.errors import ConfigError, DamagedArtifact, NotFound, nearest
from selftrain.ssl_tasks.settings.data import DataSettings
from selftrain.ssl_tasks.store.artifacts import MANIFEST, Artifact, Store, write_atomically
from selftrain.ssl_tasks.store.locks import at_work
from selftrain.ssl_tasks.store.runs import Run, all_runs, find_run
from selftrain.ssl_tasks.trained import CARD, WEIGHTS

if TYPE_CHECKING:
    import pandas as pd

    from selftrain.models.settings import ModelSettings
    from selftrain.ssl_tasks.trained.export import Format

KINDS = ("train", "given")  # stages whose artifacts are models
CHAMPION = "champion"
SUFFIXES: "Mapping[Format, str]" = {"torch": ".pt2", "onnx": ".onnx"}


@dataclass(frozen=True)
class Model:
    """A trained model: its folder, and its artifact if a run of the workspace made it."""

    name: str
    folder: Path
    artifact: Artifact | None = None

    def dataset(self, store: Store) -> Artifact | None:
        """Returns the data set that the model was trained on, if it is still in the store."""
        source = self.artifact.manifest["inputs"].get("dataset") if self.artifact is not None else None
        return store.find("dataset", source["key"], verify=False) if source else None


def predict(
    model: str, paths: Iterable[str | Path], workspace: Workspace = None, device: str = "auto", batch_size: int = 256
) -> "pd.DataFrame":
    """Classify images with a trained model; returns one row per image with the probabilities of all classes.

    `paths` are files and folders. The row of an unreadable image says why it cannot be read.
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
    """Return the pretrained weights that timm and torchvision publish, one per row.

    `pattern` is part of a network's name, or a name with `*`; `timm:` or `torchvision:` before it asks one library.
    Columns: network, tag, source, licence, the preparation of images in training (mean, std, interpolation, image_size,
    crop), and `here`, the file if it is on this machine already.
    """
    import pandas as pd

    from selftrain.models.sources import Facts, published

    rows = [{**one.facts.model_dump(), "here": str(one.here or "")} for one in published(pattern)]
    return pd.DataFrame(rows, columns=[*Facts.model_fields, "here"])


def fetch_weights(network: str, pretrained: bool | str = True) -> Path:
    """Download pretrained weights into their library's cache if they are not there yet; return the file.

    `pretrained` is what `model.pretrained` may be in a recipe: True, a tag, a hub id or an https URL.
    """
    from selftrain.models.sources import obtain

    file = obtain(model_settings(network, pretrained)).file
    assert file is not None
    return file


def find_weights(network: str, pretrained: bool | str = True) -> Path:
    """Returns the file of pretrained weights on this machine; NotFound says where to get it and where to put it."""
    from selftrain.models.sources import by_hand, find_source

    source = find_source(model_settings(network, pretrained))
    if (file := source.here) is not None:
        return file
    raise NotFound(
        f"the weights {source.facts.source} of {network} are not on this machine. "
        f"`selftrain weights fetch {network}` fetches them where there is a network. Without one: {by_hand(source)}"
    )


def model_settings(network: str, pretrained: bool | str) -> "ModelSettings":
    """Returns the settings of a network that starts from weights; raises ConfigError if the name means nothing."""
    from pydantic import ValidationError

    from selftrain.models.settings import ModelSettings

    try:
        return ModelSettings(name=network, pretrained=pretrained)
    except ValidationError as error:
        raise ConfigError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from error


@dataclass(frozen=True)
class Exported:
    """An exported file, its model card, and the largest difference of its outputs from the model's."""

    file: Path
    card: Path
    difference: float


def export(
    model: str, output: str | Path | None = None, workspace: Workspace = None, format: "Format" = "torch"
) -> Exported:
    """Export a model as one file for other programs, with a model card beside it. The file's outputs are checked.

    Without `output`, the file is named by the run and the stage, in the current folder; it never replaces a file.
    """
    folder, given = workspace_folder(workspace), None if output is None else Path(output)
    if given is not None and (given.is_dir() or not given.absolute().parent.is_dir() or given.suffix == ".md"):
        raise ConfigError(f"cannot write {given}: expected a file such as model.pt2 in an existing folder")
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
    """Returns a file name such as quickstart-student-3.pt2; neither the file nor its card may exist yet."""
    run, colon, stage = model.name.partition(":")
    name = f"{find_run(workspace, run).info['name']}-{stage}" if colon and model.artifact else Path(model.name).name
    file = Path(name + SUFFIXES[format])
    if there := next((one for one in (file, file.with_suffix(".md")) if one.exists()), None):
        raise ConfigError(
            f"{there} exists already. Name the file to write (it may be replaced): selftrain export MODEL --output FILE"
        )
    return file


def _age(artifact: Artifact) -> tuple[float, str]:
    return artifact.manifest["finished"], artifact.key


def find_model(workspace: Path, name: str) -> Model:
    """Finds a model by its folder, a stage of the last run, RUN:STAGE, a run (its best), champion:NAME or its
    digest."""
    if (Path(name) / WEIGHTS).is_file():
        return _in_folder(Path(name))
    run_name, colon, stage = name.partition(":")
    if colon and run_name == CHAMPION:
        return _by_digest(workspace, _champion_digest(workspace, stage))
    if colon:
        run = find_run(workspace, run_name)
        run.stage(stage)  # the error for an unknown stage names the nearest
        return _checked(workspace, f"{run.id}:{stage}", run.artifact(stage))
    runs = list(all_runs(workspace))
    if runs and (artifact := runs[-1].artifact(name)) is not None:
        return _checked(workspace, f"{runs[-1].id}:{name}", artifact)
    try:
        return _best(find_run(workspace, name))
    except NotFound:
        if not runs or any(
            run.id.startswith(name) for run in runs
        ):  # the name of a run without a model, or of several runs
            raise
    return _by_digest(workspace, name)


def own_teacher(workspace: Path, model: Model) -> Model:
    """Returns the teacher whose pseudo-labels a student was trained on, the first of several; NotFound if there is
    none."""
    store, found = Store(workspace / "store"), model.artifact
    for role in ("selection", "predictions", "model"):
        source = found.manifest["inputs"].get(role) if found is not None else None
        if source is None:
            raise NotFound(
                f"{model.name} was not trained on pseudo-labels, so it has no teacher. Name a model: --against MODEL"
            )
        found = store.find(source["stage"], source["key"], verify=False)
        if found is None:
            raise NotFound(f"the {role} of {model.name} is no longer in the store. Name its teacher: --against MODEL")
    assert found is not None
    runs = sorted(
        all_runs(workspace), key=lambda run: model.name.startswith(f"{run.id}:")
    )  # so that its own run, which comes last, names the stage
    names = {stage.key: f"{run.id}:{stage.name}" for run in runs for stage in run.stages()}
    return _checked(workspace, names.get(found.key, found.digest[:12]), found)


def _in_folder(folder: Path) -> Model:
    from selftrain.ssl_tasks.trained.model import load_card

    if not (folder / CARD).is_file():
        raise ConfigError(f"{folder} holds {WEIGHTS} but no {CARD}; expected both files")
    try:
        load_card(folder)
    except DamagedArtifact as error:
        raise ConfigError(f"{error}; expected the one that was written with {WEIGHTS}") from error
    path = folder.absolute()
    inside = (path / MANIFEST).is_file() and path.parent.name in KINDS
    artifact = Store(path.parent.parent).find(path.parent.name, path.name) if inside else None
    return Model(str(folder), path, artifact)


def _best(run: Run) -> Model:
    """Returns the model of the best round; of the newest round while the run is unfinished."""
    rounds = run.rounds()
    best = run.summary.get("best_round")
    for one in [rounds[best]] if best is not None else reversed(rounds):
        if one.model is not None:
            return _checked(run.workspace, f"{run.id}:{run.model_stage(one.round)}", one.model)
    raise NotFound(f"run {run.id} has no model yet. See: selftrain status {run.id}")


def _checked(workspace: Path, name: str, artifact: Artifact | None) -> Model:
    """Returns the model of an artifact after checking its files against their digests."""
    if artifact is None:
        raise NotFound(
            f"{name} is not finished, or its artifact was deleted; expected a trained model. See: selftrain status"
        )
    if artifact.stage not in KINDS:
        raise NotFound(
            f"{name} is the result of the stage '{artifact.stage}', not a model; expected teacher, "
            "student-1 or another model"
        )
    Store(workspace / "store").find(artifact.stage, artifact.key)
    return Model(name, artifact.path, artifact)


def _by_digest(workspace: Path, digest: str) -> Model:
    known = [one for one in Store(workspace / "store").artifacts() if one.stage in KINDS]
    fitting = [one for one in known if digest and one.digest.startswith(digest)]
    if len({one.digest for one in fitting}) > 1:
        raise NotFound(
            f"'{digest}' is the beginning of {len(fitting)} models' digests; expected one. Give more characters"
        )
    if not fitting:
        names = [stage.name for run in list(all_runs(workspace))[-1:] for stage in run.stages() if stage.stage in KINDS]
        raise NotFound(
            f"no model '{digest}' in {workspace}; expected a stage, RUN:STAGE, a run, champion:NAME, a digest or a "
            f"folder with {WEIGHTS}." + nearest(digest, names)
        )
    artifact = min(fitting, key=lambda one: one.key)
    return _checked(workspace, digest[:12], artifact)


def _champion_digest(workspace: Path, name: str) -> str:
    """Returns the digest of a name's champion in MLflow's model registry."""
    set_environment(workspace)
    from selftrain.ssl_tasks.tracking.client import connect, default_uri
    from selftrain.ssl_tasks.tracking.entities import DIGEST, champion
    from selftrain.ssl_tasks.tracking.spool import without_password

    uri = default_uri(workspace)
    address = without_password(uri)
    try:
        holder = champion(connect(uri, workspace), name)
    except OSError as error:
        raise NotFound(
            f"MLflow at {address} does not answer ({error}), so the champion is unknown. Start the server, "
            "or name a run"
        ) from error
    if holder is None:
        raise NotFound(
            f"MLflow at {address} has no champion of '{name}'; expected the name of a finished run. See: "
            "selftrain status --all"
        )
    return str(holder.tags[DIGEST])
