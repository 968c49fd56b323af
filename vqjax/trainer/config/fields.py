"""The fields that every configuration has: default, type, bounds and meaning of each."""

import copy
import dataclasses
import difflib
import math
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from vqjax import encoders, ops
from vqjax.trainer.errors import RunError
from vqjax.trainer.wording import shorten

# What float32 and an int32 counter of steps can hold.
_MOST_FLOAT, _MOST_INT = 3.4e38, 2**31 - 1
_NAME = re.compile(r'(?!all$)\w[\w.+-]{0,99}')


class Field(NamedTuple):
    """One field of a configuration.

    Fields:
      default, meaning: as `python train.py --help` lists them.
      kind: type, where it is not that of the default; an int may stand for a float.
      least, above, below, most: bounds, the first and the last included.
      choices: of a string.
      shared: the same for all methods of a run; no override may change it.
    """

    default: Any
    meaning: str
    kind: Any = None
    least: float | None = None
    above: float | None = None
    below: float | None = None
    most: float = _MOST_INT
    choices: tuple[str, ...] = ()
    shared: bool = False


def option(default: Any, meaning: str, **rest: Any) -> Any:
    """A field of `Fields`; the arguments are those of `Field`."""
    about = {'field': Field(default, meaning, **rest)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=about)
    return dataclasses.field(default=default, metadata=about)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fields:
    """What a configuration says, but for `methods`: a default and a meaning for each."""

    study: str = option(
        'comparison',
        'what is reported: comparison, remedies, rates, tokenizer, vqvae2, autopsy or behaviour',
        shared=True,
    )
    parallel: str = option(
        'pmap',
        "over devices, or 'jit' over a mesh; the figures are the same",
        choices=('pmap', 'jit'),
        shared=True,
    )
    mesh_shape: Sequence[int] = option(
        (-1, 1),
        "of 'jit': devices for (rows, codes); -1 = all that are left",
        kind=tuple | list,
        shared=True,
    )
    # Data.
    dataset: str = option(
        'digits',
        "'digits'; your own images as 'folder' (a subfolder for each class) or 'npz' (arrays); "
        "'basic_motions', 'japanese_vowels', 'recordings' (your own); or any TFDS set of images or "
        'recordings with one label',
        shared=True,
    )
    data_dir: str = option(
        '',
        'folder of your images or recordings, or .npz file of your images; or folder of prepared '
        "TFDS sets, '' = TFDS's own default",
        shared=True,
    )
    image_size: int = option(
        0,
        'side in pixels to crop and resize the images of a folder or TFDS set to; 0 = as they are',
        least=0,
        shared=True,
    )
    data_digest: str = option(
        '',
        'what the content of your own images has to be, as a run of them writes it to config.json; '
        "'' = anything",
        shared=True,
    )
    window: int = option(
        0,
        'steps of a window of recordings; 0 = the longest one, the others padded',
        least=0,
        shared=True,
    )
    hop: int = option(0, 'steps from one window to the next; 0 = window', least=0, shared=True)
    pad: bool = option(
        False, 'the last window may reach beyond the end of its recording', shared=True
    )
    folds: int = option(
        0,
        'parts that images or recordings are dealt out to, each the test split in turn, a seed '
        'each; 0 = the splits that the set has',
        least=0,
        shared=True,
    )
    fold: int = option(
        -1, 'the one part that is the test split, from 0; -1 = all in turn', least=-1, shared=True
    )
    augment: bool = option(False, 'random flips and crops')
    # Model.
    encoder: str = option(
        'conv',
        "'conv', 'resnet9', 'resnet18' or, for recordings, 'sensor'",
        choices=tuple(encoders.ENCODERS),
    )
    width: int = option(
        32,
        "channels of the first convolution of all but 'resnet18', and the last of the decoder",
        least=1,
    )
    bottleneck: str = option(
        'vector',
        "'vector' (one an image or window), 'grid' (one a place) or 'two_level' grids",
        choices=tuple(encoders.BOTTLENECKS),
    )
    features: int = option(128, 'D, size of the vectors that are quantized', least=1)
    standardize: bool = option(True, "z and the head's input have mean 0 and variance 1")
    statistics_decay: float = option(
        0.9,
        'of the running mean and variance that evaluation standardises by: less follows a network '
        'that learns fast',
        least=0,
        below=1,
    )
    dtype: str = option(
        'float32',
        "of the computation, or 'bfloat16'; parameters stay float32",
        choices=('float32', 'bfloat16'),
    )
    # What is compared.
    quantizers: Mapping[str, Any] = option(
        {'none': None}, 'name -> spec of the quantizer, None for no quantizer', shared=True
    )
    guard: bool = option(False, 're-fit a codebook by k-means when it collapses')
    overrides: Mapping[str, Any] = option({}, 'method -> fields that differ for it', shared=True)
    seeds: int = option(5, 'runs a method: seeds 0 to 4', least=1, most=10_000, shared=True)
    split: str = option(
        'test',
        "what a run is measured on at its end; 'validation' leaves the test split unread",
        choices=('test', 'validation'),
        shared=True,
    )
    # A search of settings before it.
    trials: int = option(
        0,
        'random settings of every method, of which validation chooses; 0 = those given here',
        least=0,
        shared=True,
    )
    trial_seeds: int = option(
        3, 'runs a trial; where folds are in turn, one a fold instead', least=1, shared=True
    )
    space: Mapping[str, Any] = option(
        {},
        "method, or 'every' -> field, or quantizer and its fields -> what trials draw from, "
        "{'uniform': (0, 1)}, {'log_uniform': (1e-3, 1)} or {'choice': (1, 2)}",
        shared=True,
    )
    # The task.
    classification_weight: float = option(1.0, 'of the cross-entropy; 0 = a tokenizer', least=0)
    reconstruction_weight: float = option(
        0.0, "of a decoder's mean squared error; 0 = no decoder", least=0
    )
    quantizer_weight: float | Mapping[str, Any] | ops.Schedule = option(
        1.0, "of the quantizer's loss, or an optax schedule of the epoch", kind=float | dict
    )
    # Stages.
    continuous_epochs: float = option(
        0.0, 'first epochs without a quantizer; codes start after them', least=0
    )
    frozen_epochs: float = option(
        0.0, 'first epochs in which the encoder stands still; -1 = all', least=-1
    )
    init_from: str = option('', 'checkpoints of a run whose encoder this one starts from')
    # Training.
    epochs: int = option(40, 'passes over the training split', least=1)
    steps: int = option(
        0,
        'optimizer steps that a run takes at least, in whole epochs; epochs or this, whichever is '
        'longer',
        least=0,
    )
    batch_size: int = option(96, 'images an optimizer step, over all devices', least=1)
    accumulate: int = option(1, 'micro-batches that make up such a batch', least=1)
    init_batch_size: int = option(1024, 'images that k-means starts the codebooks from', least=1)
    learning_rate: float = option(3e-3, 'peak, of AdamW', above=0)
    quantizer_rate: float = option(
        1.0,
        "factor on the rate of the quantizer's parameters, such as a codebook",
        above=0,
    )
    learning_rate_schedule: str = option(
        'cosine',
        "decay to 0 after the warm-up, or 'constant'",
        choices=('cosine', 'constant'),
    )
    warmup_epochs: float = option(1.0, 'of linear warm-up', least=0)
    weight_decay: float = option(1e-2, 'decoupled, on kernels', least=0)
    label_smoothing: float = option(
        0.0, 'share of the target spread over all classes', least=0, below=1
    )
    clip_norm: float = option(1.0, 'largest norm of the gradient; 0 = no clipping', least=0)
    ema_decay: float = option(
        0.0,
        'of a running average of the parameters for evaluation; 0 = off',
        least=0,
        below=1,
    )
    # Bookkeeping.
    eval_every: float = option(5.0, 'epochs between evaluations on the validation split', above=0)
    checkpoint_every: int = option(
        20,
        'epochs between checkpoints; 0 = only where a run is stopped, and then at its end',
        least=0,
    )
    keep_checkpoints: int = option(2, 'newest ones kept, besides the best', least=1)
    log_every: int = option(10, 'steps between records of the training loss', least=1)
    writers: str = option(
        'tensorboard',
        "where numbers go besides metrics.jsonl: 'tensorboard', 'wandb', both with a comma, or ''",
        shared=True,
    )
    record: bool = option(False, 'every step tells all that vqjax.health reads, in records/')
    steps_per_call: int = option(
        16, 'optimizer steps of one dispatch: more where steps are short', least=1
    )


