"""Hydra looks for plugins in this package only; the classes live in capsule_sweeps.launcher."""

from capsule_sweeps import launcher


class LocalLauncher(launcher.LocalLauncher): ...


class SlurmLauncher(launcher.SlurmLauncher): ...


class GridSweeper(launcher.GridSweeper): ...
