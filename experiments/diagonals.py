# ruff: noqa: E402 (threads are set before numpy is imported, sys.path before our modules)
"""The Hessian diagonals that Section 4 compares, of a TanhMLP's loss in the network's parameters.

Weights enter the loss only through a = W x + b, so that for one sample d2L/dW_ij^2 = d2L/da_i^2 x_j^2 (Eq. 3), exactly.
What has to be found is the diagonal in the pre-activations a: exact and GGN from torch.func, HesScale, HesScaleGN and
BL89 from TanhMLP.backward. Only AdaHessian's z * (Hz) lives in the parameters themselves.

Everything comes in G groups of B samples. A group has its own parameters, and its loss is the mean over its batch, as
an optimizer sees it. The diagonals of such a mean are the means of its samples' for H, GGN, HesScale, HesScaleGN and
BL89, and GGN-MC draws for each sample on its own; but g^2 is (mean g)^2, and a sample of AdaHessian's is one Rademacher
vector for the whole batch.

    params   (W_1, b_1, ..., W_L, b_L), each [G, ...]
    x        [G, B, in]
    targets  what a loss needs besides the network's output, each [G, B, ...]
    layer    a diagonal: [G, out, in + 1], the bias in the last column
"""

import os
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from torch.func import grad, hessian, jacrev, jvp, vmap

from hesscale_core import (
    TanhMLP,
    cross_entropy_loss,
    gaussian_policy_gradient_loss,
    gaussian_ppo_loss,
    value_loss,
)

torch.set_num_threads(1)
GROUPS = 64  # worked on at once, fewer the larger their batch: a few hundred MB
PIECE = 10  # of AdaHessian's samples at once, each a vector as long as the parameters

# Okabe and Ito's colours; in greyscale, and where lines cross, the markers tell the methods apart
METHODS = {
    "HesScale": dict(color="#D55E00", marker="D"),
    "HesScaleGN": dict(color="#009E73", marker="^"),
    "GGN": dict(color="#0072B2", marker="s"),
    "GGN-MC50": dict(color="#56B4E9", marker="o"),
    "GGN-MC1": dict(color="#56B4E9", marker="o", markerfacecolor="white"),
    "BL89": dict(color="#E69F00", marker="P"),
    "g²": dict(color="#888888", marker="X"),
    "AdaHessian-MC50": dict(color="#CC79A7", marker="v"),
    "AdaHessian-MC1": dict(color="#CC79A7", marker="v", markerfacecolor="white"),
    "|diag(H)|": dict(color="black", marker="_"),  # the distance to zero, for reference
}


# ---- losses of one sample, written down anew so that the references share nothing with the core ------------------


def cross_entropy(logits, target):
    """-log q_target of one sample's logits [C]."""
    return -torch.log_softmax(logits, 0).gather(0, target[None])[0]


def _log_prob(mean, log_std, action):
    return torch.distributions.Normal(mean, log_std.exp(), validate_args=False).log_prob(action).sum()


def policy_gradient(mean, log_std, action, advantage):
    """-A log pi(a) of one sample's mean [A]."""
    return -advantage * _log_prob(mean, log_std, action)


def ppo(mean, log_std, action, old_log_prob, advantage, clip_coef):
    """-min(r A, clip(r, 1-c, 1+c) A) of one sample's mean [A]."""
    ratio = (_log_prob(mean, log_std, action) - old_log_prob).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantage)


def squared_error(value, returns):
    """1/2 (v - R)^2 of one sample's value [1]."""
    return 0.5 * ((value - returns) ** 2).sum()


# ---- what the methods need of a loss -----------------------------------------------------------------------------


def bl89_hess_logits(logits, targets):
    """BL89's second derivative at the logits [B, C], of the mean cross-entropy: q_y - q_y^2 at the target y, else zero.

    BL89 knows no softmax loss: softmax is one more layer, whose input gets Eq. 4, with sigma' and sigma'' the
    derivatives of q_i in its own a_i alone, as if softmax were element-wise like every other activation. That is what
    the authors' experiment does, with log-softmax: sigma'_i = 1 - q_i and sigma''_i = q_i^2 - q_i under a loss -log q_y
    of no second derivative. With softmax itself, under a loss of second derivative 1/q_y^2, the same comes out.

    The other reading, a sum over all the layer's outputs k, is HesScale: the loss depends on q_y alone, so that Eq. 4
    has no off-diagonal term to drop. A Gaussian policy's mean and a value are outputs of a linear layer: BL89 is
    HesScale there too.
    """
    q = np.exp(logits - logits.max(-1, keepdims=True))
    q /= q.sum(-1, keepdims=True)
    hess, rows = np.zeros_like(q), np.arange(len(q))
    hess[rows, targets] = (q - q * q)[rows, targets] / len(q)
    return hess


