"""A file is written whole or not at all, as `open` would leave it; JSON that is none is named."""

import os
import stat
import sys
import threading

import pytest

from vqjax.atomic import read_json, replace_file

pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='permissions and links of POSIX')


@pytest.fixture
def umask():
    """Sets umask; put back at the end."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path):
    return oct(stat.S_IMODE(path.stat().st_mode))


@pytest.mark.parametrize('mask', [0o022, 0o077, 0o002, 0o000])
def test_a_new_file_has_the_permissions_that_open_gives(tmp_path, umask, mask):
    umask(mask)
    (tmp_path / 'opened').write_text('x')
    replace_file(tmp_path / 'written', 'x')
    assert mode(tmp_path / 'written') == mode(tmp_path / 'opened')


@pytest.mark.parametrize('given', [0o600, 0o640, 0o666, 0o444, 0o755])
def test_an_existing_file_keeps_its_permissions(tmp_path, given):
    file = tmp_path / 'file'
    file.write_text('before')
    file.chmod(given)
    replace_file(file, b'after')
    assert mode(file) == oct(given) and file.read_bytes() == b'after'


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path):
    (tmp_path / 'far').mkdir()
    target, link, chain = tmp_path / 'far' / 'target', tmp_path / 'link', tmp_path / 'chain'
    link.symlink_to('far/target')
    chain.symlink_to(link)
    for content in ('first', 'second'):  # at first the link leads nowhere
        replace_file(chain, content)
        assert chain.is_symlink() and link.is_symlink() and not target.is_symlink()
        assert target.read_text() == content
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['chain', 'far', 'link', 'target']


def test_what_cannot_be_written_is_named_and_not_the_temporary_file(tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'a').symlink_to('b')
    (tmp_path / 'b').symlink_to('a')
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'file').write_text('')
    before = sorted(tmp_path.iterdir())
    for name, kind in (
        ('gone/file', FileNotFoundError),
        ('folder', IsADirectoryError),
        ('file/inside', NotADirectoryError),
        ('a', OSError),
        ('pipe', OSError),
        ('x' * 300, OSError),
    ):
        with pytest.raises(kind) as error:
            replace_file(tmp_path / name, 'x')
        assert error.value.filename == str(tmp_path / name)
        assert error.value.strerror and str(tmp_path / name) in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_any_name_that_a_folder_takes_can_be_written(tmp_path):
    for name in ('x' * 255, 'ü' * 127, '.hidden', 'a b'):
        replace_file(str(tmp_path / name), name)
        assert (tmp_path / name).read_text() == name


def test_a_reader_sees_the_old_or_the_new_file_and_never_half(tmp_path):
    file, contents = tmp_path / 'file', ['a' * 100_000, 'b' * 200_000]
    replace_file(file, contents[0])
    seen, ended = set(), threading.Event()

    def read():
        while not ended.is_set():
            seen.add(file.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(20):
        replace_file(file, contents[i % 2])
    ended.set()
    reader.join()
    assert seen and seen <= set(contents)


def test_a_codec_file_is_written_the_same_way(tmp_path, umask):
    pytest.importorskip('safetensors')
    from vqjax import FSQ
    from vqjax.codec import Codec

    codec = Codec(FSQ((3, 3)), (), (), 2)
    umask(0o077)
    codec.save(tmp_path / 'codec')
    assert mode(tmp_path / 'codec') == '0o600'
    (tmp_path / 'link').symlink_to('codec')
    codec.save(tmp_path / 'link')
    assert (tmp_path / 'link').is_symlink() and Codec.load(tmp_path / 'link').dim == 2
    with pytest.raises(FileNotFoundError, match='gone/codec'):
        codec.save(tmp_path / 'gone' / 'codec')


@pytest.mark.parametrize(
    'content, reason',
    [
        (b'', 'is damaged (it is empty)'),
        (b' \n', 'is damaged (it is empty)'),
        (b'{"a": 1', 'is damaged (not valid JSON: '),
        (b'[1, 2]', 'is damaged (it holds a list instead of a mapping)'),
        (b'"x"', 'is damaged (it holds a text instead of a mapping)'),
        (b'true', 'is damaged (it holds true or false instead of a mapping)'),
        (b'null', 'is damaged (it holds null instead of a mapping)'),
        (b'7.5', 'is damaged (it holds a number instead of a mapping)'),
        (b'[' * 100_000, 'is damaged (not valid JSON: '),
        (b'9' * 10_000, 'is damaged (not valid JSON: '),
        (b'{"a": "\xff"}', 'is damaged (byte 7 is not UTF-8 text)'),
    ],
    ids=range(11),
)
def test_json_that_is_no_mapping_is_one_sentence_with_file_and_remedy(tmp_path, content, reason):
    file = tmp_path / 'some.json'
    file.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_json(file, 'remove it')
    message = str(error.value)
    assert message.startswith(f'{file} {reason}') and message.endswith(': remove it')
    assert '\n' not in message and len(message) < 400


def test_json_that_cannot_be_read_says_why(tmp_path):
    for name, reason in (('gone', 'No such file or directory'), ('.', 'Is a directory')):
        with pytest.raises(ValueError, match=rf'cannot be read \({reason}\): restore it'):
            read_json(tmp_path / name, 'restore it')
    with pytest.raises(ValueError, match=r'cannot be read \(embedded null'):
        read_json('a\0b', '')
    (tmp_path / 'good').write_text('{"ü": [1, null]}', encoding='utf-8')
    assert read_json(tmp_path / 'good', '') == {'ü': [1, None]}
