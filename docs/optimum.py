"""What the best possible policy of MountainCar returns on the episodes of `--eval --seed N`.

python docs/optimum.py --seeds 20000 20001
python docs/optimum.py --seeds 20000 --gravity 0.003

Value iteration on a grid of positions and velocities. The policy looks one step ahead.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent.parent))
import run
from harness.environments import make_environment

POINTS = 600  # of each axis
LOW, HIGH = np.array([-1.2, -0.07]), np.array([0.6, 0.07])
GOAL, FORCE = 0.5, 0.001
Floats = npt.NDArray[np.float64]


def step(states: Floats, action: int, gravity: float) -> Floats:
    """The next states of (n, 2), as gym's MountainCar computes them."""
    position, velocity = states[:, 0], states[:, 1]
    velocity = velocity + (action - 1) * FORCE - np.cos(3 * position) * gravity
    velocity = np.clip(velocity, LOW[1], HIGH[1])
    position = np.clip(position + velocity, LOW[0], HIGH[0])
    velocity = np.where((position == LOW[0]) & (velocity < 0), 0, velocity)
    return np.stack([position, velocity], axis=1)


class Interpolation:
    """Reads values of a grid at states between its points, linearly; 0 at the goal."""

    def __init__(self, states: Floats) -> None:
        place = (states - LOW) / (HIGH - LOW) * (POINTS - 1)
        corner = np.minimum(place.astype(int), POINTS - 2)
        self.share, self.corner = place - corner, corner
        self.on_the_way = states[:, 0] < GOAL

    def __call__(self, values: Floats) -> Floats:
        (x, y), (right, up) = self.corner.T, self.share.T
        low = values[x, y] * (1 - up) + values[x, y + 1] * up
        high = values[x + 1, y] * (1 - up) + values[x + 1, y + 1] * up
        return self.on_the_way * (low * (1 - right) + high * right)


def optimal_values(gravity: float) -> Floats:
    """The return from each point of the grid on, (POINTS, POINTS)."""
    axes = [np.linspace(low, high, POINTS) for low, high in zip(LOW, HIGH, strict=True)]
    states = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    looks = [Interpolation(step(states, action, gravity)) for action in range(3)]
    values = np.zeros((POINTS, POINTS))
    while True:
        better = np.max([look(values) for look in looks], axis=0).reshape(values.shape) - 1
        if np.abs(better - values).max() < 1e-4:
            return better
        values = better


def main() -> None:
    """Print the mean return of each seed's episodes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--gravity", type=float, default=0.0025)
    asked = parser.parse_args()
    values = optimal_values(asked.gravity)

    def q_function(observation: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        state = observation[None].astype(np.float64)
        looks = [Interpolation(step(state, action, asked.gravity)) for action in range(3)]
        return np.array([look(values)[0] for look in looks], np.float32)

    env = make_environment("MountainCar-v0", {"gravity": asked.gravity})
    means = []
    for seed in asked.seeds:
        means.append(np.mean(run.evaluate(env, q_function, seed, episodes=asked.episodes)))
        print(f"seed {seed}: {means[-1]:.2f}")
    print(f"mean of all: {np.mean(means):.2f}")


if __name__ == "__main__":
    main()
