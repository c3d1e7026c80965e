"""Imports without garbage collection are frozen in our own process, and left alone in a notebook's."""

import subprocess
import sys

import pytest

CODE = """
import gc
from selftrain.ssl_tasks.execution.startup import own_process, uncollected
{first}
with uncollected():
    import email.message
    assert not gc.isenabled()
assert gc.isenabled()
print(gc.get_freeze_count())
"""


@pytest.mark.parametrize(("first", "frozen"), [("own_process()", True), ("", False)])
def test_imports_are_frozen_in_a_process_of_our_own_alone(first: str, frozen: bool) -> None:
    words = [sys.executable, "-c", CODE.format(first=first)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 1000) is frozen
