"""HesScale for reinforcement learning: the mathematics shared by the agents.

Elsayed, Farrahi, Dangel and Mahmood, "Revisiting Scalable Hessian Diagonal Approximations for
Applications in Reinforcement Learning", ICML 2024. Section, equation and algorithm numbers are theirs.

    1. TanhMLP      a network that backpropagates a gradient and a Hessian diagonal by hand (Section 3)
    2. losses       exact gradient and Hessian diagonal at the network's output (Appendices B and C)
    3. optimizers   SGD, Adam, AdaHessian, AdaHesScale, AdaHesScaleGN and step-size scaling (Section 5)

Parts 1 and 2 take numpy arrays or torch tensors and give back what they took. numpy is the fast way on a
CPU, because networks this small cost dispatch rather than arithmetic; torch is the way on a GPU.
"""

import itertools
import math
from collections import namedtuple

import numpy as np
import torch
from torch import nn

LOG_2PI = math.log(2 * math.pi)
BLOCK = 2**16  # of a parameter vector that an optimizer goes through at a time, to stay in the processor's cache
NUMPY_DTYPES = torch.float32, torch.float64  # of parameters on the CPU that the optimizers leave to numpy


def _namespace(*arrays):
    """Return numpy or torch, whichever all `arrays` belong to: they spell everything used below alike."""
    kinds = {*map(type, arrays)}
    if all(issubclass(kind, np.ndarray) for kind in kinds):
        return np
    if all(issubclass(kind, torch.Tensor) for kind in kinds):
        return torch
    names = ", ".join(type(a).__name__ for a in arrays)
    raise TypeError(f"expected only numpy arrays or only torch tensors, got {names}")


def _product(array):
    """The matrix product for arrays like this one: on small matrices np.dot takes 0.3 us less than np.matmul."""
    return np.dot if isinstance(array, np.ndarray) else torch.matmul


def _constant(array):
    """The array without autograd's graph."""
    return array.detach() if isinstance(array, torch.Tensor) else array


def _tensors(kind, params):
    """The parameters' "data", "grad" or "hess"; what is not there yet is made."""
    for p in params:
        if getattr(p, kind, None) is None:
            setattr(p, kind, torch.zeros_like(p, requires_grad=False))
    return [getattr(p, kind) for p in params]


def set_derivatives(parameter, grad, hess):
    """Copy a loss's derivatives, numpy arrays or torch tensors, into `parameter.grad` and `parameter.hess`."""
    if parameter.grad is None or getattr(parameter, "hess", None) is None:
        _tensors("grad", [parameter]), _tensors("hess", [parameter])
    if isinstance(grad, np.ndarray):
        parameter.grad.numpy()[:], parameter.hess.numpy()[:] = grad, hess
    else:
        parameter.grad.copy_(grad), parameter.hess.copy_(hess)


def _check_shapes(**shapes):
    """Raise ValueError where an array's shape is none of the accepted ones, given as name=(array, *accepted)."""
    for name, (array, *accepted) in shapes.items():
        if tuple(array.shape) not in accepted:
            wanted = " or ".join(str(list(shape)) for shape in accepted)
            raise ValueError(f"{name} has shape {list(array.shape)}; expected {wanted}")


# ---- 1. HesScale backpropagation (Section 3, Algorithm 1) --------------------------------------------------


