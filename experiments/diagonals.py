"""The Hessian diagonals that Section 4 compares, of a TanhMLP's loss with respect to the network's parameters.

Weights enter the loss only through a = W x + b, so that for one sample d2L/dW_ij^2 = d2L/da_i^2 x_j^2 (Eq. 3), exactly.
So each method only has to compute its diagonal in the pre-activations a: the exact one and GGN with torch.func,
HesScale, HesScaleGN and BL89 with TanhMLP.backward. AdaHessian alone works on the parameters themselves, by z * (Hz).

All arrays hold G groups of B samples. A group has its own parameters, and its loss is the mean over its batch, as an
optimizer sees it. For H, GGN, HesScale, HesScaleGN and BL89, the diagonal of this mean is the mean of the samples'
diagonals, and GGN-MC draws its vectors for each sample. But g^2 is (mean g)^2, and AdaHessian draws one Rademacher
vector for the whole batch.

    params   (W_1, b_1, ..., W_L, b_L), each [G, ...]
    x        [G, B, in]
    targets  the loss's arguments after the network's output, each [G, B, ...]
    layer    a layer's diagonal, [G, out, in + 1], with the bias in the last column

To import this module makes the repository's modules importable from experiments/.
"""

import sys
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.func import grad, hessian, jacrev, jvp, vmap

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
from hesscale_core import (
    Gaussian,
    TanhMLP,
    cross_entropy_loss,
    policy_gradient_loss,
    ppo_loss,
    value_loss,
)
from hesscale_utils import check_installed

for package in "matplotlib", "scipy", "sklearn":  # here, since every experiment imports this file first
    check_installed(package, "experiments/", "requirements-study.txt")
from drawing import COLORS

GROUPS = 64  # groups of one sample computed at a time, fewer of larger batches: takes a few hundred MB
PIECE = 10  # AdaHessian's samples computed at a time, each a vector as long as the parameters

# markers tell the methods apart in greyscale, and where lines cross
METHODS = {
    "HesScale": dict(color=COLORS["vermilion"], marker="D"),
    "HesScaleGN": dict(color=COLORS["green"], marker="^"),
    "GGN": dict(color=COLORS["blue"], marker="s"),
    "GGN-MC50": dict(color=COLORS["sky"], marker="o"),
    "GGN-MC1": dict(color=COLORS["sky"], marker="o", markerfacecolor="white"),
    "BL89": dict(color=COLORS["orange"], marker="P"),
    "g²": dict(color=COLORS["grey"], marker="X"),
    "AdaHessian-MC50": dict(color=COLORS["purple"], marker="v"),
    "AdaHessian-MC1": dict(color=COLORS["purple"], marker="v", markerfacecolor="white"),
    "|diag(H)|": dict(color=COLORS["black"], marker="_"),  # the distance to zero, for reference
}


# ---- losses of one sample, written again so that the references share no code with the core ----------------------


def cross_entropy(logits, target):
    """Return -log q_target of one sample's logits [C]."""
    return -torch.log_softmax(logits, 0).gather(0, target[None])[0]


def _log_prob(mean, log_std, action):
    return torch.distributions.Normal(mean, log_std.exp(), validate_args=False).log_prob(action).sum()


def policy_gradient(mean, log_std, action, advantage):
    """Return -A log pi(a) of one sample's mean [A]."""
    return -advantage * _log_prob(mean, log_std, action)


def ppo(mean, log_std, action, old_log_prob, advantage, clip_coef):
    """Return -min(r A, clip(r, 1-c, 1+c) A) of one sample's mean [A]."""
    ratio = (_log_prob(mean, log_std, action) - old_log_prob).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantage)


def squared_error(value, returns):
    """Return 1/2 (v - R)^2 of one sample's value [1]."""
    return 0.5 * ((value - returns) ** 2).sum()


# ---- a loss's functions for the methods --------------------------------------------------------------------------


def bl89_hess_logits(logits, targets):
    """Return BL89's second derivative of the mean cross-entropy with respect to the logits [B, C].

    It is q_y - q_y^2 at the target y, and zero elsewhere. BL89 has no rule for a softmax loss. To BL89, softmax is one
    more layer, to whose input it applies Eq. 4; sigma' and sigma'' are the derivatives of q_i with respect to a_i
    alone, as if softmax were element-wise like other activations. The authors' experiment does so with log-softmax:
    sigma'_i = 1 - q_i and sigma''_i = q_i^2 - q_i, under a loss -log q_y whose second derivative is zero. Softmax
    itself, under a loss with the second derivative 1/q_y^2, gives the same.

    With a sum over all outputs k of the softmax layer instead, BL89 would be HesScale: the loss depends on q_y alone,
    so that Eq. 4 has no off-diagonal term to drop. A Gaussian policy's mean and a value are outputs of a linear layer,
    where BL89 is HesScale too.
    """
    q = np.exp(logits - logits.max(-1, keepdims=True))
    q /= q.sum(-1, keepdims=True)
    hess, rows = np.zeros_like(q), np.arange(len(q))
    hess[rows, targets] = (q - q * q)[rows, targets] / len(q)
    return hess


