"""One module of definitions per solution."""