class TanhMLP(nn.Module):
    """A multilayer perceptron with tanh hidden layers and a linear output, and its HesScale backward pass.

    Weights are orthogonal with gain sqrt(2), with `output_gain` at the output; biases are zero.

    Args:
        in_features: size of an input.
        hidden_features: size of each hidden layer, e.g. (64, 64); () gives a linear map.
        out_features: size of an output.
        output_gain: gain of the output layer's orthogonal initialization.

    Raises:
        ValueError: a size is not a positive integer.
    """

    def __init__(self, in_features, hidden_features, out_features, output_gain=1.0):
        super().__init__()
        sizes = [in_features, *hidden_features, out_features]
        if not all(isinstance(n, (int, np.integer)) and n > 0 for n in sizes):
            raise ValueError(f"layer sizes must be positive integers, got {sizes}")
        self.layers = nn.ModuleList(nn.Linear(m, n) for m, n in itertools.pairwise(sizes))
        for layer in self.layers:
            last = layer is self.layers[-1]
            nn.init.orthogonal_(layer.weight, output_gain if last else math.sqrt(2))
            nn.init.zeros_(layer.bias)
        # changed in place and never assigned, because nn.Module's look-ups and assignments cost more than a layer
        self._layer_params = [layer._parameters for layer in self.layers]
        self._inputs = []  # of each layer, kept by forward for backward
        self._arrays = {}

    def forward(self, x):
        """Return the output [B, out] for `x` [B, in]; differentiable by autograd if `x` is a tensor.

        Raises:
            ValueError: `x` is not [B, in].
            TypeError: `x` is a numpy array of another dtype than the parameters.
        """
        params, product = self._params(), _product(x)
        if product is np.dot:
            params = self._numpy("data", params)
            if x.dtype != params[0].dtype:
                raise TypeError(f"input is {x.dtype} but the parameters are {params[0].dtype}: convert one of them")
        if x.ndim != 2 or x.shape[1] != params[0].shape[1]:
            raise ValueError(f"input has shape {list(x.shape)}; expected [B, {params[0].shape[1]}]")
        tanh = np.tanh if product is np.dot else torch.tanh
        self._inputs[:] = [_constant(x)]
        for i in range(0, len(params) - 2, 2):
            x = tanh(product(x, params[i].T) + params[i + 1])
            self._inputs.append(_constant(x))
        return product(x, params[-2].T) + params[-1]

    def backward(self, grad_output, hess_output, gauss_newton=False):
        """Leave the gradient in `.grad` and the HesScale diagonal in `.hess` of every parameter.

        Overwrites both; nothing accumulates. The loss is that of the last call of forward.

        Args:
            grad_output: dL/da_L [B, out], the loss's derivative with respect to the output.
            hess_output: d2L/da_L^2 [B, out], the exact diagonal at the output; None for the gradient alone.
                A loss that is a mean over the batch has its 1/B in both.
            gauss_newton: drop the last term of Eq. 4 (HesScaleGN).

        Raises:
            RuntimeError: forward has not been called.
            ValueError: a shape is not that of the output.
            TypeError: `grad_output` and `hess_output` are not what forward got (numpy array or tensor).
        """
        if not self._inputs:
            raise RuntimeError("TanhMLP.backward needs the activations of a forward pass: call forward first")
        second_order = hess_output is not None
        g, h = _constant(grad_output), _constant(hess_output if second_order else grad_output)
        xp = _namespace(self._inputs[0], g, h)
        params = self._params()
        shape = len(self._inputs[0]), len(params[-1])
        _check_shapes(grad_output=(g, shape), hess_output=(h, shape))
        get = self._numpy if xp is np else _tensors
        weights, grads, hesses = get("data", params), get("grad", params), get("hess", params) if second_order else None

        product = _product(g)
        ones = xp.ones_like(g[:, 0])  # sums over the batch by a product, at a third of the cost of a sum
        for i in reversed(range(len(self._inputs))):
            weight, x = weights[2 * i], self._inputs[i]
            product(g.T, x, out=grads[2 * i])  # Eq. 1, summed over the batch
            product(g.T, ones, out=grads[2 * i + 1])
            if second_order:
                x_squared = x * x
                product(h.T, x_squared, out=hesses[2 * i])  # Eq. 3
                product(h.T, ones, out=hesses[2 * i + 1])
            if i == 0:
                break
            # x = tanh(a) of the layer below, so sigma' = 1 - x^2 and sigma'' = -2 x sigma'
            slope = 1 - (x_squared if second_order else x * x)
            g = product(g, weight)  # Eq. 2
            g *= slope
            if second_order:
                h = product(h, weight * weight)  # Eq. 4
                h *= slope
                h *= slope
                if not gauss_newton:
                    h -= 2 * x * g

    def _params(self):
        """Weight, bias, weight, bias, ... as they are now: functional_call and others put in their own."""
        return [p for layer in self._layer_params for p in layer.values()]

    def _numpy(self, kind, params):
        """The parameters ("data"), their `.grad` or their `.hess` as numpy arrays that share the memory.

        To see that the views made last time still hold costs less than to make 18 new ones for each minibatch.
        """
        try:
            tensors = params if kind == "data" else [getattr(p, kind) for p in params]
            pointers = [t.data_ptr() for t in tensors]
        except AttributeError:  # before the first backward pass
            _tensors(kind, params)
            return self._numpy(kind, params)
        if self._arrays.get(kind, (None,))[0] != pointers:
            arrays = [t.detach().numpy() for t in tensors]
            if kind == "data":  # biases as [1, n], which numpy adds to [1, n] twice as fast as it adds [n]
                arrays = [np.atleast_2d(array) for array in arrays]
            self._arrays[kind] = pointers, arrays
        return self._arrays[kind][1]

    def __getstate__(self):
        return self.__dict__ | {"_arrays": {}, "_inputs": []}  # a copy makes views of its own memory


