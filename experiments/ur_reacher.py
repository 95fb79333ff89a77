"""UR-Reacher-v0: two joints of a UR5 arm move its tool to a target, as in the paper's Figure 7, without the robot.

    scripts/run.sh ppo_hesscale.py --env-id experiments.ur_reacher:UR-Reacher-v0 --state-std

The paper ran a real arm. This is its kinematics alone: joints follow commanded speeds exactly, within a limit of
acceleration; there are no masses, delays, noise or collisions. Where each number comes from:

    [SenseAct] Mahmood et al. 2018, "Benchmarking Reinforcement Learning Algorithms on Real-World Robots" (CoRL), and
        its code, github.com/kindredresearch/SenseAct, senseact/envs/ur/reacher_env.py: the task "UR-Reacher-2"
    [Paper]    Elsayed et al. 2024, and its authors' published settings of SenseAct
    [UR]       Universal Robots, "DH Parameters for calculations of kinematics and dynamics", and the UR5's data sheet

SenseAct also drives the tool back when it leaves the box of the targets, by the robot's inverse kinematics, and turns a
joint beyond its limit inwards at the larger of the two commanded speeds. Here the tool may leave the box, and a command
only changes its sign.
"""

import math

import gymnasium as gym
import numpy as np

# Denavit-Hartenberg parameters of the six links, lengths in m [UR]
D1, A2, A3, D4, D5, D6 = 0.089159, -0.425, -0.39225, 0.10915, 0.09465, 0.0823
RESET_Q = 1.58724391, -2.4, 1.5, -0.71790582, 1.63685572, 1.00910473  # rad; the second and third move [SenseAct]
BASE_ANGLE = math.pi + RESET_Q[0]  # the axes x and y of [SenseAct] are turned by half a turn from those of [UR]
MECHANICAL_LIMIT = 2 * math.pi  # rad, either way, of every joint [UR]
Q_LOW, Q_HIGH = np.deg2rad([-170, -150]), np.deg2rad([-10, 150])  # shoulder lift, elbow [Paper]
TARGET_LOW, TARGET_HIGH = (-0.3, 0.5), (0.4, 1.0)  # m, the box of y and z in which targets lie [SenseAct]
DT = 0.04  # s a step [Paper]
EPISODE_STEPS = 100  # [Paper]; 4 s, as in [SenseAct]
SPEED_LIMIT = 1.0  # rad/s [Paper]; 0.3 in [SenseAct]
ACCELERATION_LIMIT = 2.0  # rad/s^2, of the joint whose speed changes more [Paper]; 1.4 in [SenseAct]
REWARD_SCALE = DT / 0.008  # SenseAct's rewards are for the robot's own period of 8 ms
PRECISION = 0.01  # m^2, the width of the reward's peak [SenseAct]


def link(angle, a, d, alpha):
    """Return the transform [4, 4] from a link's frame to that of the link before it (Denavit-Hartenberg)."""
    (ct, st), (ca, sa) = ((math.cos(x), math.sin(x)) for x in (angle, alpha))
    return np.array([[ct, -st * ca, st * sa, a * ct], [st, ct * ca, -ct * sa, a * st], [0, sa, ca, d], [0, 0, 0, 1]])


# Shoulder lift and elbow turn about parallel axes, so the arm moves in a plane: u along the arm, v up, w across.
# The wrist's three joints keep their angles, so its points, the tool last, keep their places beyond the elbow [3, 3]
_WRIST_1 = link(RESET_Q[3], 0, D4, math.pi / 2)
_WRIST_2 = _WRIST_1 @ link(RESET_Q[4], 0, D5, -math.pi / 2)
WRIST = np.array([t[:3, 3] for t in (_WRIST_1, _WRIST_2, _WRIST_2 @ link(RESET_Q[5], 0, D6, 0))])
TOOL_U, TOOL_V, TOOL_W = (WRIST[2] + [A3, 0.0, 0.0]).tolist()
BASE_COS, BASE_SIN = math.cos(BASE_ANGLE), math.sin(BASE_ANGLE)
_ACROSS = BASE_COS * TOOL_W  # plain floats below: at two joints, numpy takes ten times as long
_MAX_CHANGE = ACCELERATION_LIMIT * DT
_LIMITS = tuple(zip(Q_LOW.tolist(), Q_HIGH.tolist(), strict=True))


