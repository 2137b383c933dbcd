"""Data: CIFAR-10, CIFAR-100 or the built-in set -> tensors -> augmented batches."""

from mrla_minimal.lab.data.cifar_files import data_roots, fetch_cifar, find_cifar, load_cifar
from mrla_minimal.lab.data.images import (
    Cifar,
    EpochPlan,
    Split,
    averaged,
    hold_out,
    normalise,
    plan_epoch,
    take_batch,
)

__all__ = ["Cifar", "EpochPlan", "Split", "averaged", "data_roots", "fetch_cifar", "find_cifar", "hold_out",
           "load_cifar", "normalise", "plan_epoch", "take_batch"]
