"""The clients of a run: who is there, who has agreed to its contract, and who is left out. What they send is read
here, and whatever it is, the round goes on."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.serverapp import Grid

from fedkd import wire
from fedkd.coordinator import Coordinator
from fedkd.errors import WireError
from fedkd.flower import Failure, exchange, node_ids
from fedkd.wire import Agreement, Answers, Code, Hello, Learned, Plan, Refusal
from server.setting import Setting
from server.tally import Quarantine, Tally


class Members:
    """``nodes`` says which client a node relays for, ``agreed`` whether that client will be asked to answer."""

    def __init__(self, grid: Grid, setting: Setting, coordinator: Coordinator, quarantine: Quarantine) -> None:
        self._grid, self._setting, self._coordinator = grid, setting, coordinator
        self.quarantine = quarantine
        self.nodes: dict[int, str] = {}
        self.agreed: dict[int, bool] = {}

    def join(self, tally: Tally) -> None:
        """Meet the nodes that are new, and offer them the run's contract."""
        first = not self.nodes
        patience = self._setting.join_timeout if first else 0.0
        present = node_ids(self._grid, self._setting.clients if first else 1, patience)
        self.nodes = {node: client for node, client in self.nodes.items() if node in present}
        new = [node for node in present if node not in self.nodes]
        hello = wire.encode(Hello("server"))
        for node, reply in self._exchange("describe", dict.fromkeys(new, hello), tally).items():
            self._meet(node, reply, tally)
        asked = {node: client for node, client in self.nodes.items() if not self.agreed.get(node)}
        offers = {node: wire.encode(self._coordinator.offer(client)) for node, client in asked.items()}
        for node, reply in self._exchange("agree", offers, tally).items():
            self.agreed[node] = self._agrees(asked[node], reply, tally)

    def ask(self, plans: Mapping[int, Plan], tally: Tally) -> dict[int, Answers | Learned | Refusal]:
        """What clients say to a plan, by node. Where it is no message at all, the tally has the reason."""
        clients = {node: self.nodes[node] for node in plans}
        replies = self._exchange("answer", {node: wire.encode(plan) for node, plan in plans.items()}, tally)
        read = {node: self._read(reply, clients[node], plans[node], tally) for node, reply in replies.items()}
        return {node: message for node, message in read.items() if message is not None}

    def note(self, refusal: Refusal, client: str, tally: Tally) -> None:
        """Count a refusal that is not to be asked again."""
        if refusal.code is Code.FAILED:
            tally.failed[client] = "failed (its own console says why)"
            tally.broken.add(client)
        else:
            tally.refused[client] = refusal.code.value

    def _meet(self, node: int, reply: bytes | Failure, tally: Tally) -> None:
        if isinstance(reply, Failure):
            tally.failed[f"node {node}"] = reply.reason
            return
        try:
            client = wire.decode(reply, Hello).client
        except WireError as error:
            tally.failed[f"node {node}"] = error.what
            return
        if client in self.nodes.values():
            tally.failed[f"node {node}"] = f"says it is {client}, who is already here"
            return
        owner = self._setting.registered.get(node, client)
        if client != owner:
            tally.failed[f"node {node}"] = f"says it is {client}, with the node key of {owner}"
            return
        if client in self.quarantine:
            tally.refused[client] = "left out of this run, after messages that are none"
            return
        self.nodes[node] = client

    def _agrees(self, client: str, reply: bytes | Failure, tally: Tally) -> bool:
        """A client that refuses the contract may still listen: it gets soft labels and is asked for no answer."""
        if isinstance(reply, Failure):
            tally.failed[client] = reply.reason
            return False
        try:
            message = wire.decode(reply, Agreement, Refusal)
            if isinstance(message, Agreement):
                self._coordinator.agreed(message, client)
                return True
            self.note(message, client, tally)
        except WireError as error:
            self._strike(client, error.what, tally)
        return False

    def _read(
        self, reply: bytes | Failure, client: str, plan: Plan, tally: Tally
    ) -> Answers | Learned | Refusal | None:
        if isinstance(reply, Failure):
            tally.failed[client] = reply.reason
            return None
        try:
            message = wire.decode(reply, Answers, Learned, Refusal)
            if isinstance(message, Answers):
                self._coordinator.check_answers(message, client, plan)
            return message
        except WireError as error:
            self._strike(client, f"sent something else than an answer: {error.what}", tally)
            return None

    def _strike(self, client: str, reason: str, tally: Tally) -> None:
        tally.failed[client] = reason
        tally.broken.add(client)
        if self.quarantine.strike(client):
            self._setting.tell(f"{client} is left out of this run from now on, after messages that are none: {reason}")
            self.nodes = {node: name for node, name in self.nodes.items() if name != client}

    def _exchange(self, action: str, payloads: Mapping[int, bytes], tally: Tally) -> dict[int, bytes | Failure]:
        if not payloads:
            return {}
        replies = exchange(self._grid, action, payloads, self._setting.round_timeout)
        tally.down += sum(len(payload) for payload in payloads.values())
        tally.up += sum(len(reply) for reply in replies.values() if isinstance(reply, bytes))
        return replies
