"""The contract catches what it is for: every wrong quantizer here fails the property it breaks.

Mutation testing of the table itself: each class has one fault that a reviewer could miss, and the
property beside it in BITES must see it. `Plain`, derived in the same way, has none and passes all.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wrong_grids
from jax import lax
from support import SHIPPED, on_two_devices

from vqjax import (
    FSQ,
    LFQ,
    VQ,
    VQEMA,
    Clamped,
    GumbelSoftmax,
    Parallel,
    Product,
    Projected,
    Residual,
    ops,
    testing,
)
from vqjax.quantizers.base import blank, hide, look_up

EAGER = ops.Revival(below=0.9, every=1)


class Plain(VQEMA):
    """VQEMA under another name: no fault."""


class Wrong(VQEMA):
    """VQEMA with one fault."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return self.spoil(out, params, state, z, key, mask)

    def spoil(self, out, params, state, z, key, mask):
        return out


# --- decode


class DecodesAnotherCodebook(Wrong):
    """Off in the last bits."""

    def decode(self, params, state, codes):
        return super().decode(params, state, codes) * (1 + 1e-6)


class DecodesOffByOneBit(Wrong):
    """The next float32."""

    def decode(self, params, state, codes):
        vectors = super().decode(params, state, codes)
        return jnp.where(vectors == 0, 0, jnp.nextafter(vectors, jnp.inf))


class DecodesTheNextCode(Wrong):
    """Off by one, in quantize too: the two agree."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        codes = jnp.where(out.codes >= 0, (out.codes + 1) % self.num_codes, -1)
        return self.read(params, state, z, codes, mask, axis_name)


class StraightThroughByArithmetic(Wrong):
    """z + (z_q - z), the usual form: not z_q in its last bits."""

    def spoil(self, out, params, state, z, key, mask):
        return out._replace(z_q=z + lax.stop_gradient(out.z_q - z))


class GivesFloatCodes(Wrong):
    """Codes of another dtype."""

    def spoil(self, out, params, state, z, key, mask):
        return out._replace(codes=out.codes.astype(jnp.float32))


# --- which code


class TakesTheFarthest(Wrong):
    """The largest distance in the place of the smallest."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        codebook = self.read_codebook(params, state)
        distance = jnp.sum((self.prepare(z)[..., None, :] - codebook) ** 2, axis=-1)
        codes = jnp.where(jnp.isfinite(z).all(-1), jnp.argmax(distance, axis=-1), -1)
        return self.read(params, state, z, hide(codes.astype(jnp.int32), mask), mask, axis_name)


class TakesTheSecondOfOneInAHundred(Wrong):
    """An approximate search: the nearest but for 1% of the vectors."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        best = self.candidates(params, state, z, 2)
        rare = jnp.abs(z[..., 0]) > 2.576
        codes = jnp.where(rare, best[..., 1], best[..., 0])
        return self.read(params, state, z, hide(codes, mask), mask, axis_name)


class ForgetsTheNormOfCodes(Wrong):
    """argmax z.c: right for codes of one length only."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        scores = self.prepare(z) @ self.read_codebook(params, state).T
        codes = jnp.where(jnp.isfinite(z).all(-1), jnp.argmax(scores, axis=-1), -1)
        return self.read(params, state, z, hide(codes.astype(jnp.int32), mask), mask, axis_name)


class NeverUsesTheLastCode(Wrong):
    """A range that ends one too early."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        codes = ops.nearest_codes(z, self.read_codebook(params, state)[:-1])
        return self.read(params, state, z, hide(codes, mask), mask, axis_name)


class BreaksTiesUpwards(Wrong):
    """The last of equal codes."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        codes = ops.nearest_codes(z, self.read_codebook(params, state)[::-1])
        codes = jnp.where(codes >= 0, self.num_codes - 1 - codes, -1)
        return self.read(params, state, z, hide(codes, mask), mask, axis_name)


class LooksAtThePosition(Wrong):
    """The first vectors get the first code."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return self.read(params, state, z, out.codes.at[0, :12].set(0), mask, axis_name)


class SearchesInHalfPrecision(Wrong):
    """bfloat16 distances."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        codes = ops.nearest_codes(z, self.read_codebook(params, state), precision='bfloat16')
        return self.read(params, state, z, hide(codes, mask), mask, axis_name)


