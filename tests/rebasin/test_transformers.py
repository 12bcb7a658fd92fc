"""The models of the package transformers are traced as they are used, by the names of their inputs, and stay right."""

import pytest
import torch
import transformers
from torch import nn

from rebasin import Permutation, trace
from rebasin.graph import export, without_cache
from rebasin.tracing.proof import inputs_like

WORDS = 64
DEEP = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"vocab_size": WORDS, **DEEP}
GROUPED = {**TEXT, "num_key_value_heads": 2}  # two heads of queries for each of keys
IMAGES = {**DEEP, "image_size": 16, "patch_size": 4}
FEW = {"vocab_size": WORDS, "hidden_size": 24}
BOTH_WAYS = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "d_model": 24}
BOTH_WAYS |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": WORDS}
# The model, what its configuration is told, and the least share of its numbers, in percent, that moves.
MODELS = {
    "LlamaForCausalLM": (GROUPED, 99),
    "MistralForCausalLM": ({**GROUPED, "sliding_window": 4}, 99),
    "Qwen2ForCausalLM": (GROUPED, 98),
    "Qwen3ForCausalLM": ({**GROUPED, "head_dim": 6}, 98),
    "GemmaForCausalLM": ({**GROUPED, "head_dim": 6}, 99),
    "Gemma2ForCausalLM": ({**GROUPED, "head_dim": 6}, 99),
    "PhiForCausalLM": ({**TEXT, "hidden_size": 32}, 95),
    "Phi3ForCausalLM": ({**GROUPED, "pad_token_id": 0}, 99),
    "OlmoForCausalLM": (GROUPED, 99),
    "Olmo2ForCausalLM": (GROUPED, 98),
    "GraniteForCausalLM": (GROUPED, 99),
    "CohereForCausalLM": (GROUPED, 99),
    "StableLmForCausalLM": (GROUPED, 99),
    "Starcoder2ForCausalLM": (GROUPED, 98),
    "GPTNeoXForCausalLM": (TEXT, 99),
    "GPT2LMHeadModel": ({"vocab_size": WORDS, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32}, 99),
    "GPTNeoForCausalLM": (
        {**FEW, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        99,
    ),
    "OPTForCausalLM": ({**TEXT, "ffn_dim": 40, "max_position_embeddings": 32, "word_embed_proj_dim": 24}, 99),
    "BloomForCausalLM": ({**FEW, "n_layer": 2, "n_head": 4}, 98),
    "FalconForCausalLM": ({**FEW, "num_hidden_layers": 2, "num_attention_heads": 4}, 99),
    "MambaForCausalLM": ({**FEW, "num_hidden_layers": 2, "state_size": 4}, 90),
    "BertForSequenceClassification": (TEXT, 99),
    "RobertaModel": (TEXT, 36),
    "DistilBertModel": ({"vocab_size": WORDS, "dim": 24, "hidden_dim": 40, "n_layers": 2, "n_heads": 4}, 37),
    "ElectraModel": ({**TEXT, "embedding_size": 24}, 37),
    "AlbertModel": ({**TEXT, "embedding_size": 16}, 94),
    "DebertaV2Model": (TEXT, 27),
    "T5ForConditionalGeneration": ({"vocab_size": WORDS, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2}, 68),
    "BartModel": ({**BOTH_WAYS, "max_position_embeddings": 32}, 75),
    "ViTModel": (IMAGES, 76),
    "DeiTModel": (IMAGES, 76),
    "Dinov2Model": ({**IMAGES, "mlp_ratio": 2}, 81),
    "CLIPVisionModel": (IMAGES, 81),
    "WhisperModel": (
        {**BOTH_WAYS, "num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 16}
        | {"pad_token_id": 0, "decoder_start_token_id": 1},
        88,
    ),
    "ConvNextV2Model": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 16}, 36),
}


def batch_of(model, generator):
    """Inputs of a model by their names, of whatever kind it takes."""
    tokens = torch.randint(3, WORDS, (2, 7), generator=generator)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    if model.main_input_name == "input_features":
        return {"input_features": torch.randn(2, 8, 16, generator=generator), "decoder_input_ids": tokens}
    if model.config.is_encoder_decoder:
        return {"input_ids": tokens, "decoder_input_ids": tokens[:, :5]}
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of entries that the example does not reach
@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_model_answers_as_before_to_inputs_it_was_not_traced_with(name):
    options, least = MODELS[name]
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**options)).eval()
    generator = torch.Generator().manual_seed(0)
    spec = trace(model, batch_of(model, generator))
    state = model.state_dict()
    sizes = {key: tensor.numel() for key, tensor in state.items() if tensor.is_floating_point()}
    moving = sum(size for key, size in sizes.items() if spec.parts[key])
    assert 100 * moving / sum(sizes.values()) >= least
    moved = Permutation.random(spec, generator=generator).apply(model)
    other = batch_of(model, generator)
    with torch.no_grad():
        for before, after in zip(model(**other).values(), moved(**other).values(), strict=True):
            if isinstance(before, torch.Tensor):
                # Single precision, in sums of another order.
                torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))


class Named(nn.Module):
    """Tokens and a scale, by their names, with a cache that it is asked for; what it gives is a dict."""

    class Config:
        use_cache = True

    def __init__(self):
        super().__init__()
        self.table, self.inner, self.out = nn.Embedding(20, 6), nn.Linear(6, 8), nn.Linear(8, 3)
        self.config = Named.Config()

    def forward(self, tokens=None, scale=None):
        hidden = self.inner(self.table(tokens)).relu()
        answers = {"logits": self.out(hidden) * scale.unsqueeze(-1)}
        return {**answers, "cache": hidden} if self.config.use_cache else answers


def test_inputs_go_by_their_names_and_no_cache_is_kept():
    model = Named()
    inputs = {"scale": torch.rand(2, 4), "tokens": torch.zeros(2, 4, dtype=torch.int64)}
    spec = trace(model, inputs)
    assert list(spec.sizes.values()) == [6, 8], "a cache would hold the units of inner in their order"
    assert model.config.use_cache, "the model itself is as it was"


def test_tokens_are_drawn_from_their_whole_vocabulary_and_other_whole_numbers_stay():
    model = without_cache(Named())
    inputs = (torch.zeros(2, 400, dtype=torch.int64), torch.ones(2, 400, dtype=torch.int64))
    program = export(model, dict(zip(("tokens", "scale"), inputs, strict=True)))
    tokens, scale = inputs_like(program, inputs, torch.Generator().manual_seed(0))
    assert set(tokens.flatten().tolist()) == set(range(20))
    assert torch.equal(scale, inputs[1])


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ({"tokens": [[1, 2]]}, "the example: 'tokens' must be a tensor, got list"),
        ((torch.zeros(2, 3), None), "the example: number 1 must be a tensor, got NoneType"),
    ],
)
def test_what_is_no_example_is_named(example, said):
    with pytest.raises(TypeError, match=said):
        trace(Named(), example)
