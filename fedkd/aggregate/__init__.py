"""What the server makes of many clients' answers."""

from typing import Any

from fedkd.aggregate.counts import Sum, Votes
from fedkd.aggregate.mean import Mean
from fedkd.aggregate.robust import Median, Trimmed
from fedkd.aggregate.rule import Rule
from fedkd.aggregate.weighted import Confidence, Entropy, Majority

RULES: dict[str, type[Rule[Any]]] = {
    "mean": Mean,
    "entropy": Entropy,
    "confidence": Confidence,
    "majority": Majority,
    "median": Median,
    "trimmed": Trimmed,
    "sum": Sum,
    "votes": Votes,
}
