"""RunConfig: all sections of a recipe together; with the sections for the machine, evaluation and the gate.

The machine's settings (`runtime`) change the place and speed of a run, never its results. `recipe.py` reads the YAML.
"""

import re
from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from selftrain.models.settings import ONE_SIZE, LoraSettings, ModelSettings
from selftrain.ssl_tasks.settings.data import AugmentSettings, DataSettings
from selftrain.ssl_tasks.settings.methods import MethodSettings, NoisyStudentSettings, SupervisedSettings
from selftrain.ssl_tasks.settings.pseudo_labels import PredictSettings, SelectSettings
from selftrain.ssl_tasks.settings.section import RecipePath, Section
from selftrain.ssl_tasks.settings.training import FineTuneTrainSettings, TrainSettings


class RuntimeSettings(Section):
    """Where and how fast; nothing here changes what is computed, so nothing here takes part in a stage's key."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1")
    processes: int = Field(
        1,
        ge=1,
        description="data-parallel training processes on this host. They share each batch; batch norm sees it whole on "
        "CUDA, on CPUs each process's own part (running statistics are averaged)",
    )
    nodes: int = Field(
        1, ge=1, description="hosts that train together, each with `processes`; on the others runs `selftrain assist`"
    )
    rendezvous: str | None = Field(
        None,
        description="HOST:PORT where the hosts meet: this one, as the others reach it; default its name, a free port",
    )
    workers: int = Field(0, ge=0, description="processes that prepare batches")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; default all cores")
    cache: Literal["auto", "off"] = Field("auto", description="decoded images in a shared file where they fit")
    cache_gb: float = Field(8.0, ge=0)
    checkpoint_every: float = Field(60.0, gt=0, description="seconds")
    parallel: int = Field(1, ge=1, description="independent stages at the same time")
    memory_gb: float = Field(2.0, gt=0, description="of DuckDB")
    stage_timeout: float | None = Field(None, gt=0, description="seconds, from when the stage has its GPU")
    retries: int = Field(2, ge=0, description="of faults that trying again can cure")
    store: str | None = Field(
        None, description="object storage that machines share, as s3://bucket/folder; default SELFTRAIN_STORE"
    )
    task_runner: Literal["local", "ray"] = Field(
        "local", description="ray: prediction shards, and the cells of a comparison, as tasks of a Ray cluster"
    )
    ray_address: str | None = Field(
        None, description="HOST:6379; default RAY_ADDRESS, else the cluster of this machine"
    )
    gpus_per_task: float = Field(0.0, ge=0, description="of a Ray task, which gets `threads` CPUs (default 1) beside")
    restarts: int = Field(3, ge=0, description="of a crashed run, in a row, where a server starts crashed runs again")


class EvaluateSettings(Section):
    """What is measured of every model, on validation and on test."""

    batch_size: int = Field(256, ge=1, description="images at a time; bf16 products may differ in their last bit by it")
    bootstrap: int = Field(1_000, ge=0, description="resamplings behind the 95 % intervals")
    attacks: tuple[float, ...] = Field((), description="FGSM steps, as a share of the pixel range")
    corruptions: bool = False
    robustness_images: int = Field(1_000, ge=1, description="most test images that are attacked and corrupted")
    seed: int = Field(0, ge=0, lt=2**63)


class GateSettings(Section):
    """When the rounds stop. The student is compared with its teacher on the same validation images."""

    enabled: bool = True
    max_p_value_worse: float = Field(
        0.05, ge=0, le=1, description="stop where the student is worse at this level (McNemar)"
    )
    require_gain: bool = Field(False, description="stop unless the student is better on validation")
    max_class_share: float = Field(
        0.9, gt=0, le=1, description="of one class among the student's predictions: collapse"
    )
    min_selected: int = Field(1, ge=0, description="pseudo-labels that a round must choose")
    max_drift: float = Field(1.0, ge=0, le=1, description="total variation between selected and labelled class shares")


MOST_ROUNDS = 100
MOST_MEMBERS = 100
LONGEST_NAME = 200  # a run's folder and its files add words to it, and a file's name has 255 bytes at the most


class LearnerSettings(Section):
    """How one network is trained: the network, the method, the optimisation and the images' noise."""

    model: ModelSettings = ModelSettings()
    method: MethodSettings = SupervisedSettings()
    train: TrainSettings = TrainSettings()
    augment: AugmentSettings = AugmentSettings()
    members: int = Field(
        1,
        ge=1,
        le=MOST_MEMBERS,
        json_schema_extra={"key": False},
        description="networks of an ensemble, alike but for their seed",
    )


