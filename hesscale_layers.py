"""HesScale for feed-forward networks of torch layers: convolutions, pooling, dropout and smooth activations.

    net = HesScale(nn.Sequential(nn.Conv2d(1, 8, 5), nn.ELU(), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(968, 10)))
    optimizer = make_optimizer("adahesscale", net.parameters(), lr=1e-3)
    loss, grad, hess = cross_entropy_loss(net(x), targets)  # x [B, 1, 28, 28]
    net.backward(grad, hess)  # leaves .grad and .hess on every parameter
    optimizer.step()

TanhMLP in hesscale_core.py is the fast way for the agents' networks; this is the general one (Appendix F). Each kind of
layer has a rule in RULES, to which RULES[MyLayer] = ... adds one. With J the layer's Jacobian and h the diagonal at its
output, every rule carries h to the input as (J * J)^T h, and adds f'' g where a layer is not linear (Eq. 8-11). So a
layer's diagonal is exact if the Hessians with respect to its outputs and to those of all layers above are diagonal, and
always at a last layer each of whose weights enters one output of a sample, as nn.Linear's on [B, in] do. A kernel at
several positions, or nn.Linear on [B, T, in], lacks the terms between positions. Padding that is not zeros counts as a
layer of its own.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from hesscale_flat import refuse_autocast, refuse_ties


def vjp(output, inputs, v, create_graph=False):
    """Return J^T v for each of `inputs`, from the graph that made `output` of them (RuntimeError if it did not)."""
    if not inputs:
        return ()
    found = torch.autograd.grad(output, inputs, v, retain_graph=True, create_graph=create_graph, allow_unused=True)
    if any(d is None for d in found):
        raise RuntimeError("no graph leads from a layer's output to its input and parameters: was HesScale compiled?")
    return found


def weighted(layer, x, out, g, h, gauss_newton):
    """Linear and convolution: J has the weights, so that J * J is the same layer's with squared weights (Eq. 3, 4)."""
    trained = {name: p for name, p in layer.named_parameters(recurse=False) if p.requires_grad}
    below = [x] if x.requires_grad else []
    grads = vjp(out, [*below, *trained.values()], g)
    hesses = [None] * len(grads)
    if h is not None:  # d out / d weight is x, so x * x takes its place; and 1 is the bias's
        squares = {name: (p * p).detach().requires_grad_() for name, p in layer.named_parameters(recurse=False)}
        x = (x * x).detach().requires_grad_()
        wanted = [*([x] if below else []), *map(squares.get, trained)]
        hesses = squared_vjp(layer, squares, x, wanted, h)
    for p, grad, hess in zip(trained.values(), grads[len(below) :], hesses[len(below) :], strict=True):
        p.grad, p.hess = grad, hess
    return (grads[0], hesses[0]) if below else (None, None)


def squared_vjp(layer, squares, x, wanted, h):
    """Return (J * J)^T h for each of `wanted`, of the layer with squared parameters at squared inputs.

    The convolution's own backward pass needs no forward pass of the squares: with that, and nothing carried to the
    images, AdaHesScale's update of 3C3D takes 2.0 of torch's Adam's and not 2.7 (benchmarks/convolutions.py).
    """
    weight, bias = squares["weight"], squares.get("bias")
    if isinstance(layer, nn.Linear):
        return vjp(F.linear(x, weight, bias), wanted, h)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str) or x.dim() != weight.dim():
        return vjp(layer._conv_forward(x, weight, bias), wanted, h)  # and not layer(x), which calls hooks
    mask = [any(t is w for w in wanted) for t in (x, weight, bias)]
    sides = None if bias is None else bias.shape, layer.stride, layer.padding, layer.dilation
    with torch.no_grad():
        found = torch.ops.aten.convolution_backward(
            h, x, weight, *sides, False, [0] * len(layer.stride), layer.groups, mask
        )
    return [d for d in found if d is not None]


def elementwise(layer, x, out, g, h, gauss_newton):
    """Activations f: g <- f' g and h <- f'^2 h + f'' g, of which HesScaleGN drops the last term (Eq. 2, 4)."""
    if h is None:
        return vjp(out, [x], g)[0], None
    (slope,) = vjp(out, [x], torch.ones_like(out), create_graph=not gauss_newton)
    h = slope.detach() ** 2 * h
    if slope.requires_grad:  # not ReLU's, nor without create_graph
        ones = torch.ones_like(slope)
        h = h + torch.autograd.grad(slope, [x], ones, retain_graph=True, materialize_grads=True)[0] * g
    return slope.detach() * g, h


