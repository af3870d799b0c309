"""RA-DIT (Retrieval-Augmented Dual Instruction Tuning, Lin et al. 2023) for JAX.

``radit_jax.losses`` and ``radit_jax.parallel_context`` are the library; ``radit_jax.verbs`` holds what the command line
does, one documented function each. Nothing heavy is imported here.
"""

__version__ = "0.1.0"