# ---- 2. Losses: exact derivatives with respect to the network's output (Appendices B and C) ----------------
#
# With s the score, d log q / d theta, and c the curvature, d2 log q / d theta^2, a policy-gradient loss
# -A log q has the derivatives -A s and -A c. A ratio r = q / q_old has r s and r (s^2 + c), because r' = r s.
# Every function raises ValueError for shapes that do not fit, and TypeError for numpy and torch mixed. Given
# tensors, its loss can be differentiated by autograd; the derivatives that it returns are constants.


class GaussianLoss(namedtuple("GaussianLoss", "loss grad_mean hess_mean grad_log_std hess_log_std")):
    """Beside these five, `log_prob` [B] is what the actions' log-density was."""


class SoftmaxLoss(namedtuple("SoftmaxLoss", "loss grad_logits hess_logits")):
    """Beside these three, `log_prob` [B] is what the actions' log-probability was."""


ValueLoss = namedtuple("ValueLoss", "loss grad_value hess_value")


def gaussian_log_prob(mean, log_std, actions):
    """Log-density [B] of `actions` [B, A] under N(mean, exp(log_std)^2), summed over the A dimensions."""
    return _gaussian(_namespace(mean, log_std, actions), mean, log_std, actions)[0]


def gaussian_entropy(mean, log_std):
    """Entropy of the policy, summed over the A dimensions and averaged over the batch."""
    return (log_std + 0.5 * (LOG_2PI + 1)).sum(-1).mean()


def gaussian_policy_gradient_loss(mean, log_std, actions, advantages, ent_coef=0.0):
    """Policy-gradient loss, the mean over the batch of -A log q(a) - ent_coef * entropy (App. B.2, C.1).

    Args:
        mean: the policy's mean [B, A].
        log_std: logarithm of its standard deviation, [A] if the batch shares it or [B, A].
        actions: the actions taken, [B, A].
        advantages: [B].
        ent_coef: coefficient of the entropy bonus.

    Returns a GaussianLoss: the mean loss, and its derivatives in the shapes of `mean` and `log_std`.
    """
    xp = _namespace(mean, log_std, actions, advantages)
    _check_gaussian(mean, log_std, actions, advantages=advantages)
    log_prob, *derivatives = _gaussian(xp, mean, log_std, actions)
    loss, weight = _policy_gradient(log_prob, advantages)
    return _gaussian_loss(loss, weight, derivatives, log_prob, log_std, ent_coef)


def gaussian_ppo_loss(mean, log_std, actions, old_log_probs, advantages, clip_coef, ent_coef=0.0):
    """PPO's surrogate, the mean of -min(r A, clip(r, 1-c, 1+c) A) - ent_coef * entropy (App. C.3).

    A sample whose clipped branch is the smaller one, with r outside the interval, contributes nothing.

    Args: those of gaussian_policy_gradient_loss, and
        old_log_probs: the actions' log-densities [B] under the policy that took them.
        clip_coef: c, the half-width of the interval.

    Returns a GaussianLoss: the mean loss, and its derivatives in the shapes of `mean` and `log_std`.
    """
    xp = _namespace(mean, log_std, actions, old_log_probs, advantages)
    _check_gaussian(mean, log_std, actions, old_log_probs=old_log_probs, advantages=advantages)
    log_prob, *derivatives = _gaussian(xp, mean, log_std, actions)
    loss, weight = _surrogate(xp, log_prob, old_log_probs, advantages, clip_coef)
    derivatives = [(s, s * s + c) for s, c in derivatives]
    return _gaussian_loss(loss, weight, derivatives, log_prob, log_std, ent_coef)


