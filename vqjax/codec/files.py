"""One safetensors file for a codec: arrays, and in its metadata everything else as JSON.

Reading parses JSON and raw arrays and executes nothing: the quantizer is rebuilt by `make` from
its spec, and what the arrays must look like follows from that.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from vqjax.atomic import replace_file
from vqjax.codec.images import ImageEncoder
from vqjax.codec.streams import SensorEncoder
from vqjax.codec.structure import check_like, leaves, structure
from vqjax.quantizers import Quantizer, make, stages, to_spec

FORMAT = 'vqjax.codec'
VERSION = 1
# Of a vector, in a file: far more than anyone has, far less than would fill a memory.
MOST_CODES, MOST_FEATURES = 4096, 2**24


def write(
    path: str | os.PathLike[str],
    quantizer: Quantizer,
    params: Any,
    state: Any,
    dim: int,
    info: Mapping[str, Any],
    encoder: ImageEncoder | None,
) -> None:
    """Write the fields of a codec to one file; see `Codec.save`."""
    import vqjax

    arrays = {k: np.asarray(v) for k, v in leaves(params, state).items()}
    about = {
        'spec': to_spec(quantizer),
        'dim': dim,
        'info': _plain(info, 'info'),
        'encoder': None,
        'versions': {'vqjax': vqjax.__version__, 'jax': jax.__version__},
    }
    if encoder is not None:
        about['encoder'], more = encoder.to_plain()
        arrays |= {f'encoder.{name}': value for name, value in more.items()}
    text = json.dumps(about, sort_keys=True)
    metadata = {
        'format': FORMAT,
        'format_version': str(VERSION),
        'about': text,
        'sha256': _digest(text, arrays),
    }
    arrays = {name: np.asarray(value, order='C') for name, value in arrays.items()}
    replace_file(path, _safetensors().numpy.save(arrays, metadata))


def _plain(value: Any, name: str) -> Any:
    """`value` as JSON has it: keys as text, scalars and arrays of NumPy and JAX as Python's."""
    if isinstance(value, Mapping):
        keys = [str(key) for key in value]
        if len(set(keys)) < len(keys) or not all(isinstance(k, str | int | float) for k in value):
            raise ValueError(f'{name} must have keys that differ as text, got {list(value)}')
        items = zip(keys, value.values(), strict=True)
        return {key: _plain(part, f'{name}[{key!r}]') for key, part in items}
    if isinstance(value, list | tuple):
        return [_plain(part, f'{name}[{i}]') for i, part in enumerate(value)]
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return _plain(np.asarray(value).tolist(), name)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(
        f'{name} must be plain data (numbers, text, lists and mappings of them), got {value!r:.100}'
    )


def read(path: str | os.PathLike[str], codec: Callable[..., Any]) -> Any:
    """`codec` of the fields that `write` wrote, in the order of `Codec`'s; see `Codec.load`."""
    path = pathlib.Path(path)
    metadata, arrays = _read(path)
    if metadata.get('format') != FORMAT:
        raise ValueError(
            f'{path} is a safetensors file but no codec of vqjax: it lacks its metadata'
        )
    version = metadata.get('format_version', '')
    if not re.fullmatch('[1-9][0-9]{0,8}', version):
        raise ValueError(
            f'{path} was changed: its format_version is {version[:20]!r}, not a number from 1'
        )
    if int(version) > VERSION:
        raise ValueError(
            f'{path} has format {version}, this vqjax reads up to {VERSION}: install a newer vqjax'
        )
    text = metadata.get('about', '')
    if _digest(text, arrays) != metadata.get('sha256'):
        raise ValueError(f'{path} was changed after it was written: its checksum does not match')
    # A checksum is easily made: what follows may be anything, and is not to be trusted with more
    # memory or time than the file itself takes.
    try:
        return codec(*_fields(json.loads(text), arrays))
    except Exception as error:  # whatever a forged field makes anything raise
        reason = ' '.join(str(error).split())[:400] or type(error).__name__
        raise ValueError(
            f'no codec can be made of {path}: {reason}. Get it again from where it was written, '
            'or write it again with Codec.save'
        ) from error


def _fields(about, arrays):
    """(quantizer, params, state, dim, info, encoder) of a file's metadata and arrays."""
    kinds = {'spec': Mapping, 'dim': int, 'info': Mapping, 'versions': Mapping}
    if not isinstance(about, Mapping):
        raise ValueError(f'its metadata is a {type(about).__name__}, not a mapping')
    for name, kind in kinds.items():
        if not isinstance(about.get(name), kind) or isinstance(about[name], bool):
            need = 'an integer' if kind is int else 'a mapping'
            raise ValueError(f'its {name!r} must be {need}, got {str(about.get(name))[:60]!r}')
    quantizer, dim = make(about['spec']), about['dim']
    if not 1 <= dim <= MOST_FEATURES:
        raise ValueError(f'its dim must be from 1 to {MOST_FEATURES}, got {dim}')
    if stages(quantizer) > MOST_CODES:
        raise ValueError(f'it has {stages(quantizer)} codes a vector; {MOST_CODES} can be read')
    like = structure(quantizer, dim)
    own = {name: value for name, value in arrays.items() if not name.startswith('encoder.')}
    names = leaves(*like)
    if names.keys() != own.keys():
        raise ValueError(
            f'it holds {sorted(own)}, but {quantizer!r} needs {sorted(names)}; it was written '
            f'by vqjax {about["versions"].get("vqjax", "of unknown version")}'
        )
    params, state = jax.tree.unflatten(jax.tree.structure(like), [own[name] for name in names])
    check_like(params, state, like)
    more = {k.removeprefix('encoder.'): v for k, v in arrays.items() if k not in own}
    encoder = None
    if about.get('encoder') is not None:
        kind = about['encoder'].get('kind') if isinstance(about['encoder'], dict) else None
        family = SensorEncoder if kind == 'sensor' else ImageEncoder
        encoder = family.from_plain(about['encoder'], more)
        if encoder.features != dim:
            raise ValueError(f'its encoder gives {encoder.features} features, not {dim}')
    elif more:
        raise ValueError(f'it holds {sorted(more)} of an encoder that it does not describe')
    return quantizer, params, state, dim, about['info'], encoder


def _read(path):
    safetensors = _safetensors()
    if not path.is_file():
        raise FileNotFoundError(f'no file {path}')
    try:
        with safetensors.safe_open(path, framework='numpy') as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # SafetensorError, and of dtypes that NumPy lacks anything
        raise ValueError(
            f'{path} is cut short, damaged or no safetensors file ({error}): copy it again'
        ) from error


def _digest(text, arrays):
    """SHA-256 of the metadata and of every array with its name, dtype and shape."""
    total = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        value = np.asarray(arrays[name], order='C')
        total.update(f'{name} {value.dtype} {value.shape}'.encode())
        total.update(value.tobytes())
    return total.hexdigest()


def _safetensors():
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "codec files need safetensors: install the extra, pip install 'vqjax[codec]'"
        ) from error
    return safetensors
