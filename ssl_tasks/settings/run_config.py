"""Defines RunConfig, all sections of a recipe, and the sections of the machine, the evaluation and the gate.

The machine's settings (`runtime`) change where and how fast a run computes, never its results. `recipe.py` reads the
YAML.
"""

import re
from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from selftrain.models.settings import ONE_SIZE, LoraSettings, ModelSettings
from selftrain.ssl_tasks.settings.data import AugmentSettings, DataSettings
from selftrain.ssl_tasks.settings.methods import MethodSettings, NoisyStudentSettings, SupervisedSettings
from selftrain.ssl_tasks.settings.pseudo_labels import FeatureSettings, PredictSettings, SelectSettings
from selftrain.ssl_tasks.settings.section import RecipePath, Section
from selftrain.ssl_tasks.settings.training import FineTuneTrainSettings, TrainSettings


class RuntimeSettings(Section):
    """Settings of the machine: where and how fast a run computes. They never change results and are not part of a
    stage's key."""

    device: str = Field("auto", description="auto (a GPU if there is one), cpu, cuda or cuda:1")
    processes: int = Field(
        1,
        ge=1,
        description="data-parallel training processes on this host. They share each batch. Batch norm uses the whole "
        "batch on CUDA, and each process's own part on CPUs (running statistics are averaged)",
    )
    nodes: int = Field(
        1, ge=1, description="hosts that train together, each with `processes`; run `selftrain assist` on the others"
    )
    rendezvous: str | None = Field(
        None,
        description="HOST:PORT of this host, as the other hosts reach it; default its name and a free port",
    )
    workers: int = Field(0, ge=0, description="processes that prepare batches; 0: the training process itself")
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; default the number of cores")
    cache: Literal["auto", "off"] = Field(
        "auto", description="auto: keep decoded images in a shared file if they fit into cache_gb"
    )
    cache_gb: float = Field(8.0, ge=0, description="largest file of decoded images, in GB")
    checkpoint_every: float = Field(60.0, gt=0, description="seconds between two checkpoints of a training")
    parallel: int = Field(1, ge=1, description="number of independent stages that run at the same time")
    memory_gb: float = Field(2.0, gt=0, description="memory of DuckDB, in GB")
    stage_timeout: float | None = Field(
        None, gt=0, description="seconds that a stage may take, from when it has its GPU; default no limit"
    )
    retries: int = Field(2, ge=0, description="retries of a stage after a temporary fault, such as a lost connection")
    store: str | None = Field(
        None, description="object storage that machines share, such as s3://bucket/folder; default SELFTRAIN_STORE"
    )
    task_runner: Literal["local", "ray"] = Field(
        "local", description="ray: run prediction shards and the runs of a comparison as tasks of a Ray cluster"
    )
    ray_address: str | None = Field(
        None, description="address of the Ray cluster, HOST:6379; default RAY_ADDRESS, else this machine's cluster"
    )
    gpus_per_task: float = Field(
        0.0, ge=0, description="GPUs of a Ray task, which also gets `threads` CPUs (default 1)"
    )
    restarts: int = Field(3, ge=0, description="times in a row that a Prefect server restarts a crashed run")


class EvaluateSettings(Section):
    """Settings of the evaluation of every model on validation and test images."""

    batch_size: int = Field(
        256, ge=1, description="images per batch; with bf16, the last bit of results may depend on it"
    )
    bootstrap: int = Field(1_000, ge=0, description="bootstrap samples of the 95 % intervals")
    attacks: tuple[float, ...] = Field((), description="sizes of FGSM attacks, as shares of the pixel range")
    corruptions: bool = Field(False, description="accuracy under noise, blur, weather and digital corruptions")
    robustness_images: int = Field(1_000, ge=1, description="at most so many test images are attacked and corrupted")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the bootstrap and the corruptions")


class GateSettings(Section):
    """Settings of the gate, which stops the rounds. It compares the student with its teacher on the same validation
    images."""

    enabled: bool = Field(True, description="false: never stop; the checks are still recorded")
    max_p_value_worse: float = Field(
        0.05,
        ge=0,
        le=1,
        description="stop if the student is worse than its teacher with this p-value or a lower one "
        "(McNemar's exact test)",
    )
    require_gain: bool = Field(False, description="stop unless the student is better than its teacher on validation")
    max_class_share: float = Field(
        0.9, gt=0, le=1, description="stop if more than this share of the student's predictions are one class"
    )
    min_selected: int = Field(1, ge=0, description="stop if a round accepts fewer pseudo-labels")
    max_drift: float = Field(
        1.0,
        ge=0,
        le=1,
        description="stop if the class shares of accepted pseudo-labels and labelled images differ by more "
        "(total variation)",
    )


MOST_ROUNDS = 100
MOST_MEMBERS = 100
LONGEST_NAME = 200  # a run's folder and its files add to it, and a file name has at most 255 bytes


