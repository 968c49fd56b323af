"""Tables of the benchmarks' results, for `docs/tables.py`."""

from __future__ import annotations

import re
import statistics


def table(header, rows):
    """Cells as a table in Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)


def _ms(row, name):
    return f'{row["runs"][name]["median_ms"]:,.1f}' if name in row['runs'] else ''


def _factor(value):
    if value is None:
        return ''
    return f'{value:.1f}' if value < 20 else f'{value:.0f}'


def _shape(row):
    return f'{row["N"]:,} x {row["D"]} x {row["K"]:,}'


def _machines(*benchmarks):
    """The machines of these benchmarks' files, the newest first, and a title for each."""
    newest = {}
    for found in benchmarks:
        for name, results in found.items():
            e = results['environment']
            if e.get('date', '') >= newest.get(name, {}).get('date', ''):
                newest[name] = e
    order = sorted(newest, key=lambda name: newest[name].get('date', ''), reverse=True)

    def title(e):
        known = [e['cpu'], e.get('instructions')]
        if 'L2' in e.get('caches_kb', {}):
            known.append(f'{e["caches_kb"]["L2"] / 1024:g} MB L2')
        return ', '.join(filter(None, known))

    return {name: title(newest[name]) for name in order}


def _lines(results):
    """(row, milliseconds, times faster than the peer, ratio to the floor) of a benchmark's file."""
    if 'search' in results:
        rows = {f'search, {_shape(r)}': r for r in results['search']['rows']}
    elif 'fits' in results:
        rows = {f'fit, {name}': r for name, r in results['fits'].items()}
    else:
        model = 'vqjax + Flax' in next(iter(results['steps'].values()))['runs']
        kind = 'model' if model else 'step'
        rows = {f'{kind}, {name}': r for name, r in results['steps'].items()}
    found = {}
    for name, row in rows.items():
        ours = next(iter(row['runs'].values()))['median_ms']
        faster = row.get('speedup')
        if row.get('ratio_to_faiss'):
            faster = 1 / row['ratio_to_faiss']
        found[name] = [f'{ours:,.1f}', _factor(faster), _floor(row)]
    return found


def _floor(row):
    return f'{row["ratio_to_floor"]:.2f}' if 'ratio_to_floor' in row else ''


def machines(*benchmarks):
    """Every row on every machine: milliseconds, times faster than the peer, ratio to the floor."""
    titles = _machines(*benchmarks)
    rows = []
    for found in benchmarks:
        each = {name: _lines(results) for name, results in found.items()}
        for row in dict.fromkeys(row for lines in each.values() for row in lines):
            cells = [each.get(name, {}).get(row, [''] * 3) for name in titles]
            rows.append([row, *(cell for three in cells for cell in three)])
    header = [
        f'{what}, {title}'
        for title in titles.values()
        for what in ('ms', 'times faster', 'of the floor')
    ]
    return table(['', *header], rows)


OF_EVERY_MACHINE = (machines,)


def nearest(results):
    """Milliseconds of the search, one row a shape."""
    names = list(results['search']['rows'][0]['runs'])
    rows = [
        [_shape(r), *[_ms(r, name) for name in names], r['ratio_to_faiss'], _floor(r)]
        for r in results['search']['rows']
    ]
    mean = results['search']['geometric_mean_ratio_to_faiss']
    rows.append(['geometric mean', *[''] * len(names), f'**{mean}**', ''])
    return table(['N x D x K', *names, 'vqjax / faiss', 'vqjax / floor'], rows)


def codebooks(results):
    """Milliseconds, time a score and memory for large codebooks."""
    rows = [
        [f'{r["K"]:,}', *[_ms(r, name) for name in r['runs']], r['ns_per_score']]
        + [f'{r["extra_bytes"] / 1e6:.1f}']
        for r in results['against_K']
    ]
    return table(['K', *results['against_K'][0]['runs'], 'ns per score', 'MB beyond'], rows)


def steps(results):
    """Milliseconds of a training step, one row a quantizer."""
    names = list(next(iter(results['steps'].values()))['runs'])
    rows = [
        [name, *[_ms(r, n) for n in names], _factor(r['speedup']), _floor(r), r['compile_s']]
        for name, r in results['steps'].items()
    ]
    return table(['', *names, 'times faster', 'vqjax / floor', 'compile, s'], rows)


