"""Training on a CUDA device: crops a second, their share of its peak, and what the loader can deliver.

python experiments/five_task/gpu_step.py [CASE...] [key=value ...] [--compile CASE...] [--graph CASE...] [--loader N]

A case is VARIANT:BATCH. A step of the recipe (forward under bfloat16, losses, backward, clipping, AdamW) is taken on
one batch of crops, over and over. The peak is that of a product of two 8192x8192 matrices in bfloat16, measured in the
same run; the operations of a step are three times those of a restoration. Host time is what issuing a step takes: where
it is as long as the step, a faster device would change nothing. ``--graph`` compiles the predictor and records the pass
through network and losses, as ``compile=true cuda_graph=true`` do in a training.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from opir_lightning.threads import limit_spinning

limit_spinning()  # as the commands do; read when torch is imported

import torch  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.autograd import DeviceType  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from opir_lightning.complexity import count  # noqa: E402
from opir_lightning.config import check_keys, config_dir, register_schemas  # noqa: E402
from opir_lightning.data.samples import degrade_pending  # noqa: E402
from opir_lightning.models.predictor import OperatorPredictor  # noqa: E402
from opir_lightning.provenance import provenance  # noqa: E402
from opir_lightning.training.callbacks.graphed import record, replay  # noqa: E402
from opir_lightning.training.module import parameter_groups  # noqa: E402

HERE = Path(__file__).resolve().parent
WARM_UP, STEPS, SIDE = 4, 12, 8192


def configured(variant: str, batch: int, overrides: list[str]) -> dict[str, Any]:
    """The recipe's configuration for a variant and a batch size."""
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        settings = [f"model={variant}", f"data.batch_size={batch}", "data.degrade_on=device", "run_dir=.", *overrides]
        return check_keys(compose("train", ["experiment=five_task", *settings]))


def timed(work: Callable[[], object], steps: int = STEPS) -> tuple[float, float]:
    """Median milliseconds of the device and of the host for one call."""
    for _ in range(WARM_UP):
        work()
    torch.cuda.synchronize()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    host = []
    events[0].record()
    for event in events[1:]:
        start = time.perf_counter()
        work()
        host.append(1e3 * (time.perf_counter() - start))
        event.record()
    torch.cuda.synchronize()
    return median(a.elapsed_time(b) for a, b in pairwise(events)), median(host)


def peak() -> float:
    """Operations a second of a large matrix product in bfloat16, on random numbers."""
    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * SIDE**3 / (timed(lambda: a @ b)[0] / 1e3)


