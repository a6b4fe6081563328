"""Measuring how fast and how well something works."""
