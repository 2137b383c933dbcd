"""In the spirit of CCRA: weights over layers and patches, each beside its formula as a loop."""

import math

import pytest
import torch

from mrla_minimal.family.regional import (
    FUSIONS,
    QuestionReader,
    QuestionWeights,
    RegionalFusion,
    WordImportance,
    gaussian_blur,
)

BATCH, DEPTH, PATCHES, DIM, WORDS = 3, 4, 7, 5, 2
every_fusion = pytest.mark.parametrize("name", FUSIONS)


def inputs():
    torch.manual_seed(1)
    return (torch.randn(BATCH, DEPTH, PATCHES, DIM, dtype=torch.float64),
            torch.randn(BATCH, WORDS, DIM, dtype=torch.float64))


def make(name, **changed):
    torch.manual_seed(2)
    fusion = RegionalFusion(DIM, DEPTH, **(FUSIONS[name] | changed)).double()
    if fusion.learned is not None:
        torch.nn.init.normal_(fusion.learned)
    return fusion


def softmax(numbers):
    exponentials = [math.exp(number) for number in numbers]
    return [each / sum(exponentials) for each in exponentials]


def logits_by_loop(part, question, rows):
    query = part.query(question)
    return [sum((query * part.key(row)).tolist()) / math.sqrt(DIM) for row in rows]


@torch.no_grad()
def by_loop(fusion, layers, words):
    """One sample: layers (L, N, dim), words (T, dim) -> tokens (N, dim), layer weights."""
    alpha = [0.0] * WORDS
    for asking in words:
        row = softmax([float(fusion.importance.query(asking) @ fusion.importance.key(word)) / math.sqrt(DIM)
                       for word in words])
        alpha = [old + new / WORDS for old, new in zip(alpha, row, strict=True)]
    question = sum(weight * word for weight, word in zip(alpha, words, strict=True))
    shares = [1 / DEPTH] * DEPTH
    if fusion.joint is not None:
        together = softmax(logits_by_loop(fusion.joint, question, [row for layer in layers for row in layer]))
        shares = [sum(together[PATCHES * layer : PATCHES * (layer + 1)]) for layer in range(DEPTH)]
        layers = torch.stack([torch.stack([
            row * (1 + DEPTH * PATCHES * together[PATCHES * place + n]) for n, row in enumerate(layer)])
            for place, layer in enumerate(layers)])
    if fusion.over_layers == "question":
        logits = logits_by_loop(fusion.by_question, question, [layer.mean(dim=0) for layer in layers])
        sigma = fusion.by_question.smoothing
        blurred = []
        for here in range(DEPTH):
            near = [math.exp(-((here - other) / sigma) ** 2 / 2) for other in range(DEPTH)]
            blurred.append(sum(n * logit for n, logit in zip(near, logits, strict=True)) / sum(near))
        weights = softmax(blurred)
    else:
        weights = {"last": [0.0] * (DEPTH - 1) + [1.0], "mean": [1 / DEPTH] * DEPTH,
                   "learned": None if fusion.learned is None else softmax(fusion.learned.tolist())
                   }[fusion.over_layers]
    tokens = sum(weight * layer for weight, layer in zip(weights, layers, strict=True))
    if fusion.patches is not None:
        places = softmax(logits_by_loop(fusion.patches, question, tokens))
        tokens = torch.stack([row * (1 + PATCHES * place) for row, place in zip(tokens, places, strict=True)])
    products = [weight * share for weight, share in zip(weights, shares, strict=True)]
    return tokens, torch.tensor(products, dtype=torch.float64) / sum(products)


@every_fusion
def test_each_fusion_is_its_formula(name):
    fusion, (layers, words) = make(name), inputs()
    tokens, weights = fusion(layers, words)
    assert tokens.shape == (BATCH, PATCHES, DIM) and weights.shape == (BATCH, DEPTH)
    for sample in range(BATCH):
        wanted, wanted_weights = by_loop(fusion, layers[sample], words[sample])
        assert torch.allclose(tokens[sample], wanted, rtol=0, atol=1e-10)
        assert torch.allclose(weights[sample], wanted_weights, rtol=0, atol=1e-10)
    assert torch.allclose(weights.sum(dim=1), torch.ones(BATCH).double())


