"""OPIR: predict the inverse of the degradation for every pixel, apply it, refine under an uncertainty map.

An implementation from the published description of *From Physical Degradation Models to Task-Aware All-in-One Image
Restoration* (Gao et al., arXiv:2601.10192).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opir_lightning.models.degradation_code import CodeEstimator
from opir_lightning.models.prediction import Operator, Prediction
from opir_lightning.models.predictor import OperatorPredictor
from opir_lightning.models.settings import TaskParameters, Uncertainty, check_ranges, read_settings
from opir_lightning.models.task_parameters import OperatorTaskParameters, TaskAwareAffine
from opir_lightning.models.uncertainty import SMALLEST, UncertaintyHead
from opir_lightning.ops.operator_conv import Backend, Padding
from opir_lightning.ops.predict_and_apply import predict_and_apply
from opir_lightning.types import Code, PixelOperator, Restoration


class _Stages(NamedTuple):
    """Both stages up to where the second operator would be applied.

    Attributes:
        operators: one per stage, at full strength.
        coarse, uncertainty: of the first stage.
        start: what the second stage starts from: ``coarse``, without its gradient if the stages are detached.
    """

    operators: list[Operator]
    coarse: Tensor
    uncertainty: Tensor
    start: Tensor


class OPIR(nn.Module):
    """The restoration network: picture in, `Restoration` out.

    All arguments are plain values, so that the settings travel with the weights.

    Args:
        tasks: names of the task classes, in the order of the labels.
        width: channels of the predictor at its finest level.
        encoder_blocks: blocks per level on the way down, finest first.
        middle_blocks: blocks at the coarsest level.
        decoder_blocks: blocks per level on the way up, finest first.
        unshuffle: the predictor runs at ``1 / unshuffle`` of the resolution.
        features: channels at full resolution from which the taps are projected.
        kernel_size: K of the operator, odd.
        dilations: the same taps are applied at each of these.
        per_colour: one kernel per colour; otherwise the colours share one.
        offset: predict three offsets per pixel.
        stages: 1 or 2.
        shared_predictor: one predictor (and projection) for both stages.
        task_parameters: where the task-aware parameters stand: ``after`` the operator prediction, ``before`` it, or
            ``off``: one set for all tasks.
        severity_size: length of the severity vector of the code.
        uncertainty: ``learned``; ``tap_mean``, the mean of the taps (EfDeRain+, arXiv:2201.02366); ``off``: ones.
        code_crop: side in pixels of the crops the code is estimated from; at most that of the training crops. Half of
            it shows the training how the evidence of several crops adds up.
        code_crops: at most this many crops along each side of the picture.
        code_width: of the two hidden layers that the code is estimated by.
        label_aware: let a given label speak in the estimate of the severity.
        padding: what the operator sees beyond the border.
        backend: of the operator convolution.
        fused: predict the taps where they are applied, without storing them; otherwise in separate steps.
        detach_between_stages: keep the gradient of stage 2 out of the result of stage 1.

    Raises:
        UserError: a setting is out of its range; the message names it.
    """

    def __init__(
        self,
        *,
        tasks: Sequence[str],
        width: int,
        encoder_blocks: Sequence[int],
        middle_blocks: int,
        decoder_blocks: Sequence[int],
        unshuffle: int = 2,
        features: int = 16,
        kernel_size: int = 3,
        dilations: Sequence[int] = (1, 2, 3, 4),
        per_colour: bool = True,
        offset: bool = True,
        stages: int = 2,
        shared_predictor: bool = True,
        task_parameters: TaskParameters = "after",
        severity_size: int = 4,
        uncertainty: Uncertainty = "learned",
        code_crop: int = 64,
        code_crops: int = 4,
        code_width: int = 96,
        label_aware: bool = False,
        padding: Padding = "reflect",
        backend: Backend = "auto",
        fused: bool = True,
        detach_between_stages: bool = True,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.settings: dict[str, Any] = {
            name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
            for name, value in given.items()
        }
        check_ranges(self.settings)
        self.tasks = tuple(str(task) for task in tasks)
        self.code_crop = code_crop
        self.kernel_size, self.groups, self.dilations = kernel_size, 3 if per_colour else 1, tuple(dilations)
        self.padding: Padding = padding
        self.backend: Backend = backend
        self.fused = fused
        self.uncertainty = uncertainty
        self.detach_between_stages = detach_between_stages

        self.code_estimator = CodeEstimator(
            tasks=len(tasks),
            severity_size=severity_size,
            crop=code_crop,
            crops_per_side=code_crops,
            hidden=code_width,
            label_aware=label_aware,
        )
        aware = task_parameters == "after"
        task_aware = [
            OperatorTaskParameters(
                tasks=len(tasks) if aware else 1,
                severity_size=severity_size,
                kernel_size=kernel_size,
                groups=self.groups,
                dilations=len(self.dilations),
                offset=offset,
                first_stage=stage == 0,
            )
            for stage in range(stages)
        ]
        self.task_parameters = nn.ModuleList(task_aware)
        # How wrong stage 1 will be depends on the damage as much as on the pixel: the map sees the code as well.
        self.uncertainty_head = (
            UncertaintyHead(features=features, tasks=len(tasks) if aware else 1, severity_size=severity_size)
            if uncertainty == "learned"
            else None
        )
        channels = task_aware[0].channels
        predictions = [
            Prediction(
                predictor=OperatorPredictor(
                    width=width,
                    encoder_blocks=encoder_blocks,
                    middle_blocks=middle_blocks,
                    decoder_blocks=decoder_blocks,
                    unshuffle=unshuffle,
                    features=features,
                ),
                features=features,
                channels=channels,
                before=TaskAwareAffine(tasks=len(tasks), severity_size=severity_size, channels=features, scale=1.0)
                if task_parameters == "before"
                else None,
            )
            for _ in range(1 if shared_predictor else stages)
        ]
        self.stages = nn.ModuleList(predictions)
        predictor = predictions[0].predictor
        self.stride: int = predictor.stride
        operator_reach = (kernel_size // 2) * max(self.dilations)
        self.receptive_field: int = stages * (predictor.reach + operator_reach)
        if self.uncertainty_head is not None:
            self.receptive_field += self.uncertainty_head.reach
        # Bytes that a pixel of the input takes while it is restored in float32: a line through what was measured on the
        # CPU for widths of 24 and 48 (565 and 882), with a predictor at half the resolution.
        stored_taps = 0 if fused else 8 * channels
        self.memory_per_pixel: int = 300 + 56 * width // unshuffle**2 + stored_taps

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> OPIR:
        """Build the network that these settings describe; nothing but plain values is accepted.

        Raises:
            UserError: a setting is unknown, missing or of the wrong kind.
        """
        return cls(**read_settings(cls.__init__, settings))

    def estimate_code(self, image: Tensor, task: Tensor | None = None, heard: Tensor | None = None) -> Code:
        """The code of each picture; ``task`` and ``heard`` as in `CodeEstimator.forward`."""
        code: Code = self.code_estimator(image, task, heard)
        return code

    def predict_operator(self, image: Tensor, guidance: Tensor, code: Code | None, *, stage: int) -> Operator:
        """The inverse operator of every pixel.

        Args:
            image: ``(B, 3, H, W)``, what the operator will be applied to.
            guidance: ``(B, 1, H, W)``, ones in stage 0, the uncertainty of its result in stage 1.
            code: what the picture suffers from.
            stage: 0 or 1.
        """
        prediction = self.stages[min(stage, len(self.stages) - 1)]
        assert isinstance(prediction, Prediction)
        features = prediction(image, guidance, code)
        parameters, blind = self.task_parameters[stage], prediction.projection
        projection = parameters(blind.weight, blind.bias, code, batch=len(image))
        return Operator(features, projection)

    def apply_operator(self, image: Tensor, operator: Operator) -> Tensor:
        """Apply one predicted operator at every dilation, mix, add the offsets; ``(B, 3, H, W)``, not clamped."""
        return predict_and_apply(
            image,
            operator.features,
            *operator.projection,
            kernel_size=self.kernel_size,
            groups=self.groups,
            dilations=self.dilations,
            padding=self.padding,
            backend=self.backend,
            fused=self.fused,
        )

    def perceive_uncertainty(self, image: Tensor, result: Tensor, operator: Operator, code: Code | None) -> Tensor:
        """The map ``(B, 1, H, W)`` of a stage's result: its expected absolute error, positive, in image units.

        Args:
            image, result: ``(B, 3, H, W)``, before and after the operator.
            operator: what was applied.
            code: what the picture suffers from.
        """
        if self.uncertainty_head is not None:
            uncertainty: Tensor = self.uncertainty_head(operator.features, image, result, code)
            return uncertainty
        return self.tap_mean(operator) if self.uncertainty == "tap_mean" else torch.ones_like(image[:, :1])

    def tap_mean(self, operator: Operator) -> Tensor:
        """A map without parameters, ``(B, 1, H, W)``: the magnitude of the mean of a pixel's taps."""
        # The projection is linear: the mean of the taps is what the mean of their rows projects.
        taps, projection = self.groups * self.kernel_size**2, operator.projection
        weight, bias = projection.weight[:, :taps].mean(1, keepdim=True), projection.bias[:, :taps].mean(1)
        mean = torch.einsum("bnf,bfhw->bnhw", weight, operator.features) + bias[:, None, None, None]
        return mean.abs() + SMALLEST

    def weaken(self, operator: Operator, strength: float, *, stage: int) -> Operator:
        """The operator of a stage, interpolated towards the identity and its offsets towards zero; see `forward`."""
        parameters = self.task_parameters[stage]
        assert isinstance(parameters, OperatorTaskParameters)
        return Operator(operator.features, operator.projection.towards_identity(strength, parameters.identity))

    def forward(
        self, image: Tensor, code: Code | None = None, task: Tensor | None = None, strength: float = 1.0
    ) -> Restoration:
        """Restore.

        Args:
            image: ``(B, 3, H, W)``, RGB in [0, 1], any size from 1x1.
            code: of the whole picture where ``image`` is a tile of it; estimated from ``image`` if None.
            task: ``(B,)`` int64 labels for the estimate, -1 where there is none; not read where a code is given.
            strength: in [0, 1]: the operators of both stages are interpolated between the identity (0) and what was
                predicted (1). What is predicted does not depend on it, and the map is that of the full strength.

        Returns:
            Result of both stages, not clamped, and the uncertainty of the first.
        """
        if code is None:
            code = self.estimate_code(image, task)
        operators, coarse, uncertainty, start = self._predict(image, code)
        if strength != 1:
            operators = [self.weaken(operator, strength, stage=stage) for stage, operator in enumerate(operators)]
            coarse = start = self.apply_operator(image, operators[0])
        refined = self.apply_operator(start, operators[1]) if len(operators) == 2 else coarse
        return Restoration(coarse, uncertainty, refined, code.task_logits)

    def _predict(self, image: Tensor, code: Code) -> _Stages:
        first = self.predict_operator(image, torch.ones_like(image[:, :1]), code, stage=0)
        coarse = self.apply_operator(image, first)
        uncertainty = self.perceive_uncertainty(image, coarse, first, code)
        guidance = uncertainty
        if self.uncertainty == "tap_mean":
            # It has nothing of its own to learn: as a loss, its likelihood would bend the taps that it is read from.
            uncertainty = uncertainty.detach()
        if len(self.task_parameters) == 1:
            return _Stages([first], coarse, uncertainty, coarse)
        start = coarse
        if self.detach_between_stages:
            start, guidance = start.detach(), guidance.detach()
        second = self.predict_operator(start, guidance, code, stage=1)
        return _Stages([first, second], coarse, uncertainty, start)

    def window_around(self, place: int) -> slice:
        """All that a pixel at this place can depend on along one axis, beginning where the model's grid does."""
        return slice(
            max(place - self.receptive_field, 0) // self.stride * self.stride, place + self.receptive_field + 1
        )

    def operators_at(
        self, image: Tensor, row: int, column: int, *, code: Code, strength: float = 1.0
    ) -> list[PixelOperator]:
        """What each stage does at one pixel.

        Args:
            image: ``(1, 3, H, W)``; the whole picture, or a window that starts at multiples of `stride` and holds the
                pixel with `receptive_field` pixels around it.
            row, column: of the pixel, in [0, H) and [0, W).
            code: of the whole picture.
            strength: as in `forward`.

        Returns:
            One per stage, in float32 or wider.
        """
        found = []
        for stage, operator in enumerate(self._predict(image, code).operators):
            features, (weight, bias, mix) = self.weaken(operator, strength, stage=stage)
            numbers = torch.einsum("nf,f->n", weight[0], features[0, :, row, column]) + bias[0]
            side, count = self.kernel_size, self.groups * self.kernel_size**2
            taps = numbers[:count].view(self.groups, side, side).expand(3, -1, -1)
            reach = side // 2 * max(self.dilations)
            kernel = numbers.new_zeros(3, 2 * reach + 1, 2 * reach + 1)
            for dilation, share in zip(self.dilations, mix[0], strict=True):
                first = reach - side // 2 * dilation
                places = slice(first, 2 * reach + 1 - first, dilation)
                kernel[:, places, places] += share[:, None, None] * taps
            offset = numbers[count:] if len(numbers) > count else numbers.new_zeros(3)
            found.append(PixelOperator(kernel, offset))
        return found
