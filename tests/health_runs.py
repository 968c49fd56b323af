"""Small runs, sound and faulty on purpose, that `vqjax.health` is tried on; see test_health_runs.

Every run is a training loop as a user would write one: plain JAX, a quantizer by its protocol, and
one call of `health.Recorder` a step.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from support import SHARED

from vqjax import VQEMA, Quantizer, health
from vqjax.studies.autopsy import faults


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run: what of it is compiled in comes first.

    z: what is done to the encoder's output, a name of BENDS.
    cut: what a faulty loop leaves out or gets wrong: 'encoder', 'straight_through', 'update',
      'loss', 'leak', 'eval_updates', 'nan' or ''.
    order: of the examples, 'random' or 'sorted' by class.
    """

    quantizer: Quantizer = VQEMA(64)
    dim: int = 8
    task: str = 'images'
    z: str = 'plain'
    cut: str = ''
    optimizer: str = 'adam'
    data: str = 'digits'
    steps: int = 200
    batch: int = 32
    rate: float = 3e-3
    seed: int = 0
    images: int = 0  # how many to train on, 0 = all
    eval_every: int = 50
    classes: float | None = None
    order: str = 'random'


BENDS = {
    'plain': lambda z: z,
    'offset': lambda z: z + 20.0,
    'standard': lambda z: (z - z.mean((0, 1))) / (z.std((0, 1)) + 1e-3),
    'tiny': lambda z: 1e-3 * (z - z.mean((0, 1))) / (z.std((0, 1)) + 1e-3),
    'huge': lambda z: 100.0 * (z - z.mean((0, 1))) / (z.std((0, 1)) + 1e-3),
    'relu': jax.nn.relu,
    'dead': lambda z: jax.nn.relu(z - 50.0),
}
OPTIMIZERS = {
    'adam': optax.adam,
    'sgd': lambda rate: optax.sgd(rate, momentum=0.9),
    'adamw_strong': lambda rate: optax.adamw(rate, weight_decay=30.0),
}


