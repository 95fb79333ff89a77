"""The time and memory of a whole run, beside CleanRL, Stable-Baselines3 and the bare environment.

    python benchmarks/whole_run.py --cleanrl PATH [--csv results/whole_run.csv]     # ten minutes; --quick: half of one

Every run is a process of its own on one CPU thread, in a folder that is removed afterwards. Measured in turns:

1. PPO on Hopper-v4, TensorBoard on: ppo_hesscale.py, CleanRL's ppo_continuous_action.py at its defaults, and
   Stable-Baselines3's PPO with the same settings (sb3_run.py);
2. A2C on Hopper-v4, likewise, beside Stable-Baselines3's;
3. PPO beside the bare environment under random actions, resets included, on Hopper-v4 and HalfCheetah-v4;
4. the time from the start of `python ppo_hesscale.py ...` to its first environment step;
5. the peak memory of the runs of 1 and 2.

The time of a step is the one that each program prints for its whole run, without imports and set-up: in our last line,
in CleanRL's last "SPS:", and for learn() in sb3_run.py. CleanRL runs with the gymnasium that it is pinned to, 0.29.1,
the others with ours. benchmarks/peers.sh makes both environments; missing programs are skipped.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timing

# this process does not import torch, because a child's peak memory is at least its parent's at the start of the child
ROOT = timing.ROOT
ROLLOUT = 2048
SKIPPED = {
    "CleanRL": "git clone https://github.com/vwxyzjn/cleanrl, pass --cleanrl PATH, and run benchmarks/peers.sh",
    "Stable-Baselines3": "run benchmarks/peers.sh",
}
STEPS_PER_SECOND = r"at ([\d,]+) steps/s"
FIRST_STEP = r"first step at ([\d.]+)"

# Python runs a sitecustomize.py on PYTHONPATH before anything else. This one ends the program at MuJoCo's first step (a
# reset makes none), and changes neither the program before that nor the order of its imports
SITECUSTOMIZE = """
import os, sys, time
from importlib.machinery import PathFinder

def first_step(*args, **kwargs):
    print("first step at", time.monotonic(), flush=True)
    os._exit(0)

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "mujoco" and (spec := PathFinder.find_spec(name, path)):
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (load(module), setattr(module, "mj_step", first_step))
            return spec

sys.meta_path.insert(0, Finder)
"""


class RunFailed(Exception):
    """A child ended with an error, or without printing the number to measure."""


def run(command, pattern, first_step=False):
    """Run `command` to its end.

    Returns the number in its output's last match of `pattern` (with `first_step`, the seconds until that was printed)
    and its peak memory in MB.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out.txt"), Path(folder, "err.txt")
        env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # CleanRL would use a GPU
        if first_step:
            Path(folder, "sitecustomize.py").write_text(SITECUSTOMIZE)
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, env.get("PYTHONPATH")]))
        start = time.monotonic()
        with out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen([str(c) for c in command], stdout=stdout, stderr=stderr, cwd=folder, env=env)
            try:
                _, status, usage = os.wait4(process.pid, 0)  # the peak memory of this child, not of the largest so far
            except BaseException:
                process.kill()
                process.wait()
                raise
            process.returncode = os.waitstatus_to_exitcode(status)
        numbers = re.findall(pattern, out.read_text())
        if process.returncode or not numbers:
            lines = err.read_text().strip().splitlines() or [f"exit status {process.returncode}, nothing on stderr"]
            raise RunFailed(f"{Path(command[1]).name} under {command[0]} failed: {lines[-1]}")
    number = float(numbers[-1].replace(",", ""))
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return number - start if first_step else number, peak


def bare(env_id, steps):
    """Make `steps` steps of the bare environment with random actions, which are drawn before the clock starts."""
    import gymnasium as gym

    env = gym.make(env_id)
    env.action_space.seed(1)
    actions = [env.action_space.sample() for _ in range(steps)]
    env.reset(seed=1)
    start = time.perf_counter()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    print(f"{steps:,} steps at {steps / (time.perf_counter() - start):,.0f} steps/s")


def compare(title, programs, args, targets=None):
    """Report the time of a step of {name: (command, pattern)}; return {name: peak memory [rounds]}."""
    peaks = {name: [] for name in programs}

    def us_per_step(name):
        sps, peak = run(*programs[name])
        peaks[name].append(peak)
        return 1e6 / sps

    times = in_turns(title, us_per_step, programs, args)
    timing.report(title, times, next(iter(programs)), path=args.csv)
    for name in programs:
        if name != "ours":
            low, median, high = np.quantile(times[name] / times["ours"], [0.25, 0.5, 0.75])
            target = f"; target {targets[name]:g} x" if name in (targets or {}) else ""
            print(f"  ours over {name}: {median:.2f} x steps/s [{low:.2f}, {high:.2f}]{target}")
    return {name: np.array(peak[-args.rounds :]) for name, peak in peaks.items()}  # without the warm-up's


def in_turns(title, function, programs, args):
    print(f"measuring: {title}", file=sys.stderr)
    functions = {name: lambda name=name: function(name) for name in programs}
    return timing.in_turns(functions, args.rounds, warmup=0 if args.quick else 1)


