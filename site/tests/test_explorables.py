"""What people can play with: it answers to the keyboard, and shows what its script counts.

That what they count is the library's is for tests/test_keeps.py, test_site_corridor.py, test_site_images.py.
"""

import pytest

from conftest import HTML

pytestmark = pytest.mark.skipif(not HTML.exists(), reason="the site is not built: make site")
SHOWN = """() => [...document.querySelectorAll(".explorable tbody tr")].map(row => ({
  name: row.querySelector("th").textContent,
  values: [...row.querySelectorAll("td")].map(cell => Number(cell.dataset.value)),
  texts: [...row.querySelectorAll("td")].map(cell => cell.textContent),
}))"""
# part of the page -> [table][row][cell that has a number]
NUMBERS = """part => {
  const numbers = row => [...row.querySelectorAll("td[data-value]")].map(cell => +cell.dataset.value);
  const tables = [...document.querySelectorAll(`.explorable ${part} table`)];
  return tables.map(table => [...table.tBodies[0].rows].map(numbers));
}"""


@pytest.mark.parametrize("page_name", ["what_a_layer_keeps.html", "notebooks/11_what_it_costs.html"])
def test_what_a_layer_keeps_answers_to_the_keyboard(opened, page_name):
    page, complaints = opened(1280)
    page.goto((HTML / page_name).as_uri())
    for key, presses, value in (("layers", ["ArrowRight", "ArrowRight"], 11), ("channels", ["Home"], 8),
                                ("size", ["ArrowLeft"], 28), ("batch", ["End"], 256)):
        slider = page.locator(f".explorable input[name={key}]")
        slider.focus()
        for press in presses:
            page.keyboard.press(press)
        assert slider.get_attribute("aria-valuetext") == str(value)
    counted = page.evaluate("countMemories({layers: 11, channels: 8, size: 28, batch: 256})")
    for row, one in zip(page.evaluate(SHOWN), counted, strict=True):
        values = [one["handed"], one["handedBytes"] / 2**20, one["kept"], one["keptBytes"] / 2**20,
                  one["macs"] / 1e6]
        assert row["name"] == one["name"] and row["values"] == pytest.approx(values, rel=1e-6)
        for text, value, digits in zip(row["texts"], values, (0, 2, 0, 2, 2), strict=True):
            assert len(text.partition(".")[2]) == digits
            assert float(text.replace(",", "")) == pytest.approx(value, abs=0.500001 * 10**-digits)
    words = page.locator(".explorable svg").get_attribute("aria-label")
    assert "For 11 layers: Eq. 4 77, MRLA-base 22" in words
    assert complaints == []


@pytest.mark.parametrize("page_name", ["the_corridor.html", "notebooks/00_start_here.html"])
def test_the_corridor_answers_to_the_keyboard_and_fills_its_diagonal(opened, page_name):
    page, complaints = opened(1280)
    page.goto((HTML / page_name).as_uri())
    told, width, asked = page.locator(".corridor > label > select").all()
    words, tables = page.locator(".explorable p[aria-live]"), page.locator(".explorable table")

    def filled(number):
        return page.evaluate("""number => {
          const rows = [...document.querySelectorAll(".explorable table")[number].tBodies[0].rows];
          return rows.map(row => [...row.querySelectorAll("td")].map(cell => cell.dataset.value));
        }""", number)

    assert words.text_content() == "Room 3 is asked for, and F hangs there. Right: MRLA-base."
    assert [row[0] is not None for row in filled(1)] == [room == 2 for room in range(8)]
    asked.focus()
    page.keyboard.press("ArrowDown")
    assert words.text_content().startswith("Room 4 is asked for, and H hangs there.")
    page.get_by_role("button", name="Ask for every room").focus()
    page.keyboard.press("Enter")
    for asked_for, row in enumerate(filled(1)):                 # MRLA-base's diagonal
        shares = list(map(float, row))
        assert shares.index(max(shares)) == asked_for and sum(shares) == pytest.approx(1, abs=1e-6)
    told.focus()
    page.keyboard.press("ArrowDown")
    assert words.text_content().endswith("MRLA-light, MRLA-base.")     # others may guess it
    assert sum(row[0] is not None for row in filled(2)) == 1     # other nets: the tables begin anew
    width.focus()
    page.keyboard.press("ArrowDown")
    lengths = page.evaluate("""() =>
      [...document.querySelectorAll(".explorable td[data-value]:last-child")]
        .map(cell => cell.dataset.value.split(",").length).filter(length => length > 1)""")
    assert lengths == [8, 8, 8, 8] and sum(row[0] is not None for row in filled(2)) == 1
    assert tables.count() == 4 and complaints == []


