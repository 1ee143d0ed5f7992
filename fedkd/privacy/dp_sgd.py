"""DP-SGD on Opacus: one noised step at a time, with every place where Opacus leaves a hole closed.

Opacus' ``make_private`` would take the sampling rate and the divisor from the private example count, and draw noise
from torch's global generator; so the wrapped module and optimiser are built directly, both numbers come from the
policy, and noise comes from the reservation's own key.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.grad_sample.linear import compute_linear_grad_sample, compute_linear_norm_sample
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor, nn

from fedkd.errors import PrivacyError
from fedkd.privacy.architecture import check_layers
from fedkd.privacy.gradients import PerExampleLoss, check_sizes, shortened
from fedkd.privacy.noise import NoiseSource

MICROBATCH = 2048  # rows a backward pass; a full batch goes through in pieces of this size
CELLS = 2**26  # numbers in the per-example gradients of a microbatch that a single pass holds at once, at the most
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
GHOST_LAYERS = (nn.Linear, *CONVOLUTIONS, nn.GroupNorm, nn.LayerNorm, nn.Embedding)


class _Keyed:
    """Noise from a NoiseSource, and a clip that cannot move after the noise has been sized for it."""

    source: NoiseSource
    params: list[nn.Parameter]
    noise_multiplier: float
    _clip: float | None = None

    @property
    def max_grad_norm(self) -> float:
        assert self._clip is not None
        return self._clip

    @max_grad_norm.setter
    def max_grad_norm(self, value: float) -> None:
        if self._clip is not None and value != self._clip:
            raise PrivacyError("the clip is a constant of the contract", fix="register a new contract to change it")
        self._clip = value

    def add_noise(self) -> None:
        for p in self.params:
            total: Tensor = p.summed_grad  # type: ignore[attr-defined]
            _check_processed_flag(total)
            noise = torch.from_numpy(self.source.normal(tuple(total.shape), self.noise_multiplier * self.max_grad_norm))
            p.grad = (total.double() + noise).to(p.dtype).view_as(p)
            _mark_as_processed(total)


class _KeyedHooks(_Keyed, DPOptimizer):  # type: ignore[misc]
    pass


class _KeyedGhost(_Keyed, DPOptimizerFastGradientClipping):  # type: ignore[misc]
    pass


def _linear_norms(layer: nn.Linear, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Norms [n] of the per-example gradients of a linear layer, by parameter.

    For sequences Opacus multiplies Gram matrices, whose terms may cancel: in float32 the norm of an absurd example can
    come out as nearly zero, and the example unclipped. There the gradients themselves are made, and measured.
    """
    if backprops.dim() == 2:
        return dict(compute_linear_norm_sample(layer, activations, backprops))
    gradients = compute_linear_grad_sample(layer, activations, backprops)
    return {p: gradient.flatten(1).norm(2, dim=1) for p, gradient in gradients.items()}


class _GhostModule(GradSampleModuleFastGradientClipping):  # type: ignore[misc]
    """Measures every layer but nn.Linear by its gradients themselves."""

    NORM_SAMPLERS: ClassVar[dict[type[nn.Module], Any]] = {nn.Linear: _linear_norms}


class _SinglePass:
    """Opacus' per-example gradients of each layer, from a backward pass that makes no gradient of any weight.

    Hooks on the backward pass would leave it to make those too, which for convolutions is a third of its work. For
    networks without operations in place: what comes behind a layer must not change the output that it is asked for.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._seen: list[tuple[nn.Module, Tensor, Tensor]] = []
        layers = [m for m in network.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
        self._handles = [layer.register_forward_hook(self._note) for layer in layers]

    def __call__(self, x: Tensor) -> Tensor:
        self._seen = []  # what public examples went through, or an attempt that failed
        logits: Tensor = self._network(x)
        return logits

    def _note(self, layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        self._seen.append((layer, given[0].detach(), output))

    def backward(self, losses: Tensor) -> None:
        """Leave each parameter's gradients [n, ...] in its ``grad_sample``, where the optimiser looks for them."""
        seen, self._seen = self._seen, []
        outputs = [output for *_, output in seen]
        deltas = torch.autograd.grad(losses.sum(), outputs, materialize_grads=True)
        for (layer, given, _), delta in zip(seen, deltas, strict=True):
            for p, each in GradSampleModule.GRAD_SAMPLERS[type(layer)](layer, [given], delta).items():
                before = getattr(p, "grad_sample", None)
                each = each[: len(delta)]  # Opacus gives one row of zeros for an empty sample
                p.grad_sample = each if before is None else before + each

    def disable_hooks(self) -> None:
        """Nothing to do: every call begins anew."""

    enable_hooks = disable_hooks

    def remove_hooks(self) -> None:
        """Leave the network alone."""
        for handle in self._handles:
            handle.remove()


Clipper = Literal["hooks", "ghost", "single_pass"]


def clipper_for(network: nn.Module) -> Clipper:
    """Ghost clipping for linear layers; a single pass where there are convolutions, whose norms ghost clipping would
    have from their gradients anyway, as long as the gradients of MICROBATCH examples take little room.

    Hooks for a user's own code: they sum what they have measured, ghost clipping sums what autograd gives. And for
    layers that neither of the others can measure. What works in place would spoil a single pass; torch refuses it under
    hooks of either kind.
    """
    modules = list(network.modules())
    with_weights = [m for m in modules if any(True for _ in m.parameters(recurse=False))]
    measurable = _used_once(network) and all(type(m) in GHOST_LAYERS for m in with_weights)
    if not measurable or not all(_is_known(m) for m in modules):
        return "hooks"
    small = sum(p.numel() for p in network.parameters()) * MICROBATCH <= CELLS
    in_place = any(getattr(m, "inplace", False) for m in modules)
    convolutions = any(isinstance(m, CONVOLUTIONS) for m in with_weights)
    return "single_pass" if convolutions and small and not in_place else "ghost"


