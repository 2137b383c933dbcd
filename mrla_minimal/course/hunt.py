"""A hunt of two steps: a task for which two layers must look in different places, one after the other.

In each of eight rooms hangs a note that says where to go next: a token (room, next room), eight of them in
any order. Then come eight questions (room, "?"): where are you after *two* steps from that room? Only the
questions are to be answered. The answer is on the note of the next room, and which room that is nobody knows
before the first note is found.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from mrla_minimal.course.index_training import UNASKED
from mrla_minimal.family.index_cache import IndexCacheAttention, recorded, set_mask, set_pattern
from mrla_minimal.family.language_model import TinyLanguageModel

Attention = Callable[[int, int, int], nn.Module]        # dim, heads, layer -> an attention between tokens

ROOMS = 8
TOKENS = 2 * ROOMS                      # notes, then questions
SYMBOLS = ROOMS + 1                     # the rooms, and "?"
K, LAYERS, DIM, HEADS = 2, 4, 32, 2
SPARSE = partial(IndexCacheAttention, k=K)


def draw_hunts(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens (count, TOKENS, 2) and answers (count, TOKENS): a room, or UNASKED where there is a note."""
    following, notes, asked = (torch.rand(count, ROOMS, generator=generator).argsort(dim=1) for _ in range(3))
    tokens = torch.cat([
        torch.stack([notes, following.gather(1, notes)], dim=-1),
        torch.stack([asked, torch.full_like(asked, ROOMS)], dim=-1),
    ], dim=1)
    answers = following.gather(1, following.gather(1, asked))
    return tokens, torch.cat([torch.full_like(answers, UNASKED), answers], dim=1)


def hunt_model(attention: Attention = SPARSE) -> TinyLanguageModel:
    """An untrained model for the hunt, of LAYERS layers."""
    return TinyLanguageModel(SYMBOLS, TOKENS, DIM, HEADS, LAYERS, attention, parts=2)


def note_places(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Where the first and the second note of each question stand, (count, ROOMS) each.

    tokens: (count, TOKENS, 2), of `draw_hunts`.
    """
    notes, following = tokens[:, :ROOMS].unbind(dim=-1)                     # (count, ROOMS)
    place = notes.argsort(dim=1)                                            # room -> where its note stands
    first = place.gather(1, tokens[:, ROOMS:, 0])
    return first, place.gather(1, following.gather(1, first))


def found_notes(model: TinyLanguageModel, tokens: Tensor) -> list[list[float]]:
    """For each layer, all F: the share of questions whose set holds the first note, and the second."""
    set_pattern(model, "F" * len(model.layers))
    with torch.no_grad(), recorded(model) as seen:
        model(tokens)
    shares = []
    for of_layer in seen:
        mask = set_mask(of_layer["positions"], TOKENS)[:, ROOMS:]           # (count, ROOMS, TOKENS)
        shares.append([mask.gather(2, place[..., None]).float().mean().item()
                       for place in note_places(tokens)])
    return shares
