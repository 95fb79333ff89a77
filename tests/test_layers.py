"""HesScale of torch layers: gradients are autograd's, diagonals a literal recursion's, exact where that is claimed."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.functional import jacobian

import hesscale_layers
from hesscale_core import TanhMLP, cross_entropy_loss, make_optimizer, squared_error_loss, value_loss
from hesscale_layers import HesScale

PHI = lambda x: np.exp(-x * x / 2) / math.sqrt(2 * math.pi)  # noqa: E731
CDF = np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))
LOGISTIC = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
# first and second derivative of each activation, written down by hand
ACTIVATIONS = {
    "Tanh": (nn.Tanh(), lambda x: 1 - np.tanh(x) ** 2, lambda x: -2 * np.tanh(x) * (1 - np.tanh(x) ** 2)),
    "ReLU": (nn.ReLU(inplace=True), lambda x: 1.0 * (x > 0), lambda x: 0 * x),
    "LeakyReLU": (nn.LeakyReLU(0.2), lambda x: np.where(x > 0, 1, 0.2), lambda x: 0 * x),
    "ELU": (nn.ELU(0.7), lambda x: np.where(x > 0, 1, 0.7 * np.exp(x)), lambda x: np.where(x > 0, 0, 0.7 * np.exp(x))),
    "SELU": (
        nn.SELU(),
        lambda x: SELU_SCALE * np.where(x > 0, 1, SELU_ALPHA * np.exp(x)),
        lambda x: SELU_SCALE * np.where(x > 0, 0, SELU_ALPHA * np.exp(x)),
    ),
    "Sigmoid": (
        nn.Sigmoid(),
        lambda x: LOGISTIC(x) * LOGISTIC(-x),
        lambda x: LOGISTIC(x) * LOGISTIC(-x) * (1 - 2 * LOGISTIC(x)),
    ),
    "SiLU": (
        nn.SiLU(),
        lambda x: LOGISTIC(x) * (1 + x * LOGISTIC(-x)),
        lambda x: LOGISTIC(x) * LOGISTIC(-x) * (2 + x * (1 - 2 * LOGISTIC(x))),
    ),
    "GELU": (nn.GELU(), lambda x: CDF(x) + x * PHI(x), lambda x: (2 - x * x) * PHI(x)),
    "Softplus": (nn.Softplus(2.0), lambda x: LOGISTIC(2 * x), lambda x: 2 * LOGISTIC(2 * x) * LOGISTIC(-2 * x)),
    "CELU": (
        nn.CELU(2.0),
        lambda x: np.where(x > 0, 1, np.exp(x / 2)),
        lambda x: np.where(x > 0, 0, np.exp(x / 2) / 2),
    ),
    "Softsign": (nn.Softsign(), lambda x: (1 + abs(x)) ** -2.0, lambda x: -2 * np.sign(x) * (1 + abs(x)) ** -3.0),
    "LogSigmoid": (nn.LogSigmoid(), lambda x: LOGISTIC(-x), lambda x: -LOGISTIC(x) * LOGISTIC(-x)),
    "Tanhshrink": (nn.Tanhshrink(), lambda x: np.tanh(x) ** 2, lambda x: 2 * np.tanh(x) * (1 - np.tanh(x) ** 2)),
    "Hardtanh": (nn.Hardtanh(-0.5, 0.7), lambda x: 1.0 * ((x > -0.5) & (x < 0.7)), lambda x: 0 * x),
    "ReLU6": (nn.ReLU6(), lambda x: 1.0 * ((x > 0) & (x < 6)), lambda x: 0 * x),
    "Hardswish": (
        nn.Hardswish(),
        lambda x: np.where(abs(x) < 3, (2 * x + 3) / 6, x > 0),
        lambda x: (abs(x) < 3) / 3,
    ),
    "Mish": (
        nn.Mish(),
        lambda x: np.tanh(np.logaddexp(0, x)) + x * LOGISTIC(x) / np.cosh(np.logaddexp(0, x)) ** 2,
        lambda x: (
            (2 * LOGISTIC(x) + x * LOGISTIC(x) * LOGISTIC(-x) - 2 * x * LOGISTIC(x) ** 2 * np.tanh(np.logaddexp(0, x)))
            / np.cosh(np.logaddexp(0, x)) ** 2
        ),
    ),
}


def literal(model, x, grad, hess, gauss_newton=False):
    """Eq. 1-4 with each layer's whole Jacobian matrix, sample by sample: [(grad, hess) of each parameter] as numpy."""
    layers, parameters = [m for m in model.modules() if not isinstance(m, nn.Sequential)], list(model.parameters())
    found = {p: [np.zeros(p.shape), np.zeros(p.shape)] for p in parameters}
    for sample, g, h in zip(x, grad.numpy(), hess.numpy(), strict=True):
        inputs = [sample[None]]
        for layer in layers:
            inputs.append(layer(inputs[-1].clone()).detach())
        for layer, value in zip(reversed(layers), inputs[-2::-1], strict=True):
            g, h = g.reshape(-1), h.reshape(-1)
            for name, p in layer.named_parameters():

                def call(w, layer=layer, name=name, value=value):
                    return torch.func.functional_call(layer, {name: w}, (value,))

                J = jacobian(call, p.detach()).reshape(len(g), p.numel()).numpy()
                found[p][0] += (J.T @ g).reshape(p.shape)
                found[p][1] += ((J * J).T @ h).reshape(p.shape)
            if type(layer).__name__ in ACTIVATIONS:
                _, first, second = ACTIVATIONS[type(layer).__name__]
                a = value.numpy().reshape(-1)
                g, h = first(a) * g, first(a) ** 2 * h + (0 if gauss_newton else second(a) * g)
            else:
                J = jacobian(lambda v, layer=layer: layer(v), value).reshape(len(g), -1).numpy()
                g, h = J.T @ g, (J * J).T @ h
    return [found[p] for p in parameters]


