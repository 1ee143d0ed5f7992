"""Flower's real processes on the loopback interface: a run from end to end, deaths on the way, and nothing left."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

import client.channel
from client.channel import MAX_MESSAGE_BYTES, METHODS, channel_for
from client.service import is_healthy, serve
from client.supervise import RelayProcess, start_relay
from fedkd.errors import ConfigError
from fedkd.processes import Service
from server import bundle, supervise

# The loop that is put in the place of the real one: it asks, waits for the test, and asks again.
LOOP = """
import time
from pathlib import Path

from fedkd.flower import exchange, node_ids


def serve(grid, config):
    folder = Path(config).parent
    nodes = node_ids(grid, minimum=2, timeout=60)
    print("nodes", len(nodes), flush=True)
    for timeout in (60, 15):
        outcomes = exchange(grid, "answer", {node: b"ask" for node in nodes}, timeout)
        print("outcomes", *sorted(type(outcome).__name__ for outcome in outcomes.values()), flush=True)
        while not (folder / "next").exists():
            time.sleep(0.1)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="fedkd-") as name:
        yield Path(name)


@pytest.fixture
def agents() -> Iterator[Callable[[str, Callable[[str, bytes], bytes]], grpc.Server]]:
    servers: list[grpc.Server] = []

    def start(address: str, handler: Callable[[str, bytes], bytes]) -> grpc.Server:
        servers.append(serve(handler, address))
        return servers[-1]

    yield start
    for server in servers:
        server.stop(grace=0).wait()


def echo(method: str, payload: bytes) -> bytes:
    return method.encode() + b" " + payload


def eventually(what: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.1)
    return what()


def is_alive(process_id: str) -> bool:
    try:
        return Path("/proc", process_id, "cmdline").read_bytes() != b""  # a zombie's is empty
    except OSError:
        return False


