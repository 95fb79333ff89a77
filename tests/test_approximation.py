"""The diagonals that experiments/ compares, against brute force; and the experiments from end to end."""

import gzip
import itertools
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, read_csv
from torch.distributions import Normal
from torch.func import functional_call

sys.path.insert(0, str(ROOT / "experiments"))

import approximation_quality
import diagonals
import hessian_diagonality
import minibatches

import hesscale_core
from hesscale_core import TanhMLP, cross_entropy_loss

CLIP = 0.2
NAMES = ["cross-entropy", "policy gradient", "ppo", "value"]


def close(a, b, **tolerances):
    torch.testing.assert_close(a, b, **{"rtol": 1e-9, "atol": 1e-12} | tolerances)


def random_case(name, seed, hidden=None, groups=3, batch=None):
    """Return a Loss, params, x and targets of random sizes, and the loss of a batch's outputs written with torch."""
    torch.manual_seed(seed)
    pick = lambda low, high: int(torch.randint(low, high, ()))  # noqa: E731
    batch = batch or pick(2, 6)
    out = 1 if name == "value" else pick(2, 5)
    hidden = [pick(2, 5) for _ in range(pick(1, 4))] if hidden is None else hidden
    sizes = [pick(2, 5), *hidden, out]
    shapes = [shape for m, n in itertools.pairwise(sizes) for shape in ((n, m), (n,))]
    params = tuple(torch.randn(groups, *shape, dtype=torch.float64) for shape in shapes)
    x = torch.randn(groups, batch, sizes[0], dtype=torch.float64)
    if name == "cross-entropy":
        targets = (torch.randint(out, (groups, batch)),)
        return diagonals.CROSS_ENTROPY, params, x, targets, torch.nn.functional.cross_entropy
    if name == "value":
        targets = (torch.randn(groups, batch, 1, dtype=torch.float64),)
        return diagonals.VALUE, params, x, targets, lambda v, returns: 0.5 * torch.nn.functional.mse_loss(v, returns)
    log_std = 0.3 * torch.randn(groups, batch, out, dtype=torch.float64)
    mean = torch.stack([network(params, g, x) for g in range(groups)])
    actions = mean + log_std.exp() * torch.randn_like(mean)
    advantages = torch.randn(groups, batch, dtype=torch.float64)
    log_prob = lambda mean, log_std, actions: Normal(mean, log_std.exp()).log_prob(actions).sum(-1)  # noqa: E731
    if name == "policy gradient":
        loss = lambda mean, log_std, a, advantages: -(advantages * log_prob(mean, log_std, a)).mean()  # noqa: E731
        return diagonals.POLICY_GRADIENT, params, x, (log_std, actions, advantages), loss

    def loss(mean, log_std, actions, old, advantages):
        ratio = (log_prob(mean, log_std, actions) - old).exp()
        return -torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()

    old = log_prob(mean, log_std, actions) + 0.2 * torch.randn(groups, batch, dtype=torch.float64)
    return diagonals.ppo_with(CLIP), params, x, (log_std, actions, old, advantages), loss


def make_net(params, g):
    """Return group g's network, a TanhMLP as the agents have it."""
    sizes = [params[0].shape[-1], *(b.shape[-1] for b in params[1::2])]
    net = TanhMLP(sizes[0], sizes[1:-1], sizes[-1]).double()
    for p, values in zip(net.parameters(), params, strict=True):
        p.data.copy_(values[g])
    return net


def network(params, g, x):
    return make_net(params, g)(x[g]).detach()


def unflatten(vector, params):
    """Return a vector over one group's parameters as layers."""
    parts = [
        part.view(p.shape[1:]) for part, p in zip(vector.split([p[0].numel() for p in params]), params, strict=True)
    ]
    return [torch.cat([w, b[:, None]], 1) for w, b in zip(parts[::2], parts[1::2], strict=True)]


def as_functions(params, g, x, targets, batch_loss):
    """Return group g's parameters as one vector, and two functions of it: the network's output, and the loss."""
    net = make_net(params, g)
    sizes, shapes = [p.numel() for p in net.parameters()], [p.shape for p in net.parameters()]
    names = [name for name, _ in net.named_parameters()]

    def output(vector):
        named = {n: part.view(s) for n, part, s in zip(names, vector.split(sizes), shapes, strict=True)}
        return functional_call(net, named, (x[g],))

    vector = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    return vector, output, lambda vector: batch_loss(output(vector), *(t[g] for t in targets))


