"""The claims about HesScale's backward pass, in float64."""

import copy
import io

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.func import functional_call, hessian

from hesscale_core import Gaussian, TanhMLP, cross_entropy_loss, make_optimizer, policy_gradient_loss, value_loss

NETWORKS = [(3, (), 2), (3, (5,), 2), (4, (6, 5), 3), (2, (4, 4, 4, 4), 1), (1, (1, 1, 1), 1)]


def randomize(module, seed=0):
    """Add noise to every parameter: with biases of zero, some faults would not show."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data.add_(0.3 * torch.randn(p.shape, generator=generator).to(p.dtype))
    return module


def make(sizes, seed=0, batch=7, **options):
    """Return a network, an input and targets."""
    torch.manual_seed(seed)
    net = randomize(TanhMLP(*sizes, **options).double(), seed)
    return net, torch.randn(batch, sizes[0]).double(), torch.randint(sizes[2], (batch,))


def backward(net, kind, x, targets, gauss_newton=False):
    loss = cross_entropy_loss(net(kind(x)), kind(targets))
    net.backward(loss.grad, loss.hess, gauss_newton)


def exact_diagonal(net, loss):
    """Return the diagonal of the full Hessian of loss(parameters), by parameter name."""
    params = {name: p.detach() for name, p in net.named_parameters()}
    full = hessian(loss)(params)
    return {name: full[name][name].reshape(p.numel(), -1).diagonal().reshape(p.shape) for name, p in params.items()}


def cross_entropy_of(net, x, targets):
    return lambda params: nn.functional.cross_entropy(functional_call(net, params, (x,)), targets)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def assert_numpy_and_torch_agree(net, x):
    close(torch.as_tensor(net(x.numpy())), net(x).detach())


@pytest.mark.parametrize("sizes", NETWORKS)
@pytest.mark.parametrize("gauss_newton", [False, True])
def test_gradient_is_autograds(kind, sizes, gauss_newton):
    net, x, targets = make(sizes)
    expected = torch.autograd.grad(nn.functional.cross_entropy(net(x), targets), list(net.parameters()))
    backward(net, kind, x, targets, gauss_newton)
    for p, grad in zip(net.parameters(), expected, strict=True):
        close(p.grad, grad)
        assert p.hess.shape == p.shape


@pytest.mark.parametrize("sizes", NETWORKS)
@pytest.mark.parametrize("gauss_newton", [False, True])
def test_last_layer_hessian_is_exact(kind, sizes, gauss_newton):
    net, x, targets = make(sizes)
    expected = exact_diagonal(net, cross_entropy_of(net, x, targets))
    backward(net, kind, x, targets, gauss_newton)
    last = len(sizes[1])
    close(net.layers[last].weight.hess, expected[f"layers.{last}.weight"])
    close(net.layers[last].bias.hess, expected[f"layers.{last}.bias"])


def test_hessian_is_exact_everywhere_for_networks_one_unit_wide(kind):
    net, x, _ = make((1, (1, 1, 1), 1))
    returns = torch.randn(7, 1).double()
    loss = lambda params: 0.5 * ((functional_call(net, params, (x,)) - returns) ** 2).mean()  # noqa: E731
    expected = exact_diagonal(net, loss)
    v = value_loss(net(kind(x)), kind(returns))
    net.backward(v.grad, v.hess)
    for name, p in net.named_parameters():
        close(p.hess, expected[name])


def literal_hesscale(net, x, targets, gauss_newton):
    """Algorithm 1 with Eq. 1-4 as they are printed: per sample, per unit, with loops; means over the batch."""
    weights = [layer.weight.detach() for layer in net.layers]
    biases = [layer.bias.detach() for layer in net.layers]
    hess = [torch.zeros_like(w) for w in weights], [torch.zeros_like(b) for b in biases]
    for sample, target in zip(x, targets, strict=True):
        activations = [sample]  # h_0, h_1, ...
        for w, b in zip(weights[:-1], biases[:-1], strict=True):
            activations.append(torch.tanh(w @ activations[-1] + b))
        q = torch.softmax(weights[-1] @ activations[-1] + biases[-1], 0)
        p = nn.functional.one_hot(target, len(q))
        da, dda = q - p, q - q * q
        for layer in reversed(range(len(weights))):
            h_below = activations[layer]
            for i in range(len(da)):
                for j in range(len(h_below)):
                    hess[0][layer][i, j] += dda[i] * h_below[j] ** 2 / len(x)  # Eq. 3
                hess[1][layer][i] += dda[i] / len(x)
            if layer == 0:
                break
            da_below, dda_below = torch.zeros_like(h_below), torch.zeros_like(h_below)
            for i in range(len(h_below)):
                sigma_1 = 1 - h_below[i] ** 2
                sigma_2 = 0 if gauss_newton else -2 * h_below[i] * sigma_1
                for k in range(len(da)):
                    da_below[i] += sigma_1 * da[k] * weights[layer][k, i]  # Eq. 2
                    dda_below[i] += sigma_1**2 * dda[k] * weights[layer][k, i] ** 2  # Eq. 4
                    dda_below[i] += sigma_2 * da[k] * weights[layer][k, i]
            da, dda = da_below, dda_below
    return [h for pair in zip(*hess, strict=True) for h in pair]


@pytest.mark.parametrize("sizes", NETWORKS)
@pytest.mark.parametrize("gauss_newton", [False, True])
def test_hessian_is_that_of_the_equations_read_literally(kind, sizes, gauss_newton):
    net, x, targets = make(sizes, seed=1)
    backward(net, kind, x, targets, gauss_newton)
    for p, expected in zip(net.parameters(), literal_hesscale(net, x, targets, gauss_newton), strict=True):
        close(p.hess, expected)
        assert p.hess.curvature == ("HesScaleGN" if gauss_newton else "HesScale")


def ggn_diagonal(net, x, output_hessian):
    """Return the diagonal of the mean over the batch of J^T H J, J the network's Jacobian, by parameter name."""
    params = {name: p.detach() for name, p in net.named_parameters()}
    jacobian = torch.func.jacrev(lambda params: functional_call(net, params, (x,)))(params)
    return {
        name: torch.einsum("bkp,bkl,blp->p", *[j.flatten(2), output_hessian, j.flatten(2)]).reshape(params[name].shape)
        for name, j in jacobian.items()
    }


