"""One run, or with -m a sweep: python launch.py -m num_routing=1,2,3 dataset=CIFAR10,CIFAR100"""

import hydra
from omegaconf import DictConfig

from capsule_sweeps.config.versions import MAIN
from capsule_sweeps.launchers.entry import hydra_errors, launch_one


@hydra.main(config_path="conf", config_name="config", **MAIN)
def main(config: DictConfig) -> float | None:
    """The accuracy under config.selection_rule. With -m, Hydra hands the points to hydra/launcher instead."""
    return launch_one(config)


if __name__ == "__main__":
    with hydra_errors():
        main()
