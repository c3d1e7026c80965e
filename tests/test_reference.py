"""The configuration reference says what the settings are."""

from pathlib import Path

from selftrain.flows.actions.reference import reference

WRITTEN = Path(__file__).parent.parent / "docs" / "configuration.md"


def test_the_written_reference_is_the_generated_one() -> None:
    assert WRITTEN.read_text() == reference(), "run `selftrain config --reference > docs/configuration.md`"