@every_fusion
def test_the_question_moves_the_weights_only_where_it_may(name):
    fusion, (layers, words) = make(name), inputs()
    (tokens, weights), (other_tokens, other) = fusion(layers, words), fusion(layers, words.flip(0))
    asks = name in ("layers", "layers-patches", "joint", "progressive")
    assert torch.equal(weights, other) != asks
    assert torch.equal(tokens, other_tokens) != asks


@every_fusion
def test_samples_do_not_see_each_other_and_gradients_arrive(name):
    fusion, (layers, words) = make(name), inputs()
    layers.requires_grad_()
    tokens, weights = fusion(layers, words)
    alone, _ = fusion(layers[1:2], words[1:2])
    assert torch.allclose(alone[0], tokens[1], atol=1e-12)
    (tokens.square().sum() + weights.square().sum()).backward()
    assert layers.grad.abs().sum(dim=(0, 2, 3)).gt(0).tolist() == [name != "last"] * (DEPTH - 1) + [True]
    silent = {part for part, value in fusion.named_parameters() if value.grad is None or not value.grad.any()}
    unused = {part for part, _ in fusion.importance.named_parameters(prefix="importance")}
    expected = unused if name in ("last", "mean", "learned") else set()
    # a key's bias, and what is added to all logits of a word, move no softmax
    assert {part for part in silent if not part.endswith("key.bias")} == {
        part for part in expected if not part.endswith("key.bias")}


def test_even_weights_over_layers_and_patches_only_scale():
    layers, words = inputs()
    fusion = make("joint")
    torch.nn.init.zeros_(fusion.joint.query.weight)
    torch.nn.init.zeros_(fusion.joint.query.bias)
    tokens, weights = fusion(layers, words)
    assert torch.allclose(tokens, 2 * layers.mean(dim=1))           # 1 + L N A, with A = 1 / (L N)
    assert torch.allclose(weights, torch.full((BATCH, DEPTH), 1 / DEPTH).double())


def test_learned_weights_start_as_the_mean():
    layers, words = inputs()
    tokens, _ = RegionalFusion(DIM, DEPTH, "learned").double()(layers, words)
    assert torch.allclose(tokens, layers.mean(dim=1))


def test_the_blur_keeps_what_is_even_and_spreads_what_is_not():
    blur = gaussian_blur(5, 0.5)
    assert torch.allclose(torch.ones(5).double() @ blur, torch.ones(5).double())
    peak = torch.tensor([0.0, 0, 1, 0, 0]).double() @ blur
    assert torch.allclose(peak, peak.flip(0)) and peak[2] > peak[1] > peak[0] > 0
    assert abs(peak[1] / peak[2] - math.exp(-2)) < 1e-3             # one row is two sigmas away


def test_a_words_importance_sums_to_one():
    _, words = inputs()
    question, importance = WordImportance(DIM).double()(words)
    assert torch.allclose(importance.sum(dim=1), torch.ones(BATCH).double())
    assert torch.allclose(question, torch.einsum("bt,btd->bd", importance, words))


def reader(**changed):
    torch.manual_seed(3)
    return QuestionReader(**(dict(dim=DIM, depth=DEPTH, patches=PATCHES, vocabulary=6, answers=9, width=3,
                                  hidden=8) | changed))


def test_the_reader_reads_with_one_attention():
    layers, _ = inputs()
    logits, looked, weights = reader()(layers.float(), torch.tensor([[0, 5], [1, 2], [1, 3]]))
    assert logits.shape == (BATCH, 9) and looked.shape == (BATCH, PATCHES) and weights.shape == (BATCH, DEPTH)
    assert torch.allclose(looked.sum(dim=1), torch.ones(BATCH))


def test_a_readers_logits_have_size_1_from_the_start():
    torch.manual_seed(3)
    big = QuestionReader(dim=32, depth=DEPTH, patches=64, vocabulary=20, answers=9)
    words = big.words(torch.randint(20, (50, 2)))
    keys = big.key(torch.randn(50, 64, 32))
    logits = (big.query(words.flatten(1))[:, None] * keys).sum(dim=-1) / 32**0.5
    assert 0.7 < logits.std() < 1.4


def test_readers_of_one_seed_differ_in_the_fusion_alone():
    first, second = (dict(reader(fusion=name).named_parameters()) for name in ("mean", "progressive"))
    shared = [name for name in first if not name.startswith("fusion.")]
    assert len(shared) > 10 and all(torch.equal(first[name], second[name]) for name in shared)