def label_vectors(output, hess_output, samples, generator):
    """GGN-MC's for classification (Dangel et al. 2020b): gradients q - e_y [G, B, S, C] for labels y drawn from q."""
    q = torch.softmax(output, -1)
    labels = torch.multinomial(q.flatten(0, 1), samples, replacement=True, generator=generator)
    one_hot = torch.nn.functional.one_hot(labels, q.shape[-1]).view(*q.shape[:2], samples, -1)
    return [(1, q[:, :, None] - one_hot)]


def sign_vectors(output, hess_output, samples, generator):
    """GGN-MC's where the loss's Hessian in the output, Q diag(lambda) Q^T, may be indefinite: two signed squares.

    With random signs s, E[(J^T Q sqrt(lambda+) s)^2 - (J^T Q sqrt(-lambda-) s')^2] = diag(J^T H J). It has no variance
    where there is one output.
    """
    eigenvalues, q = torch.linalg.eigh(hess_output)
    vectors = []
    for sign in (1, -1):
        factor = q * (sign * eigenvalues).clamp(min=0).sqrt()[..., None, :]
        s = _signs((*output.shape[:2], samples, output.shape[-1]), generator)
        vectors.append((sign, s @ factor.mT))
    return vectors


# sample: of one output, for the references; core: of the batch, with its derivatives; vectors: GGN-MC's at the output
Loss = namedtuple("Loss", "sample core vectors bl89")
CROSS_ENTROPY = Loss(cross_entropy, cross_entropy_loss, label_vectors, bl89_hess_logits)
POLICY_GRADIENT = Loss(policy_gradient, gaussian_policy_gradient_loss, sign_vectors, None)
VALUE = Loss(squared_error, value_loss, sign_vectors, None)


def ppo_with(clip_coef):
    """The Loss of PPO's actor."""
    return Loss(partial(ppo, clip_coef=clip_coef), partial(gaussian_ppo_loss, clip_coef=clip_coef), sign_vectors, None)


# ---- diagonals -----------------------------------------------------------------------------------------------


def _forward(params, x):
    """Every layer's input and pre-activation for one sample."""
    inputs, preactivations = [], []
    for weight, bias in zip(params[::2], params[1::2], strict=True):
        inputs.append(x)
        preactivations.append(weight @ x + bias)
        x = torch.tanh(preactivations[-1])
    return inputs, preactivations


def _output(params, layer, a):
    """The network's output from the pre-activation `a` of the layer with that index."""
    for weight, bias in zip(params[2 * layer + 2 :: 2], params[2 * layer + 3 :: 2], strict=True):
        a = weight @ torch.tanh(a) + bias
    return a


