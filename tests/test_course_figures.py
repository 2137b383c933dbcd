"""The figures that several notebooks share: what they show follows what they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from mrla_minimal.lab import plots


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_quiz_bars_say_solved_where_the_quiz_is_solved():
    figure = plots.quiz_bars({"late": {"last": 0.12, "base": 1.0, "light": 0.7}, "early": {"light": 0.99}})
    late, early = figure.axes
    assert [bar.get_width() for bar in late.patches] == [0.12, 1.0, 0.7]
    assert texts(late) == ["not solved", "solved", "between"] and texts(early) == ["solved"]
    names = [label.get_text() for label in late.get_yticklabels()]
    assert names == ["last alone", "MRLA-base (Eq. 6)", "MRLA-light (Eq. 8)"]
    assert late.get_title() == "late"


def test_attention_map_marks_what_is_not_read():
    axis = plots.attention_map([[1.0], [0.25, 0.75]], show_numbers=True)
    image = axis.images[0].get_array()
    np.testing.assert_allclose(image.filled(np.nan), [[1.0, np.nan], [0.25, 0.75]])
    assert texts(axis) == ["1.00", "\u00d7", "0.25", "0.75"]
    assert "" == "".join(texts(plots.attention_map([[0.5, 0.5]])))


def test_the_four_memories_grow_as_they_should():
    figure = plots.draw_four_memories(layers=5)
    counts = [sum(text.get_text().startswith("$") for text in axis.texts) for axis in figure.axes]
    assert counts == [15, 30, 5, 5]       # 1 + .. + 5 maps; a key and a value each; one state a layer; one map a layer


def test_each_quiz_method_looks_like_its_kin_and_like_no_other():
    methods = ["last", "mean", "residual", "layer", "base", "light", "state"]
    for table in (plots.COLOURS, plots.MARKERS, plots.LABELS):
        assert len({table[method] for method in methods}) == len(methods)
    assert plots.COLOURS["base"] == plots.COLOURS["mrla-base"] and plots.MARKERS["light"] == plots.MARKERS["mrla-light"]
