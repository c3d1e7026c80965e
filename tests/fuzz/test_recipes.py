"""Any text as a recipe, and any words as overrides: a recipe or one clear sentence, soon."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.ssl_tasks.errors import SelftrainError
from selftrain.ssl_tasks.settings.recipe import BUILT_IN, Recipe, load_recipe, values_with_origin
from selftrain.ssl_tasks.settings.run_config import MOST_MEMBERS, MOST_ROUNDS
from selftrain.ssl_tasks.store.runs import Run
from selftrain.ssl_tasks.store.stage_names import stage_names

TEXTS = [path.read_text() for path in sorted(BUILT_IN.rglob("*.yaml"))]
MOST_STAGES = 2 + 2 * MOST_MEMBERS + MOST_ROUNDS * (5 + 4 * MOST_MEMBERS)
SECONDS = 60  # of a processor: it must end, however slow the machine is
WORDS = st.one_of(
    st.sampled_from(["off", "on", "yes", "no", "null", "~", "true", "12:30", "010", "1e-3", "1_000", "0x1F", ".nan"]),
    st.sampled_from(["-1", "0", "3", "1e999", "9" * 5_000, "{}", "[]", "[1, 2]", "{name: fixmatch}", "", "!!int x"]),
    st.sampled_from(["*a", "&a x", "&a [*a]", "<<", "? x", "- -", "{a: {b: {c: d}}}", '"\\ud800"', '"\\0"', "|\n  x"]),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.text(max_size=30),
)
PATHS = st.one_of(
    st.sampled_from(["seed", "rounds", "round", "name", "data", "teacher.method", "rounds.1", "rounds.0.hold"]),
    st.sampled_from(["round.student.model.width", "rounds.1.student.method", "teacher.train.steps", "data.classes.1"]),
    st.lists(st.sampled_from(["round", "rounds", "1", "teacher", "train", "steps", "name", "", "0"]), max_size=5).map(
        ".".join
    ),
    st.text(max_size=20),
)
TREES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["rounds", "student", "select", "name", "model", "x"]), inner, max_size=4),
    ),
    max_leaves=12,
)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A recipe of ours with some of its lines doubled, dropped, moved, indented or given another value."""
    lines = draw(st.sampled_from(TEXTS)).splitlines()
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        match draw(st.sampled_from(["double", "drop", "move", "indent", "value", "cut", "nest", "text"])):
            case "double":
                lines.insert(draw(st.integers(0, len(lines))), line)
            case "drop" if len(lines) > 1:
                del lines[at]
            case "move":
                lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
            case "indent":
                lines[at] = " " * draw(st.integers(0, 6)) + line.strip()
            case "value":
                lines[at] = line.partition(":")[0] + ": " + draw(WORDS)
            case "cut":
                lines[at] = line[: draw(st.integers(0, len(line)))]
            case "nest":
                lines[at] = line + draw(st.sampled_from("[{-?&*")) * draw(st.sampled_from([1, 40, 3_000]))
            case _:
                lines[at] = draw(st.text(max_size=20))
    return "\n".join(lines)


def written(tree: Any) -> str:
    """Values as YAML text, in a recipe that has images."""
    return "data: {source: {name: digits}}\n" + yaml.safe_dump(tree, allow_unicode=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the texts; each replaces the one before."""
    return tmp_path_factory.mktemp("recipes")


def outcome(path: Path, overrides: list[str]) -> Recipe | SelftrainError:
    """The recipe, or the error that says why it is none; any other exception is a defect of ours."""
    try:
        return load_recipe(path, overrides)
    except SelftrainError as error:
        return error


def check(folder: Path, data: bytes, overrides: list[str]) -> None:
    """Loads a text as a recipe: it is one in all respects, or a sentence says why not."""
    path = folder / "fuzzed.yaml"
    path.write_bytes(data)
    began = time.process_time()
    found = outcome(path, overrides)
    if isinstance(found, SelftrainError):
        message = str(found)
        assert found.exit_code == 2
        assert 0 < len(message) < 6_000
        message.encode()  # a terminal can show it
    else:
        assert sum(1 for _ in stage_names(found.config)) <= MOST_STAGES
        values_with_origin(found)
        run = Run.create(folder / "workspace", found.config, found.written)
        assert load_recipe(run.path).config == found.config == run.config
        shutil.rmtree(run.path)
    assert time.process_time() - began < SECONDS


@settings.get_profile("fuzz")
@given(text=mutated(), overrides=st.lists(st.tuples(PATHS, WORDS).map("=".join), max_size=2))
def test_a_recipe_with_mistakes_is_a_recipe_or_gets_one_sentence(folder: Path, text: str, overrides: list[str]) -> None:
    check(folder, text.encode(errors="surrogatepass"), overrides)


@settings.get_profile("fuzz")
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode(errors="replace"))))
def test_any_bytes_are_a_recipe_or_get_one_sentence(folder: Path, data: bytes) -> None:
    check(folder, data, [])


@settings.get_profile("fuzz")
@given(tree=st.dictionaries(st.sampled_from(["rounds", "round", "teacher", "seed", "evaluate"]), TREES, max_size=3))
def test_any_values_are_a_recipe_or_get_one_sentence(folder: Path, tree: Any) -> None:
    check(folder, written(tree).encode(errors="surrogatepass"), [])


@settings.get_profile("fuzz")
@given(overrides=st.lists(st.tuples(PATHS, WORDS).map("=".join) | st.text(max_size=30), min_size=1, max_size=3))
def test_any_overrides_are_taken_or_get_one_sentence(folder: Path, overrides: list[str]) -> None:
    check(folder, TEXTS[-1].encode(), overrides)
