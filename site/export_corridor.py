"""Train the nets of the explorable "The corridor" and write their numbers: about half a CPU-minute.

    python site/export_corridor.py          # writes site/static/corridor_nets.js

A page that is opened from disk may not fetch a file, so the numbers come as a script. They are rounded to six
digits; what the page shows is what a net with these rounded numbers computes.
"""

import json
from pathlib import Path

from mrla_minimal.course.quiz import train_quiz

METHODS = ("last", "mean", "light", "base")
QUESTIONS = ("late", "early")
FILE = Path(__file__).resolve().parent / "static/corridor_nets.js"


def rounded(numbers: list | float) -> list | float:
    """Nested lists of numbers, each to six digits."""
    return list(map(rounded, numbers)) if isinstance(numbers, list) else float(f"{numbers:.6g}")


def main() -> None:
    """Write {question: {method: {accuracy, numbers: {name: nested lists}}}}, seed 0, width 4."""
    nets = {}
    for question in QUESTIONS:
        results = {method: train_quiz(method, question) for method in METHODS}
        nets[question] = {method: {"accuracy": round(result.accuracy, 4),
                                   "numbers": {name: rounded(part.tolist())
                                               for name, part in result.model.state_dict().items()}}
                          for method, result in results.items()}
    lines = ["// Made by site/export_corridor.py: nets of the corridor quiz, width 4, seed 0, 400 steps.",
             f"const CORRIDOR_NETS = {json.dumps(nets, separators=(',', ':'))};",
             'if (typeof module !== "undefined") module.exports = CORRIDOR_NETS;', ""]
    FILE.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
