"""Every loss's gradient and Hessian diagonal against autograd's full Hessian, in float64."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal

from hesscale_core import (
    Gaussian,
    Softmax,
    cross_entropy_loss,
    policy_gradient_loss,
    ppo_loss,
    squared_error_loss,
    value_loss,
)

CLIP = 0.2


def reference(loss, x):
    """Return loss, gradient and diagonal of the full Hessian of `loss` at `x`, by autograd."""
    x = x.detach().clone().requires_grad_()
    value = loss(x)
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    hess = torch.autograd.functional.hessian(loss, x.detach()).reshape(x.numel(), x.numel())
    return value.detach(), grad.detach(), hess.diagonal().reshape(x.shape)


def assert_equal(ours, theirs):
    torch.testing.assert_close(torch.as_tensor(ours), theirs, rtol=1e-9, atol=1e-12)


def random_policy(seed, shared):
    """Return mean and log_std, actions, old log-probabilities and advantages of a batch of random size.

    The ratios lie on all sides of the clipping interval.
    """
    torch.manual_seed(seed)
    batch, dims = int(torch.randint(1, 40, ())), int(torch.randint(1, 8, ()))
    mean = torch.randn(batch, dims, dtype=torch.float64)
    log_std = 0.4 * torch.randn(*([dims] if shared else [batch, dims]), dtype=torch.float64)
    actions = mean + log_std.exp() * torch.randn(batch, dims, dtype=torch.float64)
    advantages = torch.randn(batch, dtype=torch.float64)
    old_log_probs = Normal(mean, log_std.exp()).log_prob(actions).sum(1) + 0.4 * torch.randn(batch, dtype=torch.float64)
    return mean, log_std, actions, old_log_probs, advantages


def autograd_pg(mean, log_std, actions, advantages, ent_coef):
    policy = Normal(mean, log_std.exp().expand_as(mean))
    return (-advantages * policy.log_prob(actions).sum(1)).mean() - ent_coef * policy.entropy().sum(1).mean()


def autograd_ppo(mean, log_std, actions, old_log_probs, advantages, ent_coef):
    policy = Normal(mean, log_std.exp().expand_as(mean))
    ratio = (policy.log_prob(actions).sum(1) - old_log_probs).exp()
    surrogate = torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
    return -surrogate.mean() - ent_coef * policy.entropy().sum(1).mean()


def check_gaussian_loss(ours, loss, mean, log_std):
    value, grad, hess = reference(lambda m: loss(m, log_std), mean)
    assert_equal(ours.loss, value)
    assert_equal(ours.grad, grad)
    assert_equal(ours.hess, hess)
    _, grad, hess = reference(lambda s: loss(mean, s), log_std)
    assert_equal(ours.grad_log_std, grad)
    assert_equal(ours.hess_log_std, hess)


@pytest.mark.parametrize("ent_coef", [0.0, 0.03])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_policy_gradient_derivatives_are_exact(kind, seed, shared, ent_coef):
    mean, log_std, actions, _, advantages = random_policy(seed, shared)
    policy = Gaussian(kind(mean), kind(log_std))
    ours = policy_gradient_loss(policy, kind(actions), kind(advantages), ent_coef)
    check_gaussian_loss(ours, lambda m, s: autograd_pg(m, s, actions, advantages, ent_coef), mean, log_std)


@pytest.mark.parametrize("ent_coef", [0.0, 0.03])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_ppo_derivatives_are_exact(kind, seed, shared, ent_coef):
    mean, log_std, actions, old_log_probs, advantages = random_policy(seed, shared)
    policy = Gaussian(kind(mean), kind(log_std))
    ours = ppo_loss(policy, *map(kind, (actions, old_log_probs, advantages)), CLIP, ent_coef)
    loss = lambda m, s: autograd_ppo(m, s, actions, old_log_probs, advantages, ent_coef)  # noqa: E731
    check_gaussian_loss(ours, loss, mean, log_std)


def test_random_batches_hold_every_branch_of_the_surrogate():
    seen = set()
    for seed in range(8):
        mean, log_std, actions, old_log_probs, advantages = random_policy(seed, True)
        ratio = (Normal(mean, log_std.exp()).log_prob(actions).sum(1) - old_log_probs).exp()
        where = ["above" if r > 1 + CLIP else "below" if r < 1 - CLIP else "inside" for r in ratio]
        seen |= set(zip(where, (advantages > 0).tolist(), strict=True))
    assert len(seen) == 6


def ppo_sample(ratio, advantage, kind):
    """Return the loss of one sample with the given ratio and advantage, and its four derivatives."""
    mean, log_std = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    actions = torch.tensor([[0.5, -1.5]], dtype=torch.float64)
    old, advantages = Normal(mean, log_std.exp()).log_prob(actions).sum(1) - math.log(ratio), torch.tensor([advantage])
    return ppo_loss(Gaussian(kind(mean), kind(log_std)), *map(kind, (actions, old, advantages.double())), CLIP)[:5]


@pytest.mark.parametrize("bad", ["advantages", "old_log_probs", "minus infinity"])
def test_what_is_not_a_number_leaves_no_derivative_that_is(kind, bad):
    """Or an optimizer would go on, and train nothing."""
    policy, actions = Gaussian(kind(torch.zeros(2, 2)), kind(torch.zeros(2))), 2 * kind(torch.ones(2, 2))
    old, advantages = torch.zeros(2), torch.ones(2)
    if bad == "old_log_probs":
        old[0] = math.nan
    else:
        advantages[0] = math.nan if bad == "advantages" else -math.inf
    with np.errstate(all="ignore"):
        ours = ppo_loss(policy, actions, kind(old), kind(advantages), CLIP)
    assert not math.isfinite(ours.loss)
    for grad in ours.grad, ours.hess:
        assert not torch.as_tensor(grad[0]).isfinite().any() and torch.as_tensor(grad[1]).all()
    assert not torch.as_tensor(ours.hess_log_std).isfinite().any()


@pytest.mark.parametrize("ratio, advantage", [(1.3, 1.0), (0.7, -1.0)])
def test_clipped_samples_contribute_nothing(kind, ratio, advantage):
    for derivative in ppo_sample(ratio, advantage, kind)[1:]:
        assert not derivative.any()


def test_a_clipped_ratio_may_overflow(kind):
    policy = Gaussian(kind(torch.zeros(1, 2)), kind(torch.zeros(2)))
    with np.errstate(over="ignore"):
        ours = ppo_loss(policy, *map(kind, (torch.ones(1, 2), torch.tensor([-1e4]), torch.ones(1))), CLIP)
    assert float(ours.loss) == pytest.approx(-1 - CLIP)
    for derivative in ours[1:5]:
        assert not derivative.any()
        assert torch.as_tensor(derivative).dtype == torch.float32


@pytest.mark.parametrize("ratio, advantage", [(0.7, 1.0), (1.3, -1.0), (1.1, 1.0), (0.9, -1.0)])
def test_samples_outside_the_interval_count_where_the_unclipped_branch_is_the_smaller(kind, ratio, advantage):
    for derivative in ppo_sample(ratio, advantage, kind)[1:]:
        assert derivative.all()


def in_variance(grad_log_std, hess_log_std, variance):
    """Chain rule from l = log sigma to v = sigma^2: dl/dv = 1 / 2v and d2l/dv2 = -1 / 2v^2."""
    return grad_log_std / (2 * variance), hess_log_std / (2 * variance) ** 2 - grad_log_std / (2 * variance**2)


@pytest.mark.parametrize("seed", range(5))
def test_papers_log_likelihood_in_the_variance_agrees(seed):
    """App. B.2, for the loss -A log q of C.1 with A = 1 and a batch of one."""
    mean, log_std, actions, _, _ = (t[:1] for t in random_policy(seed, False))
    ours = policy_gradient_loss(Gaussian(mean, log_std), actions, torch.ones(1).double())
    variance, error = (2 * log_std).exp(), actions - mean
    grad, hess = in_variance(ours.grad_log_std, ours.hess_log_std, variance)
    assert_equal(ours.grad, -error / variance)
    assert_equal(ours.hess, 1 / variance)
    assert_equal(grad, -0.5 * (error**2 / variance - 1) / variance)
    assert_equal(hess, -(0.5 - error**2 / variance) / variance**2)


@pytest.mark.parametrize("seed", range(5))
def test_papers_probability_in_the_variance_agrees(seed):
    """App. C.3's derivatives of the density p, for a ratio p / p_old inside the interval."""
    mean, log_std, actions, _, _ = (t[:1] for t in random_policy(seed, False))
    policy = Gaussian(mean, log_std)
    p = policy.log_prob(actions).exp()
    ours = ppo_loss(policy, actions, p.log(), -torch.ones(1).double(), CLIP)  # the loss is p / p_old
    variance, error = (2 * log_std).exp(), actions - mean
    grad, hess = in_variance(ours.grad_log_std, ours.hess_log_std, variance)
    grad_mean, grad_variance = p * error / variance, p * (error**2 / variance - 1) / (2 * variance)
    hess_mean = (error * grad_mean - p) / variance
    hess_variance = (variance * grad_variance - p) * (error**2 / variance - 1) / (2 * variance**2)
    hess_variance = hess_variance - 0.5 * p * error**2 / variance**3
    assert_equal(ours.grad * p, grad_mean)
    assert_equal(ours.hess * p, hess_mean)
    assert_equal(grad * p, grad_variance)
    assert_equal(hess * p, hess_variance)


