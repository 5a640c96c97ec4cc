"""What becomes of the brightest parts of a picture when its dark parts are lifted.

Of a picture taken against the light, the shade is too dark and the sky is not. A network that lifts both puts the sky
beyond white, and a file of 8 bits cuts off what lies there: the clouds are in the result and not in the file. So what
is brighter than half of white is compressed, by as much as the picture needs. And where the network goes wrong
altogether and makes a lamp black, the pixel of the picture is the better one: too little light makes nothing brighter.

Scores are computed without it: it belongs to the files that people look at, as rounding does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from opir_lightning.errors import UserError
from opir_lightning.inference import as_float
from opir_lightning.types import Code, Task

if TYPE_CHECKING:
    from opir_lightning.models import OPIR

Highlights = Literal["keep", "clip"]

# Of 0.5 to 0.8 the best on 28 pairs of LOL-v1 train (opir_small: 21.49 dB on average, without compression 21.45,
# without anything 21.42), and the one that leaves most of the sky in photographs taken against the light.
KNEE = 0.5
CLIPPED = 0.01  # the part of a picture that may still be cut off: lamps and the sun are white
PREVIEW = 256  # pixels on the longer side of what the white point is measured on
DROP = (0.2, 0.3)  # a colour that falls by less is trusted, by more is not; a wrong white balance costs less


def check_highlights(highlights: str) -> None:
    """Raise `UserError` unless it is ``"keep"`` or ``"clip"``."""
    if highlights not in get_args(Highlights):
        raise UserError(f"highlights is '{highlights}'; use one of {', '.join(get_args(Highlights))}.")


@torch.inference_mode()
def white_point(
    model: OPIR, image: Tensor, code: Code, *, strength: float = 1.0, dtype: torch.dtype = torch.float32
) -> float | None:
    """How bright the restoration of a dark picture becomes, from a small copy of it.

    Args:
        model: in evaluation mode, on the device of the code.
        image: ``(1, 3, H, W)``, float in [0, 1], uint8 or uint16.
        code: of the picture.
        strength, dtype: as the picture will be restored.

    Returns:
        What 99 % of the pixels stay below in their brightest colour; None if low light is not what the picture suffers
        from.
    """
    if Task.LOW_LIGHT not in model.tasks or int(code.task[0].argmax()) != model.tasks.index(Task.LOW_LIGHT):
        return None
    preview = _small_copy(image).to(code.task.device)
    with torch.autocast(preview.device.type, dtype, enabled=dtype != torch.float32):
        restored = model(preview, code, strength=strength).refined
    return restored.float().amax(1).flatten().quantile(1 - CLIPPED).item()


def _small_copy(image: Tensor) -> Tensor:
    """Means over squares, float32 on the CPU; only some rows of a large picture are in float at a time."""
    step = -(-max(image.shape[-2:]) // PREVIEW)
    rows = [as_float(part, torch.device("cpu")).mean(-2) for part in image.split(step, dim=-2)]
    return torch.stack([F.avg_pool1d(row, step, ceil_mode=True) for row in rows], dim=-2)


def keep_highlights(image: Tensor, restored: Tensor, white: float, *, knee: float = KNEE) -> Tensor:
    r"""Compress what is brighter than the knee so that ``white`` becomes white; the colours keep their ratios.

    .. math:: f(m) = k + \frac{m - k}{1 + c\,(m - k)/(1 - k)}\quad\text{for } m > k,\qquad
        c = 1 - \frac{1 - k}{w - k}

    with m the largest colour of a pixel, which is scaled by f(m) / m. It rises everywhere and has no corner.

    Args:
        image: ``(..., 3, H, W)`` float32 in [0, 1], what was restored.
        restored: alike, not clamped.
        white: of `white_point`; up to 1 nothing is compressed.
        knee: k, in (0, 1): up to there nothing changes.

    Returns:
        A new tensor, not clamped.
    """
    trusted, wrong = DROP
    fallen = (image - restored).amax(-3, keepdim=True)
    result = restored + ((fallen - trusted) / (wrong - trusted)).clamp_(0, 1) * (image - restored)
    if white <= 1:
        return result
    brightest = result.amax(-3, keepdim=True)
    above = (brightest - knee).clamp_(min=0)
    strength = 1 / (1 - knee) - 1 / (white - knee)  # c / (1 - k)
    pressed = brightest - above + above / (1 + strength * above)
    return torch.where(above > 0, result * (pressed / brightest.clamp(min=knee)), result)
