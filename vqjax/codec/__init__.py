"""A trained quantizer as a tokenizer: fit it to vectors, encode, decode, pack, save, load."""

from vqjax.codec.fitting import fit
from vqjax.codec.packing import code_widths, pack, unpack
from vqjax.codec.semantic_ids import add_suffix, collision_rate, item_table
from vqjax.codec.tokenizer import Codec

load, save = Codec.load, Codec.save

__all__ = [
    'Codec',
    'add_suffix',
    'code_widths',
    'collision_rate',
    'fit',
    'item_table',
    'load',
    'pack',
    'save',
    'unpack',
]
