"""May a network be trained with DP-SGD? Every example's gradient must depend on that example alone, because only
then does clipping it bound what one example can change. What is refused here would break that silently.
"""

from __future__ import annotations

import copy
import traceback
import warnings

import torch
import torch.nn.functional as F
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fedkd.errors import PrivacyError

_OPACUS_LAYERS = {nn.RNN: "DPRNN", nn.LSTM: "DPLSTM", nn.GRU: "DPGRU", nn.MultiheadAttention: "DPMultiheadAttention"}
_TOLERANCE = 1e-4  # relative; sums of other batch sizes may round differently, examples that mix differ by far more


def check_private(module: nn.Module) -> None:
    """Refuse what DP-SGD cannot protect: BatchNorm in any mode, running statistics, layers without per-example
    gradients; of a module with an ``input_shape`` (one example's) also, by trial, a forward pass that mixes examples.
    Neither the module nor the global random state changes. Raises PrivacyError naming the layer.
    """
    check_layers(module)
    shape = getattr(module, "input_shape", None)
    if isinstance(shape, tuple):
        check_examples_apart(module, shape)


def check_layers(module: nn.Module) -> None:
    """Refuse layers that DP-SGD cannot train, whether or not they are frozen. Raises PrivacyError naming the layer."""
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm):
            raise _refuse(
                name, layer, "it mixes the examples of a batch, or keeps their statistics", "use nn.GroupNorm"
            )
        if isinstance(layer, _InstanceNorm) and layer.track_running_stats:
            raise _refuse(name, layer, "it keeps statistics of private examples", "set track_running_stats=False")
        for kind, replacement in _OPACUS_LAYERS.items():
            if isinstance(layer, kind):
                raise _refuse(name, layer, "it gives no gradient per example", f"use opacus.layers.{replacement}")
        if any(p.requires_grad for p in layer.parameters(recurse=False)) and list(layer.buffers()):
            raise _refuse(name, layer, "it has parameters and buffers, and buffers are not protected", "part the two")
    training = copy.deepcopy(module).train()  # the validator wants training mode; the caller's mode stays
    for error in [*ModuleValidator.validate(training), *GradSampleModule.validate(training)]:
        raise PrivacyError(f"the network cannot be trained with DP-SGD: {error}")


def check_examples_apart(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Run a copy of the network on made-up examples [n, *shape] and refuse it when one example's output or gradient
    depends on the others or on their number, when buffers change, or when a batch of no examples fails.

    A trial, not a proof: code that mixes examples only now and then is not found. Raises PrivacyError.
    """
    inputs = torch.rand(4, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 0.5
    others = torch.cat([inputs[:1], inputs[1:].flip(-1) * 0.5 + 0.25])
    try:
        outcomes = [_trial(module, batch, seed) for batch, seed in ((inputs, 0), (others, 0), (inputs, 1))]
        alone = _trial(module, inputs[:1], 0)
        _trial(module, inputs[:0], 0)
    except PrivacyError:
        raise
    except Exception as error:
        text = traceback.format_exception_only(error)[-1].strip()
        raise PrivacyError(
            f"the network cannot be trained with DP-SGD: a step on made-up examples failed with {text}",
            fix="batches may be empty (write x.flatten(1), not x.view(len(x), -1)), and Opacus must know every layer",
        ) from error
    _compare(outcomes[0], outcomes[1], "the other examples of a batch")
    if _same(outcomes[0], outcomes[2]) is None:  # with dropout, masks differ from one batch size to the next
        _compare(outcomes[0], alone, "the size of its batch")


def _trial(module: nn.Module, batch: Tensor, seed: int) -> dict[str, Tensor]:
    """Output and per-example gradients of the first example of a batch, by name."""
    body = copy.deepcopy(module).train()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # Opacus' hooks warn about inputs that need no gradient
        torch.manual_seed(seed)
        _shake(body)
        before = {name: value.detach().clone() for name, value in body.state_dict(keep_vars=True).items()}
        wrapped = GradSampleModule(body, loss_reduction="sum")
        output = wrapped(batch)
        F.cross_entropy(output, torch.zeros(len(batch), dtype=torch.long), reduction="sum").backward()  # type: ignore[no-untyped-call]
    for name, value in (*body.named_buffers(), *body.named_parameters()):
        if name in before and not torch.equal(value, before[name]):
            raise _refuse(name, value, "a forward pass changes it, and no noise covers that", "do without what does so")
    return {"output": output.detach()[:1], **_gradients(body, len(batch))}


def _shake(body: nn.Module) -> None:
    """Leave starting values such as zero, at which a layer would hide what goes on below it."""
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.1)


def _gradients(body: nn.Module, n: int) -> dict[str, Tensor]:
    found = {}
    for name, parameter in body.named_parameters():
        if parameter.requires_grad:
            gradient = getattr(parameter, "grad_sample", None)
            if not isinstance(gradient, Tensor) or len(gradient) != n:
                raise _refuse(name, parameter, "it has no gradient per example", "freeze it, or use it once in forward")
            # a parameter that is also used outside its layer has gradients that the layer's hooks do not see, and
            # ghost clipping, which measures with hooks what autograd sums, would not bound them
            total = {name: gradient.detach().sum(dim=0)}
            if parameter.grad is None or _same(total, {name: parameter.grad}) is not None:
                raise _refuse(name, parameter, "its gradient also comes past its layer", "use it in its layer alone")
            found[name] = gradient.detach()[:1]
    return found


def _same(one: dict[str, Tensor], two: dict[str, Tensor]) -> str | None:
    """The first name under which the two differ."""
    for name, value in one.items():
        scale = _TOLERANCE * max(1.0, float(value.abs().max()) if value.numel() else 0.0)
        if not torch.allclose(value, two[name], rtol=0.0, atol=scale):
            return name
    return None


def _compare(one: dict[str, Tensor], two: dict[str, Tensor], what: str) -> None:
    name = _same(one, two)
    if name is not None:
        raise PrivacyError(
            f"the network cannot be trained with DP-SGD: the {'' if name == 'output' else 'gradient of '}{name} "
            f"of one example depends on {what}",
            fix="let every example pass through the network on its own",
        )


def _refuse(name: str, layer: object, why: str, fix: str) -> PrivacyError:
    return PrivacyError(
        f"the layer {name or '(the network itself)'!r} ({type(layer).__name__}) cannot be trained with DP-SGD: {why}",
        where=f"layer {name!r}",
        fix=fix,
    )
