"""The denoising loop: samplers, caches, prompts, results and likelihoods."""
