from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

pytest.importorskip("fairseq")
from fairseq.criterions import CRITERION_REGISTRY  # noqa: E402
from fairseq.models import MODEL_REGISTRY  # noqa: E402

import amos_fairseq.models.pretraining  # noqa: E402, F401
from amos_fairseq.criterions import pretraining as criterions  # noqa: E402
from amos_fairseq.methods import METHODS  # noqa: E402
from amos_fairseq.methods.config import Vocabulary  # noqa: E402
from amos_fairseq.models.base import Model  # noqa: E402
from amos_fairseq.modules.encoder import EncoderLayer  # noqa: E402
from amos_fairseq.objectives import COUNTED  # noqa: E402


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("compiled", [False, True])
def test_every_layer_of_every_network_is_compiled_if_asked_for(name, compiled):
    task = SimpleNamespace(method_name=name, vocabulary=Vocabulary(40, padding=1, excluded=[0, 1, 2, 3]), width=32)
    task.cfg = SimpleNamespace(tokens_per_sample=32, seed=1, max_update=10)
    cfg = dict(encoder_layers=4, encoder_embed_dim=16, encoder_ffn_embed_dim=16, encoder_attention_heads=2)
    cfg.update(max_positions=32, compile_layers=compiled)
    if name == "amos_rtd":
        cfg.update(generator_depths=[1, 2])
    model = MODEL_REGISTRY[name].build_model(OmegaConf.create(cfg), task)
    layers = [module for module in model.modules() if isinstance(module, EncoderLayer)]
    assert len(layers) >= 4
    assert {layer._compiled_call_impl is not None for layer in layers} == {compiled}


@pytest.mark.parametrize("name", METHODS)
def test_the_host_waits_for_the_device_nowhere_in_a_micro_batch_and_what_it_logs(
    make_method, batch, name, monkeypatch
):
    """On the device "meta" nothing has a value, so what reads one, or needs to know how many are true, raises."""
    monkeypatch.setattr(criterions, "peak_flops", lambda device: 1e12)
    model = amos_fairseq.models.pretraining.PretrainingModel(make_method(name, dropout=0.1).to("meta"))
    criterion = CRITERION_REGISTRY[name](SimpleNamespace(method_name=name, term_scales=dict.fromkeys(COUNTED, 1.0)))
    values = {key: x.to("meta") if torch.is_tensor(x) else x for key, x in batch._asdict().items()}
    loss, _, logs = criterion(model.train(), {"net_input": values, "ntokens": 33, "nsentences": 3})
    loss.backward()
    assert loss.is_meta and len(logs) > 8


def test_a_model_is_put_into_a_mode_unless_all_of_it_is_in_it(monkeypatch):
    model, asked = Model(), []
    model.layers = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout())

    def train(self, mode):
        asked.append(self)
        return torch.nn.Module.train(self, mode)

    monkeypatch.setattr(torch.nn.Dropout, "train", train)
    assert model.train() is model and asked == []
    model.layers[1].training = False
    assert model.train() is model and asked == [*model.layers] and model.layers[1].training
    assert model.eval() is model and not any(module.training for module in model.modules())
