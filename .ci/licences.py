"""LICENCES.md: under which licence each package of requirements.lock comes, and which extra brings it.

``--write`` writes the file from what the installed packages say about themselves (`make licences` installs all extras
first). Without it the file is held against requirements.lock and against what is installed: this asks no network.

What counts: the package depends on these, it does not carry them along, and is itself under Apache-2.0.

- Permissive licences ask for their notice where the code is passed on, which each package brings itself.
- MPL-2.0 binds changes of its own files only, and there are none.
- Of LGPL code only libvips, a shared library that pyvips loads when it runs and that anybody can replace by their own.
- GPL, AGPL, and what allows no commercial use would bind the whole, or its users, and are refused. So is what nobody
  has looked at yet: a licence is added here by hand.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LOCK, TABLE = ROOT / "requirements.lock", ROOT / "LICENCES.md"

FINE = {
    *("MIT", "MIT-0", "MIT-CMU", "BSD", "0BSD", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "ISC", "PSF-2.0", "Zlib"),
    *("BSL-1.0", "CC0-1.0", "Apache-2.0 WITH LLVM-exception", "MPL-2.0"),
}
NVIDIA = "LicenseRef-NVIDIA"
CUDA = "CUDA's libraries, which torch's build for Linux asks for and NVIDIA serves"
FINE_HERE = {  # a licence that is fine for the packages of that name alone, and why
    "pyvips-binary": (
        "LGPL-3.0-or-later",
        "libvips as a shared library, loaded when it runs, replaceable by one's own",
    ),
    "cuda-*": (NVIDIA, CUDA),
    "nvidia-*": (NVIDIA, CUDA),
}
# What is not installed on every system cannot always be asked; the first that fits counts.
ELSEWHERE = {
    "cuda-pathfinder": "Apache-2.0",
    "cuda-*": NVIDIA,
    "nvidia-*": NVIDIA,
    "colorama": "BSD-3-Clause",  # Windows
    "audioop-lts": "PSF-2.0",  # Python 3.13
    "httpx2-jsfetch": "BSD-3-Clause",  # in the browser
}
# The words that packages without an SPDX expression use.
SPDX = {
    "apache 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd license": "BSD",
    "mit license": "MIT",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "psfl": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
}


class Row(NamedTuple):
    """One line of the table."""

    name: str
    version: str
    licence: str
    needed_by: str


def locked(text: str) -> dict[str, tuple[str, set[str]]]:
    """Version of each package of a lock file, and which packages ask for it."""
    found: dict[str, tuple[str, set[str]]] = {}
    name = ""
    for line in text.splitlines():
        if match := re.match(r"([a-z0-9-]+)==([^ ;]+)", line):
            name = match[1]
            found[name] = (match[2], set())
        elif match := re.match(r"    # (?:via )?  ([a-z0-9-]+)|    # via ([a-z0-9-]+)", line):
            found[name][1].add(match[1] or match[2])
    return found


def needed_by(packages: dict[str, tuple[str, set[str]]], project: dict) -> dict[str, str]:
    """Which extras bring each package: "every install", or their names."""
    extras = {"every install": project["dependencies"], **project["optional-dependencies"]}
    direct: dict[str, set[str]] = {}
    for extra, requirements in extras.items():
        for requirement in requirements:
            if not requirement.startswith(project["name"]):
                direct.setdefault(canonical(re.match(r"[\w.-]+", requirement)[0]), set()).add(extra)

    def bringing(name: str, seen: frozenset[str]) -> set[str]:
        extras = set(direct.get(name, ()))
        for parent in packages[name][1] - seen - {project["name"]}:
            extras |= bringing(parent, seen | {parent})
        return extras

    found = {name: bringing(name, frozenset({name})) for name in packages}
    return {name: "every install" if "every install" in of else ", ".join(sorted(of)) for name, of in found.items()}


def canonical(name: str) -> str:
    """A package's name as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_of(metadata) -> str:
    """The licence that a package states: its SPDX expression, or what its older fields mean; "" if it states none."""
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [line.split(" :: ")[-1] for line in metadata.get_all("Classifier", []) if line.startswith("License")]
    # A whole licence text in the field says less than the classifier; a classifier of several means "any of".
    stated = (metadata.get("License") or "").strip()
    if "\n" not in stated and stated not in ("", "UNKNOWN"):
        return SPDX.get(stated.lower(), stated)
    return " OR ".join(SPDX.get(name.lower(), name) for name in classifiers)


def is_fine(name: str, licence: str) -> bool:
    """Whether a licence, or of an "OR" one, allows to depend on the package."""
    fine = FINE | {own for pattern, (own, _) in FINE_HERE.items() if fnmatch(name, pattern)}
    pieces = re.findall(r"\(|\)|[\w.+-]+(?: WITH [\w.-]+)?", licence)
    words = [p.lower() if p in ("AND", "OR") else p if p in "()" else str(p in fine) for p in pieces]
    try:
        return bool(eval(" ".join(words)))  # nothing but True, False, and, or, brackets
    except SyntaxError:
        return False


def installed() -> dict[str, importlib.metadata.Distribution]:
    """What is installed, by name."""
    return {canonical(one.name): one for one in importlib.metadata.distributions()}


def rows(known: dict[str, str]) -> list[Row]:
    """The table for what is locked; ``known`` has the licences of packages that cannot be asked here."""
    packages = locked(LOCK.read_text())
    needs = needed_by(packages, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])
    here, table = installed(), []
    for name, (version, _) in packages.items():
        if name in here and here[name].version.partition("+")[0] == version:
            licence = licence_of(here[name].metadata)
        else:
            licence = known.get(name) or next((of for p, of in ELSEWHERE.items() if fnmatch(name, p)), "")
        table.append(Row(name, version, licence, needs[name]))
    return table


def page(table: list[Row]) -> str:
    """The table as Markdown, behind what it means."""
    head = """# Licences of the dependencies

What each package of `requirements.lock` says about itself. None of them is part of this package, and all can be
depended on from a package under Apache-2.0. `make licences` writes this file, `make check` refuses other licences;
what counts stands in [.ci/licences.py](.ci/licences.py).
"""
    notes = "".join(f"\n- `{pattern}`: {licence}, {why}." for pattern, (licence, why) in FINE_HERE.items())
    lines = "".join(f"\n| {' | '.join(row)} |" for row in table)
    return f"{head}{notes}\n\n| package | version | licence | needed by |\n|---|---|---|---|{lines}\n"


def read(text: str) -> dict[str, str]:
    """The licences that a written table has, by package."""
    return {row[0]: row[2] for line in text.splitlines() if len(row := line.strip("| ").split(" | ")) == 4}


def faults(table: list[Row]) -> list[str]:
    """What is wrong with the licences, a sentence each."""
    found = []
    for row in table:
        if not row.licence:
            found.append(f"{row.name} {row.version} states no licence that is known; look it up and add it.")
        elif not is_fine(row.name, row.licence):
            found.append(f"{row.name} {row.version} ({row.needed_by}) is under '{row.licence}', which is not allowed.")
    return found


def main() -> int:
    """Write or check; returns the exit status."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--write", action="store_true", help="write LICENCES.md from what is installed")
    write = arguments.parse_args().write
    tracked = TABLE.read_text() if TABLE.is_file() else ""
    table = rows({} if write else read(tracked))
    wrong = faults(table)
    if write and not wrong:
        TABLE.write_text(page(table))
    elif tracked != page(table):
        wrong.append("LICENCES.md is not what requirements.lock and the installed packages say; run 'make licences'.")
    for sentence in wrong:
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
