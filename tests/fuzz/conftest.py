"""Profiles of hypothesis: a few examples by default, many with SELFTRAIN_FUZZ=long."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile("few", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", settings.get_profile("few"), max_examples=2_000)
settings.load_profile("long" if os.environ.get("SELFTRAIN_FUZZ") == "long" else "few")
