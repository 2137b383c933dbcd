"""The exercises' checkers, a module a notebook, and what grades your own layer attention (`mrla check`)."""
