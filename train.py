"""Compares quantizers on one classification task: `python train.py --help` lists the flags."""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from vqjax import experiment

DEFAULT = pathlib.Path(__file__).parent / 'configs' / 'digits.py'
WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder for results and checkpoints; default: runs/<config name>.'
)


def main(_: list[str]) -> None:
    """Reads the flags and runs the comparison."""
    logging.set_verbosity(logging.WARNING)  # orbax tells of every file it writes
    try:
        config = flags.FLAGS.config.to_dict()
    except OSError as error:
        sys.exit(f'error: --config: {" ".join(str(error).split())}')
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem
    try:
        experiment.run(config, WORKDIR.value or f'runs/{name}')
    except experiment.RunError as error:
        sys.exit(f'error: {error}')
    except experiment.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signal)


if __name__ == '__main__':
    try:
        config_flags.DEFINE_config_file('config', str(DEFAULT), 'Configuration file.')
    except (AttributeError, KeyError) as error:  # overrides are read here already
        sys.exit(f'error: no such config field: {error}')
    app.run(main)
