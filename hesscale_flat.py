"""The memory that hesscale_core.py computes in: numpy arrays or torch tensors, and networks laid out as one vector.

Nothing here is mathematics. Networks this small cost calls rather than arithmetic, so what is fast on a CPU is numpy in
place of torch, and one long vector in place of many small tensors. Percentages are of the time of a PPO minibatch on 64
samples, actor and critic (benchmarks/minibatch.py).
"""

import inspect
import math
import operator

import numpy as np
import torch
from torch import nn


def namespace(*arrays):
    """Return numpy or torch, whichever all `arrays` belong to; the core uses only what both spell alike.

    Raises TypeError if they are mixed.
    """
    kinds = {*map(type, arrays)}
    if kinds == {np.ndarray} or all(issubclass(kind, np.ndarray) for kind in kinds):
        return np
    if all(issubclass(kind, torch.Tensor) for kind in kinds):
        return torch
    names = ", ".join(type(array).__name__ for array in arrays)
    raise TypeError(f"expected only numpy arrays or only torch tensors, got {names}")


def constant(array):
    """Return the array without autograd's graph."""
    return array.detach() if isinstance(array, torch.Tensor) else array


def check_shapes(shape, **arrays):
    """Raise ValueError with the name of an array that has another shape than `shape`, or is empty."""
    for name, array in arrays.items():
        if array.shape != shape:
            raise ValueError(f"{name} has shape {list(array.shape)}; expected {list(shape)}")
    if 0 in shape:  # a mean over nothing
        raise ValueError(f"{next(iter(arrays))} is empty, of shape {list(shape)}; give at least one sample")


def refuse_ties(parameters):
    """Raise ValueError if a parameter is there twice, for it would have several derivatives."""
    if len({*map(id, parameters)}) < len(parameters):
        raise ValueError("a parameter is used twice: give each place in the network parameters of its own")


def refuse_autocast(tensor):
    """Raise RuntimeError in torch.autocast, whose two types the passes by hand would mix."""
    if torch.is_autocast_enabled(tensor.device.type):
        raise RuntimeError("HesScale does not run in torch.autocast: convert network and input, as by .bfloat16()")


def numpy_computes(tensor):
    """Return whether numpy computes with the tensor's memory: on a CPU, in float32 or float64."""
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)


class FlatModule(nn.Module):
    """A network whose parameters, gradients and Hessian diagonals are one vector each.

    A subclass calls flatten() at the end of its __init__. Then `tensors` are three lists, of the parameters, of their
    gradients and of their Hessian diagonals: a view for each of current_parameters(), and last the whole vector.
    `arrays` are the same views as numpy arrays, or None where numpy can't share the memory.
    """

    def __init__(self):
        super().__init__()
        self.__dict__["_flat"] = nn.Parameter(torch.zeros(0))  # not by assignment, which would register it
        self._inputs = []  # the input of each layer, kept by forward for backward

    def current_parameters(self):
        """Return the parameters as they are now, in the vectors' order; functional_call, for one, replaces them."""
        return list(self.parameters())

    @torch.inference_mode(False)  # whose tensors autograd never takes again
    @torch.no_grad()
    def flatten(self):
        """Move the parameters into one vector, allocate two more for gradients and diagonals, and make all views.

        Raises ValueError for a parameter that is used twice.
        """
        params = self.current_parameters()
        refuse_ties(params)
        data, sizes = torch.cat([p.reshape(-1) for p in params]), [p.numel() for p in params]
        self.tensors, self.arrays, self._pinned = [], None, False
        for vector in data, torch.zeros_like(data), torch.zeros_like(data):
            parts = zip(vector.split(sizes), params, strict=True)
            self.tensors.append([*(part.view(p.shape) for part, p in parts), vector])
        self._published = list(zip([*params, self._flat], *self.tensors[1:], strict=True))
        for (p, _, _), p.data in zip(self._published, self.tensors[0], strict=True):
            p.grad = p.hess = None
        self._places = [p.data_ptr() for p in params]
        if numpy_computes(data):
            self.arrays = [[tensor.numpy() for tensor in tensors] for tensors in self.tensors]

    def follow_parameters(self):
        """Flatten again if a copy, .to(), an assigned .data or a new layer has moved the parameters."""
        if not self._pinned and [p.data_ptr() for p in self.current_parameters()] != self._places:
            self.flatten()

    def parameters_like(self, x):
        """Return current_parameters() for a tensor `x`; for a numpy array, the arrays that share their memory.

        Raises TypeError for an array of another dtype, or if numpy can't share the memory.
        """
        if not isinstance(x, np.ndarray):
            refuse_autocast(x)
            return self.current_parameters()
        self.follow_parameters()
        if self.arrays is None or x.dtype != self.arrays[0][-1].dtype:
            where = f"{self._flat.dtype} on the {self._flat.device.type}"
            what = "numpy computes on the CPU, in float32 and float64" if self.arrays is None else "convert one of them"
            raise TypeError(f"input is a numpy array of {x.dtype}, the parameters are {where}: {what}")
        return self.arrays[0]

    @property
    def flat(self):
        """All parameters as one nn.Parameter [P], with .grad and .hess, for an optimizer in place of net.parameters().

        To take it pins the parameters, which saves 10%: a network need not look where they are, nor set .hess of each;
        their .grad are views of that of `flat` after the next backward, for clipping. Values may change in place, as by
        load_state_dict, and .to(), copies, zero_grad() and requires_grad_() of the network, or of one that contains it,
        are still followed; an assigned .data, a new layer and freezing a part are not. Autograd does not notice a step
        of `flat`: compute a loss anew before its backward(). Raises ValueError if parameters are frozen.
        """
        if not all(p.requires_grad for p in self.parameters()):
            raise ValueError("net.flat includes frozen parameters: give the optimizer net.parameters() instead")
        self.follow_parameters()
        self._pinned = True
        for p, _, _ in self._published[:-1]:
            p.hess = None
        return self._flat

    def publish(self, curvature):
        """Set .grad and .hess of all parameters to their views, for optimizers; `curvature` None is for no diagonal."""
        published = self._published
        if self._pinned:
            first, grad, _ = published[0]
            self._flat.requires_grad = first.requires_grad
            if first.grad is not grad:  # the first time, and after zero_grad() of a module around this one
                for p, part, _ in published[:-1]:
                    p.grad = part
            published = published[-1:]
        for p, grad, hess in published:
            p.grad = grad if p.requires_grad else None
            p.hess, hess.curvature = hess if curvature else None, curvature

    def zero_grad(self, set_to_none=True):
        """As in torch; but what net.flat has pinned becomes zeros, because the .grad of `flat` has that memory."""
        super().zero_grad(set_to_none and not self._pinned)

    def _apply(self, fn, recurse=True):  # of .to(), .double(), .cuda()
        self._pinned = False
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("assign_to_params_buffers"):  # it replaces the parameters
            self._pinned = False
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __getstate__(self):  # of copies and pickles
        return self.__dict__ | {"_places": None, "_pinned": False, "_inputs": []}  # _places may come to fit by chance


