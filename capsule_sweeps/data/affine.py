"""Images rotated, shifted, scaled and sheared, randomly or by given values, bitwise equal on every machine.

Shapes: N images, C channels, H rows, W columns. Where the pixels of an image come from is rounded to 1/256 of a pixel,
and the rest is arithmetic of whole numbers: so there is no last bit in which machines could differ.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capsule_sweeps.data.cache import Decoded, Images
from capsule_sweeps.data.split import SPLIT_SEED, Data, Split
from capsule_sweeps.data.variant import Variant

RANGES = {  # every image draws evenly from each; about those of affNIST
    "rotation": 20.0,  # degrees, to either side
    "shear": 0.2,  # columns a row, to either side
    "scale": 0.2,  # rows and columns separately, from 1 - 0.2 to 1 + 0.2
    "shift": 0.1,  # of the image's size, in each direction
}
CHUNK = 500  # images


class AffineTest(Variant):
    """`dataset.affine_test`: each test image under a map of its own, drawn once and for all."""

    key = ("affine test", RANGES, SPLIT_SEED)

    @staticmethod
    def asked(dataset: Any) -> bool:
        return bool(dataset.affine_test)

    def change(self, decoded: Decoded) -> Decoded:
        images, labels = decoded.test
        return replace(decoded, test=(random_affine(images, SPLIT_SEED), labels))


class TurnedTest(Variant):
    """`dataset.test_rotation` and `dataset.test_shift`: all test images under the same map."""

    @staticmethod
    def asked(dataset: Any) -> bool:
        return bool(dataset.test_rotation or dataset.test_shift)

    def apply(self, data: Data) -> Data:
        import torch

        images = rotate_shift(data.test.images.cpu().numpy(), self.dataset.test_rotation, self.dataset.test_shift)
        return replace(data, test=Split(torch.from_numpy(images).to(data.test.images.device), data.test.labels))


def random_affine(images: Images, seed: int) -> Images:
    """(N, C, H, W) uint8, each image under an affine map of its own that follows from the seed and its place."""
    return _in_parts(images, *draw(len(images), seed))


def rotate_shift(images: Images, rotation: float, shift: float) -> Images:
    """(N, C, H, W) uint8, each image turned left by `rotation` degrees, then moved `shift` pixels to the right."""
    cosine, sine = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    matrix = np.array([[cosine, sine], [-sine, cosine]])  # y grows downwards
    return _in_parts(
        images, np.tile(matrix, (len(images), 1, 1)), np.tile([shift / images.shape[3], 0.0], (len(images), 1))
    )


def _in_parts(images: Images, matrices: NDArray[np.float64], shifts: NDArray[np.float64]) -> Images:
    parts = [slice(first, first + CHUNK) for first in range(0, len(images), CHUNK)]
    return np.concatenate([warp(images[part], matrices[part], shifts[part]) for part in parts])


def draw(num_images: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrices (N, 2, 2), from (x, y) before to (x, y) after, and shifts (N, 2) as parts of the image's size."""
    evenly = np.random.RandomState(seed).uniform(-1, 1, (num_images, 6)).T  # the numbers of an image stay together
    angle, shear = math.radians(RANGES["rotation"]) * evenly[0], RANGES["shear"] * evenly[1]
    scale_x, scale_y = 1 + RANGES["scale"] * evenly[2:4]
    cosine, sine = np.cos(angle), np.sin(angle)
    # rotation · shear · scale
    rows = [[cosine * scale_x, (cosine * shear - sine) * scale_y], [sine * scale_x, (sine * shear + cosine) * scale_y]]
    return np.array(rows).transpose(2, 0, 1), RANGES["shift"] * evenly[4:6].T


def warp(images: Images, matrices: NDArray[np.float64], shifts: NDArray[np.float64]) -> Images:
    """Each image (N, C, H, W) under its map about the middle, bilinear; what comes in from outside is black."""
    num_images, channels, height, width = images.shape
    (a, b), (c, d) = matrices.transpose(1, 2, 0)
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    x = x[None] - (width * shifts[:, 0])[:, None, None]
    y = y[None] - (height * shifts[:, 1])[:, None, None]
    # Where a pixel comes from, by the inverse of its matrix; products and sums one by one, as all machines round them.
    determinant = (a * d - b * c)[:, None, None]
    a, b, c, d = (entry[:, None, None] for entry in (a, b, c, d))
    column = np.rint(256 * ((d * x - b * y) / determinant + (width - 1) / 2)).astype(np.int64)
    row = np.rint(256 * ((a * y - c * x) / determinant + (height - 1) / 2)).astype(np.int64)
    total = np.zeros((num_images, channels, height * width), np.int64)
    flat = images.reshape(num_images, channels, -1)
    for down in (0, 1):
        for right in (0, 1):
            i, j = (row >> 8) + down, (column >> 8) + right
            weight = (row & 255 if down else 256 - (row & 255)) * (column & 255 if right else 256 - (column & 255))
            weight *= (i >= 0) & (i < height) & (j >= 0) & (j < width)
            places = i.clip(0, height - 1) * width + j.clip(0, width - 1)
            pixels = np.take_along_axis(flat, places.reshape(num_images, 1, -1), 2)
            total += pixels * weight.reshape(num_images, 1, -1)
    return ((total + (1 << 15)) >> 16).astype(np.uint8).reshape(images.shape)