def check(model, x, gauss_newton=False):
    """Compare gradients with autograd's and diagonals with the literal recursion's, for a random loss."""
    net = HesScale(model)
    out = net(x)
    grad, hess = torch.randn_like(out.detach()), torch.randn_like(out.detach())
    expected = torch.autograd.grad(out, list(model.parameters()), grad, retain_graph=True)
    net.backward(grad, None)
    for p, g in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g)
        assert p.hess is None
    net.backward(grad, hess, gauss_newton)
    for p, g, (literal_g, literal_h) in zip(
        net.parameters(), expected, literal(model, x, grad, hess, gauss_newton), strict=True
    ):
        torch.testing.assert_close(p.grad, g)
        np.testing.assert_allclose(p.grad.numpy(), literal_g, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(p.hess.numpy(), literal_h, rtol=1e-7, atol=1e-9)
        assert p.hess.curvature == ("HesScaleGN" if gauss_newton else "HesScale")


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


LAYERS = {
    "linear": (nn.Linear(6, 4), (6,)),
    "linear without bias": (nn.Linear(6, 4, bias=False), (6,)),
    "conv1d": (nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2, groups=2), (2, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), (4, 7, 6)),
    "conv2d same": (nn.Conv2d(2, 2, 3, padding="same", bias=False), (2, 4, 5)),
    "conv2d without bias": (nn.Conv2d(2, 4, (2, 3), stride=(1, 2), padding=(0, 1), groups=2, bias=False), (2, 4, 5)),
    "conv3d": (nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "max pooling that overlaps": (nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), (2, 6, 5)),
    "max pooling 1d": (nn.MaxPool1d(2, dilation=2), (2, 8)),
    "adaptive max pooling": (nn.AdaptiveMaxPool2d((3, 2)), (2, 7, 5)),
    "avg pooling": (nn.AvgPool2d(2), (2, 4, 6)),
    "avg pooling that overlaps": (nn.AvgPool2d(3, 2, padding=1), (2, 6, 5)),
    "avg pooling of what is there": (
        nn.AvgPool2d((3, 2), 2, padding=1, ceil_mode=True, count_include_pad=False),
        (2, 6, 5),
    ),
    "avg pooling with a divisor": (nn.AvgPool2d(2, divisor_override=3), (1, 4, 4)),
    "avg pooling 1d": (nn.AvgPool1d(3, 2, padding=1, ceil_mode=True), (2, 8)),
    "avg pooling 3d": (nn.AvgPool3d(2), (1, 4, 4, 2)),
    "adaptive": (nn.AdaptiveAvgPool2d((3, 2)), (2, 7, 5)),
    "adaptive 1d": (nn.AdaptiveAvgPool1d(3), (2, 7)),
    "zero padding": (nn.ZeroPad2d((1, 0, 2, 1)), (2, 3, 3)),
    "reflecting padding": (nn.ReflectionPad2d((1, 2, 0, 1)), (2, 3, 4)),
    "replicating padding": (nn.ReplicationPad1d((2, 1)), (2, 3)),
    "circular padding": (nn.CircularPad2d(2), (2, 3, 3)),
    "flatten": (nn.Flatten(), (2, 3)),
    "adaptive of any size": (nn.AdaptiveAvgPool2d((None, 2)), (2, 3, 5)),
    "identity": (nn.Identity(), (5,)),
}


@pytest.mark.parametrize("gauss_newton", [False, True])
@pytest.mark.parametrize("name", [*LAYERS, *ACTIVATIONS])
def test_each_layer_alone(name, gauss_newton):
    layer, shape = LAYERS[name] if name in LAYERS else (ACTIVATIONS[name][0], (6,))
    layer, x = copy.deepcopy(layer).double(), torch.randn(3, *shape)
    first = nn.Conv1d(shape[0], shape[0], 1) if len(shape) == 2 else nn.Identity()
    first = {1: nn.Linear(shape[0], shape[0]), 3: nn.Conv2d(shape[0], shape[0], 1)}.get(len(shape), first)
    width = layer(first(x)).flatten(1).shape[1]
    check(nn.Sequential(first, layer, nn.Sequential(nn.Flatten(), nn.Linear(width, 3))), x, gauss_newton)


