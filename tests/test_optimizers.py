"""The optimizers against torch's Adam and against Algorithms 2 and 3 written down literally, in float64."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hesscale_flat
from hesscale_core import (
    OPTIMIZERS,
    Gaussian,
    TanhMLP,
    hutchinson,
    make_optimizer,
    policy_gradient_loss,
    value_loss,
)

SHAPES = [(3, 4), (4,), (), (2, 1, 5)]
BETAS, EPS = (0.9, 0.999), 1e-8
SCALED = [name for name in OPTIMIZERS if name.startswith("scaled-")]
CURVATURES = "HesScale", "HesScaleGN", "Hutchinson"


@pytest.fixture(params=["numpy", "torch"])
def memory(request, monkeypatch):
    """Let networks and optimizers compute with numpy's arrays or, as on a GPU, with torch's tensors.

    Return the function that converts a tensor to the input of such a network.
    """
    if request.param == "numpy":
        return lambda t: t.numpy()
    monkeypatch.setattr(hesscale_flat, "numpy_computes", lambda tensor: False)
    return lambda t: t


def make_params(seed=0):
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in SHAPES]


def set_derivatives(params, seed, scale=1.0):
    """Give every parameter a gradient and a Hessian diagonal of both signs, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = scale * torch.randn(p.shape, dtype=torch.float64, generator=generator).to(p.dtype)
        p.hess = scale * torch.randn(p.shape, dtype=torch.float64, generator=generator).to(p.dtype)


def close(a, b, rtol=1e-10):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=0)


def literal(name, params, derivatives, lr, delta, betas=BETAS, eps=EPS):
    """Yield the weights and eta of every step of Algorithms 2 and 3, with a division for the misprinted product."""
    w = [p.detach().clone() for p in params]
    m, v, v_hess = ([torch.zeros_like(x) for x in w] for _ in range(3))
    for t, (f, s) in enumerate(derivatives, start=1):
        u, h = [], 0.0
        for i in range(len(w)):
            d = f[i] if name.endswith("adam") else s[i]  # AdaHessian's algorithm is the same; its s is an estimate
            m[i] = betas[0] * m[i] + (1 - betas[0]) * f[i]
            v[i] = betas[1] * v[i] + (1 - betas[1]) * d**2
            v_hess[i] = betas[1] * v_hess[i] + (1 - betas[1]) * s[i] ** 2
            m_hat, v_hat = m[i] / (1 - betas[0] ** t), v[i] / (1 - betas[1] ** t)
            v_hess_hat = v_hess[i] / (1 - betas[1] ** t)
            u.append(lr * f[i] if name.endswith("sgd") else lr * m_hat / (v_hat.sqrt() + eps))
            h += (v_hess_hat.sqrt() * u[-1] ** 2).sum().item()
        eta = min(1.0, math.sqrt(2 * delta / h)) if name.startswith("scaled-") else 1.0
        w = [x - eta * y for x, y in zip(w, u, strict=True)]
        yield w, eta


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_adam_is_torchs(memory, eps):
    ours, theirs = make_params(), make_params()
    a = make_optimizer("adam", ours, lr=0.01, betas=(0.8, 0.99), eps=eps)
    b = torch.optim.Adam(theirs, lr=0.01, betas=(0.8, 0.99), eps=eps)
    for step in range(30):
        set_derivatives(ours, step)
        set_derivatives(theirs, step)
        a.step()
        b.step()
        close(ours, theirs)


