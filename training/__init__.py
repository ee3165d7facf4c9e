"""Trains the demo model: `python -m training.train`. Needs torch (extra `train`)."""
