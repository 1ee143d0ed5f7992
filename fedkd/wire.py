"""The messages: everything that may cross between a server and a client, and nothing else.

A message is one blob: a JSON header and named arrays, in safetensors' layout. Decoding is strict: a message has
exactly the fields of its class, of exactly their types, within limits; anything else is a WireError. An answer has no
room for weights, losses, example counts, label lists or texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints, overload

import numpy as np
from numpy.typing import NDArray

from fedkd.codecs import FLOATS as DTYPES
from fedkd.config import AUGMENT, CODEC, Rule
from fedkd.errors import DataError, WireError
from fedkd.tensors import canonical, digest, pack, unpack

SCHEMA = 3
MAX_BYTES = 256 * 2**20
MAX_ROWS = 10_000_000
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
HASH = re.compile(r"[0-9a-f]{64}")
HEAD = re.compile(r"([1-9][0-9]{0,11})\.([0-9]{1,12})\.([0-9a-f]{64})\.([0-9a-f]{128})")
ROW_SUM_TOLERANCE = 0.02  # float16 rounds each of at most a few hundred probabilities by 2^-11, relatively
COUNTS = ("uint8", "int32")  # votes; probabilities on a grid, with noise
VECTORS = {"ids": np.uint32, "asked": np.uint32, "variances": np.uint64}
AGGREGATES = (*get_args(Rule), "confident_votes")
MAX_NOISED = 2**24  # of a noised probability on its grid, either way

Rows = NDArray[Any]


class Code(StrEnum):
    """Why a client refuses: functions of the message, the policy and the ledger alone; FAILED is one for all else."""

    MALFORMED = "malformed"
    PROXY = "proxy_not_allowed"
    NOT_HELD = "proxy_not_held"
    LABELS = "label_list_differs"
    ROUNDS = "too_many_rounds"
    ANSWERS = "too_many_answers"
    MECHANISM = "mechanism_not_allowed"
    CLIENTS = "too_few_clients"
    EXHAUSTED = "budget_exhausted"
    NO_CONTRACT = "no_contract"
    CONTRACT = "contract_differs"
    PLAN = "plan_differs"
    ORDER = "round_out_of_order"
    STALE = "stale_soft_labels"
    ROLLED_BACK = "rolled_back"
    LATE = "late"
    FAILED = "failed"


@dataclass(frozen=True)
class Released:
    """Rows that have been charged and may leave. Built by a mechanism's ``release``; the only rows a reply takes."""

    rows: Rows
    event: str


@dataclass(frozen=True)
class Hello:
    """Client -> server: who is there."""

    kind: ClassVar[str] = "hello"
    client: str


@dataclass(frozen=True)
class Offer:
    """Server -> client: the whole run, before its first round. There is no privacy setting in it.

    ``queries`` examples are asked each round, of the proxy set's own and those that ``augment`` makes of them;
    ``aggregate`` is what answers are for, hence their form; ``clients`` are expected. ``seen`` is the newest head of
    its branch of the client's ledger that the server has seen.
    """

    kind: ClassVar[str] = "offer"
    run: str
    server: str
    proxy: str
    examples: int
    classes: int
    queries: int
    rounds: int
    codec: str
    aggregate: str
    clients: int
    seen: str
    augment: str = "none"


@dataclass(frozen=True)
class Agreement:
    """Client -> server: the contract is in the client's ledger, under this hash.

    ``variances`` are those of the noise that the contract wants on sums or votes, which the server adds; ``shards`` how
    many votes the client has; ``noise`` how the policy wants it drawn. All are functions of policy and ledger.
    """

    kind: ClassVar[str] = "agreement"
    run: str
    client: str
    contract: str
    variances: NDArray[np.uint64]
    shards: int
    noise: str
    head: str


@dataclass(frozen=True)
class Plan:
    """Server -> client: one round. ``ids`` and ``rows`` are the soft labels that changed; ``labels`` is the digest of
    the whole matrix after the change ("" while there is no teacher). ``asked`` are the proxy examples to answer, none
    for all. ``answer`` false asks only to learn."""

    kind: ClassVar[str] = "plan"
    run: str
    proxy: str
    round: int
    answer: bool
    temperature: float
    labels: str
    ids: NDArray[np.uint32]
    rows: Rows
    asked: NDArray[np.uint32]
    seen: str

    @property
    def identity(self) -> str:
        """What the plan asks, whichever rows were sent to say it: the ledger binds a charge to this."""
        asked = [self.run, self.proxy, self.round, self.answer, self.temperature, self.labels, self.asked.tolist()]
        return digest(canonical(asked))


