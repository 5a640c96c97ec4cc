"""The code: what a picture suffers from, and how much, from statistics of a few native-resolution crops."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from opir_lightning.models.image_statistics import STATISTICS, image_statistics
from opir_lightning.types import Code


class Standardise(nn.Module):
    """Subtract the mean and divide by the deviation seen at the start of the training; ``(B, F)`` to the same shape.

    Batch normalisation would do in training what it does not do in use: with eight samples of six tasks a batch, its
    mean is another one in every step. An estimator that was trained so named severe haze with a probability of 0.4.

    Args:
        features: F.
        samples: after about this many samples mean and deviation stay as they are.
    """

    def __init__(self, features: int, samples: int = 4096) -> None:
        super().__init__()
        self.samples = samples
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("square", torch.ones(features))
        self.count: Tensor
        self.mean: Tensor
        self.square: Tensor
        self._complete = False  # to read the count, the host would wait for a GPU in every step
        self.register_load_state_dict_post_hook(_count_anew)

    @property
    def complete(self) -> bool:
        """Whether a training pass has found that mean and deviation stay as they are."""
        return self._complete

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self._complete:
            self._complete = bool(self.count >= self.samples)
            if not self._complete:
                self._add(x)
        deviation = (self.square - self.mean.square()).clamp_min(1e-4).sqrt()
        # Beyond five deviations lies what the training has not seen; the answer stays that of its border.
        return ((x - self.mean) / deviation).clamp(-5, 5)

    @torch.no_grad()
    def _add(self, x: Tensor) -> None:
        if dist.is_available() and dist.is_initialized():
            # Of the samples of all processes: with each its own, a training on two GPUs would be another training.
            shares = [torch.empty_like(x) for _ in range(dist.get_world_size())]
            dist.all_gather(shares, x.contiguous())
            x = torch.cat(shares)
        self.count += len(x)
        share = len(x) / self.count
        self.mean += share * (x.mean(0) - self.mean)
        self.square += share * (x.square().mean(0) - self.square)


def _count_anew(module: nn.Module, incompatible_keys: object) -> None:
    """Weights may have been loaded whose statistics are still those of a beginning."""
    assert isinstance(module, Standardise)
    module._complete = False


class CodeEstimator(nn.Module):
    """Estimate the code of a picture from statistics of crops that look like the training crops.

    A downscaled copy would hide noise and blur, and the whole picture has other statistics than the crops of the
    training; so evenly spaced native-resolution crops are taken. Their severities are averaged. Their logits add up, as
    those of independent witnesses do: averaged, sixteen crops were no surer than one, and a fifth of another task's
    operator cost a hazy validation picture 1.5 dB and rain and low light 0.4 dB.

    Args:
        tasks: number of task classes T.
        severity_size: length S of the severity vector.
        crop: side of a crop in pixels; at most that of the training crops.
        crops_per_side: at most this many crops along each side of the picture.
        hidden: width of the two hidden layers.
        label_aware: let a given label speak in the severity. Without it a picture that could be dark by nature has the
            severity of something between that and one in low light, even where it was said which of them it is.
    """

    def __init__(
        self, *, tasks: int, severity_size: int, crop: int, crops_per_side: int, hidden: int, label_aware: bool = False
    ) -> None:
        super().__init__()
        self.tasks, self.crop, self.crops_per_side = tasks, crop, crops_per_side
        self.outputs = tasks + severity_size
        self.norm = Standardise(STATISTICS)
        self.mlp = nn.Sequential(
            nn.Linear(STATISTICS, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, self.outputs),
        )
        self.label = nn.Linear(tasks, hidden, bias=False) if label_aware else None
        if self.label is not None:
            nn.init.zeros_(self.label.weight)

    def forward(self, image: Tensor, task: Tensor | None = None, heard: Tensor | None = None) -> Code:
        """Code of each picture.

        Args:
            image: ``(B, 3, H, W)``, RGB in [0, 1], any size.
            task: ``(B,)`` int64 task index where the degradation is known, -1 where it is to be estimated.
            heard: ``(B,)`` float: in [0, 1], the place of the one crop that is heard alone, negative: all are. For the
                training, in which a code then comes from elsewhere in the picture.

        Returns:
            The code; where a label is given, its task distribution is the label's one-hot vector.
        """
        if torch.compiler.is_exporting():
            crops, weights = crops_of_open_size(image, self.crop, self.crops_per_side)
            out = self.mlp(self.norm(image_statistics(crops)))
            out = out.view(len(weights), -1, out.shape[-1])
            total = (out * (weights > 0).to(out)[:, None, None]).sum(0)
            out = (out * weights[:, None, None]).sum(0)
        else:
            return self.hear(*native_crops(image, self.crop, self.crops_per_side), task, heard)
        return self._code(total, out, task)

    def hear(self, crops: Tensor, per_image: int, task: Tensor | None = None, heard: Tensor | None = None) -> Code:
        """The code from crops that were cut elsewhere, for pictures that do not fit into memory.

        Args:
            crops: ``(per_image * B, 3, h, w)``, as `native_crops` orders them.
            per_image: number of crops of each picture.
            task, heard: as in `forward`.
        """
        statistics = image_statistics(crops)
        return self.judge(statistics.view(per_image, -1, STATISTICS), task, heard)

    def judge(self, statistics: Tensor, task: Tensor | None = None, heard: Tensor | None = None) -> Code:
        """The code from what `image_statistics` says of the crops.

        Args:
            statistics: ``(per_image, B, STATISTICS)``.
            task, heard: as in `forward`.
        """
        per_image = len(statistics)
        seen = self.norm(statistics.flatten(0, 1))
        out = self.mlp(seen).view(per_image, -1, self.outputs)
        if task is not None and self.label is not None:
            # Only what is said of the severity: the names stay a judgement of the picture.
            given = F.one_hot(task.clamp_min(0), self.tasks).to(seen) * (task >= 0)[:, None].to(seen)
            informed = self.mlp[0](seen).view(per_image, len(task), -1) + self.label(given)
            informed = self.mlp[1:](informed)
            out = torch.cat([out[..., : self.tasks], informed[..., self.tasks :]], dim=2)
        if heard is None:
            total = out.sum(0)
            return self._code(total, total / per_image, task)
        place = torch.arange(per_image, device=out.device)[:, None]
        counted = (heard < 0) | (place == (heard * per_image).long().clamp(max=per_image - 1))
        counts = counted.to(out)  # (per_image, B)
        total = (out * counts[..., None]).sum(0)
        return self._code(total, total / counts.sum(0)[:, None], task)

    def windows(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Rows and columns of the crops that a picture of this size is judged by, in the order of `native_crops`."""
        return crop_windows(height, width, self.crop, self.crops_per_side)

    def _code(self, total: Tensor, out: Tensor, task: Tensor | None) -> Code:
        """Sums of the logits, and means of everything, ``(B, T + S)`` each, to the code."""
        # Softsign and not sigmoid: that one was driven to its flat ends within 1,000 steps and never came back.
        logits, severity = total[:, : self.tasks], F.softsign(out[:, self.tasks :])
        distribution = logits.softmax(1)
        if task is not None:
            given = F.one_hot(task.clamp_min(0), self.tasks).to(distribution)
            distribution = torch.where((task >= 0)[:, None], given, distribution)
        return Code(task=distribution, severity=severity, task_logits=logits)


