"""What a network says of examples: its logits, and where a term asks for them its hidden activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.distill.losses import Need, Outputs, Targets, soften
from fedkd.errors import ConfigError

CHUNK = 1024  # examples a forward pass, where no gradient is wanted


def observe(
    network: nn.Module, x: Tensor, needs: Set[Need], perturb: Callable[[Tensor], Tensor] | None = None
) -> Outputs:
    """Run the network on x [n, ...], in the mode that it is in. Raises ConfigError for one without what is needed.

    ``hidden`` is the input of the linear layer that is called last. ``attention`` has the sums over channels of squared
    activations of the modules that ``network.maps`` names, whose channels are on axis ``network.map_axis``.
    """
    with _listening(network, needs) as (hidden, maps):
        logits = network(x)
    if "hidden" in needs and not hidden:
        raise ConfigError("the terms hint and hint_norm need a network with a linear layer")
    if "attention" in needs and not maps:
        raise ConfigError(
            "the term attention needs a network with attention maps",
            fix="use cnn, rnn or transformer, or name modules of your class in its attribute 'maps'",
        )
    return Outputs(
        logits,
        None if perturb is None or "perturbed" not in needs else network(perturb(x)),
        hidden[-1].flatten(1) if hidden else None,
        tuple(maps[name] for name in getattr(network, "maps", ()) if name in maps),
    )


@torch.no_grad()
def targets_of(network: nn.Module, x: Tensor, temperature: float, needs: Set[Need]) -> Targets:
    """What a network that stands still has to teach about x [n, ...]; leaves the network in evaluation mode."""
    network.eval()
    parts = [observe(network, part, needs - {"perturbed"}) for part in torch.split(x, CHUNK)]
    rows = soften(torch.cat([part.logits for part in parts]), temperature)
    hidden = [part.hidden for part in parts if part.hidden is not None]
    attention = zip(*(part.attention for part in parts), strict=True)
    return Targets(rows, temperature, rows, torch.cat(hidden) if hidden else None, tuple(map(torch.cat, attention)))


@contextmanager
def _listening(network: nn.Module, needs: Set[Need]) -> Iterator[tuple[list[Tensor], dict[str, Tensor]]]:
    hidden: list[Tensor] = []
    maps: dict[str, Tensor] = {}
    handles = []

    def remember(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        hidden[:] = arguments[:1]

    if "hidden" in needs:
        handles += [m.register_forward_pre_hook(remember) for m in network.modules() if isinstance(m, nn.Linear)]
    if "attention" in needs:
        axis = int(getattr(network, "map_axis", 1))
        for name in getattr(network, "maps", ()):
            handles.append(network.get_submodule(name).register_forward_hook(_mapper(maps, name, axis)))
    try:
        yield hidden, maps
    finally:
        for handle in handles:
            handle.remove()


def _mapper(maps: dict[str, Tensor], name: str, axis: int) -> Callable[..., None]:
    def remember(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        maps[name] = output.square().sum(dim=axis)

    return remember
