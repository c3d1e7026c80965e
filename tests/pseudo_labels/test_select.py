"""The stage `select` on tables written by hand: its rules, its balance, and the same bytes for the same question."""

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from selftrain.ssl_tasks.errors import ConfigError, DataError
from selftrain.ssl_tasks.settings.pseudo_labels import SelectSettings
from tests.pseudo_labels.tables import Held, Row, Tables, run_select, selected, stats

CONFIDENCES = [0.1, 0.29, 0.3, 0.31, 0.5, 0.75, 0.949, 0.95, 0.999, 0.9999999, 1.0]  # ties are the rule
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    size = draw(st.integers(1, 40))
    return [
        Row(
            f"s{number:03d}",
            draw(st.integers(0, 2)),
            draw(st.sampled_from(CONFIDENCES)),
            draw(st.sampled_from([0.0, 0.2, 0.6])),
            draw(st.sampled_from([0.25, 0.5, 1.0])),
        )
        for number in range(size)
    ]


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "threshold": draw(st.sampled_from([None, 0.3, 0.95])),
        "top_k": draw(st.sampled_from([None, 1, 4])),
        "quantile": draw(st.sampled_from([None, 0.25, 0.5])),
        "min_margin": draw(st.sampled_from([None, 0.2])),
        "min_agreement": draw(st.sampled_from([None, 0.5])),
        "soft": draw(st.booleans()),
    }


counter = iter(range(10**9))


def choose(folder: Path, tables: dict[str, Any], threads: int = 1, **wanted: Any) -> list[dict[str, Any]]:
    """The selection's rows, in a folder of their own."""
    place = folder / str(next(counter))
    return selected(run_select(Tables(place, **tables), place / "out", SelectSettings(**wanted), threads=threads))


def passes(row: Row, rule: dict[str, Any]) -> bool:
    return row.margin >= np.float32(rule["min_margin"] or 0) and row.view_agreement >= (rule["min_agreement"] or 0)


def expected_without_balance(data: list[Row], rule: dict[str, Any]) -> dict[int, list[str]]:
    """The rules in plain Python."""
    kept: dict[int, list[str]] = {}
    for label in range(3):
        mine = sorted((row for row in data if row.label == label and passes(row, rule)), key=by_confidence)
        dropped = math.floor((rule["quantile"] or 0) * len(mine))
        least = mine[len(mine) - dropped - 1].confidence if len(mine) > dropped else math.inf
        good = [row for row in mine if row.confidence >= max(least, rule["threshold"] or 0)]
        kept[label] = [row.sample_id for row in good[: rule["top_k"]]]
    return kept


def by_confidence(row: Row) -> tuple[float, str]:
    return -row.confidence, row.sample_id


@few
@given(data=rows(), rule=rules())
def test_rules_together_keep_exactly_what_each_of_them_allows(
    tmp_path: Path, data: list[Row], rule: dict[str, Any]
) -> None:
    found = choose(tmp_path, {"rows": data}, balance="none", **rule)
    by_class: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for row in found:
        by_class[row["label"]].append((row["rank_in_class"], row["sample_id"]))
        assert row["copies"] == 1
        assert ("probs" in row) == rule["soft"]
    assert {label: [name for _, name in sorted(named)] for label, named in by_class.items()} == {
        label: names for label, names in expected_without_balance(data, rule).items() if names
    }


@few
@given(data=rows(), rule=rules(), size=st.sampled_from([None, 1, 3, 10]), most=st.sampled_from([None, 2]))
def test_equal_balance_shows_every_class_that_passes_equally_often(
    tmp_path: Path, data: list[Row], rule: dict[str, Any], size: int | None, most: int | None
) -> None:
    found = choose(tmp_path, {"rows": data}, balance="equal", per_class=size, max_copies=most, **rule)
    passing = {label: names for label, names in expected_without_balance(data, rule).items() if names}
    wanted = size or max(1, int(np.median([len(names) for names in passing.values()]))) if passing else 0
    shown = Counter[int]()
    copies = defaultdict(list)
    for row in found:
        shown[row["label"]] += row["copies"]
        copies[row["label"]].append((row["rank_in_class"], row["copies"]))
    for label, names in passing.items():
        assert shown[label] == (wanted if most is None else min(wanted, most * min(wanted, len(names))))
        counts = [count for _, count in sorted(copies[label])]
        assert counts == sorted(counts, reverse=True)  # the most confident are shown most often,
        assert max(counts) - min(counts) <= 1  # by one at most
        assert len(counts) == min(wanted, len(names))
    assert set(shown) == set(passing)


