"""What is installed along: the lock file, its licences, and what an audit says that could ask nobody."""

from __future__ import annotations

import importlib.util
import itertools
import re
import subprocess
import sys
import tomllib
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def script(name):
    spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


licences, audit = script("licences"), script("audit")


def test_the_lock_has_a_version_for_everything_that_the_project_asks_for():
    locked = licences.locked(LOCK)
    extras = PROJECT["optional-dependencies"].values()
    for requirement in map(Requirement, itertools.chain(PROJECT["dependencies"], *extras)):
        if requirement.name != PROJECT["name"]:
            version, parents = locked[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement}; run 'make lock'"
            assert PROJECT["name"] in parents


def test_each_locked_file_has_a_hash_and_no_address():
    blocks = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", LOCK, flags=re.M))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", block) for block in blocks)
    assert "://" not in LOCK
    # A build of one index alone, such as torch's for the CPU, could not be installed by others.
    assert not re.search(r"==[^ ]*\+", LOCK)


def test_the_table_of_licences_is_that_of_the_lock():
    done = subprocess.run([sys.executable, ROOT / ".ci" / "licences.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "licence", "fine"),
    [
        ("any", "MIT", True),
        ("any", "GPL-3.0-only", False),
        ("any", "MIT AND GPL-3.0-only", False),
        ("any", "GPL-3.0-only OR MIT", True),
        ("any", "MPL-2.0 AND (AGPL-3.0-only OR MIT)", True),
        ("any", "(MPL-2.0 OR MIT) AND AGPL-3.0-only", False),
        ("any", "Apache-2.0 WITH LLVM-exception", True),
        ("any", "LGPL-3.0-or-later", False),
        ("pyvips-binary", "LGPL-3.0-or-later", True),
        ("nvidia-nccl-cu13", "LicenseRef-NVIDIA", True),
        ("nvidias-friend", "LicenseRef-NVIDIA", False),
        ("any", "Some words (of a lawyer", False),
    ],
)
def test_which_licences_may_be_depended_on(name, licence, fine):
    assert licences.is_fine(name, licence) is fine


def test_what_a_package_states_about_its_licence_in_any_of_three_ways():
    def metadata(**fields):
        message = Message()
        for field, value in fields.items():
            message[field.replace("_", "-")] = value
        return message

    classifier = "License :: OSI Approved :: BSD License"
    assert licences.licence_of(metadata(License_Expression="MIT OR ISC", License="other")) == "MIT OR ISC"
    assert licences.licence_of(metadata(License="Apache 2.0")) == "Apache-2.0"
    assert licences.licence_of(metadata(License="UNKNOWN", Classifier=classifier)) == "BSD"
    assert licences.licence_of(metadata(License="Copyright\n\nall of it", Classifier=classifier)) == "BSD"
    assert licences.licence_of(metadata()) == ""


def test_a_package_is_needed_by_the_extras_that_bring_it():
    packages = {"a": ("1", {"mine"}), "b": ("1", {"a", "c"}), "c": ("1", {"mine"}), "d": ("1", {"b"})}
    project = {"name": "mine", "dependencies": [], "optional-dependencies": {"x": ["a>=1"], "y": ["mine[x]", "c"]}}
    assert licences.needed_by(packages, project) == {"a": "x", "b": "x, y", "c": "y", "d": "x, y"}
    project["dependencies"] = ["c"]
    assert licences.needed_by(packages, project)["d"] == "every install"


def test_an_audit_that_asked_nobody_does_not_pass():
    clean = {"name": "tqdm", "version": "4", "vulns": []}
    flawed = {"name": "pillow", "version": "9", "vulns": [{"id": "CVE-1", "fix_versions": ["10"]}]}
    skipped = {"name": "torch", "skip_reason": "not found"}
    assert audit.verdict({"dependencies": [clean]})[0] == 0
    assert audit.verdict({"dependencies": [clean, flawed, skipped]})[0] == 1
    assert audit.verdict({"dependencies": [clean, skipped]})[0] == 2
    status, lines = audit.verdict({"dependencies": [skipped]})
    assert status == 2
    assert "none of 1 packages was audited" in lines[-1]
