"""Measurements behind the figures in the documentation; both sides of a comparison always run in one go."""
