"""Asks a vulnerability service about every installed package, and says how many it knew: silence is not a clean bill.

.ci/audit.py PIP_AUDIT SITE_PACKAGES. Exit code 1 if a package has a known weakness.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def main() -> None:
    """Print what was found."""
    pip_audit, packages = sys.argv[1:]
    command = [pip_audit, "--format", "json", "--progress-spinner", "off", "--timeout", "10", "--path", packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        print(f"NOT audited, the service gives no answer: {done.stderr.strip().splitlines()[-1:]}")
        return
    known = [one for one in found if "skip_reason" not in one]
    weak = [one for one in known if one["vulns"]]
    for one in weak:
        print(one["name"], one["version"], *(weakness["id"] for weakness in one["vulns"]))
    print(f"{len(known)} of {len(found)} packages audited, {len(weak)} with known weaknesses")
    if not known:
        print("NOT audited: the vulnerability service cannot be reached from here")
    sys.exit(bool(weak))


main()