@pytest.mark.parametrize("mode, Pad", [("reflect", nn.ReflectionPad2d), ("circular", nn.CircularPad2d)])
def test_padding_that_is_not_zeros_counts_as_a_layer_of_its_own(mode, Pad):
    conv, x = nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode), torch.randn(2, 2, 3, 3)
    alone = nn.Conv2d(2, 3, 3)
    alone.load_state_dict(conv.state_dict())
    before, grad, hess = nn.Linear(3, 3), torch.randn(2, 3, 3, 3), torch.randn(2, 3, 3, 3)
    diagonals = []
    for layers in (conv,), (Pad(1), alone):
        net = HesScale(nn.Sequential(copy.deepcopy(before), *layers))
        net(x)
        net.backward(grad, hess)
        diagonals.append([p.hess for p in net.parameters()])
    torch.testing.assert_close(*diagonals)


@pytest.mark.parametrize("pool", [nn.AvgPool1d(3, 2, padding=1, ceil_mode=True), nn.AdaptiveAvgPool1d(4)])
def test_pooling_counts_dimensions_from_the_last(pool):
    """[B, F] and [B, T, F] are the same batch with channels of one more dimension; a sample alone is a batch of one."""
    close, x = torch.testing.assert_close, torch.randn(5, 6)
    width = pool(x).shape[1]
    diagonals = lambda net: [p.hess for p in net.parameters()]  # noqa: E731

    def pooled(net, x, out, channels=()):
        torch.manual_seed(1)
        net(x)
        net.backward(torch.randn(out).reshape(*channels, *out), torch.randn(out).reshape(*channels, *out))
        return diagonals(net)

    net = HesScale(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), pool, nn.Linear(width, 2)))
    close(pooled(net, x, (5, 2)), pooled(net, x[None], (5, 2), (1,)))
    check(
        nn.Sequential(nn.Conv1d(2, 2, 1), copy.deepcopy(pool), nn.Flatten(), nn.Linear(2 * width, 2)),
        x.new_ones(3, 2, 6),
    )
    flat = nn.Conv2d(2, 3, 3), nn.Tanh(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Conv2d(3, 2, 2)
    net, image = HesScale(nn.Sequential(*flat)), torch.randn(2, 8, 8)
    close(pooled(net, image, (2, 1, 1)), pooled(net, image[None], (2, 1, 1), (1,)))


@pytest.mark.parametrize("first", [nn.AvgPool2d(2), nn.Tanh(), nn.ZeroPad2d(1), nn.Sequential(nn.Identity(), nn.ELU())])
def test_layers_before_the_first_parameters(first):
    x = torch.randn(3, 2, 4, 4)
    width = first(x)[0].numel()
    check(nn.Sequential(copy.deepcopy(first), nn.Flatten(), nn.Linear(width, 3)), x)


def test_an_input_that_is_to_have_a_gradient_has_the_same_diagonals():
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ELU(), nn.Flatten(), nn.Linear(27, 2))
    x = torch.randn(3, 2, 4, 4)
    net, grad, hess = HesScale(model), torch.randn(3, 2), torch.randn(3, 2)
    net(x)
    net.backward(grad, hess)
    plain = [(p.grad, p.hess) for p in net.parameters()]
    x.requires_grad_()
    out = net(x)
    net.backward(grad, hess)
    for p, (g, h) in zip(net.parameters(), plain, strict=True):
        torch.testing.assert_close((p.grad, p.hess), (g, h))
        assert not p.grad.requires_grad and not p.hess.requires_grad
    (by_net,) = torch.autograd.grad(out, x, grad)
    torch.testing.assert_close(by_net, torch.autograd.grad(model(x), x, grad)[0])


stack = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(0, 1), st.integers(1, 2), st.sampled_from([1, 2]),
              st.sampled_from(sorted(ACTIVATIONS)), st.sampled_from(["max", "avg", "none"])),
    min_size=1, max_size=3,
)  # fmt: skip


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stack, st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_random_stacks(stack, batch, gauss_newton, seed):
    torch.manual_seed(seed)
    layers, size, channels = [], 7, 2
    for kernel, stride, padding, dilation, groups, activation, pool in stack:
        layers.append(nn.Conv2d(channels, 2, kernel, stride, padding, dilation, groups))
        size = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        assume(size >= 1)
        layers.append(copy.deepcopy(ACTIVATIONS[activation][0]))
        if pool != "none" and size >= 2:
            layers.append(nn.MaxPool2d(2, 1) if pool == "max" else nn.AvgPool2d(2, 1))
            size -= 1
    layers += [nn.Flatten(), nn.Linear(channels * size * size, 3)]
    check(nn.Sequential(*layers), torch.randn(batch, 2, 7, 7), gauss_newton)


def exact_diagonal(model, loss):
    """The diagonal of autograd's full Hessian, for each parameter."""
    parameters, found = list(model.parameters()), []
    grads = torch.autograd.grad(loss, parameters, create_graph=True)
    for p, grad in zip(parameters, grads, strict=True):
        rows = [torch.autograd.grad(g, p, retain_graph=True)[0].reshape(-1)[i] for i, g in enumerate(grad.reshape(-1))]
        found.append(torch.stack(rows).reshape(p.shape))
    return found


