"""The exercises' checkers, by topic: each says which notebook it belongs to. coursework.py is `mrla check`."""
