"""What a search leaves in its folder, under which names: ``search`` writes it and ``compare`` reads it."""

from __future__ import annotations

from pathlib import Path

JOURNAL = "journal.log"  # of Optuna: everything that was tried
TRIALS = "trials"  # a run folder for each trial
# Attributes that Optuna keeps with the study or a trial.
METRIC = "metric"  # of the study: what its values are
STEPS = "steps"  # of a trial: how many its training took
INSTEAD_OF = "instead_of"  # of a trial: the number of the one that was cut off


def trial_folder(search: Path, number: int) -> Path:
    """The run folder of a trial."""
    return search / TRIALS / f"{number:04d}"
