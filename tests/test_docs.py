"""The documentation: its examples run, it misses no quantizer, and it builds without a warning."""

import doctest
import importlib
import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest
from support import table

import vqjax
from vqjax.quantizers import REGISTRY
from vqjax.quantizers.base import Base
from vqjax.testing import claims

CLAIMS = (claims.weights, claims.samples)
ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
BLOCK = re.compile(r'^```python\n(.*?)^```', re.MULTILINE | re.DOTALL)
WITH_CODE = [path for path in PAGES if BLOCK.search(path.read_text())]
# Pages whose examples take seconds.
SLOW = ('quantizers.md', 'recordings.md', 'parallel.md', 'behaviour.md', 'nnx.md', 'tutorial.md')
# What a page trains for minutes, the test trains for moments: a line of the page, and another.
SHORTER = {
    'tutorial.md': (
        'VQVAE_STEPS, PRIOR_STEPS, BATCH = 600, 2000 if LARGE else 400, 64\n',
        'VQVAE_STEPS, PRIOR_STEPS, BATCH = 2, 2, 16\n',
    )
}


@pytest.mark.parametrize(
    'path',
    [
        pytest.param(path, id=path.name, marks=pytest.mark.slow if path.name in SLOW else ())
        for path in WITH_CODE
    ],
)
def test_examples_run(path, tmp_path, monkeypatch):
    text = path.read_text()
    if 'codec.save' in text:
        pytest.importorskip('safetensors')
    if 'codec.save_codes' in text:
        pytest.importorskip('constriction')
    if path.name in SHORTER:
        long, short = SHORTER[path.name]
        assert text.count(long) == 1
        text = text.replace(long, short)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))  # no set is prepared there
    names = {'__name__': 'example'}
    for block in BLOCK.finditer(text):
        line = text[: block.start()].count('\n') + 1
        if block[1].startswith('>>> '):
            session = doctest.DocTestParser().get_doctest(block[1], names, path.name, path, line)
            runner = doctest.DocTestRunner(verbose=False)
            said = []
            assert not runner.run(session, out=said.append, clear_globs=False).failed, ''.join(said)
            names |= session.globs
        else:
            # Empty lines in front: a failure names the line of the page.
            exec(compile('\n' * line + block[1], str(path), 'exec'), names)


def test_there_are_examples_where_people_look_first():
    names = {path.name for path in WITH_CODE}
    assert {'README.md', 'quantizers.md', 'collapse.md', 'codec.md', 'moving.md'} <= names


def test_docstring_examples_run():
    for module in pkgutil.walk_packages(vqjax.__path__, 'vqjax.'):
        text = pathlib.Path(importlib.util.find_spec(module.name).origin).read_text()
        if '>>> ' in text:
            failed, _ = doctest.testmod(importlib.import_module(module.name))
            assert not failed, module.name


def test_every_table_is_that_of_the_committed_results(monkeypatch):
    pytest.importorskip('ml_collections')
    monkeypatch.syspath_prepend(ROOT / 'docs')
    tables = importlib.import_module('tables')
    marked = [p for p in ROOT.glob('**/*.md') if '<!-- table: ' in p.read_text()]
    assert sorted(marked) == sorted(ROOT / page for page in tables.PAGES)
    for path in marked:
        text = path.read_text()
        assert tables.render(text) == text, f'{path}: make tables'
        # Every block was filled in: none is followed at once by its end.
        assert '-->\n<!-- end -->' not in text
    for name in ('tables', 'benchmark_tables'):
        sys.modules.pop(name)


def guide():
    """docs/quantizers.md in two: the guide, and the table of another library's classes."""
    text = (ROOT / 'docs' / 'quantizers.md').read_text()
    return text.split('## From vector-quantize-pytorch')


def places_of(kind):
    """Where a quantizer must be named, and whether it is."""
    name, file = kind.__name__, kind.__module__.rpartition('.')[-1]
    ours = guide()[0]
    api = (ROOT / 'docs' / 'api' / 'quantizers.md').read_text()
    line = f'from vqjax.quantizers.{file} import {name} as {name}'
    return {
        f'vqjax/quantizers/registry.py: {line}': REGISTRY.get(file) is kind,
        f'tests/support.py, table(): an entry {name}(...)': kind in map(type, table().values()),
        f'vqjax/testing/: what {name} claims, `weights` and `samples` at least': all(
            claim.dispatch(kind) is not claim.dispatch(object) for claim in CLAIMS
        )
        or 'inner' in kind.__dataclass_fields__,
        f'docs/quantizers.md: a row | `{name}` | of the table': f'\n| `{name}` |' in ours,
        f'docs/quantizers.md: a section ### {name}': f'\n### {name}\n' in ours,
        f'README.md: a link [{name}](docs/quantizers.md#{name.lower()})': (
            f'[{name}](docs/quantizers.md#{name.lower()})' in (ROOT / 'README.md').read_text()
        ),
        f'docs/api/quantizers.md: ::: vqjax.{name}': f'\n::: vqjax.{name}\n' in api,
    }


def test_every_quantizer_is_named_wherever_it_must_be():
    """All that is missing at once, as lines to add; CONTRIBUTING.md has them too."""
    kinds = set()
    for module in pkgutil.iter_modules(vqjax.quantizers.__path__, 'vqjax.quantizers.'):
        found = vars(importlib.import_module(module.name)).values()
        kinds |= {
            kind
            for kind in found
            if isinstance(kind, type)
            and issubclass(kind, Base)
            and '__dataclass_fields__' in vars(kind)
        }
    assert set(REGISTRY.values()) <= kinds
    missing = [place for kind in kinds for place, named in places_of(kind).items() if not named]
    assert not missing, 'add\n' + '\n'.join(sorted(missing))


