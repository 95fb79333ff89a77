"""The claims about HesScale's backward pass, in float64."""

import copy

import numpy as np
import pytest
import torch
from torch.func import functional_call, hessian

from hesscale_core import TanhMLP, cross_entropy_loss, value_loss

NETWORKS = [(3, (), 2), (3, (5,), 2), (4, (6, 5), 3), (2, (4, 4, 4, 4), 1), (1, (1, 1, 1), 1)]


def make(sizes, seed=0, batch=7):
    """A network with biases that are not zero, an input and targets."""
    torch.manual_seed(seed)
    net = TanhMLP(*sizes).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net, torch.randn(batch, sizes[0]).double(), torch.randint(sizes[2], (batch,))


def backward(net, kind, x, targets, gauss_newton=False):
    loss = cross_entropy_loss(net(kind(x)) if kind else net(x).detach(), kind(targets) if kind else targets)
    net.backward(loss.grad_logits, loss.hess_logits, gauss_newton)


def exact_diagonal(net, loss):
    """Diagonal of the full Hessian of loss(parameters), by parameter name."""
    params = {name: p.detach() for name, p in net.named_parameters()}
    full = hessian(loss)(params)
    return {name: full[name][name].reshape(p.numel(), -1).diagonal().reshape(p.shape) for name, p in params.items()}


def cross_entropy_of(net, x, targets):
    return lambda params: torch.nn.functional.cross_entropy(functional_call(net, params, (x,)), targets)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sizes", NETWORKS)
@pytest.mark.parametrize("gauss_newton", [False, True])
def test_gradient_is_autograds(kind, sizes, gauss_newton):
    net, x, targets = make(sizes)
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(net(x), targets), list(net.parameters()))
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
    v = value_loss(net(kind(x)) if isinstance(kind(x), np.ndarray) else net(x).detach(), kind(returns))
    net.backward(v.grad_value, v.hess_value)
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
        p = torch.nn.functional.one_hot(target, len(q))
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


def ggn_diagonal(net, x, output_hessian):
    """Diagonal of the mean over the batch of J^T H J, with J the network's Jacobian, by parameter name."""
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
    out = net(kind(x)) if isinstance(kind(x), np.ndarray) else net(x).detach()
    v = value_loss(out, kind(returns))
    net.backward(v.grad_value, v.hess_value, gauss_newton=True)
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


def test_gradient_alone_leaves_no_hessian(kind):
    net, x, targets = make((4, (6, 5), 3))
    loss = cross_entropy_loss(kind(net(x)), kind(targets))
    net(kind(x))
    net.backward(loss.grad_logits, None)
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(net(x), targets), list(net.parameters()))
    for p, grad in zip(net.parameters(), expected, strict=True):
        close(p.grad, grad)
        assert not hasattr(p, "hess")


def test_nothing_accumulates(kind):
    net, x, targets = make((4, (6, 5), 3))
    backward(net, kind, x, targets)
    first = [p.hess.clone() for p in net.parameters()] + [p.grad.clone() for p in net.parameters()]
    backward(net, kind, x, targets)
    for a, b in zip(first, [p.hess for p in net.parameters()] + [p.grad for p in net.parameters()], strict=True):
        close(a, b)


def test_numpy_follows_parameters_that_were_rebound(kind):
    """Views are kept between calls; loading, moving or replacing what they show must not leave them stale."""
    net, x, targets = make((4, (6, 5), 3))
    backward(net, kind, x, targets)
    for p in net.parameters():
        p.data = 0.5 * p.data
        p.grad, p.hess = torch.zeros_like(p), torch.zeros_like(p)
    backward(net, kind, x, targets)
    for p, expected in zip(net.parameters(), literal_hesscale(net, x, targets, False), strict=True):
        close(p.hess, expected)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.layers[0].weight.zero_()
    close(torch.as_tensor(net(kind(x))).detach(), net(x).detach())
    close(torch.as_tensor(twin(kind(x))).detach(), twin(x).detach())


def test_initialization_is_cleanrls():
    torch.manual_seed(0)
    net = TanhMLP(11, (64, 64), 3, output_gain=0.01)
    for layer, gain in zip(net.layers, [2**0.5, 2**0.5, 0.01], strict=True):
        rows = min(layer.weight.shape)
        w = layer.weight.detach() if layer.weight.shape[0] == rows else layer.weight.detach().T
        torch.testing.assert_close(w @ w.T, gain**2 * torch.eye(rows), rtol=1e-4, atol=1e-5)
        assert not layer.bias.any()


def test_backward_without_forward_is_an_error():
    with pytest.raises(RuntimeError, match="call forward first"):
        TanhMLP(3, (4,), 2).backward(torch.zeros(5, 2), torch.zeros(5, 2))


@pytest.mark.parametrize(
    "grad_shape, hess_shape, named", [((5, 3), (5, 2), "grad"), ((5, 2), (4, 2), "hess"), ((2,), (5, 2), "grad")]
)
def test_backward_names_the_shape_that_does_not_fit(kind, grad_shape, hess_shape, named):
    net = TanhMLP(3, (4,), 2)
    net(kind(torch.zeros(5, 3)))
    with pytest.raises(ValueError, match=f"{named}_output has shape .* expected \\[5, 2\\]"):
        net.backward(kind(torch.zeros(grad_shape)), kind(torch.zeros(hess_shape)))


def test_wrong_inputs_are_named(kind):
    net = TanhMLP(3, (4,), 2)
    with pytest.raises(ValueError, match=r"input has shape \[5, 4\]; expected \[B, 3\]"):
        net(kind(torch.zeros(5, 4)))
    with pytest.raises(TypeError, match="float64"):
        net(np.zeros((5, 3)))
    with pytest.raises(ValueError, match="positive"):
        TanhMLP(3, (0,), 2)
