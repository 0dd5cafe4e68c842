"""Data sets as tensors: sources, the cache of decoded images, splits, augmentation."""
