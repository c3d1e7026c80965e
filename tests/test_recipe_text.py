"""The text of a recipe: which words mean what, and one sentence for a text that is none."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from selftrain.ssl_tasks.errors import ConfigError
from selftrain.ssl_tasks.settings.recipe import Recipe, load_recipe

DATA = "data: {source: {name: digits}}\n"


def loaded(folder: Path, text: str | bytes, *overrides: str) -> Recipe:
    """The recipe of a text in a file."""
    path = folder / "written.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_recipe(path, overrides)


def refused(folder: Path, text: str | bytes, *overrides: str) -> str:
    """Returns the message about a text that is not a recipe; it must not take long."""
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text, *overrides)
    assert time.process_time() - began < 60
    message = str(caught.value)
    assert len(message) < 1500
    return message


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("seed: 1\nteacher: {members: 2}\nseed: 2", "'seed' is set twice, in lines 2 and 4"),
        ("seed: 1\nteacher:\n  train: {steps: 5}\n'seed': 2", "'seed' is set twice, in lines 2 and 5"),
        ("teacher:\n  train: {steps: 5}\n  train: {steps: 6}", "'train' is set twice, in lines 3 and 4"),
        ("teacher: {train: {steps: 5, steps: 6}}", "'steps' is set twice, in lines 2 and 2"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path, text: str, lines: str) -> None:
    assert lines in refused(tmp_path, DATA + text)


def test_a_key_that_stands_twice_in_an_override_is_refused(tmp_path: Path) -> None:
    assert "'steps' is set twice" in refused(tmp_path, DATA, "teacher.train={steps: 1, steps: 2}")


@pytest.mark.parametrize("word", ["yes", "true", "on", "no", "false", "off"])
@pytest.mark.parametrize(
    "setting",
    [
        "teacher.train.steps",
        "teacher.train.learning_rate",
        "teacher.augment.magnitude",
        "data.channels",
        "data.image_size",
        "seed",
        "evaluate.attacks",
    ],
)
def test_a_word_of_truth_is_no_number(tmp_path: Path, word: str, setting: str) -> None:
    value = f"[{word}]" if setting == "evaluate.attacks" else word
    assert f"{setting}" in refused(tmp_path, DATA, f"{setting}={value}")
    *sections, last = setting.split(".")
    if sections[:1] != ["data"]:
        text = "".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(sections))
        assert setting in refused(tmp_path, f"{DATA}{text}{'  ' * len(sections)}{last}: {value}\n")


@pytest.mark.parametrize(
    ("setting", "word", "value"),
    [
        ("runtime.cache", "off", "off"),
        ("teacher.train.compile", "on", "on"),
        ("teacher.train.compile", "off", "off"),
        ("teacher.train.class_weights", "none", "none"),
        ("teacher.augment.flip", "off", False),
        ("teacher.augment.flip", "yes", True),
        ("teacher.augment.flip", "true", True),
        ("teacher.train.learning_rate", "1e-3", 0.001),
        ("teacher.train.learning_rate", "1E-3", 0.001),
        ("teacher.train.learning_rate", ".5", 0.5),
        ("teacher.train.steps", "010", 10),
        ("teacher.train.steps", "1_000", 1000),
        ("teacher.train.steps", "0x10", 16),
        ("teacher.model.pretrained", "null", None),
        ("teacher.model.pretrained", "~", None),
        ("teacher.model.pretrained", "", None),
        ("name", "2024-06-01", "2024-06-01"),
        ("name", "no", "no"),
        ("data.classes", "[no, off, 1e, y, 12:30]", ("no", "off", "1e", "y", "12:30")),
    ],
)
def test_a_documented_word_means_the_same_in_a_recipe_and_in_an_override(
    tmp_path: Path, setting: str, word: str, value: Any
) -> None:
    sections = setting.split(".")
    written = f"{sections[-1]}: {word}"
    for name in reversed(sections[:-1]):
        written = f"{name}: {{{written}}}"
    text = written if setting.startswith("data") else DATA + written
    for recipe in (
        loaded(tmp_path, DATA, f"{setting}={word}"),
        loaded(tmp_path, text, *(["data.source.name=digits"] if setting.startswith("data") else [])),
    ):
        found: Any = recipe.config
        for name in sections:
            found = getattr(found, name)
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize("value", ["12:30", "1:30", "2024-06-01", "steps", ".nan", ".inf", "1e400"])
def test_text_and_infinity_are_no_numbers(tmp_path: Path, value: str) -> None:
    assert "teacher.train.learning_rate: found" in refused(tmp_path, DATA, f"teacher.train.learning_rate={value}")


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGED_LAUGHS = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12)
)
HOSTILE = {
    "nested lists": ("[" * 100_000, "deep"),
    "nested sections": ("{a: " * 5_000, "deep"),
    "nested by lines": ("\n".join("  " * n + "a:" for n in range(700)), "deep"),
    "nested by dashes": ("- " * 5_000, "deep"),
    "anchor within itself": ("a: &a [*a]", "an alias of itself"),
    "anchor within itself, deeper": ("teacher: &a {model: {name: *a}}", "an alias of itself"),
    "merged with itself": ("teacher: &a\n  <<: *a\n", "an alias of itself"),
    "billion laughs": (LAUGHS, "values"),
    "billion laughs by merging": (MERGED_LAUGHS, "values"),
    "a number of 5,000 digits": (f"seed: {'9' * 5_000}", "5,000 digits"),
    "a hexadecimal of 5,000 digits": (f"seed: 0x{'f' * 5_000}", "5,002 digits"),
    "a text of 5,000 digits": (f"seed: '{'9' * 5_000}'", "seed: found"),
    "a version of 5,000 digits": (f"%YAML 1.{'9' * 5_000}\n---\nseed: 1", "out of range"),
    "an escape out of range": ('name: "\\UFFFFFFFF"', "out of range"),
    "half of a pair": ('name: "\\ud800"', "no file or terminal takes"),
    "no UTF-8": (b"name: \xff\n", "line 1 is not text in UTF-8"),
    "a byte that is no text": ("name: \x07", "not allowed"),
    "another language's object": ("a: !!python/object/apply:os.system [ls]", "means nothing in a recipe"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "another document"),
    "a list as a key": ("? [a, b]\n: 1\n", "the name of a setting"),
    "a thousand unknown settings": ("\n".join(f"unknown{n}: 1" for n in range(1_000)), "and 990 more"),
    "one long unknown setting": (f"? {'x' * 300_000}\n: 1", "unknown setting"),
    "a billion rounds": ("rounds: 1000000000", "from 0 to 100"),
    "101 rounds": (f"rounds: [{', '.join(['{}'] * 101)}]", "at most 100"),
    "a billion members": ("teacher: {members: 1000000000}", "less than or equal to 100"),
    "a round that is no section": ("round: 5\nrounds: 2", "round: found 5"),
    "rounds that are no sections": ("rounds: [0, off]", "rounds.1: found 0"),
    "megabytes": (b"#" * 2_000_000, "more than the 1,048,576 that are read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_text_that_is_no_recipe_gets_one_sentence_soon(tmp_path: Path, name: str) -> None:
    text, part = HOSTILE[name]
    assert part in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        (f"seed={'9' * 5_000}", "5,000 digits"),
        (f"seed={'[' * 50_000}", "deep"),
        (f"{'a.' * 2_000}a=1", "deep"),
        ("a..b=1", "expected a.b=value"),
        (f"name={'/x' * 40_000}", "name: found"),
        ("rounds=1000000000", "from 0 to 100"),
        ("seed={a: &a [*a]}", "an alias of itself"),
        ("data.classes.1=x", "data.classes"),
        ("rounds=~nobody-has-this-name/a", "rounds: found"),
    ],
)
def test_an_override_of_any_size_gets_one_sentence(tmp_path: Path, override: str, part: str) -> None:
    assert part in refused(tmp_path, DATA, override)


def test_the_classes_of_a_list_are_set_together(tmp_path: Path) -> None:
    message = refused(tmp_path, "data: {source: {name: digits}, classes: [a, b]}", "data.classes.1=x")
    assert "data.classes is a list; set it whole" in message


def test_a_recipe_that_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, part in (
        (tmp_path / "pipe.yaml", "a pipe or a device"),
        (Path("/dev/zero"), "a pipe or a device"),
        (tmp_path, "is a folder"),
        (Path("x" * 5_000), "no recipe"),
    ):
        with pytest.raises(ConfigError, match=part):
            load_recipe(path)


def test_a_sparse_file_of_gigabytes_is_refused_after_a_megabyte(tmp_path: Path) -> None:
    path = tmp_path / "sparse.yaml"
    with path.open("wb") as file:
        file.truncate(7 << 30)
    with pytest.raises(ConfigError, match="more than"):
        load_recipe(path)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "{}", "seed: 1", "data: {image_size: 32}"])
def test_a_recipe_that_names_no_images_is_told_what_is_missing(tmp_path: Path, text: str) -> None:
    assert "expected data.source" in refused(tmp_path, text)
    assert loaded(tmp_path, text, "data.source.name=digits").config.data.source.name == "digits"