class LearnerSettings(Section):
    """Settings of one training: the network, the method, the optimisation and the augmentation."""

    model: ModelSettings = ModelSettings()
    method: MethodSettings = SupervisedSettings()
    train: TrainSettings = TrainSettings()
    augment: AugmentSettings = AugmentSettings()
    members: int = Field(
        1,
        ge=1,
        le=MOST_MEMBERS,
        json_schema_extra={"key": False},
        description="number of networks of an ensemble, which differ only in their seed",
    )

    @model_validator(mode="after")
    def _members_differ(self) -> Self:
        if self.method.name == "linear" and self.members > 1:
            raise ValueError(
                f"members is {self.members}, and models of method linear do not depend on a seed: all would be alike. "
                "Leave members out, or list teachers of several kinds"
            )
        return self


class StudentSettings(LearnerSettings):
    """Settings of a round's student. An online method uses the accepted pseudo-labels as additional labels."""

    method: MethodSettings = NoisyStudentSettings()
    init: Literal["scratch", "teacher"] = Field(
        "scratch", description="first weights of the student: random, or those of its teacher"
    )


class FineTuneSettings(Section):
    """FixRes (arXiv 1906.06423): the trained student is trained for a few steps on larger images, and evaluated on
    them.

    It is trained on the labelled and the accepted images, without augmentation and without the student's noise.
    """

    image_size: int = Field(ge=1, description="side of the larger images, in pixels; the network must accept any size")
    layers: Literal["classifier_and_norms", "all"] = Field(
        "classifier_and_norms", description="layers that are trained; running statistics change in any case"
    )
    train: FineTuneTrainSettings = FineTuneTrainSettings()

    def of(self, student: LearnerSettings) -> "TunedSettings":
        """Returns the settings of the stage that fine-tunes this student."""
        # Running statistics belong to a size, and have few steps to reach the new one's.
        quiet = {"dropout": 0.0, "stochastic_depth": 0.0, "batch_norm_momentum": 0.1, "pretrained": None}
        as_they_are = AugmentSettings(flip=False, crop_padding=0)
        model = student.model.model_copy(update=quiet)
        return TunedSettings(model=model, train=self.train, augment=as_they_are, layers=self.layers)


class TunedSettings(LearnerSettings):
    """The settings of a fine-tuning stage: supervised training of a given network."""

    layers: Literal["classifier_and_norms", "all"]


class WeightsSettings(Section):
    """The pretrained weights of a network; the key of a local file depends only on its contents."""

    network: str
    pretrained: bool | str = Field(json_schema_extra={"key": False})


class CheckSettings(Section):
    """The settings of a check: a network as it will be trained."""

    model: ModelSettings
    tune: str
    lora: LoraSettings


class RoundSettings(Section):
    """One round: predict → select → student (→ fine-tuning) → evaluate → gate."""

    predict: PredictSettings = PredictSettings()
    select: SelectSettings = SelectSettings()
    student: StudentSettings = StudentSettings()
    finetune: FineTuneSettings | None = Field(
        None,
        description="train the student further on larger images; the result is the round's model. Meant "
        "for the last round",
    )
    gate: GateSettings = GateSettings()
    hold: bool = Field(False, description="wait after the selection until you run `selftrain approve`")

    @model_validator(mode="after")
    def _network_takes_any_size(self) -> Self:
        name = self.student.model.name
        if self.finetune is not None and name.startswith(ONE_SIZE):
            raise ValueError(
                f"finetune needs a student that accepts images of any size, and {name} is built for one size; remove "
                "finetune, or use small_cnn, wrn-28-2 or torchvision:efficientnet_b0"
            )
        return self


