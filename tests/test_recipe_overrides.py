"""`--set`: rounds count from 1, and an override that something else overrides is an error."""

from pathlib import Path

import pytest

from selftrain.flows.actions.verbs import rerun
from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.settings.recipe import WRITTEN, load_recipe, values_with_origin
from selftrain.ssl_tasks.store.runs import Run, dumped
from selftrain.ssl_tasks.store.stage_names import stage_names

RECIPE = """
name: three
data: {source: {name: folder, path: images}}
round:
  select: {threshold: 0.3}
  student: {method: {name: fixmatch, threshold: 0.9}}
rounds:
  - student: {model: {width: 24}}
  - student: {model: {width: 32}, method: {name: supervised}}
  -
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe with a `round:`, and rounds that change a part of it."""
    path = tmp_path / "three.yaml"
    path.write_text(RECIPE)
    return path


def test_rounds_count_from_1_in_overrides_as_in_stages_problems_and_origins(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["rounds.1.select.threshold=0.5"])
    assert [one.select.threshold for one in loaded.config.rounds] == [0.5, 0.3, 0.3]
    assert next(name for name in stage_names(loaded.config) if name.startswith("select")) == "select-1"
    origins = {name: (value, origin) for name, value, origin in values_with_origin(loaded)}
    assert origins["rounds.1.select.threshold"] == (0.5, "--set")
    assert origins["rounds.3.select.threshold"] == (0.3, "recipe")
    assert not any(name.startswith("rounds.0") for name in origins)
    with pytest.raises(ConfigError, match=r"rounds\.3\.select\.threshold: found 7"):
        load_recipe(recipe, ["rounds.3.select.threshold=7"])


@pytest.mark.parametrize("number", ["0", "4", "-1", "first", "9" * 40, "²", "\u0661", "01"])
def test_a_round_that_is_none_is_refused_and_told_where_they_start(recipe: Path, number: str) -> None:
    with pytest.raises(ConfigError, match=r"not one of the 3 rounds \(they count from 1\)"):
        load_recipe(recipe, [f"rounds.{number}.select.threshold=0.5"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["round.student.model.width=10"], r"no effect in round 1, 2: .* --set rounds\.1\.student\.model\.width=10"),
        (["round.student.model={width: 10}"], "no effect in round 1, 2"),
        (["round.select.threshold=0.5", "rounds.2.select.threshold=0.6"], "no effect in round 2"),
        (["rounds.3.select.threshold=0.5", "rounds=2"], "rounds.3.select.threshold has no effect"),
        (["rounds=2", "rounds=1"], "rounds has no effect"),
        (["seed=1", "seed=2"], "seed has no effect"),
        (["teacher.train.steps=5", "teacher.train={}"], "teacher.train.steps has no effect"),
        (["teacher={members: 2}", "teacher={}"], "teacher has no effect"),
        (["rounds=0", "round.select.threshold=0.5"], "has no rounds"),
    ],
)
def test_an_override_that_something_else_overrides_is_refused(recipe: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=0"],
        ["seed=1", "seed=1"],
        ["round.select.threshold=0.3"],
        ["round.student.method.threshold=0.8"],
        ["rounds=3"],
        ["rounds=4"],
        ["rounds=1", "round.select.threshold=0.7", "rounds.1.student.model.width=64"],
        ["teacher.method={name: fixmatch}", "teacher.method.threshold=0.9"],
        ["rounds=[{}, {hold: true}]"],
        ["pretrain=", "pretrain.method.name=simclr"],
    ],
)
def test_an_override_that_says_what_is_so_already_is_fine(recipe: Path, overrides: list[str]) -> None:
    load_recipe(recipe, overrides)


def test_a_round_of_another_method_is_left_out_of_a_setting_of_every_round(recipe: Path) -> None:
    rounds = load_recipe(recipe, ["round.student.method.threshold=0.8"]).config.rounds
    assert [getattr(one.student.method, "threshold", None) for one in rounds] == [0.8, None, 0.8]


def test_what_the_command_sets_itself_cannot_be_set(recipe: Path) -> None:
    fixed = ["rounds=[]", "seed=3"]
    assert load_recipe(recipe, ["round.select.threshold=0.5", "seed=3"], fixed=fixed).config.rounds == ()
    with pytest.raises(ConfigError, match="seed has no effect: this command"):
        load_recipe(recipe, ["seed=1"], fixed=fixed)
    with pytest.raises(ConfigError, match="name has no effect"):
        load_recipe(recipe, ["name=a"], name="b")


def test_a_runs_folder_is_its_recipe_as_it_was_written(recipe: Path, tmp_path: Path) -> None:
    given = load_recipe(recipe, ["round.select.balance=none"], name="mine")
    run = Run.create(tmp_path / "workspace", given.config, given.written)
    again = load_recipe(run.path)
    assert again.config == given.config
    assert again.config.data.source.path == tmp_path / "images"
    changed = load_recipe(run.path, ["round.select.threshold=0.7", "rounds=4"]).config.rounds
    assert [one.select.threshold for one in changed] == [0.7] * 4
    assert [one.student.method.name for one in changed] == ["fixmatch", "supervised", "fixmatch", "fixmatch"]
    with pytest.raises(ConfigError, match=r"no effect in round 1, 2"):
        load_recipe(run.path, ["round.student.model.width=10"])


@pytest.mark.parametrize("damage", ["absent", "of another configuration", "no JSON", "a list"])
def test_a_run_without_its_written_recipe_names_its_rounds_one_by_one(
    recipe: Path, tmp_path: Path, damage: str
) -> None:
    given = load_recipe(recipe)
    run = Run.create(tmp_path / "workspace", given.config, given.written)
    written = run.path / WRITTEN
    match damage:
        case "absent":
            written.unlink()
        case "no JSON":
            written.write_text('{"folder"')
        case "a list":
            written.write_text("[]")
        case _:  # as where a default has changed since
            (run.path / "config.yaml").write_text(dumped(given.config.model_copy(update={"seed": 5})))
    assert load_recipe(run.path).config == run.config
    assert load_recipe(run.path, ["rounds.2.select.threshold=0.7"]).config.rounds[1].select.threshold == 0.7
    assert len(load_recipe(run.path, ["rounds=2"]).config.rounds) == 2
    with pytest.raises(ConfigError, match=r"name each round, for example --set rounds\.1\.select\.threshold=0\.7"):
        load_recipe(run.path, ["round.select.threshold=0.7"])
    with pytest.raises(ConfigError, match="not the recipe that a further one would start from"):
        load_recipe(run.path, ["rounds=4"])


def test_rerun_refuses_an_override_without_effect_before_anything_starts(recipe: Path, tmp_path: Path) -> None:
    given = load_recipe(recipe)
    Run.create(tmp_path / "workspace", given.config, given.written)
    with pytest.raises(ConfigError, match="no effect in round 1, 2"):
        rerun("last", "student-1", ["round.student.model.width=10"], workspace=tmp_path / "workspace")
