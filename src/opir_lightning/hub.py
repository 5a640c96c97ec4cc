"""Models on the Hugging Face Hub: files down into its client's cache, files up as one commit.

The client, ``huggingface_hub``, is an optional package, imported when the first model is fetched or sent. The cache,
the login (``hf auth login`` or ``HF_TOKEN``) and the settings (``HF_HOME``, ``HF_HUB_OFFLINE``) are its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from opir_lightning.errors import UserError

INSTALL = "pip install 'opir-lightning[hub]'"
WEIGHTS_FILE = "model.safetensors"  # what a run folder calls it too
CARD_FILE = "README.md"
LARGEST_FILE = 2**30  # bytes of weights; opir_base has 40 million

# The revision becomes part of a path in the client's cache: as in git, it neither begins with "/" nor holds "..".
_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>(?!/)(?!\S*\.\.)\S+))?", re.ASCII)
# A name that ends so is a file that is not there: asking a server for it would only delay the message.
_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".onnx")


class HubId(NamedTuple):
    """A model on the hub.

    Attributes:
        repo: ``"owner/name"``.
        revision: branch, tag or commit; None is the main branch.
    """

    repo: str
    revision: str | None = None


def parse_id(text: str) -> HubId | None:
    """``owner/name`` or ``owner/name@revision``; None for any other text, be it a path or the name of a file."""
    match = _ID.fullmatch(text)
    return None if match is None or match["repo"].endswith(_FILES) else HubId(match["repo"], match["revision"])


def download(model: HubId) -> Path:
    """Path of a model's weights in the cache, where they are brought if they are not there or have changed.

    Without a connection, the copy in the cache is taken where there is one.

    Raises:
        UserError: the client is not installed, there is no such model, revision or file, it may not be read, or the
            hub cannot be reached. As the same text could mean a local file that is missing, each message says so.
    """
    with _explained(f"There is no file or folder '{model.repo}', and ", model):
        client, endpoint = _client(), _endpoint()
        cached = client.try_to_load_from_cache(model.repo, WEIGHTS_FILE, revision=model.revision)
        # Asked once: without a copy in the cache, the download tries an unreachable hub for 24 s. The name may
        # well be a mistyped path of somebody without a network. And a newer file may have any size.
        url = client.hf_hub_url(model.repo, WEIGHTS_FILE, revision=model.revision, endpoint=endpoint)
        try:
            there = client.get_hf_file_metadata(url)
        except Exception:
            if not isinstance(cached, str):
                raise
            there = None  # the client takes the copy, or says why not
        if there is not None:
            if isinstance(cached, str) and Path(cached).parent.name == there.commit_hash:
                return Path(cached)
            if there.size is not None and there.size > LARGEST_FILE:
                raise UserError(f"the {WEIGHTS_FILE} there has {there.size} bytes; {LARGEST_FILE} are allowed.")
        path = client.hf_hub_download(model.repo, WEIGHTS_FILE, revision=model.revision, endpoint=endpoint)
        return Path(path)


def upload(repo: str, files: Mapping[str, bytes], *, private: bool | None, message: str) -> str:
    """Send files as one commit to the main branch of a model, which is created if it is not there.

    Args:
        repo: ``"owner/name"``.
        files: contents by name; those that are there under the same names are replaced.
        private: who may see it; None leaves that to the hub and to what is there.
        message: of the commit.

    Returns:
        The address of the model's page.

    Raises:
        UserError: the client is not installed, the id is none, it may not be written, it is there and not as
            private as asked for, or the hub cannot be reached.
    """
    model = parse_id(repo)
    if model is None or model.revision is not None:
        raise UserError(
            f"'{repo}' names no model of the hub: it must be OWNER/NAME, of letters, digits, '-', '_', '.'."
        )
    if not message.strip():
        raise UserError("The commit needs a message; it was empty.")
    with _explained(f"Nothing was sent to '{repo}': ", model):
        client = _client()
        api = client.HfApi(endpoint=_endpoint())
        url = str(api.create_repo(repo, private=private, exist_ok=True))
        # An existing repository keeps its visibility: private weights must not appear on a public page.
        if private is not None and bool(api.model_info(repo).private) != private:
            found = "public" if private else "private"
            raise UserError(f"it is there already and {found}; change that on its page.")
        additions = [client.CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repo, additions, commit_message=message)
    return url


def _client() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"models on the Hugging Face Hub need the package huggingface_hub: {INSTALL}") from error
    return huggingface_hub


def _endpoint() -> str | None:
    """The address of another hub. The client reads it when it is imported, which is too early for a notebook."""
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _explained(start: str, model: HubId) -> Iterator[None]:
    """Turn what the client raises into a `UserError` that begins with what was not done."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{start}{error}") from error.__cause__
    except Exception as error:  # its HTTP library, its storage library and the disk all have classes of their own
        raise UserError(f"{start}{_reason(error, model)}") from error


def _reason(error: Exception, model: HubId) -> str:
    from huggingface_hub import errors

    login = "log in with `hf auth login` or set HF_TOKEN"
    missing_locally = isinstance(error, errors.LocalEntryNotFoundError)
    if missing_locally and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why the hub was of no help
    status = getattr(getattr(error, "response", None), "status_code", None)
    match error:
        case errors.HFValidationError():
            return f"'{model.repo}' is no id of a model on the Hugging Face Hub either."
        case errors.GatedRepoError():
            return f"the model of this name on the Hugging Face Hub is open on request: ask on its page, then {login}."
        case errors.RevisionNotFoundError():
            return f"the model of this name on the Hugging Face Hub has no revision '{model.revision or 'main'}'."
        case errors.EntryNotFoundError() if not missing_locally:
            return f"the model of this name on the Hugging Face Hub holds no {WEIGHTS_FILE}."
        case errors.RepositoryNotFoundError():
            return f"the Hugging Face Hub shows no model of this name; if it is a private one, {login}."
        case errors.OfflineModeIsEnabled():
            return "the Hugging Face Hub was not asked, because HF_HUB_OFFLINE is set."
        case _ if status in (401, 403):
            return f"the Hugging Face Hub does not permit it ({status}): {login}, with a token that may do this."
        case _ if status is not None:
            return f"the Hugging Face Hub answered with the error {status}; try again later."
    # Connections that fail have no class of their own that every version of the client would share.
    text = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return f"the Hugging Face Hub could not be reached or its answer not be used ({text})."
