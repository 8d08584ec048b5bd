"""Each method written a second time: float64 NumPy, as its source prints it, with no import from adamx.

An oracle takes the gradients (steps, n) and the first parameters (n,), and yields the update of every step.
"""