def compute(case, samples=3, seed=0):
    return diagonals.diagonals(*case[:4], torch.Generator().manual_seed(seed), samples)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_exact_diagonal_is_that_of_the_full_hessian_of_all_parameters(name, seed):
    case = random_case(name, seed)
    computed = compute(case)
    for g in range(len(case[2])):
        vector, _, loss = as_functions(*case[1:2], g, *case[2:])
        full = torch.autograd.functional.hessian(loss, vector)
        for layer, expected in zip(computed["H"], unflatten(full.diagonal(), case[1]), strict=True):
            close(layer[g], expected)


@pytest.mark.parametrize("name", NAMES)
def test_ggn_is_the_diagonal_of_jacobian_hessian_jacobian(name):
    case = random_case(name, seed=3)
    computed = compute(case)
    for g in range(len(case[2])):
        vector, output, _ = as_functions(*case[1:2], g, *case[2:])
        jacobian = torch.autograd.functional.jacobian(output, vector).flatten(0, 1)
        out, targets = output(vector), [t[g] for t in case[3]]
        hess = torch.autograd.functional.hessian(lambda out: case[4](out, *targets), out).reshape(out.numel(), -1)  # noqa: B023
        expected = unflatten((jacobian.T @ hess @ jacobian).diagonal(), case[1])
        for layer, expected_layer in zip(computed["GGN"], expected, strict=True):
            close(layer[g], expected_layer)


@pytest.mark.parametrize("name", NAMES)
def test_squared_gradient_is_that_of_the_batch(name):
    case = random_case(name, seed=4)
    computed = compute(case)
    for g in range(len(case[2])):
        vector, _, loss = as_functions(*case[1:2], g, *case[2:])
        (grad,) = torch.autograd.grad(loss(vector.requires_grad_()), vector)
        for layer, expected in zip(computed["g²"], unflatten(grad**2, case[1]), strict=True):
            close(layer[g], expected)


@pytest.mark.parametrize("name", NAMES)
def test_preactivation_hessians_are_those_in_the_biases(name):
    """A bias moves its layer's pre-activation and nothing else; off the diagonal too."""
    case = random_case(name, seed=5, batch=1)
    matrices = diagonals.preactivation_hessians(*case[:4])
    for g in range(len(case[2])):
        vector, _, loss = as_functions(*case[1:2], g, *case[2:])
        full, end = torch.autograd.functional.hessian(loss, vector), 0
        for weight, bias, matrix in zip(case[1][::2], case[1][1::2], matrices, strict=True):
            start = end + weight[0].numel()
            end = start + bias[0].numel()
            close(matrix[g, 0], full[start:end, start:end])


@pytest.mark.parametrize("name", NAMES)
def test_hesscale_is_the_cores_and_exact_at_the_last_layer(name):
    case = random_case(name, seed=6)
    computed = compute(case)
    for method in ("HesScale", "HesScaleGN"):
        close(computed[method][-1], computed["H"][-1])
    for g in range(len(case[2])):
        net = make_net(case[1], g)
        loss = case[0].core(net(case[2][g]), *(t[g] for t in case[3]))
        for method in ("HesScale", "HesScaleGN"):
            net.backward(loss.grad, loss.hess, gauss_newton=method == "HesScaleGN")
            expected = unflatten(torch.cat([p.hess.reshape(-1) for p in net.parameters()]), case[1])
            for layer, expected_layer in zip(computed[method], expected, strict=True):
                close(layer[g], expected_layer)


def test_hesscale_is_exact_and_its_gn_the_ggn_for_networks_one_unit_wide():
    computed = compute(random_case("value", seed=7, hidden=[1, 1, 1]))
    for method, reference in (("HesScale", "H"), ("HesScaleGN", "GGN")):
        for layer, expected in zip(computed[method], computed[reference], strict=True):
            close(layer, expected)


@pytest.mark.parametrize("name", ["policy gradient", "value"])
def test_hesscale_gn_is_the_ggn_with_one_hidden_layer_and_a_diagonal_output_hessian(name):
    computed = compute(random_case(name, seed=8, hidden=[4]))
    for layer, expected in zip(computed["HesScaleGN"], computed["GGN"], strict=True):
        close(layer, expected)
    assert not torch.allclose(computed["HesScaleGN"][0], computed["H"][0])


def test_hesscale_gn_is_not_the_ggn_where_the_output_hessian_is_not_diagonal():
    computed = compute(random_case("cross-entropy", seed=8, hidden=[4]))
    assert not torch.allclose(computed["HesScaleGN"][0], computed["GGN"][0])


@pytest.mark.parametrize("name", NAMES)
def test_ggn_mc_is_unbiased(name, monkeypatch):
    monkeypatch.setattr(diagonals, "adahessian", lambda *args: (None, None))  # slow with so many samples
    case = random_case(name, seed=9, hidden=[3, 2])
    samples = 20_000
    many, few = compute(case, samples), compute(case, 1)
    for layer, expected in zip(many["GGN-MC50"], many["GGN"], strict=True):
        close(layer, expected, rtol=0, atol=float(6 * expected.abs().max() / samples**0.5))
    for one, average in zip(few["GGN-MC1"], few["GGN-MC50"], strict=True):
        close(one, average)
    exact = torch.allclose(many["GGN-MC1"][0], many["GGN"][0])
    assert exact == (name == "value")  # one output with random signs: no variance


