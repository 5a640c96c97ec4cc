"""What is done to a restored picture before it becomes a file: `highlights` of dark ones, `smooth_haze` of hazy ones.

Scores are computed without it: it belongs to the files that people look at, as rounding does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from opir_lightning.highlights import Highlights, check_highlights, keep_highlights, measure_tone
from opir_lightning.smooth_haze import HazeMode, SmoothHaze, check_haze
from opir_lightning.types import Code

if TYPE_CHECKING:
    from opir_lightning.models import OPIR


class Finishing:
    """How one picture is finished: some rows at a time as they are restored, then once more where that is needed.

    Args:
        model: in evaluation mode, on the device of the code.
        image: ``(1, 3, H, W)``, float in [0, 1], uint8 or uint16.
        code: of the picture.
        strength, dtype: as the picture is restored.
        highlights: ``"keep"`` or ``"clip"``, see `opir_lightning.highlights`.
        haze: ``"smooth"`` or ``"raw"``, see `opir_lightning.smooth_haze`.

    Raises:
        UserError: ``highlights`` or ``haze`` is neither.
    """

    def __init__(
        self,
        model: OPIR,
        image: Tensor,
        code: Code,
        *,
        strength: float = 1.0,
        dtype: torch.dtype = torch.float32,
        highlights: Highlights = "keep",
        haze: HazeMode = "smooth",
    ) -> None:
        check_highlights(highlights)
        check_haze(haze)
        keep, smooth = highlights == "keep", haze == "smooth"
        self._tone = measure_tone(model, image, code, strength=strength, dtype=dtype) if keep else None
        self._haze = SmoothHaze.of(model.tasks, code, *image.shape[2:]) if smooth else None

    @property
    def again(self) -> bool:
        """Whether `whole` has something to do."""
        return self._haze is not None

    def rows(self, rows: slice, image: Tensor, coarse: Tensor, refined: Tensor) -> Tensor:
        """Rows ``(3, h, W)`` float32, on the CPU, of the picture and both stages: finished as far as they can be alone.

        To be called once for all rows of the picture; what it returns is not clamped and may be ``refined`` itself.
        """
        if self._tone is not None:
            refined = keep_highlights(image, coarse, refined, self._tone)
        if self._haze is not None:
            self._haze.watch(rows, image, refined)
        return refined

    def whole(self, rows: slice, image: Tensor, finished: Tensor) -> Tensor:
        """The same rows as the whole picture asks for them, not clamped; after `rows` has had all of it."""
        return finished if self._haze is None else self._haze.smooth(rows, image, finished)
