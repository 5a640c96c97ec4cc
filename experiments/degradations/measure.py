"""The synthetic degradations against real pairs, in numbers.

python experiments/degradations/measure.py --root DIR       (some minutes; writes results.json and residuals.png)

Measures every set of pairs.py that is found below DIR; the synthetic degradations at fixed severities and as training
draws them on BSD-val-rest; and, on each real set's own clean pictures, the severity with the same mean PSNR, where the
residuals are compared. Sets of the role "test" are reported and decide nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pairs import SETS, Damage, RealSet, clean_pictures, damage, histogram, histogram_distance, load
from plot import draw
from synthetic import HERE, SEVERITIES, TASKS, degradations, degrade, severity_for

from opir_lightning.degradations import Degradation

Pairs = Sequence[tuple[np.ndarray, np.ndarray]]

QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
DRAWS = 6  # severities drawn for each validation picture, to see what training sees
OWN_PICTURES = 16  # clean pictures of each real set that are degraded at every severity


def psnr_summary(damages: Sequence[Damage]) -> dict[str, float]:
    """Mean and quantiles of the PSNR."""
    values = [d.psnr for d in damages]
    return {"mean": rounded(np.mean(values))} | {
        name: rounded(np.quantile(values, share)) for name, share in QUANTILES.items()
    }


def features(damages: Sequence[Damage]) -> dict[str, float]:
    """Mean of everything that is measured of a picture."""
    return {name: rounded(np.mean([getattr(d, name) for d in damages])) for name in Damage._fields}


def rounded(value: float) -> float:
    return round(float(value), 3)


def measure_all(pairs: Pairs) -> list[Damage]:
    return [damage(*pair) for pair in pairs]


def synthetic_table(degradation: Degradation, clean: Sequence[np.ndarray]) -> dict[str, Any]:
    """PSNR at each severity, and of what training draws."""
    table = {str(s): psnr_summary(measure_all(degrade(degradation, clean, s))) for s in SEVERITIES}
    drawn: list[Damage] = []
    for turn in range(DRAWS):
        drawn += measure_all(degrade(degradation, clean, None, first_seed=1000 * (turn + 1)))
    return {"severity": table, "drawn": psnr_summary(drawn)}


def compare(real: RealSet, root: Path, degradation: Degradation, drawn: Mapping[str, float]) -> dict[str, Any]:
    """A real set, and the synthetic degradation on its clean pictures at the severity of the same mean PSNR."""
    everything = load(real, root)
    damages = measure_all(everything)
    result: dict[str, Any] = {
        "task": real.task,
        "role": real.role,
        "pairs": len(everything),
        "psnr": psnr_summary(damages),
        "features": features(damages),
        "inside_drawn_90": rounded(np.mean([drawn["q05"] <= d.psnr <= drawn["q95"] for d in damages])),
        "inside_drawn": rounded(np.mean([drawn["min"] <= d.psnr <= drawn["max"] for d in damages])),
    }
    some = load(real, root, most=OWN_PICTURES)
    clean = [pair[1] for pair in some]
    curve = {s: float(np.mean([d.psnr for d in measure_all(degrade(degradation, clean, s))])) for s in SEVERITIES}
    target = float(np.mean([d.psnr for d in measure_all(some)]))
    severity = severity_for(target, curve)
    result["synthetic_on_own_clean"] = {str(s): rounded(value) for s, value in curve.items()}
    result["matched_severity"] = severity and rounded(severity)
    # Where no severity fits, the nearest end still shows how the residuals differ.
    shown = severity if severity is not None else min(curve, key=lambda s: abs(curve[s] - target))
    made = [pair for turn in range(2) for pair in degrade(degradation, clean, shown, first_seed=100 * turn)]
    real_histogram, made_histogram = histogram(some), histogram(made)
    result["matched"] = {
        "severity": rounded(shown),
        "features": features(measure_all(made)),
        "features_real": features(measure_all(some)),
        "histogram_distance": rounded(histogram_distance(real_histogram, made_histogram)),
    }
    result["histogram"] = {
        "real": [round(float(v), 6) for v in real_histogram],
        "synthetic": [round(float(v), 6) for v in made_histogram],
    }
    return result


def reaching(target: float, table: Mapping[str, Mapping[str, float]], margin_db: float) -> list[float]:
    """The severities whose mean PSNR is within the margin of a target."""
    return [float(s) for s, row in table.items() if abs(row["mean"] - target) <= margin_db]


def print_tables(results: Mapping[str, Any]) -> None:
    """What the README shows, as Markdown."""
    print("\n| task | " + " | ".join(f"{s:g}" for s in SEVERITIES) + " | drawn, 5 to 95 % |")
    print("|---" * (len(SEVERITIES) + 2) + "|")
    for task, table in results["synthetic"].items():
        cells = [f"{row['mean']:.1f}" for row in table["severity"].values()]
        print(f"| {task} | " + " | ".join(cells) + f" | {table['drawn']['q05']:.1f} to {table['drawn']['q95']:.1f} |")
    print("\n| set | role | pairs | PSNR | min to max | within 2 dB | same PSNR on own clean | inside 90 % | W1 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, r in results["sets"].items():
        p, within = r["psnr"], r["severities_within_2_db"]
        span = f"{within[0]:g} to {within[-1]:g}" if within else "none"
        own = "none" if r["matched_severity"] is None else f"{r['matched_severity']:.2f}"
        print(
            f"| {name} | {r['role']} | {r['pairs']} | {p['mean']:.2f} | {p['min']:.1f} to {p['max']:.1f} | {span} | "
            f"{own} | {100 * r['inside_drawn_90']:.0f} % | {r['matched']['histogram_distance']:.1f} |"
        )
    print("\n| set | | " + " | ".join(Damage._fields) + " |\n" + "|---" * (len(Damage._fields) + 2) + "|")
    for name, r in results["sets"].items():
        for kind, key in (("real", "features_real"), ("synthetic", "features")):
            cells = [f"{r['matched'][key][field]:.2f}" for field in Damage._fields]
            print(f"| {name} | {kind} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the sets, as for data.root")
    parser.add_argument("--config", default="default", help="file in conf/degradations, without its ending")
    parser.add_argument("--role", choices=["train", "test"], help="only sets of this role: train, to decide settings")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    validation = clean_pictures(arguments.root / "BSD-val-rest")
    made = {task: d for task, d in degradations(arguments.config).items() if task in arguments.tasks}
    results: dict[str, Any] = {"clean": {"name": "BSD-val-rest", "pictures": len(validation)}, "sets": {}}
    results["synthetic"] = {task: synthetic_table(d, validation) for task, d in made.items()}
    for real in SETS:
        if real.task not in made or arguments.role not in (None, real.role):
            continue
        if not real.source.items(arguments.root, embedded="train"):
            print(f"{real.name}: not found below '{arguments.root}', left out")
            continue
        table = results["synthetic"][real.task]
        result = compare(real, arguments.root, made[real.task], table["drawn"])
        result["severities_within_2_db"] = reaching(result["psnr"]["mean"], table["severity"], 2.0)
        results["sets"][real.name] = result
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    draw(results["sets"], arguments.output.with_name("residuals.png"))
    print_tables(results)


if __name__ == "__main__":
    main()
