"""What hydra itself would run of a configuration, or never finish to read: code, and YAML that grows. Refused here.

hydra 1.3 calls what a configuration names in `_target_` (callbacks, launcher, sweeper) and, through Python's logging,
in `()`; it sets environment variables, imports the packages of its search path, and unpickles what it is to repeat.
"""

import copy
import itertools
import os
from typing import Any, Dict, Iterator, Mapping, Tuple
from unittest import mock

import yaml
from omegaconf import Container, DictConfig, Node, OmegaConf
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import InterpolationResolutionError, InterpolationToMissingValueError, OmegaConfBaseException

OWN = "hydra._internal.core_plugins."  # its launcher and its sweeper
CLASSES = {f"logging.{name}" for name in ("StreamHandler", "FileHandler", "NullHandler", "Formatter")}
STREAMS = {"ext://sys.stdout", "ext://sys.stderr"}
RESOLVED = ("filename", "format")  # whose values may refer to others: they are texts
CALLED = (".()", "..", ".factory", ".queue", ".listener")  # keys by which logging calls or replaces functions
FILE_BYTES, VALUES, DEPTH = 1 << 20, 20_000, 32  # of a YAML file, with aliases written out
REFERENCES, FILES = 1_000, 1_000  # that a configuration follows, each as often as it does
SHOWN = 60  # characters of a value
UNKNOWN = "0"  # text or number


def check(hydra: Mapping[str, Any]) -> None:
    """Raises ValueError, in one line, if hydra's own group of a configuration, not resolved, names code to be run."""
    environment = (hydra.get("job") or {}).get("env_set")
    if environment:
        raise ValueError(f"hydra.job.env_set {environment} is refused: set variables in the shell")
    if hydra.get("callbacks"):
        raise ValueError(f"hydra.callbacks {hydra['callbacks']} is refused, since it could run code: leave it out")
    for group in ("launcher", "sweeper", "hydra_logging", "job_logging"):
        _check_group(f"hydra.{group}", hydra.get(group))


def _check_group(place: str, value: Any) -> None:
    """Of what is instantiated: names of code are known ones, and written where they stand."""
    if isinstance(value, (list, dict)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            _check_group(f"{place}.{key}", part)
        harmful = False
    else:
        name, text = place.rpartition(".")[2], str(value)
        called = name == "_target_" and not text.startswith(OWN) or name == "class" and text not in CLASSES
        found = "://" in text and text not in STREAMS or "${" in text and name not in RESOLVED
        harmful = called or found
    if harmful or place.endswith(CALLED):
        raise ValueError(f"{place} {value!r} is refused, since it could run code: take hydra's own, or leave it out")


def check_search(provider: str, path: str) -> None:
    """Raises ValueError for a package that a configuration has hydra look for others in."""
    if provider.startswith("hydra.searchpath") and not path.startswith("file://") and "://" in path:
        raise ValueError(f"hydra.searchpath {path} is refused, since it would be imported: name a folder")


def check_count(files: int) -> None:
    """Raises ValueError for defaults that name more files than any configuration has, each as often as it is named."""
    if files > FILES:
        raise ValueError(f"the configuration's defaults name more than {FILES:,} files: none has so many")


def check_file(path: str) -> None:
    """Raises ValueError for YAML whose nesting or aliases no configuration has."""
    if not os.path.isfile(path) or os.path.getsize(path) > FILE_BYTES:
        raise ValueError(f"{path} is no configuration: a file of at most {FILE_BYTES:,} bytes")
    measured: Dict[int, Tuple[int, int]] = {}

    def measure(node: yaml.Node, depth: int = 1) -> Tuple[int, int]:
        """(values, levels)"""
        if id(node) not in measured:
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = itertools.chain(*parts) if isinstance(node, yaml.MappingNode) else parts
            values, levels = zip((1, 0), *(measure(part, depth + 1) for part in parts if depth <= DEPTH))
            measured[id(node)] = sum(values), 1 + max(levels)
        return measured[id(node)]

    try:
        with open(path, encoding="utf-8") as stream:
            values, levels = measure(yaml.compose(stream, yaml.SafeLoader) or yaml.ScalarNode("", ""))
    except RecursionError:
        levels = DEPTH + 1
    if levels > DEPTH:
        raise ValueError(f"{path} is nested more than {DEPTH} levels deep: no configuration is")
    if values > VALUES:
        raise ValueError(f"{path} has {values:.3g} values with its aliases written out: no configuration has so many")


def check_references(cfg: DictConfig) -> None:
    """Raises ValueError for values that grow by referring to each other, and for those that refer to no value."""
    followed = length = 0
    resolve = Container._resolve_interpolation_from_parse_tree

    def counted(self, *args, **kwargs):
        nonlocal followed, length
        followed += 1
        node = resolve(self, *args, **kwargs) if followed <= REFERENCES else None
        length += sum(len(str(leaf)) for leaf in _leaves(node)) if isinstance(node, Node) else 0
        if followed > REFERENCES or length > FILE_BYTES:
            raise InterpolationResolutionError(f"values refer to others more than {REFERENCES:,} times, or for more "
                                               f"than {FILE_BYTES:,} characters: no configuration does")
        return node

    def follow(group: Container) -> None:
        for node in _leaves(group):
            if not node._is_interpolation():
                continue
            name = f"{node._get_full_key(None)} {str(node._value())[:SHOWN]}"
            try:
                found = node._dereference_node()
            except InterpolationToMissingValueError:  # of which its own name is told
                continue
            except (OmegaConfBaseException, RecursionError) as error:
                raise ValueError(f"{name}: {str(error).splitlines()[0]}") from None
            if isinstance(found, Container):
                follow(found)

    whole = copy.deepcopy(cfg)
    own = OmegaConf.masked_copy(whole, [group for group in whole if group != "hydra"])  # as the training has it
    for node in _leaves(whole.hydra):
        if node._is_missing():  # what hydra finds out when it runs
            node._set_value(UNKNOWN)
    known_later = mock.patch.dict(BaseContainer._resolvers, hydra=lambda *_: UNKNOWN)
    with known_later, mock.patch.object(Container, resolve.__name__, counted):
        follow(own)
        follow(whole.hydra)


def _leaves(node: Node) -> Iterator[Node]:
    """What holds no other nodes, a reference to what does among it."""
    if isinstance(node, Container) and isinstance(node._value(), (dict, list)):
        for key in node if isinstance(node, DictConfig) else range(len(node)):
            yield from _leaves(node._get_node(key))
    else:
        yield node
