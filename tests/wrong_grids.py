"""Wrong quantizers of grids, each with one fault, and the property that sees it (`BITES`)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax import (
    FSP,
    FSQ,
    VQ,
    VQEMA,
    BinaryMapper,
    Levels,
    MultiScale,
    Rotated,
    Strided,
    ops,
)
from vqjax.quantizers import phi as phis
from vqjax.quantizers.scales import real_vectors

# --- scales


class QuantizesZAtEveryScale(MultiScale):
    """Every scale sees z, not what is left of it."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        real, grids = real_vectors(z, mask), []
        for size in self.sizes:
            means, some = ops.area_means(z, real, size)
            grids.append(self.inner.quantize(params, state, means, None, some, axis_name).codes)
        codes = self.from_grids(grids)
        z_q = jnp.where(real[..., None], self.decode(params, state, codes), 0)
        return out._replace(codes=codes, z_q=ops.graft(z_q, out.z_q))


class CountsZAtEveryScale(MultiScale):
    """Statistics of z's means, not of what the scales before left."""

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        zero = jax.tree.map(jnp.zeros_like, state)  # whose codes take nothing away
        wrong = super().update(params, zero, z, codes, key, mask, axis_name)
        right = super().update(params, state, z, codes, key, mask, axis_name)
        return right._replace(sums=self.inner.decay * state.sums + wrong.sums)


class RepeatsInPlaceOfBicubic(MultiScale):
    """The nearest place, with the same codes in decode: the two agree."""

    def _grown(self, params, k, vectors, grid):
        h, w = self.sizes[k]
        rows = jnp.arange(self.grid[0]) * h // self.grid[0]
        columns = jnp.arange(self.grid[1]) * w // self.grid[1]
        return vectors[..., rows, :, :][..., columns, :]


class GrowsByWayOfTheNextScale(MultiScale):
    """Made as large as the next scale, and then as large as z."""

    def _grown(self, params, k, vectors, grid):
        following = self.sizes[min(k + 1, len(self.sizes) - 1)]
        return ops.bicubic(ops.bicubic(vectors, following), self.grid)


class ReadsColumnsFirst(MultiScale):
    """Places column by column, there and back: the picture is right, and its codes are not."""

    def to_grids(self, codes):
        turned = (x.reshape(*x.shape[:-2], *x.shape[:-3:-1]) for x in super().to_grids(codes))
        return tuple(jnp.swapaxes(x, -2, -1) for x in turned)

    def from_grids(self, grids):
        turned = [jnp.swapaxes(grid, -2, -1).reshape(grid.shape) for grid in grids]
        return super().from_grids(turned)


class CountsEveryCoarsePlace(MultiScale):
    """The mask at its own size alone: a coarse place is real whatever its area is."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        coarse = jnp.arange(self.code_shape[-1]) < self.code_shape[-1] - self.grid[0] * self.grid[1]
        return out._replace(codes=jnp.where(coarse, jnp.maximum(out.codes, 0), out.codes))


class AsksTheCornerOfAnArea(MultiScale):
    """A coarse place is real if the first vector of its area is."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        real, grids = real_vectors(z, mask), list(self.to_grids(out.codes))
        for k, (h, w) in enumerate(self.sizes):
            rows, columns = (
                jnp.arange(n) * full // n for n, full in zip((h, w), self.grid, strict=True)
            )
            grids[k] = jnp.where(real[..., rows, :][..., columns], grids[k], -1)
        return out._replace(codes=self.from_grids(grids))


