"""IndexCache: where each layer looks, who takes whose positions, and what an indexer learns."""

import pytest
import torch
from layer_tools import assert_equal
from torch import nn

from mrla_minimal import MultiHeadSelfAttention, softmax_attention
from mrla_minimal.family import index_cache
from mrla_minimal.family.index_cache import (
    CHOICES,
    IndexCacheAttention,
    LightningIndexer,
    averaged_loss,
    core_products,
    distillation_loss,
    index_products,
    multi_layer_loss,
    overlap,
    recorded,
    set_mask,
    set_pattern,
    top_positions,
)
from mrla_minimal.family.language_model import TinyLanguageModel, ValueResidual
from mrla_minimal.family.patterns import (
    check_pattern,
    every_pattern,
    greedy_search,
    released_pattern,
    served_by,
)
from mrla_minimal.hosting import FAMILY_ATTENTIONS, LAYER_ATTENTIONS

TOKENS, DIM, HEADS, K = 9, 12, 3, 3


def model_of(pattern="FFFF", k=K, chosen_by="indexer", seed=0):
    """A small model in float64 whose parameters are drawn large."""
    torch.manual_seed(seed)
    model = TinyLanguageModel(7, TOKENS, DIM, HEADS, len(pattern),
                              lambda *sizes: IndexCacheAttention(*sizes, k, "F", 2, 5)).double()
    for part in model.parameters():
        nn.init.normal_(part, std=0.5)
    set_pattern(model, pattern, chosen_by)
    return model


def tokens_of(batch=2, count=TOKENS, seed=1):
    return torch.randint(7, (batch, count), generator=torch.Generator().manual_seed(seed))


def positions_of(model, tokens):
    with recorded(model) as seen:
        model(tokens)
    return [of_layer["positions"] for of_layer in seen]


def random_scores(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_target(*shape, seed=0):
    """Weights of a causal attention: rows sum to 1, nothing ahead."""
    ahead = torch.ones(shape[-2:], dtype=torch.bool).triu(1)
    return random_scores(*shape, seed=seed).masked_fill(ahead, float("-inf")).softmax(dim=-1)


# The indexer and its positions

def test_the_indexer_is_its_formula():
    torch.manual_seed(0)
    indexer, x = LightningIndexer(6, heads=2, head_dim=3).double(), random_scores(2, 4, 6)
    scores = indexer(x)
    for b in range(2):
        for t in range(4):
            for s in range(4):
                key, queries = indexer.key(x[b, s]), indexer.query(x[b, t]).reshape(2, 3)
                weights = indexer.head_weight(x[b, t])
                wanted = sum(weights[h] * (queries[h] @ key).relu() for h in range(2))
                assert_equal(scores[b, t, s], wanted, 1e-12)


def test_the_best_positions_up_to_each_token():
    scores = torch.tensor([[[5.0, 9, 9, 9], [1, 2, 9, 9], [3, 1, 2, 9], [1, 4, 2, 3]]])
    sets = [set(row.tolist()) for row in top_positions(scores, 2)[0]]
    assert sets == [{0}, {0, 1}, {0, 2}, {1, 3}]
    mask = set_mask(top_positions(scores, 2), 4)
    assert mask[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]]


@pytest.mark.parametrize("chosen_by", CHOICES)
def test_nobody_looks_ahead(chosen_by):
    """A later token changes nothing before it, however positions are chosen."""
    model, tokens = model_of("FSFF", chosen_by=chosen_by), tokens_of()
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 7
    outputs = []
    for given in (tokens, changed):
        torch.manual_seed(0)
        outputs.append(model(given))
    assert_equal(outputs[0][:, :6], outputs[1][:, :6], 1e-12)
    assert not torch.allclose(outputs[0][:, 6:], outputs[1][:, 6:])
    for positions in positions_of(model, tokens):
        assert (positions <= torch.arange(TOKENS)[:, None]).all() and (positions >= 0).all()