def test_gauss_newton_equals_the_exact_ggn_with_one_hidden_layer_and_one_output(kind):
    """The output's Hessian is then a number, and a hidden weight reaches the output through one unit alone."""
    net, x, _ = make((4, (6,), 1), seed=2)
    returns = torch.randn(7, 1).double()
    expected = ggn_diagonal(net, x, torch.ones(7, 1, 1).double() / 7)
    v = value_loss(net(kind(x)), kind(returns))
    net.backward(v.grad, v.hess, gauss_newton=True)
    for name, p in net.named_parameters():
        close(p.hess, expected[name])


def test_gauss_newton_equals_the_exact_ggn_where_the_output_hessian_is_diagonal(kind):
    """The independent dimensions of a Gaussian policy's mean, one hidden layer: sum_k H_kk (dy_k/dw)^2."""
    net, x, _ = make((4, (6,), 3), seed=3)
    diagonal = torch.rand(7, 3).double()
    expected = ggn_diagonal(net, x, torch.diag_embed(diagonal))
    net(kind(x))
    net.backward(kind(torch.randn(7, 3).double()), kind(diagonal), gauss_newton=True)
    for name, p in net.named_parameters():
        close(p.hess, expected[name])


@pytest.mark.parametrize("hidden", [(5,), (6, 5), (5, 6, 4)])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_exact_gauss_newton_is_autograds_ggn_of_a_clipped_value_loss(kind, hidden, batch):
    """Sum over samples of h (dv/dw)^2, one backward pass of autograd each; samples of zero curvature are included."""
    net, x, _ = make((4, hidden, 1), seed=batch, batch=batch)
    value, returns, old_value = net(x), *torch.randn(2, batch, 1).double()
    squared = torch.max((value - returns) ** 2, (old_value + (value - old_value).clamp(-0.2, 0.2) - returns) ** 2)
    (g,) = torch.autograd.grad(0.5 * squared.mean(), value, create_graph=True)
    curved = g.detach() != 0  # where the larger branch is constant, both derivatives are zero
    v = value_loss(net(kind(x)), kind(returns), kind(old_value), 0.2)
    net.backward(v.grad, v.hess, gauss_newton="exact")
    assert batch < 64 or 0 < curved.sum() < batch
    params = list(net.parameters())
    expected = [torch.zeros_like(p) for p in params]
    for b in range(batch):
        for total, slope in zip(expected, torch.autograd.grad(net(x[b : b + 1])[0, 0], params), strict=True):
            total += curved[b, 0].double() / batch * slope**2
    for p, diagonal in zip(params, expected, strict=True):
        close(p.hess, diagonal)
        assert p.hess.curvature == "GGN"
    for p, grad in zip(params, torch.autograd.grad(0.5 * squared.mean(), params), strict=True):
        close(p.grad, grad)