def test_a_layer_that_is_replaced_is_trained():
    net = HesScale(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    net.model[2] = nn.Linear(4, 5)
    loss, grad, hess = squared_error_loss(net(torch.randn(6, 3)), torch.randn(6, 5))
    exact = exact_diagonal(net.model, loss)
    net.backward(grad, hess)
    torch.testing.assert_close(net.model[2].weight.hess, exact[2])
    net.model[1] = nn.Softshrink()
    with pytest.raises(TypeError, match=r"model\.1 is a Softshrink, for which HesScale has no rule"):
        net(torch.randn(6, 3))


def test_what_shares_a_parameter_later_is_refused():
    for share in (lambda model: setattr(model[2], "weight", model[0].weight), lambda model: model.insert(3, model[0])):
        model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
        net = HesScale(model)
        share(model)
        with pytest.raises(ValueError, match="a parameter is used twice"):
            net(torch.randn(3, 2))


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.Dropout(0.5).eval(), nn.Unflatten(1, (2,))])
def test_a_layer_without_parameters_may_be_used_twice(layer):
    linear, x = [nn.Linear(2, 2) for _ in range(3)], torch.randn(5, 2)
    once, twice = [linear[0], layer, linear[1], layer, linear[2]], []
    for place in once:
        twice.append(copy.deepcopy(place))
    found = []
    for model in (nn.Sequential(*once), nn.Sequential(*twice)):
        net = HesScale(model)
        _, grad, hess = squared_error_loss(net(x), x)
        net.backward(grad, hess)
        found.append([d for p in net.parameters() for d in (p.grad, p.hess)])
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 2),
        nn.Conv1d(1, 2, 3, padding="same"),
        nn.Conv1d(1, 1, 2, padding=1, padding_mode="reflect"),
        nn.Conv1d(1, 2, 2),
        nn.AvgPool1d(2),
        nn.AdaptiveAvgPool1d(3),
        nn.ELU(),
    ],
)
def test_hooks_see_the_forward_pass_alone(layer):
    """And no squares, which backward computes with."""
    layer, seen = copy.deepcopy(layer).double(), []
    net = HesScale(nn.Sequential(nn.Conv1d(1, 1, 1), layer))
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    out = net(torch.randn(3, 1, 4))
    net.backward(torch.ones_like(out), torch.ones_like(out))
    assert len(seen) == 1 and torch.equal(seen[0], out)


def test_a_last_layer_is_exact_where_the_losss_hessian_is_diagonal_though_a_kernel_has_several_positions():
    """With squared errors it is; a cross-entropy over the positions leaves out the terms between them."""
    for layer, shape in ((nn.Conv1d(1, 2, 3, padding=1), (4, 1, 6)), (nn.Linear(3, 2), (4, 6, 3))):
        model = nn.Sequential(layer, nn.Flatten())
        net, x = HesScale(model), torch.randn(shape)
        for exact in (True, False):
            out = net(x)
            squared = squared_error_loss(out, torch.randn(4, 12))
            loss, grad, hess = squared if exact else cross_entropy_loss(out, torch.arange(4))
            diagonals = exact_diagonal(model, loss)
            net.backward(grad, hess)
            for p, diagonal in zip(net.parameters(), diagonals, strict=True):
                assert torch.allclose(p.hess, diagonal) is exact


def test_the_last_linear_layer_is_exact():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    net, x, targets = HesScale(model), torch.randn(5, 1, 6, 6), torch.randn(5, 3)
    loss, grad, hess = squared_error_loss(net(x), targets)
    exact = exact_diagonal(model, loss)
    net.backward(grad, hess)
    for p, diagonal in list(zip(net.parameters(), exact, strict=True))[-2:]:
        torch.testing.assert_close(p.hess, diagonal)


@pytest.mark.parametrize("pool", [nn.MaxPool1d(2), nn.AvgPool1d(2)])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_layer_is_exact_where_all_hessians_are_diagonal(name, pool):
    """One unit a layer, and pooling over windows that do not overlap, of inputs that have weights of their own."""
    activation = lambda: copy.deepcopy(ACTIVATIONS[name][0])  # noqa: E731
    model = nn.Sequential(nn.Linear(1, 1), activation(), nn.Linear(1, 1), activation(), nn.Linear(1, 1))
    net, x = HesScale(model), torch.randn(4, 1)
    loss, grad, hess = value_loss(net(x), torch.randn(4, 1))
    exact = exact_diagonal(model, loss)
    net.backward(grad, hess)
    for p, diagonal in zip(net.parameters(), exact, strict=True):
        torch.testing.assert_close(p.hess, diagonal)
    # the diagonal in front of a pool whose windows are apart is that of autograd's Hessian, too
    model = nn.Sequential(
        nn.Conv1d(4, 4, 1, groups=4), nn.Unflatten(1, (1, 4)), nn.Flatten(1), nn.Unflatten(1, (1, 4)), pool
    )
    net, x = HesScale(model), torch.randn(3, 4, 1)
    loss, grad, hess = squared_error_loss(net(x)[:, 0], torch.randn(3, 2))
    exact = exact_diagonal(model, loss)
    net.backward(grad[:, None], hess[:, None])
    for p, diagonal in zip(net.parameters(), exact, strict=True):
        torch.testing.assert_close(p.hess, diagonal)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_hesscale_gn_is_exact_where_all_hessians_are_diagonal(name):
    """The Gauss-Newton diagonal of half a squared error, the mean of (dv / dw)^2; in any network at its last layer."""
    activation = lambda: copy.deepcopy(ACTIVATIONS[name][0])  # noqa: E731
    narrow = nn.Sequential(nn.Linear(2, 1), activation(), nn.Linear(1, 1), activation(), nn.Linear(1, 1))
    wide = nn.Sequential(nn.Linear(2, 5), activation(), nn.Linear(5, 1))
    for model, exact_layers in (narrow, 6), (wide, 2):
        net, x = HesScale(model), torch.randn(4, 2)
        _, grad, hess = value_loss(net(x), torch.randn(4, 1))
        net.backward(grad, hess, gauss_newton=True)
        rows = [torch.autograd.grad(model(sample[None])[0, 0], [*model.parameters()]) for sample in x]
        squares = [sum(row[i] ** 2 for row in rows) / 4 for i in range(len(rows[0]))]
        for p, exact in [*zip(net.parameters(), squares, strict=True)][-exact_layers:]:
            torch.testing.assert_close(p.hess, exact)