@pytest.mark.parametrize("pattern", ["FFFF", "FSSS"])
def test_with_k_as_large_as_the_context_it_is_dense_attention(pattern):
    """Notebook 01's attention under 02's mask, from the layer's own parameters."""
    model, tokens = model_of(pattern, k=TOKENS), tokens_of()
    dense = model_of("FFFF", k=K, chosen_by="all")
    assert_equal(model(tokens), dense(tokens), 1e-12)
    layer, x = model.layers[0].attention, random_scores(2, TOKENS, DIM)
    plain = MultiHeadSelfAttention(DIM, HEADS).double()
    plain.load_state_dict({name: part for name, part in layer.state_dict().items()
                           if not name.startswith("indexer.")})
    for t in range(1, TOKENS + 1):
        assert_equal(layer(x)[0][:, t - 1], plain(x[:, :t])[0][:, -1], 1e-12)


def test_sparse_attention_is_attention_over_gathered_keys():
    layer, x = model_of().layers[0].attention, random_scores(2, TOKENS, DIM)
    output, positions = layer(x)
    query, key, value = (part(x).reshape(2, TOKENS, HEADS, -1).transpose(1, 2)
                         for part in (layer.query, layer.key, layer.value))
    for t in range(TOKENS):
        for b in range(2):
            chosen = sorted(set(positions[b, t].tolist()))
            assert len(chosen) == min(K, t + 1)
            found, _ = softmax_attention(query[b, :, t : t + 1], key[b][:, chosen], value[b][:, chosen])
            assert_equal(output[b, t], layer.output(found[:, 0].flatten()), 1e-12)


# Patterns

def test_an_s_layer_takes_exactly_the_positions_of_the_nearest_f_layer_before_it():
    model, tokens = model_of("FSFSS"), tokens_of()
    sets = positions_of(model, tokens)
    assert torch.equal(sets[0], sets[1])
    assert torch.equal(sets[2], sets[3]) and torch.equal(sets[2], sets[4])
    assert not torch.equal(sets[0], sets[2])


def test_an_s_layers_indexer_rests():
    model = model_of("FSFS")
    model(tokens_of())
    before = model(tokens_of())
    for place in (1, 3):
        nn.init.normal_(model.layers[place].attention.indexer.query.weight, std=9.0)
    assert torch.equal(before, model(tokens_of()))
    nn.init.normal_(model.layers[2].attention.indexer.query.weight, std=9.0)
    assert not torch.equal(before, model(tokens_of()))


def test_the_memory_is_a_value_and_no_buffer():
    """A second batch finds nothing of the first: what an S layer takes has come by its memory alone."""
    model, first, second = model_of("FSFS"), tokens_of(seed=1), tokens_of(seed=2)
    alone = model(second)
    model(first)
    assert torch.equal(model(second), alone)
    layer, x = model.layers[1].attention, random_scores(2, TOKENS, DIM)
    positions = top_positions(random_scores(2, TOKENS, TOKENS), K)
    kept = positions.clone()
    _, handed_on = layer(x, positions)
    assert torch.equal(handed_on, kept) and torch.equal(positions, kept)


@pytest.mark.parametrize("pattern", ["SFFF", "FFXF", "FFF", "FFFFF", "", "ffff", 4, None])
def test_a_pattern_that_is_none_changes_nothing(pattern):
    model = model_of("FSFS")
    with pytest.raises(ValueError, match="a pattern for 4 layers|must begin with F"):
        set_pattern(model, pattern)
    assert "".join(layer.attention.kind for layer in model.layers) == "FSFS"


