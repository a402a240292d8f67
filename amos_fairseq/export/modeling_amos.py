"""Text encoder of the AMOS family for Hugging Face's transformers: load it with `trust_remote_code=True`.

Post-LN BERT with learned absolute positions and, if `relative_buckets` is not 0, a relative position bias that all
layers share. Any number of buckets, either bucketing, and a factorised token table go together, which MPNet, BERT and
ELECTRA do not have. Needs torch and transformers, nothing else.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel, modeling_outputs

DEFAULTS = dict(
    vocab_size=32768, embedding_size=768, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
    intermediate_size=3072, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, max_position_embeddings=512,
    relative_buckets=32, relative_max_distance=128, relative_bucketing="t5", layer_norm_eps=1e-5,
    initializer_range=0.02, pad_token_id=1, bos_token_id=0, eos_token_id=2,
)


class AmosConfig(PretrainedConfig):
    """relative_bucketing: t5, or released, that of Microsoft's AMOS and COCO-LM checkpoints"""

    model_type = "amos_encoder"

    def __init__(self, **options):
        super().__init__(**{**DEFAULTS, **options})


def relative_buckets(relative_position, buckets, max_distance, bucketing):
    """Rows of the bias table for key - query. Near distances have one each, far ones share them logarithmically.

    t5: rows up to buckets / 2 for keys at and before the query, the others for keys after it.
    released: rounds up, and mirrors both sides around row buckets / 2 - 1.
    """
    side, exact = buckets // 2, buckets // 4
    distance = relative_position.abs()
    ratio = torch.log(distance.clamp(min=1).float() / exact)
    if bucketing == "t5":
        far = exact + (ratio / math.log(max_distance / exact) * (side - exact)).long()
    else:
        far = exact + torch.ceil(ratio / math.log((max_distance - 1) / exact) * (side - 1 - exact)).long()
    row = torch.where(distance < exact, distance, far.clamp(max=side - 1))
    if bucketing == "t5":
        return row + side * (relative_position > 0)
    return row * relative_position.sign() + side - 1


class Embeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.positions = nn.Embedding(config.max_position_embeddings, config.embedding_size)
        self.layer_norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        factorised = config.embedding_size != config.hidden_size
        self.projection = nn.Linear(config.embedding_size, config.hidden_size) if factorised else nn.Identity()

    def forward(self, token_embeddings):
        positions = self.positions.weight[: token_embeddings.size(1)]
        return self.projection(self.dropout(self.layer_norm(token_embeddings + positions)))


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.in_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden, bias):
        projected = self.in_proj(hidden).chunk(3, -1)
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = Attention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden, bias):
        hidden = self.self_attn_layer_norm(hidden + self.dropout(self.self_attn(hidden, bias)))
        return self.final_layer_norm(hidden + self.dropout(self.fc2(F.gelu(self.fc1(hidden)))))


class AmosPreTrainedModel(PreTrainedModel):
    config_class = AmosConfig
    base_model_prefix = "amos"

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class AmosModel(AmosPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.token_embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.embeddings = Embeddings(config)
        self.relative_position_bias = None
        if config.relative_buckets:
            self.relative_position_bias = nn.Embedding(config.relative_buckets, config.num_attention_heads)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self):
        return self.token_embeddings

    def set_input_embeddings(self, value):
        self.token_embeddings = value

    def attention_bias(self, attention_mask, hidden):
        """(1 or B, H or 1, T, T): relative bias, with -inf for keys that are padding; None if there is neither."""
        bias, length = None, hidden.size(1)
        if self.relative_position_bias is not None:
            position = torch.arange(length)  # on the CPU: another device's logarithm may differ in the last bit
            config = self.config
            options = (config.relative_buckets, config.relative_max_distance, config.relative_bucketing)
            rows = relative_buckets(position[None] - position[:, None], *options).to(hidden.device)
            bias = self.relative_position_bias(rows).permute(2, 0, 1)[None].to(hidden.dtype)
        if attention_mask is None:
            return bias
        if bias is None:
            bias = hidden.new_zeros(1, 1, length, length)
        return bias.masked_fill(attention_mask[:, None, None, :] == 0, torch.finfo(hidden.dtype).min)

    def forward(
        self, input_ids=None, attention_mask=None, inputs_embeds=None, output_hidden_states=None, return_dict=True,
        **unused,
    ):
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if inputs_embeds is None:
            inputs_embeds = self.token_embeddings(input_ids)
        states = [self.embeddings(inputs_embeds)]
        bias = self.attention_bias(attention_mask, states[0])
        for layer in self.layers:
            states.append(layer(states[-1], bias))
        shown = tuple(states) if output_hidden_states else None
        output = modeling_outputs.BaseModelOutput(last_hidden_state=states[-1], hidden_states=shown)
        return output if return_dict else output.to_tuple()


