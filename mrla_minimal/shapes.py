"""What a module accepts: the head_dim rule, the kernel rule, and the checks of arguments, x and memory.

Every check raises a ValueError that says what was given and what is allowed, so that the
modules themselves hold nothing but their equations. One only warns: a cached tensor without gradients in a
backward pass may be right (`warn_of_lost_entry`).
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral, Real

import torch
from torch import Tensor


def is_positive(number: object) -> bool:
    """Whether it is an integer above 0. numpy's integers are; True is none, though Python counts it as 1."""
    return isinstance(number, Integral) and not isinstance(number, bool) and number >= 1


def check_positive(name: str, number: object) -> None:
    """`number`, the value of the argument `name`, must be a positive integer."""
    if not is_positive(number):
        raise ValueError(f"{name} must be a positive integer, not {number!r}")


def check_range(name: str, number: object, least: float, below: float) -> None:
    """`number`, the value of the argument `name`, must be a number of at least `least` and below `below`."""
    if isinstance(number, bool) or not isinstance(number, Real) or not least <= number < below:
        raise ValueError(f"{name} must be at least {least:g} and below {below:g}, not {number!r}")


def check_choice(name: str, given: object, allowed: Iterable) -> None:
    """`given`, the value of the argument `name`, must be one of `allowed`."""
    allowed = list(allowed)
    if given not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {given!r}")


def choose_head_dim(channels: int, head_dim: int | None, largest: int) -> int:
    """Channels of one head: `head_dim` if given, which must divide `channels`.

    If None, the largest divisor of `channels` up to `largest`.
    """
    check_positive("channels", channels)
    if head_dim is None:
        return max(d for d in range(1, min(channels, largest) + 1) if channels % d == 0)
    if not is_positive(head_dim) or channels % head_dim:
        divisors = [d for d in range(1, channels + 1) if channels % d == 0]
        raise ValueError(f"head_dim must divide channels={channels} (one of {divisors}), not {head_dim!r}")
    return head_dim


def eca_kernel_size(channels: int) -> int:
    """The ECA rule for a convolution along the channels: |log2(channels) + 1| / 2, cut to an integer.

    If that is even, one is added. 1 to 7 channels give 1, 8 to 127 give 3, 128 to 2047 give 5, 2048 to 32767
    give 7, and so on.
    Source: Q. Wang et al., ECA-Net, CVPR 2020 with gamma = 2 and b = 1.
    """
    check_positive("channels", channels)
    size = int(abs((math.log2(channels) + 1) / 2))
    return size if size % 2 else size + 1


def choose_kernel_size(channels: int, kernel_size: int | None) -> int:
    """Taps of the convolution along the channels: `kernel_size` if given (odd, so that it has a middle).

    If None, the ECA rule.
    """
    check_positive("channels", channels)
    if kernel_size is None:
        return eca_kernel_size(channels)
    if not is_positive(kernel_size) or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be a positive odd integer, not {kernel_size!r}")
    return kernel_size


def described(given: object) -> str:
    """What was given, for a message: a tensor's shape and type, or the type of what is no tensor."""
    return f"{tuple(given.shape)} of {given.dtype}" if isinstance(given, Tensor) else type(given).__name__


def has_shape(given: object, shape: Sequence[int | str]) -> bool:
    """Whether it is a tensor of that shape; a name in the place of a size stands for any, as in ("batch", 3).
    """
    return isinstance(given, Tensor) and given.dim() == len(shape) and all(
        isinstance(wanted, str) or wanted == size for wanted, size in zip(shape, given.shape, strict=True))


def check_floats(name: str, given: object, shape: Sequence[int | str]) -> None:
    """`given`, called `name`, must be a floating-point tensor of a shape, as `has_shape` reads it."""
    if not has_shape(given, shape) or not given.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor of shape {_written(shape)}, "
                         f"not {described(given)}")


def check_integers(name: str, given: object, shape: Sequence[int | str], below: int | None = None) -> None:
    """`given`, called `name`, must be a tensor of int64 of a shape, as `has_shape` reads it.

    With `below`, its numbers must be from 0 to below that.
    """
    if not has_shape(given, shape) or given.dtype != torch.int64:
        raise ValueError(f"{name} must be integers (int64) of shape {_written(shape)}, "
                         f"not {described(given)}")
    if below is not None and given.numel() and not 0 <= given.min() <= given.max() < below:
        raise ValueError(f"{name} must be from 0 to {below - 1}, not from {given.min()} to {given.max()}")


def _written(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def check_images(images: Tensor, channels: int, height: int | None = None, width: int | None = None) -> None:
    """images must be a floating-point tensor (batch, channels, height, width); None stands for any size."""
    check_floats("images", images, ("batch", channels, height or "height", width or "width"))


def check_same_shape(name: str, given: object, like: Tensor) -> None:
    """`given`, called `name`, must be a floating-point tensor of the shape of `like`."""
    check_floats(name, given, like.shape)


def check_feature_map(x: Tensor, channels: int) -> None:
    """x must be a floating-point tensor of shape (batch, channels, height, width)."""
    if not isinstance(x, Tensor):
        raise ValueError(f"x must be a tensor of shape (batch, {channels}, height, width), "
                         f"not {type(x).__name__}")
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"x must have shape (batch, {channels}, height, width), not {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must hold floating-point numbers, not {x.dtype}")


