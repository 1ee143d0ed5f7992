"""The student on disk: from which weights a round starts, and which ones are current after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from client.learner import Learner
from fedkd.privacy.contract import Contract
from fedkd.privacy.ledger import Ledger
from fedkd.state import write_atomic
from fedkd.tensors import digest
from fedkd.wire import Plan

BARE = "bare"  # a student whose weights have seen private data without noise: it must never be a start for DP-SGD


class Lineage:
    """The ledger names the current student. Its file is written before that, and what it replaces is removed after."""

    def __init__(self, state: Path, ledger: Ledger, learner: Learner, say: Callable[[str], None]) -> None:
        self._state, self._ledger, self._learner, self._say = state, ledger, learner, say
        self.fresh = learner.save()
        self.restore()

    def save(self, plan: Plan, contract: Contract | None) -> dict[str, str]:
        """Write the student under a name of its own. What is returned goes into the ledger's transaction, which makes
        it the current one. ``contract`` is that under which it has seen private data in this round, if it has."""
        content = self._learner.save()
        name = f"student-{digest(content)[:16]}.safetensors"
        write_atomic(self._state / name, content)
        return {"student": name, "plan": plan.identity, **({} if contract is None else {"lineage": _kind(contract)})}

    @contextmanager
    def entered(self, contract: Contract | None) -> Iterator[None]:
        """Start from the student that the ledger names, whatever an earlier attempt has left in memory: a key that is
        entered again must meet the weights it met before. What fails leaves no half-trained student behind."""
        self.restore()
        if contract is not None and contract.mechanism == "dp_sgd" and self._ledger.state("lineage") == BARE:
            # its weights have seen private data without noise; DP-SGD starts from nothing that private data shaped
            self._say("a new student, since the old one was trained without DP-SGD")
            self._learner.reset(self.fresh)
        try:
            yield
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """The student that the ledger names; a fresh one where there is none."""
        name = self._ledger.state("student")
        if name is None or not self._learner.restore(self._state / name):
            self._learner.reset(self.fresh)

    def tidy(self) -> None:
        """Remove the students that are not current."""
        current = self._ledger.state("student")
        for path in self._state.glob("student-*"):  # also what a kill has left half written
            if path.name != current:
                path.unlink()


def _kind(contract: Contract) -> str:
    return "private" if contract.mechanism == "dp_sgd" else BARE
