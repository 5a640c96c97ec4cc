"""What a group's network costs: parameters, multiply-adds, and the time it takes here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from opir_lightning.errors import UserError

if TYPE_CHECKING:
    from opir_lightning.comparison.groups import Group
    from opir_lightning.models import OPIR

_MODEL = ("opir_lightning.models.OPIR", "opir_lightning.models.opir.OPIR")
WARM_UP, ROUNDS = 2, 7


class Cost(NamedTuple):
    """Of one group; None where it is not known.

    Attributes:
        parameters: of the network.
        macs: multiply-adds for one picture.
        latency_ms: median of some restorations of one picture, measured here.
        reason: why something is not known.
    """

    parameters: int | None = None
    macs: int | None = None
    latency_ms: float | None = None
    reason: str = ""


def measure(groups: Sequence[Group], side: int, *, latency: bool) -> list[Cost]:
    """Count every group's network on one picture of ``side`` x ``side``; with ``latency``, time them in turn."""
    from tqdm import tqdm

    from opir_lightning.complexity import count

    costs, nets = [], {}
    for index, group in enumerate(tqdm(groups, desc="counting", unit="network", disable=None)):
        try:
            net = build(group)
        except UserError as error:
            costs.append(Cost(reason=str(error)))
            continue
        costs.append(Cost(*count(net, side)))
        if latency:
            nets[index] = net
    for index, milliseconds in _latencies(nets, side).items():
        costs[index] = costs[index]._replace(latency_ms=milliseconds)
    return costs


def build(group: Group) -> OPIR:
    """The group's network in evaluation mode, by the settings in the weights of a run or in its configuration.

    The weights themselves count for nothing here.

    Raises:
        UserError: it is not known, or none that can be built.
    """
    from opir_lightning.checkpoints import read_header
    from opir_lightning.fitting import build as build_network

    weights = next((run.weights for run in group.runs if run.weights is not None), None)
    if weights is not None:
        return build_network(weights, read_header(weights).settings)
    settings = model_settings(next((run.config["model"] for run in group.runs if "model" in run.config), None))
    return build_network(group.runs[0].path, settings)


def model_settings(node: Any) -> dict[str, Any]:
    """The constructor's arguments from a run's configuration.

    Raises:
        UserError: it is of another class, which is not built.
    """
    if not isinstance(node, dict):
        raise UserError("Neither its weights nor the settings of its model are there.")
    if node.get("_target_") not in _MODEL:
        raise UserError(f"Its model is '{node.get('_target_')}'; only {_MODEL[0]} is built from a run's settings.")
    return {key: value for key, value in node.items() if not (key.startswith("_") and key.endswith("_"))}


def _latencies(nets: dict[int, OPIR], side: int) -> dict[int, float]:
    """Median milliseconds; the networks take turns, so that whatever else the machine does meets them all."""
    import torch
    from tqdm import tqdm

    if not nets:
        return {}
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    times: dict[int, list[float]] = {index: [] for index in nets}
    for turn in tqdm(range(WARM_UP + ROUNDS), desc="timing", unit="round", disable=None):
        for index, net in nets.items():
            with torch.inference_mode():
                start = time.perf_counter()
                net(image)
                spent = time.perf_counter() - start
            if turn >= WARM_UP:
                times[index].append(1000 * spent)
    return {index: statistics.median(spent) for index, spent in times.items()}


def clock() -> str:
    """With what the times were measured."""
    import torch

    threads = torch.get_num_threads()
    return (
        f"Latency: median of {ROUNDS} restorations of one picture on this machine's CPU, "
        f"{threads} thread{'s' if threads > 1 else ''}, torch {torch.__version__}, float32; the networks in turn."
    )
