"""Test accuracy against num_routing of the finished runs in a folder, as a figure.

python analysis/accuracy.py analysis/evidence/cifar10_simple/runs analysis/evidence/cifar10_simple/accuracy.svg
"""

import argparse

from capsule_sweeps import load_runs
from capsule_sweeps.results.figures import accuracy_vs_num_routing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs_dir", help="the folder of the run folders")
    parser.add_argument("out", help="the figure to write, such as accuracy.svg")
    arguments = parser.parse_args()
    accuracy_vs_num_routing(load_runs(arguments.runs_dir)).savefig(arguments.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