@pytest.mark.parametrize("gauss_newton", [False, True])
def test_it_is_the_agents_network_where_both_apply(gauss_newton):
    mlp = TanhMLP(5, (6, 4), 3).double()
    layers = [mlp.layers[0], nn.Tanh(), mlp.layers[1], nn.Tanh(), mlp.layers[2]]
    x, grad, hess = torch.randn(7, 5), torch.randn(7, 3), torch.randn(7, 3)
    mlp(x)
    mlp.backward(grad, hess, gauss_newton)
    expected = [(p.grad.clone(), p.hess.clone()) for p in mlp.parameters()]
    net = HesScale(nn.Sequential(*copy.deepcopy(layers)))
    torch.testing.assert_close(net(x), mlp(x))
    net.backward(grad, hess, gauss_newton)
    for p, (g, h) in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g)
        torch.testing.assert_close(p.hess, h)


@pytest.mark.parametrize("dropout", [nn.Dropout(0.4), nn.Dropout1d(0.5)])
def test_dropout_is_torchs_and_its_factor_is_squared(dropout):
    model = nn.Sequential(nn.Conv1d(3, 3, 1), nn.ReLU(), dropout, nn.Flatten(), nn.Linear(12, 2))
    net, x = HesScale(model), torch.randn(5, 3, 4)
    torch.manual_seed(7)
    out = net(x)
    torch.manual_seed(7)
    expected = model(x)
    torch.testing.assert_close(out, expected)
    grad, hess = torch.randn(5, 2), torch.rand(5, 2)
    grads = torch.autograd.grad(expected, list(model.parameters()), grad)
    net.backward(grad, hess)
    for p, g in zip(net.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, g)
    torch.manual_seed(7)
    factor = dropout(torch.ones(5, 3, 4))
    assert set(factor.unique().tolist()) == {0, 1 / (1 - dropout.p)}
    # by hand: h at the convolution's output is factor^2 * relu'^2 * (h @ W^2)
    weight, before = model[-1].weight, model[0](x)
    h = (hess @ weight**2).reshape(5, 3, 4) * factor**2 * (before > 0)
    torch.testing.assert_close(model[0].bias.hess, h.sum((0, 2)))
    model[2].inplace = True
    torch.manual_seed(7)
    torch.testing.assert_close(net(x), expected)
    net.eval()
    torch.testing.assert_close(net(x), net(x))
    net.backward(grad, hess)
    h = (hess @ weight**2).reshape(5, 3, 4) * (before > 0)
    torch.testing.assert_close(model[0].bias.hess, h.sum((0, 2)))


def test_the_last_forward_counts_and_another_dtype_follows():
    net = HesScale(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
    x = torch.randn(4, 2)
    net(torch.randn(9, 2))
    net(x)
    net.backward(torch.ones(4, 1), torch.ones(4, 1))
    first = [(p.grad.clone(), p.hess.clone()) for p in net.parameters()]
    net.backward(torch.ones(4, 1), torch.ones(4, 1))  # nothing accumulates
    for p, (g, h) in zip(net.parameters(), first, strict=True):
        assert torch.equal(p.grad, g) and torch.equal(p.hess, h)
    net.float()
    net(x.float())
    net.backward(torch.ones(4, 1), torch.ones(4, 1))
    assert all(p.grad.dtype == p.hess.dtype == torch.float32 for p in net.parameters())
    net.backward(torch.ones(4, 1), None)
    assert all(p.hess is None and p.grad is not None for p in net.parameters())
    copied = copy.deepcopy(net)
    copied(x.float())
    copied.backward(torch.ones(4, 1), torch.ones(4, 1))
    assert all(p.hess is None for p in net.parameters()) and all(p.hess is not None for p in copied.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("optimizer", ["adam", "adahesscale", "scaled-adahesscalegn"])
@pytest.mark.parametrize("name", ["layers", "mlp"])
def test_a_gpu_computes_the_same(name, optimizer):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(196, 5)
    net = (TanhMLP(48, (16,), 5) if name == "mlp" else HesScale(nn.Sequential(*layers))).double()
    x = torch.randn(8, 48, dtype=torch.float64) if name == "mlp" else torch.randn(8, 3, 16, 16, dtype=torch.float64)
    y, nets = torch.randint(5, (8,)), (net, copy.deepcopy(net).cuda())
    for net in nets:
        steps = make_optimizer(optimizer, net.parameters(), lr=1e-3)
        for _ in range(3):
            with torch.no_grad():
                output = net(x.to(next(net.parameters()).device))
            _, grad, hess = cross_entropy_loss(output, y.to(output.device))
            net.backward(grad, hess, steps.curvature == "HesScaleGN")
            derivatives = [d.cpu() for p in net.parameters() for d in (p.grad, p.hess)]
            steps.step()
        net.derivatives = derivatives
    torch.testing.assert_close(nets[1].derivatives, nets[0].derivatives, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert theirs.is_cuda
        torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-9, atol=1e-12)


def test_frozen_layers_get_neither_and_the_others_theirs():
    net, x = HesScale(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))), torch.randn(4, 2)
    net(x)
    net.backward(torch.ones(4, 1), torch.ones(4, 1))
    expected = net.model[2].weight.hess.clone()
    net.model[0].requires_grad_(False)
    net(x)
    net.backward(torch.ones(4, 1), torch.ones(4, 1))
    assert net.model[0].weight.grad is None and net.model[0].weight.hess is None
    torch.testing.assert_close(net.model[2].weight.hess, expected)
    make_optimizer("adahesscale", net.parameters(), lr=1e-3).step()


