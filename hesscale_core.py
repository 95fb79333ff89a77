"""HesScale for reinforcement learning: the mathematics shared by the agents.

    1. TanhMLP      a network that backpropagates a gradient and a Hessian diagonal by hand (Section 3)
    2. losses       exact gradient and Hessian diagonal at the network's output (Appendices B and C)
    3. optimizers   SGD, Adam, AdaHessian, AdaHesScale, AdaHesScaleGN and step-size scaling (Section 5)

Numbers of sections, equations and algorithms are those of Elsayed et al., "Revisiting Scalable Hessian Diagonal
Approximations for Applications in Reinforcement Learning", ICML 2024. Parts 1 and 2 take numpy arrays, fast on a CPU,
or torch tensors, for a GPU, and return the same; they raise TypeError if these mix, ValueError if shapes do not fit.
"""

import itertools
import math
from collections import namedtuple

import numpy as np
import torch
from torch import nn

from hesscale_flat import FlatModule, KeptArrays, LightOptimizer, check_shapes, constant, namespace, refuse_autocast

LOG_2PI = math.log(2 * math.pi)

# ---- 1. HesScale backpropagation (Section 3, Algorithm 1) --------------------------------------------------


class TanhMLP(FlatModule):
    """A multilayer perceptron with tanh hidden layers, a linear output, and a HesScale backward pass.

    `hidden_features` are the sizes of the hidden layers, e.g. (64, 64). Weights are orthogonal with gain sqrt(2), and
    with `output_gain` at the output; biases are zero. With `log_std`, the network also holds a Gaussian policy's
    log_std [out], initially zero. Raises ValueError for a size that is not a positive integer.
    """

    def __init__(self, in_features, hidden_features, out_features, output_gain=1.0, log_std=False):
        super().__init__()
        sizes = [in_features, *hidden_features, out_features]
        if not all(isinstance(n, (int, np.integer)) and n > 0 for n in sizes):
            raise ValueError(f"layer sizes must be positive integers, got {sizes}")
        self.layers = nn.ModuleList(nn.Linear(m, n) for m, n in itertools.pairwise(sizes))
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight, output_gain if layer is self.layers[-1] else math.sqrt(2))
            nn.init.zeros_(layer.bias)
        self.register_parameter("log_std", nn.Parameter(torch.zeros(out_features)) if log_std else None)
        self.flatten()

    def current_parameters(self):
        """Return weight, bias, weight, bias, ..., log_std as they are now."""
        log_std = self._parameters["log_std"]
        try:  # by name, because pruning leaves other parameters
            modules = [layer._parameters for layer in self._modules["layers"]._modules.values()]
            return [p[name] for p in modules for name in ("weight", "bias")] + [log_std] * (log_std is not None)
        except KeyError as error:
            raise TypeError(f"a layer has no parameter {error}: undo the parametrization or pruning of it") from None

    def log_std_like(self, x):
        """Return a copy of log_std [out] of the kind of `x`: a policy made of it stays as it was after an update."""
        if self._parameters["log_std"] is None:
            raise ValueError("the network has no log_std: make it with log_std=True")
        return self.parameters_like(x)[-2].copy() if isinstance(x, np.ndarray) else self.log_std.clone()

    def forward(self, x):
        """Return the output [B, out] for `x` [B, in]; differentiable by autograd if `x` is a tensor.

        `x` is kept for backward, and not copied: write nothing into it before.
        """
        params = self.parameters_like(x)
        product, tanh = (np.dot, np.tanh) if isinstance(x, np.ndarray) else (torch.matmul, torch.tanh)
        if x.ndim != 2 or x.shape[1] != params[0].shape[1]:
            raise ValueError(f"input has shape {list(x.shape)}; expected [B, {params[0].shape[1]}]")
        inputs, last = self._inputs, 2 * len(self._modules["layers"]._modules) - 2
        inputs[:] = [x]  # nn.Module takes longer to assign an attribute than a layer takes
        for i in range(0, last, 2):
            x = tanh(product(x, params[i].T) + params[i + 1])
            inputs.append(x)
        return product(x, params[last].T) + params[last + 1]

    def hidden(self, x):
        """Return the activations of the hidden layers for `x` [B, in], each [B, n]."""
        self(x)
        return self._inputs[1:]

    def backward(self, grad_output, hess_output, gauss_newton=False, grad_log_std=None, hess_log_std=None):
        """Leave the gradient in .grad and the HesScale diagonal in .hess of every parameter (Algorithm 1).

        Overwrites both; nothing accumulates. The loss is that of the last call of forward (RuntimeError if there was
        none); `grad_output` and `hess_output` are its derivatives with respect to the output, dL/da_L and the exact
        diagonal d2L/da_L^2, [B, out], with the 1/B of a mean over the batch. A `hess_output` of None asks for the
        gradient alone; `gauss_newton` drops the last term of Eq. 4 (HesScaleGN) or, if it is "exact", gives the exact
        diagonal of the Gauss-Newton matrix of a network with one output, a critic; `grad_log_std` and `hess_log_std`
        are the derivatives with respect to the network's log_std, [out].
        """
        if not self._inputs:
            raise RuntimeError("TanhMLP.backward needs the activations of a forward pass: call forward first")
        if gauss_newton not in (False, True, "exact"):
            raise ValueError(f'gauss_newton={gauss_newton!r}: choose False, True or "exact"')
        second_order = hess_output is not None
        g, h, inputs = grad_output, hess_output, self._inputs
        h = h if second_order else g  # without a diagonal h only passes the checks
        xp = namespace(inputs[0], g, h)
        if xp is torch:
            refuse_autocast(g)
            self.follow_parameters()
            g, h, *inputs = map(constant, (g, h, *inputs))
        (params, grads, hesses), product = (self.arrays, np.dot) if xp is np else (self.tensors, torch.matmul)
        last = 2 * len(inputs) - 2
        check_shapes((len(inputs[0]), len(params[last])), grad_output=g, hess_output=h)
        if (self._parameters["log_std"] is None) != (grad_log_std is None):
            raise ValueError("grad_log_std and hess_log_std belong to a network with log_std, which needs them")
        if g.dtype != params[0].dtype or h.dtype != params[0].dtype:  # float64 targets make float64 derivatives
            g, h = (xp.asarray(d, dtype=params[0].dtype) for d in (g, h))
        exact = second_order and gauss_newton == "exact"
        if exact and (h.shape[1] != 1 or (h < 0).any()):
            raise ValueError('gauss_newton="exact" needs a network with one output, and no hess_output below zero')
        r = xp.sqrt(h) if exact else None  # r^2 = h: r is the output's own derivative, scaled
        ones = xp.ones_like(g[:, 0])
        for i in range(last, -1, -2):
            x = inputs[i // 2]
            product(g.T, x, out=grads[i])  # Eq. 1, summed over the batch
            product(g.T, ones, out=grads[i + 1])  # in a third of a sum's time
            if second_order:
                x_squared = x * x
                product(h.T, x_squared, out=hesses[i])  # Eq. 3
                product(h.T, ones, out=hesses[i + 1])
            if i == 0:
                break
            # x = tanh(a) of the layer below, so sigma' = 1 - x^2 and sigma'' = -2 x sigma'
            slope = 1 - (x_squared if second_order else x * x)
            g = product(g, params[i])  # Eq. 2
            g *= slope
            if exact:
                r = product(r, params[i])  # Eq. 2, of the output instead of the loss
                r *= slope
                h = r * r
            elif second_order:
                h = product(h, params[i] * params[i])  # Eq. 4
                h *= slope
                h *= slope
                if not gauss_newton:
                    h -= 2 * x * g
        if grad_log_std is not None:
            hess_log_std = hess_log_std if second_order else grad_log_std
            namespace(g, grad_log_std, hess_log_std)
            check_shapes(params[-2].shape, grad_log_std=grad_log_std, hess_log_std=hess_log_std)
            grads[-2][:], hesses[-2][:] = constant(grad_log_std), constant(hess_log_std)
        self.publish(None if not second_order else "GGN" if exact else "HesScaleGN" if gauss_newton else "HesScale")

    def log_std_hess_from_grad(self):
        """Put log_std's gradient, as clipped in place, in its .hess, so that its second moment is Adam's."""
        if self._parameters["log_std"] is None:
            raise ValueError("the network has no log_std: make it with log_std=True")
        _, grads, hesses = self.arrays or self.tensors
        hesses[-2][:] = grads[-2]  # the last is the whole vector


# ---- 2. Losses: exact derivatives with respect to the network's output (Appendices B and C) ----------------
#
# With s the score, d log q / d theta, and c the curvature, d2 log q / d theta^2, a policy-gradient loss
# -A log q has the derivatives -A s and -A c. A ratio r = q / q_old has r s and r (s^2 + c), because r' = r s.
# Given tensors, a loss can be differentiated by autograd; the derivatives that come with it are constants.

Loss = namedtuple("Loss", "loss grad hess")  # the derivatives have the output's shape
PolicyLoss = namedtuple("PolicyLoss", "loss grad hess grad_log_std hess_log_std log_prob")  # log_prob is the actions'


class Gaussian:
    """A policy of A independent Gaussians N(mean, exp(log_std)^2): mean [B, A], log_std [A] or [B, A] (App. B.2)."""

    def __init__(self, mean, log_std):
        self.xp, self.mean, self.log_std = namespace(mean, log_std), mean, log_std
        check_shapes((len(mean), mean.shape[-1]), mean=mean)
        check_shapes(mean.shape[-log_std.ndim :], log_std=log_std)

    def log_prob(self, actions):
        """Return the log-density [B] of `actions` [B, A]."""
        return self.derivatives(actions)[0]

    def entropy(self):
        """Return the entropy, averaged over the batch."""
        return (self.log_std + 0.5 * (LOG_2PI + 1)).sum(-1).mean()

    def kl(self, other):
        """Return the KL divergence KL(self || other) in nats, averaged over the batch."""
        growth, distance = other.log_std - self.log_std, (other.mean - self.mean) * self.xp.exp(-other.log_std)
        return (growth + 0.5 * (self.xp.expm1(-2 * growth) + distance * distance)).sum(-1).mean()

    def derivatives(self, actions):
        """Return log q [B], and two pairs of score and curvature, with respect to mean and to log_std.

        Each is [B, A], but for the curvature in the mean, -1 / std^2, which has log_std's shape.
        """
        namespace(self.mean, actions)
        check_shapes(self.mean.shape, actions=actions)
        inv_std = self.xp.exp(-self.log_std)
        standardized = (actions - self.mean) * inv_std
        z = standardized * standardized
        log_prob = -0.5 * z.sum(-1) - (self.log_std + 0.5 * LOG_2PI).sum(-1)
        standardized, z, inv_std = constant(standardized), constant(z), constant(inv_std)
        return log_prob, (standardized * inv_std, -inv_std * inv_std), (z - 1, -2 * z)

    def entropy_derivatives(self):
        """Return gradient and curvature of entropy() with respect to mean, and to log_std, with its 1/B."""
        return 0.0, 0.0, 1.0 if self.log_std.ndim == 1 else 1 / len(self.mean), 0.0


class Softmax:
    """A categorical policy of C actions, whose probabilities q are the softmax of logits [B, C] (App. B.1)."""

    def __init__(self, logits):
        xp = self.xp = namespace(logits)
        check_shapes((len(logits), logits.shape[-1]), logits=logits)
        shifted = logits - constant(xp.amax(logits, -1)[:, None])
        log_q = shifted - xp.log(xp.exp(shifted).sum(-1))[:, None]
        self.log_q = log_q.clip(xp.finfo(log_q.dtype).min)  # or q log q is NaN where a logit of -inf forbids an action
        self.q = xp.exp(constant(self.log_q))

    def log_prob(self, actions):
        """Return the log-probability [B] of `actions`, whole numbers in [0, C), [B]."""
        return self.derivatives(actions)[0]

    def entropy(self):
        """Return the entropy, averaged over the batch."""
        return -(self.xp.exp(self.log_q) * self.log_q).sum(-1).mean()

    def kl(self, other):
        """Return the KL divergence KL(self || other) in nats, averaged over the batch."""
        return (self.xp.exp(self.log_q) * (self.log_q - other.log_q)).sum(-1).mean()

    def derivatives(self, actions, name="actions"):
        """Return log q_a [B], and the pair of score e_a - q and curvature q^2 - q, each [B, C]."""
        namespace(self.q, actions)
        check_shapes(self.q.shape[:1], **{name: actions})
        # e_a as a comparison: -1 is no action, where an index counts from the end, nor are bool or uint8 a mask
        e_a = actions[:, None] == self.xp.arange(self.q.shape[1], device=actions.device)
        log_prob = self.log_q[e_a]
        if len(log_prob) < len(actions):
            low, high, classes = actions.min(), actions.max(), self.q.shape[1]
            raise ValueError(f"{name} are in [{low}, {high}]; expected whole numbers in [0, {classes})")
        return log_prob, (e_a + -self.q, self.q * self.q - self.q)

    def entropy_derivatives(self):
        """Return gradient -q e / B and curvature -q ((1 - 2q) e + 1 - q) / B of entropy(), [B, C]: e = log q + H."""
        q, log_q = self.q, constant(self.log_q)
        e = log_q - (q * log_q).sum(-1)[:, None]
        return -q * e / len(q), -q * ((1 - 2 * q) * e + 1 - q) / len(q)


def policy_gradient_loss(policy, actions, advantages, ent_coef=0.0):
    """Policy-gradient loss, the mean over the batch of -A log q(a) - ent_coef * entropy (App. C.1).

    `policy` is a Gaussian or a Softmax, `actions` is what its log_prob takes, `advantages` A is [B].
    """
    log_prob, *derivatives = policy.derivatives(actions)
    namespace(log_prob, advantages)
    check_shapes(log_prob.shape, advantages=advantages)
    weight = advantages / -len(advantages)
    return _policy_loss(policy, (log_prob * weight).sum(), log_prob, weight, derivatives, ent_coef)


def ppo_loss(policy, actions, old_log_probs, advantages, clip_coef, ent_coef=0.0):
    """PPO's surrogate, the mean over the batch of -min(r A, clip(r, 1-c, 1+c) A) - ent_coef * entropy (App. C.3).

    A sample whose clipped branch is the smaller one, with r outside the interval, contributes nothing. `old_log_probs`
    [B] are those of the policy that acted, c is `clip_coef`; for the rest see policy_gradient_loss.
    """
    log_prob, *derivatives = policy.derivatives(actions)
    xp = namespace(log_prob, old_log_probs, advantages)
    check_shapes(log_prob.shape, old_log_probs=old_log_probs, advantages=advantages)
    # min(r A, clip(r, 1-c, 1+c) A) is r A up to a limit: (1+c) A or, where A is negative, (1-c) A
    surrogate, limit = xp.exp(log_prob - old_log_probs) * advantages, advantages + clip_coef * abs(advantages)
    unclipped = xp.where(surrogate > limit, 0.0, constant(surrogate))  # not a product, for r may be infinite; NaN stays
    loss, weight = -xp.minimum(surrogate, limit).sum() / len(limit), unclipped / -len(limit)
    return _policy_loss(policy, loss, log_prob, weight, [(s, s * s + c) for s, c in derivatives], ent_coef)


def _policy_loss(policy, loss, log_prob, weight, derivatives, ent_coef):
    """Multiply each sample's derivatives by its `weight` [B], sum those of a shared log_std, add the entropy bonus."""
    column = weight[:, None]
    parts = [column * d for d in derivatives[0]]
    if len(derivatives) == 2 and policy.log_std.ndim == 1:
        row = weight if policy.xp is np else weight.to(log_prob.dtype)  # torch's product converts nothing
        parts += [row @ d for d in derivatives[1]]
    elif len(derivatives) == 2:
        parts += [column * d for d in derivatives[1]]
    if ent_coef:
        loss = loss - ent_coef * policy.entropy()
        parts = [part - ent_coef * d for part, d in zip(parts, policy.entropy_derivatives(), strict=True)]
    return PolicyLoss(loss, *parts, *[None] * (4 - len(parts)), constant(log_prob))


def cross_entropy_loss(logits, targets):
    """Cross-entropy, the mean over the batch of -log q_target, for logits [B, C] and targets [B]: a Loss (App. B.1)."""
    log_prob, (score, curvature) = Softmax(logits).derivatives(targets, "targets")
    return Loss(-log_prob.mean(), score / -len(logits), curvature / -len(logits))


def value_loss(value, returns, old_value=None, clip_coef=None):
    """Half the squared error, the mean over the batch of 1/2 (v - R)^2, as a Loss (App. C.2).

    With `old_value` and `clip_coef`, PPO's clipped 1/2 max((v - R)^2, (v_clip - R)^2), where v_clip is v kept within
    clip_coef of old_value. `value`, `returns` and `old_value` have one shape, [B] or [B, 1].
    """
    if (old_value is None) != (clip_coef is None):
        raise ValueError("value_loss needs old_value and clip_coef together or neither")
    old_value = returns if old_value is None else old_value
    xp, batch = namespace(value, returns, old_value), len(value)
    check_shapes((batch, 1)[: value.ndim], value=value, returns=returns, old_value=old_value)
    value = value * 1.0  # or 1 / batch would be 0 in an integer's type
    error, hess = value - returns, xp.full_like(value, 1 / batch)
    squared = error * error
    if clip_coef is not None:
        step = value - old_value
        clipped_error = old_value + xp.clip(step, -clip_coef, clip_coef) - returns
        unclipped = (abs(step) <= clip_coef) | (squared >= clipped_error * clipped_error)
        squared, hess = xp.maximum(squared, clipped_error * clipped_error), unclipped * hess
    return Loss(0.5 / batch * squared.sum(), constant(error) * hess, hess)


def squared_error_loss(output, targets):
    """Half the squared error of several outputs, the mean over the batch of 1/2 |y - t|^2, [B, out], as a Loss."""
    xp, batch = namespace(output, targets), len(output)
    check_shapes((batch, output.shape[-1]), output=output)
    check_shapes(output.shape, targets=targets)
    error = output * 1.0 - targets  # 0 - 1 is 255 in uint8
    return Loss(0.5 / batch * (error * error).sum(), constant(error) / batch, xp.full_like(error, 1 / batch))


# ---- 3. Optimizers (Section 5) -----------------------------------------------------------------------------

KINDS = {  # by name: whose square the second moment averages, and which diagonal .hess must be
    "sgd": (None, "HesScale"),
    "adam": ("grad", "HesScale"),
    "adahessian": ("hess", "Hutchinson"),
    "adahesscale": ("hess", "HesScale"),
    "adahesscalegn": ("hess", "HesScaleGN"),
}
OPTIMIZERS = (*KINDS, *(f"scaled-{name}" for name in KINDS))
MOMENTS = "exp_avg", "exp_avg_sq", "exp_avg_hess_sq"  # M; V as Adam's form has it; V of .hess where that is another


class ScaledOptimizer(LightOptimizer):
    """The optimizer of one of the names in OPTIMIZERS (Algorithms 2 and 3).

        M <- beta1 M + (1 - beta1) g        M^ = M / (1 - beta1^t)        U = lr M^ / (sqrt(V^) + eps)
        V <- beta2 V + (1 - beta2) d^2      V^ = V / (1 - beta2^t)        W <- W - eta U

    d is the gradient g in .grad for Adam, else the diagonal in .hess; SGD has U = lr g. eta is 1 or, for the scaled
    ones, min(1, sqrt(2 delta / h)), where h sums sqrt(V^) U^2, with the V^ of .hess, over all parameters: an optimizer
    is one trust region, so give the actor and the critic one each. AdaHessian has Hutchinson's estimate in .hess (Yao
    et al. 2021), whose mean square is the sum of a Hessian row's squares: the off-diagonal shortens its steps.

    `params` are parameters or groups of them, for a TanhMLP fastest [net.flat]. `delta`, the trust region's radius, is
    by default the paper's for RL; a supervised loss wants a far larger one, or its steps are far too short. A step
    skips parameters that are frozen or have no .grad, and sets .hess to None, so that none is used twice; it records
    `eta` and, if scaled, `trust_region` (h). It raises RuntimeError where derivatives are missing or of another
    `curvature`, before it changes anything, and FloatingPointError if the update is not finite, which leaves the
    parameters as they were, but not the moments: to go on, load an earlier state_dict. float16 is too narrow for h.
    """

    eta, trust_region = 1.0, None
    negative_curvature = property(lambda self: self._kept.negative_share(), doc="share of the last .hess below zero")

    def __init__(self, name, params, lr, *, betas=(0.9, 0.999), eps=1e-8, delta=1e-8):
        if name not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {name!r}: choose one of {', '.join(OPTIMIZERS)}")
        super().__init__(params, dict(kind=name, lr=lr, betas=betas, eps=eps, delta=delta))
        self.__setstate__({})

    def __setstate__(self, state):  # of load_state_dict, copies and pickles
        name = (self.__dict__ | state)["param_groups"][0].get("kind")  # None of another class
        if getattr(self, "name", name) != name:
            raise ValueError(f"this is the state of an optimizer {name!r}, and cannot be that of {self.name!r}")
        super().__setstate__(state)
        self.name = name
        self._kept, self.scaled = KeptArrays(self.name), self.name.startswith("scaled-")
        self.second_moment, self.curvature = KINDS[self.name.removeprefix("scaled-")]
        self.needs_hess = self.scaled or self.second_moment == "hess"
        self.moments = ["exp_avg", "exp_avg_sq"] if self.second_moment else []
        if self.scaled and self.second_moment != "hess":
            self.moments.append("exp_avg_hess_sq")

    def add_param_group(self, param_group):
        first = self.param_groups[0] if self.param_groups else self.defaults | param_group
        group = self.defaults | {"delta": first["delta"]} | param_group
        if not 0 <= group["lr"] < math.inf:
            raise ValueError(f"lr={group['lr']}: the step size must be a number >= 0")
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"betas={group['betas']}: both must be in [0, 1)")
        if not 0 < group["eps"] < math.inf:
            raise ValueError(f"eps={group['eps']}: must be > 0, or a zero curvature would divide by zero")
        if not 0 < group["delta"] < math.inf or group["delta"] != first["delta"]:
            raise ValueError(f"delta={group['delta']}: the radius must be > 0, and one for all groups")
        if group["kind"] != self.defaults["kind"]:
            raise ValueError(f"kind={group['kind']!r}: an optimizer is of one kind, {self.defaults['kind']!r}")
        for name in "weight_decay", "momentum", "nesterov", "amsgrad", "maximize":  # other keys are the caller's own
            if group.get(name):
                raise ValueError(f"{name}={group[name]}: these optimizers have no {name}; leave it out")
        super().add_param_group(group)

    @np.errstate(all="ignore")  # what is not finite is raised
    def step(self, closure=None):
        """Make one update from .grad and .hess; call a `closure` first, and return its loss."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        self.update()
        return loss

    def update(self):
        """Make one step without what torch puts around `step`, 5% of PPO's minibatch."""
        work, steps, h = [], [], 0.0
        trained = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None and p.requires_grad]
        for group, p in trained:
            state = self.state[p]
            if not state:
                state.update({name: torch.zeros_like(p, requires_grad=False) for name in self.moments}, step=0)
            arrays = self._kept.read(p, self.curvature if self.needs_hess else None, map(state.get, MOMENTS))
            work.append((group, p, state, arrays))
        for group, p, state, arrays in work:  # only now, since reading may raise
            (beta1, beta2), lr = group["betas"], float(group["lr"])
            xp, data, grad, hess, exp_avg, exp_avg_sq, exp_avg_hess_sq, u, root = arrays
            t = state["step"] = state["step"] + 1
            correction = math.sqrt(1 - beta2**t)  # sqrt(V) / sqrt(V^), a number; a vector takes 2% of a minibatch
            if exp_avg is None:
                u[...], root[...], scale = grad, 1.0, lr  # U = scale u
            else:
                exp_avg *= beta1
                exp_avg += xp.multiply(grad, 1 - beta1, out=u)
                _average_square(xp, exp_avg_sq, hess if self.second_moment == "hess" else grad, beta2, root)
                xp.divide(exp_avg, xp.add(root, group["eps"] * correction, out=u), out=u)
                scale = lr * correction / (1 - beta1**t)
            if exp_avg_hess_sq is not None:
                _average_square(xp, exp_avg_hess_sq, hess, beta2, root)
            root *= u
            h += float(root.reshape(-1) @ u.reshape(-1)) * scale * scale / correction  # the sum of sqrt(V^) U^2
            steps.append((p, data, u, scale))
            p.hess = None
        if not steps:
            raise RuntimeError(f"{self.name}: no parameter that is trained has a .grad: call backward first")
        if not math.isfinite(h):  # if not scaled, this is all that h is for
            raise FloatingPointError(f"{self.name} with lr={lr:g}: the update of step {t} is not finite")
        if self.scaled:
            delta = self.param_groups[0]["delta"]
            self.trust_region, self.eta = h, min(1.0, math.sqrt(2 * delta / h)) if h > 0 else 1.0
        for p, data, u, scale in steps:
            u *= self.eta * scale
            data -= u
            torch.autograd.graph.increment_version(p)  # or a graph made before would go back through the new values


