"""The course: what only the notebooks use, and `mrla check`."""
