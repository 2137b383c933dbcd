"""The rules of shapes.py: which sizes are chosen, and what every refusal says."""

import numpy as np
import pytest
import torch

from mrla_minimal import shapes

MAP = torch.zeros(2, 8, 4, 3)
KEY, VALUE = torch.zeros(2, 2, 4), torch.zeros(2, 8, 4, 3)


@pytest.mark.parametrize(("channels", "largest", "head_dim"), [
    (64, 32, 32), (64, 16, 16), (2048, 32, 32), (8, 32, 8), (24, 16, 12), (17, 16, 1),
    (34, 32, 17), (33, 32, 11),
    (1, 32, 1),
])
def test_default_head_dim_is_the_largest_divisor_up_to_a_limit(channels, largest, head_dim):
    assert shapes.choose_head_dim(channels, None, largest) == head_dim


@pytest.mark.parametrize("head_dim", [1, 2, 3, 4, 6, 12])
def test_a_given_head_dim_that_divides_is_kept_above_the_limit_too(head_dim):
    assert shapes.choose_head_dim(12, head_dim, largest=4) == head_dim


@pytest.mark.parametrize("head_dim", [0, -4, 5, 24, 4.0, "4"])
def test_head_dim_must_divide_channels(head_dim):
    message = r"head_dim must divide channels=12 \(one of \[1, 2, 3, 4, 6, 12\]\), not " + repr(head_dim)
    with pytest.raises(ValueError, match=message):
        shapes.choose_head_dim(12, head_dim, largest=32)


@pytest.mark.parametrize("choose", [
    lambda channels: shapes.choose_head_dim(channels, None, 32), shapes.eca_kernel_size,
    lambda channels: shapes.choose_kernel_size(channels, 3),
])
@pytest.mark.parametrize("channels", [0, -1, 8.0, "8", None])
def test_channels_must_be_a_positive_integer(choose, channels):
    with pytest.raises(ValueError, match=f"channels must be a positive integer, not {channels!r}"):
        choose(channels)


@pytest.mark.parametrize(("first", "last", "taps"), [(8, 127, 3), (128, 2047, 5), (2048, 8192, 7)])
def test_kernel_rule_over_its_three_ranges(first, last, taps):
    assert {shapes.eca_kernel_size(channels) for channels in range(first, last + 1)} == {taps}


def test_kernel_rule_is_always_odd():
    assert all(shapes.eca_kernel_size(channels) % 2 for channels in range(1, 5000))


@pytest.mark.parametrize(("given", "taps"), [(None, 3), (1, 1), (5, 5), (99, 99)])
def test_a_given_kernel_size_is_kept(given, taps):
    assert shapes.choose_kernel_size(64, given) == taps


@pytest.mark.parametrize("kernel_size", [0, 2, 4, -3, 3.0, "3"])
def test_kernel_size_must_be_odd_and_positive(kernel_size):
    with pytest.raises(ValueError, match=f"kernel_size must be a positive odd integer, not {kernel_size!r}"):
        shapes.choose_kernel_size(64, kernel_size)


@pytest.mark.parametrize("number", [-0.1, 2, 2.5, float("nan"), True, "1", None])
def test_a_number_out_of_its_range_is_refused(number):
    for inside in (0, 0.5, np.float32(1.5)):
        shapes.check_range("rate", inside, 0, 2)
    with pytest.raises(ValueError, match=f"rate must be at least 0 and below 2, not {number!r}"):
        shapes.check_range("rate", number, 0, 2)


INTEGERS = torch.tensor([[0, 3, 1], [2, 2, 2]])


@pytest.mark.parametrize(("given", "shape", "message"), [
    (INTEGERS, ("batch", 2), r"of shape \(batch, 2\), not \(2, 3\) of torch.int64"),
    (INTEGERS, (2,), r"of shape \(2,\), not \(2, 3\)"),
    (INTEGERS.int(), ("batch", 3), "not .* of torch.int32"),
    (INTEGERS.bool(), ("batch", 3), "not .* of torch.bool"),
    (INTEGERS.tolist(), ("batch", 3), "not list"),
    (INTEGERS, ("batch", 3), "words must be from 0 to 2, not from 0 to 3"),
    (INTEGERS - 1, ("batch", 3), "words must be from 0 to 2, not from -1 to 2"),
])
def test_other_integers_are_refused(given, shape, message):
    shapes.check_integers("words", INTEGERS, ("batch", 3), below=4)
    shapes.check_integers("words", INTEGERS[:0], ("batch", 3), below=1)
    with pytest.raises(ValueError, match=message):
        shapes.check_integers("words", given, shape, below=3)


