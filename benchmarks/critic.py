"""The time of a critic update, beside torch's Adam, AdaHessian and the authors' HesScale: medians, on one thread.

    python benchmarks/critic.py [--hesscale PATH] [--csv results/critic.csv]

The time is that from the forward pass to the step, in float32: 64 samples, 11 inputs, 64-64 tanh units, one output,
half the mean squared error (the others have torch's MSELoss, which is twice that and one operation less). PATH is a
checkout of https://github.com/mohmdelsayed/HesScale. The peers run in a process of their own, in the environment that
benchmarks/peers.sh makes; missing ones are skipped. Before it starts the clock, the script compares every gradient, and
the diagonals of the authors' HesScale and HesScaleGN, with ours on the same weights and data.
"""

import copy
import functools
import json
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from timing import ROOT, check_table, in_turns, limit_threads, report
from torch import nn

sys.path.insert(0, str(ROOT / "experiments"))
from networks import make_network

from hesscale_core import TanhMLP, cross_entropy_loss, hutchinson, make_optimizer, value_loss
from hesscale_utils import parse_args

REFERENCE = "torch autograd, torch.optim.Adam"
OURS = ("adam", "adahesscalegn", "adahesscale", "scaled-adahesscale", "adahessian")
LR = 1e-12  # so small that the networks do not change
TOLERANCE = 1e-4  # of differences from ours, relative to the largest entry; those of rounding are about 1e-6
torch.backends.cudnn.allow_tf32 = False  # a GPU's convolutions in float32 too: with TF32 they differ by 1e-3
AUTHORS = "https://github.com/mohmdelsayed/HesScale"


@dataclass
class Args:
    hesscale: Path | None = None
    """a checkout of https://github.com/mohmdelsayed/HesScale; None leaves its optimizers out"""
    peers_python: Path = ROOT / ".venv-peers/bin/python"
    """the Python of the environment with the peers"""
    rounds: int = 40
    """number of times that each is timed"""
    csv: str | None = None
    """the file to append the table to; None for none"""
    quick: bool = False
    """whether to time each only once and keep no table, to see that all of them run"""


class Problem(NamedTuple):
    """A network and its batch. One output is a value, for value_loss; more are logits, for cross_entropy_loss.

    A `network` has a name of experiments/networks.py and images of `in_features` channels; without, it is a TanhMLP.
    """

    in_features: int
    hidden_features: tuple[int, ...]
    out_features: int
    batch: int
    network: str | None = None
    device: str = "cpu"

    @property
    def is_value(self):
        return self.out_features == 1

    @property
    def loss(self):
        return value_loss if self.is_value else cross_entropy_loss


CRITIC = Problem(11, (64, 64), 1, 64)


@functools.lru_cache(maxsize=1)  # because orthogonal initialization takes longer than an update
def _make(problem):
    torch.manual_seed(0)
    batch, size = (problem.batch,), (problem.in_features,)
    if problem.network is None:
        net = TanhMLP(problem.in_features, problem.hidden_features, problem.out_features)
    else:
        net, size = make_network(problem.network, problem.in_features, problem.out_features), (*size, 32, 32)
    x = torch.randn(*batch, *size)
    return net, x, torch.randn(*batch, 1) if problem.is_value else torch.randint(problem.out_features, batch)


def make(problem):
    """Return a network, inputs and targets, the same for every method and in every process."""
    return tuple(part.to(problem.device) for part in copy.deepcopy(_make(problem)))


class Method(NamedTuple):
    """An update in parts: output = forward(); backward(output); step()."""

    params: list
    forward: Callable
    backward: Callable
    step: Callable
    diagonal: str | None = None  # name of the attribute with the Hessian diagonal, if we have the same diagonal
    gauss_newton: bool = False


def time_updates(method, calls, with_forward=True):
    """Return the mean time of `calls` updates in microseconds, with or without their forward pass."""
    total = 0.0
    for _ in range(calls):
        start = perf_counter()
        output = method.forward()
        if not with_forward:
            start = perf_counter()
        method.backward(output)
        method.step()
        if method.params[0].is_cuda:
            torch.cuda.synchronize()  # the GPU works on while Python goes on
        total += perf_counter() - start
    return total / calls * 1e6