def calls(results):
    """Microseconds of a call with one vector and its ratio to the unchecked call, by quantizer."""
    methods = dict.fromkeys(row['method'] for row in results['rows'])
    shown = [r for r in results['rows'] if r['vectors'] == 1 and r.get('first_of_its_kind', True)]
    one = {(r['quantizer'], r['method']): r for r in shown}
    rows = []
    for name in dict.fromkeys(quantizer for quantizer, _ in one):
        found = [one[name, method] for method in methods]
        kinds = dict.fromkeys(re.findall(r'(?<![\w=])(?:inner=)?\(?([A-Z]\w+)\(', name))
        cells = [f'{r["us"]["call"]:.0f} ({r["ratio"]:.2f})' for r in found]
        rows.append([', '.join(kind for kind in kinds if kind != 'Revival'), *cells])
    return table(['', *methods], rows)


def all_calls(results):
    """Of each method the median and the largest ratio over all quantizers, one row a number."""
    methods = dict.fromkeys(row['method'] for row in results['rows'])
    rows = []
    for number in dict.fromkeys(row['vectors'] for row in results['rows']):
        found = [
            [r['ratio'] for r in results['rows'] if (r['vectors'], r['method']) == (number, m)]
            for m in methods
        ]
        rows.append(
            [number, len(found[0]), *(f'{statistics.median(x):.2f}, {max(x):.2f}' for x in found)]
        )
    return table(['vectors', 'quantizers', *methods], rows)


def fits(results):
    """Iterations, milliseconds and error of a fit, one row for each library."""
    rows = []
    for name, r in results['fits'].items():
        for peer in r['runs']:
            key = {'faiss': 'speedup', 'faiss, k-means++': 'speedup_with_plus'}.get(peer)
            cells = [r['iterations'][peer], _ms(r, peer), f'{r["error"][peer]:.4f}']
            # Of ours the ratio to the floor, of the others that to ours.
            rows.append([name, peer, *cells, *([_factor(r[key]), ''] if key else ['', _floor(r)])])
    header = ['iterations', 'ms', 'error', 'time / that of vqjax', 'vqjax / floor']
    return table(['', '', *header], rows)


def fit_parts(results):
    """Where the time of a fit goes, one row a fit; older files do not have it."""
    rows = []
    for name, r in results['fits'].items():
        if found := r.get('parts'):
            each = r['floor_ms'] / r['iterations'][next(iter(r['runs']))]
            rows.append([name, f'{found["start_ms"]:,.1f}', f'{found["iteration_ms"]:,.1f}'])
            rows[-1].append(f'{each:,.1f}')
    header = ['first centroids and last assignment, ms', 'an iteration, ms', 'its products, ms']
    return table(['', *header], rows)


