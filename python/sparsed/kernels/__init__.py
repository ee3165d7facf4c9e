"""Attention, patterns and model operations on arrays: the only modules that call the compiled `_core`."""
