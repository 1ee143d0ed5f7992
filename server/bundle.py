"""The Flower App Bundle: the code that the server runs and ships to relays, built offline from what is installed.

A bundle is made in a staging directory that looks like a source checkout, so that a checkout and an installed wheel
give the same bundle. It holds code alone: no data, no configuration, no credentials.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

from fedkd.errors import ConfigError
from fedkd.processes import environment

PACKAGES = ("fedkd", "server", "client", "simulations")
_PROJECT_FILES = ("pyproject.toml", "LICENSE")
_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", "_bundle")


def stage(directory: Path) -> Path:
    """Lay out the app in ``directory``, which is emptied first, ready for ``flwr build`` or ``flwr run``."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for name in _PROJECT_FILES:
        shutil.copyfile(_project_file(name), directory / name)
    for package in PACKAGES:
        shutil.copytree(_package_directory(package), directory / package, ignore=_IGNORED)
    return directory


def build(staged: Path, output: Path) -> Path:
    """Build the bundle of a staged app into the directory ``output`` and return the file's path.

    The same sources give the same bytes: Flower puts fixed dates in the archive and the content's hash in the name.
    """
    output.mkdir(parents=True, exist_ok=True)
    known = set(output.glob("*.fab"))
    command = [str(Path(sys.executable).parent / "flwr"), "build", "--app", str(staged.absolute())]
    result = subprocess.run(
        command, cwd=output, env=environment(output), capture_output=True, text=True, check=False
    )  # fmt: skip
    bundles = sorted(output.glob("*.fab"), key=lambda fab: (fab not in known, fab.stat().st_mtime_ns))
    if result.returncode != 0 or not bundles:
        raise ConfigError("the app bundle could not be built", where=str(staged), fix=_last_words(result))
    return bundles[-1]


def bundle_files(fab: Path) -> list[str]:
    """The files in a bundle, sorted, without the manifest that Flower adds."""
    with zipfile.ZipFile(fab) as archive:
        return sorted(name for name in archive.namelist() if not name.startswith(".info/"))


def _project_file(name: str) -> Path:
    """The file beside the packages in a checkout, or the copy that the wheel carries."""
    server = _package_directory("server")
    for candidate in (server / "_bundle" / name, server.parent / name):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"{name} is missing from the installation", where=str(server), fix="install fedkd again")


def _package_directory(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"the package {package} cannot be found, or another module of that name hides it",
            where=str(spec.origin) if spec else "",
            fix="start fedkd from a directory that has no file of that name",
        )
    return Path(spec.submodule_search_locations[0])


def _last_words(result: subprocess.CompletedProcess[str]) -> str:
    return "\n".join((result.stdout + result.stderr).strip().splitlines()[-8:])
