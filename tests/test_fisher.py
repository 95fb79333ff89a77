"""The Fisher information's diagonal against its definition, E[score^2], by autograd in float64."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hesscale_core import Gaussian, Softmax, TanhMLP, make_optimizer
from hesscale_fisher import leave_fisher


def make(kind, discrete, seed=0):
    """Return an agent with one hidden layer in its actor, observations, and its policy and values for them."""
    torch.manual_seed(seed)
    actor = TanhMLP(3, (5,), 2, log_std=not discrete).double()
    agent = SimpleNamespace(critic=TanhMLP(3, (5, 4), 1).double(), actor=actor, state_std=False)
    with torch.no_grad():
        for p in (*agent.critic.parameters(), *actor.parameters()):
            p += 0.3 * torch.randn(p.shape).double()
    obs = torch.randn(6, 3).double()
    output = actor(kind(obs))
    policy = Softmax(output) if discrete else Gaussian(output, actor.log_std_like(kind(obs)))
    return agent, obs, policy, agent.critic(kind(obs))


def expected_square(weighted_log_probs, params):
    """Sum over pairs of a probability and a log-probability of the squared score, by autograd."""
    total = [torch.zeros_like(p) for p in params]
    for weight, log_prob in weighted_log_probs:
        scores = torch.autograd.grad(log_prob, params, retain_graph=True, materialize_grads=True)
        total = [t + weight * s**2 for t, s in zip(total, scores, strict=True)]
    return total


def close(params, expected):
    for p, diagonal in zip(params, expected, strict=True):
        torch.testing.assert_close(p.fisher, diagonal, rtol=1e-9, atol=1e-12)


def quadrature(dimensions):
    """Yield nodes and weights that integrate a polynomial of degree 9 in each standard normal dimension exactly."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = weights / weights.sum()
    for indices in itertools.product(range(5), repeat=dimensions):
        yield torch.tensor([nodes[i] for i in indices]), float(np.prod([weights[i] for i in indices]))


def test_a_gaussians_fisher_information_is_exact_with_one_hidden_layer(kind):
    agent, obs, policy, value = make(kind, discrete=False)
    leave_fisher(agent, policy, value)
    net, mean = agent.actor, agent.actor(obs)
    normal = torch.distributions.Normal(mean, net.log_std.exp())
    samples = [
        (weight / len(obs), normal.log_prob((mean + z * net.log_std.exp()).detach()).sum(1)[b])
        for z, weight in quadrature(2)
        for b in range(len(obs))
    ]
    close(net.parameters(), expected_square(samples, list(net.parameters())))


def test_a_softmaxs_fisher_information_is_exact_in_the_last_layer(kind):
    agent, obs, policy, value = make(kind, discrete=True)
    leave_fisher(agent, policy, value)
    log_q, last = torch.log_softmax(agent.actor(obs), 1), list(agent.actor.layers[-1].parameters())
    samples = [(log_q[b, a].exp().detach() / len(obs), log_q[b, a]) for b in range(len(obs)) for a in range(2)]
    close(last, expected_square(samples, last))


def test_the_values_fisher_information_is_exact_in_every_layer(kind):
    agent, obs, policy, value = make(kind, discrete=False)
    leave_fisher(agent, policy, value)
    params, output = list(agent.critic.parameters()), agent.critic(obs)
    close(params, expected_square([(1 / len(obs), output[b, 0]) for b in range(len(obs))], params))


def test_the_trust_regions_h_is_the_sum_of_averaged_information_times_the_squared_update():
    """Worked by hand: beta2 = 0.5 and F = 2, then 4, average to 1 and 2.5; corrected by 0.5 and 0.75."""
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = make_optimizer("scaled-sgd", [p], lr=0.1, betas=(0.9, 0.5), delta=1e-4, fisher=True)
    for fisher, average in (2.0, 1.0 / 0.5), (4.0, 2.5 / 0.75):
        p.grad, p.fisher = torch.full_like(p.data, 3.0), torch.full_like(p.data, fisher)
        optimizer.step()
        assert optimizer.trust_region == pytest.approx(average * 0.3**2)
        assert optimizer.eta == pytest.approx((2e-4 / (average * 0.3**2)) ** 0.5)
    p.grad = torch.ones_like(p.data)
    with pytest.raises(RuntimeError, match=r"scaled-sgd: a parameter has no \.fisher: call leave_fisher"):
        optimizer.step()
