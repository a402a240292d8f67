"""One checkpoint: a folder of files that hold a training's state and can run no code.

    model.safetensors     the model's parameters under their own names
    trainer.safetensors   all other tensors: the optimizer's, random states, meters
    state.json            what is no tensor, with references to those that are
    manifest.json         size and SHA-256 of these files, and its own: written last, it vouches for the rest

A folder appears under its name only with all of this on the disk, so it is complete or absent whenever a process ends.
"""

import hashlib
import json
import math
import os
import pickle
import re
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple, TypedDict, cast

import numpy
import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from amos_fairseq import json_files
from amos_fairseq.files import FileRecord, check_regular, file_record, sync_folder, write_durably
from amos_fairseq.user_errors import Damaged, unreadable_is_damaged

FORMAT = 1
MODEL, TRAINER, STATE, MANIFEST = "model.safetensors", "trainer.safetensors", "state.json", "manifest.json"
FILES = (MODEL, TRAINER, STATE)
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}


class About(TypedDict, total=False):
    """What the run's other checkpoints make of this one (`store`)."""

    number: int
    score: Optional[float]
    purposes: List[str]


class Manifest(About):
    format: int
    files: Dict[str, FileRecord]


class Signed(TypedDict):
    checkpoint: Dict[str, Any]
    sha256: str


class Length(TypedDict, total=False):
    max_update: int


class Others(TypedDict, total=False):
    optimization: Length


class Options(Others):
    """fairseq's whole configuration."""

    task: Dict[str, Any]
    model: Dict[str, Any]


class State(TypedDict, total=False):
    """What trainings save, as far as others read it."""

    cfg: Options
    task_state: Dict[str, Any]
    model: Dict[str, Tensor]


