"""The exercises' checkers, by topic: each says of which notebook. coursework.py is `mrla check`."""
