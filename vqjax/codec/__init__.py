"""A trained quantizer as a tokenizer: fit, encode, decode, pack, search, compress, save, load."""

from vqjax.codec.entropy import CodedSize, code_entropy, coded_size, compress, decompress
from vqjax.codec.fitting import fit
from vqjax.codec.packing import code_widths, pack, unpack
from vqjax.codec.retrieval import Neighbours, recall, search, search_packed
from vqjax.codec.semantic_ids import add_suffix, collision_rate, item_table
from vqjax.codec.tokenizer import Codec

load, save = Codec.load, Codec.save

__all__ = [
    'CodedSize',
    'Codec',
    'Neighbours',
    'add_suffix',
    'code_entropy',
    'code_widths',
    'coded_size',
    'collision_rate',
    'compress',
    'decompress',
    'fit',
    'item_table',
    'load',
    'pack',
    'recall',
    'save',
    'search',
    'search_packed',
    'unpack',
]
