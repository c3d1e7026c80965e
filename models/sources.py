"""Finds pretrained weights, fetches them onto this machine, and collects the facts about them.

timm's weights come from the Hugging Face hub into its cache, torchvision's and those of a URL into torch's. Hashes in
the names of torchvision's files are checked.
"""

import fnmatch
import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import torch
from pydantic import BaseModel

from selftrain.models.libraries import import_timm, nearest_of_many
from selftrain.models.settings import (
    HUB_ID,
    SUFFIX,
    ModelSettings,
    Normalisation,
    check_safetensors,
    weights_file,
)
from selftrain.models.torchvision_import import torchvision
from selftrain.ssl_tasks.errors import ConfigError, nearest

HUB_FILE, HUB_CONFIG = "model.safetensors", "config.json"
CHUNK = 1 << 20
Progress = Callable[[int, int], None]  # bytes fetched so far, bytes in all


class Facts(BaseModel):
    """The known facts about weights: names, licence, and the preparation of images in their training."""

    network: str
    tag: str = ""
    source: str  # a hub id, a URL, or a file's name
    licence: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    image_size: int | None = None
    crop: float | None = None  # share of the shorter side that evaluation kept

    @property
    def normalisation(self) -> Normalisation | None:
        """Returns the mean and deviation of the training, if they are known."""
        return None if self.mean is None or self.std is None else Normalisation(mean=self.mean, std=self.std)


def import_hub() -> ModuleType:
    """Returns huggingface_hub; raises ConfigError if it is not installed."""
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "model.pretrained names a repository of the Hugging Face hub, and the package huggingface_hub is not "
            "installed: pip install 'selftrain[timm]'."
        ) from error


@dataclass(frozen=True)
class Source:
    """The origin of weights: a repository of the hub, a URL, or a file of this machine."""

    facts: Facts
    repository: str = ""
    revision: str | None = None
    url: str = ""
    file: Path | None = None

    @property
    def place(self) -> Path:
        """Returns the path of the file, or the path to put it at by hand."""
        if self.file is not None:
            return self.file
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        if self.repository:
            revision = f"@{self.revision}" if self.revision else ""
            return folder / f"{self.repository}{revision}{SUFFIX}".replace("/", "--")
        name = self.url.rpartition("/")[2].partition("?")[0]
        if name.endswith(SUFFIX):  # many files have the same name; torchvision's end in a hash
            name = f"{hashlib.sha256(self.url.encode()).hexdigest()[:12]}-{name}"
        return folder / name

    @property
    def here(self) -> Path | None:
        """Returns the file if it is on this machine already, else None."""
        if self.place.is_file():
            return self.place
        if not self.repository:
            return None
        cached = import_hub().try_to_load_from_cache(self.repository, HUB_FILE, revision=self.revision)
        return Path(cached) if isinstance(cached, str) else None

    @property
    def address(self) -> str:
        """Returns the URL of the file; empty for a file of this machine."""
        if not self.repository:
            return self.url
        return import_hub().hf_hub_url(self.repository, HUB_FILE, revision=self.revision)


def find_source(model: ModelSettings) -> Source:
    """Returns the origin of the settings' weights and the facts that the library knows; fetches nothing."""
    kind, spec = model.pretrained_kind, str(model.pretrained)
    if kind == "tag":
        return official_source(model.name, None if model.pretrained is True else spec)
    facts = architecture_facts(model.name)
    if (file := weights_file(model)) is not None:
        return Source(facts.model_copy(update={"source": file.name}), file=file)
    if kind == "url":
        return Source(facts.model_copy(update={"source": spec}), url=spec)
    found = HUB_ID.fullmatch(spec)
    assert found is not None, "the settings allow no other text"
    repository, revision = found.groups()
    known = official_facts_of_hub(repository) or facts
    source = repository if revision is None else f"{repository}@{revision}"
    return Source(known.model_copy(update={"source": source, "network": model.name}), repository, revision)


def official_source(network: str, tag: str | None) -> Source:
    """Returns the weights that timm or torchvision publish for one of their networks."""
    library, _, name = network.partition(":")
    return timm_source(name, tag) if library == "timm" else torchvision_source(name, tag)