class SearchesInTheDtypeOfZ(Wrong):
    """bfloat16 distances, of vectors in bfloat16 alone."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        codebook = self.read_codebook(params, state).astype(z.dtype)
        scores = 2 * z @ codebook.T - jnp.sum(codebook**2, axis=-1)
        codes = jnp.where(jnp.isfinite(z).all(-1), jnp.argmax(scores, axis=-1), -1)
        return self.read(params, state, z, hide(codes.astype(jnp.int32), mask), mask, axis_name)


# --- masks, dtypes, form


class ForgetsTheMask(Wrong):
    """Padding is given codes."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        return super().quantize(params, state, z, key, None, axis_name)


class CountsPadding(Wrong):
    """Padding moves the averages."""

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        return super().update(params, state, z, jnp.abs(codes), key, None, axis_name)


class AveragesOverPadding(Wrong):
    """A loss that divides by positions, not by vectors."""

    def spoil(self, out, params, state, z, key, mask):
        share = 1.0 if mask is None else jnp.mean(mask)
        return out._replace(loss=out.loss * share)


class DecaysWithoutVectors(Wrong):
    """A batch of nothing shrinks the averages."""

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        new = super().update(params, state, z, codes, key, mask, axis_name)
        empty = jnp.all(codes < 0)
        return new._replace(sums=jnp.where(empty, self.decay, 1.0) * new.sums)


class ChangesADtype(Wrong):
    """The step becomes a float."""

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        new = super().update(params, state, z, codes, key, mask, axis_name)
        return new._replace(step=new.step + 0.0)


class LosesPrecision(Wrong):
    """A loss in the dtype of the input."""

    def spoil(self, out, params, state, z, key, mask):
        return out._replace(loss=out.loss.astype(z.dtype))


class SwallowsNaN(Wrong):
    """A bad vector enters the averages."""

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        new = super().update(params, state, z, codes, key, mask, axis_name)
        return new._replace(sums=new.sums + 0 * jnp.sum(z))


class RenamesAnArgument(Wrong):
    """`indices` in the place of `codes`."""

    def decode(self, params, state, indices):
        return super().decode(params, state, indices)


class ForgetsAField(Wrong):
    """Its spec makes another quantizer than it is."""

    def __post_init__(self, init):
        super().__post_init__(init)
        object.__setattr__(self, 'decay', self.decay / 2)


# --- gradients


class DetachesTheInput(Wrong):
    """No gradient reaches z."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        return super().quantize(params, state, lax.stop_gradient(z), key, mask, axis_name)


class HasNoStraightThrough(Wrong):
    """z_q detached; the commitment still trains z."""

    def spoil(self, out, params, state, z, key, mask):
        return out._replace(z_q=lax.stop_gradient(out.z_q))


class DoublesTheGradient(Wrong):
    """z_q + z - sg(z): the right value and twice the gradient."""

    def spoil(self, out, params, state, z, key, mask):
        return out._replace(z_q=ops.graft(out.z_q, out.z_q + z))


class HidesTheGradientOfFarVectors(Wrong):
    """A straight-through estimator that is cut off."""

    def spoil(self, out, params, state, z, key, mask):
        far = jnp.abs(z - lax.stop_gradient(out.z_q)) > 1.5
        return out._replace(z_q=jnp.where(far, lax.stop_gradient(out.z_q), out.z_q))


class RotatesTheOtherWay(Wrong):
    """The rotation trick from z_q to z."""

    def spoil(self, out, params, state, z, key, mask):
        q = lax.stop_gradient(out.z_q)
        u, v = ops.normalize(q), ops.normalize(lax.stop_gradient(z))
        w = ops.normalize(u + v)
        dot = lambda a, b: jnp.sum(a * b, axis=-1, keepdims=True)  # noqa: E731
        turned = z - 2 * dot(z, w) * w + 2 * dot(z, u) * v
        gain = jnp.linalg.norm(q, axis=-1, keepdims=True) / jnp.linalg.norm(z, axis=-1)[..., None]
        return out._replace(z_q=ops.graft(q, lax.stop_gradient(gain) * turned))


class TrainsItsAverages(Wrong):
    """A gradient reaches the state."""

    def spoil(self, out, params, state, z, key, mask):
        return out._replace(loss=out.loss + jnp.mean(state.sums**2))


# --- losses


class DetachesTheCommitment(Wrong):
    """A term that trains nothing; the task's gradient hides it."""

    def spoil(self, out, params, state, z, key, mask):
        fixed = lax.stop_gradient(out.losses['commitment'])
        return out._replace(loss=self.commitment * fixed, losses={'commitment': fixed})


