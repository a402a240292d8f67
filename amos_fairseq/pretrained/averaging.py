"""One checkpoint of several: the mean of their parameters (Izmailov et al., 2018, arXiv:1803.05407)."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, cast

from torch import Tensor

from amos_fairseq.checkpoints import storage, store
from amos_fairseq.methods import METHODS
from amos_fairseq.methods.continuation import first_difference
from amos_fairseq.options import Range, declared
from amos_fairseq.pretrained.loading import VOCABULARY

DECAY = Range(0, 1, without_low=True)


def weights_of(count: int, decay: Optional[float] = None) -> List[float]:
    """(count,) that sum to 1: alike, or each checkpoint's `decay` times the next one's, the last's the largest."""
    if decay is not None:
        DECAY.check("decay", decay)
    powers = [(1.0 if decay is None else decay) ** (count - 1 - place) for place in range(count)]
    return [power / sum(powers) for power in powers]


def average(paths: Sequence[Path], out: Path, decay: Optional[float] = None) -> List[Path]:
    """Write the checkpoint `out`, the last one named with mean parameters, and return which ones these are of.

    All else is the last one's, the optimizer's state but for its exact parameters included: training can go on from
    it. Raises ValueError if there are fewer than two, or if they are not of one network, method and vocabulary; then
    nothing is written.
    """
    weights = weights_of(len(paths), decay)
    folders = [store.find(path).resolve() for path in paths]
    if len(folders) < 2 or len(set(folders)) < len(folders):
        named = " ".join(map(str, paths))
        raise ValueError(f"{named}: checkpoints to average are two or more, each named once")
    if out.exists():
        raise ValueError(f"{out} exists: name a new folder")
    for path in folders:
        if not path.is_dir():
            raise ValueError(f"{path} is no folder that training wrote")
    state = read(folders[-1])
    names = {id(tensor): name for name, tensor in state["model"].items()}  # a tied table has several
    sums = {name: weights[-1] * state["model"][name].double() for name in names.values()}
    for path, weight in zip(folders, weights[:-1]):
        other = read(path, ["cfg", "task_state", "model"])
        check_alike(state, other, folders[-1], path)
        for name in sums:
            sums[name] += weight * other["model"][name].double()
    means: Dict[int, Tensor] = {}
    for place, name in names.items():
        tensor = state["model"][name]
        means[place] = sums[name].to(tensor.dtype) if tensor.is_floating_point() else tensor
    model = {name: means[id(tensor)] for name, tensor in state["model"].items()}
    state.get("last_optimizer_state", {}).pop("fp32_params", None)  # or a run in half precision goes on from these
    about = storage.read_manifest(folders[-1])
    out.parent.mkdir(parents=True, exist_ok=True)
    storage.write(out, {**state, "model": model}, dict(number=about["number"], score=None, purposes=[]))
    return folders


def read(folder: Path, keys: Optional[Sequence[str]] = None) -> Dict[str, Any]:
    """A checkpoint's state, or a part of it, its parameters finite."""
    storage.verify(folder)
    state = storage.read_state(folder, keys)
    storage.check_finite(state["model"], folder)
    return cast(Dict[str, Any], state)


def check_alike(state: Dict[str, Any], other: Dict[str, Any], path: Path, of_other: Path) -> None:
    both = f"{of_other} and {path}"
    (name, options, task), (others_name, others_options, others_task) = map(characteristics, (state, other))
    if others_name != name:
        raise ValueError(f"{both} are of {others_name} and {name}: average those of one method")
    if others_task != task:
        raise ValueError(f"{both} have two vocabularies, or problems: average those of one")
    for option in options:
        if others_options[option] != options[option]:
            raise ValueError(f"{both} differ in {option}, {others_options[option]} and {options[option]}")
    difference = first_difference(state["model"], other["model"])
    if difference:
        raise ValueError(f"{both} are two networks: {difference}")


def characteristics(state: Dict[str, Any]) -> Any:
    """Method, options that the shapes of parameters do not tell, and what the parameters are for."""
    name, task, model = state["cfg"]["task"]["_name"], state["task_state"], state["cfg"]["model"]
    rules = declared(METHODS[name].config_class) if name in METHODS else []
    vocabulary = task[VOCABULARY].tolist() if VOCABULARY in task else task.get("dictionary_sha256")
    options = {option.name: model.get(option.name) for option in rules if option.unseen}
    return name, options, (vocabulary, task.get("finetuned"))
