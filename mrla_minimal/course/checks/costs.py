"""Checkers of notebook 11: light's parameters in a whole net, the deepest stage, base with a window."""

import copy

import torch
from torch import nn

from mrla_minimal import MRLABase, eca_kernel_size
from mrla_minimal.course.checks.common import (
    NotAttempted,
    Wrong,
    checker,
    close,
    first_line,
    numbers,
    pair,
    run,
    tensor,
)


def _whole(answer, *inputs):
    """The answer's output on `inputs`, if it is a whole number."""
    given = run(answer, *inputs)
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise Wrong(f"your answer should be a number, not of type {type(given).__name__}")
    if given != given:
        raise Wrong("your answer is NaN")
    if given in (float("inf"), float("-inf")) or given != int(given):
        raise Wrong(f"your answer should be a whole number, not {given}")
    return int(given)


def _added(widths, taps_of=eca_kernel_size, rows=2, value=lambda channels: 9 * channels, lambda_o=1, norm=2):
    """What MRLA-light adds to blocks of these widths; each keyword can make one mistake."""
    return sum(rows * taps_of(channels) + value(channels) + (lambda_o + norm) * channels
               for channels in widths)


@checker("exercise 1")
def check_extra_parameters(answer: object) -> None:
    """answer(widths) -> how many parameters MRLA-light and the BN after it add to blocks of these widths."""
    for widths in ([24, 8, 130, 300], [2048, 64, 64], [16]):
        given, wanted = _whole(answer, widths), _added(widths)
        if given == wanted:
            continue
        largest = sum(9 * channels * channels for channels in widths)
        mistakes = {
            "lambda_o is missing: one number a channel": _added(widths, lambda_o=0),
            "the BN after the attention is missing: a scale and a shift a channel": _added(widths, norm=0),
            "your BN has one number a channel; it learns a scale and a shift": _added(widths, norm=1),
            "lambda_o and the BN are missing": _added(widths, lambda_o=0, norm=0),
            "you count the BN's running mean and variance; they are buffers, nothing learns them":
                _added(widths, norm=4),
            "there are two convolutions along the channels, one for the query and one for the key":
                _added(widths, rows=1),
            "there are two convolutions along the channels, and none for the value: that one is 3x3":
                _added(widths, rows=3),
            "each convolution along the channels has 3 taps in "
            "your count; eca_kernel_size(channels) says how many": _added(
                widths, taps_of=lambda channels: 3),
            "the value's convolution is depthwise: 9 weights a channel, not 9 * channels of them": _added(
                widths, value=lambda channels: 9 * channels * channels),
            "your query and key are whole matrices; "
            "they are convolutions along the channels, of eca_kernel_size taps": _added(
                widths, taps_of=lambda channels: channels * channels),
            "your convolutions have biases; none of MRLA's has":
                _added(widths, value=lambda channels: 10 * channels) + 2 * len(widths),
            "you counted the first block only": _added(widths[:1]),
            "you counted the last block only": _added(widths[-1:]),
        }
        for message, mistake in mistakes.items():
            if given == mistake:
                raise Wrong(message)
        if given > largest:
            raise Wrong(f"for blocks of {widths} channels you count {given:,}, "
                        "even more than ordinary 3x3 convolutions would have")
        raise Wrong(f"for blocks of {widths} channels you count {given:,}, not {wanted:,}")


KEPT = {
    "layer": lambda layers: layers * (layers + 3) // 2,
    "mrla-base": lambda layers: 2 * layers,
    "mrla-light": lambda layers: 3 * layers - 1,
}
WRONGLY_KEPT = {
    "layer": {
        "T (T + 1) / 2 counts the values alone; the T feature maps they are made from are kept as well":
            lambda layers: layers * (layers + 1) // 2,
        "you count Eq. 4 as base: each of its layers makes t values of its own, none is shared":
            KEPT["mrla-base"],
    },
    "mrla-base": {
        "you count base as Eq. 4: its values are made once, and kept once however many layers read them":
            KEPT["layer"],
        "T maps are what base hands on; for training it keeps the feature maps as well":
            lambda layers: layers,
    },
    "mrla-light": {
        "you count light as base; lambda_o's gradient needs each O^(t-1) too":
            KEPT["mrla-base"],
        "you count 3 T maps for light; at its first layer there is no O^(t-1) yet":
            lambda layers: 3 * layers,
    },
}


def _deepest(kept, budget, one_map, strict=False):
    layers = 0
    while kept(layers + 1) * one_map < budget + (not strict):
        layers += 1
        if layers > 10_000:
            break
    return layers


@checker("exercise 2")
def check_deepest_stage(answer: object) -> None:
    """answer(form, budget, batch, channels, side) -> the largest T whose kept maps fit in `budget` bytes.

    float32 maps, of the attention alone.
    """
    for batch, channels, side in ((7, 16, 10), (32, 64, 8)):
        numbers_in_map = batch * channels * side * side
        one_map = 4 * numbers_in_map
        for form, kept in KEPT.items():
            for maps, more in ((kept(7), 5), (50, 1), (kept(1), -1), (kept(4), 0), (kept(4), -1)):
                budget = maps * one_map + more
                given = _whole(answer, form, budget, batch, channels, side)
                wanted = _deepest(kept, budget, one_map)
                if given != wanted:
                    _explain_depth(given, wanted, form, budget, one_map, batch)


