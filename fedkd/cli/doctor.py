"""``fedkd doctor``: is this machine, and this configuration, fit to take part?"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fedkd.cli.finding import Finding, Findings

PACKAGES = ("server", "client", "simulations")
COMMANDS = ("flwr", "flower-superlink", "flower-superexec", "flower-supernode", "flwr-serverapp", "flwr-clientapp")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    config: Annotated[Path | None, typer.Argument(help="server.yaml, client.yaml or relay.yaml")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="a list of findings")] = False,
) -> None:
    """Check the installation and, with a configuration, files, permissions, keys, ports and users. Changes nothing."""
    from fedkd.cli.checkup import configuration  # imported late: it brings cryptography

    findings = [*_installation(), *(configuration(config) if config else ())]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            print(f"{finding.level:8}{finding.what}" + (f"\n        fix: {finding.fix}" if finding.fix else ""))
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


# -- the installation --------------------------------------------------------------------------------------------------


def _installation() -> Findings:
    yield _packages()
    yield from _requirements()
    folder = Path(sys.executable).parent
    missing = [name for name in COMMANDS if not os.access(folder / name, os.X_OK)]
    if missing:
        yield Finding(
            "problem", f"Flower's commands are missing beside Python: {', '.join(missing)}", "install flwr again"
        )
    else:
        yield Finding("ok", f"Flower's commands are in {folder}")


def _packages() -> Finding:
    """``server`` and ``client`` are common names: another module may hide ours."""
    home = Path(__file__).parents[2]
    for name in PACKAGES:
        spec = find_spec(name)
        found = Path(spec.origin).parents[1] if spec and spec.origin else None
        if found != home:
            place = "nowhere" if spec is None else spec.origin or "elsewhere"
            return Finding(
                "problem",
                f"the package {name!r} is not fedkd's: found {place}, expected in {home}",
                "start fedkd from a directory that has no file or folder of that name",
            )
    return Finding("ok", f"the packages {', '.join(PACKAGES)} are fedkd's")


def _requirements() -> Findings:
    from packaging.requirements import Requirement

    wrong = 0
    for text in requires("fedkd") or ():
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = ""
        if not found or not requirement.specifier.contains(found, prereleases=True):
            wrong += 1
            have = f"version {found}" if found else "not installed"
            yield Finding(
                "problem", f"{requirement.name} is {have}, needed is {requirement.specifier}", "install fedkd again"
            )
    if not wrong:
        yield Finding("ok", f"Python {sys.version.split()[0]}, flwr {version('flwr')} and all other packages fit")
