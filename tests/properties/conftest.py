"""Properties are held against examples that are the same in every run: nothing is random, nothing kept on the disk."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

# Fixtures of a module are not to be made anew for each example; and a busy machine makes the first one slow.
CHECKS = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)
for name, times in (("few", 1), ("many", 20)):
    settings.register_profile(
        name,
        max_examples=12 * times,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),  # to explain a failure, every line is traced: slow
        suppress_health_check=CHECKS,
    )
settings.load_profile(os.environ.get("OPIR_PROPERTIES", "few"))
