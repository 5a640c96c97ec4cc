"""Count what became of the mutants, per file, from what mutmut left under mutants/; run it where mutmut ran.

The survivors' names go with the counts, so that `mutmut show NAME` explains them.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

# mutmut keeps pytest's status of each mutant; 24 is the signal of one that ran out of its time.
KINDS = {0: "survived", 1: "killed", 3: "killed", 33: "not reached", None: "not looked at", 24: "out of time"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("mutants")], help="of one or more runs")
    parser.add_argument("-o", "--output", type=Path, help="results.json")
    options = parser.parse_args()
    files = {}
    for folder in options.folders:
        for path in sorted(folder.rglob("*.meta")):
            statuses = json.loads(path.read_text())["exit_code_by_key"]
            if statuses:
                name = str(path.relative_to(folder)).split("opir_lightning/")[1].removesuffix(".meta")
                kinds = {mutant: KINDS.get(s and abs(s), f"status {s}") for mutant, s in statuses.items()}
                files[name] = {
                    **Counter(kinds.values()),
                    "survivors": sorted(mutant for mutant, kind in kinds.items() if kind == "survived"),
                }
    total = Counter()
    for name, found in files.items():
        counts = Counter({kind: number for kind, number in found.items() if kind != "survivors"})
        total += counts
        print(row(name, counts))
    print(row("together", total))
    if options.output:
        options.output.write_text(json.dumps({"files": files, "together": total}, indent=1) + "\n")


def row(name: str, counts: Counter) -> str:
    dead = counts["killed"] + counts["out of time"]
    looked_at = dead + counts["survived"]
    share = f"{100 * dead / looked_at:.1f}" if looked_at else ""
    return f"| `{name}` | {dead} | {counts['survived']} | {share} | {looked_at} of {counts.total()} |"


if __name__ == "__main__":
    main()
