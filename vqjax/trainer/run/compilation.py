"""JAX's persistent compilation cache: programs compiled once are read from disk by later runs."""

import os
import pathlib
import tempfile

import jax

_LIMIT = 2**30  # bytes of the folder


def default_folder() -> pathlib.Path:
    """The folder of the user's caches: $XDG_CACHE_HOME/vqjax, or ~/.cache/vqjax.

    Raises:
      RuntimeError: the user has no home folder.
    """
    base = os.environ.get('XDG_CACHE_HOME', '')
    # The XDG specification has relative paths ignored.
    root = pathlib.Path(base) if os.path.isabs(base) else pathlib.Path.home() / '.cache'
    return root / 'vqjax' / 'programs'


def cache_programs(limit: int = _LIMIT) -> None:
    """Keeps compiled programs in `default_folder`, or where JAX_COMPILATION_CACHE_DIR says.

    Call it before anything is compiled. All programs are kept, however small: a run compiles many
    that take a few milliseconds each. JAX's own settings of the cache hold where the environment
    sets them, and a folder set there is left to the user. Where the default folder cannot be
    written, programs are compiled as without a cache.

    Args:
      limit: bytes to which the default folder is cut first; programs not read for longest go.
    """
    if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        try:
            folder = default_folder()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            trim(folder, limit)
        except (OSError, RuntimeError):
            return
        jax.config.update('jax_compilation_cache_dir', str(folder))
    if not os.environ.get('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'):
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def trim(folder: pathlib.Path, limit: int) -> None:
    """Removes the files that were not read for longest until the others hold at most limit bytes.

    Other processes may use the folder meanwhile: a program that is gone is compiled again.
    """
    found = []
    for path in folder.iterdir():
        try:
            status = path.stat()
        except FileNotFoundError:  # another process removed it
            continue
        found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size