def test_ggn_mc_sees_negative_curvature():
    """PPO's Hessian in the output is indefinite, and so is the estimate."""
    case = random_case("ppo", seed=10, groups=20)
    assert min(layer.min() for layer in compute(case)["GGN-MC1"]) < 0


@pytest.mark.parametrize("name", NAMES)
def test_adahessian_is_unbiased(name, monkeypatch):
    monkeypatch.setattr(diagonals, "PIECE", 5000)
    case = random_case(name, seed=11, hidden=[3], groups=2)
    samples = 20_000
    _, mean = diagonals.adahessian(*case[:4], samples, torch.Generator().manual_seed(0))
    for g in range(2):
        vector, _, loss = as_functions(*case[1:2], g, *case[2:])
        full = torch.autograd.functional.hessian(loss, vector)
        spread = ((full**2).sum(1) - full.diagonal() ** 2).sqrt()  # of z * (Hz)
        for layer, exact, s in zip(mean, unflatten(full.diagonal(), case[1]), unflatten(spread, case[1]), strict=True):
            assert ((layer[g] - exact).abs() <= 5 * s / samples**0.5 + 1e-12).all()


def test_a_sample_of_adahessian_is_the_cores(monkeypatch):
    """The same z gives the same z * (Hz), and the average is over all samples."""
    case = random_case("ppo", seed=12, groups=1)
    z = [torch.randint(0, 2, (1, 13, *p.shape[1:])).double() * 2 - 1 for p in case[1]]
    pieces = iter([z_p[:, :10] for z_p in z] + [z_p[:, 10:] for z_p in z])
    monkeypatch.setattr(diagonals, "_signs", lambda shape, generator: next(pieces))
    first, mean = diagonals.adahessian(*case[:4], 13, None)
    expected = []
    for i in range(13):
        net, bits = make_net(case[1], 0), iter([(z_p[0, i] + 1) / 2 for z_p in z])
        monkeypatch.setattr(torch, "randint", lambda *args, bits=bits, **kwargs: next(bits))
        loss = case[0].core(net(case[2][0]), *(t[0] for t in case[3])).loss
        hesscale_core.hutchinson(loss, net.parameters())
        expected.append(torch.cat([p.hess.reshape(-1) for p in net.parameters()]))
    for layer, expected_layer in zip(first, unflatten(expected[0], case[1]), strict=True):
        close(layer[0], expected_layer)
    for layer, expected_layer in zip(mean, unflatten(torch.stack(expected).mean(0), case[1]), strict=True):
        close(layer[0], expected_layer)


def literal_bl89(net, x, target, softmax):
    """Return BL89's layers for one sample by Eq. 1-4 with loops.

    Softmax, or log-softmax, is an element-wise layer below a loss of its own.
    """
    weights, biases = [layer.weight for layer in net.layers], [layer.bias for layer in net.layers]
    activations = [x]
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        activations.append(torch.tanh(w @ activations[-1] + b))
    logits = weights[-1] @ activations[-1] + biases[-1]
    q = torch.softmax(logits, 0)
    d, dd = torch.zeros_like(q), torch.zeros_like(q)
    if softmax:  # the loss is -log of the layer's output
        d[target], dd[target] = -1 / q[target], 1 / q[target] ** 2
        slope, bend = q - q * q, q - 3 * q**2 + 2 * q**3
    else:  # minus the layer's output
        d[target] = -1
        slope, bend = 1 - q, q * q - q
    dd_a = slope**2 * dd + bend * d
    d_a = q.clone()
    d_a[target] -= 1
    hess = []
    for layer in reversed(range(len(weights))):
        below = activations[layer]
        hess.insert(0, torch.cat([dd_a[:, None] * below**2, dd_a[:, None]], 1))
        new_d, new_dd = torch.zeros_like(below), torch.zeros_like(below)
        for i in range(len(below) if layer else 0):
            slope, bend = 1 - below[i] ** 2, -2 * below[i] * (1 - below[i] ** 2)
            for k in range(len(d_a)):
                new_d[i] += slope * d_a[k] * weights[layer][k, i]
                new_dd[i] += slope**2 * dd_a[k] * weights[layer][k, i] ** 2 + bend * d_a[k] * weights[layer][k, i]
        d_a, dd_a = new_d, new_dd
    return hess


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_bl89_is_the_literal_recursion(softmax, seed):
    case = random_case("cross-entropy", seed)
    computed = compute(case)
    with torch.no_grad():
        for g in range(len(case[2])):
            samples = [
                literal_bl89(make_net(case[1], g), *sample, softmax)
                for sample in zip(case[2][g], case[3][0][g], strict=True)
            ]
            for layer, expected in zip(computed["BL89"], zip(*samples, strict=True), strict=True):
                close(layer[g], torch.stack(expected).mean(0))


