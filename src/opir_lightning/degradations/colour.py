"""sRGB values and light: blur, exposure and photons add up in linear light, files hold sRGB values.

Source: IEC 61966-2-1.
"""

from __future__ import annotations

import cv2
import torch
from torch import Tensor


def power(values: Tensor, exponent: float) -> Tensor:
    """``values ** exponent``, element by element.

    On the CPU OpenCV does it, four times faster than torch and the same to 4e-7 for exponents from 0.4 to 2.4. Each
    element is worked out alone, so that neither threads nor the rest of a batch matter.

    Args:
        values: any shape, float, at least 0.
        exponent: positive.
    """
    by_torch = values.device.type != "cpu" or values.dtype != torch.float32 or values.requires_grad
    if by_torch or not values.numel():
        return values**exponent
    flat = values.contiguous().view(1, -1).numpy()
    return torch.from_numpy(cv2.pow(flat, exponent)).view(values.shape)


def srgb_to_linear(image: Tensor) -> Tensor:
    r"""Decode sRGB values to linear light, element by element.

    .. math:: L = s / 12.92 \;(s \le 0.04045), \qquad L = ((s + 0.055) / 1.055)^{2.4} \;\text{otherwise}

    Args:
        image: any shape, float, sRGB values; 0 is black and 1 is white. Below 0 the straight line goes on.

    Returns:
        Same shape and dtype, linear light; 0 and 1 stay 0 and 1, and 0.5 becomes 0.2140.
    """
    curve = power((image.clamp_min(0.04045) + 0.055) / 1.055, 2.4)
    return torch.where(image <= 0.04045, image / 12.92, curve)


def linear_to_srgb(light: Tensor) -> Tensor:
    r"""Encode linear light as sRGB values, the inverse of :func:`srgb_to_linear`.

    .. math:: s = 12.92 L \;(L \le 0.0031308), \qquad s = 1.055 L^{1/2.4} - 0.055 \;\text{otherwise}

    Args:
        light: any shape, float, linear light; 0 is black and 1 is white. Nothing is clipped.

    Returns:
        Same shape and dtype; a half of white becomes 0.7354.
    """
    curve = 1.055 * power(light.clamp_min(0.0031308), 1 / 2.4) - 0.055
    return torch.where(light <= 0.0031308, light * 12.92, curve)
