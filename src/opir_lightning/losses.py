"""Named loss terms over both stages; every one can be weighted, switched off and logged by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from opir_lightning.errors import UserError
from opir_lightning.types import Restoration, Task


class LossTerms(NamedTuple):
    """The loss and what it is made of.

    Attributes:
        total: scalar to minimise.
        terms: detached scalars by name, before all weights.
    """

    total: Tensor
    terms: dict[str, Tensor]


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of each picture, ``(B,)``; so are all terms below."""
    return (prediction - target).abs().mean((1, 2, 3))


def charbonnier(prediction: Tensor, target: Tensor, eps: float = 1e-3) -> Tensor:
    """Mean of ``sqrt(error² + eps²)``, an L1 that is smooth at zero (Charbonnier et al., 1994)."""
    return ((prediction - target).square() + eps**2).sqrt().mean((1, 2, 3))


def rmse(prediction: Tensor, target: Tensor) -> Tensor:
    """Root-mean-square error; weighs damaged pictures less than the MSE does."""
    # 1e-6 is a thousandth of an 8-bit level squared: it only keeps the gradient finite where nothing is wrong.
    return ((prediction - target).square().mean((1, 2, 3)) + 1e-6).sqrt()


def log_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Natural logarithm of the mean square error: minus the PSNR in units of 4.34 dB.

    Floored at 40 dB: beyond, an undamaged picture would draw the whole gradient to itself.
    """
    return ((prediction - target).square().mean((1, 2, 3)) + 1e-4).log()


def frequency(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the orthonormal 2-D Fourier coefficients (as in MIMO-UNet, arXiv:2108.05054)."""
    difference = torch.fft.rfft2((prediction - target).float(), norm="ortho")
    return torch.view_as_real(difference).abs().mean((1, 2, 3, 4))


def uncertainty_nll(coarse: Tensor, uncertainty: Tensor, target: Tensor, beta: float) -> Tensor:
    r"""Laplace negative log-likelihood of the first stage.

    .. math:: |J_1 - J| / U + \log U

    with the mean over the colours for :math:`|J_1 - J|`. The map gets the gradient of just this. The picture gets it
    times :math:`U^\beta`: with beta 0 a pixel that is declared uncertain hardly pulls on the picture, and the net buys
    a low loss by giving up on hard pixels; with beta 1 every pixel pulls as it does in an L1. The idea is that of
    Seitzer et al., arXiv:2203.09168, who weight both gradients; then certain pixels hardly teach the map.

    Args:
        coarse: ``(B, 3, H, W)``.
        uncertainty: ``(B, 1, H, W)``, positive.
        target: ``(B, 3, H, W)``.
        beta: between 0 and 1.
    """
    error = (coarse - target).abs().mean(1, keepdim=True)
    fixed = error.detach()
    pull = (error - fixed) * uncertainty.detach() ** (beta - 1)  # zero in value
    return (fixed / uncertainty + uncertainty.log() + pull).mean()


PICTURE_TERMS = {"l1": l1, "charbonnier": charbonnier, "rmse": rmse, "log_mse": log_mse, "frequency": frequency}


class RestorationLoss:
    """Weighted sum of the named terms. A term of weight 0 is neither computed nor logged.

    Args:
        l1, charbonnier, rmse, log_mse, frequency: weights of the terms between a stage's result and the clean picture.
        uncertainty: weight of `uncertainty_nll`.
        task: weight of the cross-entropy of the estimated task against the label.
        coarse: factor for the picture terms of stage 1; stage 2 has 1.
        beta: see `uncertainty_nll`.
        tasks: names of the task classes, in the order of the labels.
        task_weights: factors, by task, of the picture terms; 1 for a task that is not named. An error of tone has the
            same sign all over a crop, so its gradients add up, those of noise cancel: without factors, noise had a
            fortieth of the gradient's energy in a five-task training, haze and low light had two thirds.

    Raises:
        UserError: a weight is out of its range, or for a task that is neither there nor one of the standard ones.
    """

    def __init__(
        self,
        *,
        l1: float = 0.0,
        charbonnier: float = 0.0,
        rmse: float = 0.0,
        log_mse: float = 0.0,
        frequency: float = 0.0,
        uncertainty: float = 0.0,
        task: float = 0.0,
        coarse: float = 0.5,
        beta: float = 1.0,
        tasks: Sequence[str] = (),
        task_weights: Mapping[str, float] | None = None,
    ) -> None:
        weights = {"l1": l1, "charbonnier": charbonnier, "rmse": rmse, "log_mse": log_mse, "frequency": frequency}
        for name, weight in (*weights.items(), ("uncertainty", uncertainty), ("task", task), ("coarse", coarse)):
            if not 0 <= weight < math.inf:
                raise UserError(f"loss.{name} is {weight:g}; it is a weight and must be 0 or more.")
        if not any((*weights.values(), uncertainty, task)):
            raise UserError("All weights of `loss` are 0; at least one must be more.")
        if not 0 <= beta <= 1:
            raise UserError(f"loss.beta is {beta:g}; it must be in [0, 1].")
        self.picture_weights = {name: weight for name, weight in weights.items() if weight}
        self.uncertainty, self.task, self.coarse, self.beta = uncertainty, task, coarse, beta
        self.task_weights: Tensor | None = None
        if task_weights:
            # A recipe's weights for the standard tasks may stand where a run leaves some of these tasks out.
            if unknown := sorted(set(task_weights) - set(tasks) - set(Task)):
                raise UserError(f"loss.task_weights has '{unknown[0]}', and the tasks are {', '.join(tasks)}.")
            for name, factor in task_weights.items():
                if not 0 <= factor < math.inf:
                    raise UserError(f"loss.task_weights.{name} is {factor:g}; it must be 0 or more.")
            self.task_weights = torch.tensor([float(task_weights.get(name, 1.0)) for name in tasks])

    def __call__(self, restored: Restoration, clean: Tensor, task: Tensor) -> LossTerms:
        """Loss of a batch.

        Args:
            restored: what the network gave for the batch.
            clean: ``(B, 3, H, W)`` in [0, 1].
            task: ``(B,)`` int64 labels.
        """
        one_stage = restored.refined is restored.coarse
        stages = {"refined": (restored.refined, 1.0)}
        if not one_stage and self.coarse:
            stages["coarse"] = (restored.coarse, self.coarse)
        factors = None
        if self.task_weights is not None:
            self.task_weights = self.task_weights.to(task.device)  # once: the host waits for a GPU meanwhile
            factors = self.task_weights[task]
        terms: dict[str, Tensor] = {}
        weighted: list[Tensor] = []
        for stage, (picture, share) in stages.items():
            for name, weight in self.picture_weights.items():
                values = PICTURE_TERMS[name](picture, clean)
                terms[f"{stage}/{name}"] = values.detach().mean()
                weighted.append(weight * share * (values if factors is None else values * factors).mean())
        # A map that is not learned has no gradient to give: its likelihood is no loss.
        if self.uncertainty and restored.uncertainty.requires_grad:
            nll = uncertainty_nll(restored.coarse, restored.uncertainty, clean, self.beta)
            terms["uncertainty"] = nll.detach()
            weighted.append(self.uncertainty * nll)
        if self.task and restored.task_logits.shape[1] > 1:
            entropy = F.cross_entropy(restored.task_logits, task)
            terms["task"] = entropy.detach()
            weighted.append(self.task * entropy)
        return LossTerms(torch.stack(weighted).sum(), terms)