class RunConfig(Section):
    """The settings of a whole run: a teacher, then rounds. Without rounds, it trains and evaluates one model."""

    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME, description="name of the run"
    )
    seed: int = Field(0, ge=0, lt=2**62, description="seed of all trainings")
    data: DataSettings = DataSettings()
    teacher: LearnerSettings = LearnerSettings()
    other_teachers: tuple[LearnerSettings, ...] = Field(
        (),
        max_length=MOST_MEMBERS,
        description="teachers of other kinds, whose predictions are averaged with those of `teacher`; "
        "`teacher: [A, B]` sets both",
    )
    features: FeatureSettings = FeatureSettings()
    pretrain: LearnerSettings | None = Field(
        None, description="a training before the teacher's, which provides its first weights, such as simclr"
    )
    given_teacher: RecipePath | None = Field(
        None, description="folder with a trained model, used instead of training `teacher`"
    )
    rounds: tuple[RoundSettings, ...] = Field(
        (), max_length=MOST_ROUNDS, description=f"the rounds, at most {MOST_ROUNDS}"
    )
    evaluate: EvaluateSettings = EvaluateSettings()
    runtime: RuntimeSettings = RuntimeSettings()

    @property
    def teachers(self) -> tuple[LearnerSettings, ...]:
        """Returns every model that is trained before the rounds, member by member; none if a teacher is given."""
        kinds = () if self.given_teacher else (self.teacher, *self.other_teachers)
        return tuple(one for one in kinds for _ in range(one.members))

    @model_validator(mode="after")
    def _one_way_to_a_teacher(self) -> Self:
        if self.given_teacher is not None and self.other_teachers:
            raise ValueError("given_teacher takes the place of every teacher; leave other_teachers out")
        return self

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
        """Refuses to freeze a body with random weights, whose features would be meaningless."""
        for name, learner in learners(self):
            given = learner.model.pretrained is not None or getattr(learner, "init", "scratch") == "teacher"
            given = given or (name == "teacher" and self.pretrain is not None)
            if learner.train.tune != "all" and not given:
                raise ValueError(
                    f"{name}.train.tune is {learner.train.tune}, and the network starts from drawn weights; set "
                    f"{name}.model.pretrained{' or init: teacher' if name.startswith('rounds.') else ''}, or train all"
                )
        return self

    @model_validator(mode="after")
    def _students_learn_on_from_networks_of_their_kind(self) -> Self:
        """Refuses, before the teacher is trained, a student that could not start from its weights."""
        teacher = None if self.given_teacher else self.teacher
        for number, student in enumerate((settings.student for settings in self.rounds), 1):
            problem = teacher and unfit_to_begin_with(teacher.model, teacher.members, student.model)
            if problem and student.init == "teacher" and student.method.name != "linear":
                raise ValueError(f"rounds.{number}.student.{problem}")
            teacher = student
        return self


def learners(config: RunConfig) -> Iterator[tuple[str, LearnerSettings]]:
    """Yields the networks that a run would train, with their places in the recipe."""
    if config.given_teacher is None:
        yield "teacher", config.teacher
        yield from ((f"other_teachers.{number}", one) for number, one in enumerate(config.other_teachers, 1))
        if config.pretrain is not None:
            yield "pretrain", config.pretrain
    for number, settings in enumerate(config.rounds, 1):
        yield f"rounds.{number}.student", settings.student


def checks(config: RunConfig) -> Iterator[tuple[str, str, LearnerSettings]]:
    """Yields the networks to check before training, each with the names of its check's and its weights' stages.

    Networks that start from the same weights share their stage; a network that was checked before is skipped.
    """
    weights: dict[tuple[str, object], str] = {}
    seen: set[tuple[object, ...]] = set()
    for place, learner in learners(config):
        model, train = learner.model, learner.train
        if (model.pretrained is None and train.tune == "all") or (key := (model, train.tune, train.lora)) in seen:
            continue
        seen.add(key)
        name = (
            place.replace("rounds.", "student-").replace("other_teachers.", "other-teacher-").removesuffix(".student")
        )
        kept = "" if model.pretrained is None else weights.setdefault((model.name, model.pretrained), f"weights-{name}")
        yield f"check-{name}", kept, learner


def in_need_of_validation(config: RunConfig) -> list[str]:
    """Returns the settings of a recipe that need validation images, each with its value."""
    learners: dict[str, LearnerSettings] = {} if config.given_teacher else {"teacher": config.teacher}
    if config.pretrain is not None and not config.given_teacher:
        learners["pretrain"] = config.pretrain
    found = []
    for number, one in enumerate(config.rounds):
        learners[f"rounds.{number}.student"] = one.student
        if isinstance(one.predict.temperature, str):
            found.append(f"rounds.{number}.predict.temperature: {one.predict.temperature}")
        if one.select.target_precision is not None:
            found.append(f"rounds.{number}.select.target_precision: {one.select.target_precision:g}")
        if one.gate.enabled and one.gate.require_gain:
            found.append(f"rounds.{number}.gate.require_gain: true")
        if one.finetune is not None and one.finetune.train.patience is not None:
            found.append(f"rounds.{number}.finetune.train.patience: {one.finetune.train.patience}")
    waiting = {name: one.train.patience for name, one in learners.items() if one.train.patience is not None}
    return [*(f"{name}.train.patience: {value}" for name, value in waiting.items()), *found]


def unfit_to_begin_with(given: ModelSettings, members: int, wanted: ModelSettings) -> str:
    """Returns why a network cannot start from the weights of a given model; empty if it can."""
    if members > 1:
        return (
            f"init: the given model is an ensemble of {members} networks; expected a single network. Set init: scratch."
        )
    if given.label != wanted.label:
        return (
            f"init: found the weights of {given.label} for a network {wanted.label}; "
            "expected the same architecture. Set the same model.name and model.width, or init: scratch."
        )
    return ""


def run_name(text: str, otherwise: str = "run") -> str:
    """Returns a valid run name made from any text; half as long as allowed, because a comparison's cells add to it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[: LONGEST_NAME // 2] or otherwise
