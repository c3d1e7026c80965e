"""The champion: the registered model that beat all before it on validation."""

from typing import TYPE_CHECKING

from selftrain.ssl_tasks.tracking.spool import Operation

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "champion"
SCORE, DIGEST, VALIDATION = "selftrain.validation_accuracy", "selftrain.digest", "selftrain.validation"
ABOUT = """\
Image classifiers of the recipe `{name}`, made by selftrain. The version with the alias `champion` is the best so far,
by its accuracy on validation images:

    selftrain predict champion:{name} IMAGES
"""


def promote(client: "MlflowClient", model: "LoggedModel", run_id: str, operation: Operation) -> tuple[bool, str]:
    """Registers the model and makes it the champion if it beats the holder: whether it did, and a sentence about it."""
    name, score = operation["name"], float(operation["score"])
    holder = champion(client, name)
    if holder is not None and holder.tags.get(DIGEST) == operation["manifest"]["digest"]:
        return False, f"version {holder.version} holds it already: the same model"
    same = holder is None or holder.tags.get(VALIDATION, "") == operation["validation"]
    other = "" if same else " (of other validation images)"
    if holder is not None and float(holder.tags.get(SCORE, "-inf")) >= score:
        held = f"{float(holder.tags[SCORE]):.4f} on validation{other}"
        return False, f"version {holder.version} keeps it: {held} against {score:.4f}"
    version = _version(client, name, model, run_id, operation)
    client.set_registered_model_alias(name, ALIAS, version.version)
    if holder is None:
        return True, f"version {version.version}, the first, with {score:.4f} on validation"
    return True, f"version {version.version}: {score:.4f} beat version {holder.version}'s {holder.tags[SCORE]}{other}"


def champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """The version that holds the alias, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, ALIAS)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def version_of(client: "MlflowClient", name: str, digest: str) -> "ModelVersion | None":
    """The registered version of a model, or None."""
    found = (one for one in client.search_model_versions(f"name = '{name}'") if one.tags.get(DIGEST) == digest)
    return next(found, None)


def _version(
    client: "MlflowClient", name: str, model: "LoggedModel", run_id: str, operation: Operation
) -> "ModelVersion":
    """The version of this model; made where there is none yet, so that replaying makes no second."""
    from mlflow.exceptions import MlflowException

    digest = operation["manifest"]["digest"]
    try:
        client.create_registered_model(name, description=ABOUT.format(name=name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if (there := version_of(client, name, digest)) is not None:
        return there
    tags = {SCORE: repr(float(operation["score"])), DIGEST: digest, VALIDATION: operation["validation"]}
    # A server takes the source for a theft unless the model is named beside it.
    source, model_id = f"models:/{model.model_id}", model.model_id
    return client.create_model_version(name, source=source, run_id=run_id, tags=tags, model_id=model_id)
