"""affine.py: maps within their ranges, images as the maps say, the same bytes everywhere."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from capsule_sweeps.data.affine import CHUNK, RANGES, draw, random_affine, rotate_shift, warp

IDENTITY = np.eye(2)[None]


def pictures(num_images: int = 3, channels: int = 1, height: int = 20, width: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_images, channels, height, width), dtype=np.uint8)


def test_nothing_moves_under_the_identity():
    images = pictures(2, 3, 9, 14)
    assert np.array_equal(warp(images, IDENTITY.repeat(2, 0), np.zeros((2, 2))), images)


def test_shift_goes_to_the_right_and_down():
    images = pictures(1, 2)
    found = warp(images, IDENTITY, np.array([[3 / 20, 5 / 20]]))
    assert np.array_equal(found[..., 5:, 3:], images[..., :-5, :-3])
    assert not found[..., :5, :].any() and not found[..., :3].any()


def test_a_quarter_turn_takes_x_to_y():
    images = pictures(1)
    assert np.array_equal(
        warp(images, np.array([[[0.0, -1.0], [1.0, 0.0]]]), np.zeros((1, 2)))[0, 0], np.rot90(images[0, 0], -1)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_equals_bilinear_sampling_of_torch(channels):
    images = pictures(40, channels, 24, 24)
    matrices, shifts = draw(40, seed=1)
    inverse = torch.from_numpy(np.linalg.inv(matrices))
    offset = -(inverse @ torch.from_numpy(2 * shifts)[..., None])
    grid = F.affine_grid(torch.cat([inverse, offset], 2), [*images.shape], align_corners=False)
    wanted = F.grid_sample(torch.from_numpy(images).double(), grid, padding_mode="zeros", align_corners=False).numpy()
    difference = np.abs(warp(images, matrices, shifts) - wanted)
    assert difference.max() <= 2.5 and difference.mean() < 0.6  # 1/256 of a pixel, and half a gray level of rounding


def test_drawn_maps_fill_their_ranges_and_no_more():
    matrices, shifts = draw(20_000, seed=5)
    scale_x = np.hypot(matrices[:, 0, 0], matrices[:, 1, 0])
    angle = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    scale_y = np.linalg.det(matrices) / scale_x
    turn = np.radians(angle)
    shear = (np.cos(turn) * matrices[:, 0, 1] + np.sin(turn) * matrices[:, 1, 1]) / scale_y
    drawn = [(angle, RANGES["rotation"]), (shear, RANGES["shear"]), (scale_x - 1, RANGES["scale"])]
    drawn += [(scale_y - 1, RANGES["scale"]), (shifts[:, 0], RANGES["shift"]), (shifts[:, 1], RANGES["shift"])]
    for values, most in drawn:
        assert np.abs(values).max() <= most + 1e-9 and values.max() > 0.99 * most and values.min() < -0.99 * most
        assert abs(values.mean()) < 0.03 * most and abs(values.std() - most / math.sqrt(3)) < 0.02 * most
    correlations = np.corrcoef([values for values, _ in drawn])
    assert np.abs(correlations - np.eye(6)).max() < 0.04


def test_maps_follow_from_seed_and_place_alone():
    images = pictures(CHUNK + 20)
    all_of_them = random_affine(images, 7)
    assert np.array_equal(random_affine(images[:30], 7), all_of_them[:30])
    assert np.array_equal(random_affine(images, 7), all_of_them) and not np.array_equal(
        random_affine(images, 8), all_of_them
    )
    matrices, shifts = draw(len(images), 7)
    assert np.array_equal(warp(images[-9:], matrices[-9:], shifts[-9:]), all_of_them[-9:])


def test_turned_to_the_left_and_moved_to_the_right() -> None:
    """Quarter turns and whole pixels are exact, for color and odd sizes too; black comes in from outside."""
    images = np.random.RandomState(0).randint(1, 256, (3, 2, 7, 7)).astype(np.uint8)
    assert np.array_equal(rotate_shift(images, 0, 0), images)
    assert np.array_equal(rotate_shift(images, 90, 0), np.rot90(images, axes=(2, 3)))
    assert np.array_equal(rotate_shift(images, -180, 0), images[:, :, ::-1, ::-1])
    for shift in (-3, 2):
        wanted = np.zeros_like(images)
        wanted[..., max(0, shift) : 7 + min(0, shift)] = images[..., max(0, -shift) : 7 - max(0, shift)]
        assert np.array_equal(rotate_shift(images, 0, shift), wanted)
    moved_after = rotate_shift(rotate_shift(images, 90, 0), 0, 2)
    assert np.array_equal(rotate_shift(images, 90, 2), moved_after)