class ForgetsTheWeight(Wrong):
    """The loss unweighted."""

    def spoil(self, out, params, state, z, key, mask):
        return out._replace(loss=out.losses['commitment'])


class WeightsTheTerms(Wrong):
    """`losses` weighted already."""

    def spoil(self, out, params, state, z, key, mask):
        return out._replace(losses={'commitment': out.loss})


class SumsOverFeatures(Wrong):
    """A squared error that grows with D."""

    def spoil(self, out, params, state, z, key, mask):
        term = out.losses['commitment'] * z.shape[-1]
        return out._replace(loss=self.commitment * term, losses={'commitment': term})


class WrongVQ(VQ):
    """VQ whose terms are those of the flags."""

    sg_codebook = sg_z = lambda self, x: lax.stop_gradient(x)

    def read(self, params, state, z, codes, mask=None, axis_name=None):
        out = super().read(params, state, z, codes, mask, axis_name)
        x, vectors = self.prepare(z), look_up(self.read_codebook(params, state), codes)
        losses = {
            'commitment': ops.squared_error(x, self.sg_codebook(vectors), mask, axis_name),
            'codebook': ops.squared_error(self.sg_z(x), vectors, mask, axis_name),
        }
        loss = self.commitment * losses['commitment'] + self.codebook * losses['codebook']
        return out._replace(loss=loss, losses=losses)


class CommitmentTrainsTheCodebook(WrongVQ):
    """|z - z_q|^2 without its stop_gradient."""

    def sg_codebook(self, x):
        return x


class CodebookLossReachesZ(WrongVQ):
    """|z - z_q|^2 without its other stop_gradient."""

    def sg_z(self, x):
        return x


class SwapsTheStops(WrongVQ):
    """Each term under the other's name: with equal weights their sum is right."""

    def read(self, params, state, z, codes, mask=None, axis_name=None):
        out = super().read(params, state, z, codes, mask, axis_name)
        a, b = out.losses['commitment'], out.losses['codebook']
        return out._replace(losses={'commitment': b, 'codebook': a})


class TaskTrainsTheCodebook(VQ):
    """Straight-through handed to the codebook too: `sync_nu` where none was asked for."""

    def read(self, params, state, z, codes, mask=None, axis_name=None):
        out = super().read(params, state, z, codes, mask, axis_name)
        vectors = look_up(self.read_codebook(params, state), codes)
        return out._replace(z_q=ops.graft(out.z_q, out.z_q + blank(vectors, codes)))


class DecodesWithoutTheShift(VQ):
    """Revived codes are read where they were: right until the first revival."""

    def decode(self, params, state, codes):
        return look_up(params, codes)


