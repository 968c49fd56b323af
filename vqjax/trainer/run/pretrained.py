"""The encoder, and where it fits the head, of another run: what `init_from` names."""

import pathlib
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from vqjax import runfiles
from vqjax.runfiles import BATCH_STATS, ENCODER, HEAD
from vqjax.trainer.errors import RunError
from vqjax.trainer.wording import nearest_path

_SEED = '{seed}'


def load(path: str, seed: int, state: Any) -> dict[str, dict[str, Any]]:
    """What the run of that checkpoint gives to this one.

    Args:
      path: folder of a run's checkpoints, WORKDIR/checkpoints/METHOD/seed_0; '{seed}' in it
        stands for the seed of this run.
      state: a TrainState of this run, or its shapes.

    Returns:
      {'params': ..., 'batch_stats': ...}, NumPy arrays under the names of the model's parts. Those
      of the encoder are always there, those of the head where all of them fit.

    Raises:
      RunError: there is no checkpoint, or the encoders differ; in one line, with what differs.
    """
    folder = _folder(path, seed)
    try:
        variables = runfiles.read_variables(folder)
    except ValueError as error:
        raise RunError(f'init_from: {error}') from error
    here, there = (
        {name: tree.get(name, {}) for name in ('params', BATCH_STATS)}
        for tree in ({'params': state.params, **state.stats}, variables)
    )
    wrong = differences(part(here, (ENCODER,)), part(there, (ENCODER,)))
    if wrong:
        more = f', and {len(wrong) - 4} more' if len(wrong) > 4 else ''
        raise RunError(
            f'init_from: the encoder in {folder} is another one: {", ".join(wrong[:4])}{more}; '
            'set encoder, width, features, bottleneck and standardize as in that run'
        )
    fits = not differences(part(here, HEAD), part(there, HEAD))
    return part(there, (ENCODER, *HEAD * fits))


def bottleneck_of(path: str, seed: int) -> str:
    """The bottleneck of the run of that checkpoint, whose vectors its encoder standardises.

    Raises:
      RunError: there is no checkpoint, or it does not say.
    """
    folder = _folder(path, seed)
    try:
        config = runfiles.read_extra(folder)['config']
    except ValueError as error:
        raise RunError(f'init_from: {error}') from error
    return runfiles.of_method(config, folder.parent.name)['bottleneck']


def _folder(path: str, seed: int) -> pathlib.Path:
    folder = pathlib.Path(path.replace(_SEED, str(seed)))
    if not folder.is_dir():
        raise RunError(
            f'init_from: there is no folder {folder}: name the checkpoints of a run, '
            f'WORKDIR/checkpoints/METHOD/seed_0{nearest_path(folder)}'
        )
    return folder


def by_seed(path: str) -> bool:
    """Whether runs of different seeds start from different checkpoints."""
    return _SEED in path


def part(variables: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Of each collection the entries with these names."""
    return {
        collection: {name: tree[name] for name in names if name in tree}
        for collection, tree in variables.items()
    }


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """The arrays that one side lacks or has in another shape, in words."""
    a, b = (
        {
            '/'.join(path): tuple(getattr(x, 'shape', ()))
            for path, x in traverse_util.flatten_dict(dict(tree)).items()
        }
        for tree in (here, there)
    )
    return [
        f'{name} is {b.get(name, "missing")} there and {a.get(name, "missing")} here'
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]