@pytest.mark.parametrize("delta", [1e-8, 1e-3, 1e3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_is_its_algorithm_read_literally(memory, name, delta):
    params = make_params()
    derivatives = []
    for step in range(20):
        set_derivatives(params, step, scale=10 ** (step % 3 - 1))
        derivatives.append(([p.grad.clone() for p in params], [p.hess.clone() for p in params]))
    optimizer = make_optimizer(name, params, lr=0.01, delta=delta)
    for step, (expected, eta) in enumerate(literal(name, params, derivatives, 0.01, delta)):
        set_derivatives(params, step, scale=10 ** (step % 3 - 1))
        optimizer.step()
        close(params, expected, rtol=1e-9)
        assert optimizer.eta == pytest.approx(eta, rel=1e-10)
    if name in SCALED and delta != 1e-3:
        assert (eta < 1) == (delta == 1e-8)  # both branches of the minimum


@pytest.mark.parametrize("name", SCALED)
@settings(deadline=None, max_examples=50)
@given(
    lr=st.floats(1e-6, 1e3),
    delta=st.floats(1e-12, 1e2),
    grad_scale=st.floats(1e-6, 1e6),
    hess_scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_update_never_leaves_the_trust_region(name, lr, delta, grad_scale, hess_scale, seed, dtype):
    params = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
    optimizer = make_optimizer(name, params, lr=lr, delta=delta)
    v_hess = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    for t in range(1, 4):
        set_derivatives(params, seed + t)
        for p, v in zip(params, v_hess, strict=True):
            p.grad, p.hess = p.grad * grad_scale, p.hess * hess_scale
            v.mul_(0.999).add_(0.001 * p.hess.double() ** 2)
        before = [p.detach().clone() for p in params]
        optimizer.step()
        assert 0 < optimizer.eta <= 1
        # in float32 the difference of two parameters is known only up to their own rounding
        slack = [1e-6 * p.abs().double() if dtype == torch.float32 else 1e-14 * p.abs() for p in params]
        quadratic = sum(
            ((v / (1 - 0.999**t)).sqrt() * ((p - b).double().abs() - s).clamp(min=0) ** 2).sum().item()
            for p, b, v, s in zip(params, before, v_hess, slack, strict=True)
        )
        assert quadratic / 2 <= delta * (1 + 1e-4)


def test_scaling_is_over_all_groups_together():
    one, two = make_params(), make_params()
    a = make_optimizer("scaled-adahesscale", one, lr=0.1)
    b = make_optimizer("scaled-adahesscale", [{"params": two[:2]}, {"params": two[2:]}], lr=0.1)
    for step in range(5):
        set_derivatives(one, step)
        set_derivatives(two, step)
        a.step()
        b.step()
    close(one, two)
    assert a.eta < 1


def test_groups_keep_their_own_step_sizes():
    params = make_params()
    start = [p.detach().clone() for p in params]
    optimizer = make_optimizer("adahesscale", [{"params": params[:2], "lr": 0.0}, {"params": params[2:]}], lr=0.1)
    set_derivatives(params, 0)
    optimizer.step()
    close(params[:2], start[:2])
    assert all((p != s).all() for p, s in zip(params[2:], start[2:], strict=True))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in SCALED])
@pytest.mark.parametrize("option", [dict(lr=0.03), dict(betas=(0.5, 0.9)), dict(eps=1e-2)])
def test_a_groups_options_are_those_of_an_optimizer_of_its_own(name, option):
    params, twins = make_params(), make_params()
    groups = [{"params": params[:2]}, {"params": params[2:]} | option]
    together, alone = make_optimizer(name, groups, lr=0.01), make_optimizer(name, twins[2:], **dict(lr=0.01) | option)
    for step in range(4):
        for batch, optimizer in ((params, together), (twins, alone)):
            set_derivatives(batch, step)
            optimizer.step()
    close(params[2:], twins[2:])


def test_the_radius_is_by_default_the_papers():
    assert make_optimizer("scaled-adam", make_params(), lr=0.1).param_groups[0]["delta"] == 1e-8


def test_a_closure_has_its_graph_within_no_grad():
    param = torch.nn.Parameter(torch.ones(2))

    def closure():
        param.grad = None
        loss = (param**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        make_optimizer("adam", [param], 0.1).step(closure)
    assert (param < 1).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("how", ["load_state_dict", "file", "deepcopy"])
def test_state_round_trips(name, how):
    params, twins = make_params(), make_params(seed=1)
    optimizer = make_optimizer(name, params, lr=0.01, delta=1e-4)
    for step in range(10):
        set_derivatives(params, step)
        optimizer.step()
    if how == "deepcopy":
        twins, other = copy.deepcopy((params, optimizer))
    else:
        state = copy.deepcopy(optimizer.state_dict())  # it holds the moments themselves, as torch.optim's does
        if how == "file":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        other = make_optimizer(name, twins, lr=1.0, betas=(0.1, 0.1))
        other.load_state_dict(state)
        with torch.no_grad():
            for p, twin in zip(params, twins, strict=True):
                twin.copy_(p)
    for step in range(10, 15):
        for batch, opt in ((params, optimizer), (twins, other)):
            set_derivatives(batch, step)
            opt.step()
        close(params, twins, rtol=0)
    assert other.name == name


@pytest.mark.parametrize("name", ["sgd", "scaled-adahesscale"])
def test_autograd_notices_a_step(name):
    """A graph that was made before it would go back through the new values."""
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer, loss = make_optimizer(name, [a, b], lr=0.1), (a * b).sum()
    hutchinson((a * b).sum(), [a, b])
    for p in a, b:
        p.hess.curvature = "HesScale"
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_parameters_rebound_after_the_optimizer_was_made_are_still_trained():
    """module.to() and two optimizers on one parameter rebind p.data; none of it may be lost."""
    ours, theirs = make_params(), make_params()
    a, b = make_optimizer("adam", ours, lr=0.01), torch.optim.Adam(theirs, lr=0.01)
    for step in range(6):
        if step == 2:
            ours[0].data = ours[0].data.clone()
        if step == 4:
            make_optimizer("sgd", ours, lr=0.01)
        set_derivatives(ours, step)
        set_derivatives(theirs, step)
        a.step()
        b.step()
        close(ours, theirs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_and_derivatives_may_be_new_tensors_or_the_old_ones_in_any_combination(memory, name):
    """Arrays are kept from step to step; none of them may be stale."""
    ours, theirs = make_params(), make_params()
    a, b = (make_optimizer(name, params, lr=0.01, delta=1e-3) for params in (ours, theirs))
    places = [(torch.empty_like(p), torch.empty_like(p)) for p in ours]
    for step in range(32):
        combination = step // 2  # each in two steps
        set_derivatives(ours, step)
        for p, q, (grad, hess) in zip(ours, theirs, places, strict=True):
            q.grad, q.hess = p.grad.clone(), p.hess.clone()
            if combination & 1:
                p.grad = grad.copy_(p.grad)
            if combination & 2:
                p.hess = hess.copy_(p.hess)
            if combination & 4:
                p.data = p.data.clone()
            if combination & 8:
                p.grad.data, q.grad = 2 * p.grad.data, 2 * q.grad
        a.step()
        b.step()
        close(ours, theirs, rtol=0)


def test_works_with_autograds_gradients_and_zero_grad(memory):
    nets = [torch.nn.Linear(3, 2).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [make_optimizer("adam", nets[0].parameters(), lr=0.01)]
    optimizers += [torch.optim.Adam(nets[1].parameters(), lr=0.01)]
    for step in range(5):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step)).double()
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            loss = (net(x) ** 2).mean()
            if step % 2:
                loss.backward()
            else:  # gradients that can be differentiated in turn, as of loss.backward(create_graph=True)
                grads = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
                for p, grad in zip(net.parameters(), grads, strict=True):
                    p.grad = grad
            optimizer.step()
    close(nets[0].parameters(), nets[1].parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zero_curvature_and_zero_update_divide_nothing_by_zero(memory, name):
    params = make_params()
    start = [p.detach().clone() for p in params]
    optimizer = make_optimizer(name, params, lr=0.1)
    for p in params:
        p.grad, p.hess = torch.zeros_like(p), torch.zeros_like(p)
    optimizer.step()
    close(params, start)
    assert optimizer.eta == 1.0
    set_derivatives(params, 0)
    for p in params:
        p.hess = torch.zeros_like(p)
    optimizer.step()
    assert all(p.isfinite().all() for p in params)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("derivative", ["grad", "hess"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_that_is_not_finite_is_refused_and_named(name, derivative, bad):
    params = make_params()
    optimizer = make_optimizer(name, params, lr=0.25)
    set_derivatives(params, 0)
    getattr(params[1], derivative)[2] = bad
    before = [p.detach().clone() for p in params]
    if derivative == "hess" and name in ("sgd", "adam"):
        optimizer.step()  # these do not read it
        return
    with pytest.raises(FloatingPointError, match=f"{name} with lr=0.25: the update of step 1 is not finite"):
        optimizer.step()
    close(params, before)


def test_the_diagonal_is_asked_for_by_name():
    made = {name: make_optimizer(name, make_params(), 0.1) for name in OPTIMIZERS}
    for curvature, base_name in (("HesScaleGN", "adahesscalegn"), ("Hutchinson", "adahessian")):
        names = {name for name, o in made.items() if o.curvature == curvature}
        assert names == {base_name, f"scaled-{base_name}"}
    for name, o in made.items():
        assert isinstance(o, torch.optim.Optimizer) and o.name == name and o.curvature in CURVATURES
        assert o.scaled == (name in SCALED) and o.needs_hess == (name not in ("sgd", "adam"))
        by_hess = name.removeprefix("scaled-") in ("adahessian", "adahesscale", "adahesscalegn")
        assert o.second_moment == ("hess" if by_hess else "grad" if name.endswith("adam") else None)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_without_any_gradient_is_refused(name):
    optimizer = make_optimizer(name, make_params(), lr=0.1)
    with pytest.raises(RuntimeError, match=f"{name}: no parameter that is trained has a .grad: call backward first"):
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_diagonal_is_never_used_twice(memory, name):
    """A step that finds the last one's diagonal would pair it with another gradient."""
    params = make_params()
    optimizer = make_optimizer(name, params, lr=0.1)
    set_derivatives(params, 0)
    if optimizer.needs_hess:
        params[1].hess, start = None, [p.detach().clone() for p in params]
        with pytest.raises(RuntimeError, match=rf"{name}: a parameter of shape \[4\] has no \.hess"):
            optimizer.step()
        close(params, start)
        state = optimizer.state[params[0]]  # nothing has moved, so that the step can be made again
        assert params[0].hess is not None and state["step"] == 0
        assert not any(moment.any() for moment in state.values() if isinstance(moment, torch.Tensor))
    set_derivatives(params, 0)
    optimizer.step()
    assert all(p.hess is None for p in params)
    set_derivatives(params, 1)
    optimizer.step()  # a new one is welcome
    if optimizer.needs_hess:
        with pytest.raises(RuntimeError, match=rf"{name}: a parameter of shape \[3, 4\] has no \.hess"):
            optimizer.step()
    else:
        optimizer.step()


def test_groups_may_have_names_of_their_own():
    params = make_params()
    groups = [{"params": params[:2], "name": "scaled-adahesscale"}, {"params": params[2:], "name": "bodies"}]
    optimizer = make_optimizer("adam", groups, lr=0.1)
    assert optimizer.name == "adam" and [g["name"] for g in optimizer.param_groups] == ["scaled-adahesscale", "bodies"]
    set_derivatives(params, 0)
    optimizer.step()
    again = make_optimizer("adam", params, lr=0.1)
    again.load_state_dict(make_optimizer("adam", params, lr=0.2).state_dict())
    assert again.name == "adam" and again.param_groups[0]["lr"] == 0.2


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_diagonal_of_another_curvature_is_refused(name, curvature):
    net = small_loss()[0]
    optimizer = make_optimizer(name, net.parameters(), lr=0.1)
    if curvature == "Hutchinson":
        hutchinson(net(torch.ones(6, 3).double()).square().mean(), net.parameters())
    else:
        net(torch.ones(6, 3).double())
        net.backward(*torch.ones(2, 6, 2).double(), gauss_newton=curvature == "HesScaleGN")
    before = [p.detach().clone() for p in net.parameters()]
    if optimizer.needs_hess and curvature != optimizer.curvature:
        message = f"{name}: .* has a .hess of {curvature}; before each step, compute that of {optimizer.curvature}$"
        with pytest.raises(RuntimeError, match=message):
            optimizer.step()
        close(net.parameters(), before, rtol=0)
    else:
        optimizer.step()
        assert all((p != b).any() for p, b in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_exact_gauss_newton_diagonal_stands_in_for_hesscales_and_not_for_hutchinsons(memory, name):
    torch.manual_seed(0)
    net, x = TanhMLP(3, (4,), 1).double(), memory(torch.ones(6, 3).double())
    optimizer = make_optimizer(name, [net.flat], lr=0.1)
    net(x)
    net.backward(*memory(torch.ones(2, 6, 1).double()), gauss_newton="exact")
    if optimizer.curvature == "Hutchinson":
        with pytest.raises(RuntimeError, match=r"has a \.hess of GGN; before each step, compute that of Hutchinson"):
            optimizer.step()
    else:
        optimizer.step()
        assert net.flat.hess is None


@pytest.mark.parametrize("shape", [(4,), (1, 4), (12,)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_diagonal_of_another_shape_is_refused(memory, name, shape):
    """One that broadcasts too."""
    params = make_params()
    optimizer = make_optimizer(name, params, lr=0.1)
    set_derivatives(params, 0)
    params[0].hess = torch.ones(shape).double()
    if not optimizer.needs_hess:
        optimizer.step()
        return
    with pytest.raises(ValueError, match=r"hess has shape .*; expected \[3, 4\]"):
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_without_a_gradient_is_skipped(memory, name):
    """As if it were another optimizer's: the scale and the others' steps are those without it."""
    params, others = make_params(), make_params()[1:]
    start = params[0].detach().clone()
    a, b = (make_optimizer(name, group, lr=0.1, delta=1e-3) for group in (params, others))
    for step in range(4):
        set_derivatives(params, step)
        for p, other in zip(params[1:], others, strict=True):
            other.grad, other.hess = p.grad.clone(), p.hess.clone()
        params[0].grad = None
        a.step()
        b.step()
        close(params, [start, *others])
        assert a.eta == pytest.approx(b.eta) and a.trust_region == pytest.approx(b.trust_region)


def test_a_parameter_without_entries_is_none_to_refuse(memory):
    """A batch without samples is."""
    empty = torch.zeros(0, requires_grad=True)
    optimizer = make_optimizer("adahesscale", [empty], lr=0.1)
    empty.grad = empty.hess = torch.zeros(0)
    optimizer.step()


def test_a_parameter_without_a_gradient_is_skipped_as_torchs_adam_skips_it(memory):
    """Its step count too, by which its moments are corrected."""
    ours, theirs = make_params(), make_params()
    a, b = make_optimizer("adam", ours, lr=0.01), torch.optim.Adam(theirs, lr=0.01)
    for step in range(10):
        set_derivatives(ours, step)
        set_derivatives(theirs, step)
        if step % 3:
            ours[1].grad = theirs[1].grad = None
        a.step()
        b.step()
        close(ours, theirs)
    for p, q in zip(ours, theirs, strict=True):
        assert a.state[p]["step"] == b.state[q]["step"] == (4 if p is ours[1] else 10)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_stay_as_they_are(kind, name):
    """The others are trained as if the optimizer had them alone: frozen ones are no part of h either."""
    net, twin = make_actor(), make_actor()
    before = [p.detach().clone() for p in net.parameters()]
    for n in net, twin:
        n.layers[0].weight.requires_grad_(False)
        n.log_std.requires_grad_(False)
    a = make_optimizer(name, net.parameters(), lr=0.01, delta=1e-3)
    b = make_optimizer(name, [p for p in twin.parameters() if p.requires_grad], lr=0.01, delta=1e-3)
    for step in range(4):
        for n, optimizer in ((net, a), (twin, b)):
            differentiate(n, optimizer, kind, step)
            optimizer.step()
        close(net.parameters(), twin.parameters(), rtol=1e-9)
        assert a.eta == pytest.approx(b.eta) and a.trust_region == pytest.approx(b.trust_region)
    for p, start in zip(net.parameters(), before, strict=True):
        assert (p != start).any() == p.requires_grad


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_that_is_frozen_with_its_derivatives_is_not_trained(name):
    trained, frozen = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = make_optimizer(name, [trained, frozen], lr=0.01)
    for p in trained, frozen:
        p.grad, p.hess = torch.ones(2), torch.ones(2)
    frozen.requires_grad_(False)
    optimizer.step()
    assert (trained != 1).all() and (frozen == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_of_several_dtypes_are_trained_together(name, dtype):
    """Also those that numpy lacks; each as in an optimizer of its own, which for unscaled ones shows."""
    double, other = make_params()[:2]
    other = torch.nn.Parameter(other.detach().to(dtype))
    optimizer = make_optimizer(name, [double, other], 0.01)
    (twin,) = make_params()[:1]
    alone = make_optimizer(name, [twin], 0.01)
    for step in range(3):
        set_derivatives([double, other], step)
        twin.grad, twin.hess = double.grad.clone(), double.hess.clone()
        before = other.detach().clone()
        optimizer.step()
        alone.step()
        assert other.dtype is dtype and other.isfinite().all()
        assert name in SCALED or (other != before).any()
        assert name in SCALED or twin.equal(double)


def test_negative_curvature_is_the_share_of_the_last_diagonals_entries_below_zero(memory):
    params = make_params()
    optimizer = make_optimizer("adahesscale", params, 0.1)
    for step in range(3):
        set_derivatives(params, step)
        params[1].hess[0] = 0.0
        diagonal = torch.cat([p.hess.reshape(-1) for p in params])
        optimizer.step()
        assert 0 < optimizer.negative_curvature < 1
        assert optimizer.negative_curvature == (diagonal < 0).double().mean().item()


def test_sgd_is_torchs():
    ours, theirs = make_params(), make_params()
    a, b = make_optimizer("sgd", ours, lr=0.1), torch.optim.SGD(theirs, lr=0.1)
    for step in range(5):
        set_derivatives(ours, step)
        set_derivatives(theirs, step)
        a.step()
        b.step()
        close(ours, theirs)


def small_loss():
    """Return a network, and a function that computes a loss of it whose Hessian has large off-diagonals."""
    torch.manual_seed(0)
    net = TanhMLP(3, (4,), 2).double()
    x, targets = torch.randn(6, 3).double(), torch.randint(2, (6,))
    return net, lambda: torch.nn.functional.cross_entropy(2 * net(x), targets)


def test_hutchinsons_mean_is_the_exact_diagonal_and_its_gradient_exact():
    net, loss = small_loss()
    params = list(net.parameters())
    expected_grad = torch.autograd.grad(loss(), params)
    samples = []
    for i in range(1500):
        hutchinson(loss(), params)
        if i % 100 == 0:
            close([p.grad for p in params], expected_grad)
        samples.append(torch.cat([p.hess.flatten() for p in params]))
    samples = torch.stack(samples)
    grads = torch.cat([g.flatten() for g in torch.autograd.grad(loss(), params, create_graph=True)])
    exact = torch.stack(
        [torch.cat([h.flatten() for h in torch.autograd.grad(g, params, retain_graph=True)]) for g in grads]
    )
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - exact.diagonal()).abs() < 5 * error + 1e-12).all()
    # one sample is z_i (Hz)_i, of second moment sum_j H_ij^2: hence the shorter steps of a scaled AdaHessian
    torch.testing.assert_close((samples**2).mean(0), (exact**2).sum(1), rtol=0.15, atol=1e-3)
    assert samples.std(0).max() > 0.01


def test_hutchinson_leaves_a_gradient_of_its_own_to_each_parameter():
    """Autograd gives both terms of a sum one tensor, which clipping would shorten twice."""
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    hutchinson(((a + b) ** 2).sum(), [a, b])
    torch.nn.utils.clip_grad_norm_([a, b], 1.0)
    close([a.grad, b.grad], [torch.full((2,), 0.5)] * 2, rtol=1e-5)


def test_hutchinson_survives_a_gradient_that_is_constant():
    """As that of an output's bias, or of all parameters of a linear loss."""
    a, b = torch.nn.Parameter(torch.ones(2).double()), torch.nn.Parameter(torch.ones(2).double())
    hutchinson((a**3).sum() + 2 * b.sum(), [b, a])
    close([a.grad, a.hess, b.grad, b.hess], [3 * a.data, 6 * a.data, 2 * b.data, 0 * b.data])
    hutchinson(2 * b.sum(), [b])
    close([b.grad, b.hess], [2 * b.data, 0 * b.data])


def test_hutchinson_survives_a_loss_that_is_constant_in_a_parameter():
    used, unused = torch.nn.Parameter(torch.ones(2).double()), torch.nn.Parameter(torch.ones(2).double())
    hutchinson((used**3).sum(), [used, unused])
    close(
        [used.grad, used.hess, unused.grad, unused.hess], [3 * used.data, 6 * used.data, 0 * used.data, 0 * used.data]
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(lr=-1), "lr=-1"),
        (dict(lr=math.nan), "lr=nan"),
        (dict(lr=math.inf), "lr=inf"),
        (dict(betas=(1.0, 0.9)), r"betas=\(1.0, 0.9\)"),
        (dict(betas=(0.9, -0.1)), r"betas=\(0.9, -0.1\)"),
        (dict(eps=0.0), "eps=0.0"),
        (dict(eps=math.nan), "eps=nan"),
        (dict(delta=0.0), "delta=0.0"),
        (dict(delta=math.nan), "delta=nan"),
    ],
)
def test_arguments_out_of_range_are_refused_with_their_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer("scaled-adahesscale", make_params(), **dict(lr=0.1) | arguments)


def test_groups_share_one_trust_region():
    groups = [{"params": params} for params in (make_params()[:2], make_params()[2:])]
    with pytest.raises(ValueError, match=r"delta=0\.5: .* one for all groups"):
        make_optimizer("scaled-adam", [groups[0], groups[1] | {"delta": 0.5}], lr=0.1, delta=1e-3)
    optimizer = make_optimizer("scaled-adam", [groups[0] | {"delta": 0.5}, groups[1]], lr=0.1, delta=1e-3)
    assert [group["delta"] for group in optimizer.param_groups] == [0.5, 0.5]


@pytest.mark.parametrize(
    "name, value", [("weight_decay", 0.01), ("maximize", True), ("momentum", 0.9), ("kind", "sgd")]
)
def test_what_would_be_ignored_in_a_group_is_refused(name, value):
    params = make_params()
    with pytest.raises(ValueError, match=rf"{name}={value!r}: "):
        make_optimizer("adam", [{"params": params, name: value}], lr=0.1)
    optimizer = make_optimizer("adam", [{"params": params[:1], "weight_decay": 0.0, "initial_lr": 1.0}], lr=0.1)
    with pytest.raises(ValueError, match=rf"{name}={value!r}: "):
        optimizer.add_param_group({"params": params[1:], name: value})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("how", ["set", "loaded"])
def test_the_first_groups_radius_is_all_groups(how):
    """Whether it was changed, as when it is annealed, or loaded; a group that comes later has it too."""
    params = make_params()
    optimizer = make_optimizer("scaled-adahesscale", [{"params": params[:1]}, {"params": params[1:2]}], lr=1.0)
    if how == "set":
        optimizer.param_groups[0]["delta"] = 1e-10
    else:
        of = [{"params": group} for group in (make_params()[:1], make_params()[1:2])]
        optimizer.load_state_dict(make_optimizer("scaled-adahesscale", of, lr=1.0, delta=1e-10).state_dict())
    set_derivatives(params, 0)
    optimizer.step()
    assert optimizer.eta**2 * optimizer.trust_region / 2 == pytest.approx(1e-10)
    with pytest.raises(ValueError, match=r"delta=1e-08: .* one for all groups"):
        optimizer.add_param_group({"params": params[2:], "delta": 1e-8})
    optimizer.add_param_group({"params": params[2:]})
    assert optimizer.param_groups[2]["delta"] == 1e-10
    set_derivatives(params, 0)
    optimizer.step()
    assert optimizer.eta**2 * optimizer.trust_region / 2 == pytest.approx(1e-10)


def test_another_optimizers_state_is_refused_and_changes_nothing():
    adam, ours = (make_optimizer(name, make_params(), lr=0.1) for name in ("adam", "scaled-adahesscale"))
    before = ours.state_dict()
    with pytest.raises(
        ValueError, match="the state of an optimizer 'adam', and cannot be that of 'scaled-adahesscale'"
    ):
        ours.load_state_dict(adam.state_dict())
    with pytest.raises(ValueError, match="the state of an optimizer None"):
        ours.load_state_dict(torch.optim.Adam(make_params()).state_dict())
    assert ours.name == "scaled-adahesscale" and ours.state_dict() == before


def test_a_step_size_may_be_a_tensor(memory):
    one, two = make_params(), make_params()
    for params, lr in ((one, 0.1), (two, torch.tensor(0.1, dtype=torch.float64))):
        optimizer = make_optimizer("scaled-adahesscale", params, lr)
        set_derivatives(params, 0)
        optimizer.step()
    close(one, two)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=f"'sgdd'.*{', '.join(OPTIMIZERS)}"):
        make_optimizer("sgdd", make_params(), 0.1)


def test_closure_is_called_and_its_loss_returned():
    (param,) = params = [torch.nn.Parameter(torch.ones(2).double())]
    optimizer = make_optimizer("adam", params, 0.1)

    def closure():
        optimizer.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert (param < 1).all()


def test_torchs_hooks_are_called_by_step_and_not_by_update():
    params = make_params()
    optimizer, called = make_optimizer("adam", params, 0.01), []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    set_derivatives(params, 0)
    optimizer.step()
    optimizer.update()
    assert called == [1]
    assert all(optimizer.state[p]["step"] == 2 for p in params)


# ---- optimizers and networks -----------------------------------------------------------------------------------


def make_actor():
    """Return a network with biases that are not zero, and with log_std."""
    torch.manual_seed(0)
    net = TanhMLP(3, (4,), 2, log_std=True).double()
    for p in net.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return net


def differentiate(net, optimizer, kind, step):
    """Leave gradient and diagonal of a policy-gradient loss, the same for the same step, where `optimizer` reads them.

    That is in every parameter, or in net.flat.
    """
    flat = net.flat if len(optimizer.param_groups[0]["params"]) == 1 else None
    generator = torch.Generator().manual_seed(step)
    x, actions, advantages = (
        torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((6, 3), (6, 2), (6,))
    )
    if optimizer.curvature != "Hutchinson":
        x, actions, advantages = map(kind, (x, actions, advantages))
    pg = policy_gradient_loss(Gaussian(net(x), net.log_std_like(x)), actions, advantages)
    if optimizer.curvature != "Hutchinson":
        gauss_newton = optimizer.curvature == "HesScaleGN"
        net.backward(pg.grad, pg.hess, gauss_newton, pg.grad_log_std, pg.hess_log_std)
        return
    torch.manual_seed(step)
    hutchinson(pg.loss, net.parameters())
    if flat is not None:  # autograd does not know it
        params = net.current_parameters()
        flat.grad, flat.hess = (torch.cat([getattr(p, d).reshape(-1) for p in params]) for d in ("grad", "hess"))


def load_into_new(net, optimizer):
    """Return another network and its optimizer, which load the states of these."""
    other = TanhMLP(3, (4,), 2, log_std=True).double()
    other.load_state_dict(net.state_dict())
    other_optimizer = make_optimizer(optimizer.name, [other.flat], lr=1.0)
    other_optimizer.load_state_dict(optimizer.state_dict())
    return other, other_optimizer


def save_and_load(net, optimizer):
    file = io.BytesIO()
    torch.save((net, optimizer), file)
    file.seek(0)
    return torch.load(file, weights_only=False)


MOVES = {
    "nothing": lambda net, optimizer: (net, optimizer),
    "to": lambda net, optimizer: (net._apply(torch.clone), optimizer),  # .to(), where it moves parameters
    "load_state_dict": lambda net, optimizer: net.load_state_dict(net.state_dict()) and (net, optimizer),
    "a new pair": load_into_new,
    "deepcopy": lambda net, optimizer: copy.deepcopy((net, optimizer)),
    "torch.save": save_and_load,
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_flat_vector_trains_as_the_parameters_do(memory, name, move):
    """Whatever happens to the network between two steps."""
    net, twin = make_actor(), make_actor()
    optimizer = make_optimizer(name, [net.flat], lr=0.01, delta=1e-3)
    reference = make_optimizer(name, twin.parameters(), lr=0.01, delta=1e-3)
    for step in range(6):
        if step == 3:
            net, optimizer = MOVES[move](net, optimizer)
        for n, o in ((net, optimizer), (twin, reference)):
            differentiate(n, o, memory, step)
            o.step()
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
        assert optimizer.eta == pytest.approx(reference.eta, rel=1e-9)
    assert all((p != q).any() for p, q in zip(net.parameters(), make_actor().parameters(), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_cleared_state_is_that_of_a_new_optimizer_and_replaced_moments_are_used(kind, name):
    """`optimizer.state.clear()` is how torch's optimizers are begun anew, say with each task."""
    net = make_actor()
    optimizer = make_optimizer(name, net.parameters(), lr=0.01, delta=1e-3)
    for step in range(4):
        differentiate(net, optimizer, kind, step)
        optimizer.step()
    optimizer.state.clear()
    twin = copy.deepcopy(net)
    new = make_optimizer(name, twin.parameters(), lr=0.01, delta=1e-3)
    for step in range(4, 10):
        if step == 7:
            for p, q in zip(net.parameters(), twin.parameters(), strict=True):
                for key in optimizer.state[p].keys() - {"step"}:
                    optimizer.state[p][key] = optimizer.state[p][key] * 4
                    new.state[q][key].mul_(4)
        for n, o in (net, optimizer), (twin, new):
            differentiate(n, o, kind, step)
            o.step()
        close(net.parameters(), twin.parameters(), rtol=1e-9)
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            close(
                [torch.as_tensor(x) for x in optimizer.state[p].values()],
                [torch.as_tensor(x) for x in new.state[q].values()],
            )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_network_may_become_float64_after_its_optimizer_was_made(kind, name):
    torch.manual_seed(0)
    net = TanhMLP(3, (4,), 2, log_std=True)
    twin = copy.deepcopy(net)
    optimizer = make_optimizer(name, [net.flat], lr=0.01, delta=1e-3)
    reference = make_optimizer(name, twin.parameters(), lr=0.01, delta=1e-3)
    for n, o in ((net, optimizer), (twin, reference)):
        n.double()
        for step in range(4):
            differentiate(n, o, kind, step)
            o.step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert p.dtype is torch.float64
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_hutchinson_refuses_the_flat_vector():
    """Autograd never meets it, and would call its derivatives zero."""
    net, loss = small_loss()
    with pytest.raises(RuntimeError, match=r"give net\.parameters\(\), not net\.flat"):
        hutchinson(loss(), [net.flat])


def test_hutchinson_needs_a_loss_that_autograd_follows():
    net, _ = small_loss()
    loss = value_loss(net(np.zeros((6, 3)))[:, 0], np.ones(6)).loss
    with pytest.raises(TypeError, match="loss is a float64; expected a torch tensor: give the network tensors"):
        hutchinson(loss, net.parameters())


def test_hutchinson_leaves_frozen_parameters_alone():
    net, loss = small_loss()
    net.layers[0].weight.requires_grad_(False)
    hutchinson(loss(), net.parameters())
    assert net.layers[0].weight.grad is None
    assert net.layers[0].bias.grad.any() and net.layers[0].bias.hess.any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_fits_a_regression(kind, name):
    """The parts together: forward, loss, backward and step bring the error of y = sin(x) down by five."""
    torch.manual_seed(0)
    net = TanhMLP(1, (16,), 1).double()
    x = torch.linspace(-3, 3, 64).double()[:, None]
    y = torch.sin(x)
    optimizer = make_optimizer(name, net.parameters(), lr=0.03, delta=1e-3)
    losses = []
    for _ in range(300):
        if optimizer.curvature == "Hutchinson":
            loss = value_loss(net(x), y)
            hutchinson(loss.loss, net.parameters())
        else:
            loss = value_loss(net(kind(x)), kind(y))
            net.backward(loss.grad, loss.hess, optimizer.curvature == "HesScaleGN")
        optimizer.step()
        losses.append(float(torch.as_tensor(loss.loss).detach()))
    assert losses[-1] < losses[0] / 5
