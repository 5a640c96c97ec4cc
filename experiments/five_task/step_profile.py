"""Where the time of a training step goes: ``python experiments/five_task/step_profile.py [VARIANT] [key=value ...]``.

A step of the recipe on the CPU (forward, losses, backward, clipping, AdamW), without the loader, which works beside it,
on crops of the embedded photographs, by torch's profiler. First the parts of the step, then the kinds of operations in
all of it, by the time they take themselves.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from opir_lightning.threads import limit_spinning

limit_spinning()  # as the commands do; read when torch is imported

import torch  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from torch.profiler import ProfilerActivity, profile, record_function  # noqa: E402

from opir_lightning.config import check_keys, config_dir, register_schemas  # noqa: E402
from opir_lightning.data.samples import degrade_pending  # noqa: E402
from opir_lightning.losses import RestorationLoss  # noqa: E402
from opir_lightning.models import opir  # noqa: E402
from opir_lightning.models.degradation_code import CodeEstimator  # noqa: E402
from opir_lightning.models.predictor import OperatorPredictor  # noqa: E402
from opir_lightning.models.uncertainty import UncertaintyHead  # noqa: E402
from opir_lightning.provenance import provenance  # noqa: E402
from opir_lightning.training.module import parameter_groups  # noqa: E402

HERE = Path(__file__).resolve().parent
FORWARD = {
    "code": (CodeEstimator, "forward"),
    "predictor": (OperatorPredictor, "forward"),
    "operator": (opir, "predict_and_apply"),
    "uncertainty": (UncertaintyHead, "forward"),
    "losses": (RestorationLoss, "__call__"),
}
KINDS = {  # the first that matches an operation's name
    "operator": r"opir_lightning::|baddbmm",
    "convolutions": r"conv|addmm|aten::(mm|bmm|linear)",
    "layer normalisation": r"layer_norm",
    "optimizer and clipping": r"_foreach|_fused_adam|addcmul|addcdiv|lerp|Optimizer|norm",
    "copies and layout": r"copy|cat|pixel_|clone|contiguous|fill|zero|empty|_to_copy|view|stride|select|slice|index",
}


@contextmanager
def labelled() -> Iterator[None]:
    """The parts of the forward pass under their names in the profile."""
    with ExitStack() as stack:
        for label, (owner, name) in FORWARD.items():
            stack.enter_context(patch.object(owner, name, _recorded(getattr(owner, name), label)))
        yield


def _recorded(function: Callable[..., Any], label: str) -> Callable[..., Any]:
    def recorded(*args: Any, **options: Any) -> Any:
        with record_function(f"part: {label}"):
            return function(*args, **options)

    return recorded


def make_step(plain: dict[str, Any]) -> Callable[[], None]:
    """One step of the recipe, on the same batch every time."""
    torch.manual_seed(0)
    net = instantiate(plain["model"], _convert_="all").train()
    loss = instantiate(plain["loss"], _convert_="all")
    optimizer = instantiate(plain["optimizer"], _convert_="all")(parameter_groups(net, plain["task_lr_factor"]))
    data = instantiate({**plain["data"], "packs": "memory", "workers": 0, "val": {}}, _convert_="all")
    data.prepare_sets()
    batch = next(iter(data.train_dataloader()))
    batch = degrade_pending(batch, data.mixture.batched(), data.crop)

    def step() -> None:
        terms = loss(net(batch.degraded), batch.clean, batch.task)
        with record_function("part: backward"):
            optimizer.zero_grad()
            terms.total.backward()
        with record_function("part: clipping and optimizer"):
            torch.nn.utils.clip_grad_norm_(net.parameters(), plain["trainer"]["gradient_clip_val"])
            optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", nargs="?", default="opir_tiny")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "step_profile.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    register_schemas()
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        overrides = ["experiment=five_task", f"model={arguments.variant}", "run_dir=.", *arguments.overrides]
        plain = check_keys(compose("train", overrides))
    step = make_step(plain)
    for _ in range(3):
        step()
    with labelled(), profile(activities=[ProfilerActivity.CPU]) as prof:
        for _ in range(arguments.steps):
            with record_function("step"):
                step()
    events = {event.key: event for event in prof.key_averages()}
    total = events["step"].cpu_time_total
    parts = {name[6:]: e.cpu_time_total / total for name, e in events.items() if name.startswith("part: ")}
    kinds: dict[str, float] = {}
    for name, event in events.items():
        if name != "step" and not name.startswith("part: "):
            kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "pointwise and sums")
            kinds[kind] = kinds.get(kind, 0.0) + event.self_cpu_time_total / total
    batch, crop = plain["data"]["batch_size"], plain["data"]["crop"]
    milliseconds = total / arguments.steps / 1e3
    print(f"{arguments.variant}, {batch} x {crop}x{crop}, {arguments.threads} threads: {milliseconds:.0f} ms a step")
    for title, shares in (("parts", parts), ("kinds of operations", kinds)):
        print(f"  {title}")
        for name, share in sorted(shares.items(), key=lambda item: -item[1]):
            print(f"    {name:30} {share:6.1%}")
    record = {
        "meta": provenance(),
        "variant": arguments.variant,
        "batch": batch,
        "crop": crop,
        "threads": arguments.threads,
        "ms": round(milliseconds, 1),
        "parts": {name: round(share, 4) for name, share in parts.items()},
        "kinds": {name: round(share, 4) for name, share in kinds.items()},
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