@few
@given(data=rows(), size=st.integers(1, 12), seed=st.integers(0, 5))
def test_bernoulli_copies_are_the_floor_or_one_more(tmp_path: Path, data: list[Row], size: int, seed: int) -> None:
    found = choose(tmp_path, {"rows": data}, scheme="bernoulli", per_class=size, threshold=0.3, seed=seed, soft=False)
    for label in range(3):
        good = sorted((row for row in data if row.label == label and row.confidence >= 0.3), key=by_confidence)
        reached, bins = 0, Counter(math.floor(float(np.float32(row.confidence)) * 100) for row in good)
        for number in sorted(bins, reverse=True):  # the official filter: whole bins of .01, downwards, until enough
            if reached < size:
                reached += bins[number]
        ratio = size / reached if reached else 0
        allowed = {row.sample_id for row in good[:reached]}
        for row in (row for row in found if row["label"] == label):
            assert row["sample_id"] in allowed
            assert row["copies"] in (math.floor(ratio), math.floor(ratio) + 1)


def test_bernoulli_shows_a_class_as_often_as_asked_for_on_average(tmp_path: Path) -> None:
    data = [Row(f"s{number:05d}", number % 2, 0.5) for number in range(3000)] + [Row("rare", 2, 0.9)]
    found = choose(tmp_path, {"rows": data}, scheme="bernoulli", per_class=500, soft=False)
    for label in (0, 1):  # thinned from 1,500: 500 ± 5 standard deviations
        shown = sum(row["copies"] for row in found if row["label"] == label)
        assert abs(shown - 500) < 5 * math.sqrt(1500 * (1 / 3) * (2 / 3))
    assert [row["copies"] for row in found if row["label"] == 2] == [500]
    again = choose(tmp_path, {"rows": data}, scheme="bernoulli", per_class=500, soft=False, seed=1)
    assert {row["sample_id"] for row in found} != {row["sample_id"] for row in again}


@few
@given(data=rows(), shares=st.sampled_from([None, (0.5, 0.25, 0.25), (1.0, 0.0, 2.0)]))
def test_prior_balance_matches_the_shares(tmp_path: Path, data: list[Row], shares: tuple[float, ...] | None) -> None:
    labeled = [("a", 0, "ca"), ("b", 1, "cb"), ("c", 1, "cc"), ("d", 2, "cd")]
    found = choose(tmp_path, {"rows": data, "labeled": labeled}, balance="prior", prior=shares, threshold=None)
    wanted = np.array(shares or (0.25, 0.5, 0.25))
    present = {row.label for row in data}
    for label in range(3):
        shown = sum(row["copies"] for row in found if row["label"] == label)
        assert abs(shown - (len(data) * wanted[label] / wanted.sum() if label in present else 0)) < 1


@few
@given(
    data=rows(),
    rule=rules(),
    scheme=st.sampled_from(["exact", "bernoulli"]),
    shards=st.integers(2, 5),
    top_k=st.sampled_from([None, 2]),
)
def test_bytes_depend_on_neither_shards_nor_threads(
    tmp_path: Path, data: list[Row], rule: dict[str, Any], scheme: Any, shards: int, top_k: int | None
) -> None:
    place = tmp_path / str(next(counter))
    wanted = SelectSettings(scheme=scheme, per_class=7, **rule)
    one = run_select(Tables(place / "a", data, top_k=top_k), place / "one", wanted)
    other = run_select(Tables(place / "b", data, top_k=top_k, shards=shards), place / "other", wanted, threads=3)
    for name in ("selection.parquet", "stats.json"):
        assert one.file(name).read_bytes() == other.file(name).read_bytes()


def test_bytes_of_a_larger_table_do_not_depend_on_threads(tmp_path: Path) -> None:
    data = [Row(f"s{(number * 7919) % 20011:05d}", number % 3, ((number * 31) % 97) / 97) for number in range(20_000)]
    tables = Tables(tmp_path / "t", data, shards=4)
    wanted = SelectSettings(per_class=5000)
    written = {
        run_select(tables, tmp_path / f"out-{threads}", wanted, threads=threads).file("selection.parquet").read_bytes()
        for threads in (1, 2, 4)
    }
    assert len(written) == 1