def random_softmax_policy(seed):
    """Return logits, actions, old log-probabilities and advantages of a batch of random size."""
    torch.manual_seed(seed)
    batch, classes = int(torch.randint(1, 40, ())), int(torch.randint(2, 8, ()))
    logits = 1.5 * torch.randn(batch, classes, dtype=torch.float64)
    actions = Categorical(logits=logits).sample()
    advantages = torch.randn(batch, dtype=torch.float64)
    old_log_probs = Categorical(logits=logits).log_prob(actions) + 0.4 * torch.randn(batch, dtype=torch.float64)
    return logits, actions, old_log_probs, advantages


def check_softmax_loss(ours, loss, logits):
    for part, expected in zip(ours[:3], reference(loss, logits), strict=True):
        assert_equal(part, expected)
    assert ours.grad_log_std is ours.hess_log_std is None


@pytest.mark.parametrize("ent_coef", [0.0, 0.03])
@pytest.mark.parametrize("seed", range(8))
def test_softmax_policy_gradient_derivatives_are_exact(kind, seed, ent_coef):
    logits, actions, _, advantages = random_softmax_policy(seed)

    def loss(x):
        policy = Categorical(logits=x)
        return (-advantages * policy.log_prob(actions)).mean() - ent_coef * policy.entropy().mean()

    ours = policy_gradient_loss(Softmax(kind(logits)), kind(actions), kind(advantages), ent_coef)
    check_softmax_loss(ours, loss, logits)


