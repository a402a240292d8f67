"""The guides and cards: links that resolve, and figures that follow from the code."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from amos_fairseq.analysis.flops import Geometry, hardware_flops, update_flops, without_memory
from amos_fairseq.export.choices import candidates, choose
from amos_fairseq.flops import ASSUMED_MFU, PEAK_FLOPS
from amos_fairseq.methods import METHODS
from amos_fairseq.pretrained.model import Pretrained

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "slurm/README.md"]
PAGES += sorted(EXAMPLES.glob("*/*.md"))
CHOOSING = (EXAMPLES / "guides/choosing.md").read_text()
LARGE_VOCABULARY, BERT_VOCABULARY = 32768, 30522


def anchors(page: Path) -> set:
    """What GitHub calls a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].generator_modules])
def test_cards_tell_the_cost_of_the_generator_alone(name):
    cost = (EXAMPLES / name / "README.md").read_text().partition("## Cost\n\n")[2].partition("\n\n")[0]
    vocab_size, geometry = BERT_VOCABULARY if "--vocab-size 30522" in cost else LARGE_VOCABULARY, Geometry(1, 512, 2)
    options = dict(generator_warmup_updates=1, generator_warmup_without_copy=True)
    alone, joint = update_flops(without_memory(name, "base", vocab_size, geometry, options), geometry)
    told = f"(`--generator-warmup-updates`) costs {100 * alone / joint:.0f} % of a whole one's FLOPs"
    assert told in " ".join(cost.split())


def flops_per_token(name: str, vocab_size: int) -> float:
    geometry = Geometry(2048, 512, 1)
    return hardware_flops(without_memory(name, "base", vocab_size, geometry), geometry)


@pytest.mark.parametrize("name", METHODS)
def test_costs_of_a_card_are_those_of_its_base_recipe(name):
    cost = (EXAMPLES / name / "README.md").read_text().partition("## Cost\n\n")[2].partition("\n\n")[0]
    vocab_size = BERT_VOCABULARY if "--vocab-size 30522" in cost else LARGE_VOCABULARY
    recipe = OmegaConf.load(EXAMPLES / name / "base.yaml")
    sequences = recipe.dataset.batch_size * recipe.optimization.update_freq[0]
    sequences *= recipe.distributed_training.distributed_world_size
    token = flops_per_token(name, vocab_size)
    run = token * sequences * recipe.task.tokens_per_sample * recipe.optimization.max_update
    words = " ".join(cost.split())
    assert f"{token / 1e6:,.0f} MFLOPs per token" in words
    hours = run / (PEAK_FLOPS["A100"] * ASSUMED_MFU) / 3600
    told = f"{run:.2e} FLOPs in all: {hours:.0f} hours of one A100 if the MFU were {ASSUMED_MFU}"
    assert told.replace("e+", "e") in words
    if name != "electra_rtd":
        assert f"{token / flops_per_token('electra_rtd', vocab_size):.2f} times `electra_rtd`'s" in words


@pytest.mark.parametrize("name", METHODS)
def test_guide_to_choosing_has_the_cost_of_each_method(name):
    ratio = flops_per_token(name, LARGE_VOCABULARY) / flops_per_token("bert_mlm", LARGE_VOCABULARY)
    assert f"| `{name}` | {ratio:.2f} |" in CHOOSING


@pytest.mark.parametrize("name", ["amos_rtd", "coco_lm", "teams_mws", "peer_tqr", "electra_rtd"])
def test_guide_to_choosing_has_the_cost_with_a_frozen_generator(name):
    untied = dict(tied_layers="none") if name in ("teams_mws", "peer_tqr") else {}
    geometry = Geometry(2048, 512, 1)
    frozen = without_memory(name, "base", LARGE_VOCABULARY, geometry, dict(generator_checkpoint="its", **untied))
    both = flops_per_token(name, LARGE_VOCABULARY), hardware_flops(frozen, geometry)
    trained, frozen = (cost / flops_per_token("bert_mlm", LARGE_VOCABULARY) for cost in both)
    assert f"| `{name}` | {trained:.2f} | {frozen:.2f} |" in CHOOSING


@pytest.mark.parametrize("name", METHODS)
def test_guide_to_choosing_has_the_class_that_each_method_is_exported_as(name):
    method = without_memory(name, "base", LARGE_VOCABULARY, Geometry(1, 512, 1))
    encoder, *_ = choose(candidates(Pretrained("", name, method.encoder, None, method)), ())
    table = CHOOSING.partition("exported as |")[2].partition("\n\n")[0]
    (row,) = [line for line in table.splitlines() if f"`{name}`" in line]
    assert f"`{encoder.class_name}`" in row.split("|")[-2]
