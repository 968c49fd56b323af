"""The quantizers, and the only list of them: one line registers one.

Its class is then `vqjax.NAME` and `vqjax.quantizers.NAME`, and its name in a spec that of its file.
"""

from vqjax.quantizers.banked import Banked as Banked
from vqjax.quantizers.binary_mapper import BinaryMapper as BinaryMapper
from vqjax.quantizers.bridged import Bridged as Bridged
from vqjax.quantizers.clamped import Clamped as Clamped
from vqjax.quantizers.conditioned import Conditioned as Conditioned
from vqjax.quantizers.fsp import FSP as FSP
from vqjax.quantizers.fsq import FSQ as FSQ
from vqjax.quantizers.guarded import Guarded as Guarded
from vqjax.quantizers.gumbel import GumbelSoftmax as GumbelSoftmax
from vqjax.quantizers.ibq import IBQ as IBQ
from vqjax.quantizers.latent_quantization import LatentQuantization as LatentQuantization
from vqjax.quantizers.levels import Levels as Levels
from vqjax.quantizers.lfq import LFQ as LFQ
from vqjax.quantizers.multi_scale import MultiScale as MultiScale
from vqjax.quantizers.parallel import Parallel as Parallel
from vqjax.quantizers.product import Product as Product
from vqjax.quantizers.projected import Projected as Projected
from vqjax.quantizers.qinco import QINCo as QINCo
from vqjax.quantizers.random_projection import RandomProjection as RandomProjection
from vqjax.quantizers.residual import Residual as Residual
from vqjax.quantizers.rotated import Rotated as Rotated
from vqjax.quantizers.sim_vq import SimVQ as SimVQ
from vqjax.quantizers.space_filling import SpaceFilling as SpaceFilling
from vqjax.quantizers.spherical_lattice import SphericalLattice as SphericalLattice
from vqjax.quantizers.strided import Strided as Strided
from vqjax.quantizers.turbo_quant import TurboQuant as TurboQuant
from vqjax.quantizers.variable_rate import VariableRate as VariableRate
from vqjax.quantizers.vq import VQ as VQ
from vqjax.quantizers.vq_ema import VQEMA as VQEMA