def softmax_log_prob(logits, actions):
    """Log-probability [B] of `actions`, integers [B], under a softmax of `logits` [B, C]."""
    return _softmax(_namespace(logits, actions), logits, actions)[0]


def softmax_entropy(logits):
    """Entropy of the policy, averaged over the batch."""
    log_q = _log_softmax(_namespace(logits), logits)
    return -(_namespace(logits).exp(log_q) * log_q).sum(-1).mean()


def softmax_policy_gradient_loss(logits, actions, advantages, ent_coef=0.0):
    """Policy-gradient loss, the mean over the batch of -A log q_a - ent_coef * entropy (App. B.1, C.1).

    Args:
        logits: [B, C], of a softmax policy over C actions.
        actions: the actions taken, integers [B].
        advantages: [B].
        ent_coef: coefficient of the entropy bonus.

    Returns a SoftmaxLoss: the mean loss, and its derivatives in the shape of `logits`.
    """
    xp = _namespace(logits, actions, advantages)
    _check_softmax(logits, actions=actions, advantages=advantages)
    log_prob, score, curvature = _softmax(xp, logits, actions)
    loss, weight = _policy_gradient(log_prob, advantages)
    return _softmax_loss(xp, loss, log_prob, logits, weight * score, weight * curvature, ent_coef)


def softmax_ppo_loss(logits, actions, old_log_probs, advantages, clip_coef, ent_coef=0.0):
    """PPO's surrogate for a softmax policy: gaussian_ppo_loss with `logits` [B, C] and `actions`, integers [B].

    Returns a SoftmaxLoss: the mean loss, and its derivatives in the shape of `logits`.
    """
    xp = _namespace(logits, actions, old_log_probs, advantages)
    _check_softmax(logits, actions=actions, old_log_probs=old_log_probs, advantages=advantages)
    log_prob, score, curvature = _softmax(xp, logits, actions)
    loss, weight = _surrogate(xp, log_prob, old_log_probs, advantages, clip_coef)
    return _softmax_loss(xp, loss, log_prob, logits, weight * score, weight * (score * score + curvature), ent_coef)


def cross_entropy_loss(logits, targets):
    """Cross-entropy of a softmax, the mean over the batch of -log q_target (App. B.1).

    Args:
        logits: [B, C].
        targets: the classes, integers [B].

    Returns a SoftmaxLoss: the mean loss, and its derivatives q - p and q - q^2 in the shape of `logits`.
    """
    xp = _namespace(logits, targets)
    _check_softmax(logits, targets=targets)
    log_prob, score, curvature = _softmax(xp, logits, targets)
    return _softmax_loss(xp, -log_prob.mean(), log_prob, logits, score / -len(logits), curvature / -len(logits), 0.0)


def value_loss(value, returns, old_value=None, clip_coef=None):
    """Half the squared error, the mean over the batch of 1/2 (v - R)^2 (App. C.2).

    With `old_value` and `clip_coef`, PPO's clipped 1/2 max((v - R)^2, (v_clip - R)^2), where v_clip is v kept
    within clip_coef of old_value.

    Args:
        value: the critic's output, [B] or [B, 1].
        returns: its targets, in the same shape.
        old_value: the values at the time of the rollout, in the same shape.
        clip_coef: how far from `old_value` a value may move.

    Returns a ValueLoss: the mean loss, and its derivatives in the shape of `value`.
    """
    if (old_value is None) != (clip_coef is None):
        raise ValueError("value_loss needs old_value and clip_coef together or neither")
    old_value = returns if old_value is None else old_value
    xp, batch, shape = _namespace(value, returns, old_value), len(value), tuple(value.shape)
    _check_shapes(value=(value, (batch,), (batch, 1)), returns=(returns, shape), old_value=(old_value, shape))
    error, hess = value - returns, xp.full_like(value, 1 / batch)
    squared = error * error
    if clip_coef is not None:
        step = value - old_value
        clipped_error = old_value + xp.clip(step, -clip_coef, clip_coef) - returns
        unclipped = (abs(step) <= clip_coef) | (squared >= clipped_error * clipped_error)
        squared, hess = xp.maximum(squared, clipped_error * clipped_error), unclipped * hess
    return ValueLoss(0.5 / batch * squared.sum(), _constant(error) * hess, hess)