def test_exact_gauss_newton_refuses_more_outputs_and_negative_curvature(kind):
    for outputs, curvature in (2, 1.0), (1, -1.0):
        net, x, _ = make((4, (5,), outputs))
        net(kind(x))
        hess = torch.ones(7, outputs).double()
        hess[3] = curvature
        with pytest.raises(ValueError, match="needs a network with one output, and no hess_output below zero"):
            net.backward(kind(hess), kind(hess), gauss_newton="exact")
        net.backward(kind(hess), None, gauss_newton="exact")  # the gradient alone


def test_gradient_alone_leaves_no_hessian(kind):
    """Not even the one of the backward pass before, which an optimizer could take for this one's."""
    net, x, targets = make((4, (6, 5), 3))
    backward(net, kind, x, targets)
    loss = cross_entropy_loss(net(kind(x)), kind(targets))
    net.backward(2 * loss.grad, None)
    expected = torch.autograd.grad(2 * nn.functional.cross_entropy(net(x), targets), list(net.parameters()))
    for p, grad in zip(net.parameters(), expected, strict=True):
        close(p.grad, grad)
        assert p.hess is None


def test_nothing_accumulates(kind):
    net, x, targets = make((4, (6, 5), 3))
    backward(net, kind, x, targets)
    first = [p.hess.clone() for p in net.parameters()] + [p.grad.clone() for p in net.parameters()]
    backward(net, kind, x, targets)
    for a, b in zip(first, [p.hess for p in net.parameters()] + [p.grad for p in net.parameters()], strict=True):
        close(a, b)


# ---- a Gaussian policy's log_std -----------------------------------------------------------------------------


def make_actor(kind, seed=0):
    """Return a network with log_std, inputs, actions and advantages as tensors, and its policy-gradient loss."""
    net, x, _ = make((4, (6,), 3), seed, log_std=True)
    actions, advantages = torch.randn(7, 3).double(), torch.randn(7).double()
    policy = Gaussian(net(kind(x)), net.log_std_like(kind(x)))
    return net, (x, actions, advantages), policy_gradient_loss(policy, kind(actions), kind(advantages))


def test_log_std_has_its_exact_gradient_and_diagonal(kind):
    net, (x, actions, advantages), pg = make_actor(kind)
    net.backward(pg.grad, pg.hess, False, pg.grad_log_std, pg.hess_log_std)

    def loss(params):
        policy = torch.distributions.Normal(functional_call(net, params, (x,)), params["log_std"].exp())
        return (-advantages * policy.log_prob(actions).sum(1)).mean()

    expected = exact_diagonal(net, loss)
    grads = torch.autograd.grad(loss(dict(net.named_parameters())), list(net.parameters()))
    for p, grad in zip(net.parameters(), grads, strict=True):
        close(p.grad, grad)
    for name in ("log_std", "layers.1.weight", "layers.1.bias"):
        close(net.get_parameter(name).hess, expected[name])


