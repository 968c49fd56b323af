"""What a training step costs on many devices, read from its program: python benchmarks/scaling.py

Eight CPU devices are made of one, so nothing here is a time: the compiled step says how many bytes
its collectives carry, how many operations and how much memory a device has. The step is VQ-EMA's
under jit over arrays sharded on a mesh: codes, loss and its gradient, update of the statistics.
Half a minute of processor time; --quick takes a third of it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import common
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vqjax.quantizers import VQEMA, shardings

DEVICES = 8
BYTES = {'f32': 4, 's32': 4, 'u32': 4, 'pred': 1}
KINDS = 'all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter'
TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
COLLECTIVE = re.compile(rf'= (.*?) ({KINDS})(?:-start)?\(')

# Published figures of a chip: its product's operations a second, and bytes a second that a ring
# sends through it one way. TPU v5p: 459e12 bfloat16 operations, of which a float32 product takes
# six; 1,200 GB/s of interconnect, both ways together (cloud.google.com/tpu/docs/v5p). H100 SXM:
# 67e12 float32 operations (NVIDIA's data sheet); beyond the 8 GPUs of a node one 400 Gb/s adapter
# a GPU (NVIDIA's DGX H100 user guide).
CHIPS = {'TPU v5p': (459e12 / 6, 600e9), 'H100, 400 Gb/s': (67e12, 50e9)}
CHIPS_IN_ALL = 256


def compiled_step(quantizer, rows, dim, shape, axis=None):
    """The step compiled for `rows` vectors in all on a mesh of `shape`, codes split over `axis`."""
    devices = jax.devices()[: shape[0] * shape[1]]
    mesh = jax.make_mesh(shape, ('data', 'model'), axis_types=(AxisType.Auto,) * 2, devices=devices)

    def placed(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    z = jax.ShapeDtypeStruct((rows, dim), jnp.float32, sharding=NamedSharding(mesh, P('data')))
    shapes = jax.eval_shape(quantizer.init, jax.random.key(0), z)
    params, state = jax.tree.map(placed, shapes, shardings(quantizer, *shapes, mesh, axis))

    def step(params, state, z):
        def loss(z):
            out = quantizer.quantize(params, state, z)
            return out.loss + jnp.sum(out.z_q) / z.size, out.codes

        slope, codes = jax.grad(loss, has_aux=True)(z)
        return slope, quantizer.update(params, state, z, codes)

    return jax.jit(step, donate_argnums=1).lower(params, state, z).compile()


def carried(compiled):
    """Bytes that the collectives of a compiled program carry, by kind, each counted once."""
    total = {}
    for line in compiled.as_text().splitlines():
        if found := COLLECTIVE.search(line):
            parts = re.findall(r'(\w+)\[([\d,]*)\]', found[1])
            sizes = [BYTES[kind] * int(np.prod(json.loads(f'[{s}]'))) for kind, s in parts]
            total[found[2]] = total.get(found[2], 0) + sum(sizes)
    return total


def collectives(quick):
    """Bytes of a step against N, D, K and devices, beside those of sums and counts."""
    base = {'N': 131_072, 'D': 64, 'K': 1024, 'devices': 8}
    changes = [{}, {'N': 262_144}, {'D': 128}, {'K': 4096}, {'devices': 2}, {'devices': 4}]
    rows = []
    for change in changes[: 1 if quick else None]:
        case = base | change
        row = dict(case)
        for name, quantizer in {
            'step': VQEMA(case['K'], revival=None),
            'with revival': VQEMA(case['K']),
        }.items():
            run = compiled_step(quantizer, case['N'], case['D'], (case['devices'], 1))
            row[name] = carried(run)
        row['formula'] = 4 * case['K'] * (case['D'] + 1)
        row['z'] = 4 * case['N'] * case['D']
        rows.append(row)
        print(row)
    return rows


def weak_scaling(quick):
    """Operations and memory a device, with rows a device held fixed."""
    rows = []
    for devices in (1, 8) if quick else (1, 2, 4, 8):
        row = {'devices': devices}
        # One tile of rows a device: the analysis counts the body of a loop once.
        run = compiled_step(VQEMA(1024, revival=None), 256 * devices, 64, (devices, 1))
        assert 'known_trip_count' not in run.as_text()
        row['operations'] = run.cost_analysis()['flops']
        # Many: operations of a tile, and how many tiles a device has.
        run = compiled_step(VQEMA(1024, revival=None), 16_384 * devices, 64, (devices, 1))
        row['operations of a tile'] = run.cost_analysis()['flops']
        row['tiles'] = [int(n) for n in TRIPS.findall(run.as_text())]
        row['temporary bytes'] = run.memory_analysis().temp_size_in_bytes
        rows.append(row)
        print(row)
    return rows


def large_codebook(quick):
    """Memory a device of a codebook of 2^20 x 256, whole and split over 8."""
    num_codes, dim, n = (2**14 if quick else 2**20), 256, 4096
    rows = []
    for axis in (None, 'model'):
        run = compiled_step(VQEMA(num_codes), n, dim, (1, DEVICES), axis)
        memory = run.memory_analysis()
        rows.append(
            {
                'codes on a device': num_codes // (DEVICES if axis else 1),
                'D': dim,
                'N': n,
                'arguments': memory.argument_size_in_bytes,
                'temporary': memory.temp_size_in_bytes,
                'carried': carried(run),
            }
        )
        print(rows[-1])
    return rows


def projection():
    """Search and all-reduce of a step on 256 chips, in microseconds, from the formula alone."""
    rows = []
    for chip, (operations, link) in CHIPS.items():
        for n, dim, num_codes in ((16_384, 64, 1024), (16_384, 128, 8192), (65_536, 128, 8192)):
            search = 2 * n * num_codes * dim / operations
            # A ring sends each byte twice, less the part that a chip holds already.
            ring = 2 * (1 - 1 / CHIPS_IN_ALL) * 4 * num_codes * (dim + 1) / link
            rows.append(
                {
                    'chip': chip,
                    'N a chip': n,
                    'D': dim,
                    'K': num_codes,
                    'search_us': round(search * 1e6, 1),
                    'all_reduce_us': round(ring * 1e6, 1),
                    'efficiency': round(search / (search + ring), 3),
                }
            )
    return rows


def main(argv=None):
    """Read the programs and write scaling.json, in a process that has 8 CPU devices."""
    options = common.arguments(common.parser(__doc__, timed=False), argv)
    if jax.device_count() < DEVICES or jax.default_backend() != 'cpu':
        flags = os.environ.get('XLA_FLAGS', '')
        flags += f' --xla_force_host_platform_device_count={DEVICES}'
        command = [sys.executable, __file__, '--out', str(options.out)]
        env = os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
        subprocess.run([*command, *['--quick'] * options.quick], env=env, check=True)
        return
    results = {
        'collectives': collectives(options.quick),
        'weak_scaling': weak_scaling(options.quick),
        'large_codebook': large_codebook(options.quick),
        'projection': projection(),
    }
    common.write(options.out, 'scaling', results)


if __name__ == '__main__':
    # As a script, so that the library is found where it is not installed.
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
