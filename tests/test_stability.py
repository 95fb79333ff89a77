"""The figures stability/* against torch's divergences and examples worked by hand; without it a run is the same."""

import copy
import math

import numpy as np
import pytest
import torch
from test_runs import args_of, only_run, outcome, run, scalars
from torch.distributions import Categorical, Independent, Normal, kl_divergence

import hesscale_run
import ppo_hesscale
from hesscale_core import Gaussian, Softmax, TanhMLP
from hesscale_utils import feature_rank, stability_figures

# ---- the divergence ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mean, std, other_mean, other_std, expected",
    [
        (0.0, 1.0, 1.0, 1.0, 0.5),
        (0.0, 1.0, 0.0, 2.0, math.log(2) + 1 / 8 - 1 / 2),
        (0.0, 2.0, 0.0, 1.0, -math.log(2) + 2 - 1 / 2),
        (3.0, 2.0, 1.0, 4.0, math.log(2) + (4 + 4) / 32 - 1 / 2),
    ],
)
def test_a_divergence_of_gaussians_by_hand(kind, mean, std, other_mean, other_std, expected):
    one, other = (
        Gaussian(kind(torch.full((3, 2), m)), kind(torch.full((2,), math.log(s))))
        for m, s in ((mean, std), (other_mean, other_std))
    )
    assert float(one.kl(other)) == pytest.approx(2 * expected, rel=1e-6)  # two actions


def test_a_small_divergence_is_not_one_of_rounding(kind):
    one, other = (Gaussian(kind(torch.zeros(3, 1)), kind(torch.full((1,), s))) for s in (0.0, 1e-5))
    assert 0 <= float(one.kl(other)) < 1e-9


@pytest.mark.parametrize("shared", [True, False])
def test_a_divergence_of_gaussians_is_torchs(kind, shared):
    torch.manual_seed(0)
    means = torch.randn(2, 7, 3, dtype=torch.float64)
    log_stds = torch.randn(2, *((3,) if shared else (7, 3)), dtype=torch.float64)
    one, other = (Gaussian(kind(m), kind(s)) for m, s in zip(means, log_stds, strict=True))
    p, q = (Independent(Normal(m, s.exp().expand(7, 3)), 1) for m, s in zip(means, log_stds, strict=True))
    assert float(one.kl(other)) == pytest.approx(kl_divergence(p, q).mean().item(), rel=1e-12)
    assert float(one.kl(one)) == 0


def test_a_divergence_of_softmaxes_is_torchs_and_by_hand(kind):
    torch.manual_seed(1)
    logits = 2 * torch.randn(2, 7, 4, dtype=torch.float64)
    one, other = (Softmax(kind(x)) for x in logits)
    expected = kl_divergence(*(Categorical(logits=x) for x in logits)).mean().item()
    assert float(one.kl(other)) == pytest.approx(expected, rel=1e-12)
    one, other = (Softmax(kind(torch.tensor([q]).log())) for q in ([0.5, 0.5], [0.25, 0.75]))
    assert float(one.kl(other)) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-6)


def test_a_divergence_of_softmaxes_can_be_differentiated():
    torch.manual_seed(2)
    logits = torch.randn(2, 7, 4, dtype=torch.float64)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    Softmax(ours[0]).kl(Softmax(ours[1])).backward()
    kl_divergence(*(Categorical(logits=x) for x in theirs)).mean().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


# ---- the rank ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "singular_values, delta, rank",
    [
        ([90.0, 9.5, 0.5], 0.01, 2),  # 90% and 99.5% of their sum
        ([90.0, 9.5, 0.5], 0.001, 3),
        ([90.0, 9.5, 0.5], 0.2, 1),
        ([90.0, 8.5, 1.5], 0.01, 3),  # 98.5%
        ([1.0, 1.0, 1.0], 0.01, 3),
        ([5.0, 0.0, 0.0], 0.01, 1),
        ([0.0, 0.0, 0.0], 0.01, 1),
    ],
)
def test_a_rank_by_hand(singular_values, delta, rank):
    rng = np.random.default_rng(0)
    left, right = np.linalg.qr(rng.normal(size=(20, 3)))[0], np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert feature_rank(left * singular_values @ right, delta) == rank