def _gaussian(xp, mean, log_std, actions):
    """Log-density [B]; and (score, curvature), each [B, A], with respect to the mean and to log_std."""
    inv_std = xp.exp(-log_std)
    standardized = (actions - mean) * inv_std
    z = standardized * standardized
    log_prob = -0.5 * z.sum(-1) - (log_std + 0.5 * LOG_2PI).sum(-1)
    standardized, z, inv_std = _constant(standardized), _constant(z), _constant(inv_std)
    return log_prob, (standardized * inv_std, -inv_std * inv_std), (z - 1, -2 * z)


def _log_softmax(xp, logits):
    shifted = logits - _constant(xp.amax(logits, -1)[:, None])
    return shifted - xp.log(xp.exp(shifted).sum(-1))[:, None]


def _softmax(xp, logits, actions):
    """Log-probability [B]; score e_a - q and curvature q^2 - q, each [B, C], with respect to the logits."""
    log_q, rows = _log_softmax(xp, logits), xp.arange(len(logits))
    q = xp.exp(_constant(log_q))
    score = -q
    score[rows, actions] += 1
    return log_q[rows, actions], score, q * q - q


def _policy_gradient(log_prob, advantages):
    """Mean of -A log q, and -A / B [B, 1], which multiplies score and curvature."""
    weight = advantages / -len(advantages)
    return (log_prob * weight).sum(), weight[:, None]


def _surrogate(xp, log_prob, old_log_probs, advantages, clip_coef):
    """Mean of PPO's loss, and -A r / B [B, 1], zero where clipped, which multiplies s and s^2 + c."""
    # min(r A, clip(r, 1-c, 1+c) A) is r A up to a limit, (1+c) A or where A is negative (1-c) A
    surrogate, limit = xp.exp(log_prob - old_log_probs) * advantages, advantages + clip_coef * abs(advantages)
    unclipped = xp.where(surrogate <= limit, _constant(surrogate), 0.0)  # no product, for r may be infinite
    return -xp.minimum(surrogate, limit).sum() / len(limit), (unclipped / -len(limit))[:, None]


def _gaussian_loss(loss, weight, derivatives, log_prob, log_std, ent_coef):
    """Weigh the derivatives, sum over the batch those of a log_std that it shares, and add the entropy bonus."""
    (grad_mean, hess_mean), of_log_std = derivatives
    of_log_std = [weight[:, 0] @ d if log_std.ndim == 1 else weight * d for d in of_log_std]
    if ent_coef:  # the entropy is log_std plus a constant
        loss = loss - ent_coef * gaussian_entropy(log_prob, log_std)
        of_log_std[0] = of_log_std[0] - ent_coef / (len(log_prob) if log_std.ndim == 2 else 1)
    result = GaussianLoss(loss, weight * grad_mean, weight * hess_mean, *of_log_std)
    result.log_prob = _constant(log_prob)
    return result


def _softmax_loss(xp, loss, log_prob, logits, grad, hess, ent_coef):
    """Add the entropy bonus: with e = log q + H, dH = -q e and d2H = -q ((1 - 2q) e + 1 - q)."""
    if ent_coef:
        loss = loss - ent_coef * softmax_entropy(logits)
        log_q = _log_softmax(xp, _constant(logits))
        q, weight = xp.exp(log_q), ent_coef / len(logits)
        e = log_q - (q * log_q).sum(-1)[:, None]
        grad, hess = grad + weight * q * e, hess + weight * q * ((1 - 2 * q) * e + 1 - q)
    result = SoftmaxLoss(loss, grad, hess)
    result.log_prob = _constant(log_prob)
    return result