make_optimizer = ScaledOptimizer  # make_optimizer("adam", net.parameters(), lr=3e-4) reads as what it does


def _average_square(xp, average, d, beta, root):
    """average <- beta average + (1 - beta) d^2, and its square root into `root`."""
    xp.multiply(d, d, out=root)
    root *= 1 - beta
    average *= beta
    average += root
    xp.sqrt(average, out=root)


def hutchinson(loss, params):
    """Leave the gradient in .grad and z * (Hz), with one Rademacher sample z, in .hess of every parameter.

    z * (Hz) is an unbiased estimate of the Hessian's diagonal (Section 2); autograd makes it from a scalar `loss`.
    """
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"loss is a {type(loss).__name__}; expected a torch tensor: give the network tensors, too")
    params = [p for p in params if p.requires_grad]
    grads = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
    if all(grad.is_leaf and grad.requires_grad for grad in grads):  # autograd's zeros
        raise RuntimeError("the loss depends on none of the parameters: give net.parameters(), not net.flat")
    z = [torch.randint(0, 2, p.shape, device=p.device).to(p.dtype) * 2 - 1 for p in params]
    varying = [i for i, grad in enumerate(grads) if grad.requires_grad]  # that of an output's bias may be constant
    products = map(torch.zeros_like, params)
    if varying:
        outputs, vectors = [grads[i] for i in varying], [z[i] for i in varying]
        products = torch.autograd.grad(outputs, params, vectors, materialize_grads=True)
    for p, grad, z_p, product in zip(params, grads, z, products, strict=True):
        p.grad, p.hess = grad.detach().clone(), z_p * product  # autograd gives one tensor to several parameters
        p.hess.curvature = "Hutchinson"
