"""Strangers' code in a process of its own, and what judges it outside: only numbers cross."""
