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
    logging.set_verbosity(logging.WARNING)  # orbax tells every file it writes
    config_file = pathlib.Path(config_flags.get_config_filename(flags.FLAGS['config']))
    workdir = WORKDIR.value or f'runs/{config_file.stem}'
    experiment.run(flags.FLAGS.config.to_dict(), workdir)


if __name__ == '__main__':
    try:
        config_flags.DEFINE_config_file('config', str(DEFAULT), 'Configuration file.')
        app.run(main)
    except experiment.RunError as error:
        sys.exit(f'error: {error}')
    except experiment.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except (AttributeError, OSError) as error:
        sys.exit(f'error: {error}')
