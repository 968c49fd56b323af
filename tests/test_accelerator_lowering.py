"""What benchmarks/accelerator.py runs at full size lowers for CUDA and for TPU on a CPU."""

import contextlib
import dataclasses
import functools
import importlib
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import cuda_device

from vqjax.trainer.config import settings
from vqjax.trainer.data import sets
from vqjax.trainer.run import tasks
from vqjax.trainer.step import evaluation, starts, steps

PLATFORMS = 'cuda', 'tpu'
FOLDER = Path(__file__).parent.parent / 'benchmarks'


@pytest.fixture(scope='module')
def benchmarks():
    """The modules accelerator, accelerator_search and quantizers."""
    sys.path.insert(0, str(FOLDER))
    names = ('accelerator', 'accelerator_search', 'quantizers')
    yield [importlib.import_module(name) for name in names]
    sys.path.remove(str(FOLDER))
    for name in (*names, 'accelerator_train', 'common'):
        sys.modules.pop(name, None)


@pytest.mark.parametrize('platform', PLATFORMS)
@pytest.mark.parametrize('precision', ['highest', 'bfloat16'])
def test_searches(benchmarks, platform, precision):
    search = benchmarks[1]
    n, d, k = search.SHAPE
    dtype = dict(map(reversed, search.CASES))[precision]
    z, codebook = (jax.ShapeDtypeStruct((size, d), dtype) for size in (n, k))
    names = [search.TILES, search.PRODUCT, search.ARGMIN] + [search.FUSED] * (platform == 'cuda')
    for name in names:
        with cuda_device() if platform == 'cuda' else contextlib.nullcontext():
            text = search.lower(name, z, codebook, precision, platform=platform).as_text()
        # Tiles and kernel hold no array of all scores, which the others are made of.
        whole = bool(re.search(rf'tensor<{n}x{k}x', text))
        assert whole == (name in (search.PRODUCT, search.ARGMIN)), name
        assert text.count('custom_call @__gpu$xla.gpu.triton') == (name == search.FUSED)


def test_the_kernel_is_for_cuda_alone(benchmarks):
    search, z = benchmarks[1], jax.ShapeDtypeStruct((64, 16), jnp.float32)
    with pytest.raises(ValueError, match='it is for CUDA'):
        search.lower(search.FUSED, z, z, 'highest', platform='tpu')


def test_training_steps_of_quantizers(benchmarks):
    accelerator, _, peers = benchmarks
    cases, shape = accelerator.step_cases(quick=False)
    z, key = jax.ShapeDtypeStruct(shape, jnp.float32), jax.eval_shape(jax.random.key, 0)
    for quantizer in cases.values():
        held = jax.eval_shape(quantizer.init, key, z)
        traced = jax.jit(peers.training_step(quantizer)).trace(*held, z, z, key)
        for platform in PLATFORMS:
            assert traced.lower(lowering_platforms=(platform,)).out_info


def test_training_of_cifar10(monkeypatch):
    # What is traced depends on it: convolutions of small images are written out on a CPU.
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    config = importlib.import_module('configs.cifar10').get_config().to_dict()
    given = settings.check(config | {'methods': 'vq_ema'})
    images = np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), np.uint8)
    parts = dict.fromkeys(('train', 'validation', 'test'), (images, np.arange(256) % 10))
    dataset = sets.from_arrays('noise', 10, parts)
    given = tasks.fit_quantizers(given, dataset)
    task, own = tasks.make_task(given, 'vq_ema', dataset), given.methods['vq_ema']
    task = dataclasses.replace(task, model=task.model.clone(axis_name=None))
    state = starts.state_shapes(task, (32, 32, 3), own.init_batch_size)

    def batches(*leading):
        return {
            'image': jax.ShapeDtypeStruct((*leading, 32, 32, 3), jnp.float32),
            'label': jax.ShapeDtypeStruct(leading, jnp.int32),
        }

    size = own.steps_per_call, own.batch_size
    stop = {'stop': jax.ShapeDtypeStruct((size[0], 1), bool)}
    mask = {'mask': jax.ShapeDtypeStruct(size[1:], bool)}
    train = jax.jit(functools.partial(steps.train_steps, task), donate_argnums=0)
    test = jax.jit(functools.partial(evaluation.eval_step, task))
    count = jax.ShapeDtypeStruct((), jnp.int32)
    for traced in (
        train.trace(state, batches(*size) | stop, count),
        test.trace(state, batches(*size[1:]) | mask),
    ):
        for platform in PLATFORMS:
            assert 'convolution' in traced.lower(lowering_platforms=(platform,)).as_text()
