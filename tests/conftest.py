"""Fixtures of more than one file."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope='module')
def quick_compilation(tmp_path_factory):
    """Programs that run for a second are compiled without optimization, and equal ones once."""
    before = jax.config.jax_compilation_cache_dir
    least = jax.config.jax_persistent_cache_min_compile_time_secs

    def configure(optimize, folder, least_seconds):
        jax.config.update('jax_disable_most_optimizations', not optimize)
        jax.config.update('jax_compilation_cache_dir', folder)
        jax.config.update('jax_persistent_cache_min_compile_time_secs', least_seconds)
        compilation_cache.reset_cache()

    configure(False, before or str(tmp_path_factory.getbasetemp() / 'compiled'), 0.0)
    yield
    configure(True, before, least)