# Its classes, and the arguments of their constructors and calls, in release 1.32.0.
OF_VECTOR_QUANTIZE_PYTORCH = """
    BinaryMapper EvoLFQ FSP FSQ GroupedResidualFSQ GroupedResidualLFQ GroupedResidualVQ
    HierarchicalVQ LFQ LatentQuantize RandomProjectionQuantizer ResidualFSQ ResidualLFQ
    ResidualSimVQ ResidualVQ Sequential SimVQ VectorQuantize accept_3d_fmap accept_image_fmap
    accum_ema_update act_name affine_param affine_param_batch_decay affine_param_codebook_decay
    allowed_dtypes beam_score_quantizer_weights beam_size bits bound_hard_clamp calc_aux_loss
    channel_first channel_last codebook_dim codebook_diversity_loss_weight
    codebook_diversity_temperature codebook_scale codebook_size codebook_transform
    codebook_transform_fn commitment_loss_weight commitment_use_cross_entropy_loss
    commitment_weight cosine_sim_project_in cosine_sim_project_in_scale decay decoder
    deterministic deterministic_on_eval dim directional_reparam directional_reparam_variance
    diveq diversity_gamma elitism_count ema_update ema_update_weight encoder entropy_loss_offset
    entropy_loss_weight eval_beam_size experimental_softplus_entropy_loss force_quantization_f32
    frac_per_sample_entropy freeze_codebook frozen_codebook_dim generations groups
    has_projections heads implicit_neural_codebook in_place_codebook_optimizer indices init_fn
    input_to_quantize_commit_loss_weight inv_temperature is_channel_first keep_num_codebooks_dim
    kl_loss_threshold kmeans_init kmeans_iters layernorm_after_project_in learnable_codebook
    lens levels lfq manual_ema_update manual_in_place_optimizer_update mask mlp_kwargs
    mutation_rate need_inv_act nested_dropout nested_dropout_min_levels noise_dropout norm
    num_codebooks num_quantizers optimize_values orthogonal_reg_active_codes_only
    orthogonal_reg_max_codes orthogonal_reg_weight orthogonal_rotation pop_size
    preserve_symmetry projection_has_bias quant_grad_frac quant_resi quantization_loss_weight
    quantize_dropout quantize_dropout_cutoff_index quantize_dropout_multiple_of quantize_rate
    rand_quantize_dropout_fixed_seed reduce_aux_kl_loss return_all_codes return_cutoff
    return_indices return_loss_breakdown return_zeros_for_masked_padding rotation_trick
    route_gradients_to_input sample_codebook_temp scale scales separate_codebook_per_head
    share_quant_resi shared_codebook soft_clamp_input_value spherical stochastic_sample_codes
    straight_through straight_through_activation sync_affine_param sync_codebook sync_kmeans
    sync_update_v temperature threshold_ema_dead_code topk tournament_size use_cosine_sim
    vector_norm vq_bridge
"""


def test_every_option_of_vector_quantize_pytorch_has_its_row():
    missing = set(OF_VECTOR_QUANTIZE_PYTORCH.split()) - set(re.findall(r'\w+', guide()[1]))
    assert not missing, sorted(missing)


def headings(path):
    """The anchors of a page, as GitHub and mkdocs make them of simple headings."""
    found = re.findall(
        r'^#+ (.+)$', re.sub(r'^```.*?^```', '', path.read_text(), flags=re.M | re.S), re.M
    )
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in found}


def test_every_link_of_the_readme_leads_somewhere():
    links = re.findall(r'\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)', (ROOT / 'README.md').read_text())
    assert len(links) > 40
    for name, anchor in links:
        assert (ROOT / name).exists(), name
        assert not anchor or anchor in headings(ROOT / name), f'{name}#{anchor}'


def test_the_guide_names_no_quantizer_that_is_gone():
    for pattern in (r'^\| `(\w+)` \|', r'^### (\w+)$'):
        found = set(re.findall(pattern, guide()[0], re.MULTILINE))
        assert found <= {kind.__name__ for kind in REGISTRY.values()}


def test_every_remedy_of_the_collapse_page_names_something_that_exists():
    text = (ROOT / 'docs' / 'collapse.md').read_text()
    for name in re.findall(r'`(vqjax\.[\w.]+)`', text):
        found = vqjax
        for part in name.split('.')[1:]:
            if not hasattr(found, part):
                found = importlib.import_module(f'{found.__name__}.{part}')
            else:
                found = getattr(found, part)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip('mkdocs')
    pytest.importorskip('material')
    pytest.importorskip('mkdocstrings')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '-d', str(tmp_path)]
    # The theme greets on stderr with news of its makers unless told not to.
    env = os.environ | {'NO_MKDOCS_2_WARNING': '1'}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / 'api' / 'quantizers' / 'index.html').read_text()
    assert all(f'.{kind.__name__}"' in page for kind in REGISTRY.values())
    # By public name, with what the docstring says of the result in one row.
    ops = (tmp_path / 'api' / 'ops' / 'index.html').read_text()
    assert 'id="vqjax.ops.nearest_codes"' in ops and 'id="vqjax.VQEMA"' in page
    assert 'A code that is not finite is never chosen' in ' '.join(ops.split())
    assert list((tmp_path / 'results').glob('*/nearest.png'))
    # Nothing on a page is fetched from another host.
    home = (tmp_path / 'index.html').read_text()
    fetched = re.findall(r'<(?:link|script|img)[^>]+(?:href|src)="(https?:)?//', home)
    assert not fetched
