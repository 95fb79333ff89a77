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
a2c --optimizers adahessian --learning-rates 3e-4 1e-3 3e-3
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

# what else might decide between Adam and AdaHesScale in A2C: observations and rewards as the environment gives them
# (the default normalizes both), eps, and the size of the batch
raw="--no-norm-obs --no-norm-reward"
half() { grid --agent a2c_hesscale.py --out results/a2c_raw --seeds 1 2 --total-timesteps 300000 --extra="$raw" "$@"; }
half --optimizers adam --learning-rates 3e-4 1e-3
half --optimizers adahesscale --learning-rates 1e-3 3e-3
cheetah() { python experiments/grid.py --agent a2c_hesscale.py --env-ids HalfCheetah-v4 "$@"; }
full() { cheetah --out results/a2c_raw_500k --seeds 1 2 3 --total-timesteps 500000 --extra="$raw" "$@"; }
full --optimizers adam --learning-rates 3e-4
full --optimizers adahesscale --learning-rates 1e-3
why() { cheetah --out results/a2c_why --total-timesteps 300000 "$@"; }
why --seeds 1 2 --optimizers adahesscale --learning-rates 1e-3 --extra="--eps 1e-8"
why --seeds 1 2 --optimizers adahesscale --learning-rates 1e-3 --extra="--eps 1e-3"
why --seeds 1 2 --optimizers adam --learning-rates 1e-3 --extra="--num-steps 20"
why --seeds 1 2 3 --optimizers adam --learning-rates 3e-4 --extra="--num-steps 20"
why --seeds 1 2 3 --optimizers adahesscale --learning-rates 1e-3 --extra="--num-steps 20"

for table in ppo_step_sizes a2c_step_sizes ppo_step_sizes_150k a2c_step_sizes_150k; do
    python experiments/plot.py step-sizes results/$table
done
