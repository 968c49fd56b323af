"""Entropy coding: codes as a self-contained string of bytes, close to their entropy in size.

The range coder is that of `constriction` (extra `entropy`). The probability model is one of

- 'static': the codes' own histogram, which is stored with them.
- 'adaptive': the histogram of the codes so far, so nothing is stored.
- logits of a model, an array or a function of the codes so far: a better model makes it smaller.
- 'fixed': no entropy coding but `pack`, which needs no library.

Every stage has its own histogram, as every codebook has. Codes of -1 (masked vectors and dropped
stages) are kept: whether a code is there is coded first, given whether the one before it is.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from vqjax.codec import packing
from vqjax.quantizers import Quantizer

MAGIC = b'vqjaxcod'
VERSION = 1
MODELS = ('fixed', 'static', 'adaptive')
# Symbols of one histogram: the coder's probabilities are multiples of 2^-24.
MOST_SYMBOLS = 2**20
# Probabilities of logits are rounded to so many steps, so that the last bit of an exponential,
# which differs between machines, rarely matters.
_STEPS = 2**22
# Probabilities held at once for logits, in numbers.
_AT_ONCE = 2**22

# Logits [..., *code_shape, K], or a function of the codes so far int32 [t, *code_shape] that gives
# those of the next, [*code_shape, K].
Logits = np.ndarray | Callable[[np.ndarray], Any]


class CodedSize(NamedTuple):
    """What codes take as bytes.

    vectors: how many vectors (or grids) there are.
    coded_bytes: the whole of `compress`, its header included.
    fixed_bytes: the packed stream of `pack`.
    entropy_bits: bits a vector that the model of the codes gives, see `code_entropy`.
    """

    vectors: int
    coded_bytes: int
    fixed_bytes: int
    entropy_bits: float

    @property
    def coded_bits(self) -> float:
        """Bits a vector of the coded bytes."""
        return 8 * self.coded_bytes / max(self.vectors, 1)

    @property
    def fixed_bits(self) -> float:
        """Bits a vector of the packed stream."""
        return 8 * self.fixed_bytes / max(self.vectors, 1)

    def __str__(self) -> str:
        return (
            f'{self.coded_bytes:,} bytes for {self.vectors:,} vectors, {self.coded_bits:.3f} bits '
            f'each; fixed width {self.fixed_bytes:,} bytes, {self.fixed_bits:.3f} bits each; '
            f'entropy {self.entropy_bits:.3f} bits each'
        )


def compress(quantizer: Quantizer, codes: np.ndarray, model: str | Logits = 'static') -> bytes:
    """Codes as bytes from which `decompress` makes them again.

    Args:
      quantizer: what made the codes.
      codes: integers [..., *code_shape], -1 allowed.
      model: 'fixed', 'static' or 'adaptive'; or logits float [..., *code_shape, K] (axes of size 1,
        or left out in front, hold for all), K the largest number of codes of any place; or a
        function that takes the codes so far, int32 [t, *code_shape], and gives the logits of the
        next, [*code_shape, K].

    Raises:
      ValueError: for codes of another shape, type or range, more than 2^20 symbols in a histogram,
        an unknown model, or logits of another shape or not finite.
      ImportError: without constriction (extra `entropy`), but for 'fixed'.
    """
    return compress_and_tell(quantizer, codes, model)[0]


def compress_and_tell(
    quantizer: Quantizer, codes: np.ndarray, model: str | Logits = 'static'
) -> tuple[bytes, CodedSize]:
    """What `compress` and `coded_size` give, made together."""
    codes = packing.check_codes(quantizer, codes)
    layout = _Layout.of(quantizer)
    lead = codes.shape[: codes.ndim - len(quantizer.code_shape)]
    rows = codes.reshape(math.prod(lead), layout.columns)
    masked = bool((rows < 0).any())
    kind = _kind(model)
    coder = _Counter() if kind == 'fixed' else _Writer(kind)
    _walk(coder, layout, rows, masked, _probabilities(model, quantizer, lead))
    if isinstance(coder, _Writer):
        payload = coder.to_bytes()
    else:
        payload = packing.pack(quantizer, codes, masked).tobytes()
    header = {
        'model': kind,
        'shape': list(lead),
        'code_sizes': layout.told_sizes(),
        'masked': masked,
        'codes_crc': zlib.crc32(rows.astype('<i4').tobytes()),
    }
    text = json.dumps(header, separators=(',', ':')).encode()
    whole = MAGIC + struct.pack('<BI', VERSION, len(text)) + text + payload
    whole += struct.pack('<I', zlib.crc32(whole))
    fixed = -(-len(rows) * int(packing.code_widths(quantizer, masked).sum()) // 8)
    entropy = coder.bits() / len(rows) if len(rows) else float('nan')
    return whole, CodedSize(len(rows), len(whole), fixed, entropy)


def decompress(quantizer: Quantizer, data: bytes, logits: Logits | None = None) -> np.ndarray:
    """The codes int32 [..., *code_shape] that `compress` made `data` of.

    Args:
      quantizer: what made the codes.
      data: what `compress` gave.
      logits: those that it was given, to the bit, if it was given any.

    Raises:
      ValueError: for bytes that are cut short, changed or of another kind, codes of a quantizer
        with other numbers of codes, and logits that are missing or others than those written with.
      ImportError: without constriction (extra `entropy`), but for the model 'fixed'.
    """
    header, payload = _open(bytes(data))
    layout = _Layout.of(quantizer)
    kind, lead = header['model'], tuple(header['shape'])
    if header['code_sizes'] != layout.told_sizes():
        raise ValueError(
            f'the coded codes are of {header["code_sizes"]} codes a place, {quantizer!r} has '
            f'{layout.told_sizes()}: give the quantizer that they were made with'
        )
    if (kind == 'logits') != (logits is not None):
        need = 'needs the logits that they were' if kind == 'logits' else 'takes no logits, none'
        raise ValueError(f'decoding codes of the model {kind!r} {need} written with')
    try:
        if kind == 'fixed':
            packed = np.frombuffer(payload, np.uint8)
            rows = packing.unpack(quantizer, packed, lead, header['masked'])
        else:
            rows = np.full((math.prod(lead), layout.columns), -1, np.int32)
            reader = _Reader(kind, payload)
            _walk(reader, layout, rows, header['masked'], _probabilities(logits, quantizer, lead))
        right = zlib.crc32(rows.astype('<i4').tobytes()) == header['codes_crc']
    except _WrongLogits:
        raise
    except (AssertionError, ValueError, IndexError, MemoryError, zlib.error):
        right = False  # the coder met what no writer leaves
    if not right:
        raise ValueError(
            'logits must be those that the codes were written with, to the bit: compute them in '
            'the same way and on the same kind of machine'
            if kind == 'logits'
            else 'the coded codes are damaged: they are not those whose checksum was written'
        )
    return packing.check_codes(quantizer, rows.reshape(*lead, *quantizer.code_shape))


def code_entropy(quantizer: Quantizer, codes: np.ndarray, logits: Logits | None = None) -> float:
    """Bits a vector of codes [..., *code_shape]: what an ideal coder of them would take.

    Without logits, the empirical entropy: of the histogram of each stage, summed, which is log2 of
    the perplexity of a stage; with codes of -1, also that of whether a code is there, given whether
    the one before it is. With logits, their cross-entropy in the place of the histograms'. It is
    NaN for no codes.

    Raises:
      ValueError: as `compress`.
    """
    codes = packing.check_codes(quantizer, codes)
    layout = _Layout.of(quantizer)
    lead = codes.shape[: codes.ndim - len(quantizer.code_shape)]
    rows = codes.reshape(math.prod(lead), layout.columns)
    counter = _Counter()
    probabilities = None if logits is None else _probabilities(logits, quantizer, lead)
    _walk(counter, layout, rows, bool((rows < 0).any()), probabilities)
    return counter.bits() / len(rows) if len(rows) else float('nan')


def coded_size(
    quantizer: Quantizer, codes: np.ndarray, model: str | Logits = 'static'
) -> CodedSize:
    """The bytes that codes [..., *code_shape] take, fixed-width and coded, and their entropy.

    Arguments and errors are those of `compress`.
    """
    return compress_and_tell(quantizer, codes, model)[1]


class _WrongLogits(ValueError):
    """Of logits of another shape, which says more than that codes do not come back."""


# --- The order in which symbols come, the same for all that walk it


class _Layout(NamedTuple):
    """Columns of a vector's codes: the histogram of each, and its number of codes."""

    groups: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, quantizer):
        sizes = packing.code_numbers(quantizer).reshape(-1)
        places = np.arange(len(sizes), dtype=np.int32).reshape(1, *quantizer.code_shape)
        groups = np.zeros(len(sizes), np.int32)
        rows = np.asarray(quantizer.by_codebook(places))
        for group, row in enumerate(rows.reshape(-1, rows.shape[-1])):
            groups[row[row >= 0]] = group
        return cls(groups, sizes)

    @property
    def columns(self):
        return len(self.sizes)

    def told_sizes(self):
        """The number of codes of every column, or the one number that all have."""
        return [int(x) for x in (self.sizes if len(set(self.sizes)) > 1 else self.sizes[:1])]