def test_bl89_with_the_whole_softmax_jacobian_would_be_hesscale():
    """Eq. 4 with its sum over k, of a loss that depends on one probability: it has no off-diagonal term to drop."""
    q = torch.softmax(torch.randn(5, dtype=torch.float64), 0)
    jacobian = torch.diag(q) - torch.outer(q, q)
    bend = torch.func.jacrev(torch.func.jacrev(lambda a: torch.softmax(a, 0)))(q.log())[2].diagonal()
    close(jacobian[2] ** 2 / q[2] ** 2 - bend / q[2], q - q * q)


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_l1_distances_whatever_the_chunks(name, monkeypatch):
    case = random_case(name, seed=13)
    errors = diagonals.errors(*case[:4], torch.Generator().manual_seed(0), 3)
    computed = compute(case)
    assert set(diagonals.METHODS) - set(errors) == ({"BL89"} if name != "cross-entropy" else set())
    for method, error in errors.items():
        if method in computed:
            expected = [(a - b).abs().sum((1, 2)) for a, b in zip(computed[method], computed["H"], strict=True)]
            close(torch.as_tensor(error), torch.stack(expected, 1))
    close(torch.as_tensor(errors["|diag(H)|"]), torch.stack([h.abs().sum((1, 2)) for h in computed["H"]], 1))
    between = [(a - b).abs().sum((1, 2)) for a, b in zip(computed["HesScaleGN"], computed["GGN"], strict=True)]
    close(torch.as_tensor(errors["HesScaleGN to GGN"]), torch.stack(between, 1))
    monkeypatch.setattr(diagonals, "GROUPS", 1)
    in_pieces = diagonals.errors(*case[:4], torch.Generator().manual_seed(0), 3)
    close(torch.as_tensor(in_pieces["HesScale"]), torch.as_tensor(errors["HesScale"]))


def test_a_batch_is_the_mean_of_its_samples_but_for_the_squared_gradient():
    case = random_case("ppo", seed=14)
    alone = minibatches.one_by_one(*case[1:4])
    batch, singles = compute(case), compute((case[0], *alone))
    for method, same in (("H", True), ("GGN", True), ("HesScale", True), ("HesScaleGN", True), ("g²", False)):
        mean = singles[method][0].unflatten(0, case[2].shape[:2]).mean(1)
        assert torch.allclose(batch[method][0], mean, rtol=1e-9) == same, method


# ---- diagonality ---------------------------------------------------------------------------------------------


def test_rho_is_one_for_diagonal_zero_for_hollow_and_no_number_for_zero_matrices():
    a = torch.randn(7, 7, dtype=torch.float64)
    hollow = a - torch.diag(a.diagonal())
    rhos = hessian_diagonality.rho(torch.stack([torch.diag(a.diagonal()), hollow, 0 * a, a]))
    close(rhos[:2], torch.tensor([1.0, 0.0]).double())
    assert rhos[2].isnan()
    close(rhos[3], torch.linalg.norm(a.diagonal()) / torch.linalg.norm(a))


def test_rho_of_a_gaussian_matrix_is_the_papers():
    assert round(hessian_diagonality.gaussian_rho(128), 2) == 0.09


# ---- data and agents -----------------------------------------------------------------------------------------


def write_idx(path, array, opener=open):
    with opener(path, "wb") as file:
        file.write(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.mark.parametrize("suffix, opener", [("", open), (".gz", gzip.open)])
def test_data_is_read_as_mnist_is_distributed(tmp_path, suffix, opener):
    pixels, labels = np.random.default_rng(0).integers(0, 256, (5, 3, 4), np.uint8), np.arange(5, dtype=np.uint8)
    write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", pixels, opener)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", labels, opener)
    x, y = approximation_quality.load_images(tmp_path)
    assert np.array_equal(x, pixels.reshape(5, 12) / 255) and np.array_equal(y, labels)