def bounds(nearest, quantizers, versions, fit, calls, trainer):
    """What was aimed at, what was measured on the newest machine, and whether that is enough."""
    # Measured where no peer takes turns with them.
    alone = {name: r['runs']['this version']['median_ms'] for name, r in versions['rows'].items()}
    of_var, fitted = quantizers['steps']['MultiScale, grids of VAR'], fit['fits']
    product, tokens = fitted['product'], of_var['ratio_to_search']
    residual = min(r['speedup'] for name, r in fitted.items() if 'residual' in name)
    encoded = min(r['encode']['speedup'] for r in fitted.values() if 'encode' in r)
    search = max(r['ratio_to_floor'] for r in nearest['search']['rows'])
    vq = alone['step, VQ']
    sim_vq, bridged = alone['step, SimVQ'] / vq, alone['step, Bridged, VQBridge'] / vq
    times = {'decoded': [], 'in memory': []}
    for name, methods in trainer['rows'].items():
        kind = 'decoded' if 'decoded' in name else 'in memory'
        times[kind] += [row['ratio'] for row in methods.values()]
    decoded, in_memory = map(max, times.values())
    found = [
        ('search, of its matrix products', 'most', 1.15, search),
        (
            'step of MultiScale on the grids of VAR, of the search of its tokens',
            'most',
            2.5,
            tokens,
        ),
        ('the same, speed against the peer', 'least', 2, of_var['speedup']),
        ('step of SimVQ, of a step of VQ', 'most', 1.5, sim_vq),
        ('step of Bridged, of a step of VQ', 'most', 1.5, bridged),
        ('fit of product codes, speed against faiss', 'least', 1, product['speedup']),
        ('the same against faiss with k-means++', 'least', 1, product['speedup_with_plus']),
        ('fit of residual codes, speed against faiss', 'least', 1, residual),
        ('encoding a million vectors, speed against faiss', 'least', 1, encoded),
        ('call outside `jit`, of the unchecked call', 'most', 1.5, calls['worst']['ratio']),
        ('trainer, of a bare loop, images in memory', 'most', 1.05, in_memory),
        ('trainer, of a bare loop, images decoded for every batch', 'most', 1.05, decoded),
    ]
    rows = []
    for what, kind, aim, value in found:
        met = value <= aim if kind == 'most' else value >= aim
        rows.append([what, f'at {kind} {aim:g}', f'{value:.2f}', 'yes' if met else '**no**'])
    return table(['', 'aim', 'measured', 'reached'], rows)


def versions(results):
    """Time of each piece of work in this version, as a share of that in another."""
    rows = []
    for name, r in results['rows'].items():
        low, high = r['range']
        times = [f'{r["runs"][which]["median_ms"]:,.2f}' for which in r['runs']]
        rows.append([name, *times, f'{r["ratio"]:.2f} ({low:.2f} to {high:.2f})'])
    return table(['', 'this version, ms', 'the other, ms', 'ratio (range)'], rows)


def encodes(results):
    """Milliseconds to encode a million vectors."""
    rows, names = [], []
    for name, r in results['fits'].items():
        if encode := r.get('encode'):
            names = list(encode['runs'])
            times = [_ms(encode, n) for n in names]
            rows.append([name, *times, _factor(encode['speedup']), _floor(encode)])
    return table(['', *[f'{n}, ms' for n in names], 'times faster', 'vqjax / floor'], rows)


def tiles(results):
    """Time with each size of a tile, as a multiple of the rule's; '=' where it is the rule's."""
    rows = []
    for size in results['rows'][0]['of_the_rule']:
        found = [r['of_the_rule'][size] for r in results['rows']]
        cells = []
        for r in found:
            median, low, high = r['ratio']
            same = '= ' * r['same_program']
            cells.append(f'{same}{median:.2f} ({low:.2f} to {high:.2f})')
        rows.append([size, *cells])
    return table(['codes x rows', *map(_shape, results['rows'])], rows)


def retrieval(results):
    """Recall, collisions and time of search over codes, one row a data set and kind of code."""
    names = list(results['rows'][0]['runs'])
    rows = [
        [r['data'], r['codes'], r['bytes']]
        + [f'{r["recall"][name]:.3f}' for name in names]
        + [f'{r["collisions"][name]:.1%}' for name in names]
        + [_ms(r, name) for name in names]
        for r in results['rows']
    ]
    what = ('recall@10', 'items that collide', 'search, ms')
    return table(['data', 'codes', 'bytes', *(f'{w}, {n}' for w in what for n in names)], rows)


_MOST = 32  # bits a vector of these tables


def _least(rows, bits, wanted=lambda family: True):
    """The row of ours with the least error at so many bits, None without one."""
    ours = [r for r in rows if r['bits'] == bits and not r['family'].startswith('faiss')]
    ours = [r for r in ours if wanted(r['family'])]
    return min(ours, key=lambda r: r['error'], default=None)


def _of_set(results, name):
    return [r for r in results['rows'] if r['set'] == name and r['bits'] <= _MOST]


def _error(error):
    return f'{error:.3f}'.replace('0.', '.', 1)


