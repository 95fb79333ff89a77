"""Every loss's gradient and Hessian diagonal against autograd's full Hessian, in float64."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal

from hesscale_core import (
    cross_entropy_loss,
    gaussian_entropy,
    gaussian_log_prob,
    gaussian_policy_gradient_loss,
    gaussian_ppo_loss,
    softmax_entropy,
    softmax_log_prob,
    softmax_policy_gradient_loss,
    softmax_ppo_loss,
    value_loss,
)

CLIP = 0.2


def reference(loss, x):
    """Loss, gradient and diagonal of the full Hessian of `loss` at `x`, by autograd."""
    x = x.detach().clone().requires_grad_()
    value = loss(x)
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    hess = torch.autograd.functional.hessian(loss, x.detach()).reshape(x.numel(), x.numel())
    return value.detach(), grad.detach(), hess.diagonal().reshape(x.shape)


def assert_equal(ours, theirs):
    torch.testing.assert_close(torch.as_tensor(ours), theirs, rtol=1e-9, atol=1e-12)


def random_policy(seed, shared):
    """A Gaussian policy's output and batch of random size; the ratios lie on all sides of the clipping interval."""
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


def check_policy_loss(ours, loss, mean, log_std):
    value, grad, hess = reference(lambda m: loss(m, log_std), mean)
    assert_equal(ours.loss, value)
    assert_equal(ours.grad_mean, grad)
    assert_equal(ours.hess_mean, hess)
    _, grad, hess = reference(lambda s: loss(mean, s), log_std)
    assert_equal(ours.grad_log_std, grad)
    assert_equal(ours.hess_log_std, hess)


@pytest.mark.parametrize("ent_coef", [0.0, 0.03])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_policy_gradient_derivatives_are_exact(kind, seed, shared, ent_coef):
    mean, log_std, actions, _, advantages = random_policy(seed, shared)
    ours = gaussian_policy_gradient_loss(*map(kind, (mean, log_std, actions, advantages)), ent_coef=ent_coef)
    check_policy_loss(ours, lambda m, s: autograd_pg(m, s, actions, advantages, ent_coef), mean, log_std)


@pytest.mark.parametrize("ent_coef", [0.0, 0.03])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_ppo_derivatives_are_exact(kind, seed, shared, ent_coef):
    mean, log_std, actions, old_log_probs, advantages = random_policy(seed, shared)
    ours = gaussian_ppo_loss(*map(kind, (mean, log_std, actions, old_log_probs, advantages)), CLIP, ent_coef=ent_coef)
    loss = lambda m, s: autograd_ppo(m, s, actions, old_log_probs, advantages, ent_coef)  # noqa: E731
    check_policy_loss(ours, loss, mean, log_std)


def test_random_batches_hold_every_branch_of_the_surrogate():
    seen = set()
    for seed in range(8):
        mean, log_std, actions, old_log_probs, advantages = random_policy(seed, True)
        ratio = (Normal(mean, log_std.exp()).log_prob(actions).sum(1) - old_log_probs).exp()
        where = ["above" if r > 1 + CLIP else "below" if r < 1 - CLIP else "inside" for r in ratio]
        seen |= set(zip(where, (advantages > 0).tolist(), strict=True))
    assert len(seen) == 6


def ppo_sample(ratio, advantage, kind):
    """One sample with the given ratio and advantage."""
    mean, log_std = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    actions = torch.tensor([[0.5, -1.5]], dtype=torch.float64)
    old = Normal(mean, log_std.exp()).log_prob(actions).sum(1) - math.log(ratio)
    return gaussian_ppo_loss(*map(kind, (mean, log_std, actions, old, torch.tensor([advantage]).double())), CLIP)


@pytest.mark.parametrize("ratio, advantage", [(1.3, 1.0), (0.7, -1.0)])
def test_clipped_samples_contribute_nothing(kind, ratio, advantage):
    for derivative in ppo_sample(ratio, advantage, kind)[1:]:
        assert not derivative.any()