def _check_gaussian(mean, log_std, actions, **per_sample):
    batch, dims = len(mean), mean.shape[-1]
    _check_shapes(mean=(mean, (batch, dims)), actions=(actions, (batch, dims)))
    _check_shapes(log_std=(log_std, (dims,), (batch, dims)), **{k: (v, (batch,)) for k, v in per_sample.items()})


def _check_softmax(logits, **per_sample):
    batch = len(logits)
    _check_shapes(logits=(logits, (batch, logits.shape[-1])), **{k: (v, (batch,)) for k, v in per_sample.items()})


# ---- 3. Optimizers (Section 5) -----------------------------------------------------------------------------


class ScaledOptimizer(torch.optim.Optimizer):
    """The frame of the optimizers: the update u that one of them would make, scaled by a trust region.

        W <- W - eta u    where eta = 1, or with a trust region of radius `delta` (Algorithm 3)
                          eta = min(1, sqrt(2 delta / h)), h = sum sqrt(V^) u^2

    V is the moving average, with decay rate beta2, of the squared Hessian diagonal in `.hess`, and V^ is
    V / (1 - beta2^t). h sums over all parameters: an optimizer is one trust region, so give the actor and the
    critic one each.

    A step costs its number of operations, not their size. So a group's parameters, gradients, diagonals and
    moments are moved into one flat vector each, and become views of it: 15 operations instead of 15 for each
    tensor, and on the CPU numpy's, which cost half as much as torch's. Parameters move when the optimizer is
    made, the rest at the first step.

    Args:
        params: parameters or parameter groups, each group of one dtype and device.
        lr: step size, alpha in the paper.
        betas: decay rates of the moving averages.
        eps: positive, so that a zero curvature never divides by zero.
        delta: radius of the trust region; None for no step-size scaling.

    Attributes:
        eta: the scale of the last step.
        trust_region: h of the last step, before scaling; None without `delta`.

    Raises:
        ValueError: an argument out of its range.
        RuntimeError: in step, a parameter without `.grad`, or without the `.hess` that this optimizer needs.
        FloatingPointError: in step, an update that is not finite. The parameters are left as they were.
    """

    base_name, moments = None, ()
    divides_by_hess = False  # `.hess` is the second moment, whose average exp_avg_sq is then V
    gauss_newton = hutchinson = False  # the diagonal to put into `.hess`; HesScale's if neither
    eta, trust_region = 1.0, None

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-8, delta=None):
        self._flat = []
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, delta=delta, step=0))

    def _direction(self, xp, flat, group):
        """Update the moments; return u / scale in flat["u"], sqrt(V) of the second moment or None, and scale."""
        raise NotImplementedError

    @property
    def delta(self):
        return self.param_groups[0]["delta"]

    @property
    def name(self):
        return self.base_name if self.delta is None else f"scaled-{self.base_name}"

    @property
    def needs_hess(self):
        """Whether a step reads `.hess`."""
        return self.divides_by_hess or self.delta is not None

    def add_param_group(self, param_group):
        group = self.defaults | param_group
        lr, betas, eps, delta = group["lr"], group["betas"], group["eps"], group["delta"]
        if not 0 <= lr < math.inf:
            raise ValueError(f"lr={lr}: the step size must be a number >= 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas}: both must be in [0, 1)")
        if not 0 < eps < math.inf:
            raise ValueError(f"eps={eps}: must be > 0, or a zero curvature would divide by zero")
        if delta is not None and not 0 < delta < math.inf:
            raise ValueError(f"delta={delta}: the trust region must be > 0; None turns step-size scaling off")
        if self.param_groups and delta != self.delta:
            raise ValueError(f"delta={delta}: an optimizer is one trust region, here of {self.delta}")
        super().add_param_group(param_group)
        if len({(p.dtype, p.device) for p in self.param_groups[-1]["params"]}) > 1:
            raise ValueError("the parameters of a group must share one dtype and device: make a group for each")
        self._flat.append(self._lay_out(self.param_groups[-1]))

    @torch.no_grad()
    def _lay_out(self, group):
        """Move a group's parameters and moments into flat vectors; return their blocks, and the views into them."""
        params, moments = group["params"], [*self.moments]
        if group["delta"] is not None and not self.divides_by_hess:
            moments.append("exp_avg_hess_sq")  # V
        dtype, device, sizes = params[0].dtype, params[0].device, [p.numel() for p in params]
        in_numpy = device.type == "cpu" and dtype in NUMPY_DTYPES
        flat, views = {}, {}
        for kind in ["data", "grad", "hess", *moments, "u"]:
            vector = torch.zeros(sum(sizes), dtype=dtype, device=device)
            views[kind] = [part.view(p.shape) for part, p in zip(vector.split(sizes), params, strict=True)]
            flat[kind] = vector.numpy() if in_numpy else vector
        for i, p in enumerate(params):
            p.data = views["data"][i].copy_(p.data)
            for kind in moments:
                view = views[kind][i]
                self.state[p][kind] = view.copy_(self.state[p][kind]) if kind in self.state[p] else view
        pointers = [p.data_ptr() for p in params]
        starts = range(0, sum(sizes), BLOCK)
        blocks = [{kind: vector[i : i + BLOCK] for kind, vector in flat.items()} for i in starts]
        root = _namespace(flat["u"]).zeros_like(flat["u"][:BLOCK])  # one for all blocks, which use it in turn
        blocks = [block | {"root": root[: len(block["u"])]} for block in blocks]
        return blocks, list(zip(params, pointers, views["grad"], views["hess"], strict=True))

    def _gather(self, i):
        """Return the blocks of group i's flat vectors, after moving in whatever has come to lie outside them."""
        blocks, views = self._flat[i]
        if any(p.data_ptr() != pointer for p, pointer, _, _ in views):
            blocks, views = self._flat[i] = self._lay_out(self.param_groups[i])
        needs_hess = self.needs_hess
        for p, _, grad, hess in views:
            if p.grad is not grad:
                p.grad = self._move(p.grad, grad, "grad")
            if needs_hess and (outside := getattr(p, "hess", None)) is not hess:
                p.hess = self._move(outside, hess, "hess")
        return blocks

    def _move(self, outside, view, kind):
        if outside is None:
            shape = list(view.shape)
            raise RuntimeError(f"{self.name}: a parameter of shape {shape} has no .{kind}: call backward first")
        return view.copy_(outside.detach())

    def step(self, closure=None):
        """Make one update from `.grad` and `.hess`; a `closure` is called first and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update()
        return loss

    @np.errstate(all="ignore")  # what is not finite is raised below
    def update(self):
        """The step without what torch puts around `step`: a profiler's range and a look for hooks.

        They take longer than the arithmetic of a 64-64 network.
        """
        delta, h, updates = self.delta, 0.0, []
        for i, group in enumerate(self.param_groups):
            blocks = self._gather(i)
            group["step"] += 1
            for flat in blocks:
                xp = np if isinstance(flat["data"], np.ndarray) else torch
                u, root, scale = self._direction(xp, flat, group)
                if delta is not None and not self.divides_by_hess:
                    root = _root_of_average(xp, flat, "exp_avg_hess_sq", "hess", group["betas"][1])
                # without a trust region h still tells whether every moment and update is finite
                weighted = u if root is None else xp.multiply(root, u, out=root)
                h += float(weighted @ u) * scale * scale / _root_correction(group)
                updates.append((flat["data"], u, scale))
        if not math.isfinite(h):
            group = self.param_groups[0]
            raise FloatingPointError(
                f"{self.name} with lr={group['lr']:g}: the update of step {group['step']} is not finite; "
                "the parameters are left as they were"
            )
        if delta is not None:
            self.trust_region = h
            self.eta = min(1.0, math.sqrt(2 * delta / h)) if h > 0 else 1.0
        for data, u, scale in updates:
            u *= scale * self.eta
            data -= u

    def __setstate__(self, state):
        super().__setstate__(state)  # of load_state_dict, a copy or a pickle: tensors outside the flat vectors
        self._flat = [self._lay_out(group) for group in self.param_groups]


def _move_average(xp, average, x, beta, scratch):
    """average <- beta average + (1 - beta) x, where `x` may be `scratch` itself."""
    xp.multiply(x, 1 - beta, out=scratch)
    average *= beta
    average += scratch


def _root_of_average(xp, flat, average, d, beta):
    """Move the average of d^2 on, and return its square root."""
    root = flat["root"]
    _move_average(xp, flat[average], xp.multiply(flat[d], flat[d], out=root), beta, root)
    return xp.sqrt(flat[average], out=root)


def _root_correction(group):
    """What divides sqrt(V) to give sqrt(V^): one number, where sqrt(V^) itself would be another vector."""
    return math.sqrt(1 - group["betas"][1] ** group["step"])


class SGD(ScaledOptimizer):
    """u = lr g."""

    base_name = "sgd"

    def _direction(self, xp, flat, group):
        flat["u"][:] = flat["grad"]
        return flat["u"], None, group["lr"]


class Adam(ScaledOptimizer):
    """Adam: with d = g, the gradient in `.grad`, or in the classes below d = `.hess` (Algorithm 2),

    M <- beta1 M + (1 - beta1) g,    V <- beta2 V + (1 - beta2) d^2,    u = lr M^ / (sqrt(V^) + eps).
    """

    base_name, moments = "adam", ("exp_avg", "exp_avg_sq")

    def _direction(self, xp, flat, group):
        (beta1, beta2), correction, u = group["betas"], _root_correction(group), flat["u"]
        _move_average(xp, flat["exp_avg"], flat["grad"], beta1, u)
        root = _root_of_average(xp, flat, "exp_avg_sq", "hess" if self.divides_by_hess else "grad", beta2)
        xp.divide(flat["exp_avg"], xp.add(root, group["eps"] * correction, out=u), out=u)
        return u, root, group["lr"] * correction / (1 - beta1 ** group["step"])


class AdaHesScale(Adam):
    """Adam's form with the squared HesScale diagonal as second moment (Algorithm 2)."""

    base_name, divides_by_hess = "adahesscale", True


