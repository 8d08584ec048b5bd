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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Thin out the products that `thin` names: of n rows in order, one runs and the others are for `-m thorough`."""
    seen = {}
    for item in items:
        mark = item.get_closest_marker("thin")
        if mark is None:
            continue
        kind = "slow" if item.get_closest_marker("slow") else "default"
        key = (item.nodeid.split("[")[0], kind)
        seen[key] = seen.get(key, -1) + 1
        if seen[key] % mark.kwargs.get(kind, 1):
            item.add_marker("slow" if kind == "default" else "thorough")


@pytest.fixture
def x64():
    """Run a test in double precision."""
    with jax.enable_x64(True):
        yield
