"""Notice that the loss has turned upwards, and since when."""

from __future__ import annotations

import logging
import math
from statistics import median
from typing import Any, NamedTuple

import torch
from lightning import Callback, Trainer
from torch import Tensor

from opir_lightning.errors import UserError
from opir_lightning.training.module import RestorationModule

log = logging.getLogger(__name__)
SPREADS = 5  # windows over whose spreads the median is taken
# Of the median of n normal values, in spreads and times the root of n: 1.253 deviations of 1.483 spreads each.
STANDARD_ERROR = 1.86
CERTAIN = 6  # standard errors: the lowest of hundreds of medians lies three below, and the latest may lie three above


class Rise(NamedTuple):
    """The loss went up.

    Attributes:
        since: last step of the latest window whose median was still as good as the lowest.
        start, now: medians of that window and of the latest.
        step: last step of the latest window.
    """

    since: int
    start: float
    now: float
    step: int


class LossTrend:
    """A robust rule on windows of the loss: its medians, held against the lowest of them.

    A rise is reported where the medians of `windows` windows one after the other lie above the lowest so far by more
    than `factor` spreads. The spread is the median distance of a window's losses from their median (the median over the
    last five windows up to the lowest), so the rule knows neither scale nor sign of the loss, a batch that is harder
    than others does not move it, and neither do a few steps that jump and come back. Short windows need a higher rise:
    at least six standard errors of a median. It is reported once; a new lowest median arms the rule again.
    """

    def __init__(self, *, factor: float, windows: int) -> None:
        self.factor, self.windows = factor, windows
        self.reset()

    def reset(self) -> None:
        """Forget everything, as before the first window."""
        self.state: dict[str, Any] = {
            "best": None,
            "since": 0,
            "start": 0.0,
            "spread": 0.0,
            "spreads": [],
            "above": 0,
            "said": False,
        }

    def add(self, step: int, losses: list[float]) -> Rise | None:
        """Take in the losses of one window that ends with a step; what is not finite is left out."""
        losses = [loss for loss in losses if math.isfinite(loss)]
        if not losses:
            return None
        state, now = self.state, median(losses)
        spreads = [*state["spreads"], median(abs(loss - now) for loss in losses)][-SPREADS:]
        state["spreads"] = spreads
        if state["best"] is None or now <= state["best"]:
            state.update(best=now, since=step, start=now, spread=median(spreads), above=0, said=False)
            return None
        enough = max(self.factor, CERTAIN * STANDARD_ERROR / math.sqrt(len(losses))) * state["spread"]
        if now - state["best"] <= enough / 2:
            state.update(since=step, start=now)
        state["above"] = state["above"] + 1 if now - state["best"] > enough else 0
        if state["above"] < self.windows or state["said"]:
            return None
        state["said"] = True
        return Rise(state["since"], state["start"], now, step)


class RisingLoss(Callback):
    """Warn once that the training's loss has been rising, and since when; see `LossTrend` for the rule.

    The losses stay on the device and are read once a window. While a curriculum makes the samples harder the loss may
    rise: the rule begins when it is over.

    Args:
        window: steps of a window.
        windows: so many in a row must lie above the lowest.
        factor: by how many spreads.

    Raises:
        UserError: a setting is out of its range.
    """

    def __init__(self, *, window: int = 200, windows: int = 3, factor: float = 1.0) -> None:
        if window < 1 or windows < 1 or factor <= 0:
            raise UserError(
                f"callbacks.rising has window={window}, windows={windows}, factor={factor:g}; all must be above 0."
            )
        self.window = window
        self.trend = LossTrend(factor=factor, windows=windows)
        self._losses: list[Tensor] = []
        self._resumed: list[float] = []  # losses of this window from before a resume

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: RestorationModule,  # type: ignore[override]
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert pl_module.trained is not None
        self._losses.append(pl_module.trained.loss)
        if len(self._resumed) + len(self._losses) < self.window * trainer.accumulate_grad_batches:
            return
        losses, self._resumed, self._losses = self._read(), [], []
        if _in_curriculum(trainer):
            return
        rise = self.trend.add(trainer.global_step - 1, losses)
        if rise is not None:
            log.warning(
                "The loss has been rising since step %d: from %.4g to %.4g at step %d (medians of %d steps). A lower "
                "optimizer.lr may help; checkpoints/best.ckpt is of the best validation so far.",
                *(rise.since, rise.start, rise.now, rise.step, self.window),
            )

    def state_dict(self) -> dict[str, Any]:
        return {"trend": dict(self.trend.state), "losses": self._read()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.trend.state = dict(state_dict["trend"])
        self._resumed, self._losses = list(state_dict["losses"]), []

    def _read(self) -> list[float]:
        return self._resumed + (torch.stack(self._losses).tolist() if self._losses else [])


def _in_curriculum(trainer: Trainer) -> bool:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    curriculum = getattr(data, "curriculum", None)
    if curriculum is None:
        return False
    batch = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
    return curriculum.position(trainer.global_step * batch) < 1