def _rates(results, name):
    """Error at each number of bits, one row a family; the least of ours is bold."""
    shown = _of_set(results, name)
    bits = sorted({r['bits'] for r in shown})
    found = {(r['family'], r['bits']): r for r in shown}
    least = [_least(shown, b) for b in bits]

    def cell(row):
        if row is None:
            return ''
        text = f'{_error(row["error"])} ± {_error(row["half_interval"])}'
        return f'**{text}**' if row in least else text

    families = dict.fromkeys(r['family'] for r in shown)
    rows = [[family, *[cell(found.get((family, b))) for b in bits]] for family in families]
    bound = dict(results['sets'][name]['gaussian'])
    rows.append(['Gaussian bound', *[_error(bound[b]) for b in bits]])
    return table(['bits per vector', *bits], rows)


def rates(results):
    """Error of patches at each number of bits."""
    return _rates(results, 'patches')


def rates_features(results):
    """The same of features of images."""
    return _rates(results, 'features')


def rates_normal(results):
    """The same of normal vectors."""
    return _rates(results, 'normal')


def rates_embeddings(results):
    """The same of embeddings."""
    return _rates(results, 'embeddings')


def rates_above(results):
    """Error of embeddings at rates above those of the other tables."""
    rows = [
        [r['family'], r['bits'], f'{_error(r["error"])} ± {_error(r["half_interval"])}']
        + [f'{r["fit_s"]:.2g}']
        for r in sorted(results['rows'], key=lambda r: r['bits'])
        if r['bits'] > _MOST
    ]
    return table(['', 'bits per vector', 'error', 'fit, s'], rows)


def choice(results):
    """At each rate and on each set the least error, with a codebook and without one."""
    kinds = {
        'codebooks': lambda family: not family.endswith('projected'),
        'no codebook': lambda family: family.endswith('projected'),
    }

    def cell(row):
        return f'{row["family"].removesuffix(", projected")} {_error(row["error"])}' if row else ''

    found = {name: _of_set(results, name) for name in results['sets']}
    bits = sorted(set.intersection(*[{r['bits'] for r in rows} for rows in found.values()]))
    rows = [
        [b, *[cell(_least(rows, b, kind)) for rows in found.values() for kind in kinds.values()]]
        for b in bits
    ]
    header = [f'{name}, {kind}' for name in found for kind in kinds]
    return table(['bits per vector', *header], rows)


def rate_seconds(results):
    """Seconds to fit and milliseconds to encode at some rates, one row a family."""
    bits = (8, 12, 24)
    patches = _of_set(results, 'patches')
    found = {(r['family'], r['bits']): r for r in patches}
    rows = []
    for family in dict.fromkeys(r['family'] for r in patches):
        these = [found.get((family, b)) for b in bits]
        fit = [f'{r["fit_s"]:.3g}' if r else '' for r in these]
        rows.append([family, *fit, *[f'{r["encode_s"] * 1e3:.3g}' if r else '' for r in these]])
    header = [f'fit, s, {b} bits' for b in bits] + [f'encode, ms, {b} bits' for b in bits]
    return table(['', *header], rows)


def usage(*several):
    """Share of the codes in use and error at the end of training, for each number of codes."""
    methods = dict.fromkeys(row['method'] for results in several for row in results['rows'])
    rows = []
    for method in methods:
        line = [method]
        for results in several:
            row = next((r for r in results['rows'] if r['method'] == method), None)
            if row is None:
                line += [''] * 3
                continue
            _, used, error = row['curve'][-1]
            line += [f'{used:.1%}', f'{error:.4f}', f'{row["seconds"]:,.0f}']
        rows.append(line)
    header = [
        f'{what}, {results["K"]:,} codes'
        for results in several
        for what in ('used', 'error', 'seconds')
    ]
    even = [cell for results in several for cell in (f'{results["even_use"]:.1%}', '', '')]
    return table(['', *header], [*rows, ['all codes alike', *even]])


def codebook_size(results):
    """Share of the codes in use and error at each number of codes, one row a method."""
    found = {(r['method'], r['K']): r for r in results['rows']}
    sizes = sorted({size for _, size in found})
    mean = statistics.fmean

    def cell(row):
        return f'{mean(row["used"]):.1%}, {_error(mean(row["error"]))}' if row else ''

    methods = dict.fromkeys(method for method, _ in found)
    rows = [[method, *[cell(found.get((method, size))) for size in sizes]] for method in methods]
    return table(['used, error', *[f'{size:,} codes' for size in sizes]], rows)


