"""Keeping a model true while the world moves: see drift, plan an update, apply it without forgetting."""
