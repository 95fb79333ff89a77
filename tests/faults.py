"""Plant faults in the sources, one at a time, and see that the tests catch each.

    scripts/run.sh tests/faults.py                    # all, an hour on two cores; prints what survives
    scripts/run.sh tests/faults.py entropy noise      # those whose names contain one of these words

Each fault is a mistake that somebody could make: texts in a file and what stands there instead. It goes into a copy of
the repository, and the tests named with it run there. The exit status is 1 if more than one in twenty survives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
TESTS = {
    "core": "test_tanh_mlp.py test_losses.py test_optimizers.py test_updates.py",
    "updates": "test_updates.py test_agents.py",
    "envs": "test_envs.py",
    "runs": "test_runs.py",
    "arm": "test_ur_reacher.py",
    "stability": "test_stability.py",
}
# name, files, which tests, and pairs of a text and its replacement
# fmt: off
FAULTS = [
    ('gn actor gets plain HesScale', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('self.actor.backward(pg.grad, pg.hess, gauss_newton, pg.grad_log_std, pg.hess_log_std)', 'self.actor.backward(pg.grad, pg.hess, False, pg.grad_log_std, pg.hess_log_std)')),
    ('gn actor plain (state_std)', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('self.actor.backward(pg.grad, pg.hess, gauss_newton)', 'self.actor.backward(pg.grad, pg.hess, False)')),
    ('gn actor_std plain', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('self.actor_std.backward(pg.grad_log_std, pg.hess_log_std, gauss_newton)', 'self.actor_std.backward(pg.grad_log_std, pg.hess_log_std, False)')),
    ('gn critic plain', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('self.critic.backward(v.grad, v.hess, gauss_newton)', 'self.critic.backward(v.grad, v.hess, False)')),
    ('always gn', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('"HesScaleGN"\n    parameters', '"HesScale"\n    parameters')),
    ('never centred', 'ppo_hesscale.py', 'updates', ('advantages -= advantages.mean(1, keepdims=True)\n', 'pass\n')),
    ('never scaled', 'ppo_hesscale.py', 'updates', ('advantages /= advantages.std(1, ddof=1, keepdims=True) + 1e-8', 'pass')),
    ('ddof 0', 'ppo_hesscale.py', 'updates', ('ddof=1, ', '')),
    ('normalized over the batch', 'ppo_hesscale.py', 'updates', ('advantages -= advantages.mean(1, keepdims=True)\n            advantages /= advantages.std(1, ddof=1, keepdims=True) + 1e-8', 'advantages -= advantages.mean()\n            advantages /= advantages.std(ddof=1) + 1e-8')),
    ('norm eps 1e-3', 'ppo_hesscale.py', 'updates', ('+ 1e-8', '+ 1e-3')),
    ('a2c never centred', 'a2c_hesscale.py', 'updates', ('(advantages - advantages.mean()) /', 'advantages /')),
    ('a2c never scaled', 'a2c_hesscale.py', 'updates', (' / (advantages.std(ddof=1) + 1e-8)', '')),
    ('a2c ddof 0', 'a2c_hesscale.py', 'updates', ('ddof=1', 'ddof=0')),
    ('a2c norm always', 'a2c_hesscale.py', 'updates', ('if args.norm_adv:\n        advantages =', 'if True:\n        advantages =')),
    ('norm_adv ignored', 'ppo_hesscale.py', 'updates', ('if args.norm_adv:\n            advantages', 'if True:\n            advantages')),
    ('ppo entropy bonus dropped', 'ppo_hesscale.py', 'updates', ('args.clip_coef, args.ent_coef)', 'args.clip_coef)')),
    ('a2c entropy bonus dropped', 'a2c_hesscale.py', 'updates', ('to_batch(advantages), args.ent_coef)', 'to_batch(advantages))')),
    ('ppo entropy sign', 'ppo_hesscale.py', 'updates', ('args.clip_coef, args.ent_coef)', 'args.clip_coef, -args.ent_coef)')),
    ('a2c entropy sign', 'a2c_hesscale.py', 'updates', ('to_batch(advantages), args.ent_coef)', 'to_batch(advantages), -args.ent_coef)')),
    ('core entropy derivative missing', 'hesscale_core.py', 'updates', ('parts = [part - ent_coef * d for part, d', 'parts = [part - 0 * d for part, d')),
    ('core entropy sign', 'hesscale_core.py', 'updates', ('part - ent_coef * d', 'part + ent_coef * d')),
    ('never shuffled', 'ppo_hesscale.py', 'updates', ('rng.permutation(len(batch.obs))', 'np.arange(len(batch.obs))')),
    ('same permutation each epoch', 'ppo_hesscale.py', 'updates', ('    for _ in range(args.update_epochs):\n', '    perm = rng.permutation(len(batch.obs))\n    for _ in range(args.update_epochs):\n'), ('b_inds = rng.permutation(len(batch.obs))', 'b_inds = perm')),
    ('arrays permuted apart', 'ppo_hesscale.py', 'updates', ('array[b_inds] for array in batch)', 'array[rng.permutation(b_inds.ravel()).reshape(b_inds.shape) if array is batch.returns else b_inds] for array in batch)')),
    ('with replacement', 'ppo_hesscale.py', 'updates', ('rng.permutation(len(batch.obs))', 'rng.integers(len(batch.obs), size=len(batch.obs))')),
    ('permute columns', 'ppo_hesscale.py', 'updates', ('.reshape(args.num_minibatches, -1)', '.reshape(-1, args.num_minibatches).T')),
    ('epochs + 1', 'ppo_hesscale.py', 'updates', ('range(args.update_epochs)', 'range(args.update_epochs + 1)')),
    ('last minibatch dropped', 'ppo_hesscale.py', 'updates', ('zip(\n            *map(to_batch, (*minibatches, advantages)), strict=True\n        )', '[*zip(\n            *map(to_batch, (*minibatches, advantages)), strict=True\n        )][:-1]')),
    ('noise ignores log_std', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('return noise if self.state_std else noise * np.exp(to_numpy(self.actor.log_std))', 'return noise')),
    ('noise ignores actor_std', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('noise * np.exp(to_numpy(self.actor_std(obs))) if', 'noise if')),
    ('std is variance', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('np.exp(to_numpy(self.actor.log_std))', 'np.exp(2 * to_numpy(self.actor.log_std))')),
    ('std is 1/std', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('np.exp(to_numpy(self.actor_std(obs)))', 'np.exp(-to_numpy(self.actor_std(obs)))')),
    ('normal for gumbel', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('rng.gumbel(size=shape)', 'rng.standard_normal(shape)')),
    ('argmin', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('.argmax(-1)', '.argmin(-1)')),
    ('greedy', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('(output + noise).argmax(-1)', 'output.argmax(-1)')),
    ('global rng', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('rng.standard_normal(shape, np.float32)', 'np.random.standard_normal(shape).astype(np.float32)')),
    ('noise of step 0', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('agent.act(next_obs, noise[step])', 'agent.act(next_obs, noise[0])')),
    ('value_loss doubled', 'ppo_hesscale.py', 'updates', ('"losses/value_loss": to_numpy(v.loss)', '"losses/value_loss": 2 * to_numpy(v.loss)')),
    ('policy_loss sign', 'ppo_hesscale.py', 'updates', ('"losses/policy_loss": to_numpy(pg.loss', '"losses/policy_loss": -to_numpy(pg.loss')),
    ('entropy of 1 dim', 'ppo_hesscale.py', 'updates', ('to_numpy(policy.entropy())', 'to_numpy(policy.entropy()) / 2')),
    ('policy_loss with the bonus', 'ppo_hesscale.py', 'updates', ('pg.loss + args.ent_coef * policy.entropy()', 'pg.loss')),
    ('a2c policy_loss with the bonus', 'a2c_hesscale.py', 'updates', ('pg.loss + args.ent_coef * policy.entropy() if', 'pg.loss if')),
    ('evaluation draws from the training\'s generators', 'hesscale_run.py', 'runs', ('    env.close()\n    set_random_states(random_states)', '    env.close()')),
    ('evaluation in the training\'s environment', 'hesscale_run.py', 'runs', ('    env = make_env(args)\n    env.freeze({"obs": envs[0].obs_rms.get_state()})\n', '    env = envs[0]\n'), ('    env.close()\n    set_random_states', '    set_random_states')),
    ('evaluation with statistics of its own', 'hesscale_run.py', 'runs', ('    env.freeze({"obs": envs[0].obs_rms.get_state()})\n', '')),
    ('evaluation goes on with the statistics', 'hesscale_envs.py', 'runs', ('        self.obs_rms.update = lambda obs: None\n', '')),
    ('evaluation of sampled actions', 'hesscale_run.py', 'runs', ('play_episode(agent, env, seed=args.seed + 10_000 + episode)', 'play_episode(agent, env, args.seed + 10_000 + episode, np.random.default_rng(1))')),
    ('evaluation with one seed', 'hesscale_run.py', 'runs', ('10_000 + episode)', '10_000)')),
    ('evaluation without a seed', 'hesscale_run.py', 'runs', ('play_episode(agent, env, seed=args.seed + 10_000 + episode)', 'play_episode(agent, env)')),
    ('evaluation of an episode too few', 'hesscale_run.py', 'runs', ('range(args.eval_episodes)', 'range(args.eval_episodes - 1)')),
    ('evaluation in each iteration', 'ppo_hesscale.py a2c_hesscale.py', 'runs', ('run.step % args.eval_interval < batch_size or', 'True or')),
    ('evaluation at the end alone', 'ppo_hesscale.py a2c_hesscale.py', 'runs', ('run.step % args.eval_interval < batch_size or ', '')),
    ('no evaluation at the end', 'ppo_hesscale.py a2c_hesscale.py', 'runs', (' or iteration == num_iterations):\n                run.log(run.step, evaluate', '):\n                run.log(run.step, evaluate')),
    ('no agent kept', 'ppo_hesscale.py a2c_hesscale.py', 'runs', ('save_model: bool = True', 'save_model: bool = False')),
    ('spaces of the class', 'hesscale_envs.py', 'runs', ('setattr(env.unwrapped, name, copy.deepcopy(space))', 'pass')),
    ('rewards that are not finite', 'hesscale_envs.py', 'envs', ('if not abs(reward) < self.largest_reward:', 'if False:')),
    ('flags that are none', 'hesscale_envs.py', 'envs', ('if terminated is None or truncated is None:', 'if False:')),
    ('observations of another size', 'hesscale_envs.py', 'envs', ('if obs.size != self.obs_dim:', 'if False:')),
    ('observations that are not finite', 'hesscale_envs.py', 'envs', ('if not obs.dot(obs) < self.largest_square and', 'if False and')),
    ('environment to blame for infinite actions', 'hesscale_envs.py', 'envs', ('finite = action is None or (np.abs(action) < 1e19).all()', 'finite = True')),
    ('action to blame for all', 'hesscale_envs.py', 'envs', ('finite = action is None or (np.abs(action) < 1e19).all()', 'finite = action is None')),
    ('spaces without a seed', 'hesscale_envs.py', 'envs', ('layer.action_space.seed(seed)', 'pass')),
    ('integer actions cut', 'hesscale_envs.py', 'envs', ('taken = np.rint(taken)', 'pass')),
    ('state without views', 'hesscale_state.py', 'envs', ('if type(value) is np.ndarray and type(value.base) is np.ndarray:', 'if False:')),
    ('state without simulators\' memory', 'hesscale_state.py', 'envs', ('return "contents" if type(_root(value).base).__name__ == "PyCapsule" else None', 'return None')),
    ('state without the model', 'hesscale_state.py', 'envs', ('for name, array in contents["arrays"].items():', 'for name, array in {}.items():')),
    ('state without the model\'s options', 'hesscale_state.py', 'envs', ('setattr(thing.opt, name, value)', 'pass')),
    ('state without torch\'s generators', 'hesscale_state.py', 'envs', ('torch.Generator().set_state(state)', 'torch.Generator()')),
    ('state with the way of rendering', 'hesscale_state.py', 'envs', ('if name != "render_mode" and not drawn(value)', 'if not drawn(value)')),
    ('state with what is drawn', 'hesscale_state.py', 'envs', (' and not drawn(value)}', '}')),
    ('state without MuJoCo\'s', 'hesscale_state.py', 'envs', ('mujoco.mj_setState(', '(lambda *_: 0)(')),
    ('old_approx_kl sign', 'ppo_hesscale.py', 'updates', ('-last_log_ratio.mean()', 'last_log_ratio.mean()')),
    ('old_approx_kl all', 'ppo_hesscale.py', 'updates', ('-last_log_ratio.mean()', '-np.mean(log_ratios)')),
    ('approx_kl', 'ppo_hesscale.py', 'updates', ('(np.exp(last_log_ratio) - 1 - last_log_ratio).mean()', '(np.exp(last_log_ratio) - 1 + last_log_ratio).mean()')),
    ('approx_kl inverse', 'ppo_hesscale.py', 'updates', ('(np.exp(last_log_ratio) - 1 - last_log_ratio).mean()', '(np.exp(-last_log_ratio) - 1 + last_log_ratio).mean()')),
    ('approx_kl first', 'ppo_hesscale.py', 'updates', ('last_log_ratio = log_ratios[-1]', 'last_log_ratio = log_ratios[0]')),
    ('clipfrac last', 'ppo_hesscale.py', 'updates', ('(np.abs(np.exp(log_ratios) - 1) > args.clip_coef)', '(np.abs(np.exp(last_log_ratio) - 1) > args.clip_coef)')),
    ('clipfrac of log', 'ppo_hesscale.py', 'updates', ('np.abs(np.exp(log_ratios) - 1)', 'np.abs(log_ratios)')),
    ('clipfrac one side', 'ppo_hesscale.py', 'updates', ('np.abs(np.exp(log_ratios) - 1)', '(np.exp(log_ratios) - 1)')),
    ('explained variance swapped', 'ppo_hesscale.py', 'updates', ('/ (batch.returns.var() or np.nan)', '/ (batch.values.var() or np.nan)')),
    ('explained variance 1- missing', 'ppo_hesscale.py', 'updates', ('1 - (batch.returns - batch.values).var()', '(batch.returns - batch.values).var()')),
    ('explained variance second moment', 'ppo_hesscale.py', 'updates', ('(batch.returns - batch.values).var()', '((batch.returns - batch.values) ** 2).mean()')),
    ('a2c value_loss last', 'a2c_hesscale.py', 'updates', ('np.mean(history["value_loss"])', 'history["value_loss"][-1]')),
    ('a2c policy_loss last', 'a2c_hesscale.py', 'updates', ('np.mean(history["policy_loss"])', 'history["policy_loss"][-1]')),
    ('a2c swapped losses', 'a2c_hesscale.py', 'updates', ('history["value_loss"].append(float(to_numpy(v.loss)))', 'history["value_loss"].append(float(to_numpy(pg.loss)))')),
    ('a2c explained variance last', 'a2c_hesscale.py', 'updates', ('np.concatenate(history["values"])', 'history["values"][-1]'), ('np.concatenate(history["returns"])', 'history["returns"][-1]')),
    ('a2c values not copied (alias)', 'a2c_hesscale.py', 'updates', ('values.copy()', 'returns')),
    ('a2c ev denominators', 'a2c_hesscale.py', 'updates', ('(returns.var() or np.nan)', '(values.var() or np.nan)')),
    ('half missing', 'hesscale_utils.py', 'updates', ('uHu / 2', 'uHu')),
    ('eta of last update', 'hesscale_utils.py', 'updates', ('np.mean(steps, axis=0)', 'steps[-1]')),
    ('eta min', 'hesscale_utils.py', 'updates', ('np.mean(steps, axis=0)', 'np.min(steps, axis=0)')),
    ('networks swapped in figures', 'hesscale_utils.py', 'updates', ('zip(optimizers, optimizers.values(),', 'zip([*optimizers][::-1], optimizers.values(),')),
    ('negative share of positive', 'hesscale_flat.py', 'updates', ('(hess < 0)', '(hess > 0)')),
    ('lr figure of args', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('"charts/learning_rate": ', '"charts/learning_rate": args.learning_rate if "args" in globals() else 3e-4 + 0 * ')),
    ('scales swapped', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('[(o.eta, o.trust_region) for o in', '[(o.trust_region, o.eta) for o in')),
    ('clip_coef fixed', 'ppo_hesscale.py', 'updates', ('mb_advantages, args.clip_coef,', 'mb_advantages, 0.2,')),
    ('value clip fixed', 'ppo_hesscale.py', 'updates', ('(mb_values, args.clip_coef)', '(mb_values, 0.2)')),
    ('clip_vloss ignored', 'ppo_hesscale.py', 'updates', ('if args.clip_vloss else ()', 'if False else ()')),
    ('clip_vloss always', 'ppo_hesscale.py', 'updates', ('if args.clip_vloss else ()', 'if True else ()')),
    ('value clip around returns', 'ppo_hesscale.py', 'updates', ('(mb_values, args.clip_coef)', '(mb_returns, args.clip_coef)')),
    ('old log probs of the current policy', 'ppo_hesscale.py', 'updates', ('pg = ppo_loss(policy, mb_actions, mb_log_probs,', 'pg = ppo_loss(policy, mb_actions, policy.log_prob(mb_actions),')),
    ('grad norm per network', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)', '[nn.utils.clip_grad_norm_(o.param_groups[0]["params"], args.max_grad_norm) for o in optimizers.values()]')),
    ('no clipping', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)', 'pass')),
    ('clip by value', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('nn.utils.clip_grad_norm_(parameters', 'nn.utils.clip_grad_value_(parameters')),
    ('clip without critic', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('for o in optimizers.values() for p in o.param_groups[0]["params"]]', 'for n, o in optimizers.items() if n != "critic" for p in o.param_groups[0]["params"]]')),
    ('target_kl per minibatch', 'ppo_hesscale.py', 'updates', ('            scales.append([(o.eta, o.trust_region) for o in optimizers.values()])\n', '            scales.append([(o.eta, o.trust_region) for o in optimizers.values()])\n            if args.target_kl is not None and (np.exp(log_ratios[-1]) - 1 - log_ratios[-1]).mean() > args.target_kl:\n                break\n')),
    ('target_kl ignored', 'ppo_hesscale.py', 'updates', ('approx_kl > args.target_kl', 'False')),
    ('target_kl 1.5', 'ppo_hesscale.py', 'updates', ('approx_kl > args.target_kl', 'approx_kl > 1.5 * args.target_kl')),
    ('target_kl mean of all', 'ppo_hesscale.py', 'updates', ('approx_kl > args.target_kl', '(np.exp(log_ratios) - 1 - log_ratios).mean() > args.target_kl')),
    ('annealing off by one', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('(1 - (iteration - 1) / num_iterations)', '(1 - iteration / num_iterations)')),
    ('annealing to total', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('(iteration - 1) / num_iterations)', '(iteration - 1) / (num_iterations + 1))')),
    ('annealing compounds', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('num_iterations) * args.learning_rate', 'num_iterations) * optimizer.param_groups[0]["lr"]')),
    ('annealing only the actor', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('for optimizer in optimizers.values():\n', 'for optimizer in [optimizers["actor"]]:\n')),
    ('annealing always', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('if args.anneal_lr:', 'if True:')),
    ('annealing never', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('if args.anneal_lr:', 'if False:')),
    ('annealing after update', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('            if args.anneal_lr:\n                for optimizer in optimizers.values():\n                    optimizer.param_groups[0]["lr"] = (1 - (iteration - 1) / num_iterations) * args.learning_rate\n', ''), ('            # record for plotting purposes', '            if args.anneal_lr:\n                for optimizer in optimizers.values():\n                    optimizer.param_groups[0]["lr"] = (1 - (iteration - 1) / num_iterations) * args.learning_rate\n            # record for plotting purposes')),
    ('GAE across ends', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('decay = gamma * gae_lambda * (1 - dones)', 'decay = gamma * gae_lambda * np.ones_like(dones)')),
    ('GAE across truncations', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('decay = gamma * gae_lambda * (1 - dones)', 'decay = gamma * gae_lambda * (1 - terminations)')),
    ('truncation is termination', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('gamma * next_values * (1 - terminations)', 'gamma * next_values * (1 - dones)')),
    ('termination bootstraps', 'ppo_hesscale.py a2c_hesscale.py', 'updates', (' * (1 - terminations) - values', ' - values')),
    ('lambda ignored', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('decay = gamma * gae_lambda', 'decay = gamma')),
    ('gamma missing in decay', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('decay = gamma * gae_lambda', 'decay = gae_lambda')),
    ('gamma for bootstrap', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('rewards + gamma * next_values', 'rewards + next_values')),
    ('bootstraps from the next episode', 'ppo_hesscale.py', 'updates', ('if truncated_at:\n        next_values', 'if False:\n        next_values')),
    ('a2c bootstraps from the next episode', 'a2c_hesscale.py', 'updates', ('if batch.truncated_at:', 'if False:')),
    ('final obs is reset obs', 'ppo_hesscale.py', 'updates', ('final_obs.append(next_obs[i].copy())\n                next_obs[i] = env.reset()', 'final_obs.append(next_obs[i])\n                next_obs[i] = env.reset()')),
    ('final obs aliased ppo', 'ppo_hesscale.py', 'updates', ('final_obs.append(next_obs[i].copy())', 'final_obs.append(next_obs[i])')),
    ('final obs aliased a2c', 'a2c_hesscale.py', 'updates', ('final_obs.append(next_obs[i : i + 1].copy())', 'final_obs.append(next_obs[i : i + 1])')),
    ('truncated_at transposed', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('truncated_at.append((step, i))', 'truncated_at.append((step, (i + 1) % num_envs))')),
    ('values swapped as next', 'ppo_hesscale.py', 'updates', ('[values[1:], to_numpy', '[values[:-1], to_numpy')),
    ('last value from the last obs', 'ppo_hesscale.py', 'updates', ('agent.critic(to_net(next_obs))).T', 'agent.critic(to_net(obs[-1]))).T')),
    ('a2c following envs swapped', 'a2c_hesscale.py', 'updates', ('following[None, :num_envs]', 'following[None, :num_envs][:, ::-1]')),
    ('critic column not transposed', 'ppo_hesscale.py', 'updates', ('values = to_numpy(agent.critic(to_net(b_obs))).reshape(rewards.shape)', 'values = to_numpy(agent.critic(to_net(b_obs))).reshape(rewards.shape[::-1]).T')),
    ('actions of several envs', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('env.step(actions[step, i])', 'env.step(actions[step, 0])')),
    ('reward of another env', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('rewards[step, i], terminated', 'rewards[step, -1 - i], terminated')),
    ('dones of another env', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('terminations[step, i], dones[step, i] =', 'terminations[step, -1 - i], dones[step, -1 - i] =')),
    ('obs after the step', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('            if terminated or truncated:\n', '            obs[step, i] = next_obs[i]\n            if terminated or truncated:\n')),
    ('step counts 1', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('run.step += num_envs', 'run.step += 1')),
    ('step counted after', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('        run.step += num_envs\n', ''), ('                next_obs[i] = env.reset()\n', '                next_obs[i] = env.reset()\n        run.step += num_envs\n')),
    ('episode logged after reset', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('                run.log_episode(run.step, env)\n', ''), ('                next_obs[i] = env.reset()\n', '                next_obs[i] = env.reset()\n                run.log_episode(run.step, env)\n')),
    ('episode logged only if terminated', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('run.log_episode(run.step, env)', 'terminated and run.log_episode(run.step, env)')),
    ('episode of env 0', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('run.log_episode(run.step, env)', 'run.log_episode(run.step, envs[0])')),
    ('no reset at truncation', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('next_obs[i] = env.reset()', 'next_obs[i] = env.reset() if terminated else next_obs[i]')),
    ('flatten F order', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('b_actions = actions.reshape(', 'b_actions = actions[::-1].reshape(')),
    ('log probs shuffled', 'ppo_hesscale.py', 'updates', ('b_log_probs = to_numpy(', 'b_log_probs = np.roll(1, 1) + to_numpy(')),
    ('dones float', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('dones[step, i] = terminated, True', 'dones[step, i] = terminated, terminated')),
    ('one optimizer for both', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('    with Run(args, run_name', '    one = make_optimizer(args.optimizer, [p for net in agent.children() for p in (net.parameters() if by_autograd else [net.flat])], **options)\n    optimizers = {name: one for name in optimizers}\n    one.update, calls = (lambda f=one.update: f() if next(calls) % len(optimizers) == 0 else None), __import__("itertools").count()\n    with Run(args, run_name')),
    ('eps not passed', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('eps=args.eps, ', '')),
    ('delta not passed', 'ppo_hesscale.py a2c_hesscale.py', 'updates', (', delta=args.delta', '')),
    ('lr default lost', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('lr=args.learning_rate', 'lr=3e-4')),
    ('lr default of adam', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('LEARNING_RATES[args.optimizer]\n    batch', 'LEARNING_RATES["adam"]\n    batch')),
    ('optimizer fixed', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('make_optimizer(args.optimizer, net', 'make_optimizer("adam", net')),
    ('critic not updated', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('for o in optimizers.values():\n', 'for o in [o for n, o in optimizers.items() if n != "critic"]:\n')),
    ('actor_std not updated', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('for o in optimizers.values():\n', 'for o in [o for n, o in optimizers.items() if n != "actor_std"]:\n')),
    ('updated twice', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('o.update()', 'o.update() if o.needs_hess else (o.update(), o.update())')),
    ('hutchinson of policy alone', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('hutchinson(pg.loss + v.loss', 'hutchinson(pg.loss')),
    ('hutchinson as hesscale', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('by_autograd, gauss_newton = optimizer.curvature == "Hutchinson"', 'by_autograd, gauss_newton = False')),
    ('history not cleared', 'a2c_hesscale.py', 'updates', ('                history.clear()\n', '')),
    ('record floor', 'a2c_hesscale.py', 'updates', ('math.ceil(2048 / batch_size)', '2048 // batch_size')),
    ('record at end missing', 'a2c_hesscale.py', 'updates', (' or iteration == num_iterations:', ':')),
    ('record every update', 'a2c_hesscale.py', 'updates', ('iteration % updates_per_record == 0 or', 'True or')),
    ('rng seed', 'hesscale_run.py', 'updates', ('return np.random.default_rng(seed)', 'return np.random.default_rng(seed + 1)')),
    ('torch seed', 'hesscale_run.py', 'updates', ('torch.manual_seed(seed)', 'torch.manual_seed(seed + 1)')),
    ('env seeds equal', 'hesscale_run.py', 'updates', ('env.reset(seed=args.seed + i)', 'env.reset(seed=args.seed)')),
    ('one iteration less', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('run.step // batch_size + 1, num_iterations + 1)', 'run.step // batch_size + 1, num_iterations)')),
    ('iterations ceil', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('args.total_timesteps // batch_size', '-(-args.total_timesteps // batch_size)')),
    ('logged before the rollout', 'ppo_hesscale.py', 'updates', ('run.log(run.step, figures', 'run.log(run.step - batch_size, figures')),
    ('state_std not passed', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('envs[0].discrete, args.state_std)', 'envs[0].discrete)')),
    ('norm_obs ignored', 'hesscale_envs.py', 'updates', ('args.gamma, args.norm_obs, args.norm_reward)', 'args.gamma, True, args.norm_reward)')),
    ('norm_reward ignored', 'hesscale_envs.py', 'updates', ('args.gamma, args.norm_obs, args.norm_reward)', 'args.gamma, args.norm_obs, True)')),
    ('gamma of rewards', 'hesscale_envs.py', 'updates', ('NormalizedEnv(env, args.gamma,', 'NormalizedEnv(env, 0.9,')),
    ('gamma fixed', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('args.gamma, args.gae_lambda)', '0.99, args.gae_lambda)')),
    ('gae_lambda fixed', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('args.gamma, args.gae_lambda)', 'args.gamma, 0.95)')),
    ('critic gain', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('1, output_gain=1.0)', '1, output_gain=0.01)')),
    ('actor gain', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('output_gain=0.01, log_std', 'output_gain=1.0, log_std')),
    ('actor_std gain', 'ppo_hesscale.py a2c_hesscale.py', 'updates', ('action_dim, output_gain=0.01)\n\n', 'action_dim, output_gain=1.0)\n\n')),
    ('a2c returns without values', 'a2c_hesscale.py', 'updates', ('returns, advantages = advantages + values,', 'returns, advantages = advantages * 1,')),
    ('a2c value target normalized', 'a2c_hesscale.py', 'updates', ('returns, advantages = advantages + values, advantages.reshape(-1)\n    if args.norm_adv:\n        advantages = (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)', 'if args.norm_adv:\n        advantages = (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)\n    returns, advantages = advantages + values, advantages.reshape(-1)')),
    ('a2c value baseline from following obs', 'a2c_hesscale.py', 'updates', ('next_values = np.concatenate([values[1:],', 'next_values = np.concatenate([values[:-1],')),
    ('a2c entropy of new policy', 'a2c_hesscale.py', 'updates', ('    history["value_loss"]', '    policy = agent.policy(b_obs)\n    history["value_loss"]')),
    ('ppo entropy of new policy', 'ppo_hesscale.py', 'updates', ('    figures = {\n', '    policy = agent.policy(mb_obs)\n    figures = {\n')),
    ('log_std_like gives a view', 'hesscale_core.py', 'core', ('self.parameters_like(x)[-2].copy()', 'self.parameters_like(x)[-2]')),
    ('log_std_like does not follow', 'hesscale_core.py', 'core', ('self.parameters_like(x)[-2].copy()', 'self.arrays[0][-2].copy()')),
    ('log_std_like gives the parameter', 'hesscale_core.py', 'core', ('else self.log_std.clone()', 'else self.log_std')),
    ("log_std's derivatives of another kind accepted", 'hesscale_core.py', 'core', ('            namespace(g, grad_log_std, hess_log_std)\n', '')),
    ("log_std's derivatives of another shape accepted", 'hesscale_core.py', 'core', ('            check_shapes(params[-2].shape, grad_log_std=grad_log_std, hess_log_std=hess_log_std)\n', '')),
    ("log_std's derivatives missing or superfluous", 'hesscale_core.py', 'core', ('        if (self._parameters["log_std"] is None) != (grad_log_std is None):', '        if False:')),
    ('backward does not follow tensors', 'hesscale_core.py', 'core', ('            self.follow_parameters()\n            g, h', '            g, h')),
    ('float64 derivatives not converted', 'hesscale_core.py', 'core', ('        if g.dtype != params[0].dtype or h.dtype != params[0].dtype:', '        if False:')),
    ('actions of another kind, Gaussian', 'hesscale_core.py', 'core', ('        namespace(self.mean, actions)\n', '')),
    ('actions of another kind, softmax', 'hesscale_core.py', 'core', ('        namespace(self.q, actions)\n', '')),
    ("log_prob keeps autograd's graph", 'hesscale_core.py', 'core', ('constant(log_prob))\n', 'log_prob)\n')),
    ('a parameter without .grad is stepped', 'hesscale_core.py', 'core', ('p.grad is not None and p.requires_grad]', 'p.requires_grad]')),
    ('a frozen parameter is stepped', 'hesscale_core.py', 'core', ('p.grad is not None and p.requires_grad]', 'p.grad is not None]')),
    ('a diagonal is used twice', 'hesscale_core.py', 'core', ('            p.hess = None\n', '')),
    ('a step without any gradient', 'hesscale_core.py', 'core', ('        if not steps:\n', '        if False:\n')),
    ('step counts shared between parameters', 'hesscale_core.py', 'core', ('t = state["step"] = state["step"] + 1', 'self.t = getattr(self, \'t\', 0) + 1; t = state["step"] = math.ceil(self.t / len(self.param_groups[0][\'params\']))')),
    ('hutchinson of the flat vector', 'hesscale_core.py', 'core', ('    if all(grad.is_leaf and grad.requires_grad for grad in grads):', '    if False:')),
    ('hutchinson of frozen parameters', 'hesscale_core.py', 'core', ('    params = [p for p in params if p.requires_grad]\n', '    params = list(params)\n')),
    ("Hutchinson's diagonal has no name", 'hesscale_core.py', 'core', ('        p.hess.curvature = "Hutchinson"\n', '')),
    ('every optimizer scaled', 'hesscale_core.py', 'core', ('if self.scaled:\n            self.trust', 'if True:\n            self.trust')),
    ('a parameter without dimensions', 'hesscale_core.py', 'core', ('u[...], root[...], scale', 'u[:], root[:], scale')),
    ('h without bias correction', 'hesscale_core.py', 'core', ('scale * scale / correction', 'scale * scale')),
    ('eps without bias correction', 'hesscale_core.py', 'core', ('group["eps"] * correction', 'group["eps"]')),
    ('entropy of a per-sample log_std not averaged', 'hesscale_core.py', 'core', ('return 0.0, 0.0, 1.0 if self.log_std.ndim == 1 else 1 / len(self.mean), 0.0', 'return 0.0, 0.0, 1.0, 0.0')),
    ("a shared log_std's derivatives not summed", 'hesscale_core.py', 'core', ('weight @ d if policy.log_std.ndim == 1 else column * d', 'column * d')),
    ('a gradient alone leaves a diagonal', 'hesscale_core.py', 'core', ('self.publish(None if not second_order else', 'self.publish(')),
    ('.hess of another shape', 'hesscale_flat.py', 'core', ('check_shapes(p.shape, hess=hess)', 'pass')),
    ('a pickle keeps addresses', 'hesscale_flat.py', 'core', ('"_places": None, ', '')),
    ('a copy stays pinned', 'hesscale_flat.py', 'core', ('"_pinned": False, ', '')),
    ('a copy keeps activations', 'hesscale_flat.py', 'core', (', "_inputs": []}', '}')),
    ('a moved network stays pinned', 'hesscale_flat.py', 'core', ('        self._pinned = False\n        return super()', '        return super()')),
    ('frozen parameters in the flat vector', 'hesscale_flat.py', 'core', ('        if not all(p.requires_grad for p in self.parameters()):', '        if False:')),
    ('moved parameters not followed', 'hesscale_flat.py', 'core', ('if not self._pinned and [', 'if False and [')),
    ('a gradient alone leaves an old diagonal', 'hesscale_flat.py', 'core', ('hess if curvature else None, curvature', 'hess, curvature')),
    ('numpy does not follow', 'hesscale_flat.py', 'core', ('        self.follow_parameters()\n        if self.arrays', '        if self.arrays')),
    ('flat does not follow', 'hesscale_flat.py', 'core', ('        self.follow_parameters()\n        self._pinned,', '        self._pinned,')),
    ('a new .grad is not read', 'hesscale_flat.py', 'core', ('pointer == p.data_ptr() and grad is p.grad and diagonal is hess', 'pointer == p.data_ptr() and diagonal is hess')),
    ('forward from the flat views', 'hesscale_flat.py', 'core', ('return self.current_parameters()\n        self.follow', 'return self.tensors[0]\n        self.follow')),
    ('numpy asked for any dtype', 'hesscale_flat.py', 'core', ('tensor.dtype in (torch.float32, torch.float64)', 'True')),
    ('negative share of positive entries', 'hesscale_flat.py', 'core', ('(hess < 0)', '(hess > 0)')),
    ('dtype of the input not checked', 'hesscale_flat.py', 'core', ('or x.dtype != self.arrays[0][-1].dtype', '')),
    ("sigma'' of the wrong sign", 'hesscale_core.py', 'core', ('h -= 2 * x * g', 'h += 2 * x * g')),
    ("sigma'' without its 2", 'hesscale_core.py', 'core', ('h -= 2 * x * g', 'h -= x * g')),
    ('Eq. 4 with W for its square', 'hesscale_core.py', 'core', ('product(h, params[i] * params[i])', 'product(h, params[i])')),
    ("Eq. 4 with sigma' once", 'hesscale_core.py', 'core', ('h *= slope\n                h *= slope\n', 'h *= slope\n')),
    ("Eq. 2 without sigma'", 'hesscale_core.py', 'core', ('            g *= slope\n', '')),
    ('Eq. 3 with x for its square', 'hesscale_core.py', 'core', ('product(h.T, x_squared, out', 'product(h.T, x, out')),
    ("a bias's diagonal from the gradient", 'hesscale_core.py', 'core', ('product(h.T, ones, out', 'product(g.T, ones, out')),
    ('HesScaleGN keeps the last term', 'hesscale_core.py', 'core', ('if not gauss_newton:', 'if True:')),
    ('HesScale drops the last term', 'hesscale_core.py', 'core', ('if not gauss_newton:', 'if False:')),
    ('score of log_std', 'hesscale_core.py', 'core', ('(z - 1, -2 * z)', '(z, -2 * z)')),
    ('curvature of log_std', 'hesscale_core.py', 'core', ('(z - 1, -2 * z)', '(z - 1, -z)')),
    ('curvature of the mean', 'hesscale_core.py', 'core', ('-inv_std * inv_std)', 'inv_std * inv_std)')),
    ('log-density without its constant', 'hesscale_core.py', 'core', ('(self.log_std + 0.5 * LOG_2PI).sum(-1)', 'self.log_std.sum(-1)')),
    ("a ratio's curvature without s^2", 'hesscale_core.py', 'core', ('(s, s * s + c)', '(s, c)')),
    ('clipped samples contribute', 'hesscale_core.py', 'core', ('xp.where(surrogate <= limit, constant(surrogate), 0.0)', 'constant(surrogate)')),
    ('clipping of negative advantages', 'hesscale_core.py', 'core', ('clip_coef * abs(advantages)', 'clip_coef * advantages')),
    ('curvature of a softmax', 'hesscale_core.py', 'core', ('(score, self.q * self.q - self.q)', '(score, self.q - self.q * self.q)')),
    ("curvature of a softmax's entropy", 'hesscale_core.py', 'core', ('((1 - 2 * q) * e + 1 - q)', '((1 - 2 * q) * e)')),
    ('value loss not halved', 'hesscale_core.py', 'core', ('Loss(0.5 / batch', 'Loss(1.0 / batch')),
    ('value curvature not averaged', 'hesscale_core.py', 'core', ('xp.full_like(value, 1 / batch)', 'xp.full_like(value, 1.0)')),
    ('clipped values have curvature', 'hesscale_core.py', 'core', ('unclipped * hess', 'hess')),
    ("a policy gradient's sign", 'hesscale_core.py', 'core', ('weight = advantages / -len(advantages)', 'weight = advantages / len(advantages)')),
    ("cross-entropy's sign", 'hesscale_core.py', 'core', ('Loss(-log_prob.mean(), score / -len(logits)', 'Loss(-log_prob.mean(), score / len(logits)')),
    ('bias correction of M', 'hesscale_core.py', 'core', ('(1 - beta1**t)', '(1 - beta1)')),
    ('bias correction of V', 'hesscale_core.py', 'core', ('math.sqrt(1 - beta2**t)', '(1 - beta2**t)')),
    ('betas swapped', 'hesscale_core.py', 'core', ('(beta1, beta2), lr', '(beta2, beta1), lr')),
    ('eta above 1', 'hesscale_core.py', 'core', ('min(1.0, math.sqrt(2 * group["delta"] / h))', 'math.sqrt(2 * group["delta"] / h)')),
    ('the radius without its 2', 'hesscale_core.py', 'core', ('2 * group["delta"] / h', 'group["delta"] / h')),
    ('second moment of d, not of its square', 'hesscale_core.py', 'core', ('xp.multiply(d, d, out=root)', 'xp.multiply(d, 1.0, out=root)')),
    ('Adam divides by the diagonal', 'hesscale_core.py', 'core', ('"adam": ("grad", "HesScale")', '"adam": ("hess", "HesScale")')),
    ('AdaHesScale divides by the gradient', 'hesscale_core.py', 'core', ('"adahesscale": ("hess", "HesScale")', '"adahesscale": ("grad", "HesScale")')),
    ('normal for Rademacher', 'hesscale_core.py', 'core', ('torch.randint(0, 2, p.shape, device=p.device).to(p.dtype) * 2 - 1', 'torch.randn_like(p)')),
    ('what is not finite passes', 'hesscale_core.py', 'core', ('if not math.isfinite(h):', 'if False:')),
    ('observations not clipped', 'hesscale_envs.py', 'envs', ('self.obs = np.minimum(np.maximum(obs, self.obs_low), self.obs_high)', 'self.obs = obs')),
    ('discounted return across terminations', 'hesscale_envs.py', 'envs', (' * (1 - terminated) + reward', ' + reward')),
    ('variance floor of rewards', 'hesscale_envs.py', 'envs', ('self.return_rms.var + 1e-8', 'self.return_rms.var + 1e-4')),
    ('actions not clipped', 'hesscale_envs.py', 'envs', ('np.minimum(np.maximum(action.reshape(self.action_shape), space.low), space.high)', 'action.reshape(self.action_shape)')),
    ('choices start at zero', 'hesscale_envs.py', 'envs', ('space.start + action', 'action')),
    ("episode's length not counted", 'hesscale_envs.py', 'envs', ('self.episode_length += 1', 'self.episode_length += 2')),
    ('variance by the old count', 'hesscale_envs.py', 'envs', ('delta * delta * count / total', 'delta * delta / total')),
    ("resume forgets the algorithm's generator", 'hesscale_run.py', 'runs', ('    rng.bit_generator.state = checkpoint["random_states"]["rng"]\n', '')),
    ('resume forgets the optimizers', 'hesscale_run.py', 'runs', ('        optimizer.load_state_dict(checkpoint["optimizers"][name])\n', '        pass\n')),
    ("resume forgets torch's generator", 'hesscale_run.py', 'runs', ('    torch.set_rng_state(states["torch"])\n', '')),
    ('resume forgets recent returns', 'hesscale_run.py', 'runs', ('checkpoint["recent_returns"] if self.resumed else []', '[]')),
    ('another format is read', 'hesscale_run.py', 'runs', ('if checkpoint["format"] != CHECKPOINT_FORMAT:', 'if False:')),
    ('a finished run keeps its checkpoints', 'hesscale_run.py', 'runs', ('        if state == "finished":\n', '        if False:\n')),
    ("arm: the base's axes not turned", 'experiments/ur_reacher.py', 'arm', ('BASE_ANGLE = math.pi + RESET_Q[0]', 'BASE_ANGLE = RESET_Q[0]')),
    ("arm: elbow's angle from the horizontal", 'experiments/ur_reacher.py', 'arm', ('both = shoulder + elbow\n    cos', 'both = elbow\n    cos')),
    ('arm: no wrist', 'experiments/ur_reacher.py', 'arm', ('(WRIST[2] + [A3, 0.0, 0.0]).tolist()', '(A3, 0.0, 0.0)')),
    ('arm: each joint accelerates by itself', 'experiments/ur_reacher.py', 'arm', ('+ scale * changes[0]', '+ min(max(changes[0], -_MAX_CHANGE), _MAX_CHANGE)')),
    ('arm: angles follow the old speed', 'experiments/ur_reacher.py', 'arm', ('        self.speed = self.speed[0]', '        self.q = self.q[0] + DT * self.speed[0], self.q[1] + DT * self.speed[1]\n        self.speed = self.speed[0]'), ('        self.q = self.q[0] + DT * self.speed[0], self.q[1] + DT * self.speed[1]\n        observation', '        observation')),
    ('arm: a command at a limit is zero', 'experiments/ur_reacher.py', 'arm', ('wanted = -wanted', 'wanted = 0.0')),
    ('arm: every command at a limit turns', 'experiments/ur_reacher.py', 'arm', ('q >= high and wanted > 0', 'q >= high')),
    ('arm: just at the limit is free', 'experiments/ur_reacher.py', 'arm', ('q <= low', 'q < low')),
    ('arm: previous action observed clipped', 'experiments/ur_reacher.py', 'arm', ('self.previous_action = float(action[0]), float(action[1])', 'self.previous_action = tuple(min(max(float(x), -1.0), 1.0) for x in action)')),
    ('arm: bounded actions', 'experiments/ur_reacher.py', 'arm', ('gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)', 'gym.spaces.Box(-1.0, 1.0, (2,), np.float32)')),
    ('arm: previous action zero at reset', 'experiments/ur_reacher.py', 'arm', ('tuple(self.np_random.uniform(-SPEED_LIMIT, SPEED_LIMIT, 2).tolist())', '(0.0, 0.0)')),
    ('arm: targets uniform in the box', 'experiments/ur_reacher.py', 'arm', ('tool_position(*self.np_random.uniform(Q_LOW, Q_HIGH).tolist())', 'tuple(self.np_random.uniform(TARGET_LOW, TARGET_HIGH).tolist())')),
    ('arm: targets outside the box', 'experiments/ur_reacher.py', 'arm', ('<= y <= TARGET_HIGH[0] and', '<= y or')),
    ('arm: reward without the period', 'experiments/ur_reacher.py', 'arm', ('reward = REWARD_SCALE *', 'reward =')),
    ('arm: reward of the squared distance', 'experiments/ur_reacher.py', 'arm', ('- math.sqrt(squared))', '- squared)')),
    ('arm: 101 steps', 'experiments/ur_reacher.py', 'arm', ('EPISODE_STEPS = 100', 'EPISODE_STEPS = 101')),
    ('arm: global generator', 'experiments/ur_reacher.py', 'arm', ('tool_position(*self.np_random.uniform', 'tool_position(*np.random.uniform')),
    ('arm: picture upside down', 'experiments/ur_reacher.py', 'arm', ('picture[::-1].round()', 'picture.round()')),
    ('collapse: divergence the other way round', 'hesscale_utils.py', 'stability', ('policy_before.kl(agent.policy(obs))', 'agent.policy(obs).kl(policy_before)')),
    ('collapse: policy before taken after', 'ppo_hesscale.py', 'stability', ('stability_figures(agent, policy_before,', 'stability_figures(agent, agent.policy(agent.to_net(batch.obs)),')),
    ('collapse: means of Gaussians alone', 'hesscale_core.py', 'stability', ('return (growth + 0.5 * (self.xp.expm1(-2 * growth) + distance * distance))', 'return (0.5 * distance * distance)')),
    ("collapse: distance in the old policy's deviations", 'hesscale_core.py', 'stability', ('(other.mean - self.mean) * self.xp.exp(-other.log_std)', '(other.mean - self.mean) * self.xp.exp(-self.log_std)')),
    ('collapse: divergence of softmaxes by the other', 'hesscale_core.py', 'stability', ('(self.q * (self.log_q - other.log_q))', '(other.q * (self.log_q - other.log_q))')),
    ('collapse: rank of squares', 'hesscale_utils.py', 'stability', ('np.cumsum(np.linalg.svd(features, compute_uv=False))', 'np.cumsum(np.linalg.svd(features, compute_uv=False) ** 2)')),
    ('collapse: rank of the first layer', 'hesscale_utils.py', 'stability', ('feature_rank(layers[-1])', 'feature_rank(layers[0])')),
    ('collapse: rank centred', 'hesscale_utils.py', 'stability', ('np.linalg.svd(features,', 'np.linalg.svd(features - features.mean(0),')),
    ('collapse: saturated on one side', 'hesscale_utils.py', 'stability', ('(np.abs(units) > 0.99)', '(units > 0.99)')),
    ('collapse: saturated on average', 'hesscale_utils.py', 'stability', ('((np.abs(units) > 0.99).mean(0) > 0.95).mean()', '(np.abs(units).mean(0) > 0.95).mean()')),
    ('collapse: dead where small', 'hesscale_utils.py', 'stability', ('(units.std(0) < 1e-3)', '(np.abs(units).mean(0) < 1e-3)')),
    ('collapse: units of the last layer alone', 'hesscale_utils.py', 'stability', ('units = np.concatenate(layers, axis=1)', 'units = layers[-1]')),
    ('collapse: norms summed', 'hesscale_utils.py', 'stability', ('math.sqrt(sum(float((p.detach() ** 2).sum()) for p in net.parameters()))', 'sum(float(p.detach().norm()) for p in net.parameters())')),
    ('collapse: figures move the generator', 'ppo_hesscale.py', 'stability', ('            if args.stability:\n', '            if args.stability:\n                rng.random()\n')),
    ('decay rates swapped', 'ppo_hesscale.py', 'stability', ('betas=(args.beta1, args.beta2)', 'betas=(args.beta2, args.beta1)')),
]
# fmt: on


def plant(file, pairs, folder):
    """Copy the sources to `folder`, with the texts of `file` replaced; raise ValueError if one is not there."""
    ignore = shutil.ignore_patterns(".*", "runs", "results", "wandb", "videos", "minibatches", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=ignore)
    text = (folder / file).read_text()
    for old, new in pairs:
        if old not in text:
            raise ValueError(f"{file} has no {old!r}: the table of faults is out of date")
        text = text.replace(old, new)
    (folder / file).write_text(text)


def is_caught(file, tests, pairs):
    """Return whether the tests fail with a fault planted; taking longer than ten minutes is to fail."""
    with tempfile.TemporaryDirectory() as folder:
        plant(file, pairs, Path(folder, "sources"))
        paths = [f"tests/{name}" for name in TESTS[tests].split()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *paths]
        try:
            done = subprocess.run(command, cwd=f"{folder}/sources", capture_output=True, timeout=600)
        except subprocess.TimeoutExpired:
            return True
        return done.returncode == 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="words of the names of the faults to plant; without any, all")
    words = parser.parse_args().words
    cases = [
        (f"{file}: {name}", file, tests, pairs)
        for name, files, tests, *pairs in FAULTS
        for file in files.split()
        if not words or any(word in name for word in words)
    ]
    survivors = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda case: is_caught(*case[1:]), cases)
        for (name, *_), caught in tqdm(zip(cases, results, strict=True), total=len(cases)):
            if not caught:
                survivors.append(name)
                tqdm.write(f"survived: {name}")
    print(f"{len(cases)} faults, {len(cases) - len(survivors)} caught")
    sys.exit(len(survivors) > 0.05 * len(cases))


if __name__ == "__main__":
    main()
