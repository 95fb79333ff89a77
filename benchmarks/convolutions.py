"""The time of an update of the paper's 3C3D (Appendix F), beside torch's Adam, BackPACK and the authors' HesScale.

    python benchmarks/convolutions.py [--hesscale PATH] [--csv results/convolutions.csv]
    python benchmarks/convolutions.py --cuda --batch 128    # on a GPU, the paper's batch

The network has 394,052 parameters and 100 classes; the time is that from the forward pass to the step, in float32, on
one thread. Methods are timed in turns; the peers are those of critic.py, which compares their gradients with ours, but
for BackPACK's DiagHessian: it makes a matrix of an activation's size squared, 10 GB an image after the first layer.
"""

import sys
from dataclasses import dataclass

import critic
import torch

from hesscale_utils import parse_args


@dataclass
class Args(critic.Args):
    batch: int = 16
    """images in a batch"""
    rounds: int = 20
    """number of times that each is timed"""
    cuda: bool = False
    """whether to time on the GPU"""


def main(args):
    if args.batch < 1:
        sys.exit(f"error: --batch {args.batch}: must be at least 1")
    if args.cuda and not torch.cuda.is_available():
        sys.exit("error: --cuda: torch finds no GPU; leave --cuda out to time on the CPU")
    device, place = ("cuda", f" on {torch.cuda.get_device_name()}") if args.cuda else ("cpu", "")
    problem = critic.Problem(3, (), 100, 1 if args.quick else args.batch, "3c3d", device)
    peers = [name for name in critic.PEERS if "DiagHessian" not in name]
    critic.compare(args, problem, f"update of 3C3D with {problem.batch} images{place}", names=peers)


if __name__ == "__main__":
    main(parse_args(Args))