class LightOptimizer(torch.optim.Optimizer):
    """torch.optim.Optimizer without the wrappers that import torch's compiler, 1.1 of the 2.6 seconds of a run's start.

    (CPU seconds of `python a2c_hesscale.py --env-id CartPole-v1 --total-timesteps 64`, with them and without.)
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class KeptArrays:
    """The arrays that an optimizer computes with, kept from one step to the next, because making them takes 2%."""

    def __init__(self, name):
        self._kept, self.name = {}, name

    def read(self, p, curvature, moments):
        """Return numpy or torch, and as its arrays p, p.grad, p.hess, the moments, and two scratch arrays like p.

        Args:
            p: a parameter with .grad.
            curvature: what p.hess has to be the diagonal of; None for an optimizer that reads none. The exact "GGN"
                stands in for the two that approximate it, but not for Hutchinson's, whose mean square is another.
            moments: tensors like p, or None for those that the optimizer does without.

        Raises:
            RuntimeError: p.hess is missing, or is that of another curvature.
            ValueError: p.hess has another shape than p.
        """
        hess = getattr(p, "hess", None) if curvature else None
        found = getattr(hess, "curvature", curvature)
        if curvature and (hess is None or (found != curvature and (found != "GGN" or curvature == "Hutchinson"))):
            found = "no .hess" if hess is None else f"a .hess of {hess.curvature}"
            shape = list(p.shape)
            raise RuntimeError(
                f"{self.name}: a parameter of shape {shape} has {found}; before each step, compute that of {curvature}"
            )
        read = p.grad, hess, *moments
        pointers = p.data_ptr(), p.grad.data_ptr()
        known, kept, arrays = self._kept.get(p, (None, read, None))
        if known != pointers or not all(map(operator.is_, kept, read)):
            if hess is not None and hess.shape != p.shape:  # an empty parameter is fine
                check_shapes(p.shape, hess=hess)
            xp = np if numpy_computes(p) else torch
            tensors = p.data, *read, torch.empty_like(p.data), torch.empty_like(p.data)
            arrays = xp, *(t.numpy() if xp is np and t is not None else t for t in map(constant, tensors))
            self._kept[p] = pointers, read, arrays
        return arrays

    def negative_share(self):
        """Return the share of entries below zero in the diagonals that were read last, in [0, 1]; NaN before that."""
        diagonals = [hess for _, (_, hess, *_), _ in self._kept.values() if hess is not None]
        entries = sum(math.prod(hess.shape) for hess in diagonals)
        return sum(int((hess < 0).sum()) for hess in diagonals) / entries if entries else math.nan