def test_a_rank_is_of_uncentred_features_and_by_default_of_99_percent():
    assert feature_rank(np.ones((10, 4))) == 1
    assert feature_rank(np.eye(101)) == 100 and feature_rank(np.eye(101), 0.02) == 99  # 99.99 and 98.98 of 101
    assert math.isnan(feature_rank(np.array([[1.0, np.nan], [0.0, 1.0]])))


# ---- the units ---------------------------------------------------------------------------------------------


def agent_of(weights, biases):
    """An agent whose critic has one input, and hidden layers with these weights and biases."""
    agent = ppo_hesscale.Agent(1, 1, discrete=False)
    agent.critic = TanhMLP(1, [len(b) for b in biases], 1)
    with torch.no_grad():
        for layer, w, b in zip(agent.critic.layers, weights, biases, strict=False):
            layer.weight[:], layer.bias[:] = torch.tensor(w), torch.tensor(b)
    return agent


def figures_of(agent, obs):
    return stability_figures(agent, agent.policy(obs), obs)


def test_saturated_and_dead_units_by_hand():
    obs = np.linspace(-1, 1, 100, dtype=np.float32)[:, None]
    agent = agent_of(
        # a step from -1 to 1: saturated; 1: both; tanh(0.5): dead; tanh(x / 2): neither
        # of the last, tanh(0): dead; tanh(tanh(x / 2)): neither
        [[[1000.0], [0.0], [0.0], [0.5]], [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]],
        [[0.0, 100.0, 0.5, 0.0], [0.0, 0.0]],
    )
    figures = figures_of(agent, obs)
    assert figures["stability/saturated_critic"] == pytest.approx(2 / 6)
    assert figures["stability/dead_critic"] == pytest.approx(3 / 6)
    assert figures["stability/rank_critic"] == 1  # of the last layer: one of its two units is 0
    assert figures["stability/saturated_actor"] == 0 and figures["stability/kl"] == 0


@pytest.mark.parametrize("flat, saturated", [(4, 1.0), (6, 0.0)])
def test_a_unit_is_saturated_by_more_than_95_percent_of_the_observations(flat, saturated):
    obs = np.array([0.0] * flat + [1.0] * (100 - flat), np.float32)[:, None]
    assert figures_of(agent_of([[[10.0]]], [[0.0]]), obs)["stability/saturated_critic"] == saturated
    assert figures_of(agent_of([[[2.6]]], [[0.0]]), obs)["stability/saturated_critic"] == 0  # tanh(2.6) = 0.989
    assert figures_of(agent_of([[[-2.7]]], [[0.0]]), obs)["stability/saturated_critic"] == saturated  # -0.991
    ones = np.ones_like(obs)
    assert figures_of(agent_of([[[2.6]]], [[0.0]]), ones)["stability/saturated_critic"] == 0  # also if always at 0.989


@pytest.mark.parametrize("weight, dead", [(0.9e-3, 1.0), (1.1e-3, 0.0)])
def test_a_unit_is_dead_whose_standard_deviation_is_below_a_thousandth(weight, dead):
    obs = np.array([-1.0, 1.0] * 50, np.float32)[:, None]
    assert figures_of(agent_of([[[weight]]], [[0.0]]), obs)["stability/dead_critic"] == dead


def test_the_norm_is_that_of_all_parameters():
    agent = agent_of([[[3.0]]], [[0.0]])
    with torch.no_grad():
        agent.critic.layers[1].weight[:], agent.critic.layers[1].bias[:] = 4.0, 12.0
        agent.actor.log_std[:] = 100.0
    figures = figures_of(agent, np.zeros((2, 1), np.float32))
    assert figures["stability/norm_critic"] == pytest.approx(13) and figures["stability/norm_actor"] > 100


def test_the_extremes_of_the_standard_deviation_are_over_observations_and_actions():
    obs = np.array([[0.5], [-1.0]], np.float32)
    agent = ppo_hesscale.Agent(1, 2, discrete=False)
    with torch.no_grad():
        agent.actor.log_std[:] = torch.tensor([-0.5, 2.0])
    figures = figures_of(agent, obs)
    assert (figures["stability/min_log_std"], figures["stability/max_log_std"]) == (-0.5, 2.0)

    agent = ppo_hesscale.Agent(1, 2, discrete=False, state_std=True)
    with torch.no_grad():
        for p in agent.actor_std.parameters():
            p.zero_()
        agent.actor_std.layers[0].weight[0], agent.actor_std.layers[1].weight[:, 0] = 1.0, torch.tensor([3.0, 4.0])
    figures = figures_of(agent, obs)  # 3 tanh(x) and 4 tanh(x), for x = 0.5 and -1
    assert figures["stability/min_log_std"] == pytest.approx(-4 * math.tanh(1))
    assert figures["stability/max_log_std"] == pytest.approx(4 * math.tanh(0.5))
    assert not any("log_std" in tag for tag in figures_of(ppo_hesscale.Agent(1, 2, discrete=True), obs))