class AdaHesScaleGN(AdaHesScale):
    """AdaHesScale on HesScaleGN's diagonal, that of TanhMLP.backward(..., gauss_newton=True)."""

    base_name, gauss_newton = "adahesscalegn", True


class AdaHessian(AdaHesScale):
    """AdaHesScale on Hutchinson's estimate of the diagonal (Yao et al. 2021), that of `hutchinson`.

    Its trust region is measured with that estimate too, as its second moment is: E[(z * Hz)_i^2] is the sum of
    row i's squares and not H_ii^2 alone, so that the off-diagonal shortens its steps.
    """

    base_name, hutchinson = "adahessian", True


def hutchinson(loss, params):
    """Leave the gradient in `.grad` and z * (Hz), with one Rademacher sample z, in `.hess` of every parameter.

    z * (Hz) is an unbiased estimate of the Hessian's diagonal (Section 2). It takes two backward passes of
    autograd, the second through the first. `loss` is a scalar tensor, `params` the parameters of its network.
    """
    params = list(params)
    grads = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
    z = [torch.randint(0, 2, p.shape, device=p.device).to(p.dtype) * 2 - 1 for p in params]
    products = torch.autograd.grad(grads, params, z, materialize_grads=True)
    for p, grad, z_p, product in zip(params, grads, z, products, strict=True):
        p.grad, p.hess = grad.detach(), z_p * product


_CLASSES = {cls.base_name: cls for cls in (SGD, Adam, AdaHessian, AdaHesScale, AdaHesScaleGN)}
OPTIMIZERS = (*_CLASSES, *(f"scaled-{name}" for name in _CLASSES))


def make_optimizer(name, params, lr, *, betas=(0.9, 0.999), eps=1e-8, delta=1e-8):
    """Build the optimizer of that name in OPTIMIZERS; only the scaled ones use `delta`.

    Raises:
        ValueError: an unknown name, or an argument out of its range.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}: choose one of {', '.join(OPTIMIZERS)}")
    scaled = name.startswith("scaled-")
    return _CLASSES[name.removeprefix("scaled-")](params, lr, betas, eps, delta if scaled else None)