def test_other_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="k must be at most the number of tokens, 9, not 10"):
        model_of(k=10)(tokens_of())
    with pytest.raises(ValueError, match="k must be a positive integer, not 0"):
        IndexCacheAttention(DIM, HEADS, k=0)
    with pytest.raises(ValueError, match="kind must be one of 'F', 'S', not 'X'"):
        IndexCacheAttention(DIM, HEADS, kind="X")
    shared = IndexCacheAttention(DIM, HEADS, kind="S").double()
    x = random_scores(2, TOKENS, DIM)
    with pytest.raises(ValueError, match="positions of an F layer before it, and there is none"):
        shared(x)
    for memory in (torch.zeros(2, TOKENS, 3), torch.zeros(2, TOKENS + 1, 3, dtype=torch.long), [1]):
        with pytest.raises(ValueError, match=r"must be integers .* of shape \(2, 9, k\), not"):
            shared(x, memory)
    for memory, place in ((torch.full((2, TOKENS, 3), TOKENS), TOKENS), (torch.full((2, TOKENS, 3), 1), 1)):
        with pytest.raises(ValueError, match=f"from 0 to its token's own, not {place} for token 0"):
            shared(x, memory)
    with pytest.raises(ValueError, match="chosen_by must be one of"):
        set_pattern(model_of(), "FFFF", "luck")
    with pytest.raises(ValueError, match="heads must be a positive integer"):
        LightningIndexer(6, heads=0)


def test_every_pattern_begins_with_f_and_is_there_once():
    patterns = every_pattern(4)
    assert len(set(patterns)) == len(patterns) == 8 and patterns[0] == "FFFF"
    for pattern in patterns:
        check_pattern(pattern, 4)


def test_who_serves_whom():
    assert served_by("FSFFSS") == {0: [0, 1], 2: [2], 3: [3, 4, 5]}
    for pattern in ("", "SF"):
        with pytest.raises(ValueError, match="must begin with F"):
            served_by(pattern)
    for pattern in (None, "FX"):
        with pytest.raises(ValueError, match=f"a pattern is letters F or S, not {pattern!r}"):
            served_by(pattern)
    with pytest.raises(ValueError, match="layers must be a positive integer, not 0"):
        greedy_search(len, 0)


def test_the_released_rule_makes_the_first_two_layers_full():
    assert released_pattern(12, 4) == "FFSSSFSSSFSS"
    assert served_by(released_pattern(12, 4))[0] == [0]
    assert released_pattern(5, 1) == "FFFFF" and released_pattern(1, 4) == "F"
    with pytest.raises(ValueError, match="frequency must be a positive integer"):
        released_pattern(5, 0)


def test_greedy_takes_the_cheapest_flip_of_each_step():
    costs = {"FFFF": 1.0, "FFFS": 1.1, "FFSF": 1.3, "FSFF": 1.2, "FFSS": 1.5, "FSFS": 1.4, "FSSS": 2.0,
             "FSSF": 0.5}
    asked = []
    path = greedy_search(lambda pattern: asked.append(pattern) or costs[pattern], 4)
    assert path == [("FFFF", 1.0), ("FFFS", 1.1), ("FSFS", 1.4), ("FSSS", 2.0)]
    assert len(asked) == 1 + 4 * 3 // 2 and "SFFF" not in asked
    for broken in costs:
        if broken in asked:
            with pytest.raises(ValueError, match=f"the loss of {broken} must be a number, not nan"):
                greedy_search({**costs, broken: float("nan")}.get, 4)


# Controls

def test_the_last_tokens_and_random_ones():
    model, tokens = model_of("FFFF", chosen_by="last"), tokens_of()
    for row, positions in enumerate(positions_of(model, tokens)[0][0]):
        assert set(positions.tolist()) == set(range(max(0, row - K + 1), row + 1))
    set_pattern(model, "FFFF", "random")
    first, *others = positions_of(model, tokens)
    assert not any(torch.equal(first, other) for other in others)


def test_the_last_tokens_of_a_long_text_in_bfloat16():
    layer = IndexCacheAttention(8, 2, k=4).bfloat16()
    layer.chosen_by = "last"
    _, positions = layer(torch.zeros(1, 300, 8, dtype=torch.bfloat16))
    assert positions[0, 299].sort().values.tolist() == [296, 297, 298, 299]


def test_the_oracle_keeps_what_the_layer_itself_attends_to():
    model, tokens = model_of("FFFF", chosen_by="all"), tokens_of()
    with recorded(model) as seen:
        model(tokens)
    wanted = top_positions(seen[0]["weights"], K)
    set_pattern(model, "FFFF", "oracle")
    assert torch.equal(set_mask(positions_of(model, tokens)[0], TOKENS), set_mask(wanted, TOKENS))


