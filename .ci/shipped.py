"""Checks what the wheel and the Flower app bundle hold: the packages, and nothing that must stay at home."""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

from server import bundle

PACKAGES = ("fedkd/", "server/", "client/", "simulations/")
NEEDED = ("fedkd/wire.py", "fedkd/py.typed", "server/app.py", "client/app.py", "simulations/digits.yaml")
NEEDED_IN_WHEEL = (*NEEDED, "server/_bundle/pyproject.toml", "server/_bundle/LICENSE")


def check(name: str, files: list[str], needed: tuple[str, ...], also: tuple[str, ...]) -> None:
    """Exit with a message unless all needed files are there, and none from elsewhere."""
    missing = [file for file in needed if file not in files]
    foreign = [file for file in files if not file.startswith(PACKAGES) and not file.startswith(also)]
    caches = [file for file in files if "__pycache__" in file or file.endswith((".pyc", ".safetensors", ".sqlite"))]
    if missing or foreign or caches:
        sys.exit(f"{name}: missing {missing}, foreign {foreign}, left over {caches}")
    print(f"{name}: {len(files)} files")


def main() -> None:
    """Check the newest wheel in the folder given, and a bundle built from the installed code."""
    wheel = max(Path(sys.argv[1]).glob("*.whl"))
    check(wheel.name, zipfile.ZipFile(wheel).namelist(), NEEDED_IN_WHEEL, ("fedkd-",))
    with tempfile.TemporaryDirectory() as folder:
        staged = bundle.stage(Path(folder) / "fedkd")
        fab = bundle.build(staged, Path(folder))
        python = tuple(file for file in NEEDED if file.endswith(".py"))
        check("bundle", bundle.bundle_files(fab), python, ("pyproject.toml", "LICENSE", ".info/"))


main()
