"""What crosses between the grader and a submission's process: the same numbers, and nothing that runs."""

import json
import math
import struct

import pytest
import torch
from torch import nn

from mrla_minimal import MRLABase, cifar_vit
from mrla_minimal.course.apart.whole import become, is_whole, put_together, taken_apart
from mrla_minimal.course.apart.wire import DTYPES, Foul, pack, unpack


def there_and_back(value):
    message, _ = pack(value)
    return unpack(message)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (2, 3, 4, 5)])
def test_tensors_cross_with_their_numbers_their_type_and_their_order_in_memory(dtype, shape):
    tensor = torch.arange(math.prod(shape)).view(shape).to(dtype)
    orders = [tensor, tensor.mT] if len(shape) > 1 else [tensor]
    orders += [tensor.contiguous(memory_format=torch.channels_last)] if len(shape) == 4 else []
    for given in orders:
        got = there_and_back(given)
        assert got.dtype == dtype and got.stride() == given.stride() and torch.equal(got, given)


def test_what_is_no_dense_order_crosses_as_its_numbers():
    expanded = torch.arange(3.0).expand(2, 3)
    assert torch.equal(there_and_back(expanded), expanded)
    assert torch.equal(there_and_back(torch.arange(9.0)[::2]), torch.arange(0.0, 9.0, 2))


def test_values_cross_as_they_are_and_one_tensor_stays_one():
    x = torch.ones(2, requires_grad=True)
    value = there_and_back({"a": [1, (2.5, None), True], 3: "x", "more": ..., "both": [x, x], "i": math.inf})
    assert value["a"] == [1, (2.5, None), True] and value[3] == "x" and value["more"] is ...
    assert value["both"][0] is value["both"][1] and value["both"][0].requires_grad and value["i"] == math.inf
    with pytest.raises(ValueError, match="a set cannot be handed over"):
        pack({1, 2})
    with pytest.raises(ValueError, match="cannot be handed over"):
        pack(torch.ones(2).to_sparse())


def message(header, data=b""):
    header = json.dumps(header).encode()
    return struct.pack("<I", len(header)) + header + data


@pytest.mark.parametrize("foul", [
    b"", b"\xff\xff\xff\xff", bytes(64), message(3), message([["tensor", 0], []]),
    message([["tensor", 0], [["float32", [2], None, False]]]),                  # no numbers
    message([["tensor", 0], [["float32", [-1], None, False]]]),
    message([["tensor", 0], [["float32", [10**30], None, False]]]),
    message([["tensor", 0], [["object", [1], None, False]]], bytes(8)),
    message([["tensor", 0], [["float32", [1, 1], [0, 0], False]]], bytes(4)),
    message([["tensor", 0], [["int64", [1], None, True]]], bytes(8)),           # integers have no gradients
    message([["thing", {"number": 0}], []]), message([{"a": 1}, []]), message([["eval", "1"], []]),
    b"\x10\x00\x00\x00" + b"[" * 16, message([["list", 7], []]), message([["dict", [[["list", []], 1]]], []]),
])
def test_what_pack_does_not_make_is_foul(foul):
    with pytest.raises(Foul):
        unpack(foul)


def test_a_header_without_end_is_foul():
    with pytest.raises(Foul):
        unpack(message([["list", []], []]).replace(b"[]", b"[" * 50_000 + b"]" * 50_000, 1))


def test_a_byte_is_true_or_false():
    got = unpack(message([["tensor", 0], [["bool", [3], None, False]]], bytes([0, 1, 7])))
    assert got.tolist() == [False, True, True] and torch.equal(got, torch.tensor([False, True, True]))


def test_a_model_of_the_librarys_own_classes_crosses_whole():
    torch.manual_seed(0)
    model = cifar_vit(2, dim=16, heads=2, patch=8, layer_attention="mrla-light").eval()
    again = put_together(there_and_back(taken_apart(model)))
    images = torch.randn(2, 3, 32, 32)
    assert is_whole(model) and type(again) is type(model) and torch.equal(again(images), model(images))
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in model.named_parameters()]
    again.train()
    with torch.no_grad():
        again.classifier.bias.fill_(1.0)
    become(model, again)
    assert model.training and model.stages[0][1].training and model.classifier.bias.eq(1).all()


def test_other_classes_do_not_cross_and_none_is_called():
    class Own(MRLABase):
        pass

    assert not is_whole(Own(16)) and not is_whole(nn.Linear(2, 2))
    (told,) = taken_apart(nn.Linear(2, 2))
    for module, name in (("os", "system"), ("torch.nn.modules.linear", "F"), ("mrla_minimal.resnet", "torch"),
                         ("mrla_minimal.nowhere", "Linear")):
        with pytest.raises(ValueError, match="no module of the library"):
            put_together([{**told, "module": module, "class": name}])