@pytest.mark.parametrize("content", [None, b"", b"no idx file", b"\0\0\x08\3\0\0\0\7", b"\x1f\x8b broken"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_data_is_one_clear_line(tmp_path, content, suffix):
    if content is not None:
        (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(content)
        write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(5, dtype=np.uint8))
    with pytest.raises(SystemExit) as error:
        approximation_quality.load_images(tmp_path)
    assert str(error.value).startswith(f"error: --data {tmp_path}: ") and "\n" not in str(error.value)
    if content is None:
        assert "has no train-images-idx3-ubyte" in str(error.value)


@pytest.mark.parametrize("script", [approximation_quality, hessian_diagonality], ids=lambda script: script.__name__)
@pytest.mark.parametrize(
    "flags, message",
    [
        ("--data no/folder", "--data no/folder: has no train-images-idx3-ubyte"),
        ("--seeds 0", "--seeds 0: must be at least 1"),
        ("--agents dqn", "--agents dqn: choose from a2c, ppo"),
        ("--optimizer adahessian", "--optimizer adahessian: never calls TanhMLP.backward"),
        ("--optimizer adamm", "--optimizer adamm: choose one of"),
        ("--env-ids Hopper-v4 Hoper-v4", "--env-id Hoper-v4: Environment `Hoper` doesn't exist"),
        ("--env-ids CartPole-v1", "--env-ids CartPole-v1: its actions are choices"),
        ("--env-ids Hopper-v4 Hopper-v4", "--env-ids Hopper-v4 Hopper-v4: names a value twice"),
        ("--total-timesteps 10", "--total-timesteps 10: is less than one rollout"),
        ("--out file/a", "file is not a folder that can be written to"),
        ("--cache file/a/b", "--cache file/a/b: "),
        ("--out .", "--out .: is a folder; give how the files' names begin"),
        ("--out /", "--out /: is a folder; give how the files' names begin"),
        (f"--out {'x' * 500}", "File name too long"),
        (f"--cache {'x' * 500}", "File name too long"),
        ("--samples 1e12", "--samples 1000000000000: must be at least 1, and at most 1,000,000"),
        ("--learning-rate inf", "--learning-rate inf: must be a number above 0"),
        ("--step-size 0", "--step-size 0.0: must be a number above 0"),
        ("--samples 1.5", "--samples 1.5: must be a whole number"),
        ("--sample 3", "Unrecognized options: --sample, 3; Perhaps you meant: --samples INT"),
    ],
)
def test_bad_flags_are_one_line_before_any_work(script, flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", [script.__name__, *flags.split()])
    with pytest.raises(SystemExit) as error:
        script.main(script.parse_args(script.Args))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not capsys.readouterr().out and [*tmp_path.iterdir()] == [tmp_path / "file"]


@pytest.mark.parametrize("script", [approximation_quality, hessian_diagonality], ids=lambda script: script.__name__)
@pytest.mark.parametrize("out", ["results/a", "experiments/../results/b/c"])
def test_quick_never_writes_among_the_results_of_whole_runs(script, out, monkeypatch, tmp_path):
    """By the README's command with --quick added, too; without --out the files go to a folder that git ignores."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as error:
        script.Args(quick=True, out=Path(out)).check()
    assert str(error.value).startswith(f"error: --out {Path(out)}: holds the figures of whole runs")
    script.Args(out=Path(out)).check()
    monkeypatch.chdir(tmp_path)
    script.Args(quick=True, out=Path(out)).check()  # that is another results/
    assert f"{script.Args.out.parent}/" in (ROOT / ".gitignore").read_text().split()


def test_a_damaged_record_is_one_line(tmp_path):
    args = SimpleNamespace(total_timesteps=2000, optimizer="sgd", step_size=0.01, minibatches=2, cache=tmp_path)
    (tmp_path / "a2c_Pendulum-v1_sgd_0.01_1_2000_2.pt").write_bytes(b"half")
    with pytest.raises(SystemExit) as error:
        minibatches.record("a2c", "Pendulum-v1", 1, args)
    assert str(error.value).startswith(f"error: --cache {tmp_path}: a2c_Pendulum-v1_sgd_0.01_1_2000_2.pt is damaged (")


@pytest.mark.parametrize("name", ["a2c", "ppo"])
def test_an_update_follows_from_its_record(name):
    """The parameters, inputs and arguments recorded give SGD's next parameters."""
    agent = minibatches.AGENTS[name]
    before = TanhMLP.backward, agent.value_loss, getattr(agent, minibatches.POLICY_LOSSES[name])
    args = agent.Args(env_id="Pendulum-v1", total_timesteps=64, num_steps=32, optimizer="sgd", checkpoint_interval=0)
    if name == "ppo":
        args.num_minibatches, args.update_epochs = 4, 2
    records = minibatches.run(name, args, {0, 1})
    assert (TanhMLP.backward, agent.value_loss, getattr(agent, minibatches.POLICY_LOSSES[name])) == before
    updates = sorted((record["update"], record["network"]) for record in records)
    assert updates == [(update, network) for update in (0, 1) for network in ("actor", "critic")]
    for network in ("actor", "critic"):
        loss, params, x, targets = minibatches._groups(name, [r for r in records if r["network"] == network])
        net = make_net(params, 0)
        result = loss.core(net(x[0]), *(t[0] for t in targets))
        net.backward(result.grad, result.hess)
        for p, start, end in zip(net.parameters(), *([p[i] for p in params] for i in (0, 1)), strict=True):
            close(start - args.learning_rate * p.grad, end, rtol=1e-5, atol=1e-6)
            assert not torch.equal(start, end)


def test_an_agent_that_diverges_is_one_line(tmp_path, monkeypatch, capsys):
    args, backward = minibatches.AGENTS["a2c"].Args(env_id="Pendulum-v1", total_timesteps=64), TanhMLP.backward
    args.optimizer, args.learning_rate = "sgd", 1e30
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        minibatches.run("a2c", args, set())
    assert str(error.value).startswith("error: --optimizer sgd: a2c on Pendulum-v1, seed 1, diverges: ")
    assert "\n" not in str(error.value) and not capsys.readouterr().err
    assert TanhMLP.backward == backward and not list(tmp_path.iterdir())


def test_a_run_is_recorded_once(tmp_path, monkeypatch):
    args = dict(total_timesteps=2000, optimizer="sgd", step_size=0.01, minibatches=2, cache=tmp_path / "cache")
    args = SimpleNamespace(**args)
    assert minibatches.agent_args("a2c", "Pendulum-v1", 1, args).learning_rate == 0.01
    first = minibatches.record("a2c", "Pendulum-v1", 1, args)
    monkeypatch.setattr(minibatches, "run", None)
    again = minibatches.record("a2c", "Pendulum-v1", 1, args)
    assert set(first) == {(n, m) for n in ("actor", "critic") for m in ("start", "middle", "end")}
    for key, (_, params, x, _) in first.items():
        assert len(x) == 2 and x.shape[1] == 5
        close(again[key][1][0], params[0])
    firsts = [first["critic", moment][1][0] for moment in ("start", "middle", "end")]
    assert not torch.equal(firsts[0], firsts[1]) and not torch.equal(firsts[1], firsts[2])


def test_sgd_step_descends():
    net = approximation_quality.make_network((4, 3, 2), seed=0)
    x, y = np.random.default_rng(0).standard_normal((6, 4)), np.array([0, 1] * 3)
    expected = [p.detach().clone() for p in net.parameters()]
    grads = torch.autograd.grad(
        torch.nn.functional.cross_entropy(net(torch.as_tensor(x)), torch.as_tensor(y)), list(net.parameters())
    )
    loss = approximation_quality.sgd_step(net, x, y, 0.1)
    assert cross_entropy_loss(net(x), y).loss < loss
    for p, old, grad in zip(net.parameters(), expected, grads, strict=True):
        close(p.detach(), old - 0.1 * grad)


def test_normalized_errors_are_ratios_within_an_initialization():
    errors = {"HesScale": np.array([[1.0, 0.0], [3.0, 0.0]]), "|diag(H)|": np.array([[4.0, 1.0], [6.0, 2.0]])}
    rows = {(row["method"], row["layer"]): row for row in approximation_quality.table(errors, loss="x")}
    row = rows["|diag(H)|", "all"]
    ratios = [5 / 1, 8 / 3]
    assert row["error"] == 6.5 and row["normalized"] == pytest.approx(np.mean(ratios)) and row["n"] == 2
    assert row["normalized_ci"] == pytest.approx(12.706 * np.std(ratios, ddof=1) / 2**0.5, rel=1e-4)
    assert np.isnan(rows["|diag(H)|", 2]["normalized"])  # HesScale is exact there


def test_quick_runs_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for script, outputs in ((approximation_quality, ["a_images", "a_rl"]), (hessian_diagonality, ["a"])):
        monkeypatch.setattr(sys, "argv", "x --quick --out a --cache cache --env-ids Pendulum-v1".split())
        script.main(script.parse_args(script.Args))
        for name in outputs:
            assert all((tmp_path / f"{name}.{suffix}").stat().st_size > 1000 for suffix in ("csv", "png", "pdf"))
    printed = capsys.readouterr().out
    for line in ("ppo on Pendulum-v1, critic, end, batch of 64", "HesScaleGN's distance to GGN", "128 x 128: 0.088"):
        assert line in printed
    rows = read_csv(tmp_path / "a_rl.csv")
    assert {row["batch"] for row in rows} == {"1", "5", "64"} and {row["n"] for row in rows} == {"2"}
    assert not {"BL89"} & {row["method"] for row in rows}
    rows = read_csv(tmp_path / "a_images.csv")
    of_all = {row["method"]: float(row["normalized"]) for row in rows if row["layer"] == "all"}
    assert of_all["HesScale"] == 1 and min(of_all[m] for m in diagonals.METHODS if m != "HesScale") > 1
    assert len(list(tmp_path.iterdir())) == 1 + 3 * 3  # the cache and the files above: nothing of the runs


def test_diagonality_is_measured_by_the_mean_size_of_entries_and_the_mean_rho(monkeypatch):
    """Two samples whose off-diagonals differ in sign: their mean is diagonal, that of their sizes is not."""
    samples = torch.tensor([[[1.0, 3.0], [3.0, 1.0]], [[1.0, -3.0], [-3.0, 1.0]]]).double()
    monkeypatch.setattr(diagonals, "preactivation_hessians", lambda *args: [samples[:, None], 2 * samples[:, None]])
    cells = {}
    hessian_diagonality.measure(cells, "key", None, None, None, None)
    ((one, two),) = cells["key"]
    assert one[0] == two[0] == pytest.approx(0.1**0.5)
    assert one[1].tolist() == [[1, 3], [3, 1]] and two[1].tolist() == [[2, 6], [6, 2]]


def test_the_table_of_diagonality_is_worked_out_by_hand():
    one, other = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 2.0], [2.0, 1.0]])  # mean: ones
    runs = [[(0.5, one), (0.3, one)], [(0.7, other), (0.3, one)]]
    found = hessian_diagonality.table({("images", "", "network", m): runs for m in ("before", "after")})
    assert [row["paper"] for row in found] == [0.94, 0.91, 0.75, 0.54]
    for row in found[::2]:
        assert row["rho"] == pytest.approx(0.6) and row["rho_ci"] == pytest.approx(12.706 * 0.1, rel=1e-4)
        assert row["rho_of_mean"] == pytest.approx(0.5**0.5) and (row["n"], row["units"], row["layer"]) == (2, 2, 1)


