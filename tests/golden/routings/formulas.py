# ruff: noqa
"""The numbers that go in: exact in any language, so that golden.npz need not hold them."""

import numpy as np

PRIME = 65521


def raw(shape, seed):
    """Whole numbers 0..65520: (12345 j² + 6789 j + 4321 seed) mod 65521, j = 0, 1, … the index in C (row-major) order."""
    j = np.arange(int(np.prod(shape)), dtype=np.int64)
    return ((12345 * j * j + 6789 * j + 4321 * seed) % PRIME).reshape(shape)


def signed(shape, seed, size=1.0):
    """size · (2 h / 65521 − 1): from −size to size."""
    return size * (2.0 * raw(shape, seed) / PRIME - 1.0)


def positive(shape, seed):
    """(h + 1) / 65523: between 0 and 1, neither included."""
    return (raw(shape, seed) + 1.0) / 65523.0


B, N, M = 2, 3, 4  # images, types of child capsules, types of parent capsules
C, D = 6, 8  # numbers of a child's and of a parent's pose: dynamic and self-routing (vectors)
S = 3  # side of a pose matrix: EM routing (9 numbers, children and parents)

#        name: (side of the children's grid, kernel, stride, padding)
LAYERS = {
    "conv_k3s1p0": (4, 3, 1, 0),
    "conv_k3s2p1": (4, 3, 2, 1),
    "conv_k1s1p0": (2, 1, 1, 0),
    "class_k3": (3, 3, 1, 0),  # the kernel covers the grid
}