def _explain_depth(given, wanted, form, budget, one_map, batch):
    kept = KEPT[form]
    where = f"for the form {form!r} and a budget of {budget / one_map:.6g} maps"
    if given == 1 and wanted == 0:
        raise Wrong(f"{where}: not even one layer fits, so the answer is 0")
    if budget % one_map == 0 and given == _deepest(kept, budget, one_map, strict=True):
        raise Wrong(f"{where}: a stage that fills the budget to the last byte still fits")
    if given == _deepest(kept, budget, one_map // 4):
        raise Wrong(f"{where}: each number of a float32 map takes 4 bytes")
    if given == _deepest(kept, budget, one_map // batch):
        raise Wrong(f"{where}: every image of the batch has maps of its own")
    for message, mistake in WRONGLY_KEPT[form].items():
        if given == _deepest(mistake, budget, one_map):
            raise Wrong(message)
    if given == wanted + 1:
        raise Wrong(f"{where}: you say {given} layers, which is the first depth that does not fit")
    raise Wrong(f"{where}: you say {given} layers, which keep "
                f"{kept(max(given, 0))} maps; {wanted} layers keep {kept(wanted)}")


BATCH, CHANNELS, HEIGHT, WIDTH, LAYERS = 3, 32, 4, 5, 6      # two heads of 16


def _stack(answer, window):
    """The answer's layers, and plain MRLABase layers of the same weights.

    In float64, every weight moved so that no softmax is flat.
    """
    layers, references = [], []
    for number in range(LAYERS):
        try:
            layer = answer(CHANNELS) if window is None else answer(CHANNELS, window=window)
        except NotImplementedError:
            raise NotAttempted from None
        except (Exception, SystemExit) as error:
            asked = "WindowedBase(channels)" if window is None else f"WindowedBase(channels, window={window})"
            raise Wrong(f"your class should be built as {asked}; that raises {first_line(error)}") from error
        if not isinstance(layer, nn.Module):
            raise Wrong(f"your answer should be a class of modules; it makes a {type(layer).__name__}")
        layer = layer.double()
        for place, parameter in enumerate(layer.parameters()):
            parameter.data = 2 * numbers(*parameter.shape, seed=100 * number + place)
        reference = MRLABase(CHANNELS).double()
        try:
            reference.load_state_dict(copy.deepcopy(layer.state_dict()))
        except RuntimeError:
            raise Wrong("your class should hold the three convolutions of "
                        "MRLABase, query, key and value, and nothing else that "
                        "learns: derive it from MRLABase") from None
        layers.append(layer)
        references.append(reference)
    return layers, references


def _outputs(references, maps, cut):
    """The references' outputs where each is handed cut(the entries of the layers before it), if any."""
    outputs, entries = [], []
    for reference, x in zip(references, maps, strict=True):
        output, memory = reference(x, cut(entries) or None)
        entries = [*entries, memory[-1]]
        outputs.append(output)
    return outputs


@checker("exercise 3")
def check_windowed_base(answer: object) -> None:
    """answer is a class, answer(channels, window=3): MRLABase over the `window` newest entries."""
    if not callable(answer):
        raise Wrong(f"your answer should be a class, not of type {type(answer).__name__}")
    with torch.no_grad():
        for window in (None, 2, 1, LAYERS + 1):      # None: what the class takes by itself
            layers, references = _stack(answer, window)
            for stage in range(2):
                maps = [numbers(BATCH, CHANNELS, HEIGHT, WIDTH, seed=10 * stage + layer)
                        + numbers(BATCH, CHANNELS, 1, 1, seed=50 + layer) for layer in range(LAYERS)]
                _check_stage(layers, references, maps, 3 if window is None else window)


def _newest(entries, count):
    return entries[len(entries) - min(count, len(entries)):]


def _check_stage(layers, references, maps, window):
    wanted = _outputs(references, maps, lambda entries: _newest(entries, window - 1))
    given, memory, held = [], None, []
    for layer, x in zip(layers, maps, strict=True):
        output, memory = pair(run(layer, x, memory))
        given.append(tensor(output, x.shape))
        entries = [] if memory is None else memory          # with a window of 1 there is nothing to hand on
        listed = isinstance(entries, (list, tuple))
        held.append(f"{len(entries)} entries" if listed else f"a {type(memory).__name__}")
    for number, (output, right) in enumerate(zip(given, wanted, strict=True), start=1):
        if not close(output, right):
            _explain_window(given, references, maps, window, number)
    for number, what in enumerate(held, start=1):
        if what not in [f"{count} entries" for count in range(window + 1)]:
            raise Wrong(f"with window {window} your outputs are right, but layer {number} hands on {what}; "
                        f"what no later layer reads should not be held, so a list of at most {window}")


def _explain_window(given, references, maps, window, number):
    mistakes = {
        "you read every entry; what is older than the window should be left out": lambda entries: entries,
        f"you read {window} older entries beside your own; with its own it should be {window}":
            lambda entries: entries[-window:],
        "you keep the oldest entries; the newest should stay": lambda entries: entries[: window - 1],
        "you read the layer's own entry alone": lambda entries: [],
        "you read one entry too few; the layer's own counts as one of them":
            lambda entries: entries[len(entries) - min(window - 2, len(entries)):],
    }
    for message, cut in mistakes.items():
        if all(close(a, b) for a, b in zip(given, _outputs(references, maps, cut), strict=True)):
            if window == 1 and cut([0, 0]) == [0, 0]:
                message += ". Mind that memory[-0:] is the whole list"
            raise Wrong(f"with window {window}: {message}")
    raise Wrong(f"with window {window}, at layer {number}: your output is "
                f"not base's over the {min(window, number)} newest entries")
