"""Start a larger network as the function that a smaller, trained one computes (Net2Net, Chen et al., arXiv:1511.05641).

Channels are repeated, and what reads them divides their weights among the copies, unevenly, or the copies would stay
the same for ever; layer normalisation over repeated channels gives what it gave. New blocks start as the identity, as
in a new network, and new levels behind an upsampling of zeros. New hidden numbers of the code's estimator are not read
yet, and a label says nothing yet where it was not heard.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from opir_lightning.errors import UserError
from opir_lightning.models.blocks import GatedBlock
from opir_lightning.models.opir import OPIR
from opir_lightning.models.predictor import OperatorPredictor

GROWING = ("width", "encoder_blocks", "middle_blocks", "decoder_blocks", "features", "code_width", "label_aware")
FREE = ("code_crop", "code_crops", "padding", "backend", "fused", "detach_between_stages")  # no weight depends on them
UNEVEN = 0.3  # deviation of a copy's share of a weight, relative to an even share


@torch.no_grad()
def grow(small: OPIR, large: OPIR, *, seed: int = 0) -> None:
    """Fill ``large`` so that it computes what ``small`` computes, up to rounding.

    Where ``large`` has more levels, that holds for pictures whose sides are multiples of both strides: others are
    padded further, and their last pixels come out differently.

    Args:
        small: trained.
        large: new; its width is a multiple of the small one's, and nowhere has it fewer blocks, levels, features or
            hidden numbers of the code's estimator.
            Where it has more levels, the first new one takes the small one's middle blocks. Other settings are equal.
        seed: of the uneven shares.

    Raises:
        UserError: a setting rules it out; the message names it. ``large`` is not changed then.
    """
    for name, value in small.settings.items():
        if name not in GROWING + FREE and large.settings[name] != value:
            raise UserError(f"its {name} is {value!r} there and {large.settings[name]!r} here, and that cannot grow.")
    pairs = list(zip(small.stages, large.stages, strict=True))
    plans = [_Plan(old.predictor, new.predictor) for old, new in pairs]
    own, given = large.state_dict(), small.state_dict()
    for name in ("features", "code_width", "label_aware"):
        if large.settings[name] < small.settings[name]:
            raise UserError(
                f"{name} is {small.settings[name]} there and {large.settings[name]} here; it cannot shrink."
            )
    features = small.settings["features"]
    large.load_state_dict(
        {
            name: _more_features(name, given[name], value, features)
            if name in given and ".predictor." not in name
            else value
            for name, value in own.items()
        }
    )
    generator = torch.Generator().manual_seed(seed)
    for plan in plans:
        plan.fill(generator)


def _more_features(name: str, given: Tensor, own: Tensor, features: int) -> Tensor:
    """What stands beside the predictor: as given; new features and hidden numbers are not read yet."""
    if given.shape == own.shape:
        return given
    if name.startswith(("code_estimator.mlp.", "code_estimator.label.")):
        wider = own.clone()
        wider[: len(given)] = 0  # what was there does not read what is new
        wider[tuple(slice(size) for size in given.shape)] = given
        return wider
    if name.endswith("projection.weight"):
        wider = torch.zeros_like(own)
        wider[:, :features] = given
        return wider
    if name.endswith("uncertainty_head.expand.weight"):  # features first, then both pictures and the evidence
        wider = torch.zeros_like(own)
        wider[:, :features] = given[:, :features]
        wider[:, own.shape[1] - given.shape[1] + features :] = given[:, features:]
        return wider
    assert ".before." in name, name
    wider = own.clone()
    wider[..., :features] = given
    return wider


class _Plan:
    """Which part of the small predictor goes where; made before anything is changed."""

    def __init__(self, old: nn.Module | Tensor, new: nn.Module | Tensor) -> None:
        assert isinstance(old, OperatorPredictor)
        assert isinstance(new, OperatorPredictor)
        self.old, self.new = old, new
        before, after = old.stem.out_channels, new.stem.out_channels
        if after % before:
            raise UserError(f"width is {before} there and {after} here; it must be a multiple.")
        self.copies = after // before
        levels = len(old.encoders)
        if len(new.encoders) < levels:
            raise UserError(f"it has {levels} levels, and here are {len(new.encoders)}; levels cannot be left out.")
        self.blocks: list[tuple[GatedBlock, GatedBlock]] = []
        for level in range(levels):
            self._match(f"encoder_blocks[{level}]", old.encoders[level].children(), new.encoders[level].children())
            self._match(f"decoder_blocks[{level}]", old.decoders[level].children(), new.decoders[level].children())
        deepest = [new.middle] if len(new.encoders) == levels else [new.encoders[levels], new.decoders[levels]]
        self._match("middle_blocks", old.middle, [block for stack in deepest for block in stack.children()])

    def _match(self, name: str, old: Iterable[nn.Module], new: Iterable[nn.Module]) -> None:
        old, new = list(old), list(new)
        if len(old) > len(new):
            raise UserError(f"{name} is {len(old)} there, and here is room for {len(new)}.")
        for small, large in zip(old, new, strict=False):
            assert isinstance(small, GatedBlock)
            assert isinstance(large, GatedBlock)
            self.blocks.append((small, large))

    def fill(self, generator: torch.Generator) -> None:
        widen = _Widen(self.copies, generator)
        old, new = self.old, self.new
        widen.layer(old.stem, new.stem, inputs=False)
        for small, large in self.blocks:
            widen.block(small, large)
        for level in range(len(old.downs)):
            widen.layer(old.downs[level], new.downs[level])
            widen.layer(old.ups[level].get_submodule("expand"), new.ups[level].get_submodule("expand"))
        if len(new.ups) > len(old.ups):
            nn.init.zeros_(new.ups[len(old.ups)].get_parameter("expand.weight"))
        assert old.tail.bias is not None
        assert new.tail.bias is not None
        rows = old.tail.weight.shape[0]  # those of new features stay as they are
        new.tail.weight[:rows] = widen.inputs(old.tail.weight)
        new.tail.bias[:rows] = old.tail.bias


class _Widen:
    """Repeat channels as a whole: a, b, c becomes a, b, c, a, b, c; a pixel shuffle keeps that order."""

    def __init__(self, copies: int, generator: torch.Generator) -> None:
        self.copies, self.generator = copies, generator

    def inputs(self, weight: Tensor) -> Tensor:
        """Divide the weights of each input among its copies."""
        if self.copies == 1:
            return weight
        uneven = torch.randn(self.copies, *weight.shape, generator=self.generator) * UNEVEN
        shares = (1 + uneven - uneven.mean(0)) / self.copies
        return torch.cat(list(weight * shares), dim=1)

    def outputs(self, values: Tensor, parts: int = 1) -> Tensor:
        """Repeat the outputs; where they are ``parts`` chunks for a gate, each chunk by itself."""
        return torch.cat([part for chunk in values.chunk(parts) for part in [chunk] * self.copies])

    def layer(self, old: nn.Module, new: nn.Module, *, inputs: bool = True, parts: int = 1) -> None:
        """A convolution or a normalisation, weights and bias."""
        weight = self.inputs(old.weight) if inputs else old.weight  # type: ignore[arg-type]
        new.weight.copy_(self.outputs(weight, parts))  # type: ignore[operator, arg-type]
        if old.bias is not None:
            new.bias.copy_(self.outputs(old.bias, parts))  # type: ignore[operator, arg-type]

    def block(self, old: GatedBlock, new: GatedBlock) -> None:
        names: Sequence[tuple[str, bool, int]] = [
            ("norm1", False, 1),
            ("expand1", True, 2),
            ("depthwise", False, 2),
            ("project1", True, 1),
            ("norm2", False, 1),
            ("expand2", True, 2),
            ("project2", True, 1),
        ]
        for name, inputs, parts in names:
            self.layer(getattr(old, name), getattr(new, name), inputs=inputs, parts=parts)
