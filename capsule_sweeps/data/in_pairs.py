"""`dataset.labels_per_image=2`: two overlapping digits in one image (pairs.py)."""

from dataclasses import replace
from typing import Any

from capsule_sweeps.data.cache import Decoded, measure_mean_std
from capsule_sweeps.data.canvas import DIGIT_SIZE
from capsule_sweeps.data.split import SPLIT_SEED, Data, Split
from capsule_sweeps.data.variant import Variant


class InPairs(Variant):
    """The digits of each split in pairs: for training new ones in every epoch, others made once.

    Mean and deviation are those of the pairs of all training digits in the first epoch.
    """

    @staticmethod
    def asked(dataset: Any) -> bool:
        return bool(dataset.labels_per_image == 2)

    def __init__(self, dataset: Any) -> None:
        super().__init__(dataset)
        self.shift = int(dataset.image_size - DIGIT_SIZE) // 2  # pixels that a digit may move, in each direction
        self.settings = dataset.single_share, dataset.overlay
        self.key = "normalised in pairs" if self.settings == (0, "max") else ["normalised in pairs", *self.settings]

    def change(self, decoded: Decoded) -> Decoded:
        import torch

        from capsule_sweeps.data.pairs import pair, render

        digits = Split(*map(torch.from_numpy, decoded.train))
        mean, std = measure_mean_std(render(pair(digits, self.shift, [SPLIT_SEED, 0], *self.settings)).images.numpy())
        return replace(decoded, mean=tuple(mean), std=tuple(std))

    def apply(self, data: Data) -> Data:
        from capsule_sweeps.data.pairs import pair, render

        return replace(
            data,
            train=pair(data.train, self.shift, [SPLIT_SEED, 0], *self.settings),
            val=render(pair(data.val, self.shift, SPLIT_SEED + 1, *self.settings)) if data.val else None,
            test=render(pair(data.test, self.shift, SPLIT_SEED + 2, *self.settings)),
        )