def main(args):
    timing.limit_threads()
    sys.stdout.reconfigure(line_buffering=True)  # shows each table when it is done, in a pipe too

    def ours(script, env_id, steps):
        command = [sys.executable, ROOT / script, "--env-id", env_id, "--optimizer", "scaled-adahesscale"]
        return [*command, "--total-timesteps", steps], STEPS_PER_SECOND

    def sb3(algorithm, steps):
        command = [args.peers_python, ROOT / "benchmarks/sb3_run.py", "--algorithm", algorithm]
        return [*command, "--env-id", "Hopper-v4", "--steps", steps], STEPS_PER_SECOND

    def bare_env(env_id):
        return [sys.executable, __file__, "--bare", env_id, "--steps", args.steps], STEPS_PER_SECOND

    # peers first: the first program is what the tables' ratios are relative to
    ppo, a2c = {}, {}
    if args.cleanrl and shutil.which(args.cleanrl_python):
        script = args.cleanrl / "cleanrl/ppo_continuous_action.py"
        command = [args.cleanrl_python, script, "--env-id", "Hopper-v4", "--total-timesteps", args.steps]
        ppo["CleanRL"] = command, r"SPS: (\d+)"
    if shutil.which(args.peers_python):
        ppo["Stable-Baselines3"], a2c["Stable-Baselines3"] = sb3("ppo", args.steps), sb3("a2c", args.steps // 2)
    for name, remedy in SKIPPED.items():
        if name not in ppo:
            print(f"{name} is skipped; to have it: {remedy}")
    ppo["ours"] = ours("ppo_hesscale.py", "Hopper-v4", args.steps)
    a2c["ours"] = ours("a2c_hesscale.py", "Hopper-v4", args.steps // 2)

    def agents(algorithm, programs, steps, targets=None):
        title = f"{algorithm} on Hopper-v4, time per step of a run of {steps:,} steps"
        peaks = compare(title, programs, args, targets)
        timing.report(f"{algorithm} on Hopper-v4, peak memory", peaks, next(iter(peaks)), "MB", args.csv)

    def beside_bare(env_id):
        programs = {"bare environment": bare_env(env_id), "ours": ours("ppo_hesscale.py", env_id, args.steps)}
        compare(f"PPO beside the bare environment on {env_id}, time per step of {args.steps:,}", programs, args)

    def first_step():
        title = "PPO on Hopper-v4, time from start to first environment step"
        times = in_turns(title, lambda name: run(ppo[name][0], FIRST_STEP, first_step=True)[0], ppo, args)
        timing.report(title, times, next(iter(times)), "s", args.csv)

    failed = False
    for measure in (
        lambda: agents("PPO", ppo, args.steps, {"CleanRL": 5}),
        lambda: agents("A2C", a2c, args.steps // 2),
        lambda: beside_bare("Hopper-v4"),
        lambda: beside_bare("HalfCheetah-v4"),
        first_step,
    ):
        try:
            measure()
        except RunFailed as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    sys.exit(failed)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )

    def at_least(least):
        def parse(text):
            if not text.isdecimal() or int(text) < least:
                raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least {least}")
            return int(text)

        return parse

    def checkout(text):
        path = Path(text).expanduser().resolve()
        if not (path / "cleanrl/ppo_continuous_action.py").exists():
            raise argparse.ArgumentTypeError(
                f"{text}: has no cleanrl/ppo_continuous_action.py; git clone https://github.com/vwxyzjn/cleanrl"
            )
        return path

    def python(text):
        return Path(text).expanduser().absolute()  # a venv's python is a link, which must stay one

    def table(text):
        path = Path(text).expanduser().absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            writable = not path.is_dir() and os.access(path if path.exists() else path.parent, os.W_OK)
        except OSError:
            writable = False
        if not writable:  # an error now rather than after ten minutes
            raise argparse.ArgumentTypeError(f"{text}: can't be written; give the path of a file that can")
        return path

    add = parser.add_argument
    add("--cleanrl", type=checkout, metavar="PATH", help="a checkout of https://github.com/vwxyzjn/cleanrl")
    add("--cleanrl-python", type=python, default=ROOT / ".venv-cleanrl/bin/python", help="the Python that runs it")
    add("--peers-python", type=python, default=ROOT / ".venv-peers/bin/python", help="that of Stable-Baselines3")
    add("--rounds", type=at_least(1), default=5, help="runs of each program, after one to warm up")
    add("--steps", type=at_least(ROLLOUT), default=20 * ROLLOUT, help="steps of a run; half as many of an A2C run")
    add("--csv", type=table, help="the table to append to; none without this")
    add("--quick", action="store_true", help="see whether everything runs: one round of one rollout, no table")
    add("--bare", metavar="ENV_ID", help=argparse.SUPPRESS)  # for a child of this script
    args = parser.parse_args()
    if args.quick and args.csv:
        parser.error(f"--csv {args.csv}: --quick keeps no table; leave one of the two out")
    if args.quick:
        args.rounds, args.steps = 1, ROLLOUT
    return args


if __name__ == "__main__":
    args = parse_args()
    if args.bare:
        bare(args.bare, args.steps)
    else:
        main(args)
