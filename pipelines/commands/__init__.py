"""The commands of `vigil`, one module per solution. Heavy packages are imported inside the commands."""