def test_diagonality_after_training_is_that_of_the_trained_network(monkeypatch):
    rng = np.random.default_rng(0)
    images, labels, seen = rng.normal(size=(20, 3)), rng.integers(0, 2, 20), {}
    labels[:2] = 0, 1
    monkeypatch.setattr(
        hessian_diagonality, "measure", lambda cells, key, loss, params, x, targets: seen.update({key[3]: params})
    )
    args = hessian_diagonality.Args(
        initializations=1, iterations=3, batch_size=5, samples=4, width=6, learning_rate=0.1
    )
    hessian_diagonality.measure_images({}, images, labels, args)
    net, rng = approximation_quality.make_network((3, 6, 6, 6, 6, 2), 0), np.random.default_rng(0)
    for p, measured in zip(net.parameters(), seen["before"], strict=True):
        assert measured[0].equal(p.detach())
    rng.integers(20, size=4)
    for batch in rng.integers(20, size=(3, 5)):
        approximation_quality.sgd_step(net, images[batch], labels[batch], 0.1)
    for p, measured in zip(net.parameters(), seen["after"], strict=True):
        assert measured[0].equal(p.detach())


def test_images_errors_are_those_before_each_step_on_the_image_that_it_trains_on(monkeypatch):
    rng, seen = np.random.default_rng(1), []
    images, labels = rng.normal(size=(9, 3)), np.arange(9) % 2

    def errors(loss, params, x, targets, generator, samples):
        seen.append((params, x, targets))
        return {"HesScale": np.arange(len(x), dtype=float)[:, None]}

    monkeypatch.setattr(diagonals, "errors", errors)
    monkeypatch.setattr(approximation_quality, "CHUNK", 2)
    args = approximation_quality.Args(initializations=1, examples=4, learning_rate=0.1)
    found = approximation_quality.image_errors(images, labels, args)
    assert found["HesScale"].tolist() == [[0.5]]  # the mean of 0, 1, 0, 1
    net, order = approximation_quality.make_network((3, 32, 32, 32, 2), 0), np.random.default_rng(0).integers(9, size=4)
    for step, i in enumerate(order):
        params, x, (y,) = seen[step // 2]
        assert x[step % 2, 0].tolist() == images[i].tolist() and y[step % 2].item() == labels[i]
        assert all(p.detach().equal(copy[step % 2]) for p, copy in zip(net.parameters(), params, strict=True))
        approximation_quality.sgd_step(net, images[i : i + 1], labels[i : i + 1], 0.1)


def test_errors_of_agents_are_means_over_groups(monkeypatch):
    batch = (torch.zeros(2, 1),), torch.zeros(2, 3, 1), (torch.zeros(2, 3),)
    monkeypatch.setattr(approximation_quality, "record", lambda *args: {("actor", "end"): ("loss", *batch)})
    values = lambda loss, params, x, *args: {"HesScale": np.arange(len(x) * 2.0).reshape(-1, 2)}  # noqa: E731
    monkeypatch.setattr(diagonals, "errors", values)
    args = approximation_quality.Args(agents=("ppo",), env_ids=("Ant-v4",), seeds=2)
    found = approximation_quality.rl_errors(args)
    assert {key[-1]: cell["HesScale"].tolist() for key, cell in found.items()} == {
        1: [[5, 6]] * 2,  # of 2 times 3 samples
        3: [[1, 2]] * 2,
    }


def test_the_distance_to_ggn_is_told_as_a_part_of_ggn(capsys):
    errors = {"HesScale": 2.0, "HesScaleGN to GGN": 1.0, "|diag(G)|": 4.0, "|diag(H)|": 5.0}
    cell = approximation_quality.table({method: np.full((2, 1), e) for method, e in errors.items()})
    approximation_quality.print_table("here", cell)
    assert "distance to GGN: 0.250 of |diag(G)|, 0.5 times HesScale's error" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, updates",
    [("ppo", 146 * 320), ("a2c", 60_000)],  # of 300,000 steps; SPAN, 320, are PPO's of one rollout
)
def test_minibatches_are_those_of_the_first_the_middle_and_the_last_updates(name, updates, tmp_path, monkeypatch):
    """From the middles of 16 equal parts, so that PPO's come from all its epochs; as in the paper, also for log_std."""
    made = []

    def fake(name, args, wanted):
        made.append(args)
        return [{"network": "critic", "update": update} for update in sorted(wanted)]

    monkeypatch.setattr(minibatches, "run", fake)
    monkeypatch.setattr(minibatches, "_groups", lambda name, records: [r["update"] for r in records])
    args = approximation_quality.Args(cache=tmp_path)
    found = minibatches.record(name, "Ant-v4", 1, args)
    parts = [10 + 20 * i for i in range(16)]
    for moment, first in ("start", 0), ("middle", (updates - 320) // 2), ("end", updates - 320):
        assert found["critic", moment] == [first + i for i in parts], moment
    assert not made[0].adam_log_std and made[0].total_timesteps == 300_000


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, in place of files."""
    found = []
    for script in approximation_quality, hessian_diagonality:
        monkeypatch.setattr(script, "save", lambda figure, prefix: found.append(figure))
    return found


def rows_of_points(axis, names):
    """The point that is drawn beside each label of the axis `names`, {label: x}."""
    labels = {round(y): text.get_text() for y, text in zip(names.get_yticks(), names.get_yticklabels(), strict=True)}
    points = [line.get_xydata() for line in axis.lines]
    return {labels[round(p[0, 1])]: p[0, 0] for p in points if len(p) == 1}


def test_each_methods_error_is_beside_its_name(figures):
    """On images and of agents' losses."""
    values = {method: 1.0 + (3 * i) % 10 for i, method in enumerate(diagonals.METHODS)}
    errors = {method: np.array([[value, 0.5], [value, 0.5]]) for method, value in values.items()}
    ratios = {method: pytest.approx((value + 0.5) / (values["HesScale"] + 0.5)) for method, value in values.items()}
    approximation_quality.draw_images(errors, "p")
    assert rows_of_points(*figures[0].axes[:1] * 2) == ratios
    approximation_quality.draw_rl({("ppo", "Ant-v4", "actor", "end", b): errors for b in (1, 64)}, "p")
    for axis, words in zip(figures[1].axes, ("one sample", "batch of 64"), strict=True):
        assert rows_of_points(axis, figures[1].axes[0]) == ratios and axis.get_title() == f"PPO, actor, {words}"


def test_heat_maps_are_those_of_their_titles(figures):
    network = lambda value: [[(0.5, np.array([[value, 1.0], [1.0, 10.0]]))] * 4]  # noqa: E731
    cells = {("images", "", "network", "before"): network(1.0), ("images", "", "network", "after"): network(2.0)}
    for i, moment in enumerate(("start", "middle", "end")):
        cells["ppo", "Ant-v4", "actor", moment] = network(3.0 + i)
        cells["ppo", "Ant-v4", "critic", moment] = network(6.0 + i)
    hessian_diagonality.draw(cells, hessian_diagonality.table(cells), "p")
    (figure,) = figures
    maps = [axis for axis in figure.axes if axis.images]
    assert [axis.get_ylabel() for axis in maps[::4]] == ["images, before", "images, after", "PPO, end"]
    assert [round(float(axis.images[0].get_array()[0, 0]), 6) for axis in maps] == [0.1] * 4 + [0.2] * 4 + [
        0.5, 0.5, 0.8, 0.8,
    ]  # fmt: skip
    (legend,) = figure.subfigs[1].legends
    colors = {handle.get_label(): handle.get_color() for handle in legend.legend_handles}
    for name in "before, start", "middle", "after, end":
        assert {hessian_diagonality.SHADES[moment] for moment in name.split(", ")} == {colors[name]}
