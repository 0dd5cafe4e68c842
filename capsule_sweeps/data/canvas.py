"""`dataset.base`: the digits of another data set in the middle of a larger black canvas."""

from dataclasses import replace
from typing import Any

import numpy as np

from capsule_sweeps.data.cache import Decoded, Images
from capsule_sweeps.data.variant import Variant, replaced

DIGIT_SIZE = 28  # of MNIST's images
SIZES = {"digits": 20}  # base → the size of its images on the canvas: here that of the box all ink of MNIST lies in


class Canvas(Variant):
    """The images of `dataset.base`, in the middle of black ones of `dataset.image_size` pixels."""

    key = "on a canvas of dataset.image_size"

    @staticmethod
    def asked(dataset: Any) -> bool:
        return dataset.base is not None

    def origin(self, dataset: Any) -> Any:
        """The data set whose images are put on the canvas. Raises ValueError if the canvas is smaller than they are."""
        if dataset.image_size < DIGIT_SIZE:
            raise ValueError(
                f"dataset.image_size={dataset.image_size} is too small a canvas for {dataset.name}: its digits need "
                f"{DIGIT_SIZE}x{DIGIT_SIZE} pixels."
            )
        return replaced(dataset, name=dataset.base, base=None, image_size=SIZES.get(dataset.base, DIGIT_SIZE))

    def change(self, decoded: Decoded) -> Decoded:
        (train, train_labels), (test, test_labels), size = decoded.train, decoded.test, self.dataset.image_size
        return replace(decoded, train=(on_canvas(train, size), train_labels), test=(on_canvas(test, size), test_labels))


def on_canvas(images: Images, size: int) -> Images:
    """Images (N, C, H, W) in the middle of black ones (N, C, size, size)."""
    before = [(size - length) // 2 for length in images.shape[2:]]
    after = [size - length - margin for length, margin in zip(images.shape[2:], before, strict=True)]
    return np.pad(images, ((0, 0), (0, 0), *zip(before, after, strict=True)))
