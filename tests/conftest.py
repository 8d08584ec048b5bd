"""Eight fake devices, the annotations of leaf functions checked at run time, and nothing global besides."""

import os

# The second flag: batched decompositions (SOAP under vmap) that XLA runs at once can wait for each other for ever.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_cpu_enable_concurrency_optimized_scheduler=false"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import chex
import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook("adamx.ground.numerics", "beartype.beartype")
chex.set_n_cpu_devices(8)


@pytest.fixture
def x64():
    """Run a test in double precision."""
    with jax.enable_x64(True):
        yield