def native_crops(image: Tensor, side: int, per_side: int) -> tuple[Tensor, int]:
    """Evenly spaced crops at native resolution, corners included.

    Args:
        image: ``(B, 3, H, W)``.
        side: wished side of the crops; a smaller picture is taken whole, and one below 16 pixels is repeated at its
            edges up to 16, which the statistics need.
        per_side: at most this many along each side.

    Returns:
        ``(n * B, 3, h, w)``, crop by crop with the pictures inside, and n.
    """
    height, width = image.shape[-2:]
    if height < 16 or width < 16:
        image = F.pad(image, (0, max(16 - width, 0), 0, max(16 - height, 0)), mode="replicate")
        height, width = image.shape[-2:]
    crops = [image[..., rows, columns] for rows, columns in crop_windows(height, width, side, per_side)]
    return torch.cat(crops), len(crops)


def crop_windows(height: int, width: int, side: int, per_side: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the crops of `native_crops`, from left to right and from top to bottom."""
    rows, columns = _starts(height, side, per_side), _starts(width, side, per_side)
    return [
        (slice(top, min(top + side, height)), slice(left, min(left + side, width))) for top in rows for left in columns
    ]


def _starts(length: int, side: int, most: int) -> list[int]:
    count = min(most, -(-length // side))
    if count == 1:
        return [max((length - side) // 2, 0)]
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def crops_of_open_size(image: Tensor, side: int, per_side: int) -> tuple[Tensor, Tensor]:
    """The crops of `native_crops` for a program that is to take pictures of many sizes: ``per_side ** 2``, always.

    Where `native_crops` takes fewer along a side, the last one is repeated with a weight of 0, so that the weighted sum
    is the mean. No branch and no number of operations depends on the size.

    Args:
        image: ``(B, 3, H, W)`` with sides of at least ``side``; a gather refuses smaller ones.
        side: of the crops, in pixels, at least 16.
        per_side: as in `native_crops`.

    Returns:
        ``(per_side ** 2 * B, 3, side, side)``, crop by crop with the pictures inside, and the weights
        ``(per_side ** 2,)``, which add up to 1.
    """
    counts = []
    for axis in (2, 4):  # the first turns one axis into two
        starts, counted = _starts_of_open_size(image.shape[axis], side, per_side, image.device)
        pixels = starts[:, None] + torch.arange(side, device=image.device)
        image = image.index_select(axis, pixels.flatten())
        image = image.unflatten(axis, (per_side, side))
        counts.append(counted.float() / counted.sum())
    crops = image.permute(2, 4, 0, 1, 3, 5).flatten(0, 2)
    return crops, (counts[0][:, None] * counts[1]).flatten()


def _starts_of_open_size(length: int, side: int, most: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`_starts` as ``(most,)`` int64, the last one repeated; and which of them count, ``(most,)`` bool."""
    size = torch.full((), length, dtype=torch.int64, device=device)
    index, count = torch.arange(most, device=device), ((size + side - 1) // side).clamp(max=most)
    room = (size - side).clamp(min=0)
    # float64 holds the quotient as Python does, and its rounding too goes to the even neighbour.
    spread = (torch.minimum(index, count - 1) * room).double() / (count - 1).clamp(min=1)
    return torch.where(count == 1, room // 2, spread.round().long()), index < count
