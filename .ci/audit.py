"""Known vulnerabilities of the versions in requirements.lock, by pip-audit.

Exit status 1: there are some. 2: the advisory service could not be asked, so nothing is known; pip-audit itself calls
that "no known vulnerabilities".
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"


def verdict(report: dict) -> tuple[int, list[str]]:
    """Exit status and what to say of pip-audit's report."""
    asked = [one for one in report["dependencies"] if "skip_reason" not in one]
    skipped = [one["name"] for one in report["dependencies"] if "skip_reason" in one]
    lines = [
        f"{one['name']} {one['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for one in asked
        for flaw in one["vulns"]
    ]
    if skipped and asked:
        lines.append(f"not audited, the advisory service does not know them: {', '.join(skipped)}")
    if skipped and not asked:
        lines.append(f"The package index serves no advisories here: none of {len(skipped)} packages was audited.")
        return 2, lines
    lines.append(f"{len(asked)} packages audited, {sum(len(one['vulns']) for one in asked)} known vulnerabilities")
    if any(one["vulns"] for one in asked):
        return 1, lines
    return (2 if skipped or not asked else 0), lines


def main() -> int:
    """Ask and report; returns the exit status."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--require-hashes", "--disable-pip"]
    done = subprocess.run([*command, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True)
    try:
        status, lines = verdict(json.loads(done.stdout))
    except json.JSONDecodeError:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        status, lines = 2, [f"error: nothing was audited, pip-audit failed: {reason[0]}"]
    if status == 2:
        lines.append("error: the audit is not complete; run it where the index serves advisories")
    print("\n".join(lines), file=sys.stderr if status else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main())