@few
@given(data=rows(), twins=st.lists(st.integers(0, 39), max_size=5, unique=True))
def test_nothing_from_validation_or_test_is_selected(tmp_path: Path, data: list[Row], twins: list[int]) -> None:
    same = [(f"held-{number}", ("validation", "test")[number % 2], f"c-s{number:03d}") for number in twins]
    found = choose(tmp_path, {"rows": data, "held_out": same}, threshold=None, balance="none")
    expected = {row.sample_id for row in data} - {f"s{number:03d}" for number in twins}
    assert {row["sample_id"] for row in found} == expected


def test_images_whose_label_is_known_are_not_selected(tmp_path: Path) -> None:
    data = [Row("known", 1, 0.9), Row("new", 1, 0.9)]
    found = choose(tmp_path, {"rows": data, "labeled": [("known", 0, "c-known")]})
    assert [row["sample_id"] for row in found] == ["new"]


def test_unreadable_images_are_not_selected(tmp_path: Path) -> None:
    found = choose(tmp_path, {"rows": [Row("broken", None, error="truncated file"), Row("whole", 0, 0.9)]})
    assert [(row["sample_id"], row["position"]) for row in found] == [("whole", 0)]


def test_positions_count_on_over_shards_of_any_size(tmp_path: Path) -> None:
    data = [Row(f"s{number:03d}", 0, 0.9) for number in range(11)]
    for shards in (1, 2, 5):
        found = choose(tmp_path, {"rows": data, "shards": shards}, balance="none")
        assert [(row["sample_id"], row["position"]) for row in found] == [(f"s{n:03d}", n) for n in range(11)]


def test_threshold_one_selects_only_certainty(tmp_path: Path) -> None:
    data = [Row("sure", 0, 1.0), Row("nearly", 0, 0.9999999)]
    assert [row["sample_id"] for row in choose(tmp_path, {"rows": data}, threshold=1.0)] == ["sure"]


def test_a_stored_confidence_passes_a_threshold_of_the_same_decimal(tmp_path: Path) -> None:
    data = [Row("at", 0, 0.95), Row("below", 0, float(np.nextafter(np.float32(0.95), np.float32(0))))]
    assert [row["sample_id"] for row in choose(tmp_path, {"rows": data}, threshold=0.95)] == ["at"]


def test_adaptive_thresholds_are_those_of_flexmatch(tmp_path: Path) -> None:
    # 8 of class 0 and 4 of class 1 pass 0.9; the other 4 pass nowhere: β = 8/8, 4/8, 0/8, threshold 0.9 β / (2 - β).
    data = [Row(f"a{n}", 0, 0.95) for n in range(8)] + [Row(f"b{n}", 1, 0.95) for n in range(4)]
    data += [Row("c0", 0, 0.89), Row("c1", 1, 0.31), Row("c2", 1, 0.29), Row("c3", 2, 0.1)]
    place = tmp_path / "adaptive"
    artifact = run_select(
        Tables(place, data), place / "out", SelectSettings(threshold=0.9, adaptive=True, balance="none")
    )
    assert [line["threshold"] for line in stats(artifact)["classes"]] == pytest.approx([0.9, 0.3, 0.0], abs=1e-6)
    chosen = {row["sample_id"] for row in selected(artifact)}
    assert {"c1", "c3"} <= chosen
    assert not {"c0", "c2"} & chosen


@pytest.mark.parametrize("top_k", [None, 2])
def test_soft_labels_are_dense_sum_to_one_and_sharpen(tmp_path: Path, top_k: int | None) -> None:
    tables = {"rows": [Row("s", 2, 0.7)], "classes": 5, "top_k": top_k}
    plain = choose(tmp_path, tables)[0]["probs"]
    sharp = choose(tmp_path, tables, sharpen=0.5)[0]["probs"]
    assert plain == pytest.approx([0.075, 0.075, 0.7, 0.075, 0.075], abs=1e-3)
    expected = np.array(plain) ** 2 / (np.array(plain) ** 2).sum()
    assert sharp == pytest.approx(expected.tolist(), abs=1e-6)
    assert sum(sharp) == pytest.approx(1, abs=1e-6)


def test_the_sharpest_soft_labels_of_the_least_sure_prediction_still_sum_to_one(tmp_path: Path) -> None:
    tables = {"rows": [Row("s", 2, 0.002)], "classes": 1000, "top_k": 2}
    probs = choose(tmp_path, tables, threshold=None, sharpen=0.02)[0]["probs"]
    assert probs[2] == pytest.approx(1, abs=1e-6)
    assert sum(probs) == pytest.approx(1, abs=1e-6)