def mish(layer, x, out, g, h, gauss_newton):
    """Mish, as elementwise; but torch's own second derivative is NaN where exp(x) overflows, from 89 in float32."""
    return elementwise(layer, x, x * F.softplus(x).tanh(), g, h, gauss_newton)


def selecting(layer, x, out, g, h, gauss_newton):
    """Max pooling, padding and reshaping: J has zeros and ones, so J * J = J; windows that overlap add."""
    return vjp(out, [x], g)[0], None if h is None else vjp(out, [x], h)[0]


def averaging(layer, x, out, g, h, gauss_newton):
    """Average pooling: J has 1 / n for each of a window's n inputs, so J * J has 1 / n^2: h / k^4 for k x k windows."""
    return vjp(out, [x], g)[0], None if h is None else vjp(out, [x], window_weight(layer, x) * h)[0]


def scaling(layer, x, out, g, h, gauss_newton):
    """Dropout: J is diagonal, with the factor of each input, 0 or 1 / (1 - p), which is applied to h twice."""
    return vjp(out, [x], g)[0], None if h is None else vjp(out, [x], vjp(out, [x], h)[0])[0]


def window_weight(layer, x):
    """Return what average pooling multiplies each of a window's inputs with, a tensor like one channel's output."""
    sizes = x.shape[-AVERAGING[type(layer)] :]  # before these a batch, channels, or both
    one = torch.ones((1, 1, *sizes), dtype=x.dtype, device=x.device)
    if isinstance(layer, ADAPTIVE):  # the window of output i is from floor(i m / n) to ceil((i + 1) m / n)
        weight = one.new_ones(())
        for m, n in zip(sizes, layer.forward(one).shape[2:], strict=True):
            size = [math.ceil((i + 1) * m / n) - i * m // n for i in range(n)]
            weight = weight[..., None] / torch.tensor(size, dtype=x.dtype, device=x.device)
        return weight
    if isinstance(layer, nn.AvgPool1d):
        (k,), (s,), (p,) = layer.kernel_size, layer.stride, layer.padding  # only in 2-D can the divisor be set
        inputs = F.avg_pool2d(one[:, :, None], (1, k), (1, s), (0, p), layer.ceil_mode, divisor_override=1)[:, :, 0]
    else:
        pool = F.avg_pool2d if isinstance(layer, nn.AvgPool2d) else F.avg_pool3d
        inputs = pool(one, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, divisor_override=1)
    return (layer.forward(one) / inputs)[0, 0]  # the mean of ones, of which padding is none, over their number


CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d
ADAPTIVE = nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d
AVERAGING = dict(zip((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, *ADAPTIVE), (1, 2, 3, 1, 2, 3), strict=True))
ACTIVATIONS = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid, nn.ReLU, nn.ReLU6,
    nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink,
)  # fmt: skip
RULES = (
    dict.fromkeys((nn.Linear, *CONVOLUTIONS), weighted)
    | dict.fromkeys(ACTIVATIONS, elementwise)
    | {nn.Mish: mish}
    | dict.fromkeys((nn.Flatten, nn.Unflatten, nn.Identity), selecting)
    | dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), selecting)
    | dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), selecting)
    | dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), selecting)
    | dict.fromkeys((nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d), selecting)
    | dict.fromkeys((nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d), selecting)
    | dict.fromkeys((nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d), selecting)
    | dict.fromkeys(AVERAGING, averaging)
    | dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), scaling)
)


def called(layer, x):
    """Return layer(x); raise TypeError if hooks change what goes in or comes out, of which the rules know nothing."""
    if not (layer._forward_hooks or layer._forward_pre_hooks):
        return layer(x)
    before, seen = x.clone(), []
    handles = (
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone())),
        layer.register_forward_hook(lambda _, args, out: seen.append(out.clone()), prepend=True),
    )
    try:
        out = layer(x)
    finally:
        for handle in handles:
            handle.remove()
    for a, b in zip(seen, (before, out), strict=True):
        if a.shape != b.shape or not torch.allclose(a, b, rtol=0, atol=0, equal_nan=True):
            raise TypeError(f"a hook of {layer} changes what goes in or comes out: make it a layer of its own")
    return out