def check_map_memory(memory: Tensor | None, x: Tensor) -> None:
    """A carried map is None or one tensor of x's shape."""
    if memory is None:
        return
    wanted = f"tensor of shape {tuple(x.shape)}"
    if not isinstance(memory, Tensor):
        raise ValueError(f"memory must be None or one {wanted}, not a {type(memory).__name__}")
    if memory.shape != x.shape or not memory.is_floating_point():
        raise ValueError(f"memory must be a floating-point {wanted}, like x, "
                         f"not {tuple(memory.shape)} of {memory.dtype}")


def check_list_memory(memory: list[Tensor] | None, x: Tensor) -> None:
    """A cache of maps is None or a list of tensors, each of x's shape."""
    if memory is None:
        return
    shape = tuple(x.shape)
    if not isinstance(memory, list):
        raise ValueError(f"memory must be None or a list of tensors of shape {shape}, "
                         f"not a {type(memory).__name__}")
    for entry in memory:
        if not isinstance(entry, Tensor):
            raise ValueError(f"each entry of memory must be a tensor of shape {shape}, "
                             f"not a {type(entry).__name__}")
        if entry.shape != x.shape or not entry.is_floating_point():
            raise ValueError(f"each entry of memory must be a floating-point tensor of shape {shape}, "
                             f"like x, not {described(entry)}")
        warn_of_lost_entry(entry, x)


def check_key_value_memory(memory: list[tuple[Tensor, Tensor]] | None, key: Tensor, value: Tensor) -> None:
    """A key/value cache is None or a list of (key, value) pairs shaped like the new entry's."""
    if memory is None:
        return
    wanted = f"(key, value) pairs of shapes {tuple(key.shape)} and {tuple(value.shape)}"
    if not isinstance(memory, list):
        raise ValueError(f"memory must be None or a list of {wanted}, not a {type(memory).__name__}")
    for entry in memory:
        is_pair = isinstance(entry, tuple) and len(entry) == 2
        if not is_pair or not all(isinstance(part, Tensor) for part in entry):
            raise ValueError(f"memory must be a list of {wanted}; an entry is a {type(entry).__name__}")
        if entry[0].shape != key.shape or entry[1].shape != value.shape:
            raise ValueError(f"memory must be a list of {wanted}; "
                             f"an entry has {tuple(entry[0].shape)} and {tuple(entry[1].shape)}")
        if not all(part.is_floating_point() for part in entry):
            raise ValueError(f"memory must be a list of floating-point {wanted}; "
                             f"an entry is of {entry[0].dtype} and {entry[1].dtype}")
        warn_of_lost_entry(entry[1], value)


def in_backward_pass() -> bool:
    """Whether this runs inside a backward pass, as a layer does that checkpointing runs again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1    # -1: in none


def warn_of_lost_entry(entry: Tensor, new: Tensor) -> None:
    """Warn of a cached tensor without gradients where a backward pass runs a layer whose `new` one has them.

    That is what checkpointing does. Its reentrant form first runs a layer without gradients, and then marks
    plain tensors alone as needing them: what sits in a list would silently teach nobody. But the tensor looks
    the same where the layers before are frozen, and there nothing is lost: so this is a UserWarning, which
    Python shows once, and no error.
    """
    if entry.requires_grad or not new.requires_grad or not torch.is_grad_enabled():
        return
    if in_backward_pass():
        warnings.warn("memory holds a tensor without gradients inside a backward pass: unless the layers "
                      "before are frozen, reentrant checkpointing has lost the gradients of a list; "
                      "checkpoint with use_reentrant=False", stacklevel=2)


def check_query_key_value(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    """(..., n, d), (..., m, d), (..., m, e), and a boolean mask that broadcasts to (..., n, m)."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor) or tensor.dim() < 2 or not tensor.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor of shape (..., tokens, dim), "
                             f"not {described(tensor)}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key must end in the same dim: query is {tuple(query.shape)}, "
                         f"key is {tuple(key.shape)}")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"key and value must hold the same number of tokens: key is {tuple(key.shape)}, "
                         f"value is {tuple(value.shape)}")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dtype != torch.bool):
        given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask must be a boolean tensor (True = may attend), not {given}")
    try:
        leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    except RuntimeError:
        raise ValueError(f"leading dimensions do not match: query {tuple(query.shape)}, "
                         f"key {tuple(key.shape)}, value {tuple(value.shape)}") from None
    if mask is not None:
        wanted = (*leading, query.shape[-2], key.shape[-2])
        try:
            fits = torch.broadcast_shapes(mask.shape, wanted) == wanted
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(f"mask must broadcast to {wanted}, which {tuple(mask.shape)} does not")


def check_tokens(x: Tensor, dim: int) -> None:
    """x must be a floating-point tensor of shape (batch, tokens, dim)."""
    check_floats("x", x, ("batch", "tokens", dim))


def check_heads(dim: int, heads: int) -> None:
    """heads must divide dim."""
    check_positive("dim", dim)
    if not is_positive(heads) or dim % heads:
        raise ValueError(f"heads must divide dim={dim}, which {heads!r} does not")
