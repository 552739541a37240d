"""Orchestration: Dagster definitions, resources, and the `vigil` command line."""