class StudentSettings(LearnerSettings):
    """How a round's student is trained. An online method takes the selected pseudo-labels as further labels."""

    method: MethodSettings = NoisyStudentSettings()
    init: Literal["scratch", "teacher"] = Field("scratch", description="the student's first weights")


class FineTuneSettings(Section):
    """FixRes (1906.06423): a trained student sees larger images for a few steps, as it will see them when it is used.

    It learns the labelled and the selected images, unaugmented and without its noise.
    """

    image_size: int = Field(ge=1, description="of the larger images; the network must take any size")
    layers: Literal["classifier_and_norms", "all"] = Field(
        "classifier_and_norms", description="whose weights are trained; running statistics move in any case"
    )
    train: FineTuneTrainSettings = FineTuneTrainSettings()

    def of(self, student: LearnerSettings) -> "TunedSettings":
        """What the stage that fine-tunes this student is asked."""
        # Running statistics belong to a size, and have few steps to reach the new one's.
        quiet = {"dropout": 0.0, "stochastic_depth": 0.0, "batch_norm_momentum": 0.1, "pretrained": None}
        as_they_are = AugmentSettings(flip=False, crop_padding=0)
        model = student.model.model_copy(update=quiet)
        return TunedSettings(model=model, train=self.train, augment=as_they_are, layers=self.layers)


class TunedSettings(LearnerSettings):
    """A fine-tuning as a stage is asked for it: the supervised training of a given network."""

    layers: Literal["classifier_and_norms", "all"]


class WeightsSettings(Section):
    """Which pretrained weights, of which network; a file of this machine is named by its contents alone."""

    network: str
    pretrained: bool | str = Field(json_schema_extra={"key": False})


class CheckSettings(Section):
    """A network as it will be trained."""

    model: ModelSettings
    tune: str
    lora: LoraSettings


class RoundSettings(Section):
    """One turn of predict → select → student (→ fine-tuning) → evaluate → gate."""

    predict: PredictSettings = PredictSettings()
    select: SelectSettings = SelectSettings()
    student: StudentSettings = StudentSettings()
    finetune: FineTuneSettings | None = Field(
        None, description="of the student on larger images; its outcome is the round's model. For the last round"
    )
    gate: GateSettings = GateSettings()
    hold: bool = Field(False, description="wait after select until a person approves")

    @model_validator(mode="after")
    def _network_takes_any_size(self) -> Self:
        name = self.student.model.name
        if self.finetune is not None and name.startswith(ONE_SIZE):
            raise ValueError(
                f"finetune needs a student that takes images of any size, and {name} is built for one; leave finetune "
                "out, or use small_cnn, wrn-28-2 or torchvision:efficientnet_b0"
            )
        return self


class RunConfig(Section):
    """A whole run. Without rounds it is an online run: one method, then evaluation."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)
    seed: int = Field(0, ge=0, lt=2**62)
    data: DataSettings = DataSettings()
    teacher: LearnerSettings = LearnerSettings()
    pretrain: LearnerSettings | None = Field(None, description="trained first, as the teacher's first weights: simclr")
    given_teacher: RecipePath | None = Field(None, description="a folder with a trained model, in place of `teacher`")
    rounds: tuple[RoundSettings, ...] = Field((), max_length=MOST_ROUNDS, description=f"at most {MOST_ROUNDS}")
    evaluate: EvaluateSettings = EvaluateSettings()
    runtime: RuntimeSettings = RuntimeSettings()

    @model_validator(mode="after")
    def _finetuning_sees_larger_images(self) -> Self:
        usual = self.data.image_size
        for number, settings in enumerate(self.rounds, 1):
            if settings.finetune is not None and usual is not None and settings.finetune.image_size <= usual:
                raise ValueError(
                    f"rounds.{number}.finetune.image_size is {settings.finetune.image_size} and data.image_size "
                    f"{usual}; expected larger images than the student was trained on"
                )
        return self

    @model_validator(mode="after")
    def _what_is_frozen_has_learnt(self) -> Self:
        """A body with drawn weights that nothing trains gives features that mean nothing."""
        for name, learner in learners(self):
            given = learner.model.pretrained is not None or getattr(learner, "init", "scratch") == "teacher"
            given = given or (name == "teacher" and self.pretrain is not None)
            if learner.train.tune != "all" and not given:
                raise ValueError(
                    f"{name}.train.tune is {learner.train.tune}, and the network starts from drawn weights; set "
                    f"{name}.model.pretrained{'' if name in FIRST else ' or init: teacher'}, or train all"
                )
        return self

    @model_validator(mode="after")
    def _students_learn_on_from_networks_of_their_kind(self) -> Self:
        """What the student's stage would say after its teacher has been trained, said before."""
        teacher = None if self.given_teacher else self.teacher
        for number, student in enumerate((settings.student for settings in self.rounds), 1):
            problem = teacher and unfit_to_begin_with(teacher.model, teacher.members, student.model)
            if problem and student.init == "teacher":
                raise ValueError(f"rounds.{number}.student.{problem}")
            teacher = student
        return self


