"""``fedkd audit``: attack the guarantee, and say what that has shown."""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedkd.cli.running import SET
from fedkd.errors import ConfigError, PrivacyError

if TYPE_CHECKING:
    from fedkd.report.audit import AuditResult

AUDITED = Annotated[Path | None, typer.Argument(help="scenario file; without one: that of fedkd simulate")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("audit")(audit)


def audit(
    scenario: AUDITED = None,
    overrides: SET = None,
    epsilon: Annotated[float | None, typer.Option(help="same as --set privacy.epsilon=X")] = None,
    trials: Annotated[int | None, typer.Option(min=20, help="paired releases on each of two data sets")] = None,
    canaries: Annotated[int | None, typer.Option(min=10, max=4096, help="records that take part by a coin")] = None,
    confidence: Annotated[float, typer.Option(help="of all lower bounds together")] = 0.999,
    quick: Annotated[bool, typer.Option("--quick", help="fewer trials: finds gross mistakes only")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as one JSON object, nothing else")] = False,
    out: Annotated[Path | None, typer.Option(help="also write the JSON here; report finds RUN/audit.json")] = None,
) -> None:
    """Attack the privacy guarantee, and bound from below what it gives away; exit code 1 if that is above the claim."""
    from fedkd import config
    from fedkd.config import Scenario
    from fedkd.state import write_json
    from simulations.audits.setting import Setting, Sizes
    from simulations.audits.suite import audit as run

    if not 0.5 <= confidence < 1:
        raise ConfigError(f"a confidence of {confidence:g}", where="--confidence", fix="0.999, for example")
    settings = [*(overrides or []), *([] if epsilon is None else [f"privacy.epsilon={epsilon}"])]
    chosen = config.load(Scenario, scenario, settings)
    sizes = Sizes.quick() if quick else Sizes()
    sizes = replace(sizes, trials=trials or sizes.trials, canaries=canaries or sizes.canaries)
    setting = Setting(chosen, scenario.resolve().parent if scenario else Path.cwd(), sizes, _tell)
    result = run(setting, confidence)
    record = result.model_dump(mode="json")
    if out is not None:
        write_json(out, record)
    print(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) if as_json else _text(result))
    if result.refuted:
        raise PrivacyError(
            f"the guarantee does not hold: {len(result.refuted)} of {len(result.findings)} lower bounds are above "
            f"their claims, which a correct program shows with probability {1 - confidence:.2g} at most",
            where="; ".join(finding.audit for finding in result.refuted),
            fix="release nothing with this installation; send the result to its authors",
        )


def _tell(text: str) -> None:
    print(f"· {text}", file=sys.stderr, flush=True)


def _folded(text: str) -> list[str]:
    return textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="    ")


def _text(result: AuditResult) -> str:
    from fedkd.report.audit import MEANING

    lines = [f"audit of {result.mechanism}, epsilon {result.epsilon:g} at delta {result.delta:g}"]
    for finding in result.findings:
        mark = "  ABOVE ITS CLAIM" if finding.refutes else ""
        seen = ", ".join(f"{key} {value}" for key, value in finding.observed.items())
        lines += ["", f"{finding.audit}{mark}", *_folded(finding.sentence), *_folded(f"observed: {seen}")]
    together = f"{len(result.findings)} lower bounds, together at confidence {result.confidence:g}; {MEANING}"
    return "\n".join([*lines, "", *textwrap.wrap(together, 98)])