def test_log_std_is_in_the_flat_vector_as_every_parameter_is(kind):
    net, _, pg = make_actor(kind)
    net.backward(pg.grad, pg.hess, False, pg.grad_log_std, pg.hess_log_std)
    alone = [(p.detach().clone(), p.grad.clone(), p.hess.clone()) for p in net.parameters()]
    flat, values, grads, hesses = net.flat, *zip(*alone, strict=True)
    assert flat.numel() == sum(p.numel() for p in net.parameters())
    net.backward(pg.grad, pg.hess, False, pg.grad_log_std, pg.hess_log_std)
    for vector, parts in ((flat.detach(), values), (flat.grad, grads), (flat.hess, hesses)):
        assert vector.sort().values.equal(torch.cat([part.reshape(-1) for part in parts]).sort().values)
    flat.data.fill_(0.5)
    assert all((p == 0.5).all() for p in net.parameters())
    net.log_std.data.fill_(0.25)
    assert (flat == 0.25).sum() == 3


def test_a_policy_keeps_the_log_std_that_it_was_made_with(kind):
    net, x, _ = make((4, (6,), 3), log_std=True)
    kept = net.log_std_like(kind(x))
    expected = net.log_std.detach().clone()
    net.log_std.data += 1
    close(torch.as_tensor(kept).detach(), expected)
    net.log_std.data = expected + 2  # and without a forward pass the next policy gets this one
    close(torch.as_tensor(net.log_std_like(kind(x))).detach(), expected + 2)
    assert net.log_std_like(x).requires_grad  # for autograd


def test_log_std_and_its_derivatives_come_together(kind):
    net, _, pg = make_actor(kind)
    with pytest.raises(ValueError, match="log_std"):
        net.backward(pg.grad, pg.hess)
    with pytest.raises(TypeError, match="NoneType"):
        net.backward(pg.grad, pg.hess, False, pg.grad_log_std)
    with pytest.raises(ValueError, match=r"hess_log_std has shape \[7, 3\]; expected \[3\]"):
        net.backward(pg.grad, pg.hess, False, pg.grad_log_std, pg.hess)
    with pytest.raises(ValueError, match=r"grad_log_std has shape \[1\]; expected \[3\]"):
        net.backward(pg.grad, pg.hess, False, pg.grad_log_std[:1], pg.hess_log_std)
    net.backward(pg.grad, None, False, pg.grad_log_std)
    assert net.log_std.hess is None
    close(net.log_std.grad, torch.as_tensor(pg.grad_log_std))
    without, x, _ = make((4, (6,), 3))
    without(kind(x))
    with pytest.raises(ValueError, match="log_std"):
        without.backward(pg.grad, pg.hess, False, pg.grad_log_std, pg.hess_log_std)


# ---- what may happen to a network's parameters -----------------------------------------------------------------


def test_numpy_follows_parameters_that_were_rebound(kind):
    """Views are kept between calls; an assigned .data must not leave them stale."""
    net, x, targets = make((4, (6, 5), 3))
    backward(net, kind, x, targets)
    for p in net.parameters():
        p.data = 0.5 * p.data
        p.grad, p.hess = torch.zeros_like(p), torch.zeros_like(p)
    backward(net, kind, x, targets)
    for p, expected in zip(net.parameters(), literal_hesscale(net, x, targets, False), strict=True):
        close(p.hess, expected)


def test_replaced_appended_and_removed_layers_count(kind):
    net, x, targets = make((4, (6, 5), 3))
    backward(net, kind, x, targets)

    def replace():
        net.layers[1] = randomize(nn.Linear(6, 5).double(), 1)

    for change in (
        replace,
        lambda: net.layers.append(randomize(nn.Linear(3, 3).double(), 2)),
        lambda: net.layers.pop(-1),
    ):
        before = net(x)
        change()
        assert not before.equal(net(x))
        assert_numpy_and_torch_agree(net, x)
        backward(net, kind, x, targets)
        for p, expected in zip(net.parameters(), literal_hesscale(net, x, targets, False), strict=True):
            close(p.hess, expected)


