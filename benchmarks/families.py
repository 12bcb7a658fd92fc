"""How much of each family of the package transformers moves: which share of its numbers has a group along an axis.

``python -m benchmarks.families`` prints a line for each and keeps them in benchmarks/families.json. The models are
small ones of their kind, random, and traced with the inputs that they are used with. The tests hold the same list to
the least shares below.
"""

from __future__ import annotations

import warnings
from collections import Counter

import torch
import transformers

from benchmarks.turns import keep
from rebasin.tracing import trace

WORDS = 64
DEEP = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"vocab_size": WORDS, **DEEP}
GROUPED = {**TEXT, "num_key_value_heads": 2}  # two heads of queries for each of keys
IMAGES = {**DEEP, "image_size": 16, "patch_size": 4}
FEW = {"vocab_size": WORDS, "hidden_size": 24}
BOTH_WAYS = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "d_model": 24}
BOTH_WAYS |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": WORDS}
SOUND = {**DEEP, "conv_dim": [8, 8], "conv_kernel": [4, 3], "conv_stride": [2, 2], "num_feat_extract_layers": 2}
SOUND |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
TWO_STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_encoder_blocks": 2, "patch_sizes": [7, 3]}
TWO_STAGES |= {"strides": [4, 2], "mlp_ratios": [2, 2]}
# The model, what its configuration is told, and the least share of its numbers, in percent, that moves.
MODELS = {
    "LlamaForCausalLM": (GROUPED, 99),
    "MistralForCausalLM": ({**GROUPED, "sliding_window": 4}, 99),
    "Qwen2ForCausalLM": (GROUPED, 99),
    "Qwen3ForCausalLM": ({**GROUPED, "head_dim": 6}, 99),
    "GemmaForCausalLM": ({**GROUPED, "head_dim": 6}, 99),
    "Gemma2ForCausalLM": ({**GROUPED, "head_dim": 6}, 99),
    "PhiForCausalLM": ({**TEXT, "hidden_size": 32}, 99),
    "Phi3ForCausalLM": ({**GROUPED, "pad_token_id": 0}, 99),
    "OlmoForCausalLM": (GROUPED, 99),
    "Olmo2ForCausalLM": (GROUPED, 99),
    "GraniteForCausalLM": (GROUPED, 99),
    "CohereForCausalLM": (GROUPED, 99),
    "StableLmForCausalLM": (GROUPED, 99),
    "Starcoder2ForCausalLM": (GROUPED, 99),
    "GPTNeoXForCausalLM": (TEXT, 99),
    "GPT2LMHeadModel": ({"vocab_size": WORDS, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32}, 99),
    "GPTNeoForCausalLM": (
        {**FEW, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        99,
    ),
    "OPTForCausalLM": ({**TEXT, "ffn_dim": 40, "max_position_embeddings": 32, "word_embed_proj_dim": 24}, 99),
    "BloomForCausalLM": ({**FEW, "n_layer": 2, "n_head": 4}, 99),
    "FalconForCausalLM": ({**FEW, "num_hidden_layers": 2, "num_attention_heads": 4}, 99),
    "MambaForCausalLM": ({**FEW, "num_hidden_layers": 2, "state_size": 4}, 99),
    "BertForSequenceClassification": (TEXT, 99),
    "RobertaModel": (TEXT, 36),
    "DistilBertModel": ({"vocab_size": WORDS, "dim": 24, "hidden_dim": 40, "n_layers": 2, "n_heads": 4}, 37),
    "ElectraModel": ({**TEXT, "embedding_size": 24}, 37),
    "AlbertModel": ({**TEXT, "embedding_size": 16}, 94),
    "DebertaV2Model": (TEXT, 37),
    "T5ForConditionalGeneration": ({"vocab_size": WORDS, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2}, 84),
    "BartModel": ({**BOTH_WAYS, "max_position_embeddings": 32}, 75),
    "ViTModel": (IMAGES, 76),
    "DeiTModel": (IMAGES, 76),
    "Dinov2Model": ({**IMAGES, "mlp_ratio": 2}, 81),
    "CLIPVisionModel": (IMAGES, 81),
    "WhisperModel": (
        {**BOTH_WAYS, "num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 16}
        | {"pad_token_id": 0, "decoder_start_token_id": 1},
        89,
    ),
    "ConvNextV2Model": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 16}, 82),
    "GPTJForCausalLM": ({"vocab_size": WORDS, "n_embd": 24, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, 99),
    "MptForCausalLM": ({"vocab_size": WORDS, "d_model": 24, "n_layers": 2, "n_heads": 4}, 99),
    "Gemma3ForCausalLM": ({**GROUPED, "head_dim": 6}, 99),
    "DeepseekV3ForCausalLM": (
        {**TEXT, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4}
        | {"qk_nope_head_dim": 4, "v_head_dim": 6, "first_k_dense_replace": 2},
        99,
    ),
    "MixtralForCausalLM": ({**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}, 99),
    "Qwen3MoeForCausalLM": (
        {**GROUPED, "head_dim": 6, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20},
        99,
    ),
    "GptOssForCausalLM": ({**GROUPED, "head_dim": 6, "num_local_experts": 4, "num_experts_per_tok": 2}, 99),
    "Mamba2ForCausalLM": (
        {
            **FEW,
            "num_hidden_layers": 2,
            "state_size": 4,
            "num_heads": 4,
            "head_dim": 12,
            "n_groups": 2,
            "chunk_size": 4,
        },
        93,
    ),
    "ModernBertModel": ({**TEXT, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}, 86),
    "DebertaModel": (
        {**TEXT, "relative_attention": True, "pos_att_type": "c2p|p2c", "max_position_embeddings": 32},
        82,
    ),
    "RoFormerModel": ({**TEXT, "embedding_size": 24}, 43),
    "XLNetModel": ({"vocab_size": WORDS, "d_model": 24, "n_layer": 2, "n_head": 4, "d_inner": 40}, 83),
    "FNetModel": (TEXT, 95),
    "Wav2Vec2Model": ({**SOUND, "feat_extract_norm": "layer", "do_stable_layer_norm": True}, 83),
    "WavLMModel": (SOUND, 74),
    "SegformerForSemanticSegmentation": (
        {**TWO_STAGES, "sr_ratios": [2, 1], "num_attention_heads": [1, 2], "decoder_hidden_size": 16},
        99,
    ),
    "FocalNetModel": (
        {**IMAGES, "embed_dim": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "focal_levels": [2, 2]},
        96,
    ),
    "BeitModel": ({**IMAGES, "use_relative_position_bias": True}, 60),
}


def batch_of(model: transformers.PreTrainedModel, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Inputs of a model by their names, of whatever kind it takes."""
    tokens = torch.randint(3, WORDS, (2, 7), generator=generator)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    if model.main_input_name == "input_values":
        return {"input_values": torch.randn(2, 64, generator=generator)}
    if model.main_input_name == "input_features":
        return {"input_features": torch.randn(2, 8, 16, generator=generator), "decoder_input_ids": tokens}
    if model.config.is_encoder_decoder:
        return {"input_ids": tokens, "decoder_input_ids": tokens[:, :5]}
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def main() -> None:
    rows = []
    for name, (options, _) in MODELS.items():
        rows.append(traced(name, options))
        row = rows[-1]
        print(f"{name:36} {row['groups']:5} groups, {row['share_moving']:8.3%} moves", flush=True)
    table = {
        "what": "rebasin.trace on small models of transformers, as they are initialised, one example each",
        "rows": rows,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "threads": torch.get_num_threads(),
    }
    keep(__file__, table)


def traced(name: str, options: dict) -> dict:
    """One row: what of a model moves, what stays and why."""
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**options)).eval()
    batch = batch_of(model, torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of entries that the example does not reach, which are counted as what stays
        spec = trace(model, batch)
    sizes = {key: tensor.numel() for key, tensor in model.state_dict().items() if tensor.is_floating_point()}
    whole = sum(sizes.values())
    why: Counter[str] = Counter()
    for key, reason in spec.pinned.items():
        if not spec.parts[key]:
            why[reason] += sizes.get(key, 0)
    return {
        "model": name,
        "numbers": whole,
        "groups": len(spec.families) + sum(spec.sizes[outer] for outer in spec.inside.values()),
        "share_moving": sum(size for key, size in sizes.items() if spec.parts[key]) / whole,
        "share_pinned_by_reason": {reason: count / whole for reason, count in why.most_common() if count},
    }


if __name__ == "__main__":
    main()
