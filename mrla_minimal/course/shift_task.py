"""The shift task of notebook 17: what is asked for lies some pixels away, in an earlier layer's map.

Two layers with maps of one channel, of smoothed or of white noise. The answer at each pixel is the *first*
layer's map, so many rows down and columns right. The second layer's attention has four keys in each map; of
its numbers only the biases learn, so each key has one place and one logit for all pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mrla_minimal.course.seeds import seeded
from mrla_minimal.family.sideways import NAMES, read_at
from mrla_minimal.shapes import check_choice, check_positive

SHIFTS = ((3, -2), (-2, -3), (1, 3), (-3, 1), (2, 2))       # rows down, columns right
BLURS = (1, 3, 5)                                           # 1 leaves white noise as it is
STEPS, BORDER = 200, 4


def shift_of(seed: int) -> tuple[int, int]:
    """The shift of a seed: rows down, columns right."""
    return SHIFTS[seed % len(SHIFTS)]


def noise_maps(seed: int, blur: int, count: int = 8, size: int = 20) -> Tensor:
    """White noise, smoothed by a mean over `blur` x `blur` pixels, scaled by `blur`: (count, 1, size, size).

    So its variance is 1 whatever the blur, but at the border. Raises ValueError for a blur that is not a
    positive odd integer: a mean over an even number of pixels lies between them.
    """
    check_positive("blur", blur)
    if blur % 2 == 0:
        raise ValueError(f"blur must be odd, not {blur}")
    noise = torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, blur, stride=1, padding=blur // 2, count_include_pad=False) * blur


def draw_task(blur: int, seed: int, shift: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """(the first layer's maps, the second's, the answer), each (8, 1, 20, 20)."""
    earlier, own = noise_maps(2 * seed + 1, blur), noise_maps(2 * seed + 2, blur)
    offsets = torch.tensor(shift, dtype=torch.float32)[:, None, None].expand(8, 1, 2, 20, 20)
    return earlier, own, read_at(earlier, offsets)[:, 0]


def find_shift(name: str, blur: int, seed: int, shift: tuple[int, int] | None = None,
               steps: int = STEPS) -> dict[str, Tensor]:
    """Let the keys of "sideways" or "acla" look for the shift, the seed's own if none is given.

    Returns, for step 0, 1, .., steps, loss (steps + 1,), places (steps + 1, 2 layers, 4 keys, 2) in pixels
    and weights (steps + 1, 2 layers, 4 keys), which sum to 1; layer 1 first. The loss is the mean squared
    error `BORDER` pixels or more from the border. Raises ValueError for an unknown name.
    """
    check_choice("name", name, NAMES)
    check_positive("steps", steps)
    shift = shift_of(seed) if shift is None else shift
    earlier, own, wanted = draw_task(blur, seed, shift)
    with seeded(seed):
        attention = NAMES[name](1, keys=4, radius=2.0, most_layers=2)
    torch.nn.init.ones_(attention.value.weight)
    biases = [part.bias for part in attention.children() if getattr(part, "bias", None) is not None]
    optimizer = torch.optim.Adam(biases, 0.05)
    inside = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    seen = {"loss": [], "places": [], "weights": []}
    for _ in range(steps + 1):
        loss = (attention(own, [earlier])[0] - wanted)[inside].square().mean()
        with torch.no_grad():       # all pixels are alike: one says it
            seen["loss"].append(loss.detach())
            seen["places"].append(attention.places(own, 2)[0, ..., 0, 0].flip(0))
            seen["weights"].append(attention.weigh(own, 2)[0, :, 0, 0].view(2, 4).flip(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: torch.stack(steps) for name, steps in seen.items()}


def what_was_found(run: dict[str, Tensor]) -> dict[str, float | list[float]]:
    """Of the last step: the loss, the heaviest key's place, its weight, and the weight on the first layer."""
    places, weights = run["places"][-1], run["weights"][-1]
    best = weights.flatten().argmax().item()
    return {"loss": run["loss"][-1].item(), "place": places.flatten(0, 1)[best].tolist(),
            "layer": 1 + best // 4, "weight": weights.max().item(), "earlier": weights[0].sum().item()}
