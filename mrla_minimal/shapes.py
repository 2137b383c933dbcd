"""What a module accepts: the head_dim rule, the kernel rule, and the checks of x and memory.

Every check raises a ValueError that says what was given and what is allowed, so that the
modules themselves hold nothing but their equations.
"""

import math

import torch


def check_choice(what: str, name: object, allowed: tuple) -> None:
    """`name`, the value of the argument `what`, must be one of `allowed`."""
    if name not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, allowed))}, not {name!r}")


def check_channels(channels: int) -> None:
    """channels must be a positive integer."""
    if not isinstance(channels, int) or channels < 1:
        raise ValueError(f"channels must be a positive integer, not {channels!r}")


def choose_head_dim(channels: int, head_dim: int | None, largest: int) -> int:
    """Channels of one head: `head_dim` if given (it must divide `channels`), else the largest divisor of `channels` up to `largest`."""
    check_channels(channels)
    if head_dim is None:
        return max(d for d in range(1, min(channels, largest) + 1) if channels % d == 0)
    if not isinstance(head_dim, int) or head_dim < 1 or channels % head_dim:
        divisors = [d for d in range(1, channels + 1) if channels % d == 0]
        raise ValueError(f"head_dim must divide channels={channels} (one of {divisors}), not {head_dim!r}")
    return head_dim


def eca_kernel_size(channels: int) -> int:
    """The ECA rule for a convolution along the channels: |log2(channels) + 1| / 2, cut to an integer; if even, one more.

    8 to 127 channels give 3, 128 to 2047 give 5, from 2048 on 7 (Wang et al., ECA-Net, CVPR 2020, gamma = 2, b = 1).
    """
    check_channels(channels)
    size = int(abs((math.log2(channels) + 1) / 2))
    return size if size % 2 else size + 1


def choose_kernel_size(channels: int, kernel_size: int | None) -> int:
    """Taps of the convolution along the channels: `kernel_size` if given (odd, so that it has a middle), else the ECA rule."""
    check_channels(channels)
    if kernel_size is None:
        return eca_kernel_size(channels)
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be a positive odd integer, not {kernel_size!r}")
    return kernel_size


def check_feature_map(x: torch.Tensor, channels: int) -> None:
    """x must be a floating-point tensor of shape (batch, channels, height, width)."""
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"x must be a tensor of shape (batch, {channels}, height, width), not {type(x).__name__}")
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"x must have shape (batch, {channels}, height, width), not {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must hold floating-point numbers, not {x.dtype}")


def check_map_memory(memory: torch.Tensor | None, x: torch.Tensor) -> None:
    """A carried map is None or one tensor of x's shape."""
    if memory is None:
        return
    if not isinstance(memory, torch.Tensor):
        raise ValueError(f"memory must be None or one tensor of shape {tuple(x.shape)}, not a {type(memory).__name__}")
    if memory.shape != x.shape or not memory.is_floating_point():
        raise ValueError(f"memory must be a floating-point tensor of shape {tuple(x.shape)}, like x, "
                         f"not {tuple(memory.shape)} of {memory.dtype}")


def check_list_memory(memory: list | None, x: torch.Tensor) -> None:
    """A cache of maps is None or a list of tensors, each of x's shape."""
    if memory is None:
        return
    if not isinstance(memory, list):
        raise ValueError(f"memory must be None or a list of tensors of shape {tuple(x.shape)}, not a {type(memory).__name__}")
    for entry in memory:
        if not isinstance(entry, torch.Tensor):
            raise ValueError(f"each entry of memory must be a tensor of shape {tuple(x.shape)}, not a {type(entry).__name__}")
        check_map_memory(entry, x)


def check_key_value_memory(memory: list | None, key: torch.Tensor, value: torch.Tensor) -> None:
    """A key/value cache is None or a list of (key, value) pairs shaped like the new entry's."""
    if memory is None:
        return
    wanted = f"(key, value) pairs of shapes {tuple(key.shape)} and {tuple(value.shape)}"
    if not isinstance(memory, list):
        raise ValueError(f"memory must be None or a list of {wanted}, not a {type(memory).__name__}")
    for entry in memory:
        if not isinstance(entry, tuple) or len(entry) != 2 or not all(isinstance(part, torch.Tensor) for part in entry):
            raise ValueError(f"memory must be a list of {wanted}; an entry is a {type(entry).__name__}")
        if entry[0].shape != key.shape or entry[1].shape != value.shape:
            raise ValueError(f"memory must be a list of {wanted}; an entry has {tuple(entry[0].shape)} and {tuple(entry[1].shape)}")
        if not all(part.is_floating_point() for part in entry):
            raise ValueError(f"memory must be a list of floating-point {wanted}; an entry is of {entry[0].dtype} and {entry[1].dtype}")


def check_query_key_value(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> None:
    """(..., n, d), (..., m, d), (..., m, e), and a boolean mask that broadcasts to (..., n, m)."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, torch.Tensor) or tensor.dim() < 2 or not tensor.is_floating_point():
            given = f"{tuple(tensor.shape)} of {tensor.dtype}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ValueError(f"{name} must be a floating-point tensor of shape (..., tokens, dim), not {given}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key must end in the same dim: query is {tuple(query.shape)}, key is {tuple(key.shape)}")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"key and value must hold the same number of tokens: key is {tuple(key.shape)}, value is {tuple(value.shape)}")
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool):
        given = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(f"mask must be a boolean tensor (True = may attend), not {given}")
    try:
        leading = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    except RuntimeError:
        raise ValueError(f"leading dimensions do not match: query {tuple(query.shape)}, key {tuple(key.shape)}, "
                         f"value {tuple(value.shape)}") from None
    if mask is not None:
        wanted = (*leading, query.shape[-2], key.shape[-2])
        try:
            fits = torch.broadcast_shapes(mask.shape, wanted) == wanted
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(f"mask must broadcast to {wanted}, which {tuple(mask.shape)} does not")


def check_tokens(x: torch.Tensor, dim: int) -> None:
    """x must be a floating-point tensor of shape (batch, tokens, dim)."""
    if not isinstance(x, torch.Tensor) or x.dim() != 3 or x.shape[-1] != dim or not x.is_floating_point():
        given = f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"x must be a floating-point tensor of shape (batch, tokens, {dim}), not {given}")


def check_heads(dim: int, heads: int) -> None:
    """heads must divide dim."""
    if not isinstance(dim, int) or dim < 1:
        raise ValueError(f"dim must be a positive integer, not {dim!r}")
    if not isinstance(heads, int) or heads < 1 or dim % heads:
        raise ValueError(f"heads must divide dim={dim}, which {heads!r} does not")
