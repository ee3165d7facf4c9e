"""The samplers, one for each published family; `generation.sampling` is their public door."""
