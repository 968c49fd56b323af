"""A trained quantizer as a tokenizer: fit it to vectors, encode, decode, pack, save, load."""

from vqjax.codec.fitting import fit
from vqjax.codec.packing import code_widths, pack, unpack
from vqjax.codec.tokenizer import Codec

load, save = Codec.load, Codec.save

__all__ = ['Codec', 'code_widths', 'fit', 'load', 'pack', 'save', 'unpack']
