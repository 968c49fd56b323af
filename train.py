"""Compares quantizers on one classification task: `python train.py --help` lists the flags."""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from vqjax import studies
from vqjax.trainer import experiment, processes, settings

DEFAULT = pathlib.Path(__file__).parent / 'configs' / 'digits.py'
WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder for results and checkpoints; default: runs/<config name>.'
)
COORDINATOR = flags.DEFINE_string(
    'coordinator_address', None, 'host:port of process 0; not needed on TPU pods or under Slurm.'
)
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes take part.')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.')


def main(_: list[str]) -> None:
    """Reads the flags and runs the study."""
    logging.set_verbosity(logging.WARNING)  # orbax tells of every file it writes
    config = flags.FLAGS.config.to_dict()
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem
    try:
        processes.connect(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        studies.run(config, WORKDIR.value or f'runs/{name}')
    except experiment.RunError as error:
        sys.exit(f'error: {error}')
    except experiment.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signal)


def parse(argv: list[str]) -> list[str]:
    """Reads the flags; a mistake is one line."""
    try:
        config_flags.DEFINE_config_file('config', str(DEFAULT), 'Configuration file.')
        if {'--help', '-h', '-help'} & set(argv[1:]):
            print(f'{__doc__}\n\nFlags:\n{flags.FLAGS.main_module_help()}\n')
            print(f'Fields of the configuration, as in {DEFAULT.name}:')
            print(settings.describe(DEFAULT))
            sys.exit(0)
        rest = app.parse_flags_with_usage(argv)
        flags.FLAGS.config.to_dict()  # loads the file
        return rest
    except (AttributeError, KeyError) as error:
        sys.exit(f'error: no such config field: {error}')
    except OSError as error:
        sys.exit(f'error: --config: {" ".join(str(error).split())}')


if __name__ == '__main__':
    app.run(main, flags_parser=parse)
