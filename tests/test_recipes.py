"""Recipes: merged, overridden, validated all at once."""

from pathlib import Path

import pytest
import yaml

from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.settings.methods import FixMatchSettings, NoisyStudentSettings
from selftrain.ssl_tasks.settings.overrides import merged
from selftrain.ssl_tasks.settings.recipe import BUILT_IN, load_recipe, parse_recipe, values_with_origin
from selftrain.ssl_tasks.settings.run_config import RunConfig, run_name

QUICK = "quickstart"
DATA = "data: {source: {name: digits}}\n"


@pytest.mark.parametrize("path", sorted(BUILT_IN.rglob("*.yaml")), ids=lambda path: str(path.relative_to(BUILT_IN)))
def test_every_built_in_recipe_is_valid_and_says_how_to_run_it(path: Path) -> None:
    assert load_recipe(path).config.name
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "selftrain " in head


def test_each_round_starts_from_round_and_says_what_differs() -> None:
    raw = {"rounds": [{}, {"select": {"threshold": 0.9}}], "round": {"select": {"threshold": 0.5, "balance": "none"}}}
    first, second = parse_recipe(raw, Path("x.yaml")).config.rounds
    assert (first.select.threshold, first.select.balance) == (0.5, "none")
    assert (second.select.threshold, second.select.balance) == (0.9, "none")


def test_another_method_does_not_inherit_the_first_ones_settings() -> None:
    base = {"method": {"name": "fixmatch", "threshold": 0.9}, "train": {"steps": 5}}
    assert merged(base, {"method": {"name": "supervised"}}) == {"method": {"name": "supervised"}, "train": {"steps": 5}}
    assert merged(base, {"method": {"name": "fixmatch"}})["method"]["threshold"] == 0.9


def test_overrides_reach_one_round_or_all() -> None:
    one = load_recipe(QUICK, ["rounds.2.select.threshold=0.77"]).config
    assert [settings.select.threshold for settings in one.rounds] == [0.3, 0.77, 0.3]
    all_of_them = load_recipe(QUICK, ["round.select.threshold=0.77"]).config
    assert {settings.select.threshold for settings in all_of_them.rounds} == {0.77}
    assert len(load_recipe(QUICK, ["rounds=1"]).config.rounds) == 1


def test_each_value_tells_where_it_came_from() -> None:
    origins = {name: origin for name, _, origin in values_with_origin(load_recipe(QUICK, ["seed=3"]))}
    assert (origins["seed"], origins["data.split.labels_per_class"]) == ("--set", "recipe")
    assert (origins["runtime.device"], origins["rounds.2.select.threshold"]) == ("default", "recipe")


def test_all_problems_are_reported_together_with_the_nearest_name(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    raw = {
        "naem": "x",
        "data": {"source": {"name": "digit"}},
        "teacher": {"method": {"name": "fixmatch", "treshold": 0.9}, "train": {"steps": -1}},
        "rounds": [{"select": {"threshold": 3}}],
    }
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert "has 5 problems" in message
    for part in (
        "data.source.name: unknown name 'digit'. Did you mean 'digits'?",
        "teacher.method.treshold: unknown setting. Did you mean 'threshold'?",
        "teacher.train.steps: found -1",
        "rounds.1.select.threshold: found 3",
        "naem: unknown setting. Did you mean 'name'?",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rounds.7.select.threshold=1"], "'7' is not one of the 3 rounds"),
        (["seed"], "expected a.b=value"),
        (["seed=[1"], "not a YAML value"),
        (["teacher.train.steps=many"], r"teacher.train.steps: found 'many'"),
        (["teacher.train.stepz=3"], "Did you mean 'steps'"),
        (["teacher.method.weight=4"], "'supervised', the default, has no setting 'weight'; set teacher.method.name"),
        (["teacher.method.weight=4"], "to one that has: pseudo_label, fixmatch, mean_teacher"),
        (["teacher.method.mixpu=4"], r"teacher.method.mixpu: unknown setting. Did you mean 'mixup'\?"),
    ],
)
def test_a_bad_override_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(QUICK, overrides)


def test_a_section_without_a_name_is_of_the_default_kind_or_of_the_recipes() -> None:
    of_default = load_recipe(QUICK, ["round.student.method.weight=4"]).config
    assert [one.student.method for one in of_default.rounds] == [NoisyStudentSettings(weight=4)] * 3
    of_recipe = load_recipe(QUICK, ["teacher.method.name=fixmatch", "teacher.method.weight=4"]).config
    assert of_recipe.teacher.method == FixMatchSettings(weight=4)