_UNSEEN = {
    'none': 'none',
    'vq_ema': 'VQ-EMA, decay .95',
    'vq_ema_decay_80': 'VQ-EMA, decay .8',
    'vq_ema_later': 'VQ-EMA after 4 epochs without codes',
    'rvq': 'RVQ 4 x 256, decay .95',
    'fsq_6': 'FSQ 8 8 8 5 5 5, 16 bits',
    'fsq_6_averages_90': 'the same, averages of .9',
    'fsq_8': 'FSQ 8 x 4, 16 bits',
    'fsq_12': 'FSQ 12 x 5, 28 bits',
    'fsq_6_fine': 'FSQ 6 x 31, 30 bits',
    'sim_vq': 'SimVQ, 256 codes',
    'sim_vq_long': 'the same, codes as long as z',
}


def unseen(results):
    """Accuracy early, halfway and at the end on two further image sets."""
    lines = []
    for name, methods in results['rows'].items():
        for method in filter(methods.get, _UNSEEN):
            row = methods[method]
            test = [100 * x for x in row['accuracy']]
            mean = sum(test) / len(test)
            spread = f'{mean:.1f} ({min(test):.1f} to {max(test):.1f})'
            line = [name, _UNSEEN[method], f'{100 * row["early"]["train_accuracy"]:.0f}']
            line += [f'{100 * row[when]["accuracy"]:.0f}' for when in ('early', 'halfway')]
            used = f'{row["active_codes"]:.0f}' if 'active_codes' in row else ''
            lines.append([*line, spread, used])
    header = ['set', 'method', 'training, steps 73 to 96 %', 'validation, step 96 %']
    return table([*header, 'halfway %', 'test, end % (seeds)', 'codes used'], lines)


def pipeline(results):
    """Milliseconds of a step with the data pipeline and without, one row a data set."""
    names = list(next(iter(results['rows'].values()))['runs'])
    rows = [
        [name, r['batch_size'], *[_ms(r, n) for n in names], r['ratio']]
        for name, r in results['rows'].items()
    ]
    return table(['', 'batch', *names, 'pipeline / resident'], rows)


def trainer(results):
    """Images a second of the trainer and of a bare loop, and the ratio of their times."""
    rows = []
    for name, methods in results['rows'].items():
        for method, r in methods.items():
            images, (low, high) = r['images_per_s'], r['range']
            ratio = f'{r["ratio"]:.3f} ({low:.2f} to {high:.2f})'
            batch = f'{r["runs"]["input alone"]["median_ms"]:.2f}'
            step = f'{r["runs"]["trainer"]["median_ms"]:.1f}'
            rows.append([name, method, *[f'{x:,}' for x in images.values()], ratio, step, batch])
    head = ['images per second, trainer', 'bare loop', 'time, trainer / bare loop (range)']
    return table(['', 'method', *head, 'step, ms', 'batch alone, ms'], rows)


def memory(results):
    """Megabytes of a training step, one row a quantizer."""
    rows = []
    for name, r in results['rows'].items():
        peaks = [f'{run["peak"] / 1e6:,.1f}' for run in r['runs'].values()]
        ours = r['runs']['vqjax']
        held = [ours['temporary'], ours['output']]
        cells = [*peaks, *[''] * (2 - len(peaks)), *[f'{x / 1e6:,.1f}' for x in held]]
        rows.append([name, f'{r["inputs"] / 1e6:,.1f}', *cells])
    head = ['inputs', 'vqjax', 'vector-quantize-pytorch']
    return table(['', *head, 'XLA, temporary', 'XLA, returned'], rows)


def comparing(results):
    """Time and programs of `make compare`, one row for each way to run it."""
    names = {'other checkout': 'commit 57f6da1'}
    middle = statistics.median

    def ratio(clock, name):
        found = results['ratios'][clock].get(name)
        return '' if found is None else f'{found:.0%}'

    rows = [
        [names.get(name, name)]
        + [
            cell
            for key in ('seconds', 'cpu_seconds')
            for cell in (f'{middle(run[key] for run in runs):,.0f}', ratio(key, name))
        ]
        + [f'{middle(run[key] for run in runs):.0f}' for key in ('programs', 'compiled')]
        for name, runs in results['runs'].items()
    ]
    header = ['wall, s', 'to the first row', 'processor, s', 'to the first row']
    return table(['', *header, 'programs', 'of them compiled'], rows)