def label_vectors(output, hess_output, samples, generator):
    """Return GGN-MC's vectors for classification (Dangel et al. 2020b), as a list of (sign, vectors [G, B, S, C]).

    The vectors are the gradients q - e_y for labels y drawn from q.
    """
    q = torch.softmax(output, -1)
    labels = torch.multinomial(q.flatten(0, 1), samples, replacement=True, generator=generator)
    one_hot = torch.nn.functional.one_hot(labels, q.shape[-1]).view(*q.shape[:2], samples, -1)
    return [(1, q[:, :, None] - one_hot)]


def sign_vectors(output, hess_output, samples, generator):
    """Return GGN-MC's vectors for a loss whose Hessian Q diag(lambda) Q^T in the output may be indefinite.

    With random signs s, E[(J^T Q sqrt(lambda+) s)^2 - (J^T Q sqrt(-lambda-) s')^2] = diag(J^T H J). The estimate has no
    variance if the network has one output. Returns a list of (sign, vectors [G, B, S, out]).
    """
    eigenvalues, q = torch.linalg.eigh(hess_output)
    vectors = []
    for sign in (1, -1):
        factor = q * (sign * eigenvalues).clamp(min=0).sqrt()[..., None, :]
        s = _signs((*output.shape[:2], samples, output.shape[-1]), generator)
        vectors.append((sign, s @ factor.mT))
    return vectors


def core_policy_gradient(mean, log_std, actions, advantages):
    """Return the core's loss of the actor's output, the mean [B, A]."""
    return policy_gradient_loss(Gaussian(mean, log_std), actions, advantages)


def core_ppo(mean, log_std, actions, old_log_probs, advantages, clip_coef):
    """Return the core's loss of the actor's output, the mean [B, A]."""
    return ppo_loss(Gaussian(mean, log_std), actions, old_log_probs, advantages, clip_coef)


# sample: the loss of one output, for the references; core: the loss of a batch, with its derivatives;
# vectors: GGN-MC's vectors at the output; bl89: BL89's second derivative there, or None if it is the core's
Loss = namedtuple("Loss", "sample core vectors bl89")
CROSS_ENTROPY = Loss(cross_entropy, cross_entropy_loss, label_vectors, bl89_hess_logits)
POLICY_GRADIENT = Loss(policy_gradient, core_policy_gradient, sign_vectors, None)
VALUE = Loss(squared_error, value_loss, sign_vectors, None)


def ppo_with(clip_coef):
    """Return the Loss of PPO's actor."""
    return Loss(partial(ppo, clip_coef=clip_coef), partial(core_ppo, clip_coef=clip_coef), sign_vectors, None)


# ---- diagonals -----------------------------------------------------------------------------------------------


def _forward(params, x):
    """Return every layer's input and pre-activation for one sample."""
    inputs, preactivations = [], []
    for weight, bias in zip(params[::2], params[1::2], strict=True):
        inputs.append(x)
        preactivations.append(weight @ x + bias)
        x = torch.tanh(preactivations[-1])
    return inputs, preactivations


def _output(params, layer, a):
    """Return the network's output, given the pre-activation `a` of the layer with index `layer`."""
    for weight, bias in zip(params[2 * layer + 2 :: 2], params[2 * layer + 3 :: 2], strict=True):
        a = weight @ torch.tanh(a) + bias
    return a


def _hessians(sample_loss, params, x, targets):
    """Return the loss's full Hessian in every layer's pre-activations [n, n], for one sample."""

    def loss_from(layer):
        return lambda a: sample_loss(_output(params, layer, a), *targets)

    return [hessian(loss_from(layer))(a) for layer, a in enumerate(_forward(params, x)[1])]


def _per_sample(function, params, x, targets):
    """Return function(params, x, targets) of every sample in every group."""
    return vmap(vmap(function, (None, 0, 0)), (0, 0, 0))(params, x, targets)


def preactivation_hessians(loss, params, x, targets):
    """Return the exact Hessians of every sample's own loss in every layer's pre-activations, each [G, B, n, n]."""
    return _per_sample(partial(_hessians, loss.sample), params, x, targets)