@pytest.mark.parametrize("ent_coef", [0.0, 0.03])
@pytest.mark.parametrize("seed", range(8))
def test_softmax_ppo_derivatives_are_exact(kind, seed, ent_coef):
    logits, actions, old_log_probs, advantages = random_softmax_policy(seed)

    def loss(x):
        policy = Categorical(logits=x)
        ratio = (policy.log_prob(actions) - old_log_probs).exp()
        surrogate = torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
        return -surrogate.mean() - ent_coef * policy.entropy().mean()

    ours = ppo_loss(Softmax(kind(logits)), *map(kind, (actions, old_log_probs, advantages)), CLIP, ent_coef)
    check_softmax_loss(ours, loss, logits)


@pytest.mark.parametrize("loss", ["pg", "ppo", "value", "clipped value", "softmax pg", "softmax ppo", "cross-entropy"])
def test_losses_of_tensors_are_differentiable_and_agree_with_their_own_derivatives(loss):
    """AdaHessian's optimizers differentiate the same loss as the others have derivatives of."""
    mean, log_std, actions, old_log_probs, advantages = random_policy(5, True)
    logits, choices, old, softmax_advantages = random_softmax_policy(5)
    x = (mean if loss in ("pg", "ppo") else logits if "softmax" in loss or "cross" in loss else old).clone()
    x.requires_grad_()
    log_std.requires_grad_()
    ours = {
        "pg": lambda: policy_gradient_loss(Gaussian(x, log_std), actions, advantages, 0.1),
        "ppo": lambda: ppo_loss(Gaussian(x, log_std), actions, old_log_probs, advantages, CLIP, 0.1),
        "value": lambda: value_loss(x, softmax_advantages),
        "clipped value": lambda: value_loss(x, softmax_advantages, old + 0.3, CLIP),
        "softmax pg": lambda: policy_gradient_loss(Softmax(x), choices, softmax_advantages, 0.1),
        "softmax ppo": lambda: ppo_loss(Softmax(x), choices, old, softmax_advantages, CLIP, 0.1),
        "cross-entropy": lambda: cross_entropy_loss(x, choices),
    }[loss]()
    ours.loss.backward()
    assert_equal(ours.grad, x.grad)
    if loss in ("pg", "ppo"):
        assert_equal(ours.grad_log_std, log_std.grad)
    assert not any(part.requires_grad for part in ours[1:] if part is not None)


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_value_loss_derivatives_are_exact(kind, seed, clipped, column):
    torch.manual_seed(seed)
    batch = int(torch.randint(1, 40, ()))
    value, returns, old = torch.randn(3, *([batch, 1] if column else [batch]), dtype=torch.float64)
    old = value + 0.5 * old

    def loss(v):
        squared = (v - returns) ** 2
        if clipped:
            squared = torch.max(squared, (old + (v - old).clamp(-CLIP, CLIP) - returns) ** 2)
        return 0.5 * squared.mean()

    ours = value_loss(kind(value), kind(returns), *([kind(old), CLIP] if clipped else []))
    for part, expected in zip(ours, reference(loss, value), strict=True):
        assert_equal(part, expected)


