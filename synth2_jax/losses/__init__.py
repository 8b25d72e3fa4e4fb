"""Losses as {name: (sum, count)}: divided once, after adding up over hosts and steps."""
