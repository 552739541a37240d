"""One demo per solution, on embedded defaults."""