@dataclass(frozen=True)
class Answers:
    """Client -> server: released predictions on the proxy examples that were asked, a matrix or as bytes of the codec
    (see ``fedkd.codecs``), and the ledger's head for this server."""

    kind: ClassVar[str] = "answers"
    run: str
    client: str
    round: int
    plan: str
    rows: Released
    head: str


@dataclass(frozen=True)
class Learned:
    """Client -> server: a plan that asked for no answer has arrived."""

    kind: ClassVar[str] = "learned"
    run: str
    client: str
    round: int


@dataclass(frozen=True)
class Refusal:
    """Client -> server: no, and one of the fixed codes."""

    kind: ClassVar[str] = "refusal"
    client: str
    code: Code


Message = Hello | Offer | Agreement | Plan | Answers | Learned | Refusal
_HINTS = {kind: get_type_hints(kind) for kind in get_args(Message)}
T = TypeVar("T", bound=Message)
U = TypeVar("U", bound=Message)
V = TypeVar("V", bound=Message)


def encode(message: Message) -> bytes:
    """The one byte string of a message. Answers are taken only as Released."""
    header: dict[str, Any] = {"schema": SCHEMA, "kind": message.kind}
    arrays: dict[str, NDArray[Any]] = {}
    for field in fields(message):
        value = getattr(message, field.name)
        if isinstance(message, Answers) and field.name == "rows":
            if not isinstance(value, Released):
                raise WireError("only a release may leave a client", fix="pass the rows through a mechanism")
            value = value.rows
        if isinstance(value, np.ndarray):
            arrays[field.name] = value
        else:
            header[field.name] = value
    return pack(arrays, header)


@overload
def decode(data: bytes, a: type[T], /) -> T: ...
@overload
def decode(data: bytes, a: type[T], b: type[U], /) -> T | U: ...
@overload
def decode(data: bytes, a: type[T], b: type[U], c: type[V], /) -> T | U | V: ...
def decode(data: bytes, *expected: type[Any]) -> Any:
    """The message in ``data``, which must be of an expected class. Raises WireError."""
    if len(data) > MAX_BYTES:
        raise WireError(f"a message of {len(data)} bytes is over the limit of {MAX_BYTES}")
    try:
        arrays, header = unpack(data)
    except DataError as error:
        raise WireError(f"not a message: {error.what}") from None
    if header.pop("schema", None) != SCHEMA:
        raise WireError(f"another schema version than {SCHEMA}", fix="run the same fedkd version on both sides")
    name = header.pop("kind", None)
    kind = next((kind for kind in expected if kind.kind == name), None)
    if kind is None:
        raise WireError("a message of another kind was expected")
    return _build(kind, header, arrays)