@pytest.mark.parametrize(("text", "message"), [("a: [", "not a YAML recipe"), ("- 1", "holds a list")])
def test_a_file_that_is_no_recipe_is_said_to_be_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'quickstart'"):
        load_recipe("quickstrat")


def test_paths_in_a_recipe_start_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {source: {name: folder, path: images}}")
    monkeypatch.chdir("/")
    assert load_recipe(path).config.data.source.path == tmp_path / "images"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            "rounds.2.student.model.width=80",
            r"rounds\.2\.student\.init: found the weights of fast_cnn 64 for a network fast_cnn 80;",
        ),
        ("teacher.model.name=mlp", r"rounds\.1\.student\.init: found the weights of mlp 64 for a network fast_cnn 64;"),
        ("rounds.1.student.members=2", r"rounds\.2\.student\.init: the given model is an ensemble of 2 networks"),
    ],
)
def test_a_student_that_cannot_begin_with_its_teachers_weights_is_refused_before_anything_runs(
    change: str, complaint: str
) -> None:
    recipe = load_recipe("image_folder").config
    assert [one.student.init for one in recipe.rounds] == ["teacher", "teacher"]
    with pytest.raises(ConfigError, match=complaint):
        load_recipe("image_folder", [change])
    given = load_recipe("image_folder", ["teacher.model.name=mlp", "given_teacher=tests"])
    assert given.config.rounds[0].student.init == "teacher", "what a given teacher is, its folder says"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mein rezept", "mein-rezept"),
        ("Blüten", "Bl-ten"),
        ("2024-06-01", "2024-06-01"),
        (".hidden_v1.5", "hidden_v1.5"),
        ("фото", "run"),
        ("", "run"),
        ("x" * 300, "x" * 100),
    ],
)
def test_any_text_gives_a_name_that_a_run_may_have(text: str, name: str) -> None:
    assert run_name(text) == name
    assert RunConfig(name=name).name == name


def test_a_recipe_without_a_name_is_called_by_its_file_whatever_that_is_called(tmp_path: Path) -> None:
    for stem, name in (("mein rezept", "mein-rezept"), ("Blüten", "Bl-ten"), ("2024", "2024"), ("-", "run")):
        (tmp_path / f"{stem}.yaml").write_text(DATA)
        assert load_recipe(tmp_path / f"{stem}.yaml").config.name == name


@pytest.mark.parametrize("name", ["2024-06-01", "2024", "no", "1e3", "null"])
def test_a_given_name_is_text_whatever_yaml_would_take_it_for(name: str) -> None:
    assert load_recipe(QUICK, ["seed=1"], name=name).config.name == name


def test_a_given_name_that_no_folder_may_have_is_refused() -> None:
    for name in ("a b", "../up", "", "x" * 250):
        with pytest.raises(ConfigError, match="name: found"):
            load_recipe(QUICK, name=name)


@pytest.mark.parametrize("rounds", ["", " 2", " [{}, {}]", " many"])
def test_rounds_are_counted_whatever_the_recipe_says_of_them(tmp_path: Path, rounds: str) -> None:
    path = tmp_path / "counted.yaml"
    path.write_text(f"{DATA}round: {{select: {{threshold: 0.5}}}}\nrounds:{rounds}\n")
    for count in (0, 1, 3):
        counted = load_recipe(path, [f"rounds={count}"]).config.rounds
        assert [one.select.threshold for one in counted] == [0.5] * count


@pytest.mark.parametrize(
    ("rounds", "overrides", "found"),
    [
        ("", ["rounds=-1"], "-1"),
        ("3", ["rounds=-1"], "-1"),
        ("-1", [], "-1"),
        ("true", [], "True"),
        ("3", ["rounds=yes"], "'yes'"),
        ("", [], "None"),
        ("many", [], "'many'"),
        ("{}", [], "{}"),
    ],
)
def test_what_is_no_number_of_rounds_is_said_to_be_none(
    tmp_path: Path, rounds: str, overrides: list[str], found: str
) -> None:
    path = tmp_path / "uncounted.yaml"
    path.write_text(f"{DATA}rounds: {rounds}\n")
    with pytest.raises(ConfigError, match=f"rounds: found {found}; "):
        load_recipe(path, overrides)