def patches(images, size):
    """[N, H, W] -> [N, T, size * size]."""
    n, h, w = images.shape
    cut = images.reshape(n, h // size, size, w // size, size).swapaxes(2, 3)
    return cut.reshape(n, -1, size * size)


@functools.cache
def load(name):
    """(train, held out), float32 [N, T, P], and their labels."""
    rng = np.random.default_rng(0)
    if name == 'bytes':
        return jax.tree.map(lambda a: 255 * a if a.ndim == 3 else a, load('digits'))
    if name == 'wrong_labels':
        return jax.tree.map(lambda a: rng.permutation(a) if a.ndim == 1 else a, load('digits'))
    if name == 'padded':  # short sequences of speech filled up with zeros
        (x, y), (x_test, y_test) = load('speech')
        hide = lambda a: a * (np.arange(8) < rng.integers(1, 4, len(a))[:, None])[..., None]  # noqa: E731
        return (hide(x), y), (hide(x_test), y_test)
    if name == 'mnist':
        try:
            import tensorflow_datasets as tfds

            source = tfds.data_source('mnist', data_dir=SHARED / 'tfds', download=False)
        except Exception:  # not on this machine
            return load('digits')
        found = []
        for split, number in (('train', 1500), ('test', 200)):
            given = [source[split][i] for i in range(number)]
            images = np.stack([g['image'][..., 0] for g in given]).astype(np.float32) / 255
            found.append((patches(images, 4), np.array([g['label'] for g in given])))
        return tuple(found)
    if name == 'digits':
        from sklearn.datasets import load_digits

        given = load_digits()
        images, labels = given.images.astype(np.float32) / 16, given.target
        order = rng.permutation(len(images))
        x, y = patches(images, 4)[order], labels[order]
        return (x[300:], y[300:]), (x[:300], y[:300])
    if name == 'speech':  # log-spectra of few phones, used as Zipf's law has it
        centres = rng.normal(size=(40, 20)).astype(np.float32)
        share = 1 / np.arange(1, 41)
        phones = rng.choice(40, (1500, 8), p=share / share.sum())
        x = centres[phones] + 0.2 * rng.normal(size=(1500, 8, 20)).astype(np.float32)
        x, y = x.astype(np.float32), phones[:, 0]
        return (x[300:], y[300:]), (x[:300], y[:300])
    raise ValueError(name)


def dense(key, n, m):
    return {'w': jax.random.normal(key, (n, m)) / np.sqrt(n), 'b': jnp.zeros(m)}


def apply(layers, x):
    for i, layer in enumerate(layers):
        x = x @ layer['w'] + layer['b']
        x = jax.nn.gelu(x) if i + 1 < len(layers) else x
    return x


def make_params(key, num_in, dim, num_out, width=32):
    a, b, c, d = jax.random.split(key, 4)
    return {
        'encoder': [dense(a, num_in, width), dense(b, width, dim)],
        'decoder': [dense(c, dim, width), dense(d, width, num_out)],
    }


def encode(run, params, x):
    z = BENDS[run.z](apply(params['encoder'], x))
    return jax.lax.stop_gradient(z) if run.cut == 'encoder' else z


def task_images(z_q, decoder, x, y):
    return jnp.mean((apply(decoder, z_q) - x) ** 2)


def task_classes(z_q, decoder, x, y):
    logits = apply(decoder, z_q.mean(1))
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def task_leak(z_q, decoder, x, y):
    # A skip connection past the quantizer: the decoder has no need of its codes.
    return jnp.mean((apply(decoder, 0.0 * z_q + x[..., : z_q.shape[-1]]) - x) ** 2)


TASKS = {'images': task_images, 'classes': task_classes, 'leak': task_leak}


class Compiled:
    """The programs of a run; those of equal ones are shared."""

    def __init__(self, run):
        quantizer, task = run.quantizer, TASKS[run.task]

        def loss_fn(params, probe, state, x, y, key):
            z = encode(run, params, x) + probe
            out = quantizer.quantize(params['quantizer'], state, z, key)
            z_q = jax.lax.stop_gradient(out.z_q) if run.cut == 'straight_through' else out.z_q
            loss = task(z_q, params['decoder'], x, y)
            if run.cut != 'loss':
                loss += out.loss
            return loss, (z, out)

        @jax.jit
        def init(key, x):
            key, other = jax.random.split(key)
            num_out = 10 if run.task == 'classes' else x.shape[-1]
            params = make_params(key, x.shape[-1], run.dim, num_out)
            params['quantizer'], state = quantizer.init(other, encode(run, params, x))
            return params, state

        def step(params, state, opt, x, y, key, rate):
            first, second = jax.random.split(key)
            probe = jnp.zeros((*x.shape[:-1], run.dim))
            (loss, (z, out)), (grads, at_z) = jax.value_and_grad(
                loss_fn, argnums=(0, 1), has_aux=True
            )(params, probe, state, x, y, first)
            updates, opt = OPTIMIZERS[run.optimizer](rate).update(grads, opt, params)
            old = params['quantizer']
            params = optax.apply_updates(params, updates)
            if run.cut != 'update':
                state = quantizer.update(old, state, z, out.codes, second)
            return params, state, opt, z, out, loss, at_z

        @jax.jit
        def evaluate(params, state, x):
            z = encode(run, params, x)
            out = quantizer.quantize(params['quantizer'], state, z)
            if run.cut == 'eval_updates':
                state = quantizer.update(params['quantizer'], state, z, out.codes)
            return z, out, state

        self.init, self.step, self.evaluate = init, jax.jit(step), evaluate


@functools.cache
def compiled(run):
    return Compiled(run)


STATIC = ('quantizer', 'dim', 'task', 'z', 'cut', 'optimizer')


def train(run: Run, **options: Any) -> health.Recorder:
    """The recorder of a finished run."""
    programs = compiled(Run(**{name: getattr(run, name) for name in STATIC}))
    (x, y), (x_test, y_test) = load(run.data)
    x, y = (x[: run.images], y[: run.images]) if run.images else (x, y)
    key = jax.random.key(run.seed)
    rng = np.random.default_rng(run.seed)
    params, state = programs.init(key, x[:512])
    opt = OPTIMIZERS[run.optimizer](run.rate).init(params)
    recorder = health.Recorder(
        run.quantizer, params['quantizer'], state, task_loss=TASKS[run.task], model=params,
        num_classes=run.classes, **options,
    )  # fmt: skip
    for step in range(1, run.steps + 1):
        rows = rng.integers(0, len(x), run.batch)
        if run.order == 'sorted':
            rows = np.argsort(y, kind='stable')[(step * run.batch + np.arange(run.batch)) % len(y)]
        if run.cut == 'nan' and step == run.steps // 2:
            params['encoder'][0]['b'] *= np.nan
        params, state, opt, z, out, loss, at_z = programs.step(
            params, state, opt, x[rows], y[rows], jax.random.fold_in(key, step), run.rate
        )
        recorder.step(
            params['quantizer'], state, z, out, loss=loss, model=params, z_gradient=at_z,
            task=(params['decoder'], x[rows], y[rows]),
        )  # fmt: skip
        if step % run.eval_every == 0:
            z, out, state = programs.evaluate(params, state, x_test)
            recorder.evaluate(
                params['quantizer'], state, z, out, task=(params['decoder'], x_test, y_test)
            )
    return recorder


def diagnosis(run: Run) -> list[health.Finding]:
    """What is found in a run. The quantizer is the sound one that a faulty one stands in for."""
    recorder = train(run)
    spec = faults.spec(run.quantizer)
    return health.diagnose(recorder.records(), run.quantizer.num_codes, run.classes, spec)