def test_overlap_counts_tokens_that_had_a_choice():
    first = torch.tensor([[[0, 0], [0, 1], [1, 2], [0, 3], [3, 4]]])
    other = torch.tensor([[[0, 0], [0, 1], [0, 1], [0, 1], [3, 4]]])
    assert overlap(first, other) == pytest.approx((0.5 + 1.0) / 2)          # tokens 4 and 5 had 2 k or more
    assert overlap(first, first) == 1.0


# What an indexer learns

def test_the_loss_is_a_divergence():
    target = random_target(2, 5, 5)
    made = random_scores(2, 5, 5, seed=1)
    rows = []
    for b in range(2):
        for t in range(5):
            q = made[b, t, : t + 1].softmax(dim=0)
            p = target[b, t, : t + 1]
            rows.append(sum(p[s] * (p[s] / q[s]).log() for s in range(t + 1)))
    assert_equal(distillation_loss(made, target), torch.stack(rows).mean(), 1e-12)
    assert distillation_loss(target.clamp(min=1e-300).log(), target) == pytest.approx(0, abs=1e-12)


def test_the_multi_layer_loss_and_its_averaged_form_have_one_gradient():
    scores = random_scores(2, 6, 6).requires_grad_()
    targets = [random_target(2, 6, 6, seed=seed) for seed in range(1, 4)]
    losses = [loss(scores, targets) for loss in (multi_layer_loss, averaged_loss)]
    first, second = (torch.autograd.grad(loss, scores)[0] for loss in losses)
    assert (first - second).abs().max() < 1e-6 * first.abs().max() and first.abs().max() > 0
    assert losses[0] > losses[1]                    # by the targets' spread, which no parameter changes
    of_one = torch.autograd.grad(distillation_loss(scores, targets[0]), scores)[0]
    assert (first - of_one).abs().max() > 1e-3


def test_distillation_lowers_the_divergence():
    model = model_of("FFFF", chosen_by="all").float()
    with torch.no_grad(), recorded(model) as seen:
        model(tokens_of(batch=8))
    indexer = LightningIndexer(DIM, 2, 5)
    optimiser = torch.optim.Adam(indexer.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = distillation_loss(indexer(seen[1]["input"]), seen[1]["weights"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_positions_pass_no_gradient_to_the_indexer_of_a_language_models_loss():
    model = model_of("FSFS")
    model(tokens_of()).square().sum().backward()
    for layer in model.layers:
        assert all(part.grad is None for part in layer.attention.indexer.parameters())
        assert layer.attention.query.weight.grad.abs().max() > 0


def test_recorded_leaves_no_hooks():
    model = model_of()
    with recorded(model) as seen:
        model(tokens_of())
    assert seen[0]["weights"].shape == (2, TOKENS, TOKENS) and seen[0]["input"].shape == (2, TOKENS, DIM)
    assert_equal(seen[0]["weights"].sum(dim=-1), torch.ones(2, TOKENS, dtype=torch.float64), 1e-12)
    assert not any(module._forward_hooks for module in model.modules())


def test_recorded_takes_no_values_for_positions():
    model = TinyLanguageModel(9, TOKENS, DIM, 2, 2, ValueResidual)
    with recorded(model) as seen:
        model(torch.zeros(2, TOKENS, dtype=torch.long))
    assert all(set(of_layer) == {"input", "weights"} for of_layer in seen)


# The bill

def test_products_of_the_illustration():
    assert index_products(200_000, 32, 128) == pytest.approx(8.2e13, rel=0.01)
    assert core_products(200_000, 2048, 6144) == pytest.approx(5.0e12, rel=0.01)


def test_it_is_no_attention_on_feature_maps():
    assert not any(kind is IndexCacheAttention for kind in (LAYER_ATTENTIONS | FAMILY_ATTENTIONS).values())
    assert "cannot be" in index_cache.__doc__
    with pytest.raises(ValueError, match=r"x must be a floating-point tensor of shape \(batch, tokens, 12\)"):
        IndexCacheAttention(DIM, HEADS)(torch.randn(2, DIM, 4, 4))