@pytest.mark.parametrize("frozen", ["0", "1", "1.weight", "1.bias", "3.weight", "3.bias"])
def test_what_is_trained_beside_frozen_parameters_has_its_derivatives(frozen):
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Conv2d(2, 2, 2), nn.Flatten(), nn.Linear(8, 3))
    net, x, grad, hess = HesScale(model), torch.randn(4, 1, 4, 4), *torch.randn(2, 4, 3)
    net(x)
    net.backward(grad, hess)
    expected = {name: (p.grad, p.hess) for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        p.requires_grad_(not name.startswith(frozen))
    net(x)
    net.backward(grad, hess)
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close((p.grad, p.hess), expected[name])
        else:
            assert p.grad is p.hess is None


@pytest.mark.parametrize(
    "dropout, Conv", [(nn.Dropout1d, nn.Conv1d), (nn.Dropout2d, nn.Conv2d), (nn.Dropout3d, nn.Conv3d)]
)
def test_dropout_of_channels(dropout, Conv):
    conv, dropout = Conv(2, 3, 1), dropout(0.5)
    net, x = HesScale(nn.Sequential(conv, dropout)), torch.randn(5, 2, *[2] * (conv.weight.dim() - 2))
    torch.manual_seed(7)
    out = net(x)
    torch.manual_seed(7)
    factor = dropout(torch.ones_like(out))
    net.backward(torch.ones_like(out), torch.ones_like(out))
    torch.testing.assert_close(conv.bias.hess, (factor**2).transpose(0, 1).reshape(3, -1).sum(1))


def test_average_pooling_has_the_networks_dtype():
    torch.set_default_dtype(torch.float32)
    conv = nn.Conv2d(1, 1, 1).double()
    net = HesScale(nn.Sequential(conv, nn.AvgPool2d(3)))
    out = net(torch.ones(1, 1, 3, 3).double())
    net.backward(torch.ones_like(out), torch.ones_like(out))
    assert conv.bias.hess.item() == pytest.approx(1 / 9, rel=1e-12)


def tied():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    return model


def pruned():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    torch.nn.utils.prune.l1_unstructured(model[1], "weight", amount=2)
    return model


def hooked(layer, kind="forward", hook=lambda *args: None):
    getattr(layer, f"register_{kind}_hook")(hook)
    return layer


class OwnForward(nn.Sequential):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    "model, error, message",
    [
        (
            nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
            TypeError,
            "model.1 is a BatchNorm1d, for which HesScale has no",
        ),
        (nn.Sequential(nn.Sequential(nn.LayerNorm(2))), TypeError, "model.0.0 is a LayerNorm.*RULES"),
        (hooked(nn.Sequential(nn.Linear(2, 2))), TypeError, "model has forward hooks, which are not called"),
        (nn.Sequential(hooked(nn.Linear(2, 2), "full_backward")), TypeError, "model.0 has backward hooks"),
        (hooked(nn.Linear(2, 2), "full_backward_pre"), TypeError, "model has backward hooks"),
        (nn.Sequential(nn.AlphaDropout()), TypeError, "model.0 is a AlphaDropout"),
        (OwnForward(nn.Linear(2, 2)), TypeError, "model is a OwnForward"),
        (nn.MaxPool2d(2, return_indices=True), TypeError, "model returns indices"),
        (nn.Sequential(*[nn.Linear(2, 2)] * 2), ValueError, "a parameter is used twice"),
        (tied(), ValueError, "a parameter is used twice"),
        (pruned(), TypeError, "model.1 has the parameters weight_orig: HesScale knows weight and bias"),
    ],
)
def test_what_it_can_not_do_is_refused_at_once(model, error, message):
    with pytest.raises(error, match=message):
        HesScale(model)


