"""Trains the demo model with `python -m training.train`. This needs torch (extra `train`)."""