@pytest.mark.parametrize("seed", range(8))
def test_cross_entropy_derivatives_are_exact(kind, seed):
    torch.manual_seed(seed)
    batch, classes = int(torch.randint(1, 40, ())), int(torch.randint(1, 12, ()))
    logits, targets = 3 * torch.randn(batch, classes, dtype=torch.float64), torch.randint(classes, (batch,))
    ours = cross_entropy_loss(kind(logits), kind(targets))
    expected = reference(lambda x: torch.nn.functional.cross_entropy(x, targets), logits)
    for part, theirs in zip(ours, expected, strict=True):
        assert_equal(part, theirs)


def test_cross_entropy_survives_large_logits(kind):
    ours = cross_entropy_loss(kind(torch.tensor([[1e4, 0.0]])), kind(torch.tensor([1])))
    assert float(ours.loss) == 1e4
    assert all(torch.as_tensor(part).isfinite().all() for part in ours)


@pytest.mark.parametrize("shared", [True, False])
def test_log_probabilities_and_entropies_are_torchs(kind, shared):
    mean, log_std, actions, _, _ = random_policy(3, shared)
    ours, theirs = Gaussian(kind(mean), kind(log_std)), Normal(mean, log_std.exp().expand_as(mean))
    assert_equal(ours.log_prob(kind(actions)), theirs.log_prob(actions).sum(1))
    assert_equal(ours.entropy(), theirs.entropy().sum(1).mean())
    logits, actions, _, _ = random_softmax_policy(3)
    ours, theirs = Softmax(kind(logits)), Categorical(logits=logits)
    assert_equal(ours.log_prob(kind(actions)), theirs.log_prob(actions))
    assert_equal(ours.entropy(), theirs.entropy().mean())


def test_policy_losses_hand_on_the_log_probability(kind):
    """A constant, for the old log-probabilities and the KL divergence, however the policy was made."""
    mean, log_std, actions, old, advantages = random_policy(0, True)
    log_std.requires_grad_()
    choices = torch.arange(len(mean)) % mean.shape[1]
    for policy, taken, theirs in (
        (Gaussian(kind(mean), kind(log_std)), actions, Normal(mean, log_std.exp()).log_prob(actions).sum(1)),
        (Softmax(kind(mean)), choices, Categorical(logits=mean).log_prob(choices)),
    ):
        pg = policy_gradient_loss(policy, kind(taken), kind(advantages))
        ppo = ppo_loss(policy, kind(taken), kind(old), kind(advantages), CLIP)
        for log_prob in map(torch.as_tensor, (pg.log_prob, ppo.log_prob)):
            assert_equal(log_prob, theirs.detach())
            assert not log_prob.requires_grad