def tool_position(shoulder, elbow):
    """Return the tool's y and z in m at the angles of shoulder lift and elbow."""
    both = shoulder + elbow
    cos, sin = math.cos(both), math.sin(both)
    u = A2 * math.cos(shoulder) + cos * TOOL_U - sin * TOOL_V
    v = A2 * math.sin(shoulder) + sin * TOOL_U + cos * TOOL_V
    return BASE_SIN * u - _ACROSS, v + D1


def arm_points(shoulder, elbow):
    """Return x, y, z in m of base, shoulder, elbow, the wrist's three joints and the tool, [7, 3]."""
    both = shoulder + elbow
    at_elbow = A2 * np.array([math.cos(shoulder), math.sin(shoulder), 0.0])
    forearm = np.array([[math.cos(both), -math.sin(both), 0.0], [math.sin(both), math.cos(both), 0.0], [0.0, 0.0, 1.0]])
    beyond_elbow = np.array([[0.0, 0.0, 0.0], *WRIST]) + [A3, 0.0, 0.0]
    u, v, w = np.array([[0.0, -D1, 0.0], [0.0, 0.0, 0.0], at_elbow, *(at_elbow + beyond_elbow @ forearm.T)]).T
    return np.stack([BASE_COS * u + BASE_SIN * w, BASE_SIN * u - BASE_COS * w, v + D1], 1)


