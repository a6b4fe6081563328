"""Consumers of a loop's events: they tell and record, and decide nothing."""