# ---- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["log_std", "actions", "old_log_probs", "advantages"])
def test_shapes_that_do_not_fit_are_named(kind, wrong):
    names = ["mean", "log_std", "actions", "old_log_probs", "advantages"]
    arrays = dict(zip(names, map(kind, random_policy(0, True)), strict=True))
    arrays[wrong] = arrays[wrong][..., None]
    with pytest.raises(ValueError, match=f"{wrong} has shape"):
        ppo_loss(Gaussian(arrays.pop("mean"), arrays.pop("log_std")), **arrays, clip_coef=CLIP)


@pytest.mark.parametrize("wrong", ["actions", "advantages"])
def test_shapes_that_do_not_fit_a_softmax_are_named(kind, wrong):
    logits, actions, _, advantages = map(kind, random_softmax_policy(0))
    batch = {"actions": actions, "advantages": advantages}
    batch[wrong] = batch[wrong][:, None]
    with pytest.raises(ValueError, match=f"{wrong} has shape"):
        policy_gradient_loss(Softmax(logits), **batch)
    with pytest.raises(ValueError, match="logits has shape"):
        Softmax(logits[0])


def test_advantages_may_be_float64_where_the_policy_is_float32(kind):
    mean, log_std = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in ((5, 2), (2,)))
    actions, advantages = mean + 0.3, torch.linspace(-1, 1, 5)
    expected = policy_gradient_loss(Gaussian(kind(mean), kind(log_std)), kind(actions), kind(advantages))
    found = policy_gradient_loss(Gaussian(kind(mean), kind(log_std)), kind(actions), kind(advantages.double()))
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_a_column_of_values_never_broadcasts_against_a_row_of_returns():
    with pytest.raises(ValueError, match=r"returns has shape \[4\]; expected \[4, 1\]"):
        value_loss(np.zeros((4, 1)), np.zeros(4))


@pytest.mark.parametrize("target", [-1, 3, 0.5])
def test_targets_and_actions_that_are_no_classes_are_refused(kind, target):
    """-1 would count from the end, in silence."""
    found = rf"are in \[{min(target, 1)}.*, {max(target, 1)}.*\]; expected whole numbers in \[0, 3\)"
    logits, targets = kind(torch.zeros(2, 3)), kind(torch.tensor([1, target]))
    with pytest.raises(ValueError, match=f"targets {found}"):
        cross_entropy_loss(logits, targets)
    with pytest.raises(ValueError, match=f"actions {found}"):
        Softmax(logits).log_prob(targets)
    with pytest.raises(ValueError, match=f"actions {found}"):
        ppo_loss(Softmax(logits), targets, kind(torch.zeros(2)), kind(torch.zeros(2)), CLIP)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int32, torch.float32])
def test_targets_and_actions_of_every_type_are_classes(kind, dtype):
    """MNIST's label files hold uint8, which torch takes for a mask when it indexes, as numpy takes bool."""
    logits, targets = torch.randn(4, 4, requires_grad=True), torch.tensor([0, 1, 0, 0])
    theirs = torch.nn.functional.cross_entropy(logits, targets)
    loss, grad, _ = cross_entropy_loss(kind(logits), kind(targets.to(dtype)))
    torch.testing.assert_close(torch.as_tensor(loss), theirs.detach())
    torch.testing.assert_close(torch.as_tensor(grad), *torch.autograd.grad(theirs, logits))
    log_prob = torch.as_tensor(Softmax(kind(logits)).log_prob(kind(targets.to(dtype))))
    torch.testing.assert_close(log_prob, logits.detach().log_softmax(1)[range(4), targets])


