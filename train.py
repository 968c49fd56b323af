"""Compares quantizers on one classification task: `python train.py --help` lists the flags."""

import logging as python_logging
import os
import pathlib
import sys
import traceback
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from vqjax import studies
from vqjax.trainer import errors
from vqjax.trainer.config import fields
from vqjax.trainer.run import compilation, processes
from vqjax.trainer.wording import nearest_path

CONFIGS = pathlib.Path(__file__).absolute().parent / 'configs'
DEFAULT = CONFIGS / 'digits.py'
QUOTES = '\'"'
WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder for results and checkpoints; default: runs/<config name>.'
)
COMPILATION_CACHE = flags.DEFINE_bool(
    'compilation_cache',
    True,
    'Keep compiled programs for later runs: in ~/.cache/vqjax, or in JAX_COMPILATION_CACHE_DIR.',
)
COORDINATOR = flags.DEFINE_string(
    'coordinator_address', None, 'host:port of process 0; not needed on TPU pods or under Slurm.'
)
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes take part.')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.')


def main(_: list[str]) -> None:
    """Reads the flags and runs the study."""
    quieten()
    config = flags_win(flags.FLAGS.config.to_dict())
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS['config'])).stem
    if COMPILATION_CACHE.value:
        compilation.cache_programs()
    try:
        processes.connect(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        studies.run(config, WORKDIR.value or f'runs/{name}')
    except errors.RunError as error:
        sys.exit(f'error: {error}')
    except errors.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except KeyboardInterrupt:
        print(
            'stopped by SIGINT: what was saved before stays, the same command goes on from there',
            file=sys.stderr,
        )
        sys.exit(130)


def flags_win(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration, with what a flag sets in place of what its file sets for each method.

    A field that every method of the file overrides, such as the tuned learning rates of
    configs/digits.py, has no other meaning than theirs: a flag of that name replaces them all. What
    only some override is what the study varies, and stays; so does a flag of a method's own,
    --config.overrides.vq_ema.learning_rate.
    """
    given = config_flags.get_override_values(flags.FLAGS['config'])
    quantizers, overrides = (config.get(name) for name in ('quantizers', 'overrides'))
    if not (isinstance(quantizers, dict) and isinstance(overrides, dict)):
        return config  # the run says what to do about it
    owned = [overrides.get(method) for method in quantizers]
    if not all(isinstance(own, dict) for own in owned):
        return config
    for field in set(given).intersection(*owned):
        for method in quantizers:
            if f'overrides.{method}.{field}' not in given:
                del overrides[method][field]
    return config


def quieten() -> None:
    """Keeps from stderr what orbax tells of every file, and of every thread that a full disk ends.

    Whatever fails there reaches us as an error, and is told in one line.
    """
    logging.set_verbosity(logging.WARNING)
    # Without the time, the thread and the line of the source: warnings here are for the user.
    logging.get_absl_handler().setFormatter(python_logging.Formatter('%(levelname)s: %(message)s'))
    logging.get_absl_logger().addFilter(lambda record: 'orbax' not in record.pathname)
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        if str(found.exc_value) != 'Event loop is closed':
            before(found)

    sys.unraisablehook = hook


def parse(argv: list[str]) -> list[str]:
    """Reads the flags; a mistake is one line."""
    asked = {'--help', '-h', '-help'} & set(argv[1:])
    try:
        config_flags.DEFINE_config_file('config', str(DEFAULT), 'Configuration file.')
        rest = app.parse_flags_with_usage([arg for arg in argv if arg not in asked])
        config = flags.FLAGS.config
        if config is None or isinstance(config, dict):
            sys.exit('error: --config: get_config() has to return fields.config(...)')
        values = config.to_dict()  # of a file that cannot be opened this says so
    except OSError as error:
        said = ' '.join(str(error).split())
        said = said[said.rfind('[Errno') :] if '[Errno' in said else said.split(': ')[-1]
        sys.exit(f'error: --config: {said}{_nearby(argv)}')
    except Exception as error:  # whatever a configuration file raises
        sys.exit(f'error: {_reason(error)}')
    if rest[1:]:
        sys.exit(f'error: {rest[1]!r} is no flag: fields are set by --config.FIELD=VALUE')
    if asked:
        print(f'{__doc__}\n\nFlags:\n{flags.FLAGS.main_module_help()}\n')
        file = config_flags.get_config_filename(flags.FLAGS['config'])
        print(f'Fields of the configuration, as in {pathlib.Path(file).name}:')
        print(fields.describe(values), flush=True)
        sys.exit(0)
    return rest


def _reason(error: Exception) -> str:
    """What a flag or a configuration file got wrong, and in which line."""
    said = ' '.join(str(error).split())
    if isinstance(error, SyntaxError):
        return f'{error.filename}, line {error.lineno}: {error.msg}'
    if isinstance(error, errors.RunError):
        return f'--config: {said}'
    last = traceback.extract_tb(error.__traceback__)[-1]
    if 'ml_collections' in last.filename:
        said = said.replace('\\n', ' ').replace("\\'", "'")
        return f'no such config field: {said.strip(QUOTES)}'
    return f'--config: {last.filename}, line {last.lineno}: {type(error).__name__}: {said}'


def _nearby(argv: list[str]) -> str:
    """A hint where the file that --config names lies beside this script."""
    for name in argv[1:]:
        file = CONFIGS / pathlib.Path(name.removeprefix('--config=')).name
        if file.suffix == '.py' and file.is_file():
            return f'; names are relative to the current folder: did you mean {file}?'
        if name.endswith('.py') and (near := nearest_path(name.removeprefix('--config='))):
            return near
    return ''


if __name__ == '__main__':
    try:
        app.run(main, flags_parser=parse)
    except BrokenPipeError:  # the reader of stdout has gone, as with `| head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing is left to complain at the end
        sys.exit(0)
