"""The contract catches what it is for: every wrong quantizer here fails the property it breaks."""

import jax.numpy as jnp
import pytest
import test_contract as contract
from jax import lax

from vqjax import VQEMA, ops

EAGER = ops.Revival(below=0.9, every=1)


class Wrong(VQEMA):
    """VQEMA with one fault."""


class DecodesAnotherCodebook(Wrong):
    """Off in the last bits."""

    def decode(self, params, state, codes):
        return super().decode(params, state, codes) * (1 + 1e-6)


class StraightThroughByArithmetic(Wrong):
    """z + (z_q - z), the usual form: not z_q in its last bits."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return out._replace(z_q=z + lax.stop_gradient(out.z_q - z))


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

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return out._replace(loss=out.loss * (1.0 if mask is None else jnp.mean(mask)))


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


class DetachesTheInput(Wrong):
    """No gradient reaches z."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        return super().quantize(params, state, lax.stop_gradient(z), key, mask, axis_name)


class TrainsItsAverages(Wrong):
    """A gradient reaches the state."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return out._replace(loss=out.loss + jnp.mean(state.sums**2))


class SumsNothingOverReplicas(Wrong):
    """Every replica goes its own way."""

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        return super().update(params, state, z, codes, key, mask, None)


class LooksAtThePosition(Wrong):
    """The first vectors get the first code."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
        return self.read(params, state, z, out.codes.at[0, :12].set(0), mask, axis_name)


class LosesPrecision(Wrong):
    """A loss in the dtype of the input."""

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        out = super().quantize(params, state, z, key, mask, axis_name)
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


class HasNoSpec(Wrong):
    """Not in the registry."""


BITES = {
    DecodesAnotherCodebook: contract.test_codes_decode_to_z_q_to_the_bit,
    StraightThroughByArithmetic: contract.test_codes_decode_to_z_q_to_the_bit,
    ForgetsTheMask: contract.test_masked_vectors_count_nowhere,
    CountsPadding: contract.test_masked_vectors_count_nowhere,
    AveragesOverPadding: contract.test_a_masked_batch_equals_the_batch_without_those_rows,
    DecaysWithoutVectors: contract.test_a_batch_without_any_real_vector_changes_no_statistics,
    ChangesADtype: contract.test_update_keeps_the_state_s_form_and_three_steps_trace_once,
    DetachesTheInput: contract.test_gradients_reach_z_and_never_the_state,
    TrainsItsAverages: contract.test_gradients_reach_z_and_never_the_state,
    SumsNothingOverReplicas: contract.test_replicas_agree_with_one_device,
    LooksAtThePosition: contract.test_order_of_the_batch_does_not_matter,
    LosesPrecision: contract.test_half_precision_inputs,
    SwallowsNaN: contract.test_non_finite_vectors_do_not_poison_the_state,
    RenamesAnArgument: contract.test_argument_names_are_the_protocol_s,
    HasNoSpec: contract.test_plain_data_and_back,
}


@pytest.mark.parametrize('kind', BITES, ids=lambda kind: kind.__name__)
def test_a_wrong_quantizer_fails(kind):
    with pytest.raises((AssertionError, ValueError)):
        BITES[kind](kind(8, decay=0.8, revival=EAGER))