def processes_of(folder: Path) -> list[str]:
    """Command lines of the living processes that were started for a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
        except OSError:
            continue
        if f"FLWR_HOME={folder}".encode() in environment:
            found.append(command.replace(b"\0", b" ").decode())
    return found


# -- The agent's door --------------------------------------------------------------------------------------------------


def test_an_agent_answers_over_its_socket_and_leaves_no_socket_behind(folder: Path) -> None:
    address = f"unix:{folder}/agent.sock"
    server = serve(echo, address)
    channel = channel_for(address, timeout=30)
    assert [channel.call(method, b"x") for method in ("describe", "agree", "answer")] == [
        b"describe x",
        b"agree x",
        b"answer x",
    ]
    server.stop(grace=0).wait()
    assert not (folder / "agent.sock").exists()


def test_only_the_agents_user_and_group_may_connect(folder: Path, agents: Callable[..., grpc.Server]) -> None:
    agents(f"unix:{folder}/agent.sock", echo)
    assert stat.S_IMODE((folder / "agent.sock").stat().st_mode) == 0o660


def test_what_the_agent_raises_stays_with_the_agent(folder: Path, agents: Callable[..., grpc.Server]) -> None:
    def fail(_method: str, _payload: bytes) -> bytes:
        raise RuntimeError("secret")

    agents(f"unix:{folder}/agent.sock", fail)
    with pytest.raises(grpc.RpcError) as caught:
        channel_for(f"unix:{folder}/agent.sock", timeout=30).call("answer", b"")
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert caught.value.details() == "the agent failed"


def test_the_agent_serves_one_call_at_a_time(folder: Path, agents: Callable[..., grpc.Server]) -> None:
    busy, overlaps = threading.Semaphore(1), []

    def slow(_method: str, _payload: bytes) -> bytes:
        overlaps.append(not busy.acquire(blocking=False))
        time.sleep(0.02)
        busy.release()
        return b""

    agents(f"unix:{folder}/agent.sock", slow)
    channel = channel_for(f"unix:{folder}/agent.sock", timeout=30)
    callers = [threading.Thread(target=channel.call, args=("answer", b"")) for _ in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert overlaps == [False] * 5


def test_health_is_answered_while_the_agent_is_busy(folder: Path, agents: Callable[..., grpc.Server]) -> None:
    address, begun, over = f"unix:{folder}/agent.sock", threading.Event(), threading.Event()

    def train(_method: str, _payload: bytes) -> bytes:
        begun.set()
        over.wait(60)
        return b"done"

    agents(address, train)
    call = threading.Thread(target=channel_for(address, timeout=60).call, args=("answer", b""))
    call.start()
    assert begun.wait(30) and is_healthy(address)
    over.set()
    call.join()
    assert not is_healthy(f"unix:{folder}/nobody.sock", timeout=0.5)


def test_a_flood_of_calls_is_turned_away_and_what_nobody_waits_for_is_not_computed(
    folder: Path, agents: Callable[..., grpc.Server]
) -> None:
    address, begun, over, handled = f"unix:{folder}/agent.sock", threading.Event(), threading.Event(), []

    def train(_method: str, payload: bytes) -> bytes:
        handled.append(payload)
        begun.set()
        over.wait(60)
        return b""

    agents(address, train)
    refused: list[grpc.StatusCode] = []

    def ask(payload: bytes, timeout: float) -> None:
        try:
            channel_for(address, timeout).call("answer", payload)
        except grpc.RpcError as error:
            refused.append(error.code())

    first = threading.Thread(target=ask, args=(b"first", 60))
    first.start()
    assert begun.wait(30)
    flood = [threading.Thread(target=ask, args=(b"flood", 2)) for _ in range(20)]
    for caller in flood:
        caller.start()
    for caller in flood:
        caller.join()
    over.set()
    first.join()
    assert channel_for(address, timeout=30).call("answer", b"last") == b""
    assert handled == [b"first", b"last"]
    assert {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED} == set(refused)


def test_a_client_generated_from_the_schema_reaches_the_agent(folder: Path, agents: Callable[..., grpc.Server]) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    schema = Path(client.channel.__file__).parent
    well_known = Path(protoc.__file__).parent / "_proto"
    described = folder / "agent.bin"
    arguments = [f"-I{schema}", f"-I{well_known}", "--include_imports", f"--descriptor_set_out={described}"]
    assert protoc.main(["protoc", *arguments, "agent.proto"]) == 0
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(described.read_bytes()).file:
        pool.Add(file)
    service = pool.FindServiceByName("fedkd.agent.v1.Agent")
    assert {method.name for method in service.methods} == set(METHODS.values())
    agents(f"unix:{folder}/agent.sock", echo)
    with grpc.insecure_channel(f"unix:{folder}/agent.sock") as channel:
        for method in service.methods:
            request, reply = (GetMessageClass(kind) for kind in (method.input_type, method.output_type))
            call = channel.unary_unary(
                f"/{service.full_name}/{method.name}", request.SerializeToString, reply.FromString
            )
            assert call(request(value=b"x"), timeout=30).value == method.name.lower().encode() + b" x"


def test_a_call_that_takes_too_long_is_given_up(folder: Path, agents: Callable[..., grpc.Server]) -> None:
    over = threading.Event()

    def hang(_method: str, _payload: bytes) -> bytes:
        over.wait(60)
        return b""

    agents(f"unix:{folder}/agent.sock", hang)
    with pytest.raises(grpc.RpcError) as caught:
        channel_for(f"unix:{folder}/agent.sock", timeout=0.2).call("answer", b"")
    over.set()
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_message_over_the_limit_is_refused(folder: Path, agents: Callable[..., grpc.Server]) -> None:
    agents(f"unix:{folder}/agent.sock", echo)
    channel = channel_for(f"unix:{folder}/agent.sock", timeout=60)
    assert len(channel.call("answer", bytes(5_000_000))) > 5_000_000
    with pytest.raises(grpc.RpcError) as caught:
        channel.call("answer", bytes(MAX_MESSAGE_BYTES + 1))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_socket_of_a_dead_agent_is_taken_over_and_that_of_a_living_one_is_not(
    folder: Path, agents: Callable[..., grpc.Server]
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "agent.sock"))
    agents(f"unix:{folder}/agent.sock", echo)
    with pytest.raises(ConfigError, match="already listens"):
        serve(echo, f"unix:{folder}/agent.sock")
    assert channel_for(f"unix:{folder}/agent.sock", timeout=30).call("answer", b"") == b"answer "


def test_a_file_in_the_sockets_place_is_not_deleted(folder: Path) -> None:
    (folder / "agent.sock").write_text("precious")
    with pytest.raises(ConfigError):
        serve(echo, f"unix:{folder}/agent.sock")
    assert (folder / "agent.sock").read_text() == "precious"


@pytest.mark.parametrize("address", ["127.0.0.1:5000", "unix:relative", "unix:/" + "x" * 200, ""])
def test_an_agent_listens_on_unix_sockets_alone(address: str) -> None:
    with pytest.raises(ConfigError):
        serve(echo, address)


# -- What is refused before anything starts ----------------------------------------------------------------------------


@pytest.mark.parametrize("superlink", ["192.0.2.1:8000", "server.example:8000", "127.0.0.1.example:8000"])
def test_a_relay_talks_in_the_clear_to_this_machine_alone(folder: Path, superlink: str) -> None:
    with pytest.raises(ConfigError, match="encrypted"):
        start_relay(RelayProcess(superlink, f"unix:{folder}/agent.sock", folder / "relay"))


@pytest.mark.parametrize("agent", ["local:name", 'unix:/a" data="b', "unix:relative"])
def test_nothing_but_the_agents_address_reaches_the_relay(folder: Path, agent: str) -> None:
    with pytest.raises(ConfigError, match="agent"):
        start_relay(RelayProcess("127.0.0.1:8000", agent, folder / "relay"))


def test_a_server_listens_in_the_clear_on_this_machine_alone(folder: Path) -> None:
    processes = supervise.ServerProcesses(folder, folder / "server.yaml", "0.0.0.0:8000")
    with pytest.raises(ConfigError, match="in the clear"):
        supervise.run(processes)


def test_a_server_does_not_share_its_address(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match="taken"):
            supervise.run(supervise.ServerProcesses(folder, folder / "server.yaml", address))


# -- Processes ---------------------------------------------------------------------------------------------------------


def service_that(folder: Path, code: str) -> Service:
    return Service("sleeper", lambda: [sys.executable, "-c", code], dict(os.environ), folder / "log" / "sleeper.log")


@pytest.mark.process
def test_a_service_is_started_again_with_its_whole_group_gone(folder: Path) -> None:
    parent = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    service = service_that(folder, parent)
    service.start()
    assert eventually(lambda: service.log.read_text().count("\n") == 1)
    first = service.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: service.log.read_text().count("\n") == 2)
    assert service.pid not in (None, first)
    service.stop()
    assert service.pid is None
    assert eventually(lambda: not any(is_alive(child) for child in service.log.read_text().split()))


@pytest.mark.process
def test_a_service_that_ignores_the_request_to_stop_is_killed(folder: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    service = service_that(folder, deaf)
    service.start()
    assert eventually(lambda: service.log.read_text() == "up\n")
    service.stop(grace=0.2)
    assert service.pid is None


@pytest.mark.process
def test_the_bundle_holds_the_code_and_nothing_else(folder: Path) -> None:
    staged = bundle.stage(folder / "fedkd")
    fab = bundle.build(staged, folder / "out")
    code = {str(path.relative_to(staged)) for path in staged.rglob("*.py")}
    assert set(bundle.bundle_files(fab)) == code | {"LICENSE", "pyproject.toml"}
    assert {"server/app.py", "client/app.py", "fedkd/flower.py"} <= code
    assert bundle.build(bundle.stage(folder / "fedkd"), folder / "again").name == fab.name


@pytest.mark.process
def test_a_run_survives_the_death_of_a_relay(
    folder: Path, agents: Callable[..., grpc.Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_CREDENTIAL", "not for code that the server ships")
    staged = bundle.stage(folder / "fedkd")
    (staged / "server" / "serve.py").write_text(LOOP)
    processes = supervise.ServerProcesses(folder / "server", folder / "server.yaml", supervise.free_address())
    relays = []
    for name in ("a", "b"):
        agents(f"unix:{folder}/{name}.sock", echo)
        relays.append(start_relay(RelayProcess(processes.address, f"unix:{folder}/{name}.sock", folder / name)))
    victim = relays[0].pid
    assert victim is not None
    assert eventually(lambda: b"FLWR_HOME" in Path(f"/proc/{victim}/environ").read_bytes())
    assert b"A_CREDENTIAL" not in Path(f"/proc/{victim}/environ").read_bytes()
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if line.startswith("outcomes") and not (folder / "next").exists():
            os.kill(victim, signal.SIGKILL)
            (folder / "next").touch()

    try:
        status = supervise.run(processes, on_line, app=staged)
        restarted = eventually(lambda: relays[0].pid not in (None, victim))
    finally:
        for relay in relays:
            relay.stop()
    assert status == supervise.COMPLETED, lines
    assert [line for line in lines if line.startswith(("nodes", "outcomes"))] == [
        "nodes 2",
        "outcomes bytes bytes",
        "outcomes Failure bytes",
    ]
    assert restarted
    assert eventually(lambda: processes_of(folder) == []), processes_of(folder)


@pytest.mark.process
def test_a_server_that_is_told_to_stop_leaves_no_process_behind(folder: Path) -> None:
    staged = bundle.stage(folder / "fedkd")
    (staged / "server" / "serve.py").write_text(
        "import time\ndef serve(grid, config):\n    print('running', flush=True)\n    time.sleep(600)\n"
    )
    program = f"""
        from pathlib import Path
        from server import supervise
        folder = Path({str(folder)!r})
        processes = supervise.ServerProcesses(folder / "server", folder / "server.yaml", supervise.free_address())
        supervise.run(processes, on_line=lambda line: print(line, flush=True), app=Path({str(staged)!r}))
    """
    server = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with server:
        assert server.stdout is not None
        assert any(line.startswith("running") for line in server.stdout)
        server.terminate()
        _, errors = server.communicate(timeout=50)
    assert "KeyboardInterrupt" in errors
    assert eventually(lambda: processes_of(folder) == []), processes_of(folder)


@pytest.mark.process
def test_a_service_that_has_lost_its_helper_is_started_again(folder: Path) -> None:
    parent = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    command = [sys.executable, "-c", parent]
    service = Service("parent", lambda: command, dict(os.environ), folder / "parent.log", helper="sleep")
    service.start()
    assert eventually(lambda: service.log.read_text().count("\n") == 1)
    time.sleep(1)  # it is seen with its helper
    first = service.pid
    os.kill(int(service.log.read_text()), signal.SIGKILL)
    assert eventually(lambda: service.log.read_text().count("\n") == 2)
    assert service.pid not in (None, first)
    service.stop()
