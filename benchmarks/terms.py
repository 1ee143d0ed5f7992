"""What each term of distillation adds, beside the labels of the proxy set: term x student x data, as a Markdown table.

A teacher has learned from all training examples. Students have the labels of the proxy set, and one term on the
teacher; what is shown is the gain over the same student, from the same start, with the labels alone.

python benchmarks/terms.py --seeds 0 1 2 --data digits mnist1d fashion
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fedkd.config import Architecture, Data, Distil, Features, Proxy, Scenario
from fedkd.data.sources import Examples
from fedkd.distill.compress import Teaching, compare, compress
from fedkd.distill.losses import cross_entropy
from fedkd.distill.model import Model, ProxyView
from fedkd.distill.trainer import Labelled, fit
from fedkd.errors import ConfigError
from simulations.prepare import build_proxy
from simulations.split import cut

TERMS = ("kl", "hard_ce", "mse", "tckd", "nckd", "dkd", "denoise", "hint", "hint_norm", "attention")
BASE = Path()
BATCH, TEACHER_STEPS = 128, 600

CNN = Architecture(kind="cnn", channels=(8, 16))
RELU = Architecture(kind="mlp", hidden=(32,), activation="relu")
LARGE = Architecture(kind="mlp", hidden=(400, 400), activation="relu")
SETTINGS = {
    "digits": (Data(source="digits"), 300, Architecture(kind="cnn", channels=(32, 64)), (Architecture(), RELU, CNN)),
    "mnist1d": (Data(source="mnist1d"), 1000, Architecture(kind="cnn", channels=(32, 64)), (Architecture(), RELU, CNN)),
    "fashion": (Data(source="idx"), 1000, LARGE, (Architecture(), RELU)),
}
"""By name: data, size of the labelled proxy set, teacher, students."""


def main() -> None:
    """Run and print, a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--students", nargs="+", choices=("linear", "mlp", "cnn"), default=["linear", "mlp", "cnn"])
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.data:
        found = [one(name, seed, options.steps, options.students) for seed in options.seeds]
        print(_table(name, found), flush=True)


def one(name: str, seed: int, steps: int, kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    """Test accuracy by student and term ("labels": none), for one seed of splits, teacher and students."""
    data, size, architecture, students = SETTINGS[name]
    parts = {"data": data, "proxy": Proxy(size=size, labelled=True, tune_size=0), "features": Features(kind="none")}
    scenario = Scenario(seed=seed, clients=1, **parts)
    view, split = ProxyView(build_proxy(scenario, BASE), BASE), cut(scenario, BASE)
    teacher = Teaching(trained(Model.fresh(architecture, view, seed, BASE), split.private, seed), "teacher")
    found: dict[str, dict[str, float]] = {}
    for student in (one for one in students if one.kind in kinds):
        found[student.kind] = {}
        for term in ("labels", *TERMS):
            terms = {} if term == "labels" else {term: 1.0}
            chosen = Distil(student=student, terms=terms, label_weight=1.0, steps=steps, batch_size=BATCH, seed=seed)
            try:
                made = compress([teacher], view, chosen, BASE, lambda text: None)
            except ConfigError:
                continue  # two networks that this term cannot compare
            scores = compare([teacher], made, view, split.test)
            found[student.kind][term] = scores["student"]["accuracy"]
            found["teacher"] = {"labels": scores["teachers"][0]["accuracy"]}
    print(json.dumps({"data": name, "seed": seed, **found}), flush=True)
    return found


def trained(model: Model, examples: Examples, seed: int) -> Model:
    """The teacher: cross entropy with the labels of all training examples outside the proxy set."""
    data = Labelled(model.inputs(examples.x), torch.from_numpy(examples.y))
    order = torch.Generator().manual_seed(seed)

    def loss(network: nn.Module) -> Tensor:
        some = torch.randint(len(data.y), (BATCH,), generator=order)
        return cross_entropy(network(data.x[some]), data.y[some]).mean()

    fit(model.network, loss, steps=TEACHER_STEPS, learning_rate=0.005, weight_decay=0.01, seed=seed)
    return model


def _table(name: str, found: list[dict[str, dict[str, float]]]) -> str:
    students = [kind for kind in found[0] if kind != "teacher"]
    teacher = statistics.mean(one["teacher"]["labels"] for one in found)
    head = [f"{name} (teacher {teacher:.1%})", *students]
    alone = ["labels alone", *(f"{statistics.mean(one[kind]['labels'] for one in found):.1%}" for kind in students)]
    rows = [[f"`{term}`", *(_gain([one[kind] for one in found], term) for kind in students)] for term in TERMS]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), alone, *rows))


def _gain(found: list[dict[str, float]], term: str) -> str:
    """Points over the labels alone: mean, smallest and largest of the seeds."""
    if any(term not in one for one in found):
        return "–"
    gains = [100 * (one[term] - one["labels"]) for one in found]
    return f"{statistics.mean(gains):+.1f} ({min(gains):+.1f} to {max(gains):+.1f})"


if __name__ == "__main__":
    main()