def _bytes(carried):
    return ', '.join(f'{size:,} ({kind})' for kind, size in carried.items()) or '0'


def collectives(results):
    """Bytes that the collectives of a step carry, one row a shape."""
    rows = [
        [f'{r["N"]:,} x {r["D"]} x {r["K"]:,}', r['devices'], _bytes(r['step'])]
        + [f'{r["formula"]:,}', _bytes(r['with revival']), f'{r["z"]:,}']
        for r in results['collectives']
    ]
    header = ['N x D x K', 'devices', 'a step', '4 K (D + 1)', 'a step with revival', 'all of z']
    return table(header, rows)


def weak_scaling(results):
    """Operations and memory a device, one row a number of devices."""
    first = results['weak_scaling'][0]['operations']
    rows = [
        [r['devices'], f'{r["operations"]:,.0f}', f'{r["operations"] / first:.3f}']
        + [', '.join(map(str, r['tiles'])), f'{r["operations of a tile"]:,.0f}']
        + [f'{r["temporary bytes"] / 1e6:.1f}']
        for r in results['weak_scaling']
    ]
    header = ['devices', 'operations per device', 'compared with one device']
    return table(
        [*header, 'tiles at 16,384 rows', 'operations with one tile', 'temporary MB'], rows
    )


def large_codebook(results):
    """Memory a device of a large codebook."""
    rows = [
        [f'{r["codes on a device"]:,}', *[f'{r[k] / 1e6:,.0f}' for k in ('arguments', 'temporary')]]
        + [_bytes(r['carried'])]
        for r in results['large_codebook']
    ]
    return table(
        ['codes per device', 'arguments, MB', 'temporary, MB', 'communicated, bytes'], rows
    )


def projection(results):
    """Search and all-reduce on 256 chips, on paper."""
    rows = [
        [r['chip'], f'{r["N a chip"]:,} x {r["D"]} x {r["K"]:,}', r['search_us']]
        + [r['all_reduce_us'], f'{r["efficiency"]:.1%}']
        for r in results['projection']
    ]
    header = ['chip', 'N per chip x D x K', 'search, us', 'all-reduce, us', 'of perfect scaling']
    return table(header, rows)


def sequence(results):
    """Milliseconds and memory of the sequence model, one row a computation and number of phases."""
    rows = [
        [name, row['phases'], f'{runs["vqjax"]["median_ms"]:,.0f}']
        + [f'{runs["hmmlearn"]["median_ms"]:,.0f}' if 'hmmlearn' in runs else '']
        + [f'{row["memory_mb"][name]:.1f}']
        for row in results['rows']
        for name, runs in row['runs'].items()
    ]
    return table(['', 'phases', 'vqjax', 'hmmlearn', 'MB beyond inputs'], rows)


def behaviours(results):
    """How many behaviours each way to fit finds, a number for each of several worlds."""
    rows = [
        [name, ', '.join(map(str, row['states']))]
        + [f'{sum(row["adjusted_rand_index"]) / len(row["adjusted_rand_index"]):.3f}']
        for name, row in results['found'].items()
    ]
    return table(['', 'states found, of 4', 'adjusted Rand index, mean'], rows)


def machine(results):
    """One line: what the figures were measured on."""
    e = results['environment']
    versions = ', '.join(f'{name} {version}' for name, version in e['versions'].items() if version)
    clock = 'processor time' if e['clock'] == 'process_time' else 'wall time'
    cores = f'{e["cores_used"]} of {e["cores"]} cores'
    known = [e['cpu'], e.get('instructions')]
    known += [f'{name} {kb:,} KB' for name, kb in e.get('caches_kb', {}).items()]
    cpu = ', '.join(filter(None, known))
    return f'{cpu}, {cores}, {clock}, load average {e["load_average"][0]}; {versions}.'