@pytest.mark.parametrize("page_name", ["who_must_know.html", "notebooks/14_what_a_layer_may_know.html"])
def test_the_square_answers_to_the_keyboard_and_stands_as_the_records_say(opened, page_name):
    page, complaints = opened(1280)
    page.goto((HTML / page_name).as_uri())
    question, asked = page.locator(".corridor > label > select").all()
    words = page.locator(".explorable p[aria-live]")

    for right in ("MUDDFormer, MRLA-base", "Attention Residuals, MRLA-base", "MRLA-base"):
        assert words.text_content() == f"Right for every room of this corridor: {right}."
        found = page.evaluate(NUMBERS, ".weights")          # [memory][room asked for][layer]
        assert [len(of_memory) for of_memory in found] == [8, 8, 8, 8]
        for room, of_layers in enumerate(found[3]):             # MRLA-base's diagonal
            assert of_layers.index(max(of_layers)) == room and sum(of_layers) == pytest.approx(1, abs=1e-6)
        assert all(of_layers == found[0][0] for of_layers in found[0])      # DenseFormer knows nothing
        question.focus()
        page.keyboard.press("ArrowDown")
    asked.focus()
    page.keyboard.press("ArrowDown")
    marked = page.locator(".explorable tr[aria-current]")
    assert [line.locator("th").text_content() for line in marked.all()] == ["4"] * 4
    before = page.locator(".explorable table").first.text_content()
    page.get_by_role("button", name="Another corridor").focus()
    page.keyboard.press("Enter")
    assert page.locator(".explorable table").first.text_content() != before and complaints == []


@pytest.mark.parametrize("page_name", ["which_layers.html", "notebooks/10_looking_inside.html"])
def test_the_images_answer_to_the_keyboard_and_show_the_exported_numbers(opened, page_name):
    page, complaints = opened(1280)
    page.goto((HTML / page_name).as_uri())
    net, view = page.locator(".looking > label > select").all()
    words = page.locator(".explorable p[aria-live]")

    def shown(part):
        return page.evaluate(NUMBERS, part)

    def answers(net, image):
        chances = page.evaluate("([net, image]) => Object.values(IMAGES_NETS.nets[net].chances)"
                                ".map(of_how => of_how[image])", [net, image])
        return [list(row) for row in zip(*chances, strict=True)]

    first = page.get_by_role("radio").first
    assert page.get_by_role("radio").count() == 40
    assert first.get_attribute("aria-label") == "airplane, image 1"
    first.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert words.text_content().startswith("Image 4, of class cat. Answers as learned: ")
    assert shown(".one-image") == [answers(0, 3)]
    weights = page.evaluate("IMAGES_NETS.nets[0].weights[3]")
    heads = [[layer[head] for layer in stage] for stage in weights for head in range(len(stage[0]))]
    assert shown(".weights") == heads and len(heads) == 4
    view.focus()
    page.keyboard.press("ArrowDown")            # frozen at the mean
    assert shown(".weights")[0] == page.evaluate("IMAGES_NETS.nets[0].frozen.mean[0].map(layer => layer[0])")
    net.focus()
    page.keyboard.press("ArrowDown")            # MRLA-light: a row of gates a stage
    assert shown(".weights") == [[[layer[0][0] for layer in stage]]
                                 for stage in page.evaluate("IMAGES_NETS.nets[1].frozen.mean")]
    assert shown(".one-image") == [answers(1, 3)] and complaints == []


def test_the_images_picture_is_there_and_is_drawn(opened):
    page, complaints = opened(360)
    page.goto((HTML / "which_layers.html").as_uri())
    sizes = page.evaluate("""() => new Promise((done) => {
      const picture = new Image();
      picture.onload = () => done([picture.naturalWidth, picture.naturalHeight]);
      const drawn = document.querySelector(".one-image .thumbnail");
      picture.src = getComputedStyle(drawn).backgroundImage.slice(5, -2);
    })""")
    assert sizes == [320, 128] and complaints == []