def _build(kind: type[Any], header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Any:
    hints = _HINTS[kind]
    names = [field.name for field in fields(kind)]
    if {*header, *arrays} != set(names) or len(header) + len(arrays) != len(names):
        raise WireError(f"{kind.kind}: the fields are not those of the schema")
    return kind(**{name: _field(kind, name, hints[name], header, arrays) for name in names})


def _field(kind: type, name: str, hint: Any, header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Any:
    value: Any = header[name] if name in header else arrays[name]
    if hint is Released and isinstance(value, np.ndarray):
        packed = value.ndim == 1 and value.dtype == np.uint8
        return Released(value if packed else _matrix(value, (*DTYPES, *COUNTS)), "")
    if hint is Code and isinstance(value, str) and value in set(Code):
        return Code(value)
    if name in VECTORS and isinstance(value, np.ndarray) and value.dtype == VECTORS[name] and value.ndim == 1:
        return value
    if name == "rows" and isinstance(value, np.ndarray):
        return _matrix(value, tuple(DTYPES))
    if hint in (str, int, bool, float) and type(value) is hint and _within(name, value):
        return value
    raise WireError(f"{kind.__name__.lower()}: the field {name!r} is not as the schema says")


def _within(name: str, value: str | int | bool | float) -> bool:
    if isinstance(value, bool):
        return True
    if isinstance(value, str):
        if name in _CHOICES:
            return value in _CHOICES[name]
        if name in ("labels", "seen", "head") and not value:
            return True
        return bool(_PATTERNS.get(name, HASH).fullmatch(value))
    if isinstance(value, float):
        return 1e-3 <= value <= 1e3
    return 0 <= value <= MAX_ROWS


_CHOICES = {"aggregate": AGGREGATES, "noise": ("os", "simulation")}
_PATTERNS = {
    "run": NAME,
    "client": NAME,
    "server": NAME,
    "seen": HEAD,
    "head": HEAD,
    "codec": re.compile(CODEC),
    "augment": re.compile(AUGMENT),
}


def _matrix(value: NDArray[Any], types: tuple[str, ...]) -> Rows:
    if value.ndim != 2 or str(value.dtype) not in types or not np.isfinite(value).all():
        raise WireError(f"rows must be a finite matrix of {' or '.join(types)}")
    return value


def pool(examples: int, augment: str) -> int:
    """How many examples may be asked: those of a proxy set, and as many for each copy that ``augment`` makes."""
    return examples * (1 if augment == "none" else 1 + int(augment.partition(":")[2]))


def check_rows(rows: Rows, examples: int, classes: int) -> None:
    """Rows must be [examples, classes] probabilities. Raises WireError."""
    _check_shape(rows, examples, classes)
    wide = rows.astype(np.float64)
    if str(rows.dtype) not in DTYPES or not np.isfinite(wide).all() or (wide < 0).any() or (wide > 1).any():
        raise WireError("rows are not probabilities")
    if np.abs(wide.sum(axis=1) - 1).max(initial=0.0) > ROW_SUM_TOLERANCE:
        raise WireError("rows do not sum to one")


def check_noised(rows: Rows, examples: int, classes: int) -> None:
    """Rows must be [examples, classes] integers of a bounded size. Raises WireError."""
    _check_shape(rows, examples, classes)
    if rows.dtype != np.int32 or (np.abs(rows.astype(np.int64)) > MAX_NOISED).any():
        raise WireError("rows are not noised probabilities on their grid")


def check_votes(rows: Rows, examples: int, classes: int, voters: int) -> None:
    """Rows must be [examples, classes] counts of ``voters`` votes each. Raises WireError."""
    _check_shape(rows, examples, classes)
    if rows.dtype != np.uint8 or (rows.sum(axis=1, dtype=np.int64) != voters).any():
        raise WireError(f"rows are not {voters} votes each")


def _check_shape(rows: Rows, examples: int, classes: int) -> None:
    if rows.shape != (examples, classes):
        raise WireError(f"rows have shape {rows.shape}, not {(examples, classes)}")


def quantise(rows: NDArray[np.floating[Any]], codec: str) -> Rows:
    """Rows as floats of this kind."""
    return np.ascontiguousarray(rows, dtype=DTYPES[codec])


def labels_digest(rows: Rows) -> str:
    """Digest of a whole matrix of soft labels, as carried."""
    return digest(pack({"rows": rows}, {}))


def changed(old: Rows | None, new: Rows) -> NDArray[np.uint32]:
    """Indices of the rows of ``new`` that a holder of ``old`` lacks."""
    if old is None or old.shape != new.shape or old.dtype != new.dtype:
        return np.arange(len(new), dtype=np.uint32)
    return np.flatnonzero((old != new).any(axis=1)).astype(np.uint32)


def merge(old: Rows | None, plan: Plan, examples: int, classes: int) -> Rows:
    """The whole matrix after the plan's changes. Raises WireError if it is not the one that the plan means."""
    if len(plan.ids) != len(plan.rows) or (len(plan.ids) and int(plan.ids.max()) >= examples):
        raise WireError("soft labels: ids and rows do not match")
    if plan.rows.shape[1:] != (classes,):
        raise WireError("soft labels: another number of classes")
    # what is held may be another run's, in another codec
    kept = old is not None and old.shape == (examples, classes) and old.dtype == plan.rows.dtype
    whole = old.copy() if old is not None and kept else np.zeros((examples, classes), plan.rows.dtype)
    whole[plan.ids] = plan.rows
    if labels_digest(whole) != plan.labels:
        raise WireError("soft labels: these changes belong to another matrix")
    return whole