@pytest.mark.parametrize("discrete, state_std", [(True, False), (False, False), (False, True)])
def test_tensors_as_on_a_gpu_have_the_figures_of_arrays(discrete, state_std):
    torch.manual_seed(2)
    agent, other = (ppo_hesscale.Agent(3, 2, discrete, state_std) for _ in range(2))
    with torch.no_grad():
        other.actor.layers[-1].weight.mul_(100)
    obs = np.random.default_rng(3).normal(size=(50, 3)).astype(np.float32)
    figures = stability_figures(agent, other.policy(obs), obs)
    of_tensors = stability_figures(agent, other.policy(torch.tensor(obs)), torch.tensor(obs))
    assert of_tensors == pytest.approx(figures, rel=1e-4) and figures["stability/kl"] > 0.01


# ---- in a run ----------------------------------------------------------------------------------------------

FLAGS = "--num-steps 128 --num-minibatches 2 --total-timesteps 384 --optimizer adam --learning-rate 3e-3".split()


@pytest.mark.parametrize(
    "flags, networks",
    [
        (["--env-id", "CartPole-v1"], "critic actor"),
        (["--env-id", "Pendulum-v1"], "critic actor"),
        (["--env-id", "Pendulum-v1", "--state-std"], "critic actor actor_std"),
    ],
)
def test_a_run_logs_the_divergence_of_each_rollouts_update_and_is_the_same_without(
    tmp_path, monkeypatch, flags, networks
):
    expected, update = [], ppo_hesscale.update

    def folder_of(name, *more):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        ppo_hesscale.main(args_of("ppo", *FLAGS, *flags, *more))
        return only_run(tmp_path / name)

    def distribution(agent, obs):
        agent = copy.deepcopy(agent)
        x = torch.as_tensor(obs)
        if agent.discrete:
            return Categorical(logits=agent.actor(x).double())
        log_std = agent.actor_std(x) if agent.state_std else agent.actor.log_std.expand(len(x), -1)
        return Independent(Normal(agent.actor(x).double(), log_std.double().exp()), 1)

    def recorded_update(args, agent, optimizers, batch, rng):
        before = distribution(agent, batch.obs)
        figures = update(args, agent, optimizers, batch, rng)
        expected.append(kl_divergence(before, distribution(agent, batch.obs)).mean().item())
        return figures

    without = folder_of("without")
    monkeypatch.setattr(ppo_hesscale, "update", recorded_update)
    measured = folder_of("with", "--stability")
    logged = scalars(measured)
    assert [value for _, value in logged["stability/kl"]] == pytest.approx(expected, rel=1e-3)
    assert [step for step, _ in logged["stability/kl"]] == [128, 256, 384] and min(expected) > 1e-4
    tags = {f"stability/{figure}_{net}" for figure in ("saturated", "dead", "rank", "norm") for net in networks.split()}
    tags |= {"stability/kl"} | {f"stability/{end}_log_std" for end in ("min", "max") if "CartPole-v1" not in flags}
    assert {tag for tag in logged if tag.startswith("stability/")} == tags
    weights, statistics, others, result = outcome(measured)
    others = {tag: values for tag, values in others.items() if not tag.startswith("stability/")}
    assert (weights, statistics, others, result) == outcome(without)


def test_the_decay_rates_reach_every_optimizer(tmp_path, monkeypatch):
    monkeypatch.setattr(hesscale_run.Run, "progress", lambda self, step: setattr(self, "signal", 15))
    flags = "--env-id Pendulum-v1 --betas 0.8 0.95".split()
    assert run(tmp_path, "ppo", *FLAGS, *flags)[0] == hesscale_run.INTERRUPTED
    checkpoint = torch.load(f"{only_run(tmp_path)}/checkpoint.pt", weights_only=True)
    betas = [state["param_groups"][0]["betas"] for state in checkpoint["optimizers"].values()]
    assert [tuple(pair) for pair in betas] == [(0.8, 0.95)] * 2
