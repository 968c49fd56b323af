"""One safetensors file for a codec: arrays, and in its metadata everything else as JSON.

Reading parses JSON and raw arrays and executes nothing: the quantizer is rebuilt by `make` from
its spec, and what the arrays must look like follows from that.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vqjax.codec.images import ImageEncoder
from vqjax.codec.structure import leaves, structure
from vqjax.quantizers import Quantizer, make, to_spec

FORMAT = 'vqjax.codec'
VERSION = 1


def write(
    path: str | os.PathLike,
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
        'info': dict(info),
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
    path = pathlib.Path(path)
    data = _safetensors().numpy.save(
        {name: np.asarray(value, order='C') for name, value in arrays.items()}, metadata
    )
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f'.{path.name}.', delete=False
    ) as file:
        temporary = pathlib.Path(file.name)
        try:
            file.write(data)
            file.close()
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def read(
    path: str | os.PathLike,
) -> tuple[Quantizer, Any, Any, int, dict[str, Any], ImageEncoder | None]:
    """The fields that `write` wrote, in the order of `Codec`'s; see `Codec.load`."""
    path = pathlib.Path(path)
    metadata, arrays = _read(path)
    if metadata.get('format') != FORMAT:
        raise ValueError(
            f'{path} is a safetensors file but no codec of vqjax: it lacks its metadata'
        )
    version = metadata.get('format_version', '')
    if not version.isdigit():
        raise ValueError(f'{path} was changed: its format_version is {version!r}, not a number')
    if int(version) > VERSION:
        raise ValueError(
            f'{path} has format {version}, this vqjax reads up to {VERSION}: install a newer vqjax'
        )
    text = metadata.get('about', '')
    if _digest(text, arrays) != metadata.get('sha256'):
        raise ValueError(f'{path} was changed after it was written: its checksum does not match')
    about = json.loads(text)
    quantizer = make(about['spec'])
    like = structure(quantizer, about['dim'])
    names = leaves(*like)
    own = {name: value for name, value in arrays.items() if not name.startswith('encoder.')}
    if names.keys() != own.keys():
        raise ValueError(
            f'{path} holds {sorted(own)}, but {quantizer!r} needs {sorted(names)}: it was written '
            f'by vqjax {about["versions"]["vqjax"]}'
        )
    params, state = jax.tree.unflatten(jax.tree.structure(like), [own[name] for name in names])
    encoder = None
    if about['encoder'] is not None:
        more = {k.removeprefix('encoder.'): v for k, v in arrays.items() if k not in own}
        encoder = ImageEncoder.from_plain(about['encoder'], more)
    return quantizer, params, state, about['dim'], about['info'], encoder


def _read(path):
    safetensors = _safetensors()
    if not path.is_file():
        raise FileNotFoundError(f'no file {path}')
    try:
        with safetensors.safe_open(path, framework='numpy') as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
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