def _is_known(module: nn.Module) -> bool:
    """Whether it does what its class does, and that is torch's or fedkd's."""
    changed = "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    return type(module).__module__.startswith(("torch.nn.", "fedkd.")) and not changed


def _used_once(network: nn.Module) -> bool:
    """Whether no two places of the network share a parameter: the norm of a sum is not had from its parts' norms."""
    places = [m for _, m in network.named_modules(remove_duplicate=False)]
    uses = [p for m in places for p in m._parameters.values() if p is not None]
    return len(uses) == len(set(uses))


class PrivateSteps:
    """Takes optimiser steps whose private part is a Gaussian mechanism of L2 sensitivity ``clip``.

    One example more or less changes the clipped sum by at most ``clip``; N(0, (noise_multiplier * clip)^2) is added to
    it in every coordinate, also when the Poisson sample is empty. The divisor ``nominal_batch`` is a public constant.
    """

    def __init__(
        self,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        *,
        clip: float,
        noise_multiplier: float,
        nominal_batch: float,
        noise: NoiseSource,
        clipper: Clipper | None = None,
    ) -> None:
        check_layers(network)
        check_sizes(clip=clip, noise_multiplier=noise_multiplier, nominal_batch=nominal_batch)
        self._clipper = clipper or clipper_for(network)
        self._network, self._nominal_batch = network, nominal_batch
        self._params = [p for p in network.parameters() if p.requires_grad]
        settings: dict[str, Any] = {"batch_first": True, "loss_reduction": "sum"}
        if self._clipper == "ghost":
            self._wrapped: Any = _GhostModule(network, max_grad_norm=clip, use_ghost_clipping=True, **settings)
        elif self._clipper == "single_pass":
            self._wrapped = _SinglePass(network)
        else:
            self._wrapped = GradSampleModule(network, **settings)
        kind = _KeyedGhost if self._clipper == "ghost" else _KeyedHooks
        self.optimiser: Any = kind(
            optimiser,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self.optimiser.source = noise

    def step(self, x: Tensor, y: Tensor, loss: PerExampleLoss, public: Callable[[], Tensor] | None = None) -> None:
        """One step on the sample (x [n, ...], y [n]); ``public`` gives a scalar loss of public data.

        The public gradient is computed apart, where no hook counts, and added after the noise: in one backward Opacus
        would pair private with public rows by index and clip their sum, whose sensitivity is not ``clip``.
        """
        with warnings.catch_warnings():
            # inputs need no gradient here, which makes torch's backward hooks warn; Opacus' hooks are right anyway
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            extra = self._public_gradients(public)
            self._private_gradients(x, y, loss)
        for p, gradient in zip(self._params, extra, strict=True):
            assert p.grad is not None
            p.grad.div_(self._nominal_batch)
            if gradient is not None:
                p.grad.add_(gradient)
        # not step(), which would call pre_step again
        self.optimiser.original_optimizer.step()
        self.optimiser.zero_grad()

    def close(self) -> None:
        """Take the hooks off the network."""
        self._wrapped.remove_hooks()

    def _public_gradients(self, public: Callable[[], Tensor] | None) -> Sequence[Tensor | None]:
        if public is None:
            return [None] * len(self._params)
        self._wrapped.disable_hooks()
        try:
            found = torch.autograd.grad(public(), self._params, allow_unused=True)
        finally:
            self._wrapped.enable_hooks()
        # in proportion to private gradients: rates that suit clipped ones would let a long one throw the network about
        return shortened(found, self.optimiser.max_grad_norm)

    def _private_gradients(self, x: Tensor, y: Tensor, loss: PerExampleLoss) -> None:
        pieces = list(zip(torch.split(x, MICROBATCH), torch.split(y, MICROBATCH), strict=True))
        for index, (some_x, some_y) in enumerate(pieces):
            last = index == len(pieces) - 1
            if not last:
                self.optimiser.signal_skip_step(do_skip=True)
            self._clipped_gradients(some_x, some_y, loss)
            self.optimiser.pre_step()

    def _clipped_gradients(self, x: Tensor, y: Tensor, loss: PerExampleLoss) -> None:
        """An example whose gradient is not finite contributes nothing: clipping could not bound it, and it would make
        the whole sum NaN, which anyone can see."""
        while True:
            self.optimiser.zero_grad()
            self._backward(loss(self._wrapped(x), y))
            finite = self._norms(len(x)).isfinite()
            if bool(finite.all()):
                return
            x, y = x[finite], y[finite]

    def _norms(self, n: int) -> Tensor:
        if self._clipper == "ghost":
            measured: Tensor = self._wrapped.per_sample_gradient_norms
            return measured
        if not n:
            return torch.zeros(0)
        each = [g.reshape(n, -1).norm(2, dim=1) for g in self.optimiser.grad_samples]
        norms: Tensor = torch.stack(each).norm(2, dim=0)
        return norms

    def _backward(self, losses: Tensor) -> None:
        if self._clipper == "ghost":
            DPTensorFastGradientClipping(self._wrapped, self.optimiser, losses, "sum").backward()
        elif self._clipper == "single_pass":
            self._wrapped.backward(losses)
        else:
            torch.autograd.backward(losses.sum())