def test_wrong_use_is_named():
    net = HesScale(nn.Linear(2, 3))
    with pytest.raises(RuntimeError, match="call forward first"):
        net.backward(torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(TypeError, match="expected a torch tensor"):
        net(np.ones((1, 2)))
    net(torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"hess_output has shape \[4, 1\]; expected \[4, 3\]"):
        net.backward(torch.ones(4, 3), torch.ones(4, 1))
    with pytest.raises(ValueError, match=r"grad_output has shape \[3\]; expected"):
        net.backward(torch.ones(3), torch.ones(4, 3))


@pytest.mark.parametrize("gauss_newton", ["Exact", "gn", None, 2])
def test_another_kind_of_curvature_is_refused(gauss_newton):
    """A text is true, and would be taken for HesScaleGN."""
    x, ones = torch.ones(4, 2), torch.ones(4, 1)
    layers, mlp = HesScale(nn.Linear(2, 1)), TanhMLP(2, (3,), 1)
    for net, refused, choices in (
        (layers, gauss_newton, "False or True"),
        (layers, "exact", "False or True"),
        (mlp, gauss_newton, 'False, True or "exact"'),
    ):
        net(x)
        with pytest.raises(ValueError, match=f"gauss_newton={refused!r}: choose {choices}"):
            net.backward(ones, ones, refused)
        net.backward(ones, ones, np.bool_(True))


def test_no_grad_changes_nothing():
    """It is for the caller, who wants no graph of ours; the rules need theirs."""
    model = nn.Sequential(nn.Conv2d(1, 2, 2, padding_mode="reflect", padding=1), nn.SiLU(), nn.Flatten())
    net, x = HesScale(nn.Sequential(*model, nn.Dropout(0.0), nn.Linear(50, 3), nn.Tanh())), torch.randn(4, 1, 4, 4)
    grad, hess = torch.randn(2, 4, 3)
    net(x)
    net.backward(grad, hess)
    expected = [(p.grad, p.hess) for p in net.parameters()]
    with torch.no_grad():
        net(x)
        net.backward(grad, hess)
    for p, (p_grad, p_hess) in zip(net.parameters(), expected, strict=True):
        assert torch.equal(p.grad, p_grad) and torch.equal(p.hess, p_hess)
        assert not p.grad.requires_grad and not p.hess.requires_grad


def test_inference_mode_is_for_forward_passes_alone():
    net, x = HesScale(nn.Linear(2, 3)), torch.randn(4, 2)
    with torch.inference_mode():
        out = net(x)
    torch.testing.assert_close(out.clone(), net.model(x).detach())
    with pytest.raises(RuntimeError, match=r"it ran in torch.inference_mode: use torch.no_grad"):
        net.backward(torch.ones(4, 3), torch.ones(4, 3))
    net.requires_grad_(False)
    net(x)
    net.backward(torch.ones(4, 3), torch.ones(4, 3))  # nothing is trained
    assert all(p.grad is None for p in net.parameters())
    net.requires_grad_(True)
    with pytest.raises(RuntimeError, match="it ran while all were frozen"):
        net.backward(torch.ones(4, 3), torch.ones(4, 3))


def test_a_backward_pass_in_inference_mode_is_that_outside():
    """Without a linear layer too, for which nothing else would ask autograd for the second derivative."""
    for last in nn.Conv1d(2, 2, 2), nn.Sequential(nn.Flatten(), nn.Linear(8, 6)):
        net = HesScale(nn.Sequential(nn.Conv1d(1, 2, 2), nn.Tanh(), last, nn.Flatten()))
        net(torch.randn(3, 1, 5))
        grad, hess = torch.randn(2, 3, 6)
        net.backward(grad, hess)
        expected = [(p.grad, p.hess) for p in net.parameters()]
        with torch.inference_mode():
            net.backward(grad.clone(), hess.clone())
        for p, (p_grad, p_hess) in zip(net.parameters(), expected, strict=True):
            assert torch.equal(p.grad, p_grad) and torch.equal(p.hess, p_hess)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_has_no_curvature_far_out(name, dtype):
    """Where exp(x) overflows, and torch's own second derivative of Mish is NaN."""
    net = HesScale(nn.Sequential(nn.Linear(1, 1), ACTIVATIONS[name][0])).to(dtype)
    for x in -1000.0, 1000.0:
        nn.init.zeros_(net.model[0].weight), nn.init.constant_(net.model[0].bias, x)
        net(torch.ones(1, 1, dtype=dtype))
        net.backward(torch.ones(1, 1), torch.zeros(1, 1))
        assert abs(net.model[0].bias.hess) < 1e-6


@pytest.mark.parametrize("forward", [torch.enable_grad, torch.no_grad])
def test_what_is_done_with_the_output_does_not_change_what_is_kept(forward):
    net, x = HesScale(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))), torch.randn(4, 2)
    grad, hess = torch.randn(2, 4, 2)
    net(x)
    net.backward(grad, hess)
    expected = [(p.grad, p.hess) for p in net.parameters()]
    with forward():
        net(x).mul_(2)
    net.backward(grad, hess)
    for p, (p_grad, p_hess) in zip(net.parameters(), expected, strict=True):
        assert torch.equal(p.grad, p_grad) and torch.equal(p.hess, p_hess)


def test_an_activation_of_the_readers_own_may_work_in_place(monkeypatch):
    class InPlace(nn.Module):
        def forward(self, x):
            return x.tanh_()

    monkeypatch.setitem(hesscale_layers.RULES, InPlace, hesscale_layers.elementwise)
    diagonals = []
    for activation in nn.Tanh(), InPlace():
        torch.manual_seed(1)
        net = HesScale(nn.Sequential(nn.Linear(2, 3), activation, nn.Linear(3, 2)))
        _, grad, hess = cross_entropy_loss(net(torch.randn(4, 2)), torch.tensor([0, 1, 1, 0]))
        net.backward(grad, hess)
        diagonals.append(torch.cat([p.hess.flatten() for p in net.parameters()]))
    torch.testing.assert_close(*diagonals)