def reload(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


MOVES = {
    "load_state_dict": lambda net: net.load_state_dict(make((4, (6, 5), 3), seed=5)[0].state_dict()) and net,
    "load_state_dict(assign=True)": lambda net: (
        nn.Sequential(net).load_state_dict(nn.Sequential(make((4, (6, 5), 3), seed=5)[0]).state_dict(), assign=True)
        and net
    ),
    "double": lambda net: net.float().double(),
    "to": lambda net: net._apply(torch.clone),  # what .to() does when it moves parameters to another device
    "deepcopy": copy.deepcopy,
    "torch.save": reload,
}


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("move", MOVES)
def test_networks_follow_moves_and_copies_whether_pinned_or_not(kind, move, pinned):
    net, x, targets = make((4, (6, 5), 3))
    flat = net.flat if pinned else None
    backward(net, kind, x, targets)
    moved = MOVES[move](net)
    before = net(x.numpy())
    randomize(moved, seed=9)
    assert_numpy_and_torch_agree(moved, x)
    backward(moved, kind, x, targets)
    diagonals = literal_hesscale(moved, x, targets, False)
    if pinned:
        close(moved.flat.hess, torch.cat([diagonal.reshape(-1) for diagonal in diagonals]))
    else:
        for p, diagonal in zip(moved.parameters(), diagonals, strict=True):
            close(p.hess, diagonal)
    if moved is net:
        assert not pinned or net.flat is flat  # the parameter that an optimizer has
    else:
        assert np.array_equal(net(x.numpy()), before)  # a copy's changes are its own


def test_a_reloaded_network_is_whole_even_where_its_parameters_lie_where_they_lay():
    """Memory that was freed is used again, so that parameters can come to lie at their old addresses."""
    x, same_address = torch.randn(5, 11), 0
    for _ in range(30):
        net, file = TanhMLP(11, (64, 64), 3), io.BytesIO()
        net(x.numpy())
        places = [p.data_ptr() for p in net.parameters()]
        torch.save(net, file)
        file.seek(0)
        del net
        net = torch.load(file, weights_only=False)
        same_address += places == [p.data_ptr() for p in net.parameters()]
        net.layers[0].weight.data.zero_()
        torch.testing.assert_close(torch.as_tensor(net(x.numpy())), net(x).detach(), rtol=1e-5, atol=1e-6)
        del net
    if not same_address:
        pytest.skip("the allocator gave new addresses each time")


def test_a_pinned_network_leaves_its_derivatives_in_the_flat_vector_alone(kind, monkeypatch):
    """To take net.flat saves the time to look at every parameter and to set its derivatives."""
    net, x, targets = make((4, (6, 5), 3))
    flat = net.flat
    if isinstance(kind(x), np.ndarray):
        monkeypatch.setattr(net, "current_parameters", None)
    backward(net, kind, x, targets)
    assert flat.grad.any() and flat.hess.any()
    assert all(p.hess is None for p in net.parameters())


def test_a_pinned_network_can_be_clipped_by_its_parameters(kind):
    net, x, targets = make((4, (6, 5), 3))
    twin = copy.deepcopy(net)
    backward(twin, kind, x, targets)
    whole = [p.grad.clone() for p in twin.parameters()]
    assert twin.flat is not None and all(p.hess is None for p in twin.parameters())  # not those of before
    flat = net.flat
    changes = [
        lambda: make_optimizer("adam", [flat], lr=0.1).zero_grad() or flat.grad is None,
        lambda: net.zero_grad() or not flat.grad.any(),
        lambda: net.zero_grad() or not flat.grad.any(),
        lambda: torch.nn.ModuleList([net]).zero_grad() or True,
        lambda: net.to("cpu").zero_grad() or True,  # moves nothing
    ]
    for change in changes:
        backward(net, kind, x, targets)
        assert change()
        backward(net, kind, x, targets)
        torch.testing.assert_close([p.grad for p in net.parameters()], whole)
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
        assert norm > 0.01 and flat.grad.norm() == pytest.approx(1e-3, rel=1e-3)
    net.double()  # no longer pinned
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: torch.nn.utils.prune.l1_unstructured(layer, "weight", amount=2),
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.spectral_norm,
    ],
)
def test_a_layer_with_other_parameters_is_refused(kind, change):
    net, x, _ = make((4, (6, 5), 3))
    change(net.layers[0])
    for use in (lambda: net(kind(x)), lambda: net.flat):
        with pytest.raises(TypeError, match="a layer has no parameter 'weight': undo the parametrization or pruning"):
            use()


