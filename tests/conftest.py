"""How the suite compiles and how its tests are shared out: both decide how long it takes."""

import gc
import os
import shutil
import sys
from pathlib import Path

import pytest
from support import HAS_TWO_EMITTERS

# Compiling small programs once each is most of the suite's time, so they are compiled cheaply;
# where bits are compared, tests ask for `support.SHIPPED`. The processes that tests start inherit
# the flags. `make test-shipped` runs everything as shipped.
CHEAP = [
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
    '--xla_cpu_parallel_codegen_split_count=1',
]
if HAS_TWO_EMITTERS:
    CHEAP.append('--xla_cpu_use_fusion_emitters=false')
if os.environ.get('VQJAX_COMPILE') != 'shipped':
    os.environ['XLA_FLAGS'] = ' '.join([*CHEAP, os.environ.get('XLA_FLAGS', '')]).strip()

# Files that take longest: first, so that two workers that take whole files end together
# (pytest-xdist's loadfile with --no-loadscope-reorder; its groups do nothing under pytest 9.2).
LONGEST = (
    'test_tokenizer', 'test_autopsy', 'test_remedies', 'test_contract', 'test_contract_bites',
    'test_parallel', 'test_colabs', 'test_sharding', 'test_resumption', 'test_transforms',
    'test_benchmarks', 'test_tuning', 'test_experiment', 'test_recordings', 'test_two_level',
    'test_robust',
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Sorts files by how long they take."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else 99)


_MUCH = 2 * 2**30  # bytes of a worker, most of them programs that no other file uses again


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Between files a worker that has grown large drops what JAX has compiled and traced."""
    if nextitem is None or nextitem.path == item.path or 'jax' not in sys.modules:
        return
    if _bytes_held() > _MUCH:
        sys.modules['jax'].clear_caches()
        gc.collect()


def _bytes_held():
    """Of this process, where the system tells."""
    try:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf('SC_PAGE_SIZE')


_COMPILED = Path(__file__).parents[1] / '.pytest_cache' / 'compiled'
_KEPT = 2**30  # bytes of compiled programs, above which a session starts without any


def pytest_configure(config):
    """Programs of sessions before are thrown away when there are too many; workers leave them."""
    if hasattr(config, 'workerinput') or not _COMPILED.is_dir():
        return
    if sum(file.stat().st_size for file in _COMPILED.iterdir()) > _KEPT:
        shutil.rmtree(_COMPILED)


@pytest.fixture(scope='session', autouse=True)
def compiled_once():
    """Compiles equal programs once, for all files, workers and processes, and for later sessions.

    JAX's persistent compilation cache, in the folder of JAX_COMPILATION_CACHE_DIR where that is
    set, else beside pytest's own cache.
    """
    import jax  # after the flags above
    from jax.experimental.compilation_cache import compilation_cache

    # Processes that tests start inherit the environment; this one has read it already.
    folder = os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_COMPILED))
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    compilation_cache.reset_cache()


@pytest.fixture
def compiled_anew():
    """Switches that cache off in a test that measures the compiler or what it made."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()
    yield
    jax.config.update('jax_enable_compilation_cache', True)
    compilation_cache.reset_cache()
