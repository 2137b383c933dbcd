"""Train the nets of the explorables "The corridor" and "Who must know?" and write their numbers.

    python site/export_corridor.py      # writes site/static/corridor_nets.js and square_nets.js; a CPU-minute

A page that is opened from disk may not fetch a file, so the numbers come as a script. They are rounded to
five digits; what the page shows is what a net with these rounded numbers computes.
"""

import json
from pathlib import Path

from mrla_minimal.course.quiz import QuizResult, train_quiz
from mrla_minimal.course.who_knows import ASKED, PART

METHODS = ("last", "mean", "light", "base")
QUESTIONS = ("late", "early")
WIDTHS = (4, 8)
SQUARE = ("denseformer", "attnres", "mudd", "base")     # one method for each cell of the 2 x 2
STATIC = Path(__file__).resolve().parent / "static"


def rounded(numbers: list | float) -> list | float:
    """Nested lists of numbers, each to five digits."""
    return list(map(rounded, numbers)) if isinstance(numbers, list) else float(f"{numbers:.5g}")


def exported(result: QuizResult) -> dict:
    """{accuracy, numbers: {name: nested lists}} of a trained net."""
    return {"accuracy": round(result.accuracy, 4),
            "numbers": {name: rounded(part.tolist()) for name, part in result.model.state_dict().items()}}


def write(path: Path, name: str, nets: dict, said: str) -> None:
    """Write nets as a script that a page loads, and node too."""
    lines = [f"// Made by site/export_corridor.py: nets of the corridor quiz, {said}.",
             f"const {name} = {json.dumps(nets, separators=(',', ':'))};",
             f'if (typeof module !== "undefined") module.exports = {name};', ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    """Write {width: {question: {method: net}}} and {question: {method: net}}, all of seed 0."""
    corridor = {width: {question: {method: exported(train_quiz(method, question, width))
                                   for method in METHODS} for question in QUESTIONS} for width in WIDTHS}
    write(STATIC / "corridor_nets.js", "CORRIDOR_NETS", corridor, "width 4 and 8, seed 0, 400 steps")
    (width,), steps = PART["widths"], PART["steps"]
    square = {name: {method: exported(train_quiz(method, question, width, steps=steps)) for method in SQUARE}
              for name, question in ASKED.items()}
    write(STATIC / "square_nets.js", "SQUARE_NETS", square, f"width {width}, seed 0, {steps} steps")


if __name__ == "__main__":
    main()