class MeansOfAllPlaces(MultiScale):
    """Padding is left out by zeros, and still divides the mean."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        real = real_vectors(z, mask)
        clean = jnp.where(real[..., None], z, 0)
        whole = real | jnp.any(real, axis=(-2, -1), keepdims=True)
        out = super().quantize(params, state, clean, key, whole, axis_name)
        grids = list(self.to_grids(out.codes))
        grids[-1] = jnp.where(real, grids[-1], -1)
        return out._replace(
            codes=self.from_grids(grids), z_q=jnp.where(real[..., None], out.z_q, 0)
        )


class DecodesAllScalesAlways(MultiScale):
    """A coarse picture that is the whole one."""

    def decode_scales(self, params, state, codes, num_scales):
        return self.decode(params, state, codes)


class DecodesOneScaleTooMany(MultiScale):
    """The first n + 1."""

    def decode_scales(self, params, state, codes, num_scales):
        more = min(num_scales + 1, len(self.scales))
        return super().decode_scales(params, state, codes, more)


class AddsTheBiasOfAnEmptyScale(MultiScale):
    """phi of a scale that is not there is its bias, not nothing."""

    def _grown(self, params, k, vectors, grid):
        p = phis.at_scale(k, len(self.scales), len(self.phi))
        kernels, biases = phis.mixed(params.kernels, params.biases, self.phi)
        return ops.convolve_enlarged(ops.bicubic, vectors, kernels[p], self.grid) + biases[p]


class LeavesPhiOut(MultiScale):
    """Kernels that nothing reads, in quantize and decode alike: right before they are trained."""

    def _grown(self, params, k, vectors, grid):
        return ops.bicubic(vectors, self.grid)


class LeavesPhiOutOfDecode(MultiScale):
    """As above, where codes are read."""

    def decode(self, params, state, codes):
        kernels, biases = phis.start(len(self.phi), self._axes, params.biases.shape[-1])
        return super().decode(params._replace(kernels=kernels, biases=biases), state, codes)


class TakesTheWrongPhi(MultiScale):
    """The first convolution for every scale."""

    def _grown(self, params, k, vectors, grid):
        return super()._grown(params, 0, vectors, grid)


class PhiIsNotTrained(MultiScale):
    """Its own term detached; what the task hands to it hides that."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        fixed = lax.stop_gradient(out.losses['phi'])
        loss = ops.graft(out.loss, out.loss - jnp.mean(out.losses['phi']))
        return out._replace(loss=loss, losses=out.losses | {'phi': fixed})


class AddsUpTheGradientsOfScales(MultiScale):
    """dz_q/dz is the number of scales."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return out._replace(z_q=ops.graft(out.z_q, len(self.scales) * out.z_q))


class SumsItsScales(MultiScale):
    """The sum of the scales' losses, not their mean."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return out._replace(loss=out.loss * len(self.scales))


class DropsNoScale(MultiScale):
    """`dropout` is a field that nothing reads."""

    def _used(self, key, x, mask, axis_name):
        return None


class DropsScalesWithoutTheirCodes(MultiScale):
    """Codes of the finer scales stay: z_q is coarse, what is decoded is not."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return out._replace(codes=super().quantize(params, state, z, None, mask, axis_name).codes)


class DropsTheCoarseScales(MultiScale):
    """The last n in the place of the first."""

    def _used(self, key, x, mask, axis_name):
        used = super()._used(key, x, mask, axis_name)
        return used if used is None else used[::-1]


class HandsTheCodebookNothing(MultiScale):
    """The sums' errors through the estimator, which has no gradient to a codebook."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        fixed = params._replace(inner=lax.stop_gradient(params.inner))
        return super().quantize(fixed, state, z, key, mask, axis_name)


# --- strides


class TakesTheFirstOfAStride(Strided):
    """One vector in the place of the mean."""

    def _windows(self, z, mask):
        windows, real = super()._windows(z, mask)
        width = self.strides[0]
        return jnp.repeat(windows[..., ::width, :], width, axis=-2), real


class DividesByTheStride(Strided):
    """Padding is left out by zeros, and still divides the mean: its size counts."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        if mask is None:
            return out
        filled = super().quantize(params, state, jnp.where(mask[..., None], z, 0), key)
        return out._replace(codes=jnp.where(out.codes >= 0, filled.codes, -1))


class HasACodeForPadding(Strided):
    """A coarse place is real whatever its stride holds."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        windows = out.codes.reshape(*out.codes.shape[:-1], -1, sum(self.places))
        coarse = jnp.arange(sum(self.places)) < self.places[0]
        codes = jnp.where(coarse, jnp.maximum(windows, 0), windows)
        return out._replace(codes=codes.reshape(out.codes.shape))


