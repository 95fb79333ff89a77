"""The optimizers against torch's Adam and against Algorithms 2 and 3 written down literally, in float64."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hesscale_core
from hesscale_core import OPTIMIZERS, SGD, Adam, TanhMLP, hutchinson, make_optimizer, value_loss

SHAPES = [(3, 4), (4,), (), (2, 1, 5)]
BETAS, EPS = (0.9, 0.999), 1e-8


def make_params(seed=0):
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in SHAPES]


def set_derivatives(params, seed, scale=1.0):
    """A gradient and a Hessian diagonal of both signs for every parameter, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = scale * torch.randn(p.shape, dtype=torch.float64, generator=generator).to(p.dtype)
        p.hess = scale * torch.randn(p.shape, dtype=torch.float64, generator=generator).to(p.dtype)


def close(a, b, rtol=1e-10):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=0)


def literal(name, params, derivatives, lr, delta, betas=BETAS, eps=EPS):
    """Algorithms 2 and 3, division for the misprinted product; yields the weights and eta of every step."""
    w = [p.detach().clone() for p in params]
    m, v, v_hess = ([torch.zeros_like(x) for x in w] for _ in range(3))
    for t, (f, s) in enumerate(derivatives, start=1):
        u, h = [], 0.0
        for i in range(len(w)):
            d = f[i] if name.endswith("adam") else s[i]  # AdaHessian differs in what s is
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
def test_adam_is_torchs(eps):
    ours, theirs = make_params(), make_params()
    a = Adam(ours, lr=0.01, betas=(0.8, 0.99), eps=eps)
    b = torch.optim.Adam(theirs, lr=0.01, betas=(0.8, 0.99), eps=eps)
    for step in range(50):
        set_derivatives(ours, step)
        set_derivatives(theirs, step)
        a.step()
        b.step()
        close(ours, theirs)


@pytest.mark.parametrize("delta", [1e-8, 1e-3, 1e3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_is_its_algorithm_read_literally(name, delta):
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
    if name.startswith("scaled-") and delta != 1e-3:
        assert (eta < 1) == (delta == 1e-8)  # both branches were there


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name.startswith("scaled-")])
@settings(deadline=None, max_examples=100)
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
        # in float32 the difference of two parameters is only known to their own rounding
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
        state = optimizer.state_dict()
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


def test_parameters_rebound_after_the_optimizer_was_made_are_still_trained():
    """module.to() and two optimizers on one parameter rebind p.data; none of it may be lost."""
    ours, theirs = make_params(), make_params()
    a, b = Adam(ours, lr=0.01), torch.optim.Adam(theirs, lr=0.01)
    for step in range(6):
        if step == 2:
            ours[0].data = ours[0].data.clone()
        if step == 4:
            Adam(ours, lr=0.01)
        set_derivatives(ours, step)
        set_derivatives(theirs, step)
        a.step()
        b.step()
        close(ours, theirs)


def test_works_with_autograds_gradients_and_zero_grad():
    nets = [torch.nn.Linear(3, 2).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [Adam(nets[0].parameters(), lr=0.01), torch.optim.Adam(nets[1].parameters(), lr=0.01)]
    for step in range(5):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step)).double()
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            (net(x) ** 2).mean().backward()
            optimizer.step()
    close(nets[0].parameters(), nets[1].parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zero_curvature_and_zero_update_divide_nothing_by_zero(name):
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
@pytest.mark.parametrize("kind", ["grad", "hess"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_that_is_not_finite_is_refused_and_named(name, kind, bad):
    params = make_params()
    optimizer = make_optimizer(name, params, lr=0.25)
    set_derivatives(params, 0)
    getattr(params[1], kind)[2] = bad
    before = [p.detach().clone() for p in params]
    if kind == "hess" and name in ("sgd", "adam"):
        optimizer.step()  # these do not read it
        return
    with pytest.raises(FloatingPointError, match=f"{name} with lr=0.25: the update of step 1 is not finite"):
        optimizer.step()
    close(params, before)


def test_second_order_optimizers_ask_for_the_hessian_and_all_ask_for_the_gradient():
    for name in OPTIMIZERS:
        optimizer = make_optimizer(name, make_params(), lr=0.1)
        assert optimizer.needs_hess == (name not in ("sgd", "adam"))
        with pytest.raises(RuntimeError, match=f"{name}: a parameter of shape .* has no .grad"):
            optimizer.step()
        if optimizer.needs_hess:
            for p in optimizer.param_groups[0]["params"]:
                p.grad = torch.zeros_like(p)
            with pytest.raises(RuntimeError, match=f"{name}: a parameter of shape .* has no .hess"):
                optimizer.step()


def test_the_diagonal_is_asked_for_by_name():
    made = {name: make_optimizer(name, make_params(), 0.1) for name in OPTIMIZERS}
    assert {name for name, o in made.items() if o.gauss_newton} == {"adahesscalegn", "scaled-adahesscalegn"}
    assert {name for name, o in made.items() if o.hutchinson} == {"adahessian", "scaled-adahessian"}
    assert all(isinstance(o, torch.optim.Optimizer) and o.name == name for name, o in made.items())


def test_sgd_is_torchs():
    ours, theirs = make_params(), make_params()
    a, b = SGD(ours, lr=0.1), torch.optim.SGD(theirs, lr=0.1)
    for step in range(5):
        set_derivatives(ours, step)
        set_derivatives(theirs, step)
        a.step()
        b.step()
        close(ours, theirs)


def small_loss():
    """A loss whose Hessian has large off-diagonals, and its parameters."""
    torch.manual_seed(0)
    net = TanhMLP(3, (4,), 2).double()
    x, targets = torch.randn(6, 3).double(), torch.randint(2, (6,))
    return net, lambda: torch.nn.functional.cross_entropy(2 * net(x), targets)


def test_hutchinsons_mean_is_the_exact_diagonal_and_its_gradient_exact():
    net, loss = small_loss()
    params = list(net.parameters())
    expected_grad = torch.autograd.grad(loss(), params)
    samples = []
    for _ in range(4000):
        hutchinson(loss(), params)
        close([p.grad for p in params], expected_grad)
        samples.append(torch.cat([p.hess.flatten() for p in params]))
    samples = torch.stack(samples)
    grads = torch.cat([g.flatten() for g in torch.autograd.grad(loss(), params, create_graph=True)])
    exact = torch.stack(
        [torch.cat([h.flatten() for h in torch.autograd.grad(g, params, retain_graph=True)]) for g in grads]
    )
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - exact.diagonal()).abs() < 5 * error + 1e-12).all()
    # one sample is z_i (Hz)_i: of second moment sum_j H_ij^2, hence the shorter steps of a scaled AdaHessian
    torch.testing.assert_close((samples**2).mean(0), (exact**2).sum(1), rtol=0.15, atol=1e-3)
    assert samples.std(0).max() > 0.01


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


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=f"'sgdd'.*{', '.join(OPTIMIZERS)}"):
        make_optimizer("sgdd", make_params(), 0.1)


