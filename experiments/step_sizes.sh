#!/usr/bin/env bash
# The sweeps behind the default step sizes and behind A2C's normalization: hours on two cores, and what stands in the
# tables already is not run again. The last lines print, for each optimizer, its step sizes from best to worst.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh requirements.txt
grid() { python experiments/grid.py --env-ids Hopper-v4 HalfCheetah-v4 "$@"; }

ppo() { grid --agent ppo_hesscale.py --out results/ppo_step_sizes --total-timesteps 300000 "$@"; }
main="adam adahesscale adahesscalegn scaled-adam scaled-adahesscale scaled-adahesscalegn"
ppo --optimizers $main --learning-rates 1e-4 1e-2 --seeds 1
ppo --optimizers $main --learning-rates 3e-4 1e-3 --seeds 1 2
ppo --optimizers adam --learning-rates 3e-3 --seeds 1
ppo --optimizers ${main#adam } --learning-rates 3e-3 --seeds 1 2

a2c() { grid --agent a2c_hesscale.py --out results/a2c_step_sizes --total-timesteps 300000 --seeds 1 2 "$@"; }
a2c --optimizers adam adahesscale --learning-rates 1e-4 3e-4 1e-3
a2c --optimizers adahesscale --learning-rates 3e-3
a2c --optimizers adahessian --learning-rates 3e-4 1e-3
a2c --optimizers scaled-adahesscale --learning-rates 1e-3 1e-2

# the rest at half the steps, in tables of their own because that is another measure
ppo() { grid --agent ppo_hesscale.py --out results/ppo_step_sizes_150k --total-timesteps 150000 --seeds 1 2 "$@"; }
ppo --optimizers sgd scaled-sgd --learning-rates 1e-2 1e-1
ppo --optimizers adahessian --learning-rates 3e-4 1e-3
ppo --optimizers scaled-adahessian --learning-rates 1e-3
a2c() { grid --agent a2c_hesscale.py --out results/a2c_step_sizes_150k --total-timesteps 150000 --seeds 1 2 "$@"; }
a2c --optimizers sgd scaled-sgd --learning-rates 1e-3 1e-2
a2c --optimizers adahesscalegn scaled-adahesscalegn --learning-rates 3e-4 1e-3
a2c --optimizers scaled-adam --learning-rates 3e-4 1e-3
a2c --optimizers scaled-adahessian --learning-rates 1e-3

# A2C with observations and rewards as the environment gives them, against the default that normalizes both; and with
# AdaHesScale's eps and the batch changed
raw() { grid --agent a2c_hesscale.py --out results/a2c_raw --seeds 1 2 --extra="--no-norm-obs --no-norm-reward" "$@"; }
raw --optimizers adam --learning-rates 3e-4 1e-3
raw --optimizers adahesscale --learning-rates 1e-3 3e-3
why() { python experiments/grid.py --agent a2c_hesscale.py --out results/a2c_why --env-ids HalfCheetah-v4 --seeds 1 2 "$@"; }
why --optimizers adahesscale --learning-rates 1e-3 --extra="--eps 1e-8"
why --optimizers adahesscale --learning-rates 1e-3 --extra="--eps 1e-3"
why --optimizers adam adahesscale --learning-rates 1e-3 --extra="--num-steps 20"

for table in ppo_step_sizes a2c_step_sizes ppo_step_sizes_150k a2c_step_sizes_150k; do
    python experiments/plot.py step-sizes results/$table
done