class HesScale(nn.Module):
    """A network that backpropagates a gradient and a Hessian diagonal through the layers of an nn.Sequential.

    `model` may contain further nn.Sequentials; its parameters are those of this network. Raises TypeError for a layer
    without a rule, and ValueError for a parameter that is used twice.
    """

    def __init__(self, model):
        super().__init__()
        self.model, self._kept = model, []
        _ = self.layers  # for what it raises

    @property
    def layers(self):
        """The layers of `model` as they are now, in order: one may have been replaced."""
        layers = list(self._layers_of(self.model, "model"))
        refuse_ties([p for layer in layers for p in layer._parameters.values() if p is not None])
        return layers

    def _layers_of(self, module, place):
        if module._backward_hooks or module._backward_pre_hooks:
            raise TypeError(f"{place} has backward hooks, which would be called with curvatures too: remove them")
        if type(module) is nn.Sequential:
            if module._forward_hooks or module._forward_pre_hooks:
                raise TypeError(f"{place} has forward hooks, which are not called: give them to its layers")
            for name, layer in module._modules.items():
                yield from self._layers_of(layer, f"{place}.{name}")
        elif type(module) not in RULES:
            add = "hesscale_layers.RULES[type] = elementwise adds that of an activation; see the other rules"
            raise TypeError(f"{place} is a {type(module).__name__}, for which HesScale has no rule: {add}")
        elif getattr(module, "return_indices", False):
            raise TypeError(f"{place} returns indices, which no next layer takes: leave return_indices out")
        elif RULES[type(module)] is weighted and (more := {*dict(module.named_parameters())} - {"weight", "bias"}):
            names = ", ".join(sorted(more))
            raise TypeError(f"{place} has the parameters {names}: HesScale knows weight and bias; undo what made them")
        else:
            yield module

    def forward(self, x):
        """Return the output for a batch of inputs `x` [B, ...].

        It is differentiable by autograd, which frees the graph that backward needs unless retain_graph=True.
        """
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"input is a {type(x).__name__}; expected a torch tensor")
        refuse_autocast(x)
        self._kept = []
        with torch.enable_grad():  # backward goes back through each layer's part of this graph
            y = x
            for layer in self.layers:
                # an in-place activation, as somebody's own may be, must not change what is kept
                own = not type(layer).__module__.startswith("torch.nn.")
                out = called(layer, y.clone() if getattr(layer, "inplace", own) else y)
                self._kept.append((layer, y, out))
                y = out
        y = y.clone()  # so that nobody changes in place what is kept
        return y if torch.is_grad_enabled() else y.detach()

    @torch.inference_mode(False)  # enables autograd, too: the rules make graphs of their own, whatever the caller wants
    def backward(self, grad_output, hess_output, gauss_newton=False):
        """Leave the gradient in .grad and the HesScale diagonal in .hess of every parameter that is trained.

        Overwrites both; nothing accumulates. The loss is that of the last call of forward (RuntimeError if there was
        none); `grad_output` and `hess_output` are its derivatives with respect to the output, dL/da and the diagonal
        d2L/da^2, of the output's shape (else ValueError), with the 1/B of a mean over the batch. A `hess_output` of
        None asks for the gradient alone; `gauss_newton` drops the second derivatives of activations (HesScaleGN).
        """
        if not self._kept:
            raise RuntimeError("HesScale.backward needs the inputs of a forward pass: call forward first")
        if gauss_newton not in (False, True):
            raise ValueError(f"gauss_newton={gauss_newton!r}: choose False or True")
        out = self._kept[-1][-1]
        refuse_autocast(out)
        if not out.requires_grad and any(p.requires_grad for p in self.parameters()):
            why = "in torch.inference_mode: use torch.no_grad" if out.is_inference() else "while all were frozen"
            raise RuntimeError(f"forward kept no graph for the parameters, because it ran {why}")
        g, h = (
            d if d is None else torch.as_tensor(d, dtype=out.dtype, device=out.device).detach()
            for d in (grad_output, hess_output)
        )
        for name, d in ("grad_output", g), ("hess_output", h):
            if d is not None and d.shape != out.shape:
                raise ValueError(f"{name} has shape {list(d.shape)}; expected {list(out.shape)}")
        for p in self.parameters():
            p.grad = p.hess = None
        for layer, x, out in reversed(self._kept):
            if not out.requires_grad:  # no parameters below
                break
            g, h = RULES[type(layer)](layer, x, out, g, h, gauss_newton)
            if any(p.requires_grad and p.grad is None for p in layer._parameters.values() if p is not None):
                kind = type(layer).__name__
                raise RuntimeError(f"the rule of {kind} leaves its parameters untrained: freeze them, or set .grad")
        for p in self.parameters():
            if p.hess is not None:
                p.hess.curvature = "HesScaleGN" if gauss_newton else "HesScale"

    def __getstate__(self):  # of copies and pickles, which can't hold a graph
        return self.__dict__ | {"_kept": []}
