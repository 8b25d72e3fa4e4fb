"""Sampling: functions over a model given as a function, which know no model and no config file."""