class MaximisesEntropy(LFQ):
    """A sign: both entropies are rewarded."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        twice = 2 * self.entropy * out.losses['per_sample_entropy']
        return out._replace(loss=out.loss - twice)


# --- statistics and replicas


class SumsNothingOverReplicas(Wrong):
    """Every replica goes its own way."""

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        return super().update(params, state, z, codes, key, mask, None)


class AveragesOverReplicas(Wrong):
    """The mean in the place of the sum: replicas agree, and not with one device."""

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        new = super().update(params, state, z, codes, key, mask, axis_name)
        if axis_name is None:
            return new
        share = 1 / lax.axis_size(axis_name)
        counts = self.decay * state.counts + share * (new.counts - self.decay * state.counts)
        return new._replace(counts=counts)


class SumsOnOneDeviceOnly(Wrong):
    """Right under vmap, and on several devices not."""

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        many = jax.device_count() > 1
        new = super().update(params, state, z, codes, key, mask, axis_name)
        return new._replace(counts=new.counts * (0.5 if many and axis_name else 1.0))


class ChoosesItsOwnCodes(Wrong):
    """Update looks for the codes again and ignores those it is given."""

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        codes = self.quantize(params, state, z, None, mask, axis_name).codes
        return super().update(params, state, z, codes, key, mask, axis_name)


class DecaysTwice(Wrong):
    """The old averages' share is g^2."""

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        old = state._replace(counts=self.decay * state.counts, sums=self.decay * state.sums)
        return super().update(params, old, z, codes, key, mask, axis_name)


class ForgetsTheSums(Wrong):
    """Counts move and sums stay, so that codes shrink."""

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        new = super().update(params, state, z, codes, key, mask, axis_name)
        return new._replace(sums=state.sums)


# --- keys and what is kept between calls


class IgnoresTheKey(Wrong):
    """Samples that are never drawn."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        return super().quantize(params, state, z, None, mask, axis_name)


class HasAKeyOfItsOwn(Wrong):
    """Samples where no key was given."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        key = jax.random.key(0) if key is None else key
        return super().quantize(params, state, z, key, mask, axis_name)


class DrawsUnasked(Wrong):
    """A key is no wish to sample: temperature is 0."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        if key is None:
            return out
        drop = jax.random.uniform(key, out.codes.shape) < 0.05
        return self.read(params, state, z, jnp.where(drop, 0, out.codes), mask, axis_name)


class RevivesWithAKeyOfItsOwn(Wrong):
    """Random vectors where the worst served were promised."""

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        key = jax.random.key(0) if key is None else key
        return super().update(params, state, z, codes, key, mask, axis_name)


class RevivesTheSameAlways(Wrong):
    """Update ignores its key."""

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        return super().update(params, state, z, codes, None, mask, axis_name)


class CountsItsCalls(Wrong):
    """A counter in the class: what it does depends on how often it was traced."""

    calls = [0]

    def spoil(self, out, params, state, z, key, mask):
        self.calls[0] += 1
        return out._replace(loss=out.loss * (1 + 1e-7 * self.calls[0]))


class CachesItsCodebook(Wrong):
    """The codebook of the first call, for ever."""

    cache = {}

    def read_codebook(self, params, state):
        return self.cache.setdefault('codebook', super().read_codebook(params, state))


class DrawsFromNumPy(Wrong):
    """A dither that is drawn while tracing."""

    def spoil(self, out, params, state, z, key, mask):
        return out._replace(loss=out.loss + 1e-6 * np.random.rand())


# --- combinators and other kinds


class AddsUpItsGradients(Residual):
    """Stages not detached: dz_q/dz is their number."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return out._replace(z_q=ops.graft(out.z_q, self.num_stages * out.z_q))


class AveragesItsStages(Residual):
    """The mean loss of stages, not their sum."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return out._replace(loss=out.loss / self.num_stages)


class QuantizesZInEveryStage(Residual):
    """Every stage sees z, not what is left of it."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        inner = self.inner.quantize
        codes = jax.vmap(lambda s: inner((), s, z, None, mask, axis_name).codes)(state)
        codes = jnp.moveaxis(codes, 0, -1)
        z_q = ops.graft(self.decode(params, state, codes), out.z_q)
        return out._replace(codes=codes, z_q=z_q)


