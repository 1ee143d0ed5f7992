"""The relay: a ClientApp that carries opaque bytes between the server and the client's agent, and holds nothing.

Flower runs the code that the server ships, so this process is never given a path to data; all it knows is the
agent's address. It answers with the agent's bytes or with one constant failure: no exception text leaves the device.
"""

from __future__ import annotations

import logging

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.channel import Channel, channel_for
from fedkd.flower import FailureCode, failure_reply, lifetime_of, payload_of, reply_with

_log = logging.getLogger(__name__)

app = ClientApp()


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Ask the agent who it is and what its policy allows the server to know."""
    return _relay("describe", message, context)


@app.query("agree")
def agree(message: Message, context: Context) -> Message:
    """Show the agent the contract of the run."""
    return _relay("agree", message, context)


@app.query("answer")
def answer(message: Message, context: Context) -> Message:
    """Hand the agent the round's plan and bring back its release."""
    return _relay("answer", message, context)


def _channel(context: Context, timeout: float) -> Channel:
    if "agent" in context.node_config or "partition-id" not in context.node_config:
        return channel_for(str(context.node_config["agent"]), timeout)
    from client import simulated  # brings torch, and data: only where there is no device and no agent's process

    return simulated.channel(context.node_config, str(context.run_config["config"]), context.run_id)


def _relay(method: str, message: Message, context: Context) -> Message:
    try:
        channel = _channel(context, lifetime_of(message))
        return reply_with(message, channel.call(method, payload_of(message)))
    except Exception:
        _log.exception("the agent did not answer %s", method)
        return failure_reply(message, FailureCode.AGENT_FAILED, "the agent did not answer")