def test_a_clipped_ratio_may_overflow(kind):
    mean, log_std, actions = torch.zeros(1, 2), torch.zeros(2), torch.ones(1, 2)
    ours = gaussian_ppo_loss(*map(kind, (mean, log_std, actions, torch.tensor([-1e4]), torch.ones(1))), CLIP)
    assert float(ours.loss) == pytest.approx(-1 - CLIP)
    for derivative in ours[1:]:
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
    ours = gaussian_policy_gradient_loss(mean, log_std, actions, torch.ones(1).double())
    variance, error = (2 * log_std).exp(), actions - mean
    grad, hess = in_variance(ours.grad_log_std, ours.hess_log_std, variance)
    assert_equal(ours.grad_mean, -error / variance)
    assert_equal(ours.hess_mean, 1 / variance)
    assert_equal(grad, -0.5 * (error**2 / variance - 1) / variance)
    assert_equal(hess, -(0.5 - error**2 / variance) / variance**2)


@pytest.mark.parametrize("seed", range(5))
def test_papers_probability_in_the_variance_agrees(seed):
    """App. C.3's derivatives of the density p, for a ratio p / p_old inside the interval."""
    mean, log_std, actions, _, _ = (t[:1] for t in random_policy(seed, False))
    p = gaussian_log_prob(mean, log_std, actions).exp()
    ours = gaussian_ppo_loss(mean, log_std, actions, p.log(), -torch.ones(1).double(), CLIP)  # the loss is p / p_old
    variance, error = (2 * log_std).exp(), actions - mean
    grad, hess = in_variance(ours.grad_log_std, ours.hess_log_std, variance)
    grad_mean, grad_variance = p * error / variance, p * (error**2 / variance - 1) / (2 * variance)
    hess_mean = (error * grad_mean - p) / variance
    hess_variance = (variance * grad_variance - p) * (error**2 / variance - 1) / (2 * variance**2)
    hess_variance = hess_variance - 0.5 * p * error**2 / variance**3
    assert_equal(ours.grad_mean * p, grad_mean)
    assert_equal(ours.hess_mean * p, hess_mean)
    assert_equal(grad * p, grad_variance)
    assert_equal(hess * p, hess_variance)


def random_softmax_policy(seed):
    torch.manual_seed(seed)
    batch, classes = int(torch.randint(1, 40, ())), int(torch.randint(2, 8, ()))
    logits = 1.5 * torch.randn(batch, classes, dtype=torch.float64)
    actions = Categorical(logits=logits).sample()
    advantages = torch.randn(batch, dtype=torch.float64)
    old_log_probs = Categorical(logits=logits).log_prob(actions) + 0.4 * torch.randn(batch, dtype=torch.float64)
    return logits, actions, old_log_probs, advantages


@pytest.mark.parametrize("ent_coef", [0.0, 0.03])
@pytest.mark.parametrize("seed", range(8))
def test_softmax_policy_gradient_derivatives_are_exact(kind, seed, ent_coef):
    logits, actions, _, advantages = random_softmax_policy(seed)

    def loss(x):
        policy = Categorical(logits=x)
        return (-advantages * policy.log_prob(actions)).mean() - ent_coef * policy.entropy().mean()

    ours = softmax_policy_gradient_loss(*map(kind, (logits, actions, advantages)), ent_coef=ent_coef)
    for part, expected in zip(ours, reference(loss, logits), strict=True):
        assert_equal(part, expected)


@pytest.mark.parametrize("ent_coef", [0.0, 0.03])
@pytest.mark.parametrize("seed", range(8))
def test_softmax_ppo_derivatives_are_exact(kind, seed, ent_coef):
    logits, actions, old_log_probs, advantages = random_softmax_policy(seed)

    def loss(x):
        policy = Categorical(logits=x)
        ratio = (policy.log_prob(actions) - old_log_probs).exp()
        surrogate = torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
        return -surrogate.mean() - ent_coef * policy.entropy().mean()

    ours = softmax_ppo_loss(*map(kind, (logits, actions, old_log_probs, advantages)), CLIP, ent_coef=ent_coef)
    for part, expected in zip(ours, reference(loss, logits), strict=True):
        assert_equal(part, expected)


