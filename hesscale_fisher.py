"""The Fisher information of policy and value, the metric of the trust region with --fisher.

The trust region of Algorithm 3 measures an update u by sum sqrt(V^) u^2, with HesScale's V^. The policy's Fisher
information F measures it in nats: half of sum F u^2 is the KL divergence to second order, but for F's off-diagonal.
"""

from hesscale_core import Softmax


def leave_fisher(agent, policy, value):
    """Leave the diagonal of the Fisher information, a mean over the batch, in .fisher of every parameter.

    Carries that of the output through Eq. 4 without its last term; that of the value, N(value, 1)'s, is exact. Call it
    after the forward passes that gave `policy` and `value`, and before the backward pass of the losses.
    """
    xp, batch = policy.xp, len(value)
    _backward(agent.critic, xp.full_like(value, 1 / batch), "exact")
    if isinstance(policy, Softmax):
        _backward(agent.actor, (policy.q - policy.q * policy.q) / batch)
        return
    mean_fisher = xp.exp(-2 * policy.log_std) / batch * xp.ones_like(policy.mean)
    if agent.state_std:
        _backward(agent.actor, mean_fisher)
        _backward(agent.actor_std, xp.full_like(policy.log_std, 2 / batch))
    else:
        _backward(agent.actor, mean_fisher, True, xp.full_like(policy.log_std, 2.0))


def _backward(net, fisher, gauss_newton=True, fisher_log_std=None):
    """Carry the output's Fisher diagonal [B, out] to .fisher of the parameters; .grad and .hess are the next pass's."""
    net.backward(fisher, fisher, gauss_newton, fisher_log_std, fisher_log_std)
    for p in net.published():
        p.fisher = p.hess.clone()
