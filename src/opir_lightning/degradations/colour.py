"""sRGB values and light: blur, exposure and photons add up in linear light, files hold sRGB values.

Source: IEC 61966-2-1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def srgb_to_linear(image: Tensor) -> Tensor:
    r"""Decode sRGB values to linear light, element by element.

    .. math:: L = s / 12.92 \;(s \le 0.04045), \qquad L = ((s + 0.055) / 1.055)^{2.4} \;\text{otherwise}

    Args:
        image: any shape, float, sRGB values; 0 is black and 1 is white. Below 0 the straight line goes on.

    Returns:
        Same shape and dtype, linear light; 0 and 1 stay 0 and 1, and 0.5 becomes 0.2140.
    """
    curve = ((image.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(image <= 0.04045, image / 12.92, curve)


def linear_to_srgb(light: Tensor) -> Tensor:
    r"""Encode linear light as sRGB values, the inverse of :func:`srgb_to_linear`.

    .. math:: s = 12.92 L \;(L \le 0.0031308), \qquad s = 1.055 L^{1/2.4} - 0.055 \;\text{otherwise}

    Args:
        light: any shape, float, linear light; 0 is black and 1 is white. Nothing is clipped.

    Returns:
        Same shape and dtype; a half of white becomes 0.7354.
    """
    curve = 1.055 * light.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(light <= 0.0031308, light * 12.92, curve)