def _walk(coder, layout, rows, masked, probabilities):
    """Codes every symbol of rows int32 [N, columns], or fills rows in where the coder reads."""
    kept = np.ones(rows.shape, bool)
    if masked:
        before = np.ones(len(rows), bool)
        for column, group in enumerate(layout.groups):
            there = (rows[:, column] >= 0).astype(np.int32)
            for context in (True, False):
                name = f'{group} {"after" if context else "dropped"}'
                at = np.flatnonzero(before == context)
                there[at] = coder.symbols(name, 2, there[at])
            kept[:, column] = before = there > 0
    if probabilities is None:
        for column, group in enumerate(layout.groups):
            at = np.flatnonzero(kept[:, column])
            size = int(layout.sizes[layout.groups == group].max())
            rows[at, column] = coder.symbols(f'{group}', size, rows[at, column])
        return
    # Vector by vector, since a function of the codes so far sees whole vectors.
    for first, columns in probabilities(rows):
        for column, table in enumerate(columns(layout.sizes)):
            at = np.flatnonzero(kept[first : first + len(table), column])
            rows[first + at, column] = coder.rows(table[at], rows[first + at, column])


def _kind(model):
    if isinstance(model, str):
        if model not in MODELS:
            raise ValueError(f'model must be one of {MODELS}, or logits, got {model!r}')
        return model
    return 'logits'


