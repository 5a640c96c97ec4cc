"""Callbacks: checkpoints, averaged weights, what makes a GPU faster, a watch over the training, what it shows; W&B."""

from opir_lightning.training.callbacks.averaging import ExponentialMovingAverage
from opir_lightning.training.callbacks.calibration import UncertaintyCalibration
from opir_lightning.training.callbacks.compiled import CompiledPredictor
from opir_lightning.training.callbacks.confusion import TaskConfusion
from opir_lightning.training.callbacks.finite import FiniteSteps
from opir_lightning.training.callbacks.graphed import GraphedStep
from opir_lightning.training.callbacks.health import TrainingHealth
from opir_lightning.training.callbacks.keeping import BestCheckpoint, LastCheckpoint
from opir_lightning.training.callbacks.operators import OperatorPictures
from opir_lightning.training.callbacks.panels import PicturePanels
from opir_lightning.training.callbacks.rising import RisingLoss
from opir_lightning.training.callbacks.wandb_run import WandbRun, close_loggers

__all__ = [
    "BestCheckpoint",
    "CompiledPredictor",
    "ExponentialMovingAverage",
    "FiniteSteps",
    "GraphedStep",
    "LastCheckpoint",
    "OperatorPictures",
    "PicturePanels",
    "RisingLoss",
    "TaskConfusion",
    "TrainingHealth",
    "UncertaintyCalibration",
    "WandbRun",
    "close_loggers",
]