def write(folder: Path, state: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write `state`, as nested dicts, lists and tuples of tensors and plain values, to the new `folder`.

    about: plain values that `read_manifest` gives back. Raises OSError if the disk takes no more, TypeError for what
    is neither data nor tensor; then nothing is left.
    """
    partial = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        document, tensors = encode(state)
        model = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
        rest = {name: tensor for name, tensor in tensors.items() if name not in model}
        model = {name.removeprefix("model."): tensor for name, tensor in model.items()}
        files = {
            MODEL: write_durably(partial / MODEL, safetensors_bytes(model)),
            TRAINER: write_durably(partial / TRAINER, safetensors_bytes(rest)),
            STATE: write_durably(partial / STATE, [json.dumps(document).encode()]),
        }
        manifest = {"format": FORMAT, **about, "files": files}
        signed = {"checkpoint": manifest, "sha256": digest_of(manifest)}
        write_durably(partial / MANIFEST, [json.dumps(signed, indent=1).encode()])
        sync_folder(partial)
        os.rename(partial, folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


class Tensors(Dict[str, Tensor]):
    """Those of a checkpoint by name, read when they are asked for."""

    def __init__(self, folder: Path):
        self.files = {name: safetensors.safe_open(folder / name, framework="pt") for name in (MODEL, TRAINER)}

    def __missing__(self, name: str) -> Tensor:
        model = self.files[MODEL]
        own = name.removeprefix("model.")
        found = model.get_tensor(own) if name != own and own in model.keys() else self.files[TRAINER].get_tensor(name)
        return self.setdefault(name, found)  # a tied table stays one tensor


def read(folder: Path, keys: Optional[Iterable[str]] = None) -> Dict[str, Any]:
    """The state that `write` was given, or what it has under `keys`, its tensors on the CPU. Raises Damaged."""
    verify(folder)
    return read_verified(folder, keys)


def read_verified(folder: Path, keys: Optional[Iterable[str]] = None) -> Dict[str, Any]:
    """`read`, of a checkpoint that has just been verified, which takes a pass over all of its files."""
    document = json_files.read(folder / STATE)
    try:
        return decode(document if keys is None else {key: document[key] for key in keys}, Tensors(folder))
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Damaged(f"{folder / STATE} is not as training writes it: {type(error).__name__} {error}") from None


def read_state(folder: Path, keys: Optional[Iterable[str]] = None) -> State:
    """`read_verified` of what a training saved, of which `State` says what it must be."""
    return json_files.formed(read_verified(folder, keys), State, folder / STATE)


def read_manifest(folder: Path) -> Manifest:
    """The `about` of `write` and a record of each file. Raises Damaged unless it is what was written."""
    path = folder / MANIFEST
    if not path.exists():
        raise Damaged(f"{folder} has no {MANIFEST}")
    signed = json_files.read(path, Signed)
    manifest = signed["checkpoint"]
    if digest_of(manifest) != signed["sha256"]:
        raise Damaged(f"{path} is damaged: its SHA-256 is another")
    if manifest.get("format") != FORMAT:
        raise Damaged(f"{path} has format {manifest.get('format')}, not {FORMAT}: written by another version")
    json_files.formed(manifest, Manifest, path)
    if manifest["files"].keys() != set(FILES):
        raise Damaged(f"{path} does not list {', '.join(FILES)}")
    return cast(Manifest, manifest)


def verify(folder: Path) -> Manifest:
    """The manifest, every file's size and SHA-256 compared with it. Raises Damaged with the first difference."""
    manifest = read_manifest(folder)
    for name in FILES:
        path, record = folder / name, manifest["files"][name]
        with unreadable_is_damaged():
            check_regular(path, record["bytes"])
            if file_record(path) != record:
                raise Damaged(f"{path} is damaged: its size or SHA-256 is not that of the manifest")
    return manifest


def check_finite(state: Mapping[str, Tensor], source: object) -> None:
    """Raises Damaged for the first of the parameters that is nan or infinite somewhere."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise Damaged(f"{source}: {name} holds nan or infinite numbers: name an earlier checkpoint")


def refusal(source: object, error: pickle.UnpicklingError) -> str:
    """Why torch does not load a file that asks for more than data."""
    reason = re.search(r"(Unsupported|Trying to|Can only) .*?(?=\. |\.?$)", str(error), re.MULTILINE)
    what = reason.group() if reason else "it holds more than data"
    return f"{source} is refused, since to load it could run code: {what}"


def digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def safetensors_bytes(tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    """A safetensors file, one tensor after the other copied to the CPU, so that no second state fits beside the first.

    The format: length of the header (8 bytes, little endian), header (JSON), tensors without gaps.
    https://github.com/huggingface/safetensors#format
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # aligned, as the library has it
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield memoryview(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def encode(state: Any) -> Tuple[Any, Dict[str, Tensor]]:
    """`state` in terms of JSON, and its tensors by name; decode(*encode(state)) is `state`.

    One tensor met in several places, as a tied table is, has one name. JSON has no tuples, no infinities and only
    strings as keys; here `{"$tuple": ..}` and the like stand for these.
    """
    tensors: Dict[str, Tensor] = {}
    names: Dict[Tuple, str] = {}

    def name_of(tensor: Tensor, path: Tuple[str, ...]) -> str:
        if tensor.dtype not in DTYPES:
            raise TypeError(f"a checkpoint cannot hold {tensor.dtype}, found at {'.'.join(path)}")
        place = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in names:
            return names[place]
        name = ".".join(path)
        while name in tensors:
            name += "_"
        tensors[name] = tensor
        return names.setdefault(place, name)

    def encoded(value: Any, path: Tuple[str, ...]) -> Any:
        if isinstance(value, Tensor):
            return {"$tensor": name_of(value, path)}
        if isinstance(value, numpy.generic):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            return {"$float": str(value)}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Namespace):
            return {"$namespace": encoded(vars(value), path)}
        if isinstance(value, Mapping):
            items = [(key, encoded(item, (*path, str(key)))) for key, item in value.items()]
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return dict(items)
            return {"$items": [[encoded(key, path), item] for key, item in items]}
        if isinstance(value, (list, tuple)):
            items = [encoded(item, (*path, str(index))) for index, item in enumerate(value)]
            return items if isinstance(value, list) else {"$tuple": items}
        raise TypeError(f"a checkpoint cannot hold {type(value).__name__}, found at {'.'.join(path)}")

    return encoded(state, ()), tensors


def decode(document: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(document, list):
        return [decode(item, tensors) for item in document]
    if not isinstance(document, dict):
        return document
    kind, value = next(iter(document.items()), ("", None))
    if kind == "$tensor":
        return tensors[value]
    if kind == "$float":
        return float(value)
    if kind == "$tuple":
        return tuple(decode(value, tensors))
    if kind == "$items":
        return {decode(key, tensors): decode(item, tensors) for key, item in value}
    if kind == "$namespace":
        return Namespace(**decode(value, tensors))
    return {key: decode(item, tensors) for key, item in document.items()}