def ours(problem, name):
    """Return an update by hesscale_core, on numpy arrays; only AdaHessian's takes tensors, for autograd."""
    net, x, target = make(problem)
    by_autograd, layers = "adahessian" in name, problem.network is not None
    params = list(net.parameters()) if by_autograd or layers else [net.flat]
    optimizer = make_optimizer(name, params, LR)
    if by_autograd:
        return Method(
            params,
            forward=lambda: net(x),
            backward=lambda output: hutchinson(problem.loss(output, target).loss, params),
            step=optimizer.update,
        )
    if not layers:
        x, target = x.numpy(), target.numpy()

    def backward(output):
        _, grad, hess = problem.loss(output, target)
        net.backward(grad, hess if optimizer.needs_hess else None, optimizer.curvature == "HesScaleGN")

    return Method(params, torch.no_grad()(lambda: net(x)), backward, optimizer.update)


def by_autograd(problem, make_optimizer, *, prepare=lambda module: module, context=nullcontext, create_graph=False):
    """Return an update by autograd, of prepare(network) and prepare(loss), with its backward pass in context()."""
    net, x, target = make(problem)
    mlp = problem.network is None
    model = nn.Sequential(*[module for layer in net.layers for module in (layer, nn.Tanh())][:-1]) if mlp else net.model
    model = prepare(model)
    loss_function = prepare(nn.MSELoss() if problem.is_value else nn.CrossEntropyLoss())
    optimizer = make_optimizer(model.parameters())

    def backward(output):
        optimizer.zero_grad()
        loss = loss_function(output, target)
        with context():
            loss.backward(create_graph=create_graph)

    return Method(list(model.parameters()), lambda: model(x), backward, optimizer.step)


def torchs(problem):
    """Return an update by torch.optim.Adam."""
    return by_autograd(problem, lambda params: torch.optim.Adam(params, lr=LR))


def differences_from_ours(problem, method):
    """Return {derivative: largest difference from ours, relative to the largest entry}.

    The derivatives are the gradient and, if we have the same diagonal, the Hessian diagonal.
    """
    net, x, target = make(problem)
    _, grad, hess = problem.loss(net(x), target)
    net.backward(grad, hess, method.gauss_newton)
    method.backward(method.forward())
    scale = 2 if problem.is_value else 1  # MSELoss is twice value_loss

    def largest(theirs, ours):
        pairs = zip(method.params, net.parameters(), strict=True)
        pairs = [(getattr(p, theirs).detach() / scale, getattr(q, ours)) for p, q in pairs]
        return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)

    differences = {"gradient": largest("grad", "grad")}
    if method.diagonal is not None:
        differences["Hessian diagonal"] = largest(method.diagonal, "hess")
    return differences


def check(name, differences):
    """End the program with one line if a method's derivatives differ from ours, else return a line that says so."""
    for derivative, difference in differences.items():
        if not difference <= TOLERANCE:  # true for nan too
            sys.exit(f"error: {name}: its {derivative} differs from ours by {difference:.1g} of the largest entry")
    return f"{name}: {' and '.join(differences)} as ours within {max(differences.values()):.0e}"


# ---- The peers, in a process of their own ------------------------------------------------------------------


def pytorch_optimizers(problem, hesscale):
    from pytorch_optimizer import AdaHessian

    return by_autograd(problem, lambda params: AdaHessian(params, lr=LR), create_graph=True)


def output_padding(grad_output, input_size, stride, padding, kernel_size, dilation=None):
    """Return what a transposed convolution adds on each side's end to have the input's size."""
    sides = zip(grad_output.shape[2:], input_size[-len(stride) :], stride, padding, kernel_size,
                dilation or [1] * len(stride), strict=True)  # fmt: skip
    return tuple(size - ((out - 1) * s - 2 * p + d * (k - 1) + 1) for out, size, s, p, k, d in sides)


def import_backpack():
    torch.nn.grad._grad_input_padding = output_padding  # BackPACK 1.3 needs it, and new versions of torch lack it
    import backpack
    import backpack.extensions

    return backpack


def diagonal_of(problem, hesscale, name):
    backpack = import_backpack()
    adam, method = lambda params: torch.optim.Adam(params, lr=LR), getattr(backpack.extensions, name)()
    return by_autograd(problem, adam, prepare=backpack.extend, context=lambda: backpack.backpack(method))


def authors(problem, hesscale, name):
    backpack = import_backpack()
    sys.modules["turtle"] = types.SimpleNamespace(back=None)  # linear_gn.py imports it by accident, and it needs Tk
    sys.path.insert(0, hesscale)
    import optimizers.adahesscale
    import optimizers.adahesscalegn

    optimizer = getattr(getattr(optimizers, name.lower()), name)
    method = by_autograd(
        problem,
        lambda params: optimizer(params, lr=LR),
        prepare=backpack.extend,
        context=lambda: backpack.backpack(optimizer.method),
    )
    return method._replace(diagonal=optimizer.method.savefield, gauss_newton=name.endswith("GN"))