class QuantizesZAtEveryStride(Strided):
    """The last stage sees z, not what is left of it."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        last = self.inner[-1].quantize(self.stage(params, -1), self.stage(state, -1), z).codes
        stages = [*self.to_stages(out.codes)[:-1], last]
        return out._replace(codes=self.from_stages(stages))


class CountsZAtEveryStride(Strided):
    """Statistics of z's means, not of what the stages before left."""

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        moved = super().update(params, state, z, codes, key, mask, axis_name)
        last = self.inner[-1].update(
            self.stage(params, -1), state[-1], z, self.to_stages(codes)[-1], key, mask, axis_name
        )
        return (*moved[:-1], last)


# --- levels


class UpdatesFromAnotherLevel(Levels):
    """Each level's statistics see the other's vectors, under its own codes."""

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        return super().update(
            params, state, jnp.roll(z, self.sizes[0], axis=-2), codes, key, mask, axis_name
        )


class ReadsOneLevelForAll(Levels):
    """The second level's codes are looked up in the first one's codebook, decode too."""

    def level(self, tree, i):
        return super().level(tree, 0)


class DetachesTheTop(Levels):
    """No gradient reaches the vectors of the first level."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        top, *others = self.cut(z, -2)
        z = jnp.concatenate([lax.stop_gradient(top), *others], axis=-2)
        return super().quantize(params, state, z, key, mask, axis_name)


class ForgetsTheMaskBelow(Levels):
    """The first level's mask for it alone; padding of the others has codes."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        if mask is not None:
            mask = mask | (jnp.arange(self.grid[0]) >= self.sizes[0])
        return super().quantize(params, state, z, key, mask, axis_name)


class IgnoresTheKeyOfLevels(Levels):
    """Samples that are never drawn."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        return super().quantize(params, state, z, None, mask, axis_name)


class TrainsTheTopAlone(Levels):
    """The second level's terms are told and not trained."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        losses = {
            name: jnp.concatenate([term[:1], lax.stop_gradient(term[1:])])
            for name, term in out.losses.items()
        }
        return out._replace(losses=losses)


# --- grids of scalars, bits


class TurnsTheSameWayBack(Rotated):
    """R in the place of its transpose, in decode too."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return out._replace(z_q=ops.graft(self.decode(params, state, out.codes), out.z_q))

    def decode(self, params, state, codes):
        return self.inner.decode(params, state.inner, codes) @ state.rotation


class HandsTheGradientOn(Rotated):
    """Not turned back: that of the rotated vectors."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return out._replace(z_q=ops.graft(out.z_q, z @ lax.stop_gradient(state.rotation)))


class PutsValuesAtTheEdge(FSP):
    """The lower edge of a bin in the place of its middle."""

    def _values(self, index):
        return super()._values(index) - np.float32(np.sqrt(3)) / np.asarray(self.levels, np.float32)


class ForgetsTheSlopeOfItsBound(FSP):
    """Straight through, although the values are not those of z."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return out._replace(z_q=ops.straight_through(z, out.z_q))


class HandsBitsThrough(BinaryMapper):
    """The gradient of z, not of the mean over all words."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return out._replace(z_q=ops.straight_through(z, out.z_q))