@pytest.mark.parametrize(("given", "shape", "message"), [
    (MAP, ("batch", 8, 4), r"maps must be a floating-.* of shape \(batch, 8, 4\), not \(2, 8, 4, 3\)"),
    (MAP, ("batch", 8, 4, 4), r"\(batch, 8, 4, 4\), not \(2, 8, 4, 3\) of torch.float32"),
    (MAP.long(), ("batch", 8, 4, 3), "of torch.int64"), (None, (1,), r"of shape \(1,\), not NoneType"),
])
def test_other_floats_are_refused(given, shape, message):
    shapes.check_floats("maps", MAP, (2, "channels", 4, "width"))
    with pytest.raises(ValueError, match=message):
        shapes.check_floats("maps", given, shape)


@pytest.mark.parametrize(("x", "message"), [
    (None, "x must be a tensor of shape .batch, 8, height, width., not NoneType"),
    ([MAP], "x must be a tensor of shape .batch, 8, height, width., not list"),
    (MAP[0], r"x must have shape .batch, 8, height, width., not \(8, 4, 3\)"),
    (MAP[None], r"x must have shape .batch, 8, height, width., not \(1, 2, 8, 4, 3\)"),
    (MAP[:, :5], r"x must have shape .batch, 8, height, width., not \(2, 5, 4, 3\)"),
    (MAP.permute(0, 2, 3, 1), r"x must have shape .batch, 8, height, width., not \(2, 4, 3, 8\)"),
    (MAP.long(), "x must hold floating-point numbers, not torch.int64"),
    (MAP.bool(), "x must hold floating-point numbers, not torch.bool"),
])
def test_what_is_no_feature_map_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        shapes.check_feature_map(x, 8)


@pytest.mark.parametrize("x", [MAP, MAP[:0], MAP[:, :, :1, :1], MAP.half(), MAP.bfloat16(), MAP.double()])
def test_any_floating_point_map_passes(x):
    shapes.check_feature_map(x, 8)


@pytest.mark.parametrize(("memory", "message"), [
    ([MAP], r"memory must be None or one tensor of shape \(2, 8, 4, 3\), not a list"),
    ((MAP, MAP), r"memory must be None or one tensor of shape \(2, 8, 4, 3\), not a tuple"),
    (MAP[:1], r"shape \(2, 8, 4, 3\), like x, not \(1, 8, 4, 3\) of torch.float32"),
    (MAP[:, :4], r"shape \(2, 8, 4, 3\), like x, not \(2, 4, 4, 3\) of torch.float32"),
    (MAP[..., :1], r"shape \(2, 8, 4, 3\), like x, not \(2, 8, 4, 1\) of torch.float32"),
    (MAP[0], r"shape \(2, 8, 4, 3\), like x, not \(8, 4, 3\) of torch.float32"),
    (MAP.int(), r"floating-point tensor of shape \(2, 8, 4, 3\), like x, not \(2, 8, 4, 3\) of torch.int32"),
])
def test_what_is_no_carried_map_is_refused(memory, message):
    with pytest.raises(ValueError, match=message):
        shapes.check_map_memory(memory, MAP)


@pytest.mark.parametrize(("memory", "message"), [
    (MAP, r"memory must be None or a list of tensors of shape \(2, 8, 4, 3\), not a Tensor"),
    ((MAP,), r"memory must be None or a list of tensors of shape \(2, 8, 4, 3\), not a tuple"),
    ([MAP, (KEY, VALUE)], r"each entry of memory must be a tensor of shape \(2, 8, 4, 3\), not a tuple"),
    ([MAP, None], r"each entry of memory must be a tensor of shape \(2, 8, 4, 3\), not a NoneType"),
    ([MAP, MAP[:1]], r"shape \(2, 8, 4, 3\), like x, not \(1, 8, 4, 3\)"),
    ([MAP[:, :4], MAP], r"shape \(2, 8, 4, 3\), like x, not \(2, 4, 4, 3\)"),
    ([MAP, MAP[:, :, :2]], r"shape \(2, 8, 4, 3\), like x, not \(2, 8, 2, 3\)"),
    ([MAP.long()], "floating-point tensor .* of torch.int64"),
])
def test_what_is_no_list_of_maps_is_refused(memory, message):
    with pytest.raises(ValueError, match=message):
        shapes.check_list_memory(memory, MAP)


