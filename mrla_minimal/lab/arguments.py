"""One way of checking what is given: each check returns the value it allows, and names what it refuses."""

import torch


def check_images(data):
    """Images of one's own, given as a `Cifar`: returned as they are.

    Both splits need images uint8 (N, channels, height, width), of one shape, and labels int64 (N,) from 0 to the number
    of classes - 1. Raises ValueError naming the split and what is wrong with it.
    """
    for name in ("train", "test"):
        split = getattr(data, name, None)
        images, labels = getattr(split, "images", None), getattr(split, "labels", None)
        if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8 or images.dim() != 4 or not len(images):
            raise ValueError(f"data.{name}.images must be a uint8 tensor (N, channels, height, width), not {_shown(images)}")
        if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"data.{name}.labels must be an int64 tensor ({len(images)},), not {_shown(labels)}")
        if labels.min() < 0 or labels.max() >= len(data.classes):
            raise ValueError(f"data.{name}.labels must be from 0 to {len(data.classes) - 1}, for data.classes holds "
                             f"{len(data.classes)} names; they go from {labels.min()} to {labels.max()}")
    if data.train.images.shape[1:] != data.test.images.shape[1:]:
        raise ValueError(f"data.train and data.test must hold images of one shape, not {tuple(data.train.images.shape[1:])} "
                         f"and {tuple(data.test.images.shape[1:])}")
    return data


def _shown(value):
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} of {value.dtype}"
    return repr(value)[:60]
