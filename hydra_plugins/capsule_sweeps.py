"""Hydra looks for plugins in this package only; the classes live in capsule_sweeps.launchers.hydra."""

from capsule_sweeps.launchers import hydra as launcher


class SweepLauncher(launcher.SweepLauncher):
    """For the settings of a launcher that name its `kind`."""


class LocalLauncher(launcher.LocalLauncher): ...


class SlurmLauncher(launcher.SlurmLauncher): ...


class GridSweeper(launcher.GridSweeper): ...
