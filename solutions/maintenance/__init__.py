"""Failure prediction from sensors and logs: hazard curves, alarms, causes, work orders."""
