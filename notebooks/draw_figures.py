"""Draw the README's figures anew: `python notebooks/draw_figures.py`. About ten seconds on a CPU."""

from pathlib import Path

import torch

from mrla_minimal.course import plots
from mrla_minimal.course.quiz import train_quiz

FOLDER = Path(__file__).resolve().parent / "figures"


def main() -> None:
    """Write figures/quiz.png, from a quiz that is trained here, and figures/four_memories.png."""
    torch.set_num_threads(1)        # what the committed figures were made with
    plots.use_style()
    results = {method: train_quiz(method, "late") for method in ("last", "mean", "residual", "base")}
    accuracies = {method: result.accuracy for method, result in results.items()}
    picture = plots.quiz_picture(accuracies, results["base"].weights_map)
    plots.save_figure(picture, FOLDER / "quiz.png")
    plots.save_figure(plots.draw_four_memories(), FOLDER / "four_memories.png")


if __name__ == "__main__":
    main()