class RoundsItsBits(BinaryMapper):
    """The likeliest word, key or no key."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        return super().quantize(params, state, z, None, mask, axis_name)


EMA = VQEMA(8, decay=0.8, revival=ops.Revival(below=0.9, every=1))
SCALES = (1, (2, 3), (4, 6))
PAIR = (EMA, EMA), (12, 12)
BITES = {
    QuantizesZAtEveryScale(EMA, SCALES): 'codes_are_the_nearest',
    CountsZAtEveryScale(EMA, SCALES): 'update_counts_the_codes_it_is_given',
    RepeatsInPlaceOfBicubic(EMA, SCALES): 'vectors_are_those_of_the_parts',
    GrowsByWayOfTheNextScale(EMA, ((1, 2), (2, 3), (4, 6))): 'vectors_are_those_of_the_parts',
    ReadsColumnsFirst(EMA, SCALES): 'codes_are_the_nearest',
    CountsEveryCoarsePlace(EMA, SCALES): 'masked_vectors_count_nowhere',
    AsksTheCornerOfAnArea(EMA, SCALES): 'masked_vectors_count_nowhere',
    MeansOfAllPlaces(EMA, SCALES): 'codes_are_the_nearest',
    DecodesAllScalesAlways(EMA, SCALES): 'first_codes_decode_to_partial_sums',
    DecodesOneScaleTooMany(EMA, SCALES): 'first_codes_decode_to_partial_sums',
    AddsTheBiasOfAnEmptyScale(EMA, SCALES, (0.5,)): 'first_codes_decode_to_partial_sums',
    LeavesPhiOut(EMA, SCALES, (0.5,)): 'vectors_are_those_of_the_parts',
    LeavesPhiOutOfDecode(EMA, SCALES, (0.5,)): 'codes_decode_to_z_q_to_the_bit',
    TakesTheWrongPhi(EMA, SCALES, (0.5, 0.25)): 'vectors_are_those_of_the_parts',
    PhiIsNotTrained(EMA, SCALES, (0.5,)): 'each_loss_trains_what_it_claims',
    AddsUpTheGradientsOfScales(EMA, SCALES): 'the_task_s_gradient_is_the_estimator_s',
    SumsItsScales(EMA, SCALES): 'loss_is_the_weighted_sum_of_losses',
    DropsNoScale(EMA, SCALES, dropout='sample'): 'codes_depend_on_the_key_as_claimed',
    DropsScalesWithoutTheirCodes(EMA, SCALES, dropout='sample'): 'codes_decode_to_z_q_to_the_bit',
    DropsTheCoarseScales(EMA, SCALES, dropout='sample'): 'masked_vectors_count_nowhere',
    HandsTheCodebookNothing(VQ(8), SCALES, (0.5,)): 'each_loss_trains_what_it_claims',
    TakesTheFirstOfAStride(EMA, (4, 1)): 'codes_are_the_nearest',
    DividesByTheStride(EMA, (4, 1)): 'codes_are_the_nearest',
    HasACodeForPadding(EMA, (4, 1)): 'masked_vectors_count_nowhere',
    QuantizesZAtEveryStride(EMA, (4, 1)): 'codes_are_the_nearest',
    CountsZAtEveryStride(EMA, (4, 1)): 'update_counts_the_codes_it_is_given',
    UpdatesFromAnotherLevel(*PAIR): 'update_counts_the_codes_it_is_given',
    ReadsOneLevelForAll(*PAIR): 'codes_are_the_nearest',
    DetachesTheTop(*PAIR): 'the_task_s_gradient_is_the_estimator_s',
    ForgetsTheMaskBelow(*PAIR): 'masked_vectors_count_nowhere',
    IgnoresTheKeyOfLevels((FSQ((5,) * 8, noise=1.0),), (24,)): 'codes_depend_on_the_key_as_claimed',
    TrainsTheTopAlone((VQ(8), VQ(8)), (12, 12)): 'each_loss_trains_what_it_claims',
    TurnsTheSameWayBack(FSQ((5,) * 8)): 'vectors_are_those_of_the_parts',
    HandsTheGradientOn(FSQ((5,) * 8)): 'the_task_s_gradient_is_the_estimator_s',
    PutsValuesAtTheEdge((5,) * 8, perturbed=0.0): 'codes_are_the_nearest',
    ForgetsTheSlopeOfItsBound((5,) * 8, perturbed=0.0): 'the_task_s_gradient_is_the_estimator_s',
    HandsBitsThrough(4): 'the_task_s_gradient_is_the_estimator_s',
    RoundsItsBits(4): 'codes_depend_on_the_key_as_claimed',
}
