"""The agent: the one process that holds private data, student, policy and ledger. It answers plans, or refuses.

``handle`` is everything that the outside can reach. Whatever happens inside, what comes out is a message of the wire
schema; texts and tracebacks stay on the client's own console.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np

from client.console import Console, Write, stderr
from client.journal import Journal
from client.learner import Learner
from client.lineage import Lineage
from fedkd import wire
from fedkd.config import FEW_IN_A_SUM, ClientConfig, Policy, load
from fedkd.continual.live import LiveStream
from fedkd.data.augment import fits
from fedkd.data.sources import Examples
from fedkd.distill.model import ProxyView
from fedkd.distill.trainer import ALONE, Trainer
from fedkd.errors import BudgetExceeded, FedkdError, WireError
from fedkd.locks import hold
from fedkd.privacy.architecture import check_private
from fedkd.privacy.contract import Contract, Refused, allows, check_plan, draw_up
from fedkd.privacy.ledger import Ledger, Reservation
from fedkd.privacy.mechanisms import MECHANISMS
from fedkd.privacy.noise import NoiseSource, fresh_key, simulation_key
from fedkd.rng import derive_bytes
from fedkd.wire import Agreement, Answers, Code, Hello, Learned, Message, Offer, Plan, Refusal, Rows

FRESH = "new"  # a block that nothing has been charged to: those of a stream are named by their time


class Agent:
    """One client. Calls are taken one at a time: there is one writer."""

    _clock = staticmethod(time.monotonic)
    _sleep = staticmethod(time.sleep)
    _now = staticmethod(time.time)  # which block of a stream is over

    def __init__(self, config_path: Path, console: Write = stderr, trainer: Trainer = ALONE) -> None:
        """Open everything that ``client.yaml`` names. Raises FedkdError for what a user can mend."""
        self.config = load(ClientConfig, config_path)
        self._base, self._write, self._trainer = config_path.resolve().parent, console, trainer
        self.name, self._turn = self.config.name, threading.Lock()
        self._console = Console(self.name, console)
        self.state = self._base / self.config.state
        self.stream: LiveStream | None = None
        self._lock = hold(self.state, "another agent uses this state directory")
        try:
            self._open()
        except BaseException:
            self._shut()
            raise

    def _open(self) -> None:
        self.policy = load(Policy, self._base / self.config.policy)
        view = ProxyView.load(self._base / self.config.proxy, self._base / self.config.code)
        self._proxy = view.proxy
        if self._proxy.hash not in self.policy.proxies:
            raise FedkdError(
                f"the policy does not allow this proxy set (hash {self._proxy.hash})",
                where=f"{self._base / self.config.policy}, key 'proxies'",
                fix="check the proxy file, or add its hash to the policy",
            )
        self.learner = Learner(self.config, view, self._base, self._write, self.policy.shards, self._trainer)
        if "dp_sgd" in (self.policy.mechanism, *self.policy.also):
            check_private(self.learner.model.network)
        self.ledger = Ledger(self.state / "ledger.sqlite", self.name, self._new_identity())
        self.journal = Journal(self.state)
        self._check_block()
        self._check_features(view)
        self.lineage = Lineage(self.state, self.ledger, self.learner, self._console.say)
        if self.config.live is not None:
            if self.policy.block_epsilons:
                raise FedkdError(
                    "the blocks of a live stream share one limit: they get their names as time goes on",
                    where=f"{self._base / self.config.policy}, key 'block_epsilons'",
                    fix="leave the key out, and give the limit of each block as 'epsilon'",
                )
            self.stream = LiveStream(
                self.state / "stream.sqlite", self.config.live, self._base, self._proxy, self._write
            )

    def close(self) -> None:
        """Close the ledger and let another process have the state directory."""
        self.ledger.close()
        self._shut()

    def _shut(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self._lock.close()

    # -- a stream of records -----------------------------------------------------------------------------------------

    def look(self) -> None:
        """Take in the records that have come, and forget those whose turn is over; between rounds, and before one."""
        with self._turn:
            self._look()

    def held_out(self, after: int = 0) -> tuple[Examples, int]:
        """The records that nothing learns, of those that came after the first ``after``, and how many have come by now:
        for this device's own eyes."""
        with self._turn:
            assert self.stream is not None
            return self.stream.held_out(after), self.stream.taken()

    def _look(self) -> None:
        if self.stream is None:
            return
        try:
            self.stream.ingest()
        except FedkdError as error:  # a client whose source is away takes part with what it has
            self._console.say(str(error))
        except Exception:  # what is in a source must never choose the code of a reply
            self._console.failure()
        block = self.stream.current(self._now())
        if self.stream.behind(block):
            self._console.say(f"the clock was ahead before: {block} and what is older is closed, and never learned")
        self.stream.forget(block)

    def _enter(self, plan: Plan) -> str:
        """The data block of a round, closed and in the learner's hands. Which one it is, the clock says, never what is
        in it: an empty block is learned like any other."""
        if self.stream is None:
            return self.config.block
        self._look()
        again = self.ledger.charged(plan.run, plan.round)
        block = self.stream.enter(plan.run, plan.round, self.stream.current(self._now()), again=again)
        self.stream.forget(block, entered=True)
        self.learner.hold(self.stream.examples(block))
        return block

    # -- what the outside can reach ----------------------------------------------------------------------------------

    def handle(self, method: str, payload: bytes) -> bytes:
        """Describe, Agree or Answer: one message in, one message out, never an exception."""
        began = self._clock()
        with self._turn:
            reply, message, due = self._reply(method, payload)
            if due is not None and self._clock() > began + due:
                # it would tell how long the training took; the stored answer leaves at the offset of the next request
                message = Refusal(self.name, Code.LATE)
                reply = wire.encode(message)
            reply = self._noted(method, message, reply)
        if due is not None:
            self._sleep(max(0.0, began + due - self._clock()))
        return reply

    def _noted(self, method: str, message: Message, reply: bytes) -> bytes:
        """The reply, once it is in the journal: what cannot be written down does not leave."""
        try:
            self.journal.note(method, message, reply)
            return reply
        except OSError:
            self._console.failure()
            return wire.encode(Refusal(self.name, Code.FAILED))

    def _reply(self, method: str, payload: bytes) -> tuple[bytes, Message, float | None]:
        """Reply, and the offset after the request at which the policy lets it go."""
        due: float | None = None
        try:
            if method == "describe":
                message: Message = Hello(self.name)
            elif method == "agree":
                message = self._agree(wire.decode(payload, Offer))
            else:
                plan = wire.decode(payload, Plan)
                due = self.policy.release_offset if plan.answer else None
                reply = self._answer(plan)
                return reply, wire.decode(reply, Answers, Learned), due
            return wire.encode(message), message, due
        except Refused as refused:
            message = Refusal(self.name, refused.code)
        except WireError as error:
            self._console.malformed(error.what)
            message = Refusal(self.name, Code.MALFORMED)
        except (Exception, SystemExit):  # user code may do anything; Ctrl-C alone is for the process
            self._console.failure()
            message = Refusal(self.name, Code.FAILED)
        return wire.encode(message), message, due

    def _check_held(self, proxy: str) -> None:
        """A policy may allow several versions of a proxy set; ids and soft labels are of one, and it must be here."""
        if proxy in self.policy.proxies and proxy != self._proxy.hash:
            raise Refused(Code.NOT_HELD)

    def _agree(self, offer: Offer) -> Agreement:
        self._check_held(offer.proxy)
        if (offer.examples, offer.classes) != (len(self._proxy), self._proxy.classes):
            raise Refused(Code.LABELS)
        if not fits(self._proxy, offer.augment):
            raise Refused(Code.ANSWERS)
        self._check_seen(offer.server, offer.seen)
        contract = self.ledger.contract(offer.run)
        if contract is None:  # or closed: then the ledger refuses
            block = self.config.block if self.stream is None else FRESH
            contract = draw_up(self.policy, offer, self.ledger.past(), block)
            self.ledger.register(contract)
        elif not contract.answers(offer) or not allows(self.policy, contract, self.config.block):
            raise Refused(Code.CONTRACT)
        if contract.mechanism == "sum" and offer.clients < FEW_IN_A_SUM:
            self._console.say(f"fewer than {FEW_IN_A_SUM} clients: their sum is mostly noise")
        return Agreement(
            run=offer.run,
            client=self.name,
            contract=contract.hash,
            variances=np.array(contract.variances, np.uint64),
            shards=contract.shards,
            noise=contract.noise,
            head=self.ledger.head(offer.server),
        )

    def _check_seen(self, server: str, seen: str) -> None:
        try:
            self.ledger.check_seen(server, seen)
        except Refused as refused:
            if refused.code is Code.MALFORMED:
                self._console.say(
                    f"server {server} knows a client of this name with another identity key; if "
                    f"the state in {self.state} is a new one, it needs a client name of its own"
                )
            if refused.code is Code.ROLLED_BACK:
                self._console.say(
                    f"server {server} has seen a newer ledger of this client than the one in "
                    f"{self.state}: it was rolled back or copied. Nothing is answered; see 'fedkd ledger recover'"
                )
            raise

    def _answer(self, plan: Plan) -> bytes:
        contract = self.ledger.contract(plan.run)
        self._check_held(plan.proxy)
        check_plan(self.policy, contract, plan, self.config.block)
        if plan.answer and contract is not None:
            self._check_seen(contract.server, plan.seen)
            before = self.ledger.released(plan.run, plan.round, plan.identity)
            if before is not None:
                return before
        elif self.ledger.state("plan") == plan.identity:
            return wire.encode(Learned(plan.run, self.name, plan.round))
        labels = self._merge(plan)
        if not plan.answer or contract is None:
            return self._learn_only(plan, labels)
        return self._release(plan, labels, contract)

    # -- one round ---------------------------------------------------------------------------------------------------

    def _merge(self, plan: Plan) -> Rows | None:
        if not plan.labels:
            return None
        size = len(self._proxy), self._proxy.classes
        try:
            labels = wire.merge(self.learner.labels, plan, *size)
        except WireError:
            raise Refused(Code.STALE) from None
        wire.check_rows(labels, *size)  # huge "probabilities" would drive the student to wherever the server likes
        return labels

    def _release(self, plan: Plan, labels: Rows | None, contract: Contract) -> bytes:
        """reserve -> compute -> store -> commit; the caller sends."""
        block = self._enter(plan)
        self._settle(block, contract)
        try:
            reservation = self.ledger.reserve(
                plan.run,
                plan.round,
                plan.identity,
                self.learner.snapshot,
                lambda: self._new_key(plan),
                block,
            )
        except BudgetExceeded:
            if self.ledger.state("plan") != plan.identity:  # else it has learned from these labels
                self._learn_only(plan, labels)
            raise Refused(Code.EXHAUSTED) from None
        try:
            with self.lineage.entered(contract):
                payload = self._compute(plan, labels, contract, reservation)
                self.ledger.commit(reservation, payload, self.lineage.save(plan, contract))
        except (Exception, SystemExit):
            # whatever it was, Refused and WireError too: after reserve there is one code
            self._console.failure()
            raise Refused(Code.FAILED) from None
        self.lineage.tidy()
        return payload

    def _settle(self, block: str, contract: Contract) -> None:
        """Note that this data is of this block, before it is charged there: as another block it would be charged as if
        nobody had seen it. A stream does so itself, record by record."""
        key = _block_key(self.learner.snapshot)
        charged = self.stream is None and contract.mechanism == "dp_sgd" and self.learner.records
        if charged and self.ledger.state(key) is None:
            self.ledger.put_state({key: block})

    def _check_block(self) -> None:
        known = self.ledger.state(_block_key(self.learner.snapshot))
        if known not in (None, self.config.block):
            raise FedkdError(
                f"this data has been charged as block {known!r}, and is {self.config.block!r} now",
                where=f"client {self.name}, key 'block'",
                fix="give the block its name back; a new block is for records that were in none before",
            )

    def _check_features(self, view: ProxyView) -> None:
        """A student goes on from one version of the proxy set to the next, but on the features that it has learned."""
        if self.learner.model.network.takes != "features":
            return
        known = self.ledger.state("features")
        if known not in (None, view.features_hash) and self.ledger.state("student") is not None:
            raise FedkdError(
                "this proxy set has other public features than those that the student was trained on",
                where=f"{self._base / self.config.proxy}",
                fix="build a new version with 'fedkd proxy build --features' and the file of the old one",
            )
        if known != view.features_hash:
            self.ledger.put_state({"features": view.features_hash})

    def _compute(self, plan: Plan, labels: Rows | None, contract: Contract, reservation: Reservation) -> bytes:
        noise = NoiseSource(reservation.key)
        self.learner.learn(contract, plan.round, labels, plan.temperature, noise)
        mechanism = MECHANISMS[contract.mechanism](contract)
        released = mechanism.release(mechanism.bound(self.learner.answer(plan.asked, contract.augment)), noise)
        head = self.ledger.head(contract.server)  # of the charge: that of the commit would be a hash of itself
        return wire.encode(Answers(plan.run, self.name, plan.round, plan.identity, released, head))

    def _learn_only(self, plan: Plan, labels: Rows | None) -> bytes:
        with self.lineage.entered(None):
            self.learner.learn_public(labels, plan.temperature, f"{plan.run} {plan.round} public")
            self.ledger.put_state(self.lineage.save(plan, None))
        self.lineage.tidy()
        return wire.encode(Learned(plan.run, self.name, plan.round))

    def _new_key(self, plan: Plan) -> bytes:
        if self.policy.noise == "simulation":
            return simulation_key(self.policy.seed or 0, self.name, plan.run, plan.round)
        return fresh_key()

    def _new_identity(self) -> bytes | None:
        if self.policy.noise == "simulation":
            return derive_bytes(self.policy.seed or 0, "identity", self.name)
        return None


def _block_key(snapshot: str) -> str:
    return f"block of {snapshot}"
