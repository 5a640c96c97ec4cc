"""What becomes of the brightest parts of a picture when its dark parts are lifted.

Of a picture taken against the light, the shade is too dark and the sky is not. A network that takes both for dark puts
the sky beyond white, and a file of 8 bits cuts off what lies there. Two things bring it back:

- What is brighter than half of white is compressed, by as much as the picture needs.
- Nothing in a scene is brighter than white. Where stage 1 says so all the same, by far, a pixel was not too dark, and
  stage 2, which has not seen such values, may make anything of it. There the drawing and the colours are those of the
  picture, and the brightness goes on from what the network made of the brightest that it could be right about.

Scores are computed without it: it belongs to the files that people look at, as rounding does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from opir_lightning.errors import UserError
from opir_lightning.inference import as_float
from opir_lightning.types import Code, Task

if TYPE_CHECKING:
    from opir_lightning.models import OPIR

Highlights = Literal["keep", "clip"]

KNEE = 0.5
CLIPPED = 0.01  # the part of a picture that may still be cut off: lamps and the sun are white
PREVIEW = 256  # pixels on the longer side of what the tone is measured on
BEYOND = (1.15, 1.45)  # of stage 1's brightest colour: up to there it is believed, from there on it is not
FEWEST = 20  # pixels of the small copy from which a median is taken


class Tone(NamedTuple):
    """How the restoration of a dark picture treats its bright parts; brightness is that of a pixel's largest colour.

    Attributes:
        white: what 99 % of the restored pixels stay below.
        begins: brightness in the picture from which on stage 1 is not believed, in (0, 1).
        level: what becomes of that, in (0, 1); from there on brightness rises evenly to white.
    """

    white: float
    begins: float
    level: float


def check_highlights(highlights: str) -> None:
    """Raise `UserError` unless it is ``"keep"`` or ``"clip"``."""
    if highlights not in get_args(Highlights):
        raise UserError(f"highlights is '{highlights}'; use one of {', '.join(get_args(Highlights))}.")


@torch.inference_mode()
def measure_tone(
    model: OPIR,
    image: Tensor,
    code: Code,
    *,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float32,
    knee: float = KNEE,
) -> Tone | None:
    """The tone of the restoration of a dark picture, from a small copy of it.

    Args:
        model: in evaluation mode, on the device of the code.
        image: ``(1, 3, H, W)``, float in [0, 1], uint8 or uint16.
        code: of the picture.
        strength, dtype: as the picture will be restored.
        knee: as in `keep_highlights`.

    Returns:
        None if low light is not what the picture suffers from.
    """
    if Task.LOW_LIGHT not in model.tasks or int(code.task[0].argmax()) != model.tasks.index(Task.LOW_LIGHT):
        return None
    preview = _small_copy(image).to(code.task.device)
    with torch.autocast(preview.device.type, dtype, enabled=dtype != torch.float32):
        restored = model(preview, code, strength=strength)
    before, coarse, refined = (part.float().amax(1).flatten() for part in (preview, restored.coarse, restored.refined))
    believed = coarse < BEYOND[1]
    # What is not believed may be anything and has no part in it; where that is all, nothing has to be compressed.
    white = refined[believed].quantile(1 - CLIPPED).item() if believed.sum() >= FEWEST else 1.0
    border = (coarse > BEYOND[0] - 0.1) & (coarse < BEYOND[0] + 0.1)
    if border.sum() < FEWEST:  # hardly anything between shade and light
        above = before[coarse >= BEYOND[0]]
        begins = above.min().item() if len(above) else 1.0
        level = _press(torch.tensor(BEYOND[0]), white, knee).item()
    else:
        begins = before[border].median().item()
        level = _press(refined[border].median(), white, knee).item()
    return Tone(white, min(max(begins, 0.01), 0.99), min(max(level, begins, 0.01), 0.97))


def _small_copy(image: Tensor) -> Tensor:
    """Means over squares, float32 on the CPU; only some rows of a large picture are in float at a time."""
    step = -(-max(image.shape[-2:]) // PREVIEW)
    rows = [as_float(part, torch.device("cpu")).mean(-2) for part in image.split(step, dim=-2)]
    return torch.stack([F.avg_pool1d(row, step, ceil_mode=True) for row in rows], dim=-2)


def keep_highlights(image: Tensor, coarse: Tensor, refined: Tensor, tone: Tone, *, knee: float = KNEE) -> Tensor:
    r"""Bring the bright parts of the restoration of a dark picture back into the range.

    The largest colour m of a pixel of ``refined`` becomes f(m), with w the tone's ``white``, and the others keep their
    ratios to it. f rises everywhere and has no corner.

    .. math:: f(m) = k + \frac{m - k}{1 + c\,(m - k)/(1 - k)}\quad\text{for } m > k,\qquad
        c = 1 - \frac{1 - k}{w - k}\quad\text{if } w > 1, \text{ else } f(m) = m

    Where ``coarse`` is beyond white, that fades into the picture's own pixel, with the brightness of the tone.

    Args:
        image: ``(..., 3, H, W)`` float32 in [0, 1], what was restored.
        coarse, refined: alike, the results of both stages, not clamped.
        tone: of `measure_tone`.
        knee: k, in (0, 1): up to there nothing is compressed.

    Returns:
        A new tensor, not clamped.
    """
    brightest = refined.amax(-3, keepdim=True)
    pressed = torch.where(
        brightest > knee, refined * (_press(brightest, tone.white, knee) / brightest.clamp(min=knee)), refined
    )
    low, high = BEYOND
    lit = ((coarse.amax(-3, keepdim=True) - low) / (high - low)).clamp_(0, 1)
    before = image.amax(-3, keepdim=True)
    slope = (1 - tone.level) / (1 - tone.begins)
    wanted = torch.where(
        before > tone.begins,
        tone.level + slope * (before - tone.begins),
        before * (tone.level / tone.begins),
    )
    own = image * (wanted / before.clamp(min=1e-3))
    return pressed + lit * (own - pressed)


def _press(level: Tensor, white: float, knee: float) -> Tensor:
    """f of `keep_highlights`."""
    if white <= 1:
        return level
    above = (level - knee).clamp(min=0)
    return level - above + above / (1 + (1 / (1 - knee) - 1 / (white - knee)) * above)
