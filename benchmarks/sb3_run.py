"""Train Stable-Baselines3's PPO or A2C with the settings of ppo_hesscale.py or a2c_hesscale.py; print its steps/s.

    .venv-peers/bin/python benchmarks/sb3_run.py --algorithm ppo --env-id Hopper-v4 --steps 40960

whole_run.py runs it; benchmarks/peers.sh makes its environment. As there, rollouts are of 2048 steps (PPO) or 5 (A2C),
actor and critic have 64-64 tanh networks each, VecNormalize normalizes observations and rewards, the optimizer is Adam
(rather than Stable-Baselines3's RMSprop in A2C, because HesScale's optimizers extend Adam), and TensorBoard gets the
default log of Stable-Baselines3. Its own are only one optimizer and one loss for actor and critic, and gradients
clipped to 0.5. The steps/s are those of learn(), without the start-up.
"""

import argparse
import time

import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

SETTINGS = {
    "ppo": dict(n_steps=2048, batch_size=64, n_epochs=10, gae_lambda=0.95, clip_range=0.2),
    "a2c": dict(n_steps=5, gae_lambda=1.0, use_rms_prop=False),
}


def main(args):
    torch.set_num_threads(1)
    env = VecNormalize(make_vec_env(args.env_id, seed=args.seed), gamma=0.99, clip_obs=10.0, clip_reward=10.0)
    model = {"ppo": PPO, "a2c": A2C}[args.algorithm](
        "MlpPolicy",
        env,
        learning_rate=3e-4,
        gamma=0.99,
        policy_kwargs=dict(net_arch=[64, 64], activation_fn=torch.nn.Tanh),
        tensorboard_log="runs",
        seed=args.seed,
        device="cpu",
        **SETTINGS[args.algorithm],
    )
    start = time.perf_counter()
    model.learn(args.steps)
    sps = model.num_timesteps / (time.perf_counter() - start)
    print(f"{model.num_timesteps:,} steps at {sps:,.0f} steps/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=SETTINGS, default="ppo")
    parser.add_argument("--env-id", default="Hopper-v4")
    parser.add_argument("--steps", type=int, default=40_960)
    parser.add_argument("--seed", type=int, default=1)
    main(parser.parse_args())