def test_a_temperature_whose_powers_would_all_be_zero_is_refused() -> None:
    with pytest.raises(ValidationError, match="sharpen"):
        SelectSettings(sharpen=0.0017)


def test_stats_say_what_was_chosen_and_how_right_it_may_be(tmp_path: Path) -> None:
    validation = [Held(0, 0, 0.9)] * 8 + [Held(1, 0, 0.9)] * 2 + [Held(0, 0, 0.2)] * 5
    tables = Tables(tmp_path / "t", [Row("a", 0, 0.5), Row("b", 0, 0.7), Row("c", 1, 0.1)], validation=validation)
    artifact = run_select(tables, tmp_path / "out", SelectSettings(threshold=0.3, balance="none"))
    first, second, _ = stats(artifact)["classes"]
    assert (first["candidates"], first["kept"], first["threshold"]) == (2, 2, 0.3)
    assert first["mean_confidence"] == pytest.approx(0.6)
    assert (first["estimated_precision"], first["held_out"]) == (0.8, 10)
    assert 0.5 < first["precision_bound"] < 0.8
    assert (second["candidates"], second["kept"], second["estimated_precision"]) == (1, 0, None)
    assert stats(artifact)["kept"] == 2


def test_target_precision_without_held_out_labels_says_what_to_do(tmp_path: Path) -> None:
    tables = Tables(tmp_path / "t", [Row("a", 0)], validation=[Held(0, 0, 0.9, fitted=True)])
    with pytest.raises(ConfigError, match="validation"):
        run_select(tables, tmp_path / "out", SelectSettings(target_precision=0.9))


def test_target_precision_that_cannot_be_promised_selects_nothing_and_says_so(tmp_path: Path) -> None:
    data = [Row(f"s{number}", number % 3, 0.9) for number in range(60)]
    tables = Tables(tmp_path / "t", data, validation=[Held(n % 2, n % 3, 0.9) for n in range(60)])
    artifact = run_select(tables, tmp_path / "out", SelectSettings(target_precision=0.95))
    assert selected(artifact) == []
    assert {(line["promise"], line["threshold"]) for line in stats(artifact)["classes"]} == {("none", None)}


def test_target_precision_keeps_what_held_out_labels_vouch_for(tmp_path: Path) -> None:
    data = [Row(f"s{number:04d}", number % 3, 0.99 if number % 2 else 0.5) for number in range(600)]
    good = [Held(n % 3, n % 3, 0.99) for n in range(300)]
    bad = [Held((n + 1) % 3, n % 3, 0.5) for n in range(300)]
    tables = Tables(tmp_path / "t", data, validation=good + bad)
    artifact = run_select(tables, tmp_path / "out", SelectSettings(target_precision=0.9, balance="none"))
    assert {row["confidence"] for row in selected(artifact)} == {float(np.float32(0.99))}
    assert len(selected(artifact)) == 300


def test_predictions_of_other_images_are_refused(tmp_path: Path) -> None:
    tables = Tables(tmp_path / "t", [Row("a", 0)], parts={"unlabeled": "other", "validation": "v"})
    with pytest.raises(DataError, match="predict again"):
        run_select(tables, tmp_path / "out", SelectSettings())


def test_a_prior_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 shares"):
        choose(tmp_path, {"rows": [Row("a", 0)]}, balance="prior", prior=(0.5, 0.5))


@pytest.mark.parametrize(
    "wanted",
    [
        {"adaptive": True, "threshold": None},
        {"balance": "none", "scheme": "bernoulli"},
        {"balance": "none", "per_class": 3},
        {"prior": (1.0,)},
        {"balance": "prior", "prior": (0.0, 0.0)},
    ],
)
def test_settings_that_contradict_each_other_are_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"balance|threshold|prior"):
        SelectSettings(**wanted)


@pytest.mark.parametrize("name", ["label=1/split=2", "split=unlabeled2/confidence=0.1"])
def test_the_names_of_folders_above_the_workspace_are_no_columns(tmp_path: Path, name: str) -> None:
    tables = {
        "rows": [Row(f"s{number}", number % 3, 0.5 + number / 20) for number in range(9)],
        "labeled": [("l0", 0, "x"), ("l1", 1, "y"), ("l2", 2, "z")],
        "validation": [Held(number % 3, number % 3, 0.9) for number in range(9)],
    }
    elsewhere, here = (choose(tmp_path / at, tables, threshold=0.6) for at in ("plain", name))
    assert here == elsewhere
    assert {row["label"] for row in here} == {0, 1, 2}
