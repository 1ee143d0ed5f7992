"""What a client reads: its own configuration, that of its relay, and of what its device records and serves."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedkd.config.base import NAME, Model, NonNegative, Positive, Share
from fedkd.config.data import Data
from fedkd.config.learning import Student, Training


class RelayTls(Model):
    """Whom a relay trusts."""

    ca: str = Field(description="PEM file of the authority that signed the server's certificate")


class Live(Model):
    """Records that a device goes on writing. Paths are relative to the file."""

    source: str = Field(description="folder of .npz files (x [n, ...], y [n], time [n]), or an SQLite file")
    table: str = Field(
        "records", pattern=r"^[A-Za-z_]\w*$", description="SQLite: table with the columns id, time, x (.npy bytes), y"
    )
    by: Literal["time", "hash"] = Field("time", description="what puts a record into its block")
    period: int = Field(86_400, ge=1, description="time: seconds of a block")
    delay: NonNegative = Field(0.0, description="seconds that a client waits for records after a block is over")
    every: Positive = Field(60.0, description="seconds between a client's looks at the source")
    held_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="share of records, by a hash of each, that nothing learns: the gate of served versions"
    )
    delete: bool = Field(False, description="folder: remove a file once its records have been taken")
    blocks: int = Field(10, ge=1, description="hash: how many blocks there are")


class Gate(Model):
    """What a new version must satisfy before a device serves it, on the device's own held-out examples."""

    max_accuracy_drop: Share = Field(0.01, description="of the accuracy of the version that is served now")
    max_class_forgetting: Share = Field(
        0.1, description="of one class, from the best accuracy of the versions that were served"
    )
    min_class_examples: int = Field(20, ge=1, description="a class with fewer examples is not judged on its own")
    max_int8_drop: Share = Field(0.01, description="from the student in float32 to the file that is served")
    max_bytes: int | None = Field(None, ge=1, description="size of that file")
    max_p95_us: Positive | None = Field(None, description="95th percentile of its latency, in microseconds")


class Device(Model):
    """What a device serves. None of it touches the student that trains and answers."""

    format: Literal["safetensors", "onnx", "executorch"] = Field("safetensors", description="of the served file")
    int8: bool = Field(False, description="onnx, executorch: eight-bit student, calibrated on the proxy set")
    keep: int = Field(5, ge=2, description="versions that are kept, and served versions to go back to")
    gate: Gate = Gate()
    drift: Literal["none", "adwin", "page_hinkley"] = Field(
        "none", description="client: what tells from a served version's errors that records have changed"
    )

    @model_validator(mode="after")
    def _exported(self) -> Self:
        if self.int8 and self.format == "safetensors":
            raise ValueError("int8 needs an exported file: format: onnx or executorch")
        return self


class ClientConfig(Model):
    """A deployed client. Paths are relative to the file."""

    name: str = Field(pattern=NAME, description="by which the server and the ledger know this client")
    data: Data | None = Field(None, description="the private examples")
    live: Live | None = Field(None, description="instead of data: records that the device goes on writing")
    serve: Device | None = Field(None, description="live: which of its students the device serves; default none")
    proxy: str = Field(description="the proxy set's file, the same for all parties")
    policy: str = Field("policy.yaml", description="the client's privacy policy")
    state: str = Field("state", description="folder of ledger, outbox and student")
    block: str = Field(
        "all",
        pattern=NAME,
        description="which disjoint part of the client's data this is, by its time, not by a count",
    )
    student: Student = Student()
    code: str = Field(".", description="folder of what is of your own: module:Class, the weights of init, a backbone")
    training: Training = Training()
    seed: int = Field(0, ge=0, lt=2**63, description="initial weights and batch order; never the noise")
    address: str = Field("127.0.0.1:8000", description="host:port of the server")
    tls: RelayTls | None = Field(None, description="needed unless address is on the loopback interface")
    node_key: str | None = Field(None, description="private key by which the server knows this client's relay")
    socket: str | None = Field(None, description="where the agent answers; default agent.sock in the state folder")
    socket_group: str | None = Field(None, description="group whose members may connect: the relay's user")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.data is None) == (self.live is None):
            raise ValueError("a client has either 'data', or 'live'")
        if self.live is None:
            if self.serve is not None:
                raise ValueError("'serve' needs 'live', whose held-out records the gate looks at")
            return self
        if self.live.by != "time":
            raise ValueError("a client learns blocks by time: one that is closed when it is learned would lose records")
        if self.block != "all":
            raise ValueError("'live' names the blocks itself: remove 'block'")
        if self.serve is not None and not self.live.held_out:
            raise ValueError("'serve' needs live.held_out above 0: its gate looks at those records")
        return self


class RelayConfig(Model):
    """A relay that runs apart from its agent: all that it may know. Paths are relative to the file."""

    address: str = Field("127.0.0.1:8000", description="host:port of the server")
    socket: str = Field(description="where the agent answers")
    home: str = Field("relay", description="folder of logs and of the app that the server ships")
    tls: RelayTls | None = Field(None, description="needed unless address is on the loopback interface")
    node_key: str | None = Field(None, description="private key by which the server knows this client's relay")