@pytest.mark.parametrize("loss", ["pg", "ppo", "value", "clipped value", "softmax pg", "softmax ppo", "cross-entropy"])
def test_losses_of_tensors_are_differentiable_and_agree_with_their_own_derivatives(loss):
    """What AdaHessian differentiates is what the others have derivatives of."""
    mean, log_std, actions, old_log_probs, advantages = random_policy(5, True)
    logits, choices, old, softmax_advantages = random_softmax_policy(5)
    x = (mean if loss in ("pg", "ppo") else logits if "softmax" in loss or "cross" in loss else old).clone()
    x.requires_grad_()
    log_std.requires_grad_()
    ours = {
        "pg": lambda: gaussian_policy_gradient_loss(x, log_std, actions, advantages, 0.1),
        "ppo": lambda: gaussian_ppo_loss(x, log_std, actions, old_log_probs, advantages, CLIP, 0.1),
        "value": lambda: value_loss(x, softmax_advantages),
        "clipped value": lambda: value_loss(x, softmax_advantages, old + 0.3, CLIP),
        "softmax pg": lambda: softmax_policy_gradient_loss(x, choices, softmax_advantages, 0.1),
        "softmax ppo": lambda: softmax_ppo_loss(x, choices, old, softmax_advantages, CLIP, 0.1),
        "cross-entropy": lambda: cross_entropy_loss(x, choices),
    }[loss]()
    ours.loss.backward()
    assert_equal(ours[1], x.grad)
    if loss in ("pg", "ppo"):
        assert_equal(ours.grad_log_std, log_std.grad)
    assert not any(part.requires_grad for part in ours[1:])


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
    policy = Normal(mean, log_std.exp().expand_as(mean))
    assert_equal(gaussian_log_prob(kind(mean), kind(log_std), kind(actions)), policy.log_prob(actions).sum(1))
    assert_equal(gaussian_entropy(kind(mean), kind(log_std)), policy.entropy().sum(1).mean())
    logits, actions, _, _ = random_softmax_policy(3)
    policy = Categorical(logits=logits)
    assert_equal(softmax_log_prob(kind(logits), kind(actions)), policy.log_prob(actions))
    assert_equal(softmax_entropy(kind(logits)), policy.entropy().mean())


@pytest.mark.parametrize("wrong", ["log_std", "actions", "old_log_probs", "advantages"])
def test_shapes_that_do_not_fit_are_named(wrong):
    names = ["mean", "log_std", "actions", "old_log_probs", "advantages"]
    arrays = dict(zip(names, random_policy(0, True), strict=True))
    arrays[wrong] = arrays[wrong][..., None]
    with pytest.raises(ValueError, match=f"{wrong} has shape"):
        gaussian_ppo_loss(**arrays, clip_coef=CLIP)


def test_a_column_of_values_never_broadcasts_against_a_row_of_returns():
    with pytest.raises(ValueError, match=r"returns has shape \[4\]; expected \[4, 1\]"):
        value_loss(np.zeros((4, 1)), np.zeros(4))


def test_numpy_and_torch_do_not_mix():
    with pytest.raises(TypeError, match="ndarray, Tensor"):
        cross_entropy_loss(np.zeros((2, 3)), torch.zeros(2, dtype=torch.long))


def test_policy_losses_hand_on_the_log_probability(kind):
    mean, log_std, actions, old, advantages = random_policy(0, True)
    expected = Normal(mean, log_std.exp()).log_prob(actions).sum(1)
    args = [kind(t) for t in (mean, log_std, actions)]
    assert_equal(gaussian_policy_gradient_loss(*args, kind(advantages)).log_prob, expected)
    assert_equal(gaussian_ppo_loss(*args, kind(old), kind(advantages), CLIP).log_prob, expected)
    choices = torch.arange(len(mean)) % mean.shape[1]
    expected = Categorical(logits=mean).log_prob(choices)
    args = kind(mean), kind(choices)
    assert_equal(softmax_policy_gradient_loss(*args, kind(advantages)).log_prob, expected)
    assert_equal(softmax_ppo_loss(*args, kind(old), kind(advantages), CLIP).log_prob, expected)
    assert_equal(cross_entropy_loss(*args).log_prob, expected)
