"""Measures the CUDA backend on torch tensors. run.sh builds, tests and measures."""