class SwapsItsGroups(Product):
    """z_q with its halves exchanged, in decode too."""

    def swap(self, vectors):
        return jnp.roll(vectors, vectors.shape[-1] // self.num_groups, axis=-1)

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return out._replace(z_q=self.swap(out.z_q))

    def decode(self, params, state, codes):
        return self.swap(super().decode(params, state, codes))


class SumsItsGroups(Product):
    """The sum of the groups' losses, not their mean."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return out._replace(loss=out.loss * self.num_groups)


class ProjectsBackByTheWayIn(Projected):
    """The transpose of one kernel in the place of the other: the same at the start."""

    def _back(self, params, vectors):
        return vectors @ params.kernel_in.T


class RoundsWithoutABound(FSQ):
    """The gradient 1 in the place of the bound's."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        z_q = blank(ops.straight_through(z.astype(jnp.float32), out.z_q), out.codes)
        return out._replace(z_q=z_q)


class RoundsDown(FSQ):
    """floor in the place of round."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        moved = jnp.arctanh(jnp.clip(jnp.tanh(z) - 0.1, -0.999, 0.999))
        return super().quantize(params, state, moved, key, mask, axis_name)


class ForgetsTheTemperature(GumbelSoftmax):
    """A softmax of temperature 1 whatever the field says."""

    def _temperature(self, state):
        return 1.0


# --- JAX's own tools. Here a method says that it is checked, and is not.


class CountsRowsInPython(Wrong):
    """A batch whose size is a number."""

    def spoil(self, out, params, state, z, key, mask):
        return out._replace(loss=out.loss + 0 * int(z.shape[0]))


class CompilesAtEveryCall(Wrong):
    """A function made anew, which jit takes for another one."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        run = jax.jit(lambda z: VQEMA.quantize(self, params, state, z, key, mask, axis_name))
        return run(z)

    quantize.is_checked = True


class StartsFromOneArrayTwice(VQ):
    """The shift is the codebook itself."""

    def init(self, key, z, mask=None, axis_name=None):
        params, state = VQ.init(self, key, z, mask, axis_name)
        return params, state._replace(shift=params)

    init.is_checked = True


class TakesItsOwnTupleOnly(Wrong):
    """A state restored as a dict is refused."""

    def decode(self, params, state, codes):
        return look_up(state.sums / ops.smoothed(state.counts, self.eps)[:, None], codes)

    decode.is_checked = True


# --- Quantizers of the same vectors, clamps, biases.


class QuantizesWhatIsLeft(Parallel):
    """A residual quantizer: the second branch sees what the first one left of z."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        first = self.inner[0].decode((), state[0], self.cut(out.codes)[0])
        second = super().quantize(params, state, z - first, key, mask, axis_name)
        return out._replace(codes=out.codes.at[..., 1].set(second.codes[..., 1]))


class AveragesItsBranches(Parallel):
    """The mean in the place of the sum, in decode too."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return out._replace(z_q=out.z_q / len(self.inner))

    def decode(self, params, state, codes):
        return super().decode(params, state, codes) / len(self.inner)


class HandsOnOneGradient(Parallel):
    """1, as of a residual quantizer, where every branch has its own."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return out._replace(z_q=ops.graft(out.z_q, out.z_q / len(self.inner)))


class HandsTheClampThrough(Clamped):
    """The gradient of z, not of the clamp."""

    def bounded(self, z):
        return ops.graft(super().bounded(z), z.astype(jnp.float32))


class AddsTheBiasToNothing(Projected):
    """A vector without a code is the bias."""

    def decode(self, params, state, codes):
        vectors = self.inner.decode(params.inner, state, codes)
        return vectors @ params.kernel_out + params.bias_out


class ForgetsTheBias(Projected):
    """In decode and quantize alike: right before it is trained."""

    def _back(self, params, vectors, codes):
        bare = params._replace(bias_out=jnp.zeros_like(params.bias_out))
        return super()._back(bare, vectors, codes)


class SearchesByDistance(VQ):
    """Cosine in name alone: the lengths of codes decide."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        codes = ops.nearest_codes(z, self.read_codebook(params, state))
        return self.read(params, state, z, hide(codes, mask), mask, axis_name)


def ema(kind, **fields):
    return kind(8, decay=0.8, revival=EAGER, **fields)


INNER = VQEMA(8, decay=0.8, revival=EAGER)
# The wrong quantizer, and the property that sees what is wrong with it.
BITES = {
    ema(DecodesAnotherCodebook): 'codes_decode_to_z_q_to_the_bit',
    ema(DecodesOffByOneBit): 'codes_decode_to_z_q_to_the_bit',
    ema(StraightThroughByArithmetic): 'codes_decode_to_z_q_to_the_bit',
    ema(GivesFloatCodes): 'codes_decode_to_z_q_to_the_bit',
    ema(DecodesWithoutTheShift): 'codes_decode_to_z_q_to_the_bit',
    ema(DecodesTheNextCode): 'codes_are_the_nearest',
    ema(TakesTheFarthest): 'codes_are_the_nearest',
    ema(TakesTheSecondOfOneInAHundred): 'codes_are_the_nearest',
    ema(ForgetsTheNormOfCodes): 'codes_are_the_nearest',
    ema(NeverUsesTheLastCode): 'decoded_codes_come_back',
    ema(SearchesInHalfPrecision): 'codes_are_the_nearest',
    ema(SearchesInTheDtypeOfZ): 'half_precision_inputs',
    ema(BreaksTiesUpwards): 'ties_go_to_the_lowest_index',
    ema(LooksAtThePosition): 'order_of_the_batch_does_not_matter',
    ema(ForgetsTheMask): 'masked_vectors_count_nowhere',
    ema(CountsPadding): 'masked_vectors_count_nowhere',
    ema(AveragesOverPadding): 'a_masked_batch_equals_the_batch_without_those_rows',
    ema(DecaysWithoutVectors): 'a_batch_without_any_real_vector_changes_no_statistics',
    ema(ChangesADtype): 'update_keeps_the_state_s_form_and_three_steps_trace_once',
    ema(LosesPrecision): 'half_precision_inputs',
    ema(SwallowsNaN): 'non_finite_vectors_do_not_poison_the_state',
    ema(RenamesAnArgument): 'argument_names_are_the_protocol_s',
    ema(ForgetsAField): 'plain_data_and_back',
    ema(DetachesTheInput): 'gradients_reach_z_and_never_the_state',
    ema(TrainsItsAverages): 'gradients_reach_z_and_never_the_state',
    ema(HasNoStraightThrough): 'the_task_s_gradient_is_the_estimator_s',
    ema(DoublesTheGradient): 'the_task_s_gradient_is_the_estimator_s',
    ema(HidesTheGradientOfFarVectors): 'the_task_s_gradient_is_the_estimator_s',
    ema(RotatesTheOtherWay, gradient=ops.rotate): 'the_task_s_gradient_is_the_estimator_s',
    ema(DetachesTheCommitment): 'each_loss_trains_what_it_claims',
    ema(CommitmentTrainsTheCodebook): 'each_loss_trains_what_it_claims',
    ema(CodebookLossReachesZ): 'each_loss_trains_what_it_claims',
    ema(SwapsTheStops): 'each_loss_trains_what_it_claims',
    ema(TaskTrainsTheCodebook): 'each_loss_trains_what_it_claims',
    ema(ForgetsTheWeight): 'loss_is_the_weighted_sum_of_losses',
    ema(WeightsTheTerms): 'loss_is_the_weighted_sum_of_losses',
    ema(SumsOverFeatures): 'errors_are_those_of_the_codes',
    MaximisesEntropy(8): 'loss_is_the_weighted_sum_of_losses',
    ema(SumsNothingOverReplicas): 'replicas_agree_with_one_device',
    ema(AveragesOverReplicas): 'replicas_agree_with_one_device',
    ema(SumsOnOneDeviceOnly): 'replicas_agree_with_one_device',
    ema(ChoosesItsOwnCodes): 'update_counts_the_codes_it_is_given',
    ema(DecaysTwice): 'update_counts_the_codes_it_is_given',
    ema(ForgetsTheSums): 'update_counts_the_codes_it_is_given',
    ema(IgnoresTheKey, temperature=0.5): 'codes_depend_on_the_key_as_claimed',
    ema(HasAKeyOfItsOwn, temperature=0.5): 'only_a_key_draws',
    ema(DrawsUnasked): 'codes_depend_on_the_key_as_claimed',
    ema(RevivesWithAKeyOfItsOwn): 'only_a_key_draws',
    ema(RevivesTheSameAlways): 'revival_draws_with_the_key',
    ema(CountsRowsInPython): 'programs_take_any_batch_and_come_from_a_file',
    ema(CompilesAtEveryCall): 'calls_outside_jit_are_compiled_once',
    StartsFromOneArrayTwice(8): 'a_start_may_be_donated',
    ema(TakesItsOwnTupleOnly): 'params_and_state_come_back_without_a_target',
    ema(CountsItsCalls): 'the_same_call_gives_the_same_program',
    ema(CachesItsCodebook): 'the_same_call_gives_the_same_program',
    ema(DrawsFromNumPy): 'the_same_call_gives_the_same_program',
    AddsUpItsGradients(INNER, 3): 'the_task_s_gradient_is_the_estimator_s',
    AveragesItsStages(INNER, 3): 'loss_is_the_weighted_sum_of_losses',
    QuantizesZInEveryStage(INNER, 3): 'codes_are_the_nearest',
    SwapsItsGroups(INNER, 2): 'vectors_are_those_of_the_parts',
    SumsItsGroups(INNER, 2): 'loss_is_the_weighted_sum_of_losses',
    ProjectsBackByTheWayIn(INNER, 4): 'vectors_are_those_of_the_parts',
    QuantizesWhatIsLeft((INNER, INNER)): 'codes_are_the_nearest',
    AveragesItsBranches((INNER, INNER)): 'vectors_are_those_of_the_parts',
    HandsOnOneGradient((INNER, INNER)): 'the_task_s_gradient_is_the_estimator_s',
    HandsTheClampThrough(INNER, 1.5): 'the_task_s_gradient_is_the_estimator_s',
    AddsTheBiasToNothing(INNER, 4, bias=True): 'masked_vectors_count_nowhere',
    ForgetsTheBias(INNER, 4, bias=True): 'vectors_are_those_of_the_parts',
    SearchesByDistance(8, metric='cosine', unit_values=False): 'codes_are_the_nearest',
    RoundsWithoutABound((5,) * 8): 'the_task_s_gradient_is_the_estimator_s',
    RoundsDown((5,) * 8): 'codes_are_the_nearest',
    ForgetsTheTemperature(8, temperature=0.5): 'the_task_s_gradient_is_the_estimator_s',
} | wrong_grids.BITES


CHECKS = {check.__name__: check for check in testing.PROPERTIES}


# `make test` has one for each property, `make test-all` all.
SOON = {check: q for q, check in reversed(BITES.items())}.values()


def trial_of(q):
    """Its trial, with params and state of the right quantizer that it is derived from."""
    kind = next(kind for kind in type(q).__mro__ if kind.__module__.startswith('vqjax.'))
    right = object.__new__(kind)
    vars(right).update(vars(q))
    return testing.Trial(q, 8, SHIPPED, on_two_devices, like=right_trial(right))


@functools.cache
def right_trial(q):
    return testing.Trial(q)


@pytest.mark.parametrize(
    'q',
    [
        pytest.param(q, id=type(q).__name__, marks=() if q in SOON else pytest.mark.slow)
        for q in BITES
    ],
)
def test_a_wrong_quantizer_fails(q):
    trial = trial_of(q)
    with pytest.raises(Exception):  # noqa: B017 - a wrong quantizer may raise anything
        CHECKS[BITES[q]](trial)


def test_every_property_is_missed_by_some_wrong_quantizer():
    assert set(BITES.values()) == set(CHECKS)


def test_a_right_one_passes():
    """Derived as the wrong ones are, in this file, which the table knows nothing of."""
    trial = trial_of(ema(Plain))
    for check in testing.PROPERTIES:
        check(trial)


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(AssertionError) as error:
        testing.check_quantizer(ema(HasNoStraightThrough, commitment=0.0))
    first, *rest = str(error.value).splitlines()
    assert first.startswith('HasNoStraightThrough(')
    assert first.endswith(f' lacks 3 of {len(CHECKS)} properties:')
    assert {line.split(':')[0] for line in rest} == {
        'gradients_reach_z_and_never_the_state',
        'the_task_s_gradient_is_the_estimator_s',
        'each_loss_trains_what_it_claims',
    }