def _linearized(sample_loss, params, x, targets):
    """Return two lists and three arrays for one sample.

    The lists hold every layer's input, and the output's Jacobian in its pre-activation [out, n]. The arrays are the
    output, and the loss's gradient and Hessian with respect to it.
    """
    inputs, preactivations = _forward(params, x)
    jacobians = [jacrev(partial(_output, params, layer))(a) for layer, a in enumerate(preactivations)]
    output = preactivations[-1]
    return inputs, jacobians, output, grad(sample_loss)(output, *targets), hessian(sample_loss)(output, *targets)


def _in_parameters(d, inputs):
    """Return the layer [G, out, in + 1], by Eq. 3 and the mean over the batch, of diagonals d [G, B, out] in a."""
    return torch.einsum("gbi,gbj->gij", d, _with_ones(inputs) ** 2) / d.shape[1]


def _with_ones(inputs):
    return torch.cat([inputs, torch.ones_like(inputs[..., :1])], -1)


def _signs(shape, generator):
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.float64).mul_(2).sub_(1)


def _layers(tensors):
    """Return alternating weights and biases as layers."""
    return [torch.cat([w, b[..., None]], -1) for w, b in zip(tensors[::2], tensors[1::2], strict=True)]


def adahessian(loss, params, x, targets, samples, generator):
    """Return the first of `samples` of z * (Hz), and the mean of all, each as layers; H is the mean loss's Hessian."""

    def batch_loss(params, x, targets):
        return vmap(lambda x, targets: loss.sample(_forward(params, x)[1][-1], *targets))(x, targets).mean()

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
    """Return the diagonals of HesScale, HesScaleGN and, if the loss has one, BL89, as {method: layers}."""
    sizes = [params[0].shape[-1], *(b.shape[-1] for b in params[1::2])]
    net = TanhMLP(sizes[0], sizes[1:-1], sizes[-1]).double()
    result = {}
    for g in range(len(x)):
        for p, values in zip(net.parameters(), params, strict=True):
            p.data.copy_(values[g])
        output, group_targets = net(x[g].numpy()), [t[g].numpy() for t in targets]
        batch_loss = loss.core(output, *group_targets)
        hess_output = {"HesScale": batch_loss.hess, "HesScaleGN": batch_loss.hess}
        if loss.bl89 is not None:
            hess_output["BL89"] = loss.bl89(output, *group_targets)
        for method, hess in hess_output.items():
            net.backward(batch_loss.grad, hess, gauss_newton=method == "HesScaleGN")
            result.setdefault(method, []).append(_layers([p.hess.clone() for p in net.parameters()]))
    return {method: [torch.stack(layer) for layer in zip(*groups, strict=True)] for method, groups in result.items()}


def diagonals(loss, params, x, targets, generator, samples=50):
    """Return the exact diagonal of every group's mean loss as "H", and those of all METHODS, as {method: layers}.

    Args:
        loss: a Loss.
        params, x, targets: arrays in float64; see the module's docstring.
        generator: a torch.Generator, for the stochastic methods.
        samples: number of samples that a stochastic method's MC50 averages.
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
        grad_a = torch.einsum("gbo,gboi->gbi", g, j)
        result["g²"].append((torch.einsum("gbi,gbj->gij", grad_a, _with_ones(x_l)) / x.shape[1]) ** 2)
    result["AdaHessian-MC1"], result["AdaHessian-MC50"] = adahessian(loss, params, x, targets, samples, generator)
    return result | core_diagonals(loss, params, x, targets)


def errors(loss, params, x, targets, generator, samples=50):
    """Return the L1 distance of every method's diagonal to the exact one, as {method: [G, layers]}.

    The arguments are those of `diagonals`. "|diag(H)|" is the distance of zero. The result also holds the distance
    "HesScaleGN to GGN" and, as "|diag(G)|", that of zero to GGN.
    """
    pieces, size = [], max(1, GROUPS // x.shape[1])
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        groups = tuple(p[part] for p in params), x[part], tuple(t[part] for t in targets)
        layers = diagonals(loss, *groups, generator, samples)
        exact, ggn = layers.pop("H"), layers["GGN"]
        zero = [0 * layer for layer in exact]
        pairs = {method: (diagonal, exact) for method, diagonal in layers.items()} | {"|diag(H)|": (zero, exact)}
        pairs |= {"HesScaleGN to GGN": (layers["HesScaleGN"], ggn), "|diag(G)|": (zero, ggn)}
        pieces.append({method: _l1(*pair) for method, pair in pairs.items()})
    return {method: torch.cat([piece[method] for piece in pieces]).numpy() for method in pieces[0]}


def _l1(a, b):
    return torch.stack([(a_l - b_l).abs().sum((1, 2)) for a_l, b_l in zip(a, b, strict=True)], 1)