class URReacher(gym.Env):
    """Shoulder lift and elbow of a UR5 move its tool to a target in the y-z plane; the other four joints stand still.

    Observation (8): the angles q in rad, the speeds / SPEED_LIMIT, tool - target in y and z in m, and the previous
        action / SPEED_LIMIT: as given, not clipped, and after a reset a random one.
    Action (2): the speeds to reach, in rad/s, clipped to SPEED_LIMIT. They change by at most ACCELERATION_LIMIT * DT a
        step; if one would change more, both changes shrink alike, as the UR5's speedj does, and q += DT * speed. At or
        beyond a joint's limit, a command that leads outwards changes its sign; while the joint brakes, it may exceed
        the limit, as on the robot. The space has no bounds, or the agents' clip (CleanRL's ClipAction) would come
        before the observation, in which the robot's agents saw their actions unclipped.
    Reward: REWARD_SCALE * (-d + exp(-d^2 / PRECISION)), with the distance d in m: at most 5 a step.
    Reset: to RESET_Q, at rest; the target is the tool's position at angles uniform within their limits that lies in
        the box of the targets.

    `gymnasium.make` truncates an episode after EPISODE_STEPS; none terminates.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / DT)}  # noqa: RUF012, gymnasium's own way
    _bounds = np.array([MECHANICAL_LIMIT] * 2 + [1.0] * 2 + [np.inf] * 4)
    observation_space = gym.spaces.Box(-_bounds, _bounds, dtype=np.float64)
    action_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.q, self.speed = RESET_Q[1:3], (0.0, 0.0)
        self.previous_action = tuple(self.np_random.uniform(-SPEED_LIMIT, SPEED_LIMIT, 2).tolist())
        while True:
            y, z = self.target = tool_position(*self.np_random.uniform(Q_LOW, Q_HIGH).tolist())
            if TARGET_LOW[0] <= y <= TARGET_HIGH[0] and TARGET_LOW[1] <= z <= TARGET_HIGH[1]:
                return self._observe()[0], {}

    def step(self, action):
        self.previous_action = float(action[0]), float(action[1])
        changes = []
        for wanted, q, speed, (low, high) in zip(self.previous_action, self.q, self.speed, _LIMITS, strict=True):
            wanted = min(max(wanted, -SPEED_LIMIT), SPEED_LIMIT)
            if (q <= low and wanted < 0) or (q >= high and wanted > 0):
                wanted = -wanted
            changes.append(wanted - speed)
        largest = max(abs(changes[0]), abs(changes[1]))
        scale = _MAX_CHANGE / largest if largest > _MAX_CHANGE else 1.0
        self.speed = self.speed[0] + scale * changes[0], self.speed[1] + scale * changes[1]
        self.q = self.q[0] + DT * self.speed[0], self.q[1] + DT * self.speed[1]
        observation, squared = self._observe()
        reward = REWARD_SCALE * (math.exp(-squared / PRECISION) - math.sqrt(squared))
        return observation, reward, False, False, {}

    def _observe(self):
        """Return the observation, and the squared distance from tool to target."""
        y, z = tool_position(*self.q)
        dy, dz = y - self.target[0], z - self.target[1]
        speed, action = ([x / SPEED_LIMIT for x in pair] for pair in (self.speed, self.previous_action))
        return np.array([*self.q, *speed, dy, dz, *action]), dy * dy + dz * dz

    def render(self):
        """Return a picture of the y-z plane, uint8 [480, 480, 3]; None without render_mode="rgb_array"."""
        return draw(arm_points(*self.q)[:, 1:], self.target) if self.render_mode == "rgb_array" else None


# ---- drawing -----------------------------------------------------------------------------------------------

PIXELS, LEFT, BOTTOM, WIDTH = 480, -1.05, -0.65, 2.1  # of the picture: its size in pixels, and what it shows, in m
PAPER, GROUND, BOX, METAL, JOINT, TOOL, TARGET = (
    np.array([int(color[i : i + 2], 16) for i in (0, 2, 4)], np.float64)
    for color in ("FFFFFF", "D9D9D9", "E8EEF3", "8FA3B0", "0072B2", "004466", "D55E00")
)
LINK_RADII = 0.055, 0.046, 0.038, 0.03, 0.03, 0.024  # m, from base to tool
JOINT_RADII = 0.068, 0.058, 0.045, 0.036, 0.034  # m, from shoulder to the wrist's third


def draw(points, target):
    """Draw the arm through `points`, y and z in m [7, 2], and the target; uint8 [PIXELS, PIXELS, 3]."""
    picture = np.broadcast_to(PAPER, (PIXELS, PIXELS, 3)).copy()
    y, z = LEFT + (np.arange(PIXELS) + 0.5) / PIXELS * WIDTH, BOTTOM + (np.arange(PIXELS) + 0.5) / PIXELS * WIDTH

    def rectangle(low, high, color):
        picture[slice(*np.searchsorted(z, (low[1], high[1]))), slice(*np.searchsorted(y, (low[0], high[0])))] = color

    def stroke(start, end, radius, color, hole=-1.0):
        """Draw a line with round ends, a disk if it starts where it ends; the distance to it smooths the edges."""
        (y_low, z_low), (y_high, z_high) = np.minimum(start, end), np.maximum(start, end)
        margin = radius + 2 * WIDTH / PIXELS
        rows = slice(*np.searchsorted(z, (z_low - margin, z_high + margin)))
        columns = slice(*np.searchsorted(y, (y_low - margin, y_high + margin)))
        from_y, from_z, dy, dz = y[None, columns] - start[0], z[rows, None] - start[1], *np.subtract(end, start)
        along = np.clip((from_y * dy + from_z * dz) / max(dy * dy + dz * dz, 1e-12), 0.0, 1.0)
        distance = np.hypot(from_y - along * dy, from_z - along * dz)
        outside = np.maximum(distance - radius, hole - distance)  # in m; negative inside
        part = picture[rows, columns]
        part += np.clip(0.5 - outside * PIXELS / WIDTH, 0.0, 1.0)[..., None] * (color - part)

    rectangle(TARGET_LOW, TARGET_HIGH, BOX)
    rectangle((-9.0, -9.0), (9.0, 0.0), GROUND)
    rectangle((-0.1, 0.0), (0.1, 0.03), JOINT)  # the base's plate
    for start, end, radius in zip(points[:-1], points[1:], LINK_RADII, strict=True):
        stroke(start, end, radius, METAL)
    for point, radius in zip(points[1:-1], JOINT_RADII, strict=True):
        stroke(point, point, radius, JOINT, hole=0.4 * radius)
    stroke(points[-1], points[-1], 0.026, TOOL)
    stroke(target, target, 0.045, TARGET, hole=0.032)
    stroke(target, target, 0.013, TARGET)
    return picture[::-1].round().astype(np.uint8)


gym.register("UR-Reacher-v0", entry_point=f"{__name__}:URReacher", max_episode_steps=EPISODE_STEPS)