def timm_source(name: str, tag: str | None) -> Source:
    """Returns timm's weights with a tag; without one, those of the tag in the name or the default."""
    models = import_timm().models
    if not models.is_model(name):
        raise ConfigError(f"timm has no model '{name}'." + nearest_of_many(name, models.list_models()))
    base = name.partition(".")[0]
    tags = [full.partition(".")[2] for full in models.list_pretrained(f"{base}.*")]
    if (tag is not None and tag not in tags) or not tags:
        found = f"no weights with the tag '{tag}'" if tag else "no weights"
        raise ConfigError(f"timm publishes {found} of {base}." + nearest(tag or "", tags))
    known = models.get_pretrained_cfg(name if tag is None else f"{base}.{tag}")
    if not known.hf_hub_id:
        raise ConfigError(f"timm publishes the weights of {known.architecture} outside the hub; give a URL or a path")
    return Source(timm_facts(known), known.hf_hub_id)


def timm_facts(known: Any) -> Facts:
    """Returns the facts in timm's configuration of weights."""
    return Facts(
        network=f"timm:{known.architecture}",
        tag=known.tag or "",
        source=known.hf_hub_id or "",
        licence=known.license,
        mean=known.mean,
        std=known.std,
        interpolation=known.interpolation,
        image_size=known.input_size[-1],
        crop=known.crop_pct,
    )


def torchvision_source(name: str, tag: str | None) -> Source:
    """Returns torchvision's weights with a tag such as IMAGENET1K_V2, or its default."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ConfigError(f"torchvision has no classifier '{name}'." + nearest(name, known))
    listed = {one.name: one for one in torchvision.models.get_model_weights(name)}
    if tag is not None and tag not in listed:
        raise ConfigError(f"torchvision publishes no weights '{tag}' of {name}." + nearest(tag, listed))
    weights = listed[tag] if tag else torchvision.models.get_model_weights(name).DEFAULT
    return Source(torchvision_facts(name, weights), url=weights.url)


def torchvision_facts(name: str, weights: Any) -> Facts:
    """Returns the facts in torchvision's entry of weights, which states no licence."""
    shown = weights.transforms()
    resized, cropped = shown.resize_size[0], shown.crop_size[0]
    return Facts(
        network=f"torchvision:{name}",
        tag=weights.name,
        source=weights.url,
        mean=shown.mean,
        std=shown.std,
        interpolation=shown.interpolation.value,
        image_size=cropped,
        crop=round(min(1.0, cropped / resized), 3),
    )


def architecture_facts(network: str) -> Facts:
    """Returns the facts about a network's default weights, as the best guess for a file of its weights."""
    library, _, name = network.partition(":")
    facts = Facts(network=network, source="")
    if library == "timm":
        models = import_timm().models
        if models.is_model(name) and (known := models.get_pretrained_cfg(name)) is not None:
            facts = timm_facts(known)
    elif library == "torchvision" and name in torchvision.models.list_models(module=torchvision.models):
        facts = torchvision_facts(name, torchvision.models.get_model_weights(name).DEFAULT)
    return facts.model_copy(update={"licence": None, "network": network, "tag": ""})  # a file states neither


def official_facts_of_hub(repository: str) -> Facts | None:
    """Returns the facts about one of timm's own repositories, which are named by network and tag; else None."""
    name = repository.removeprefix("timm/")
    if name == repository:
        return None
    models = import_timm().models
    return timm_facts(models.get_pretrained_cfg(name)) if models.is_model_pretrained(name) else None


def published(pattern: str) -> list[Source]:
    """Returns the weights that timm and torchvision publish for networks whose name contains or fits the pattern."""
    wanted = pattern if "*" in pattern else f"*{pattern}*"
    found = []
    if "timm:" not in wanted:
        names = torchvision.models.list_models(module=torchvision.models)
        for name in fnmatch.filter(names, wanted.replace("torchvision:", "")):
            listed = torchvision.models.get_model_weights(name)
            found += [Source(torchvision_facts(name, one), url=one.url) for one in listed]
    if "torchvision:" not in wanted:
        models = import_timm().models
        for name in models.list_pretrained(wanted.replace("timm:", "")):
            if (known := models.get_pretrained_cfg(name)) is not None and known.hf_hub_id:
                found.append(Source(timm_facts(known), known.hf_hub_id))
    return found


def obtain(model: ModelSettings, progress: Progress | None = None) -> Source:
    """Returns the weights as a file of this machine, fetched if necessary, with the facts about them."""
    source = find_source(model)
    if source.place.is_file():
        found = replace(source, file=source.place)
    elif source.repository:
        found = from_hub(source, model, progress)
    elif source.url:
        found = from_url(source, progress)
    else:
        found = source
    assert found.file is not None
    if found.file.suffix != ".pth":
        check_safetensors(found.file)
    return found


def by_hand(source: Source) -> str:
    """Returns the advice for a machine without a network."""
    return f"Fetch {source.address} on another machine and put it here as {source.place}."