def measure(
    variant: str, batch: int, overrides: list[str], highest: float, *, compiled: bool, graphed: bool
) -> dict[str, Any]:
    """One row: time of a step, crops a second, share of the peak, memory, and the operations that took most."""
    torch.manual_seed(0)
    plain = configured(variant, batch, overrides)
    net = instantiate(plain["model"], _convert_="all")
    macs = count(net, plain["data"]["crop"])[1]
    net = net.cuda().train()
    if compiled:  # as `compile=true` does in a training
        for predictor in (module for module in net.modules() if isinstance(module, OperatorPredictor)):
            predictor.forward = torch.compile(predictor.forward, dynamic=False)
    loss = instantiate(plain["loss"], _convert_="all")
    optimizer = instantiate(plain["optimizer"], _convert_="all")(parameter_groups(net, plain["task_lr_factor"]))
    data = instantiate({**plain["data"], "packs": "memory", "workers": 0, "val": {}}, _convert_="all")
    data.prepare_sets()
    pending = data.transfer_batch_to_device(next(iter(data.train_dataloader())), torch.device("cuda"), 0)
    degradations = data.mixture.batched()
    degrading = timed(lambda: degrade_pending(pending, degradations, data.crop), steps=5)
    made = degrade_pending(pending, degradations, data.crop)

    def losses(degraded: Tensor, clean: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            total, terms = loss(net(degraded), clean, task)
        return total, torch.stack([*terms.values()])

    crops, parameters = (made.degraded, made.clean, made.task), list(net.parameters())
    losses(*crops)  # after the second pass the statistics of the code are known to be complete
    net.code_estimator.norm.samples = 0
    losses(*crops)
    recording = record(losses, crops, parameters) if graphed else None

    def step() -> None:
        optimizer.zero_grad()
        total, _ = losses(*crops) if recording is None else replay(recording, parameters)
        total.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), plain["trainer"]["gradient_clip_val"])
        optimizer.step()

    torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    step()
    torch.cuda.synchronize()
    first = time.perf_counter() - begun
    device, host = timed(step)
    memory = torch.cuda.max_memory_allocated() / 2**30
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as prof:
        step()
        torch.cuda.synchronize()
    # Kernels and copies alone: an operator that launched them has their time a second time.
    events = [e for e in prof.key_averages() if e.self_device_time_total > 0 and e.device_type == DeviceType.CUDA]
    events = [e for e in events if not e.is_user_annotation]
    spent = sum(e.self_device_time_total for e in events)
    kernels = sorted(events, key=lambda e: -e.self_device_time_total)[:12]
    rate = batch / device * 1e3
    return {
        "variant": variant,
        "batch": batch,
        "crop": plain["data"]["crop"],
        "compiled": compiled,
        "graphed": graphed,
        "first_step_s": round(first, 1),
        "step_ms": round(device, 2),
        "host_ms": round(host, 2),
        "busy_ms": round(spent / 1e3, 2),
        "crops_per_s": round(rate),
        "share_of_peak": round(6 * macs * rate / highest, 4),
        "memory_gib": round(memory, 2),
        "degrading_ms": round(degrading[0], 2),
        "kernels": {e.key[:80]: [round(e.self_device_time_total / spent, 3), e.count] for e in kernels},
    }


def loader_rates(workers: int, overrides: list[str], seconds: float = 6.0) -> dict[str, float]:
    """Samples a second by where they are degraded, with nothing else to do."""
    plain = configured("opir_small", 64, overrides)
    rates = {}
    for place in ("workers", "device"):
        data = instantiate(
            {**plain["data"], "workers": workers, "degrade_on": place, "epoch_samples": 1 << 24, "val": {}},
            _convert_="all",
        )
        data.prepare_sets()
        batches = iter(data.train_dataloader())
        for _ in range(2 * workers):
            next(batches)
        start, samples = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            samples += len(next(batches).name)
        rates[place] = round(samples / (time.perf_counter() - start))
        del batches
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="CASE|key=value")
    parser.add_argument("--compile", nargs="*", default=[], metavar="CASE")
    parser.add_argument("--graph", nargs="*", default=[], metavar="CASE")
    parser.add_argument("--loader", type=int, metavar="WORKERS")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "gpu_step.json")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    register_schemas()
    overrides = [word for word in arguments.what if "=" in word]
    cases = [(word, False, False) for word in arguments.what if "=" not in word]
    cases += [(word, True, False) for word in arguments.compile] + [(word, True, True) for word in arguments.graph]
    highest = peak()
    record: dict[str, Any] = {
        "meta": {**provenance(), "device": torch.cuda.get_device_name()},
        "peak_tflops": round(highest / 1e12, 1),
        "steps": [],
    }
    print(f"{record['meta']['device']}: matrix product {highest / 1e12:.0f} TFLOP/s")
    for case, compiled, graphed in cases:
        variant, _, batch = case.partition(":")
        row = measure(variant, int(batch), overrides, highest, compiled=compiled, graphed=graphed)
        record["steps"].append(row)
        print({key: value for key, value in row.items() if key != "kernels"}, flush=True)
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    if arguments.loader:
        record["loader"] = {"workers": arguments.loader, **loader_rates(arguments.loader, overrides)}
        print(record["loader"])
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
