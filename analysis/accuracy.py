"""Test accuracy against num_routing of the finished runs in a folder, as a figure.

python analysis/accuracy.py analysis/evidence/cifar10_simple/runs analysis/evidence/cifar10_simple/accuracy.svg
"""

import sys

from capsule_sweeps import load_runs
from capsule_sweeps.results.figures import accuracy_vs_num_routing


def main() -> None:
    runs_dir, out = sys.argv[1:]
    accuracy_vs_num_routing(load_runs(runs_dir)).savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()