def _hessians(sample_loss, params, x, targets):
    """The loss's full Hessian in every layer's pre-activations [n, n], for one sample."""
    of = [lambda a, layer=layer: sample_loss(_output(params, layer, a), *targets) for layer in range(len(params) // 2)]
    return [hessian(f)(a) for f, a in zip(of, _forward(params, x)[1], strict=True)]


def _per_sample(function, params, x, targets):
    """function(params, x, targets) for every sample of every group."""
    return vmap(vmap(function, (None, 0, 0)), (0, 0, 0))(params, x, targets)


def preactivation_hessians(loss, params, x, targets):
    """The exact Hessians of every sample's own loss in every layer's pre-activations, each [G, B, n, n]."""
    return _per_sample(partial(_hessians, loss.sample), params, x, targets)


def _linearized(sample_loss, params, x, targets):
    """Every layer's input, the output's Jacobian in its pre-activation [out, n]; output, loss's gradient, Hessian."""
    inputs, preactivations = _forward(params, x)
    jacobians = [jacrev(partial(_output, params, layer))(a) for layer, a in enumerate(preactivations)]
    output = preactivations[-1]
    return inputs, jacobians, output, grad(sample_loss)(output, *targets), hessian(sample_loss)(output, *targets)


def _in_parameters(d, inputs):
    """Eq. 3, and the mean over the batch: the layer [G, out, in + 1] of pre-activations' diagonals d [G, B, out]."""
    return torch.einsum("gbi,gbj->gij", d, _with_ones(inputs) ** 2) / d.shape[1]


def _with_ones(inputs):
    return torch.cat([inputs, torch.ones_like(inputs[..., :1])], -1)


def _signs(shape, generator):
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.float64).mul_(2).sub_(1)


def _layers(tensors):
    """Weights and biases, alternating, as layers."""
    return [torch.cat([w, b[..., None]], -1) for w, b in zip(tensors[::2], tensors[1::2], strict=True)]


def adahessian(loss, params, x, targets, samples, generator):
    """The first of `samples` of z * (Hz) and their mean, each a list of layers; H is that of the group's mean loss."""

    def batch_loss(params, x, targets):
        one = lambda x, targets: loss.sample(_forward(params, x)[1][-1], *targets)  # noqa: E731
        return vmap(one)(x, targets).mean()

    def product(params, x, targets, z):
        return vmap(lambda z: jvp(lambda p: grad(batch_loss)(p, x, targets), (params,), (z,))[1])(z)

    first, total = None, [0] * len(params)
    for start in range(0, samples, PIECE):
        n = min(PIECE, samples - start)
        z = tuple(_signs((len(p), n, *p.shape[1:]), generator) for p in params)
        estimates = [z_p * product_p for z_p, product_p in zip(z, vmap(product)(params, x, targets, z), strict=True)]
        first = first or [e[:, 0] for e in estimates]
        total = [t + e.sum(1) for t, e in zip(total, estimates, strict=True)]
    return _layers(first), _layers([t / samples for t in total])


def core_diagonals(loss, params, x, targets):
    """HesScale, HesScaleGN and where the loss has it BL89, as {method: layers}, by TanhMLP.backward."""
    sizes = [params[0].shape[-1], *(b.shape[-1] for b in params[1::2])]
    net = TanhMLP(sizes[0], sizes[1:-1], sizes[-1]).double()
    result = {}
    for g in range(len(x)):
        for p, values in zip(net.parameters(), params, strict=True):
            p.data.copy_(values[g])
        output, of_group = net(x[g].numpy()), [t[g].numpy() for t in targets]
        _, grad_output, hess_output, *_ = loss.core(output, *of_group)
        at_output = {"HesScale": hess_output, "HesScaleGN": hess_output}
        if loss.bl89 is not None:
            at_output["BL89"] = loss.bl89(output, *of_group)
        for method, hess in at_output.items():
            net.backward(grad_output, hess, gauss_newton=method == "HesScaleGN")
            result.setdefault(method, []).append(_layers([p.hess.clone() for p in net.parameters()]))
    return {method: [torch.stack(layer) for layer in zip(*of, strict=True)] for method, of in result.items()}


def diagonals(loss, params, x, targets, generator, samples=50):
    """The exact diagonal of every group's mean loss as "H", and all the METHODS', as {method: layers}.

    Args:
        loss: a Loss.
        params, x, targets: those of the module's docstring, in float64.
        generator: torch's, for the stochastic methods.
        samples: how many of a stochastic method's make what is called its MC50.
    """
    exact = [h.diagonal(dim1=-2, dim2=-1) for h in preactivation_hessians(loss, params, x, targets)]
    inputs, jacobians, output, g, h = _per_sample(partial(_linearized, loss.sample), params, x, targets)
    vectors = loss.vectors(output, h, samples, generator)
    result = {name: [] for name in ("H", "GGN", "GGN-MC1", "GGN-MC50", "g²")}
    for d, x_l, j in zip(exact, inputs, jacobians, strict=True):
        mc = sum(sign * (u @ j) ** 2 for sign, u in vectors)  # [G, B, S, n]
        result["H"].append(_in_parameters(d, x_l))
        result["GGN"].append(_in_parameters((j * (h @ j)).sum(-2), x_l))
        result["GGN-MC1"].append(_in_parameters(mc[:, :, 0], x_l))
        result["GGN-MC50"].append(_in_parameters(mc.mean(2), x_l))
        of_a = torch.einsum("gbo,gboi->gbi", g, j)
        result["g²"].append((torch.einsum("gbi,gbj->gij", of_a, _with_ones(x_l)) / x.shape[1]) ** 2)
    result["AdaHessian-MC1"], result["AdaHessian-MC50"] = adahessian(loss, params, x, targets, samples, generator)
    return result | core_diagonals(loss, params, x, targets)


def errors(loss, params, x, targets, generator, samples=50):
    """The L1 distance of every method's diagonal to the exact one, as {method: [G, layers]}; arguments of diagonals.

    "|diag(H)|" is the distance of zero; and besides the METHODS there are "HesScaleGN to GGN" and "|diag(G)|".
    """
    pieces, size = [], max(1, GROUPS // x.shape[1])
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        of_part = tuple(p[part] for p in params), x[part], tuple(t[part] for t in targets)
        of = diagonals(loss, *of_part, generator, samples)
        zero, pairs = (
            [0 * layer for layer in of["H"]],
            {method: (d, of["H"]) for method, d in of.items() if method != "H"},
        )
        pairs |= {"|diag(H)|": (zero, of["H"])}
        pairs |= {"HesScaleGN to GGN": (of["HesScaleGN"], of["GGN"]), "|diag(G)|": (zero, of["GGN"])}
        pieces.append({method: _l1(*pair) for method, pair in pairs.items()})
    return {method: torch.cat([piece[method] for piece in pieces]).numpy() for method in pieces[0]}


def _l1(a, b):
    return torch.stack([(a_l - b_l).abs().sum((1, 2)) for a_l, b_l in zip(a, b, strict=True)], 1)