def test_a_group_has_one_dtype():
    mixed = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2).double())]
    with pytest.raises(ValueError, match="one dtype"):
        make_optimizer("adam", mixed, 0.1)


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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_on_torchs_tensors_they_are_what_they_are_on_numpys_arrays(monkeypatch, name):
    """On a GPU, that is, and for the dtypes that numpy lacks."""
    ours, theirs = make_params(), make_params()
    a = make_optimizer(name, ours, 0.01, delta=1e-3)
    monkeypatch.setattr(hesscale_core, "BLOCK", 5)  # 27 elements in five blocks and a rest
    monkeypatch.setattr(hesscale_core, "NUMPY_DTYPES", ())
    b = make_optimizer(name, theirs, 0.01, delta=1e-3)
    for step in range(20):
        set_derivatives(ours, step)
        set_derivatives(theirs, step)
        a.update()
        b.update()
        close(ours, theirs)
        assert a.eta == pytest.approx(b.eta, rel=1e-10)
    half = [torch.nn.Parameter(p.detach().bfloat16()) for p in make_params()]
    set_derivatives(half, 0)
    make_optimizer(name, half, 0.01).step()
    assert all(p.isfinite().all() and p.dtype is torch.bfloat16 for p in half)


def test_torchs_hooks_are_called_by_step_and_not_by_update():
    params = make_params()
    optimizer, called = make_optimizer("adam", params, 0.01), []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    set_derivatives(params, 0)
    optimizer.step()
    optimizer.update()
    assert called == [1]
    assert optimizer.param_groups[0]["step"] == 2


@pytest.mark.parametrize("made", [False, True])
def test_a_losss_derivatives_are_copied_into_a_parameter(kind, made):
    parameter = torch.nn.Parameter(torch.zeros(3).double())
    if made:
        parameter.grad, parameter.hess = torch.ones(3).double(), torch.ones(3).double()
        before = parameter.grad, parameter.hess
    grad, hess = torch.randn(2, 3).double()
    hesscale_core.set_derivatives(parameter, kind(grad), kind(hess))
    close([parameter.grad, parameter.hess], [grad, hess], rtol=0)
    if made:  # an optimizer holds views of them
        assert parameter.grad is before[0] and parameter.hess is before[1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_fits_a_regression(kind, name):
    """The parts together: forward, loss, backward and step bring the error of y = sin(x) down by five."""
    torch.manual_seed(0)
    net = TanhMLP(1, (16,), 1).double()
    x = torch.linspace(-3, 3, 64).double()[:, None]
    y = torch.sin(x)
    optimizer = make_optimizer(name, net.parameters(), lr=0.03, delta=1e-3)
    losses = []
    for _ in range(600):
        if optimizer.hutchinson:
            loss = value_loss(net(x), y)
            hutchinson(loss.loss, net.parameters())
        else:
            loss = value_loss(kind(torch.as_tensor(net(kind(x)))), kind(y))
            net.backward(loss.grad_value, loss.hess_value, optimizer.gauss_newton)
        optimizer.step()
        losses.append(float(torch.as_tensor(loss.loss).detach()))
    assert losses[-1] < losses[0] / 5