FIRST = ("teacher", "pretrain")  # those that learn before there are rounds


def learners(config: RunConfig) -> Iterator[tuple[str, LearnerSettings]]:
    """The networks that a run would train, by their places in the recipe."""
    if config.given_teacher is None:
        yield "teacher", config.teacher
        if config.pretrain is not None:
            yield "pretrain", config.pretrain
    for number, settings in enumerate(config.rounds, 1):
        yield f"rounds.{number}.student", settings.student


def checks(config: RunConfig) -> Iterator[tuple[str, str, LearnerSettings]]:
    """The networks that are looked at before anything is trained: their check's stage, their weights' stage or none.

    Networks that start from the same weights share their stage; a learner that repeats an earlier one's network is
    not looked at again.
    """
    weights: dict[tuple[str, object], str] = {}
    seen: set[tuple[object, ...]] = set()
    for place, learner in learners(config):
        model, train = learner.model, learner.train
        if (model.pretrained is None and train.tune == "all") or (key := (model, train.tune, train.lora)) in seen:
            continue
        seen.add(key)
        name = place.replace("rounds.", "student-").removesuffix(".student")
        kept = "" if model.pretrained is None else weights.setdefault((model.name, model.pretrained), f"weights-{name}")
        yield f"check-{name}", kept, learner


def in_need_of_validation(config: RunConfig) -> list[str]:
    """The settings of a recipe that cannot act without validation images, each with its value."""
    learners: dict[str, LearnerSettings] = {} if config.given_teacher else {"teacher": config.teacher}
    if config.pretrain is not None and not config.given_teacher:
        learners["pretrain"] = config.pretrain
    found = []
    for number, one in enumerate(config.rounds):
        learners[f"rounds.{number}.student"] = one.student
        if one.predict.temperature == "fit":
            found.append(f"rounds.{number}.predict.temperature: fit")
        if one.select.target_precision is not None:
            found.append(f"rounds.{number}.select.target_precision: {one.select.target_precision:g}")
        if one.gate.enabled and one.gate.require_gain:
            found.append(f"rounds.{number}.gate.require_gain: true")
        if one.finetune is not None and one.finetune.train.patience is not None:
            found.append(f"rounds.{number}.finetune.train.patience: {one.finetune.train.patience}")
    waiting = {name: one.train.patience for name, one in learners.items() if one.train.patience is not None}
    return [*(f"{name}.train.patience: {value}" for name, value in waiting.items()), *found]


def unfit_to_begin_with(given: ModelSettings, members: int, wanted: ModelSettings) -> str:
    """Why a network cannot begin with the weights of a given model; empty where it can."""
    if members > 1:
        return (
            f"init: the given model is {members} networks side by side, and a student starts from one. "
            "Expected a model of one network. Set init: scratch."
        )
    if given.label != wanted.label:
        return (
            f"init: the given weights are of {given.label}, the network to train is {wanted.label}; "
            "expected the same architecture. Set model.name and model.width alike, or init: scratch."
        )
    return ""


def run_name(text: str, otherwise: str = "run") -> str:
    """A name that a run may have, made of any text; half as long as allowed, for a comparison's cells add to it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[: LONGEST_NAME // 2] or otherwise