class MaskedLMHead(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.layer_norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden, table):
        return F.linear(self.layer_norm(F.gelu(self.dense(hidden))), table, self.bias)


class ClassificationHead(nn.Module):
    def __init__(self, config, outputs):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out_proj = nn.Linear(config.hidden_size, outputs)

    def forward(self, hidden):
        hidden = torch.tanh(self.dense(self.dropout(hidden[:, 0])))
        return self.out_proj(self.dropout(hidden))


class AmosWithHead(AmosPreTrainedModel):
    """`add_head` makes its parameters, `logits` reads hidden states; each row of logits has one label."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.amos = AmosModel(config)
        self.add_head(config)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, labels=None, return_dict=True, **options):
        output = self.amos(input_ids, attention_mask, **options)
        logits = self.logits(output.last_hidden_state)
        loss = None if labels is None else self.loss(logits, labels)
        output = self.output_class(loss=loss, logits=logits, hidden_states=output.hidden_states)
        return output if return_dict else output.to_tuple()

    def loss(self, logits, labels):
        return F.cross_entropy(logits.view(-1, logits.size(-1)), labels.view(-1))


class AmosForMaskedLM(AmosWithHead):
    output_class = modeling_outputs.MaskedLMOutput

    def add_head(self, config):
        self.lm_head = MaskedLMHead(config)

    def logits(self, hidden):
        return self.lm_head(hidden, self.amos.token_embeddings.weight)


class AmosForSequenceClassification(AmosWithHead):
    """num_labels 1: regression, unless problem_type is `multi_label_classification`, whose labels are (B, L), 0 or 1"""

    output_class = modeling_outputs.SequenceClassifierOutput

    def add_head(self, config):
        self.classifier = ClassificationHead(config, config.num_labels)

    def logits(self, hidden):
        return self.classifier(hidden)

    def loss(self, logits, labels):
        if self.config.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        if self.num_labels > 1:
            return super().loss(logits, labels)
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).view(-1))


class AmosForTokenClassification(AmosWithHead):
    output_class = modeling_outputs.TokenClassifierOutput

    def add_head(self, config):
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def logits(self, hidden):
        return self.classifier(self.dropout(hidden))


class AmosForMultipleChoice(AmosWithHead):
    """input_ids and attention_mask (B, choices, T) -> logits (B, choices)"""

    output_class = modeling_outputs.MultipleChoiceModelOutput

    def add_head(self, config):
        self.classifier = ClassificationHead(config, 1)

    def logits(self, hidden):
        return self.classifier(hidden)

    def forward(self, input_ids=None, attention_mask=None, labels=None, return_dict=True, **options):
        mask = None if attention_mask is None else attention_mask.flatten(0, 1)
        output = super().forward(input_ids.flatten(0, 1), mask, **options)
        logits = output.logits.view(input_ids.shape[:2])
        loss = None if labels is None else self.loss(logits, labels)
        output = self.output_class(loss=loss, logits=logits, hidden_states=output.hidden_states)
        return output if return_dict else output.to_tuple()


class AmosForQuestionAnswering(AmosWithHead):
    def add_head(self, config):
        self.qa_outputs = nn.Linear(config.hidden_size, 2)

    def forward(
        self, input_ids=None, attention_mask=None, start_positions=None, end_positions=None, return_dict=True, **options
    ):
        output = self.amos(input_ids, attention_mask, **options)
        start_logits, end_logits = self.qa_outputs(output.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = F.cross_entropy(start_logits, start_positions) + F.cross_entropy(end_logits, end_positions)
            loss = loss / 2
        output = modeling_outputs.QuestionAnsweringModelOutput(
            loss=loss, start_logits=start_logits, end_logits=end_logits, hidden_states=output.hidden_states
        )
        return output if return_dict else output.to_tuple()
