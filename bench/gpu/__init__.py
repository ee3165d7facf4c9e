"""Measurements of the CUDA backend on torch's memory; run.sh builds, tests and measures."""
