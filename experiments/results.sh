#!/usr/bin/env bash
# Measure and draw everything in results/, with each optimizer at its default step size. Hours on two cores;
# what stands in the tables already is not run again.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh requirements.txt
grid() { python experiments/grid.py "$@"; }

grid --agent ppo_hesscale.py --out results/ppo_hopper --env-ids Hopper-v4 \
    --optimizers adam adahesscale scaled-adahesscale --seeds 1 2 3 --total-timesteps 300000
python experiments/plot.py curves results/ppo_hopper

grid --agent a2c_hesscale.py --out results/a2c --env-ids Hopper-v4 HalfCheetah-v4 \
    --optimizers adam adahessian adahesscale scaled-adahesscale --seeds 1 2 3 --total-timesteps 500000
python experiments/plot.py curves results/a2c

for agent in ppo a2c; do
    grid --agent ${agent}_hesscale.py --out results/cartpole --env-ids CartPole-v1 \
        --optimizers adam scaled-adahesscale --seeds 1 2 3 --total-timesteps 300000
done
