"""The exercises' checkers, one module a notebook, and what grades a layer attention of your own (`mrla check`)."""
