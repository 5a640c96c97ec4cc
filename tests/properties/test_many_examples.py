"""The same properties, held against twenty times as many examples."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_all_properties_hold_for_many_examples():
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", here, "-m", "not slow and not gpu"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPIR_PROPERTIES": "many"},
    )
    assert done.returncode == 0, done.stdout[-5000:]