def _probabilities(
    model: Any, quantizer: Quantizer, lead: tuple[int, ...]
) -> Callable[[np.ndarray], Iterator[Any]] | None:
    """rows -> (first row, tables) of parts of them; None for a model without logits."""
    if isinstance(model, str) or model is None:
        return None
    shape = quantizer.code_shape
    most = int(packing.code_numbers(quantizer).max())
    one = (*shape, most)

    def parts(rows):
        if callable(model):
            for first in range(len(rows)):
                given = np.asarray(model(rows[:first].reshape(first, *shape).copy()), np.float64)
                yield first, _tables(_checked_logits(given, one)[None], len(rows[0]))
            return
        whole = _checked_logits(np.asarray(model), (*lead, *one), broadcast=True)
        number = max(_AT_ONCE // math.prod(one), 1)
        for first in range(0, len(rows), number):
            # Indexed and not reshaped: logits that hold for all rows are not repeated in memory.
            at = np.unravel_index(np.arange(first, min(first + number, len(rows))), lead or (1,))
            yield first, _tables(whole[at] if lead else whole[None], len(rows[0]))

    return parts


def _checked_logits(logits, shape, broadcast=False):
    try:
        if logits.dtype.kind != 'f' and logits.dtype.name != 'bfloat16':
            raise ValueError
        whole = np.broadcast_to(logits, shape) if broadcast else logits
        if whole.shape != shape:
            raise ValueError
    except ValueError:
        need = 'a shape that broadcasts to ' if broadcast else 'shape '
        raise _WrongLogits(
            f'logits must be floating point of {need}{shape}, got {logits.dtype} of shape '
            f'{logits.shape}'
        ) from None
    if np.isnan(logits).any() or (logits == np.inf).any():
        raise _WrongLogits(
            'logits must not hold NaN or infinity (minus infinity is a probability 0)'
        )
    return whole


def _tables(logits, columns):
    """Of every column its probabilities [n, K], as the whole numbers that both sides compute."""

    def tables(sizes):
        by_column = logits.reshape(len(logits), columns, -1)
        for column, size in enumerate(sizes):
            own = by_column[:, column, :size].astype(np.float64)
            top = own.max(-1, keepdims=True)
            share = np.exp(own - np.where(np.isfinite(top), top, 0.0))
            total = np.maximum(share.sum(-1, keepdims=True), 1e-300)
            yield np.floor(share / total * _STEPS) + 1.0

    return tables


# --- What is done with a symbol: counted, written or read


class _Counter:
    """Counts symbols, and the bits that probabilities give them."""

    def __init__(self):
        self.counts, self.told = {}, 0.0

    def symbols(self, name, size, symbols):
        del size
        found = self.counts.setdefault(name, {})
        for symbol, count in zip(*np.unique(symbols, return_counts=True), strict=True):
            found[int(symbol)] = found.get(int(symbol), 0) + int(count)
        return symbols

    def rows(self, table, symbols):
        chosen = np.take_along_axis(table, symbols[:, None].astype(np.int64), 1)[:, 0]
        self.told -= float(np.log2(chosen / table.sum(-1)).sum())
        return symbols

    def bits(self):
        total = self.told
        for found in self.counts.values():
            counts = np.array(list(found.values()), np.float64)
            total -= float((counts * np.log2(counts / counts.sum())).sum()) if len(counts) else 0.0
        return total


class _Writer(_Counter):
    """Writes symbols. A histogram has to be known before the first of them, so it waits."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.waiting = kind, []
        self.models: dict[str, _Adaptive] = {}
        self.encoder = _stream().queue.RangeEncoder()

    def symbols(self, name, size, symbols):
        super().symbols(name, size, symbols)
        if self.kind == 'static':
            self.waiting.append((name, symbols))
        else:
            self.models.setdefault(name, _Adaptive(size)).write(self.encoder, symbols)
        return symbols

    def rows(self, table, symbols):
        if len(symbols) and table.shape[-1] > 1:  # one symbol needs no bits
            family = _stream().model.Categorical(perfect=False)
            self.encoder.encode(symbols.astype(np.int32), family, table)
        return super().rows(table, symbols)

    def to_bytes(self):
        histograms = b''
        if self.kind == 'static':
            known = {name: _Histogram(found) for name, found in self.counts.items()}
            for name, symbols in self.waiting:
                known[name].write(self.encoder, symbols)
            numbers = [model.to_numbers() for model in known.values()]
            histograms = _squeezed(np.concatenate(numbers))
        words = self.encoder.get_compressed().astype('<u4').tobytes()
        return struct.pack('<I', len(histograms)) + histograms + words


class _Reader:
    """Reads the symbols that `_Writer` wrote."""

    def __init__(self, kind, payload):
        if len(payload) < 4:
            raise ValueError('they end before their histograms')
        (length,) = struct.unpack_from('<I', payload)
        words = payload[4 + length :]
        if len(words) % 4 or 4 + length > len(payload):
            raise ValueError('they do not end with a whole word')
        self.kind = kind
        self.models: dict[str, _Adaptive | _Histogram] = {}
        self.numbers = _stretched(payload[4 : 4 + length])
        self.decoder = _stream().queue.RangeDecoder(np.frombuffer(words, '<u4').astype(np.uint32))

    def symbols(self, name, size, symbols):
        if name not in self.models:
            if self.kind == 'static':
                self.models[name], self.numbers = _Histogram.of(self.numbers, size)
            else:
                self.models[name] = _Adaptive(size)
        return self.models[name].read(self.decoder, len(symbols))

    def rows(self, table, symbols):
        if not len(symbols) or table.shape[-1] == 1:
            return np.zeros_like(symbols)
        return self.decoder.decode(_stream().model.Categorical(perfect=False), table)


class _Histogram:
    """The histogram of symbols that are all known: {symbol: count}."""

    def __init__(self, counts: Mapping[int, int]):
        pairs = sorted(counts.items())
        self.used = np.array([symbol for symbol, _ in pairs], np.int32)
        self.counts = np.array([count for _, count in pairs], np.float64)
        _check_symbols(len(pairs))
        # One symbol needs no bits, and the coder takes no model of one.
        self.table = None
        if len(pairs) > 1:
            self.table = _stream().model.Categorical(self.counts, perfect=False)

    def to_numbers(self):
        """uint32: how many symbols, the gaps between them, their counts."""
        gaps = np.diff(self.used, prepend=0)
        return np.concatenate([[len(self.used)], gaps, self.counts]).astype(np.uint32)

    @classmethod
    def of(cls, numbers, size):
        """(the histogram that `numbers` begin with, the rest of them)."""
        if not len(numbers) or len(numbers) < 1 + 2 * int(numbers[0]):
            raise ValueError('a histogram is missing')
        number = int(numbers[0])
        used = np.cumsum(numbers[1 : 1 + number].astype(np.int64))
        counts = numbers[1 + number : 1 + 2 * number]
        if (used >= size).any() or (np.diff(used) < 1).any() or (counts < 1).any():
            raise ValueError('a histogram is of other codes')
        found = cls(dict(zip(used.tolist(), counts.tolist(), strict=True)))
        return found, numbers[1 + 2 * number :]

    def write(self, encoder, symbols):
        if self.table is not None and len(symbols):
            places = np.searchsorted(self.used, symbols).astype(np.int32)
            encoder.encode(places, self.table)

    def read(self, decoder, number):
        if not number:
            return np.zeros(0, np.int32)
        if self.table is None:
            return np.full(number, self.used[0], np.int32)
        return self.used[decoder.decode(self.table, number)]


class _Adaptive:
    """Counts of the symbols so far, each with 1/2 more (Krichevsky and Trofimov 1981).

    The table is made anew after every eighth of what it has seen, not after every symbol: some
    hundred times for a million symbols.
    """

    def __init__(self, size):
        _check_symbols(size)
        self.counts, self.seen, self.fresh = np.full(size, 0.5), 0, 0
        self.table = None

    def write(self, encoder, symbols):
        for part in self._parts(len(symbols)):
            if self.table is not None:
                encoder.encode(symbols[part].astype(np.int32), self.table)
            np.add.at(self.counts, symbols[part], 1.0)

    def read(self, decoder, number):
        found = np.zeros(number, np.int32)
        for part in self._parts(number):
            if self.table is not None:
                found[part] = decoder.decode(self.table, part.stop - part.start)
            np.add.at(self.counts, found[part], 1.0)
        return found

    def _parts(self, number):
        """Slices of `number` symbols, each as long as the table that is then there serves."""
        first = 0
        while first < number:
            if not self.fresh:
                if len(self.counts) > 1:  # one symbol needs no bits
                    self.table = _stream().model.Categorical(self.counts, perfect=False)
                self.fresh = max(self.seen // 8, len(self.counts) // 8, 16)
            part = slice(first, min(first + self.fresh, number))
            self.seen += part.stop - first
            self.fresh -= part.stop - first
            first = part.stop
            yield part


def _check_symbols(number):
    if number > MOST_SYMBOLS:
        raise ValueError(
            f'a histogram of {number:,} codes is more than the {MOST_SYMBOLS:,} that can be coded: '
            "use model='fixed'"
        )


def _squeezed(numbers):
    # Bytes of equal weight together: those of high weight are zeros, which shrink to nothing.
    return zlib.compress(numbers.astype('<u4').view(np.uint8).reshape(-1, 4).T.tobytes(), 9)


def _stretched(data):
    if not data:
        return np.zeros(0, np.uint32)
    planes = np.frombuffer(zlib.decompress(data), np.uint8)
    if len(planes) % 4:
        raise ValueError('a histogram is cut')
    return np.ascontiguousarray(planes.reshape(4, -1).T).view('<u4').reshape(-1)


# --- The container


def _open(data):
    """(header, payload) of what `compress` wrote."""
    start = len(MAGIC) + 5
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError('these are no codes that vqjax wrote: they do not begin as such do')
    if len(data) > len(MAGIC) and data[len(MAGIC)] > VERSION:
        raise ValueError(
            f'the coded codes have format {data[len(MAGIC)]}, this vqjax reads up to {VERSION}: '
            'install a newer vqjax'
        )
    if len(data) < start + 4 or zlib.crc32(data[:-4]) != struct.unpack('<I', data[-4:])[0]:
        raise ValueError(
            'the coded codes are cut short or were changed: their checksum does not match'
        )
    (length,) = struct.unpack_from('<I', data, len(MAGIC) + 1)
    try:
        header = json.loads(data[start : start + length])
        _check_header(header)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f'the coded codes are damaged: their header is wrong ({error})') from error
    return header, data[start + length : -4]


def _check_header(header):
    kinds = {'model': str, 'shape': list, 'code_sizes': list, 'masked': bool, 'codes_crc': int}
    for name, kind in kinds.items():
        if not isinstance(header[name], kind):
            raise ValueError(f'{name} is {header[name]!r:.60}')
    if header['model'] not in (*MODELS, 'logits'):
        raise ValueError(f'model is {header["model"]!r:.60}')
    for size in header['shape'] + header['code_sizes']:
        if type(size) is not int or not 0 <= size < 2**40:
            raise ValueError(f'a size is {size!r:.60}')
    if math.prod(header['shape']) >= 2**40:
        raise ValueError(f'shape is {header["shape"]!r:.60}')


def _stream():
    try:
        from constriction import stream
    except ImportError as error:
        raise ImportError(
            'entropy coding needs constriction: install the extra, '
            "pip install 'vqjax[entropy]', or use model='fixed'"
        ) from error
    return stream
