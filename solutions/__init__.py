"""Vertical solutions; they build on `core` and never import each other."""