@pytest.mark.parametrize("tie", ["layer", "weight"])
def test_layers_that_share_a_parameter_are_refused(kind, tie):
    """Each would have a place of its own in the vector, of which autograd and numpy would train one each."""
    net, x, _ = make((4, (5, 5, 5), 3))
    if tie == "layer":
        net.layers[2] = net.layers[1]
    else:
        net.layers[2].weight = net.layers[1].weight
    for use in (lambda: net(kind(x)) + net.backward(kind(x[:, :3]), kind(x[:, :3])), lambda: net.flat):
        with pytest.raises(ValueError, match="a parameter is used twice: give each place in the network parameters"):
            use()


def test_a_copy_that_is_first_used_in_inference_mode_can_be_trained():
    net = copy.deepcopy(make((4, (6, 5), 3))[0])
    with torch.inference_mode():
        net(np.ones((2, 4)))
    net(torch.ones(2, 4).double()).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_functional_call_uses_the_parameters_that_it_is_given():
    net, x, _ = make((4, (6, 5), 3))
    assert net.flat.requires_grad
    zeros = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    assert not functional_call(net, zeros, (x,)).any()
    assert net(x).any()


@pytest.mark.parametrize("log_std", [False, True])
def test_a_frozen_network_has_no_flat_parameter(log_std):
    net = TanhMLP(3, (4,), 2, log_std=log_std)
    frozen = net.log_std if log_std else net.layers[0].bias
    frozen.requires_grad_(False)
    with pytest.raises(ValueError, match=r"frozen.*net\.parameters\(\)"):
        _ = net.flat


@pytest.mark.parametrize("around", [lambda net: net, lambda net: torch.nn.ModuleList([net])])
def test_a_network_frozen_as_a_whole_after_its_flat_parameter_was_taken_is_not_trained(around):
    net = TanhMLP(3, (4,), 2)
    optimizer, x = make_optimizer("adahesscale", [net.flat], lr=0.1), np.ones((5, 3), np.float32)
    before = net.flat.detach().clone()
    around(net).requires_grad_(False)
    net.backward(net(x), np.ones((5, 2), np.float32))
    with pytest.raises(RuntimeError, match=r"no parameter that is trained has a \.grad"):
        optimizer.step()
    around(net).requires_grad_(True)
    assert torch.equal(net.flat, before)
    net.backward(net(x), np.ones((5, 2), np.float32))
    optimizer.step()
    assert not torch.equal(net.flat, before)


@pytest.mark.parametrize("x", [np.ones((5, 3), np.float32), torch.ones(5, 3)])
def test_a_network_without_log_std_has_none_to_give(x):
    with pytest.raises(ValueError, match="no log_std"):
        TanhMLP(3, (4,), 2).log_std_like(x)


# ---- initialization, types and errors ----------------------------------------------------------------------------


def test_initialization_is_cleanrls():
    torch.manual_seed(0)
    net = TanhMLP(11, (64, 64), 3, output_gain=0.01, log_std=True)
    for layer, gain in zip(net.layers, [2**0.5, 2**0.5, 0.01], strict=True):
        rows = min(layer.weight.shape)
        w = layer.weight.detach() if layer.weight.shape[0] == rows else layer.weight.detach().T
        torch.testing.assert_close(w @ w.T, gain**2 * torch.eye(rows), rtol=1e-4, atol=1e-5)
        assert not layer.bias.any()
    assert net.log_std.shape == (3,) and not net.log_std.any()
    assert TanhMLP(11, (64, 64), 3).log_std is None
    w = TanhMLP(5, (4,), 3).layers[-1].weight.detach()  # without a gain
    torch.testing.assert_close(w @ w.T, torch.eye(3), rtol=1e-4, atol=1e-5)


def test_float64_derivatives_of_a_float32_network_are_rounded(kind):
    """Returns and advantages are often float64, and the losses' derivatives then are too."""
    torch.manual_seed(0)
    net, x, returns = TanhMLP(3, (4,), 1), torch.randn(5, 3), torch.randn(5, 1).double()
    v = value_loss(net(kind(x)), kind(returns))
    assert torch.as_tensor(v.grad).dtype is torch.float64
    net.backward(v.grad, v.hess)
    expected = torch.autograd.grad(0.5 * ((net(x) - returns) ** 2).mean(), list(net.parameters()))
    for p, grad in zip(net.parameters(), expected, strict=True):
        assert p.grad.dtype is p.hess.dtype is torch.float32
        torch.testing.assert_close(p.grad, grad)


