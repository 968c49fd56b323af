"""Codecs in a model hub: the client's own calls on a folder in the hub's place, no network."""

import inspect
import pathlib
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import VQEMA
from vqjax.codec import Codec
from vqjax.codec.hub import from_pretrained, push_to_hub

pytest.importorskip('safetensors')


@pytest.fixture(scope='module')
def codec():
    z = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    return Codec(VQEMA(8), *VQEMA(8).init(jax.random.key(0), jnp.asarray(z)))


def same(a, b):
    z = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
    return a.quantizer == b.quantizer and np.array_equal(a.encode(z), b.encode(z))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that the client takes for the hub: every call must be one that it understands."""
    client = pytest.importorskip('huggingface_hub')
    made = SimpleNamespace(folder=tmp_path / 'hub', calls=[])

    def instead(name, act):
        signature = inspect.signature(getattr(client.HfApi, name))

        def call(self, *args, **kwargs):
            given = signature.bind(self, *args, **kwargs).arguments
            made.calls.append((name, self.token))
            return act(**{k: v for k, v in given.items() if k != 'self'})

        monkeypatch.setattr(client.HfApi, name, call)

    def place(repo_id, revision, filename):
        return made.folder / repo_id / (revision or 'main') / filename

    def upload(path_or_fileobj, path_in_repo, repo_id, revision=None, commit_message=None):
        target = place(repo_id, revision, path_in_repo)
        assert target.parent.is_dir(), 'no such repository or branch'
        shutil.copy(path_or_fileobj, target)
        return SimpleNamespace(commit_url=f'hub/{repo_id}/commit/1: {commit_message}')

    def download(repo_id, filename, revision=None, cache_dir=None, local_files_only=False):
        path = place(repo_id, revision, filename)
        if not path.is_file():
            raise client.errors.EntryNotFoundError('404')
        return str(path)

    def branch(repo_id, branch, exist_ok):
        place(repo_id, branch, '').mkdir(parents=True, exist_ok=exist_ok)

    def repository(repo_id, private, exist_ok):
        place(repo_id, None, '').mkdir(parents=True, exist_ok=exist_ok)

    instead('upload_file', upload)
    instead('hf_hub_download', download)
    instead('create_branch', branch)
    instead('create_repo', repository)
    return made


def test_what_is_pushed_is_what_is_loaded(codec, hub):
    assert push_to_hub(codec, 'me/codes') == 'hub/me/codes/commit/1: Codec of vqjax'
    assert same(from_pretrained('me/codes'), codec)
    push_to_hub(codec, 'me/codes', 'small.safetensors', revision='k8', token='secret')
    assert same(from_pretrained('me/codes', 'small.safetensors', revision='k8'), codec)
    assert ('upload_file', 'secret') in hub.calls
    with pytest.raises(ValueError, match='me/codes has no other: give filename'):
        from_pretrained('me/codes', 'other')


def test_a_codec_that_cannot_be_saved_makes_no_repository(codec, hub):
    mine = Codec(VQEMA(8, gradient=lambda z, z_q: z_q), codec.params, codec.state)
    with pytest.raises(ValueError, match='has no spec'):
        push_to_hub(mine, 'me/codes')
    assert hub.calls == []


def test_the_client_s_own_cache_is_read_without_network(codec, tmp_path):
    pytest.importorskip('huggingface_hub')
    commit = '0123456789abcdef0123456789abcdef01234567'
    repository = tmp_path / 'models--me--codes'
    (repository / 'snapshots' / commit).mkdir(parents=True)
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text(commit)
    codec.save(repository / 'snapshots' / commit / 'codec.safetensors')
    for revision in (None, commit):
        loaded = from_pretrained(
            'me/codes', revision=revision, cache_dir=tmp_path, local_files_only=True
        )
        assert same(loaded, codec)
    with pytest.raises(FileNotFoundError):  # the client's own, which says what to do
        from_pretrained('me/others', cache_dir=tmp_path, local_files_only=True)


def test_a_folder_needs_no_client(codec, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    codec.save(tmp_path / 'codec.safetensors')
    assert same(from_pretrained(tmp_path), codec)
    with pytest.raises(ValueError, match='has no vq.safetensors: give filename'):
        from_pretrained(tmp_path, 'vq.safetensors')
    for call in (lambda: from_pretrained('me/codes'), lambda: push_to_hub(codec, 'me/codes')):
        with pytest.raises(ImportError, match=r"pip install 'vqjax\[hub\]'"):
            call()


def test_nobody_imports_the_client_unasked():
    code = 'import sys, vqjax.codec, vqjax.codec.hub; sys.exit("huggingface_hub" in sys.modules)'
    root = pathlib.Path(__file__).parents[1]
    assert subprocess.run([sys.executable, '-c', code], cwd=root).returncode == 0