def from_hub(source: Source, model: ModelSettings, progress: Progress | None) -> Source:
    """Fetches the file of a repository into the hub's cache, and reads its config.json."""
    try:
        file = Path(ask_hub(source, HUB_FILE, progress))
    except FileNotFoundError as error:
        raise ConfigError(
            f"model.pretrained: {source.repository} has no {HUB_FILE}; expected weights as safetensors. Choose "
            "another repository, or convert its weights and give the path of the file."
        ) from error
    try:
        config = json.loads(Path(ask_hub(source, HUB_CONFIG, None)).read_text())
    except (FileNotFoundError, ConfigError, ValueError):  # without it the weights are still usable
        return replace(source, file=file)
    return replace(source, file=file, facts=told_by_hub(config, source.facts, model))


def told_by_hub(config: dict[str, Any], facts: Facts, model: ModelSettings) -> Facts:
    """Returns the facts completed by the repository's config.json; raises ConfigError if it is of another network."""
    wanted, told = model.name.partition(":")[2].partition(".")[0], config.get("architecture")
    if model.name.startswith("timm:") and told not in (None, wanted):
        raise ConfigError(
            f"model.pretrained: {facts.source} holds weights of {told}, and the network is {wanted}. Set model.name "
            f"to timm:{told}, or name weights of {wanted}."
        )
    known = config.get("pretrained_cfg", {})
    found = {name: known.get(name) for name in ("mean", "std", "interpolation")}
    found |= {"licence": known.get("license"), "crop": known.get("crop_pct")}
    if size := known.get("input_size"):
        found["image_size"] = size[-1]
    return Facts.model_validate(facts.model_dump() | {name: value for name, value in found.items() if value})


def ask_hub(source: Source, name: str, progress: Progress | None) -> str:
    """Fetches a file of a repository and returns its path; raises FileNotFoundError if the repository lacks it."""
    hub = import_hub()
    errors, asked = hub.errors, f"model.pretrained: {source.repository}"
    bar = {} if progress is None else {"tqdm_class": reporting(progress)}
    try:
        return hub.hf_hub_download(source.repository, name, revision=source.revision, **bar)
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"{asked} asks for its licence to be accepted (HTTP {error.response.status_code}). Accept it on the "
            "repository's page, log in with `hf auth login` or HF_TOKEN, and run again."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"{asked} has no revision '{source.revision}'; leave @{source.revision} out.") from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(
            f"{asked} does not exist on the hub, or is private (HTTP {error.response.status_code}). Correct the id, "
            "or log in with `hf auth login`. `selftrain weights list` shows the published ones."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ConfigError(f"{asked} is not on this machine and the hub cannot be reached. {by_hand(source)}") from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(name) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise ConfigError(f"{asked} cannot be fetched ({str(error).splitlines()[0]}). {by_hand(source)}") from error


def reporting(progress: Progress) -> type:
    """Returns a class of the hub's progress bar that also reports to us."""
    bar = importlib.import_module("huggingface_hub.utils").tqdm

    class Reporting(bar):  # type: ignore[misc, valid-type]
        done = 0.0  # a hidden bar does not count

        def update(self, amount: float | None = 1) -> bool | None:
            self.done += amount or 0
            progress(int(self.done), int(self.total or self.done))
            return super().update(amount)

    return Reporting


def from_url(source: Source, progress: Progress | None) -> Source:
    """Fetches the file of a URL into torch's cache, and checks the hash in the names of torchvision's files."""
    place = source.place
    place.parent.mkdir(parents=True, exist_ok=True)
    digest, temporary = hashlib.sha256(), place.with_name(f".{place.name}.part")
    try:
        with urlopen(source.url, timeout=30) as answer, temporary.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                if progress is not None:
                    progress(file.tell(), max(total, file.tell()))
            if file.tell() < total:
                raise URLError(f"the answer ended after {file.tell():,} of {total:,} bytes")
        expected = torch.hub.HASH_REGEX.search(place.name)
        if place.suffix == ".pth" and expected and not digest.hexdigest().startswith(expected[1]):
            raise ConfigError(f"model.pretrained: {source.url} is not the file that its name says: its hash differs.")
        temporary.replace(place)
    except HTTPError as error:
        raise ConfigError(
            f"model.pretrained: {source.url} answers HTTP {error.code}; expected a file. Correct the URL."
        ) from error
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"model.pretrained: {source.url} cannot be reached ({reason}) and is not on this machine. {by_hand(source)}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return replace(source, file=place)
