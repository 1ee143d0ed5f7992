"""What a client sends: answers of fedkd against the weights of FedAvg, the same student in both, as a Markdown table.

Without privacy against FedAvg, at epsilon 3 against FedAvg of silos that train with DP-SGD on the same budget.

python benchmarks/uplink.py --seeds 0 1 2 --data digits fashion --epsilon none 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from fedkd import config
from fedkd.config import Scenario
from simulations.runner import Options, Simulation

# The network of two hidden layers of 200 with which FedAvg was introduced (McMahan et al. 2017, arXiv:1602.05629).
STUDENT = "{kind: mlp, hidden: [200, 200], activation: relu, learning_rate: 0.1}"
TEACHER = ["teacher.kind=mlp", "teacher.hidden=[200, 200]", "teacher.activation=relu", "teacher.learning_rate=0.005",
           "teacher.steps=200", "training.distil_learning_rate=0.005"]  # fmt: skip
FASHION = ["data.source=idx", "clients=10", "proxy.size=4000", "proxy.tune_size=2000",
           "features.kind=scattering+patches", "features.components=300"]  # fmt: skip
SETTINGS: dict[tuple[str, str], list[str]] = {
    ("digits", "none"): [
        *TEACHER, f"students=[{STUDENT}]", "codec=top3", "rounds=3", "privacy.steps=40", "privacy.sample_rate=0.2",
        "baselines={fedavg: {rounds: 10, steps: 10}}",
    ],
    ("digits", "3"): ["codec=top3", "baselines=[fedavg_dp_sgd]"],
    ("fashion", "none"): [
        *FASHION, *TEACHER, f"students=[{STUDENT}]", "codec=top3", "rounds=3", "privacy.steps=100",
        "privacy.sample_rate=0.024", "teacher.learning_rate=0.003", "teacher.batch_size=256", "teacher.steps=400",
        "teacher.dropout=0.5", "teacher.weight_decay=0.01", "baselines={fedavg: {rounds: 10, steps: 40}}",
    ],
    ("fashion", "3"): [
        *FASHION, "teacher={kind: mlp, hidden: [512], activation: relu, dropout: 0.5, steps: 400, batch_size: 256, "
        "learning_rate: 0.003, weight_decay: 0.01}", "codec=top3", "training.learning_rate=3",
        "training.distil_learning_rate=0.05", "training.terms={kl: 0.3}", "privacy.steps=20",
        "privacy.nominal_examples=5400", "baselines=[fedavg_dp_sgd]",
    ],
}  # fmt: skip
"""By data and epsilon. Under privacy the student is linear, the best of both there; without, the larger network."""

HEAD = ("data", "ε an example", "fedkd: teacher", "students", "kB up", "FedAvg", "kB up", "times less")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", nargs="+", choices=("digits", "fashion"), default=["digits", "fashion"])
    parser.add_argument("--epsilon", nargs="+", choices=("none", "3"), default=["none", "3"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    rows = [
        _row(data, epsilon, [_run(data, epsilon, [*options.set, f"seed={seed}"]) for seed in options.seeds])
        for data in options.data
        for epsilon in options.epsilon
    ]
    print("\n".join("| " + " | ".join(row) + " |" for row in (HEAD, ["---"] * len(HEAD), *rows)))


def _run(data: str, epsilon: str, more: list[str]) -> dict[str, Any]:
    private = ["privacy.mechanism=none"] if epsilon == "none" else [f"privacy.epsilon={epsilon}"]
    scenario = config.load(Scenario, None, [*private, *SETTINGS[data, epsilon], *more])
    with tempfile.TemporaryDirectory() as folder:
        run = Options(out=Path(folder) / "run", base=Path.cwd(), tell=lambda text: None)
        summary = Simulation(scenario, run).run()
    assert summary is not None
    shown = ("teacher_accuracy", "tune_accuracy", "student_accuracy", "bytes_up", "privacy", "baselines", "seconds")
    print(json.dumps({"data": data, "seed": scenario.seed, **{key: summary[key] for key in shown}}), flush=True)
    return summary


def _row(data: str, epsilon: str, found: list[dict[str, Any]]) -> list[str]:
    averaged = [next(iter(one["baselines"].values())) for one in found]
    up, weights = found[0]["bytes_up"], averaged[0]["bytes_up"]
    return [
        data,
        "∞" if epsilon == "none" else epsilon,
        _spread([one["teacher_accuracy"] for one in found]),
        _spread([one["student_accuracy"]["mean"] for one in found]),
        f"{up / 1e3:.1f}",
        _spread([one["accuracy"] for one in averaged]),
        f"{weights / 1e3:.0f}",
        f"{weights / up:.2g}" if weights < up else f"{weights / up:.0f}",
    ]


def _spread(values: list[float]) -> str:
    """Mean, smallest and largest, in per cent."""
    mean, low, high = (100 * value for value in (statistics.mean(values), min(values), max(values)))
    return f"{mean:.1f} ({low:.1f}–{high:.1f})"


if __name__ == "__main__":
    main()
