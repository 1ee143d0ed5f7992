"""What a run is compared with, in words."""

from __future__ import annotations

LABELS = {
    "local": "local only",
    "central": "central, without privacy",
    "central_dp_sgd": "central DP-SGD",
    "fedavg": "FedAvg, without privacy",
    "fedprox": "FedProx, without privacy",
    "fedavg_dp_sgd": "FedAvg of DP-SGD silos",
}
"""By name, as ``baselines`` of a scenario has them."""

WEIGHTS = ("fedavg", "fedprox", "fedavg_dp_sgd")
"""Those in which weights leave the client."""

NOTE = "FedAvg and FedProx send weights, to compare with in a simulation: fedkd has no message for them"
