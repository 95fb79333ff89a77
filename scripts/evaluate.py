"""Play episodes with a trained agent: mean and standard deviation of their returns, and a video if asked for.

    scripts/run.sh scripts/evaluate.py runs/FOLDER --episodes 10 --capture-video

FOLDER is a run's folder: the agent of a finished run plays, or that of an unfinished one's newest checkpoint. The
normalization keeps the statistics of the end of training. An episode that doesn't end is cut off after --max-steps.
Without a display, set MUJOCO_GL=egl or osmesa for a video.
"""

import argparse
import contextlib
import os
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from hesscale_envs import EnvironmentFailed, closed_if_it_fails, make_env, play_episode
from hesscale_run import load_model, seed_everything
from hesscale_utils import check_extras, fail, limit_threads, new_folder, parse_args, quiet_end
from ppo_hesscale import Agent  # a2c_hesscale.py's is the same


@dataclass
class Args:
    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")] = ""
    """a run's folder, or a saved model's file; must be given"""
    episodes: int = 10
    """how many episodes to play"""
    max_steps: int = 100_000
    """steps after which an episode is cut off that has not ended"""
    sample: bool = False
    """whether to sample actions from the policy, as in training, instead of taking the most likely ones"""
    env_id: str | None = None
    """the environment to play; left out, the one that the agent was trained on"""
    env_kwargs: str | None = None
    """arguments of the environment, as in `map_name=8x8,is_slippery=False`; left out, those it was trained with"""
    seed: int = 1
    """seed of the environment and of the actions"""
    capture_video: bool = False
    """whether to record the episodes into a new folder in videos/"""


def describe(obs_dim, action_dim, discrete):
    """Return the sizes of observations and actions in words."""
    return f"observations [{obs_dim}] and {f'{action_dim} choices' if discrete else f'actions [{action_dim}]'}"


def make_video_folder(path):
    """Make a folder in videos/ that is named after the agent at `path` and holds no other's videos; return its path."""
    folder, name = os.path.split(os.path.abspath(path))
    if os.path.isfile(path) and os.path.isfile(f"{folder}/status.json"):  # of a run, as others have such a file
        name = f"{os.path.basename(folder)}__{name}"
    try:
        return new_folder(f"videos/{name.removesuffix('.pt')}__evaluation")
    except OSError as error:
        fail(f"--capture-video: {error}")


def main(args):
    limit_threads()
    if not args.path:
        fail("PATH is missing: give a run's folder, as in runs/, or a saved model's file")
    for name in ("episodes", "max_steps"):
        if getattr(args, name) < 1:
            fail(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    if not 0 <= args.seed < 2**32:
        fail(f"--seed {args.seed}: must be in [0, 2^32)")
    check_extras(args)
    model, videos = load_model(args.path), make_video_folder(args.path) if args.capture_video else None
    try:
        play(args, model, videos)
    finally:
        if videos:
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(videos)


def play(args, model, videos):
    """Play the episodes, record them into the empty folder `videos` unless it is None, and print what came of them."""
    parameters = model["agent"]
    weights = [p for name, p in parameters.items() if name.startswith("actor.") and name.endswith(".weight")]
    if not weights:
        fail(f"{args.path}: its agent has no actor; it is of another commit, which can play it")
    gaussian = any(name == "actor.log_std" or name.startswith("actor_std.") for name in parameters)
    trained_on = weights[0].shape[1], len(weights[-1]), not gaussian
    env_id = args.env_id or model["env_id"]
    env_kwargs = args.env_kwargs
    if env_kwargs is None:  # another environment has other arguments
        env_kwargs = model["env_kwargs"] if env_id == model["env_id"] else ""
    options = argparse.Namespace(
        env_id=env_id, env_kwargs=env_kwargs, gamma=1.0, norm_obs=model["norm_obs"], norm_reward=False,
        time_feature=model["time_feature"],
    )  # fmt: skip
    warnings.filterwarnings("ignore", ".*Overwriting existing videos")  # gymnasium's, of any folder that is there
    rng = seed_everything(args.seed, True)  # the global generators as well, from which environments may draw
    env = make_env(options, videos, video_trigger=lambda episode: True)
    with closed_if_it_fails([env]):
        play_episodes(args, model, env, env_id, rng, trained_on, videos)


def play_episodes(args, model, env, env_id, rng, trained_on, videos):
    """Play the episodes in `env` with the agent, whose actor has the sizes `trained_on`."""
    parameters = model["agent"]
    found = env.obs_dim, env.action_dim, env.discrete
    if found != trained_on:
        fail(f"--env-id {env_id} has {describe(*found)}, but the agent was trained on {describe(*trained_on)}")
    agent = Agent(*found, model["state_std"]).float()  # whatever torch's default is since the environment was made
    shapes, wanted = ({k: [*p.shape] for k, p in state.items()} for state in (parameters, agent.state_dict()))
    for name in [name for name in shapes | wanted if shapes.get(name) != wanted.get(name)]:
        sizes = f"{name} {shapes.get(name, 'missing')} instead of {wanted.get(name, 'none')}"
        fail(f"{args.path}: its agent has {sizes}; it is of another commit, which can play it")
    agent.load_state_dict(parameters)
    env.freeze(model["statistics"][0])
    returns, lengths, cut_off, last_line = [], [], 0, time.perf_counter()

    def tell():
        nonlocal last_line
        if time.perf_counter() - last_line >= 10:
            last_line = time.perf_counter()
            so_far = f"return {env.episode_return:.1f}, {env.episode_length:,} steps so far"
            print(f"episode {len(returns) + 1}: {so_far}, at most {args.max_steps:,}", flush=True)

    interrupt = None
    try:
        for episode in range(args.episodes):
            seed = args.seed if episode == 0 else None
            done = play_episode(agent, env, seed, rng if args.sample else None, args.max_steps, tell)
            returns.append(env.episode_return)
            lengths.append(env.episode_length)
            cut_off += not done
            end = "" if done else f", cut off by --max-steps {args.max_steps}"
            print(f"episode {episode + 1}: return {returns[-1]:.1f}, {lengths[-1]} steps{end}", flush=True)
    except KeyboardInterrupt as error:  # what was played until then counts
        interrupt = error
    env.close()
    if returns:
        print(
            f"{env_id}, {len(returns)} episodes, {'sampled' if args.sample else 'most likely'} actions: "
            f"return {np.mean(returns):.1f} ± {np.std(returns):.1f}, {np.mean(lengths):.0f} steps"
            + (f"; {cut_off} cut off by --max-steps {args.max_steps}" if cut_off else "")
            + (f"; videos in {videos}" if videos else "")
        )
    if interrupt:
        raise interrupt


if __name__ == "__main__":
    with quiet_end():
        try:
            main(parse_args(Args))
        except EnvironmentFailed as error:
            fail(error)