# What they refuse

@pytest.mark.parametrize(("changed", "message"), [
    (dict(over_layers="first"), "over_layers must be one of 'last', 'mean', .*'question', not 'first'"),
    (dict(depth=0), "depth must be a positive integer, not 0"),
    (dict(dim=2.0), "dim must be a positive integer"),
    (dict(smoothing=-1), "smoothing must be at least 0 and below 100, not -1"),
    (dict(smoothing=float("nan")), "smoothing must be at least 0 and below 100, not nan"),
])
def test_other_arguments_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        RegionalFusion(**(dict(dim=DIM, depth=DEPTH) | changed))


@pytest.mark.parametrize(("layers", "words", "message"), [
    (torch.zeros(2, 3, PATCHES, DIM), torch.zeros(2, 2, DIM), r"4, patches, 5\), not \(2, 3, 7, 5\)"),
    (torch.zeros(2, DEPTH, PATCHES, 6), torch.zeros(2, 2, DIM), r"not \(2, 4, 7, 6\)"),
    (torch.zeros(2, DEPTH, 0, DIM), torch.zeros(2, 2, DIM), r"not \(2, 4, 0, 5\)"),
    (torch.zeros(2, DEPTH, PATCHES, DIM, dtype=int), torch.zeros(2, 2, DIM), "of torch.int64"),
    ("layers", torch.zeros(2, 2, DIM), "not str"),
    (torch.zeros(2, DEPTH, PATCHES, DIM), torch.zeros(2, 2, 4), r"\(2, words, 5\), not \(2, 2, 4\)"),
    (torch.zeros(2, DEPTH, PATCHES, DIM), torch.zeros(3, 2, DIM), r"\(2, words, 5\), not \(3, 2, 5\)"),
])
def test_other_inputs_are_refused(layers, words, message):
    for over_layers in ("question", "mean"):            # also where the words decide nothing
        with pytest.raises(ValueError, match=message):
            RegionalFusion(DIM, DEPTH, over_layers)(layers, words)


def test_a_question_of_another_batch_is_refused():
    with pytest.raises(ValueError, match=r"question must be .*\(2, 5\), not \(3, 5\)"):
        QuestionWeights(DIM)(torch.zeros(3, DIM), torch.zeros(2, 4, DIM))


def test_rows_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"x must be .* \(batch, tokens, 5\)"):
        QuestionWeights(DIM)(torch.zeros(2, DIM), torch.zeros(2, 4, 6))


@pytest.mark.parametrize(("words", "message"), [
    (torch.tensor([[0, 6]]), "words must be from 0 to 5, not from 0 to 6"),
    (torch.tensor([[-1, 2]]), "not from -1 to 2"),
    (torch.tensor([[0.0, 1.0]]), "of torch.float32"),
    (torch.tensor([0, 1]), r"not \(2,\) of torch.int64"),
    (torch.tensor([[0, 1, 2]]), r"of shape \(1, 2\), not \(1, 3\) of torch.int64"),
    (torch.tensor([[0, 1], [2, 3]]), r"of shape \(1, 2\), not \(2, 2\) of torch.int64"),
    ([[0, 1]], "not list"),
])
def test_words_out_of_the_vocabulary_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        reader()(torch.zeros(1, DEPTH, PATCHES, DIM), words)


@pytest.mark.parametrize("shape", [(1, DEPTH, 1, DIM), (1, DEPTH + 1, PATCHES, DIM)])
def test_a_reader_refuses_other_layers(shape):
    with pytest.raises(ValueError, match=r"layers must be .*\(batch, 4, 7, 5\), not"):
        reader()(torch.zeros(shape), torch.tensor([[0, 1]]))


@pytest.mark.parametrize(("changed", "message"), [
    (dict(dim=0), "dim must be a positive integer, not 0"),
    (dict(fusion="both"), "fusion must be one of 'last', .*not 'both'"),
    (dict(width=0), "width must be a positive integer"),
    (dict(vocabulary=-3), "vocabulary must be a positive integer"),
])
def test_a_reader_refuses_other_arguments(changed, message):
    with pytest.raises(ValueError, match=message):
        reader(**changed)
