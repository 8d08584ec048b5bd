"""Kernels: the same steps as everywhere else, put together for an accelerator. Nothing chooses them by itself."""
