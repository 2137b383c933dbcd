"""Which numbers a run computes with: float32, or the half precision that its GPU has."""

from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALLEST_SCALE = 2.0**-20       # 65536 halved 36 times: gradients that float16 holds at no scale


def choose_precision(device: torch.device, amp: bool = True) -> str:
    """A name of PRECISIONS: what the forward and backward pass compute with on a device.

    A GPU of compute capability 8.0 or more (A100, RTX 30) has bfloat16, one from 7.0 on (T4, V100) float16.
    Older ones, other devices, and any device without `amp` have float32. The capability is asked for, and
    not torch.cuda.is_bf16_supported(), which also says True where bfloat16 is emulated: a T4 has no
    convolution in it.
    """
    if not amp or device.type != "cuda":
        return "float32"
    capability = torch.cuda.get_device_capability(device)
    return "bfloat16" if capability >= (8, 0) else "float16" if capability >= (7, 0) else "float32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Within it, the operations that may do so compute in `precision`; weights stay in float32."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, PRECISIONS[precision])


def gradient_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """What keeps gradients within float16's range; for any other precision it does nothing.

    It multiplies the loss, divides the gradients, and leaves out a step whose gradients are not finite. It
    reads nothing back to the host as long as the optimiser is a fused one.
    """
    return torch.amp.GradScaler("cuda" if device.type == "cuda" else "cpu", enabled=precision == "float16")


def for_loss(logits: torch.Tensor) -> torch.Tensor:
    """The logits in float32 (or float64, if they are): a loss adds up what half precision cannot hold."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