def test_a_float64_diagonal_beside_a_float32_gradient_is_rounded(kind):
    net = TanhMLP(3, (4,), 2)
    net(kind(torch.ones(5, 3)))
    net.backward(kind(torch.ones(5, 2)), kind(torch.ones(5, 2).double()))
    assert all(p.hess.dtype is torch.float32 and p.hess.any() for p in net.layers[1].parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # numpy's memory, and torch's
def test_log_stds_gradient_stands_in_its_diagonal(dtype):
    net, x, ones = TanhMLP(3, (4,), 2, log_std=True).to(dtype), torch.ones(5, 3).to(dtype), torch.ones(5, 2).to(dtype)
    net(x)
    net.backward(ones, ones, False, ones[0], 3 * ones[0])
    assert (net.arrays is None) == (dtype is torch.bfloat16) and net.log_std.hess.tolist() == [3, 3]
    net.log_std_hess_from_grad()
    assert net.log_std.hess.tolist() == net.log_std.grad.tolist() == [1, 1]


def test_a_network_of_a_dtype_that_numpy_lacks_takes_tensors():
    net, x, targets = TanhMLP(3, (4,), 2).bfloat16(), torch.ones(5, 3).bfloat16(), torch.ones(5, dtype=torch.long)
    backward(net, torch.Tensor.detach, x, targets)
    assert all(p.grad.dtype is p.hess.dtype is torch.bfloat16 and p.grad.any() for p in net.layers[1].parameters())
    with pytest.raises(TypeError, match=r"numpy array of float32, the parameters are torch\.bfloat16 on the cpu"):
        net(x.float().numpy())
    with pytest.raises(
        TypeError, match=r"array of float16, .* torch\.float16 on the cpu: numpy .* float32 and float64"
    ):
        net.half()(x.half().numpy())


def test_backward_without_forward_is_an_error():
    net = TanhMLP(3, (4,), 2)
    with pytest.raises(RuntimeError, match="call forward first"):
        net.backward(torch.zeros(5, 2), torch.zeros(5, 2))
    net(torch.zeros(5, 3))
    with pytest.raises(RuntimeError, match="call forward first"):  # a copy has not seen its original's input
        copy.deepcopy(net).backward(torch.zeros(5, 2), torch.zeros(5, 2))


@pytest.mark.parametrize(
    "grad_shape, hess_shape, named", [((5, 3), (5, 2), "grad"), ((5, 2), (4, 2), "hess"), ((2,), (5, 2), "grad")]
)
def test_backward_names_the_shape_that_does_not_fit(kind, grad_shape, hess_shape, named):
    net = TanhMLP(3, (4,), 2)
    net(kind(torch.zeros(5, 3)))
    with pytest.raises(ValueError, match=f"{named}_output has shape .* expected \\[5, 2\\]"):
        net.backward(kind(torch.zeros(grad_shape)), kind(torch.zeros(hess_shape)))


def test_backward_takes_what_forward_took():
    net, numbers = TanhMLP(3, (4,), 2, log_std=True), torch.zeros(5, 2)
    net(np.zeros((5, 3), np.float32))
    with pytest.raises(TypeError, match="ndarray, Tensor, Tensor"):
        net.backward(numbers, numbers, False, numbers[0], numbers[0])
    with pytest.raises(TypeError, match="ndarray, Tensor, Tensor"):
        net.backward(numbers.numpy(), numbers.numpy(), False, numbers[0], numbers[0])


def test_wrong_inputs_are_named(kind):
    net = TanhMLP(3, (4,), 2)
    with pytest.raises(ValueError, match=r"input has shape \[5, 4\]; expected \[B, 3\]"):
        net(kind(torch.zeros(5, 4)))
    with pytest.raises(TypeError, match="float64"):
        net(np.zeros((5, 3)))


@pytest.mark.parametrize("sizes", [(3, (0,), 2), (3, (4.0,), 2), (-1, (4,), 2)])
def test_sizes_are_positive_integers(sizes):
    with pytest.raises(ValueError, match="positive integers, got"):
        TanhMLP(*sizes)
