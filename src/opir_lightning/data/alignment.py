"""Pairs that were not recorded through the same lens position: find the shift, cut both to what they share."""

from __future__ import annotations

from torch import Tensor


def aligned(degraded: Tensor, clean: Tensor, *, most: int) -> tuple[Tensor, Tensor]:
    """Cut two shifted pictures so that they match: the shift with the smallest mean square error is taken.

    The shift is found between the degraded and the clean picture, before anything is restored, so that it favours no
    method. (Levin et al., CVPR 2009, search the shift of each result instead, as a blind deconvolution moves it.)

    Args:
        degraded, clean: ``(3, H, W)`` of one size, sides of more than ``2 * most``.
        most: largest shift along each axis, in pixels.

    Returns:
        Both ``(3, H - 2 * most, W - 2 * most)``, whatever the shift is: all pictures of a set stay of one size.
    """
    height, width = (side - 2 * most for side in clean.shape[-2:])
    middle = degraded[..., most : most + height, most : most + width]
    windows = [
        clean[..., top : top + height, left : left + width]
        for top in range(2 * most + 1)
        for left in range(2 * most + 1)
    ]
    return middle, min(windows, key=lambda window: float((window - middle).square().mean()))