PEERS = {
    "AdaHessian of pytorch_optimizer": pytorch_optimizers,
    "BackPACK's DiagGGNExact, torch.optim.Adam": functools.partial(diagonal_of, name="DiagGGNExact"),
    "BackPACK's DiagHessian, torch.optim.Adam": functools.partial(diagonal_of, name="DiagHessian"),
    "the authors' AdaHesScaleGN": functools.partial(authors, name="AdaHesScaleGN"),
    "the authors' AdaHesScale": functools.partial(authors, name="AdaHesScale"),
}


def worker(hesscale=None):
    """Answer requests on stdin with answers on stdout, one JSON object a line, until stdin ends."""
    warnings.simplefilter("ignore")
    limit_threads()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that a peer's own output does not mix with the answers
    methods = {}

    def make_method(name, hidden_features, **rest):
        problem = Problem(hidden_features=tuple(hidden_features), **rest)
        methods.pop(name, None)  # frees its memory before its successor takes as much
        methods[name] = PEERS[name](problem, hesscale)
        return differences_from_ours(problem, methods[name])

    def time(name, **options):
        return time_updates(methods[name], **options)

    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"answer": {"make": make_method, "time": time}[request.pop("do")](**request)}
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        print(json.dumps(answer), file=answers, flush=True)


class Peers:
    """The process of the peers. It skips missing ones, with a line that says how to install them."""

    def __init__(self, args, names=tuple(PEERS)):
        self.names, self.process, self.checks = list(names), None, {}
        if args.hesscale is None:
            self.skip([name for name in names if "authors" in name], f"git clone {AUTHORS} and pass --hesscale PATH")
        elif not (args.hesscale / "optimizers/adahesscale.py").exists():
            sys.exit(f"error: --hesscale {args.hesscale}: has no optimizers/adahesscale.py; git clone {AUTHORS}")
        if not args.peers_python.exists():
            self.skip(self.names, "run benchmarks/peers.sh")
        if self.names:
            command = [args.peers_python, __file__, "--worker", *([args.hesscale.resolve()] if args.hesscale else [])]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def skip(self, names, remedy):
        if names:
            print(f"skipped: {', '.join(names)}: {remedy}")
        self.names = [name for name in self.names if name not in names]

    def ask(self, do, **request):
        """Return what the process answers; raise RuntimeError with its error if it answers with one."""
        try:
            print(json.dumps({"do": do, **request}), file=self.process.stdin, flush=True)
            answer = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            answer = {"error": f"{self.process.args[0]} has ended"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["answer"]

    def functions(self, problem, **options):
        """Return {name: function that times updates, with the options of time_updates}."""
        for name in self.names:
            try:
                self.checks[name] = check(name, self.ask("make", name=name, **problem._asdict()))
            except RuntimeError as error:
                self.skip([name], f"{error}; run benchmarks/peers.sh")
        return {name: functools.partial(self.ask, "time", name=name, **options) for name in self.names}


def functions(problem, names, peers, **options):
    """Return {name: function that times updates} of torch's Adam, of our optimizers `names`, and of the peers."""
    reference = torchs(problem)
    peers.checks[REFERENCE] = check(REFERENCE, differences_from_ours(problem, reference))
    methods = {REFERENCE: reference} | {name: ours(problem, name) for name in names}
    timed = {name: functools.partial(time_updates, method, **options) for name, method in methods.items()}
    return timed | peers.functions(problem, **options)


def compare(args, problem, title, calls=1, names=tuple(PEERS)):
    """Time the updates of a problem by our optimizers and by the peers `names`, and report them."""
    check_args(args)
    check_table(args)
    limit_threads()
    peers = Peers(args, names)
    calls, rounds, warmup = (1, 1, 0) if args.quick else (calls, args.rounds, 2)
    timed = functions(problem, OURS, peers, calls=calls)
    print(*peers.checks.values(), sep="\n")
    report(title, in_turns(timed, rounds, warmup), REFERENCE, path=args.csv)


def main(args):
    compare(args, CRITIC, "critic update of 64 samples", calls=20)


def check_args(args):
    if args.rounds < 1:
        sys.exit(f"error: --rounds {args.rounds}: must be at least 1")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        main(parse_args(Args))