@pytest.mark.parametrize(("memory", "message"), [
    (MAP, r"None or a list of .key, value. pairs of shapes \(2, 2, 4\) and \(2, 8, 4, 3\), not a Tensor"),
    ((KEY, VALUE), "None or a list of .*, not a tuple"),
    ([MAP], "an entry is a Tensor"),
    ([(KEY, VALUE), (KEY,)], "an entry is a tuple"),
    ([(KEY, None)], "an entry is a tuple"),
    ([[KEY, VALUE]], "an entry is a list"),
    ([(KEY[:1], VALUE[:1])], r"an entry has \(1, 2, 4\) and \(1, 8, 4, 3\)"),
    ([(KEY, VALUE), (KEY.reshape(2, 4, 2), VALUE)], r"an entry has \(2, 4, 2\) and \(2, 8, 4, 3\)"),
    ([(KEY, VALUE[:, :4])], r"an entry has \(2, 2, 4\) and \(2, 4, 4, 3\)"),
    ([(KEY, VALUE[:, :, :1])], r"an entry has \(2, 2, 4\) and \(2, 8, 1, 3\)"),
    ([(KEY, VALUE.int())], "floating-point .*; an entry is of torch.float32 and torch.int32"),
    ([(KEY.long(), VALUE)], "floating-point .*; an entry is of torch.int64 and torch.float32"),
])
def test_what_is_no_key_value_cache_is_refused(memory, message):
    with pytest.raises(ValueError, match=message):
        shapes.check_key_value_memory(memory, KEY, VALUE)


def test_memories_of_the_right_kind_pass():
    for memory in (None, MAP, MAP.double()):
        shapes.check_map_memory(memory, MAP)
    for memory in (None, [], [MAP, MAP.double()]):
        shapes.check_list_memory(memory, MAP)
    for memory in (None, [], [(KEY, VALUE), (KEY.double(), VALUE.double())]):
        shapes.check_key_value_memory(memory, KEY, VALUE)


QUERY = torch.zeros(3, 5, 4)
KEYS, VALUES = torch.zeros(3, 6, 4), torch.zeros(3, 6, 7)


@pytest.mark.parametrize(("query", "key", "value", "mask", "message"), [
    (QUERY.long(), KEYS, VALUES, None,
     r"query must be a floating-point tensor .*, not \(3, 5, 4\) of torch.int64"),
    (QUERY, KEYS.tolist(), VALUES, None, "key must be a floating-point tensor .*, not list"),
    (QUERY, KEYS, VALUES[0, 0], None,
     r"value must be a floating-point tensor .*, not \(7,\) of torch.float32"),
    (QUERY[..., :3], KEYS, VALUES, None, r"same dim: query is \(3, 5, 3\), key is \(3, 6, 4\)"),
    (QUERY, KEYS[:, :5], VALUES, None, r"same number of tokens: key is \(3, 5, 4\), value is \(3, 6, 7\)"),
    (QUERY[:2], KEYS, VALUES, None,
     r"leading dimensions do not match: query \(2, 5, 4\), key \(3, 6, 4\), value"),
    (QUERY, KEYS, VALUES, torch.ones(5, 6),
     r"mask must be a boolean tensor \(True = may attend\), not torch.float32"),
    (QUERY, KEYS, VALUES, [[True] * 6] * 5, r"mask must be a boolean tensor \(True = may attend\), not list"),
    (QUERY, KEYS, VALUES, torch.ones(6, 5).bool(),
     r"mask must broadcast to \(3, 5, 6\), which \(6, 5\) does not"),
    (QUERY, KEYS, VALUES, torch.ones(2, 1, 5, 6).bool(),
     r"broadcast to \(3, 5, 6\), which \(2, 1, 5, 6\) does not"),
    (QUERY[:1], KEYS[:1], VALUES[:1], torch.ones(3, 5, 6).bool(),
     r"to \(1, 5, 6\), which \(3, 5, 6\) does not"),
])
def test_query_key_value_and_mask_must_fit(query, key, value, mask, message):
    with pytest.raises(ValueError, match=message):
        shapes.check_query_key_value(query, key, value, mask)


@pytest.mark.parametrize(("x", "message"), [
    (torch.zeros(2, 4), r"x must be .* \(batch, tokens, 4\), not \(2, 4\) of torch.float32"),
    (torch.zeros(2, 3, 5), r"x must be .* \(batch, tokens, 4\), not \(2, 3, 5\) of torch.float32"),
    (torch.zeros(2, 3, 4).int(), r"x must be a floating-point .*, not \(2, 3, 4\) of torch.int32"),
    ("tokens", r"x must be .*, not str"),
])
def test_what_are_no_tokens_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        shapes.check_tokens(x, 4)


@pytest.mark.parametrize(("dim", "heads", "message"), [
    (0, 1, "dim must be a positive integer, not 0"),
    (8.0, 1, "dim must be a positive integer, not 8.0"),
    (8, 3, "heads must divide dim=8, which 3 does not"),
    (8, 0, "heads must divide dim=8, which 0 does not"),
    (8, 2.0, "heads must divide dim=8, which 2.0 does not"),
])
def test_heads_must_divide_dim(dim, heads, message):
    with pytest.raises(ValueError, match=message):
        shapes.check_heads(dim, heads)
