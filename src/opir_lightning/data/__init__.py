"""Where pictures come from: files, pairs, synthetic degradations, their mixture."""

from opir_lightning.data.curriculum import Curriculum
from opir_lightning.data.sources import BenchmarkNoise, CleanFolder, PairedFolder

__all__ = ["BenchmarkNoise", "CleanFolder", "Curriculum", "PairedFolder"]
