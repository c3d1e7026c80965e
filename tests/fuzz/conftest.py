"""Number of examples of the fuzz tests: a few in the usual suite, more with SELFTRAIN_FUZZ=long or a number.

    SELFTRAIN_FUZZ=long pytest -n 0 -o timeout=0 tests/fuzz

Tests take the profile by `@settings.get_profile("fuzz")`: one that was loaded would hold for the tests elsewhere, too.
"""

import os

from hypothesis import HealthCheck, settings

ASKED = os.environ.get("SELFTRAIN_FUZZ", "25")
EXAMPLES = 20_000 if ASKED == "long" else int(ASKED)
CALM = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("fuzz", max_examples=EXAMPLES, deadline=None, suppress_health_check=CALM)
