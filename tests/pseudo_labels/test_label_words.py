"""Every class and the rejection can be said, and no word means two things."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.ssl_tasks.pseudo_labels.corrections import LabelWords, UnknownLabel

NAMES = st.builds(
    "".join, st.lists(st.sampled_from(["class:", "reject", "(reject)", " ", "(", "a", "A"]), min_size=1, max_size=4)
)


@settings(max_examples=100, deadline=None)
@given(st.lists(NAMES, unique=True, max_size=8))
def test_every_class_and_the_rejection_have_a_word_that_is_read_back(classes: list[str]) -> None:
    words = LabelWords(classes)
    for meaning in (None, *range(len(classes))):
        assert words.meaning(words.written(meaning)) == meaning


def test_reject_is_refused_where_a_class_is_called_so() -> None:
    words = LabelWords(["accept", "reject"])
    with pytest.raises(UnknownLabel, match=r"write class:reject for it, \(reject\) for none"):
        words.meaning("reject")
    assert (words.meaning("class:reject"), words.meaning("(reject)"), words.meaning("accept")) == (1, None, 0)
    assert LabelWords(["keep"]).meaning("reject") is LabelWords(["keep"]).meaning("(reject)") is None


def test_blanks_matter_only_where_two_classes_differ_by_them() -> None:
    alone, both = LabelWords([" lead ", "iron"]), LabelWords([" lead ", "lead"])
    assert [alone.meaning(text) for text in (" lead ", "lead", "lead  ", "iron ")] == [0, 0, 0, 1]
    assert [both.meaning(text) for text in (" lead ", "lead")] == [0, 1]
    with pytest.raises(UnknownLabel, match="no such class"):
        both.meaning("lead ")