def _fields() -> dict[str, Field]:
    found = {f.name: f.metadata['field'] for f in dataclasses.fields(Fields)}
    place = list(found).index('overrides')
    named = list(found.items())
    return dict([*named[:place], ('methods', _METHODS), *named[place:]])


# A list of names here, checked configurations have what it stands for under this name.
_METHODS = Field('all', "which of them to run, 'none,vq_ema', or 'all'", shared=True)
FIELDS = _fields()

# Those that may differ between methods: overrides and trials change them.
OWN = tuple(name for name, field in FIELDS.items() if not field.shared)


def config(**changes: Any) -> ml_collections.ConfigDict:
    """A configuration: the defaults with these changes, as the files in configs/ return it.

    Raises:
      RunError: for a field that there is not, with the nearest name.
    """
    _known(changes, FIELDS, 'config field')
    return ml_collections.ConfigDict(complete(changes))


def complete(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes with every field beside them that they leave out, at its default."""
    return {name: copy.deepcopy(field.default) for name, field in FIELDS.items()} | dict(changes)


def check_fields(values: Mapping[str, Any], known: Iterable[str], where: str = '') -> None:
    """Checks names, types and bounds of fields, each for itself.

    Args:
      known: names of FIELDS that may stand here.
      where: what the fields belong to, such as 'overrides.vq_ema.'.

    Raises:
      RunError: naming the field, its value and the remedy.
    """
    _known(values, known, f'field of {where[:-1]}' if where else 'config field')
    for name, value in values.items():
        _check(where + name, value, FIELDS[name])
        _check_plain(where + name, value)


def _known(values: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    known = list(known)
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f'did you mean {near[0]}?' if near else f'there are {", ".join(known)}'
            raise RunError(f'unknown {what} {name!r}: {hint}')


def _check(name: str, value: Any, field: Field) -> None:
    kind = field.kind or type(field.default)
    wanted = int | kind if isinstance(0.5, kind) else kind
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, wanted):
        said = kind if isinstance(kind, types.UnionType) else kind.__name__
        more = ', and hand data to studies.run(config, workdir, dataset=...)' * (name == 'dataset')
        raise RunError(f'{name} is {shorten(value)}: give a value of type {said}{more}')
    if field.choices and value not in field.choices:
        raise RunError(f'{name} is {shorten(value)}: choose one of {", ".join(field.choices)}')
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    _check_number(name, value)
    if field.least is not None and value < field.least:
        raise RunError(f'{name} is {value}: give at least {field.least}')
    if field.above is not None and value <= field.above:
        raise RunError(f'{name} is {value}: give more than {field.above}')
    if field.below is not None and value >= field.below:
        raise RunError(f'{name} is {value}: give less than {field.below}')
    if isinstance(value, int) and value > field.most:
        raise RunError(f'{name} is {_short(value)}: give at most {field.most}')


def _check_number(name: str, value: float) -> None:
    # Of integers first: Python's may be too large for math.isfinite.
    if isinstance(value, int) and abs(value) > _MOST_INT:
        raise RunError(f'{name} is {_short(value)}: give at most {_MOST_INT}')
    if not math.isfinite(value):
        raise RunError(f'{name} is {value}: give a finite number')
    if abs(value) > _MOST_FLOAT:
        raise RunError(f'{name} is {value}: give a number that float32 holds')


def _short(number: int) -> str:
    """An integer, where it is longer than anybody reads by its number of digits."""
    digits = int(number.bit_length() * 0.30103)
    return str(number) if digits < 30 else f'a number of about {digits} digits'


def _check_plain(name: str, value: Any) -> None:
    """Checks that JSON can hold a value: config.json is to say the same when it is read."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise RunError(f'{name} has the key {shorten(key)}: give text')
            _check_plain(f'{name}.{key}', entry)
    elif isinstance(value, list | tuple):
        for place, entry in enumerate(value):
            _check_plain(f'{name}[{place}]', entry)
    elif isinstance(value, str):
        if not value.isprintable():
            raise RunError(f'{name} is {shorten(value)}: give text in one line')
    elif value is None or isinstance(value, bool):
        pass
    elif type(value) in (int, float):
        _check_number(name, value)
    else:
        raise RunError(
            f'{name} is of type {type(value).__name__}: give plain data (numbers, text, lists, '
            'mappings)'
        )


def check_method_names(names: Iterable[str]) -> None:
    """Checks that names of methods can be those of folders, and be told apart in a list.

    Raises:
      RunError: naming the first that cannot.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            said = repr(name) if len(name) < 100 else f'{name[:20]!r}... of {len(name)} characters'
            raise RunError(
                f'quantizers has a method {said}: give a name of at most 100 letters, digits, '
                "'_', '.', '+' and '-' that begins with one of the first three and is not 'all'"
            )


def describe(values: Mapping[str, Any]) -> str:
    """The fields for --help: name, value in this configuration and meaning of each."""
    lines = []
    for name, field in FIELDS.items():
        value = values.get(name, field.default)
        value = '...' if isinstance(value, Mapping) and value else value
        lines.append(f'  --config.{name}={value}\n      {field.meaning}')
    return '\n'.join(lines)


WRITERS = ('tensorboard', 'wandb')


def writer_names(text: str) -> list[str]:
    """The writers that a comma-separated list names; none of ''.

    Raises:
      RunError: for a name that is not known.
    """
    names = [name.strip() for name in text.split(',') if name.strip()]
    for name in names:
        if name not in WRITERS:
            raise RunError(f'writers names {name!r}: there are {", ".join(WRITERS)}')
    return names
