"""Checkpoints through orbax: asynchronous, verified when read, the newest and the best kept."""

import hashlib
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from vqjax.trainer.config.fields import complete
from vqjax.trainer.errors import CheckpointError

_MISSING = '(missing)'


class Checkpoints:
    """The checkpoints of one run in one folder.

    Each holds a pytree of NumPy arrays, plain data beside it, and the run's configuration. Of
    several processes only process 0 makes one of these.

    Args:
      directory: made if it is missing.
      config: plain data; a checkpoint with any other configuration is refused.
      keep: how many of the newest are kept; the one of best accuracy is kept besides.

    Raises:
      CheckpointError: the folder cannot be made.
    """

    def __init__(self, directory: str | pathlib.Path, config: dict, keep: int = 2):
        self.directory = pathlib.Path(directory).absolute()
        self._config = config
        self._keep = keep
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = self._open()
        except OSError as error:
            raise CheckpointError(f'cannot write checkpoints to {directory}: {error}') from error

    def _open(self) -> ocp.CheckpointManager:
        policy = checkpoint_managers.preservation_policy
        processes = ocp.options.MultiprocessingOptions()
        if jax.process_count() > 1:
            # The state is the same everywhere, so no barrier: the others may be a step behind.
            processes = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix='vqjax'
            )
        options = ocp.CheckpointManagerOptions(
            create=False,
            cleanup_tmp_directories=True,
            multiprocessing_options=processes,
            preservation_policy=policy.AnyPreservationPolicy(
                [
                    policy.LatestN(self._keep),
                    policy.BestN(
                        get_metric_fn=lambda metrics: metrics['accuracy'],
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
        )
        return ocp.CheckpointManager(self.directory, options=options, item_names=('state', 'extra'))

    def steps(self) -> list[int]:
        """Steps of the checkpoints that were finished, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, extra: dict, accuracy: float | None = None) -> None:
        """Starts writing a checkpoint and returns; at most one is on its way.

        Args:
          state: pytree of NumPy arrays.
          extra: plain data that JSON keeps to the last digit.
          accuracy: on the validation split; None keeps it out of the choice of the best.

        Raises:
          CheckpointError: this one or the one before could not be written.
        """
        if step in self._manager.all_steps():
            return
        extra = {'config': self._config, 'digest': digest(state), 'extra': extra}
        self._check_space(state)
        self._writing(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra)
                ),
                metrics=None if accuracy is None else {'accuracy': accuracy},
            )
        )

    def _check_space(self, state: Any) -> None:
        """Orbax finds a full disk in the middle of its writing, on several threads at once."""
        needed = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise self._refusal(f'it takes {needed / 1e6:.1f} MB and {free / 1e6:.1f} are free')

    def _refusal(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f'cannot write a checkpoint to {self.directory}: {reason}; earlier checkpoints are '
            'untouched: free space or allow writing there, then run the same command again'
        )

    def wait(self) -> None:
        """Returns when everything is on disk. Raises CheckpointError if something is not."""
        self._writing(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits, then ends the writing thread. Raises CheckpointError as wait does."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _writing(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # orbax wraps what the disk said in types of its own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            told = re.search(r'([^:]*) \[os_error_code', reason)  # behind a page of file names
            raise self._refusal(told[1].strip() if told else reason[:200]) from error

    def restore(self, like: Any, say: Callable[[str], None]) -> tuple[Any, dict] | None:
        """The newest checkpoint that can be read, or None.

        Args:
          like: pytree with the structure, shapes and dtypes expected.
          say: told about every checkpoint that is cut short or damaged; those are removed.

        Returns:
          (state as NumPy arrays, extra as it was saved).

        Raises:
          CheckpointError: a readable checkpoint has another configuration or other shapes.
        """
        like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        for step in reversed(self.steps()):
            try:
                extra = self._manager.restore(
                    step, args=ocp.args.Composite(extra=ocp.args.JsonRestore())
                ).extra
                self._check_config(step, extra['config'])
                state = self._manager.restore(
                    step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
                ).state
                self._check_shapes(step, state, like)
                if digest(state) != extra['digest']:
                    raise ValueError('its content does not match its checksum')
                return state, extra['extra']
            except CheckpointError:
                raise
            except Exception as error:  # whatever a damaged file makes orbax raise
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                say(
                    f'checkpoint {self.directory / str(step)} cannot be read ({reason[:200]}); '
                    'removed, falling back to the one before'
                )
                self._manager.close()
                shutil.rmtree(self.directory / str(step), ignore_errors=True)
                self._manager = self._open()
        return None

    def _check_config(self, step: int, config: dict) -> None:
        found = differences(complete(config), complete(self._config))
        if found:
            raise CheckpointError(
                f'checkpoint {self.directory / str(step)} is of another configuration: '
                f'{describe(found, "there", "here")}; use another --workdir'
            )

    def _check_shapes(self, step: int, state: Any, like: Any) -> None:
        pairs = zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(like), strict=True)
        for (path, leaf), expected in pairs:
            if leaf.shape != expected.shape:
                raise CheckpointError(
                    f'checkpoint {self.directory / str(step)}: {jax.tree_util.keystr(path)} has '
                    f'shape {leaf.shape}, this model needs {expected.shape}; use another --workdir'
                )


def digest(state: Any) -> str:
    """SHA-256 of all arrays of a pytree, with their shapes and dtypes, in order."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        leaf = np.ascontiguousarray(leaf)
        total.update(f'{leaf.shape}{leaf.dtype}'.encode())
        total.update(leaf.tobytes())
    return total.hexdigest()


def flatten(config: dict, prefix: str = '') -> dict[str, Any]:
    """Nested plain data as {'a.b.c': value}; tuples become lists, as JSON has them."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f'{prefix}{name}.')
        else:
            flat[f'{prefix}{name}'] = _lists(value)
    return flat


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lists(x) for name, x in value.items()}
    return [_lists(x) for x in value] if isinstance(value, list | tuple) else value


# Fields that change how a run is computed and not what it computes.
FORM = ('parallel', 'mesh_shape', 'steps_per_call', 'writers')


def differences(a: dict, b: dict) -> dict[str, tuple[Any, Any]]:
    """Fields in which two configurations differ: {'a.b.c': (value in a, value in b)}.

    Those of FORM do not count: a run may go on over other devices, and be watched elsewhere.
    """
    a, b = flatten(a), flatten(b)
    return {
        name: (a.get(name, _MISSING), b.get(name, _MISSING))
        for name in sorted(a.keys() | b.keys())
        if name not in FORM and not _same(a.get(name, _MISSING), b.get(name, _MISSING))
    }


def _same(a: Any, b: Any) -> bool:
    """Equal plain data; NaN is equal to NaN."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b or (a != a and b != b)


def describe(found: dict[str, tuple[Any, Any]], a: str, b: str) -> str:
    """One line for differences(): 'epochs is 30 there and 20 here, ...'."""
    parts = [f'{name} is {x} {a} and {y} {b}' for name, (x, y) in list(found.items())[:4]]
    more = len(found) - len(parts)
    return ', '.join(parts) + (f' and {more} more' if more > 0 else '')
