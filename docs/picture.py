"""Draws the picture of README and of the home page: a VQ-VAE trained on MNIST.

    python docs/picture.py FOLDER_OF_PREPARED_SETS

Trains for 2,000 steps on the training split (three minutes on two busy CPU cores) and writes
vqvae.png and vqvae.json beside this script: test images, their codes and reconstructions, how
often each code is used, and the figures that the caption names.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

import vqjax
import vqjax.nnx
from vqjax import metrics
from vqjax.studies.reporting import plots
from vqjax.trainer.data import sets

FOLDER = Path(__file__).parent
NUM_CODES, FEATURES, BATCH, STEPS = 128, 16, 64, 2000
SHOWN = 10


class VQVAE(nnx.Module):
    """28 x 28 pixels -> 7 x 7 codes -> 28 x 28 pixels."""

    def __init__(self, quantizer, images, rngs):
        def conv(inputs, outputs, strides=1):
            size = (4, 4) if strides == 2 else (3, 3)
            return nnx.Conv(inputs, outputs, size, strides=strides, rngs=rngs)

        def larger(inputs, outputs):
            return nnx.ConvTranspose(inputs, outputs, (4, 4), strides=(2, 2), rngs=rngs)

        self.encoder = nnx.Sequential(
            conv(1, 16, 2), nnx.relu, conv(16, 32, 2), nnx.relu, conv(32, FEATURES)
        )
        self.decoder = nnx.Sequential(
            conv(FEATURES, 32), nnx.relu, larger(32, 16), nnx.relu, larger(16, 1)
        )
        self.quantize = vqjax.nnx.Quantize(quantizer, self.encoder(images), rngs=rngs)

    def __call__(self, images):
        out = self.quantize(self.encoder(images))
        return self.decoder(out.z_q), out


@nnx.jit
def train_step(model, optimizer, images):
    """One step of Adam on the squared error and the quantizer's loss."""

    def loss_fn(model):
        restored, out = model(images)
        return jnp.mean((restored - images) ** 2) + out.loss

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def load(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Images of the training and of the test split, float32 [n, 28, 28, 1], 0 to 1."""
    splits = sets.load('mnist', folder).splits
    train, test = (splits[name] for name in ('train', 'test'))
    return tuple(split.records.read(split.indices)[0] / np.float32(255) for split in (train, test))


@plots.styled
def draw(images, codes, restored, counts) -> Figure:
    """Test images, their codes, reconstructions, and the use of all codes."""
    figure = plots.new_figure(8, 4.0)
    figure.get_layout_engine().set(h_pad=0.02, hspace=0)
    top, bottom = figure.subfigures(2, 1, height_ratios=[2.45, 1.55])
    axes = top.subplots(3, SHOWN)
    order = np.argsort(np.argsort(-counts))  # colours by use: the background's code is the darkest
    rows = {'original': images, 'codes (7 x 7)': order[codes], 'reconstruction': restored}
    for line, (title, row) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, row, strict=False):
            shades = 'viridis' if title.startswith('codes') else 'gray'
            most = len(counts) - 1 if title.startswith('codes') else 1
            axis.imshow(image.squeeze(), cmap=shades, vmin=0, vmax=most, interpolation='nearest')
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(title, rotation=0, ha='right', va='center', labelpad=6)
    axis = bottom.subplots()
    share = 100 * np.sort(counts)[::-1] / counts.sum()
    axis.bar(np.arange(1, len(share) + 1), share, color=plots.BLUE, width=0.85)
    axis.axhline(100 / len(share), color=plots.DARK, lw=1, ls='--')
    axis.set_yscale('log')
    axis.set_yticks([0.1, 1, 10], ['0.1', '1', '10'])
    axis.text(len(share), 100 / len(share), 'uniform use', ha='right', va='bottom', fontsize=9)
    axis.set(
        xlabel='code, by rank of use',
        ylabel='% of the codes\nof all images',
        xlim=(0, len(share) + 1),
    )
    axis.set_title(
        f'{(counts > 0).sum()} of {len(counts)} codes in use, '
        f'perplexity {float(metrics.perplexity(counts)):.0f}'
    )
    return figure


def main(folder: str) -> None:
    """Trains, and writes picture and figures."""
    train, test = load(folder)
    model = VQVAE(vqjax.VQEMA(NUM_CODES), jnp.asarray(train[:512]), nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)
    drawn = np.random.default_rng(0)
    for step in range(STEPS):
        loss = train_step(model, optimizer, train[drawn.integers(0, len(train), BATCH)])
        if step % 200 == 0:
            print(step, float(loss), flush=True)
    model.eval()
    apply = nnx.jit(lambda model, images: model(images))
    found = [apply(model, part) for part in np.split(test, 10)]
    restored = np.concatenate([part for part, _ in found])
    codes = np.concatenate([out.codes for _, out in found])
    counts = np.bincount(codes.ravel(), minlength=NUM_CODES)
    error = float(np.mean((restored - test) ** 2))
    figures = {
        'command': 'python docs/picture.py FOLDER',
        'training_images': len(train),
        'test_images': len(test),
        'steps': STEPS,
        'num_codes': NUM_CODES,
        'bits_per_image': codes[0].size * model.quantize.quantizer.bits,
        'mean_squared_error': round(error, 5),
        'psnr_db': round(float(-10 * np.log10(error)), 2),
        'codes_in_use': int((counts > 0).sum()),
        'perplexity': round(float(metrics.perplexity(counts)), 1),
        'jax': jax.__version__,
    }
    (FOLDER / 'vqvae.json').write_text(json.dumps(figures, indent=2) + '\n')
    figure = draw(test[:SHOWN], codes[:SHOWN], restored[:SHOWN], counts)
    plots.save(figure, FOLDER / 'vqvae.png')
    print(figures)


if __name__ == '__main__':
    main(sys.argv[1])
