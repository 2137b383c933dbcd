"""In the spirit of CCRA: the words of a question choose layers and patches of a frozen image encoder.

Source: Y. Wang, H. Ai, Q. Liu, M. Jiang, R. Kang et al., CCRA: Optimizing Vision-Language Consistency via
Cross-Layer Regional Attention Alignment, 2025, arXiv 2508.00945. We know its abstract, and a secondary text
on its first steps; no code was found. So:

    the paper's           that one weighting of layers and patches together by the question (LPWCA), then one
                          of layers, then one of patches, follow each other (PAI); and that words are weighted
    at second hand        L layers of N patches stacked to L N rows; a weight for each word
    our reconstruction    every formula below. It is named so where it stands

All parts take `layers`, floating-point (batch, L, N, dim), a frozen encoder's maps as rows of patches, and
`question` (batch, dim), the question's weighted words. They raise ValueError for other shapes.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from mrla_minimal.attention import softmax_attention
from mrla_minimal.shapes import (
    check_choice,
    check_floats,
    check_integers,
    check_positive,
    check_range,
    check_same_shape,
    check_tokens,
    described,
)

OVER_LAYERS = ("last", "mean", "learned", "question")
# Seven ways to make one row of N tokens out of L layers; the arguments of RegionalFusion.
FUSIONS = {
    "last": dict(over_layers="last"),
    "mean": dict(over_layers="mean"),
    "learned": dict(over_layers="learned"),
    "layers": dict(over_layers="question"),
    "layers-patches": dict(over_layers="question", patches=True),
    "joint": dict(over_layers="mean", joint=True),
    "progressive": dict(over_layers="question", joint=True, patches=True),
}


class WordImportance(nn.Module):
    """Which words matter: words (batch, T, dim) -> question (batch, dim), importance (batch, T).

    Reconstruction: alpha_t is the attention that word t gets from all words, on average, in one
    self-attention; the question is the sum of alpha_t word_t. alpha sums to 1.
    """

    def __init__(self, dim: int):
        super().__init__()
        check_positive("dim", dim)
        self.dim = dim
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        check_tokens(words, self.dim)
        _, weights = softmax_attention(self.query(words), self.key(words), words)       # (batch, T, T)
        importance = weights.mean(dim=1)                                    # (batch, T)
        return (importance[:, :, None] * words).sum(dim=1), importance      # (batch, dim)


class QuestionWeights(nn.Module):
    """softmax over rows of (W_q question) . (W_k row) / sqrt(dim): rows (batch, n, dim) -> (batch, n).

    `smoothing` blurs the logits over neighbouring rows before the softmax, by a Gaussian of that many rows.
    0 leaves them. Reconstruction; that the layers' logits are blurred is remembered of a predecessor.
    """

    def __init__(self, dim: int, smoothing: float = 0.0):
        super().__init__()
        check_positive("dim", dim)
        check_range("smoothing", smoothing, 0, 100)
        self.dim, self.smoothing = dim, smoothing
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, question: Tensor, rows: Tensor) -> Tensor:
        check_tokens(rows, self.dim)
        check_same_shape("question", question, rows[:, 0])
        query, key = self.query(question)[:, None], self.key(rows)          # (batch, 1, dim), (batch, n, dim)
        logits = (query * key).sum(dim=-1) / self.dim**0.5                  # (batch, n)
        if self.smoothing:
            logits = logits @ gaussian_blur(logits.shape[1], self.smoothing).to(logits)
        return logits.softmax(dim=-1)


class RegionalFusion(nn.Module):
    """L layers of N patches become one row of N tokens, as the question has it.

    layers (batch, L, N, dim), words (batch, T, dim) -> tokens (batch, N, dim), layer weights (batch, L).
    In this order, each a reconstruction of ours:

        joint        A = softmax over all L N rows;     F'_ln = F_ln (1 + L N A_ln)           (LPWCA)
        over_layers  w: "last" (0, .., 0, 1), "mean" 1 / L, "learned" one number a layer that no question
                     changes, "question" = softmax over the layers' mean patches, blurred;
                     G_n = sum over l of w_l F'_ln                                            (LWCA)
        patches      B = softmax over the N rows of G;  G'_n = G_n (1 + N B_n)                (PWCA)

    All three with over_layers="question" are the progressive integration. The factors L N and N are ours too:
    without them 1 + A hardly differs from 1, since A is about 1 / (L N).
    The layer weights that are returned are w; with `joint` they are w_l times its share of A, to sum 1.
    Raises ValueError for another number of layers than `depth`.
    """

    def __init__(self, dim: int, depth: int, over_layers: str = "question", joint: bool = False,
                 patches: bool = False, smoothing: float = 0.5):
        super().__init__()
        check_positive("depth", depth)
        check_choice("over_layers", over_layers, OVER_LAYERS)
        self.dim, self.depth, self.over_layers = dim, depth, over_layers
        self.importance = WordImportance(dim)
        self.joint = QuestionWeights(dim) if joint else None
        self.by_question = QuestionWeights(dim, smoothing) if over_layers == "question" else None
        self.learned = nn.Parameter(torch.zeros(depth)) if over_layers == "learned" else None
        self.patches = QuestionWeights(dim) if patches else None

    def forward(self, layers: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        check_layers(layers, self.depth, self.dim)
        check_floats("words", words, (len(layers), "words", self.dim))
        question, _ = self.importance(words)
        share = None
        if self.joint is not None:
            rows = rearrange(layers, "batch layers patches dim -> batch (layers patches) dim")
            together = self.joint(question, rows).unflatten(1, layers.shape[1:3])       # (batch, L, N)
            share = together.sum(dim=2)                                     # (batch, L)
            layers = layers * (1 + rows.shape[1] * together)[..., None]     # (batch, L, N, dim)
        weights = self.weigh(layers, question)                              # (batch, L)
        tokens = torch.einsum("bl,blnd->bnd", weights, layers)              # (batch, N, dim)
        if self.patches is not None:
            by_patch = self.patches(question, tokens)                       # (batch, N)
            tokens = tokens * (1 + by_patch.shape[1] * by_patch)[..., None]
        if share is not None:
            weights = weights * share / (weights * share).sum(dim=1, keepdim=True)
        return tokens, weights

    def weigh(self, layers: Tensor, question: Tensor) -> Tensor:
        """The weights of the layers, (batch, L), which sum to 1."""
        if self.by_question is not None:
            return self.by_question(question, layers.mean(dim=2))
        row = layers.new_full((self.depth,), 1 / self.depth)                # "mean"
        if self.over_layers == "last":
            row = torch.eye(self.depth, dtype=layers.dtype, device=layers.device)[-1]
        elif self.learned is not None:
            row = self.learned.softmax(dim=0)
        return row.expand(len(layers), -1)


class QuestionReader(nn.Module):
    """A small model that answers questions on a frozen encoder's layers: it fuses them, reads once, answers.

    layers (batch, L, N, dim), words: integers (batch, T), of a vocabulary -> the answers' logits (batch,
    answers), where it looked (batch, N), layer weights (batch, L).

    It is one cross-attention: the query is made of the question's words, keys of the fused tokens and their
    places, and both have a norm. A reading brings back `width` numbers. `fusion` is a name of FUSIONS. Ours,
    and kept small.
    Raises ValueError for an unknown fusion, and sizes that are no positive integers; for another number of
    layers, patches or words, and for words that are no integers of the vocabulary.
    """

    def __init__(self, dim: int, depth: int, patches: int, vocabulary: int, answers: int,
                 fusion: str = "layers", words: int = 2, width: int = 24, hidden: int = 64):
        super().__init__()
        check_choice("fusion", fusion, FUSIONS)
        for name, number in (("dim", dim), ("depth", depth), ("patches", patches),
                             ("vocabulary", vocabulary), ("answers", answers), ("words", words),
                             ("width", width), ("hidden", hidden)):
            check_positive(name, number)
        self.layers_shape, self.asked = ("batch", depth, patches, dim), words
        self.words = nn.Embedding(vocabulary, dim)
        self.places = nn.Parameter(0.02 * torch.randn(patches, dim))
        self.norm = nn.LayerNorm(dim)
        self.query = normed(nn.Linear(words * dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.key, self.value = normed(nn.Linear(dim, dim)), nn.Linear(dim, width)
        self.answer = nn.Sequential(nn.Linear(width + words * dim, hidden), nn.ReLU(),
                                    nn.Linear(hidden, answers))
        self.fusion = RegionalFusion(dim, depth, **FUSIONS[fusion])     # last: so all of a seed start alike

    def forward(self, layers: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        check_floats("layers", layers, self.layers_shape)
        check_integers("words", words, (len(layers), self.asked), below=self.words.num_embeddings)
        words = self.words(words)                                           # (batch, T, dim)
        tokens, layer_weights = self.fusion(layers, words)
        tokens, asked = self.norm(tokens), words.flatten(1)                 # (batch, N, dim), (batch, T dim)
        query, key = self.query(asked)[:, None], self.key(tokens + self.places)
        read, looked = softmax_attention(query, key, self.value(tokens))    # (batch, 1, width), (batch, 1, N)
        return self.answer(torch.cat([read[:, 0], asked], dim=1)), looked[:, 0], layer_weights


def normed(*parts: nn.Module) -> nn.Sequential:
    """The parts, the last of them linear, and a layer norm: logits of size 1 from the start. Ours.

    Without it a reader's logits start near 0, and it looks everywhere alike for long.
    """
    return nn.Sequential(*parts, nn.LayerNorm(parts[-1].out_features))


def gaussian_blur(rows: int, smoothing: float) -> Tensor:
    """(rows, rows), float64: the weights exp(-(distance / smoothing)^2 / 2), each column with sum 1."""
    distance = torch.arange(rows, dtype=torch.float64)[:, None] - torch.arange(rows)
    weights = (-(distance / smoothing).square() / 2).exp()
    return weights / weights.sum(dim=0)


def check_layers(layers: Tensor, depth: int, dim: int) -> None:
    """layers must be floating-point, (batch, depth, patches, dim), with a patch or more."""
    check_floats("layers", layers, ("batch", depth, "patches", dim))
    if not layers.shape[2]:
        raise ValueError(f"layers must hold a patch or more, not {described(layers)}")
