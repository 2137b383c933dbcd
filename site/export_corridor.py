"""Train the nets of the explorables "The corridor" and "Who must know?" and write their numbers.

    python site/export_corridor.py      # writes site/static/corridor_nets.js and square_nets.js; a CPU-minute

A page that is opened from disk may not fetch a file, so the numbers come as a script. They are rounded to
five digits; what the page shows is what a net with these rounded numbers computes.
"""

from functools import partial

from exporting import five_digits, rounded, write

from mrla_minimal.course.quiz import QuizResult, train_quiz
from mrla_minimal.course.who_knows import ASKED, PART

METHODS = ("last", "mean", "light", "base")
QUESTIONS = ("late", "early")
WIDTHS = (4, 8)
MADE = "site/export_corridor.py: nets of the corridor quiz"
SQUARE = ("denseformer", "attnres", "mudd", "base")     # one method for each cell of the 2 x 2
short = partial(rounded, shorten=five_digits)


def exported(result: QuizResult) -> dict:
    """{accuracy, numbers: {name: nested lists}} of a trained net."""
    return {"accuracy": round(result.accuracy, 4),
            "numbers": {name: short(part.tolist()) for name, part in result.model.state_dict().items()}}


def main() -> None:
    """Write {width: {question: {method: net}}} and {question: {method: net}}, all of seed 0."""
    corridor = {width: {question: {method: exported(train_quiz(method, question, width))
                                   for method in METHODS} for question in QUESTIONS} for width in WIDTHS}
    write("corridor_nets.js", "CORRIDOR_NETS", corridor, f"{MADE}, width 4 and 8, seed 0, 400 steps")
    (width,), steps = PART["widths"], PART["steps"]
    square = {name: {method: exported(train_quiz(method, question, width, steps=steps)) for method in SQUARE}
              for name, question in ASKED.items()}
    write("square_nets.js", "SQUARE_NETS", square, f"{MADE}, width {width}, seed 0, {steps} steps")


if __name__ == "__main__":
    main()
