"""The report's numbers are those of the tables."""

import shutil
from dataclasses import asdict

import numpy as np
import pyarrow.parquet as pq
import pytest

from selftrain.ssl_tasks.evaluation.metrics import true_precision
from selftrain.ssl_tasks.report.data import ReportData
from selftrain.ssl_tasks.report.page import report_data
from selftrain.ssl_tasks.report.rounds import sparse_confusion
from selftrain.ssl_tasks.store.runs import Run, StageRecord
from tests.report.hostile import CLASSES


@pytest.fixture(scope="module")
def data(run: Run) -> ReportData:
    return report_data(run)


def test_every_round_has_its_page(data: ReportData) -> None:
    assert [page.model for page in data.rounds] == ["teacher", "student 1", "student 2"]
    assert all(page.validation and page.test and page.confusion and page.curve for page in data.rounds)
    assert data.classes == tuple(sorted(CLASSES))


def test_numbers_of_a_round_are_those_of_its_selection(run: Run, data: ReportData) -> None:
    selection = run.rounds()[1].selection
    assert selection is not None
    rows = pq.read_table(selection.file("selection.parquet")).to_pydict()
    page = data.rounds[1]
    assert (page.kept, page.copies) == (len(rows["label"]), sum(rows["copies"]))
    assert [one.kept for one in page.balance] == np.bincount(rows["label"], minlength=3).tolist()
    assert page.right is not None
    assert page.known is not None
    assert run.dataset is not None
    assert page.right / page.known == pytest.approx(true_precision(run.dataset, selection))


def test_the_medians_that_a_recipe_asks_for_are_shown_beside_the_kept_models_scores(run: Run, data: ReportData) -> None:
    for page, one in zip(data.rounds, run.rounds(), strict=True):
        assert one.model is not None
        expected = {split: one.model.summary[f"median_{split}_accuracy"] for split in ("validation", "test")}
        assert page.medians == {"of": 2, **expected}
        assert 0 < expected["test"] <= 1


def test_histogram_holds_every_candidate_once(data: ReportData) -> None:
    for page in data.rounds[1:]:
        assert page.histogram is not None
        assert sum(page.histogram.kept) == page.kept
        assert sum(page.histogram.kept) + sum(page.histogram.left) == page.candidates
        kept = np.sum([kept for kept, _ in page.histogram.by_class.values()], axis=0)
        assert kept.tolist() == list(page.histogram.kept)


def test_labelled_images_are_no_candidates(data: ReportData) -> None:
    assert data.rounds[1].candidates == data.counts["unlabeled"]


def test_confusion_of_the_labels_counts_what_is_right(data: ReportData) -> None:
    page = data.rounds[2]
    assert page.label_confusion is not None
    assert (page.label_confusion.right, page.label_confusion.total) == (page.right, page.known)


def test_flips_are_labels_that_differ_between_rounds(data: ReportData) -> None:
    flips = data.rounds[2].flips
    assert data.rounds[1].flips is None
    assert flips is not None
    changed = [one for one in gallery_opinions(data, 2) if one.before is not None and one.before != one.label]
    assert flips.compared == data.rounds[2].candidates == len(gallery_opinions(data, 2))
    assert flips.flipped == len(changed) == sum(images for _, _, images, _ in flips.pairs)


def gallery_opinions(data: ReportData, number: int) -> list:
    return [one for sample in data.gallery.samples for one in sample.opinions if one.round == number]


def test_a_small_data_set_is_shown_whole(data: ReportData) -> None:
    assert len(data.gallery.samples) == data.gallery.of == data.counts["unlabeled"]
    assert [sample.picture for sample in data.gallery.samples] == list(range(data.gallery.of))


def test_probabilities_of_a_sample_are_its_most_probable_classes(data: ReportData) -> None:
    for one in gallery_opinions(data, 2):
        values = [value for _, value in one.top]
        assert values == sorted(values, reverse=True)
        assert one.top[0][0] == one.label
        assert sum(values) == pytest.approx(1, abs=0.01)


def test_lineage_names_everything_that_a_student_was_made_from(data: ReportData) -> None:
    inputs = {stage.name: dict(stage.inputs) for stage in data.stages}
    assert inputs["student-2"] == {"dataset": "dataset", "selection": "select-2"}
    assert inputs["predict-2"]["model"] == "student-1"
    assert all(stage.digest and stage.settings for stage in data.stages)


def test_the_same_run_gives_the_same_values(run: Run, data: ReportData) -> None:
    assert asdict(report_data(run)) == asdict(data)


def test_a_run_that_has_done_nothing_has_a_report(run: Run) -> None:
    empty = Run.create(run.workspace, run.config)
    data = report_data(empty)
    assert (data.rounds, data.gallery.samples) == ((), ())


def test_a_run_that_failed_in_the_middle_shows_what_it_has(run: Run) -> None:
    halted = Run.create(run.workspace, run.config)
    for stage in run.stages():
        if stage.round == 0 or stage.name == "predict-1":
            halted.record(stage)
    halted.record(StageRecord("select-1", "select", "failed", round=1, reason="no room left", order=99))
    page = report_data(halted).rounds[1]
    assert page.kept is None
    assert page.candidates == report_data(run).rounds[1].candidates
    assert page.histogram is not None
    assert sum(page.histogram.kept) == 0


def test_images_that_are_gone_leave_the_labels(run: Run) -> None:
    source, cache = run.config.data.source, run.workspace / "cache"
    aside = cache.with_name("cache-aside")
    cache.rename(aside)
    source.path.rename(source.path.with_suffix(".gone"))
    try:
        data = report_data(run)
    finally:
        source.path.with_suffix(".gone").rename(source.path)
        shutil.rmtree(cache)
        aside.rename(cache)
    assert data.gallery.samples
    assert all(sample.picture is None for sample in data.gallery.samples)
    assert "can no longer be read" in data.gallery.notes[0]


def test_a_large_confusion_keeps_its_diagonal_and_its_largest_mistakes() -> None:
    cells = np.array([(one, two, one * 300 + two + 1) for one in range(300) for two in range(300)])
    kept = sparse_confusion(cells, rounds=100)
    assert not kept.complete
    assert kept.right == sum(one * 301 + 1 for one in range(300))
    assert kept.total == sum(range(1, 90_001))
    assert all(truth == said for truth, said, _ in kept.cells[:300])