def test_a_reader_adds_a_rule(monkeypatch):
    class Square(nn.Module):
        def forward(self, x):
            return x * x

    monkeypatch.setitem(hesscale_layers.RULES, Square, hesscale_layers.elementwise)
    model = nn.Sequential(nn.Linear(1, 1), Square())
    net, x = HesScale(model), torch.randn(4, 1)
    loss, grad, hess = value_loss(net(x), torch.randn(4, 1))
    exact = exact_diagonal(model, loss)
    net.backward(grad, hess)
    for p, diagonal in zip(net.parameters(), exact, strict=True):
        torch.testing.assert_close(p.hess, diagonal)


def test_a_rule_that_leaves_parameters_out_is_named(monkeypatch):
    monkeypatch.setitem(hesscale_layers.RULES, nn.PReLU, hesscale_layers.elementwise)
    model, ones = nn.Sequential(nn.Linear(2, 3), nn.PReLU()), torch.ones(4, 3)
    net = HesScale(model)
    net(torch.randn(4, 2))
    with pytest.raises(RuntimeError, match="the rule of PReLU leaves its parameters untrained: freeze them"):
        net.backward(ones, ones)
    model[1].requires_grad_(False)
    net(torch.randn(4, 2))
    net.backward(ones, ones)
    assert model[0].weight.hess.all()


@pytest.mark.parametrize(
    "kind, hook",
    [
        ("forward", lambda layer, args, out: 2 * out),
        ("forward", lambda layer, args, out: out.detach().mul_(2)),
        ("forward", lambda layer, args, out: out[:, :1]),
        ("forward_pre", lambda layer, args: (args[0] + 1,)),
    ],
)
def test_hooks_may_look_and_not_change(kind, hook):
    layer, x, seen = nn.Linear(2, 3), torch.randn(4, 2), []
    net = HesScale(nn.Sequential(nn.Linear(2, 2), layer))
    hooked(layer, "forward", lambda layer, args, out: seen.extend([*args, out]))
    hooked(layer, "forward_pre", lambda layer, args: seen.extend(args))
    torch.testing.assert_close(net(x), net.model[1](net.model[0](x)))
    assert len(seen) == 6 and len(layer._forward_hooks) == len(layer._forward_pre_hooks) == 1
    net.backward(torch.ones(4, 3), torch.ones(4, 3))
    assert layer.weight.hess.all() and len(seen) == 6
    net(torch.full((4, 2), math.nan))  # NaN is no change
    hooked(layer, kind, hook)
    with pytest.raises(TypeError, match=r"a hook of Linear.* changes what goes in or comes out"):
        net(x)
    assert len(layer._forward_hooks) + len(layer._forward_pre_hooks) == 3


def test_a_graph_that_does_not_lead_back_is_an_error():
    """As torch.compile's, of which a layer's output and its input are two outputs."""
    net, ones = HesScale(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3))), torch.ones(4, 3)
    compiled = torch.compile(net, backend="aot_eager")
    compiled(torch.randn(4, 2))
    with pytest.raises(RuntimeError, match="was HesScale compiled"):
        net.backward(ones, ones)


@pytest.mark.parametrize("net", [HesScale(nn.Linear(2, 3)), TanhMLP(2, (), 3)])
def test_autocast_is_refused(net):
    x, ones = torch.randn(4, 2), torch.ones(4, 3)
    net.float()
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError, match=r"not run in torch\.autocast"):
        net(x.float())
    net(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError, match=r"not run in torch\.autocast"):
        net.backward(ones.float(), ones.float())


def test_a_network_learns_digits():
    """A stranger's ten lines."""
    from sklearn.datasets import load_digits

    images, targets = (torch.tensor(a) for a in load_digits(return_X_y=True))
    images = images.reshape(-1, 1, 8, 8).float() / 16
    net = HesScale(
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.ELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, 10)).float()
    )
    optimizer = make_optimizer("adahesscale", net.parameters(), lr=3e-3)
    for step in range(300):
        batch = torch.arange(step * 64, step * 64 + 64) % 1500
        _, grad, hess = cross_entropy_loss(net(images[batch]), targets[batch])
        net.backward(grad, hess)
        optimizer.step()
    assert (net(images[1500:]).argmax(1) == targets[1500:]).float().mean() > 0.8


def test_squared_errors_derivatives_are_autograds():
    output, targets = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    loss, grad, hess = squared_error_loss(output, targets)
    torch.testing.assert_close(loss, 0.5 * ((output - targets) ** 2).sum(1).mean())
    (expected,) = torch.autograd.grad(loss, output, create_graph=True)
    torch.testing.assert_close(grad, expected)
    diagonal = torch.autograd.functional.hessian(lambda y: squared_error_loss(y, targets).loss, output.detach())
    torch.testing.assert_close(hess.reshape(-1), diagonal.reshape(15, 15).diagonal())
    with pytest.raises(ValueError, match="targets has shape"):
        squared_error_loss(output, targets[:, :1])
