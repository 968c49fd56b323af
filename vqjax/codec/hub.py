"""Codec files in a repository of a model hub, through the hub's own client (extra `hub`).

`Codec.save` and `Codec.load` are about files; these two put such a file into a repository and get
it from there. Where to, with which rights and which cache is the client's business: it reads its
own environment variables and the token of its login.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from types import ModuleType

from vqjax.codec.tokenizer import Codec

FILENAME = 'codec.safetensors'


def push_to_hub(
    codec: Codec,
    repo_id: str,
    filename: str = FILENAME,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = 'Codec of vqjax',
) -> str:
    """Save a codec into a repository, which is made if there is none.

    Args:
      codec: to be saved as `Codec.save` does.
      repo_id: 'user/name'.
      filename: of the codec in the repository.
      revision: branch, made if there is none; by default the main one.
      private: whether a repository that is made is private; by default the hub's own default.
      token: of the hub; by default that of the client's login.
      commit_message: what the commit says.

    Returns:
      The commit's address.

    Raises:
      ValueError: for a codec that cannot be saved, before anything is made on the hub.
      ImportError: without the client or safetensors (extra `hub`).
      The client's own errors: for a repository that cannot be written, or no network.
    """
    api = _client().HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / FILENAME
        codec.save(path)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_file(
            path_or_fileobj=path,
            path_in_repo=filename,
            repo_id=repo_id,
            revision=revision,
            commit_message=commit_message,
        )
    return commit.commit_url


def from_pretrained(
    repo_id: str | os.PathLike[str],
    filename: str = FILENAME,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | None = None,
) -> Codec:
    """Load a codec from a repository, or from a folder that holds what one does.

    Args:
      repo_id: 'user/name', or a folder on disk, which needs no client.
      filename: of the codec in it.
      revision: branch, tag or commit; a commit's full hash always gives the same codec.
      cache_dir: where the client keeps what it downloads.
      local_files_only: whether to read that cache alone, without any network.
      token: of the hub; by default that of the client's login.

    Raises:
      ValueError: for a repository or folder without such a file, or a file that is no codec.
      ImportError: without the client (extra `hub`).
      The client's own errors: for a repository that cannot be read, or no network.
    """
    folder = pathlib.Path(repo_id)
    if folder.is_dir():
        if not (folder / filename).is_file():
            raise ValueError(f'{folder} has no {filename}: give filename')
        return Codec.load(folder / filename)
    client = _client()
    try:
        path = client.HfApi(token=token).hf_hub_download(
            str(repo_id),
            filename,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    except client.errors.LocalEntryNotFoundError:
        raise  # not on this machine: it says so itself
    except client.errors.EntryNotFoundError as error:
        raise ValueError(f'{repo_id} has no {filename}: give filename') from error
    return Codec.load(path)


def _client() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise ImportError(
            "the model hub needs its client: install the extra, pip install 'vqjax[hub]'"
        ) from error
    return huggingface_hub