EMPTY = {
    "value": lambda n, ints: value_loss(n, n),
    "output": lambda n, ints: squared_error_loss(n[:, None], n[:, None]),
    "logits": lambda n, ints: cross_entropy_loss(n.reshape(0, 3), ints),
    "mean": lambda n, ints: ppo_loss(Gaussian(n.reshape(0, 2), n.reshape(0, 2)), n.reshape(0, 2), n, n, CLIP),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_batch_without_samples_is_refused(kind, name):
    with pytest.raises(ValueError, match=rf"{name} is empty, of shape \[0.*\]; give at least one sample"):
        EMPTY[name](kind(torch.zeros(0)), kind(torch.zeros(0, dtype=torch.long)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("clipped", [False, True])
def test_values_that_are_integers_have_derivatives(kind, dtype, clipped):
    value, returns, old = torch.tensor([[1, 0, 2], [3, 2, 1], [0, 1, 4]])
    more = [(kind(old.to(t)), CLIP) if clipped else () for t in (dtype, torch.float64)]
    ours = value_loss(kind(value.to(dtype)), kind(returns.to(dtype)), *more[0])
    theirs = value_loss(kind(value.double()), kind(returns.double()), *more[1])
    for part, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.as_tensor(part).double(), torch.as_tensor(expected))
    ours = squared_error_loss(*(kind(a.to(dtype)[:, None]) for a in (value, returns)))
    assert float(ours.loss) == float(value_loss(kind(value.double()), kind(returns.double())).loss)


def test_a_value_is_clipped_with_both_an_old_value_and_a_coefficient():
    for arguments in ({"old_value": np.zeros(4)}, {"clip_coef": CLIP}):
        with pytest.raises(ValueError, match="old_value and clip_coef together or neither"):
            value_loss(np.zeros(4), np.ones(4), **arguments)


MIXED = {
    "cross-entropy": lambda: cross_entropy_loss(np.zeros((2, 3)), torch.zeros(2, dtype=torch.long)),
    "value": lambda: value_loss(np.zeros(2), torch.zeros(2)),
    "old value": lambda: value_loss(np.zeros(2), np.zeros(2), torch.zeros(2), CLIP),
    "log_std": lambda: Gaussian(np.zeros((2, 3)), torch.zeros(3)),
    "actions": lambda: Gaussian(np.zeros((2, 3)), np.zeros(3)).log_prob(torch.zeros(2, 3)),
    "actions of tensors": lambda: Gaussian(torch.zeros(2, 3), torch.zeros(3)).log_prob(np.zeros((2, 3))),
    "choices": lambda: Softmax(torch.zeros(2, 3)).log_prob(np.zeros(2, int)),
    "advantages": lambda: policy_gradient_loss(Softmax(np.zeros((2, 3))), np.zeros(2, int), torch.zeros(2)),
    "all but the policy": lambda: policy_gradient_loss(
        Gaussian(np.zeros((2, 3)), np.zeros(3)), torch.zeros(2, 3), torch.zeros(2)
    ),
    "old log-probabilities": lambda: ppo_loss(
        Softmax(np.zeros((2, 3))), np.zeros(2, int), torch.zeros(2), np.zeros(2), CLIP
    ),
}


@pytest.mark.parametrize("mixed", MIXED)
def test_numpy_and_torch_do_not_mix(mixed):
    with pytest.raises(TypeError, match=r"got .*(ndarray.*Tensor|Tensor.*ndarray)"):
        MIXED[mixed]()


def test_an_entropy_survives_a_probability_of_zero(kind):
    assert float(Softmax(kind(torch.tensor([[1e4, 0.0]]))).entropy()) == 0


def test_a_logit_of_minus_infinity_forbids_an_action(kind):
    """As a mask does: the others have the entropy, the divergence and the derivatives that they have without it."""
    some = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    masked = [torch.cat([logits, torch.full((5, 1), -math.inf)], 1) for logits in some]
    actions, advantages = torch.tensor([0, 1, 0, 1, 0]), torch.randn(5)
    expected = [Softmax(kind(logits)) for logits in some]
    ours = [Softmax(kind(logits)) for logits in masked]
    close = lambda a, b: torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b))  # noqa: E731
    close(ours[0].entropy(), expected[0].entropy())
    close(ours[0].kl(ours[1]), expected[0].kl(expected[1]))
    parts, rest = (
        policy_gradient_loss(policy, kind(actions), kind(advantages), ent_coef=0.1) for policy in (ours[0], expected[0])
    )
    close(parts.loss, rest.loss)
    for part, other in zip(parts[1:3], rest[1:3], strict=True):
        close(part[:, :2], other)
        assert not part[:, 2].any()
    logits = masked[0].clone().requires_grad_()
    Softmax(logits).entropy().backward()
    assert logits.grad.isfinite().all()


def test_a_softmax_of_samples_that_are_far_apart(kind):
    """Each sample's logits are shifted by their own largest one."""
    logits = torch.tensor([[1e3, 1e3 + 1], [-1e3, -1e3 + 1]])
    policy = Softmax(kind(logits))
    expected = logits.log_softmax(1)[:, 0]
    torch.testing.assert_close(torch.as_tensor(policy.log_prob(kind(torch.tensor([0, 0])))), expected)
