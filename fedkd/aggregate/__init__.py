"""What the server makes of many clients' answers."""

from typing import Any

from fedkd.aggregate.counts import Sum, Votes
from fedkd.aggregate.mean import Mean
from fedkd.aggregate.rule import Rule

RULES: dict[str, type[Rule[Any]]] = {"mean": Mean, "sum": Sum, "votes": Votes}
