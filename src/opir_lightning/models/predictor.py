"""The shared predictor: picture and map in, per-pixel operator features out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opir_lightning.models.blocks import Downsample, GatedBlock, Upsample, cut, pad_to_multiple


class OperatorPredictor(nn.Module):
    """A plain U-Net on the pixel-unshuffled picture that ends in features at full resolution.

    Working at ``1 / unshuffle`` of the resolution divides the cost by ``unshuffle²``; the pixel shuffle at the end
    gives every pixel features of its own again, which a pointwise projection turns into taps.

    Args:
        width: channels at the finest level; level l has ``width * 2**l``.
        encoder_blocks: blocks per level on the way down, finest first; its length is the number of levels that are
            left by a downsampling.
        middle_blocks: blocks at the coarsest level.
        decoder_blocks: blocks per level on the way up, finest first, as many entries as ``encoder_blocks``.
        unshuffle: factor by which the resolution is lowered before the first convolution.
        features: channels of the result.
    """

    def __init__(
        self,
        *,
        width: int,
        encoder_blocks: Sequence[int],
        middle_blocks: int,
        decoder_blocks: Sequence[int],
        unshuffle: int,
        features: int,
    ) -> None:
        super().__init__()
        if len(encoder_blocks) != len(decoder_blocks):
            raise ValueError(
                f"encoder_blocks {list(encoder_blocks)} and decoder_blocks {list(decoder_blocks)} must have one entry "
                "per level each, finest first."
            )
        self.unshuffle = unshuffle
        levels = len(encoder_blocks)
        self.stride = unshuffle * 2**levels
        widths = [width * 2**level for level in range(levels + 1)]

        self.stem = nn.Conv2d(4 * unshuffle**2, width, 3, padding=1)
        self.encoders = nn.ModuleList(_stack(widths[i], encoder_blocks[i]) for i in range(levels))
        self.downs = nn.ModuleList(Downsample(widths[i]) for i in range(levels))
        self.middle = _stack(widths[-1], middle_blocks)
        self.ups = nn.ModuleList(Upsample(widths[i + 1]) for i in range(levels))
        self.decoders = nn.ModuleList(_stack(widths[i], decoder_blocks[i]) for i in range(levels))
        self.tail = nn.Conv2d(width, features * unshuffle**2, 1)
        self.reach = self._reach(encoder_blocks, middle_blocks, decoder_blocks)

    def _reach(self, encoder: Sequence[int], middle: int, decoder: Sequence[int]) -> int:
        """Pixels that a result pixel can see on each side, every layer at its worst alignment."""
        levels = len(encoder)
        reach = 2 * self.unshuffle - 1  # the stem's 3x3, seen from the last pixel of an unshuffled cell
        for level in range(levels):
            reach += (encoder[level] + decoder[level]) * self.unshuffle * 2**level
            reach += self.unshuffle * 2**level  # a 2x2 cell may lie wholly to one side
        return reach + middle * self.unshuffle * 2**levels

    def forward(self, image: Tensor, guidance: Tensor) -> Tensor:
        """Features for the operator of every pixel.

        Args:
            image: ``(B, 3, H, W)``, any size; values around [0, 1].
            guidance: ``(B, 1, H, W)``, the map: ones in the first stage, the uncertainty in the second.

        Returns:
            ``(B, features, H, W)``.
        """
        height, width = image.shape[-2:]
        x = pad_to_multiple(torch.cat([image, guidance], dim=1), self.stride)
        x = F.pixel_unshuffle(x, self.unshuffle).contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for level in reversed(range(len(skips))):
            x = self.decoders[level](self.ups[level](x) + skips[level])
        return cut(self._at_full_resolution(x), height, width)

    def _at_full_resolution(self, x: Tensor) -> Tensor:
        """``pixel_shuffle(self.tail(x))``, as a transposed convolution: a training step on a CPU took 11 % less."""
        side, width = self.unshuffle, x.shape[1]
        kernels = self.tail.weight.view(-1, side, side, width).permute(3, 0, 1, 2)
        assert self.tail.bias is not None
        cells = F.conv_transpose2d(x, kernels, stride=side).unflatten(2, (-1, side)).unflatten(4, (-1, side))
        return (cells + self.tail.bias.view(-1, 1, side, 1, side)).flatten(4, 5).flatten(2, 3)


def _stack(channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(GatedBlock(channels) for _ in range(blocks)))
