#!/usr/bin/env python3
"""Write published.json: the committed checkpoints as the hub has their kind, that is as version 4 of transformers saved it.

    python tests/golden/make_published.py [--check]

The committed families are saved by transformers 5, which nests `text_config`, states every field, keeps rotations in
`rope_parameters` and the image processor in processor_config.json, and shortens tensor names. Checkpoints on the hub look
otherwise. For each family published.json has

    source    the published checkpoints whose spelling this is; fields that those leave to the class are left out here too
    files     file name -> content; they replace every JSON and Jinja file of the folder but tokenizer.json
    layouts   name -> list of [from, to]: a tensor whose name begins with `from` gets `to` in its place; the first pair that
              matches holds, and a name that none matches stays. The first layout is the hub's, `model` is that of
              checkpoints saved as version 4.52 and later name the tensors in memory.

Sizes and ids are read from the golden configurations. --check writes each family in each layout to a temporary folder, opens
it with transformers and compares prompts, pixels and logits with the golden ones (needs what make.py needs).
"""
import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
RESCALE = 0.00392156862745098


def read(family, name):
    return json.loads((HERE / family / name).read_text())


def pick(source, *keys, **renamed):
    """Fields of a configuration, some under older names (new name: old name)."""
    return {k: source[k] for k in keys} | {old: source[new] for new, old in renamed.items()}


def tokenizer_config(family, **fields):
    """Version 4 repeats the added tokens here and names a class of the family."""
    added = read(family, "tokenizer.json")["added_tokens"]
    kept = read(family, "tokenizer_config.json")
    out = {k: kept[k] for k in kept if k.endswith("_token") and "image" not in k and k not in ("boi_token", "eoi_token")}
    out["added_tokens_decoder"] = {
        str(t["id"]): {k: t[k] for k in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")} for t in added}
    out |= pick(kept, "clean_up_tokenization_spaces", "model_max_length", "padding_side", "processor_class")
    return out | fields


def generation_config(family, version, **fields):
    return {k: v for k, v in read(family, "generation_config.json").items() if k != "transformers_version"} | fields | {
        "transformers_version": version}


def template(family):
    return {"chat_template": (HERE / family / "chat_template.jinja").read_text()}


def llava():
    new = read("llava", "config.json")
    text, vision = new["text_config"], new["vision_config"]
    processor = read("llava", "processor_config.json")
    size = processor["image_processor"]["size"]["shortest_edge"]
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": new["image_token_index"],
        "model_type": "llava",
        "pad_token_id": new["pad_token_id"],
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            **pick(text, "hidden_size", "intermediate_size", "max_position_embeddings"),
            "model_type": "llama",
            **pick(text, "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps"),
            "torch_dtype": "bfloat16",
            "vocab_size": text["vocab_size"],
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.36.0.dev0",
        "vision_config": {
            **pick(vision, "hidden_size", "image_size", "intermediate_size"),
            "model_type": "clip_vision_model",
            **pick(vision, "num_attention_heads", "num_hidden_layers", "patch_size", "projection_dim"),
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": text["vocab_size"],
    }
    preprocessor = {
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": CLIP_MEAN, "image_processor_type": "CLIPImageProcessor", "image_std": CLIP_STD,
        "processor_class": "LlavaProcessor", "resample": 3, "rescale_factor": RESCALE, "size": {"shortest_edge": size},
    }
    outer = pick(processor, "image_token", "num_additional_image_tokens", "patch_size") | {
        "processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default"}
    tokenizer = tokenizer_config(
        "llava", add_bos_token=True, add_eos_token=False, add_prefix_space=None, extra_special_tokens={"image_token": "<image>"},
        image_token="<image>", legacy=False, sp_model_kwargs={}, tokenizer_class="LlamaTokenizer", trust_remote_code=False,
        use_default_system_prompt=False)
    return {
        "source": ["llava-hf/llava-1.5-7b-hf"],
        "files": {
            "config.json": config, "preprocessor_config.json": preprocessor, "processor_config.json": outer,
            "tokenizer_config.json": tokenizer, "chat_template.json": template("llava"),
            "generation_config.json": generation_config("llava", "4.36.0.dev0", _from_model_config=True),
        },
        "layouts": {
            "hub": [["vision_tower.", "vision_tower.vision_model."]],
            "model": [
                ["vision_tower.", "model.vision_tower.vision_model."],
                ["multi_modal_projector.", "model.multi_modal_projector."],
                ["language_model.model.", "model.language_model."],
                ["language_model.lm_head.", "lm_head."],
            ],
        },
    }


def qwen2_5_vl():
    new = read("qwen2_5_vl", "config.json")
    text, vision = new["text_config"], new["vision_config"]
    image = read("qwen2_5_vl", "processor_config.json")["image_processor"]
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        **pick(text, "bos_token_id", "eos_token_id"),
        **pick(new, "vision_start_token_id", "vision_end_token_id"),
        "vision_token_id": new["vision_end_token_id"] + 1,
        **pick(new, "image_token_id", "video_token_id"),
        "hidden_act": "silu",
        "hidden_size": text["hidden_size"],
        "initializer_range": 0.02,
        **pick(text, "intermediate_size", "max_position_embeddings"),
        "max_window_layers": text["num_hidden_layers"],
        "model_type": "qwen2_5_vl",
        **pick(text, "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps"),
        "rope_theta": text["rope_parameters"]["rope_theta"],
        "sliding_window": 32768,
        "tie_word_embeddings": new["tie_word_embeddings"],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": vision["depth"],
            "hidden_act": "silu",
            **pick(vision, "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size", "spatial_merge_size",
                   "window_size", "fullatt_block_indexes", "temporal_patch_size", in_channels="in_chans", patch_size="spatial_patch_size"),
            "tokens_per_second": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": text["rope_parameters"]["mrope_section"]},
        "vocab_size": text["vocab_size"],
    }
    preprocessor = {
        "min_pixels": image["size"]["shortest_edge"], "max_pixels": image["size"]["longest_edge"],
        **pick(image, "patch_size", "temporal_patch_size", "merge_size"),
        "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
    }
    tokenizer = tokenizer_config(
        "qwen2_5_vl", add_prefix_space=False, add_bos_token=False, bos_token=None, unk_token=None, errors="replace",
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
                                   "<|image_pad|>", "<|video_pad|>"],
        split_special_tokens=False, tokenizer_class="Qwen2Tokenizer")
    return {
        "source": ["Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"],
        "files": {
            "config.json": config, "preprocessor_config.json": preprocessor, "tokenizer_config.json": tokenizer,
            "chat_template.json": template("qwen2_5_vl"),
            "generation_config.json": generation_config(
                "qwen2_5_vl", "4.37.0", bos_token_id=text["bos_token_id"], do_sample=True, repetition_penalty=1.05, temperature=0.000001,
                eos_token_id=[text["eos_token_id"], text["bos_token_id"]]),
        },
        "layouts": {
            "hub": [],
            "model": [["visual.", "model.visual."], ["model.", "model.language_model."]],
        },
    }


def qwen2_vl():
    new = read("qwen2_vl", "config.json")
    text, vision = new["text_config"], new["vision_config"]
    image = read("qwen2_vl", "processor_config.json")["image_processor"]
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        **pick(text, "bos_token_id", "eos_token_id"),
        **pick(new, "vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"),
        "vision_token_id": new["vision_end_token_id"] + 1,
        "hidden_act": "silu",
        **pick(text, "hidden_size", "intermediate_size", "max_position_embeddings"),
        "initializer_range": 0.02,
        "max_window_layers": text["num_hidden_layers"],
        "model_type": "qwen2_vl",
        **pick(text, "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size"),
        "rope_theta": text["rope_parameters"]["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": text["rope_parameters"]["mrope_section"]},
        "sliding_window": 32768,
        "tie_word_embeddings": new["tie_word_embeddings"],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            **pick(vision, "depth", "embed_dim", "mlp_ratio", "num_heads", "hidden_size", "patch_size", "spatial_merge_size",
                   "temporal_patch_size", in_channels="in_chans", patch_size="spatial_patch_size"),
        },
    }
    area = {"min_pixels": image["size"]["shortest_edge"], "max_pixels": image["size"]["longest_edge"]}
    preprocessor = {
        **area, "size": area, **pick(image, "patch_size", "temporal_patch_size", "merge_size"),
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3, "rescale_factor": RESCALE,
        "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
    }
    tokenizer = tokenizer_config(
        "qwen2_vl", add_prefix_space=False, bos_token=None, unk_token=None, errors="replace", split_special_tokens=False,
        tokenizer_class="Qwen2Tokenizer")
    return {
        "source": ["Qwen/Qwen2-VL-2B-Instruct", "MBZUAI/AIN"],
        "files": {
            "config.json": config, "preprocessor_config.json": preprocessor, "tokenizer_config.json": tokenizer,
            "chat_template.json": template("qwen2_vl"),
            "generation_config.json": generation_config("qwen2_vl", "4.41.2"),
        },
        "layouts": {
            "hub": [],
            "model": [["visual.", "model.visual."], ["model.", "model.language_model."]],
        },
    }


def qwen3_vl():
    new = read("qwen3_vl", "config.json")
    text, vision = new["text_config"], new["vision_config"]
    image = read("qwen3_vl", "processor_config.json")["image_processor"]
    rope = text["rope_parameters"]
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": new["image_token_id"],
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False, "attention_dropout": 0.0, "dtype": "bfloat16",
            **pick(text, "bos_token_id", "eos_token_id", "head_dim", "hidden_act", "hidden_size", "initializer_range",
                   "intermediate_size", "max_position_embeddings", "model_type", "num_attention_heads", "num_hidden_layers",
                   "num_key_value_heads", "rms_norm_eps", "use_cache", "vocab_size"),
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": rope["mrope_section"], "rope_type": "default"},
            "rope_theta": rope["rope_theta"],
        },
        "tie_word_embeddings": False,
        "transformers_version": "4.57.0.dev0",
        **pick(new, "video_token_id", "vision_end_token_id", "vision_start_token_id"),
        "vision_config": {
            **pick(vision, "deepstack_visual_indexes", "depth", "hidden_act", "hidden_size", "in_channels", "initializer_range",
                   "intermediate_size", "num_heads", "num_position_embeddings", "out_hidden_size", "patch_size",
                   "spatial_merge_size", "temporal_patch_size"),
            "model_type": "qwen3_vl",
        },
    }
    preprocessor = {
        **pick(image, "size", "patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std"),
        "processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    tokenizer = tokenizer_config(
        "qwen3_vl", add_prefix_space=False, add_bos_token=False, bos_token=None, unk_token=None, errors="replace",
        split_special_tokens=False, tokenizer_class="Qwen2Tokenizer")
    return {
        "source": ["Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-4B-Instruct"],
        "files": {
            "config.json": config, "preprocessor_config.json": preprocessor, "tokenizer_config.json": tokenizer,
            "chat_template.json": template("qwen3_vl"),
            "generation_config.json": generation_config("qwen3_vl", "4.57.0.dev0"),
        },
        "layouts": {"hub": []},
    }


def glm4v():
    new = read("glm4v", "config.json")
    text, vision = new["text_config"], new["vision_config"]
    image = read("glm4v", "processor_config.json")["image_processor"]
    rope = text["rope_parameters"]
    config = {
        "architectures": ["Glm4vForConditionalGeneration"],
        "model_type": "glm4v",
        "attention_bias": True,
        "attention_dropout": 0.0,
        **pick(text, "pad_token_id", "eos_token_id", "hidden_act", "hidden_size", "initializer_range", "intermediate_size",
               "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps",
               "use_cache", "vocab_size"),
        **pick(new, "image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id", "image_token_id",
               "video_token_id", "tie_word_embeddings"),
        "rope_theta": rope["rope_theta"],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.53.0dev",
        "partial_rotary_factor": rope["partial_rotary_factor"],
        "vision_config": {
            **pick(vision, "hidden_size", "depth", "num_heads", "attention_bias", "intermediate_size", "hidden_act",
                   "initializer_range", "image_size", "patch_size", "out_hidden_size", "rms_norm_eps", "spatial_merge_size",
                   "temporal_patch_size"),
            "hidden_dropout_prob": 0.0,
        },
        "rope_scaling": {"type": "default", "mrope_section": rope["mrope_section"]},
    }
    preprocessor = {
        **pick(image, "size", "patch_size", "temporal_patch_size", "merge_size"),
        "do_rescale": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
        "image_processor_type": "Glm4vImageProcessor", "processor_class": "Glm4vProcessor",
    }
    return {
        "source": ["zai-org/GLM-4.1V-9B-Thinking"],
        "files": {
            "config.json": config, "preprocessor_config.json": preprocessor,
            "tokenizer_config.json": tokenizer_config("glm4v", tokenizer_class="PreTrainedTokenizerFast"),
            "chat_template.json": template("glm4v"),
            "generation_config.json": generation_config("glm4v", "4.53.0dev"),
        },
        "layouts": {"hub": [["model.visual.", "visual."], ["model.language_model.", "model."]]},
    }


def gemma3():
    new = read("gemma3", "config.json")
    text, vision = new["text_config"], new["vision_config"]
    tokens = new["mm_tokens_per_image"]
    side = read("gemma3", "processor_config.json")["image_processor"]["size"]["height"]
    kinds, rope = text["layer_types"], text["rope_parameters"]
    pattern = kinds.index("full_attention") + 1
    assert kinds == ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(len(kinds))]
    stop = read("gemma3", "generation_config.json")["eos_token_id"]
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        **pick(new, "boi_token_index", "eoi_token_index"),
        "eos_token_id": stop,
        "image_token_index": new["image_token_index"],
        "initializer_range": 0.02,
        "mm_tokens_per_image": tokens,
        "model_type": "gemma3",
        "text_config": {
            "attn_logit_softcapping": None,
            "cache_implementation": "hybrid",
            "final_logit_softcapping": None,
            **pick(text, "head_dim", "hidden_size", "intermediate_size", "max_position_embeddings"),
            "model_type": "gemma3_text",
            **pick(text, "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "query_pre_attn_scalar"),
            "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
            "rope_scaling": {"factor": rope["full_attention"]["factor"], "rope_type": "linear"},
            "rope_theta": rope["full_attention"]["rope_theta"],
            "sliding_window": text["sliding_window"],
            "sliding_window_pattern": pattern,
            "torch_dtype": "bfloat16",
            "vocab_size": text["vocab_size"],
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": {
            **pick(vision, "hidden_size", "image_size", "intermediate_size"),
            "model_type": "siglip_vision_model",
            **pick(vision, "num_attention_heads", "num_hidden_layers", "patch_size"),
            "vision_use_head": False,
        },
    }
    preprocessor = {
        "do_convert_rgb": None, "do_normalize": True, "do_pan_and_scan": None, "do_rescale": True, "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "Gemma3ImageProcessor", "image_seq_length": tokens,
        "image_std": [0.5, 0.5, 0.5], "pan_and_scan_max_num_crops": None, "pan_and_scan_min_crop_size": None,
        "pan_and_scan_min_ratio_to_activate": None, "processor_class": "Gemma3Processor", "resample": 2,
        "rescale_factor": RESCALE, "size": {"height": side, "width": side},
    }
    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = tokenizer_config(
        "gemma3", add_bos_token=True, add_eos_token=False, extra_special_tokens=marks, sp_model_kwargs=None,
        spaces_between_special_tokens=False, tokenizer_class="GemmaTokenizer", use_default_system_prompt=False, **marks)
    return {
        "source": ["google/gemma-3-4b-it", "google/gemma-3-27b-it", "google/medgemma-27b-it"],
        "files": {
            "config.json": config, "preprocessor_config.json": preprocessor,
            "processor_config.json": {"image_seq_length": tokens, "processor_class": "Gemma3Processor"},
            "tokenizer_config.json": tokenizer, "chat_template.json": template("gemma3"),
            "generation_config.json": generation_config(
                "gemma3", "4.50.0.dev0", cache_implementation="hybrid", do_sample=True, top_k=64, top_p=0.95),
        },
        "layouts": {
            "hub": [["vision_tower.", "vision_tower.vision_model."]],
            "model": [
                ["vision_tower.", "model.vision_tower.vision_model."],
                ["multi_modal_projector.", "model.multi_modal_projector."],
                ["language_model.model.", "model.language_model."],
            ],
        },
    }


def smolvlm():
    new = read("smolvlm", "config.json")
    text, vision = new["text_config"], new["vision_config"]
    processor = read("smolvlm", "processor_config.json")
    image = processor["image_processor"]
    config = {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "image_token_id": new["image_token_id"],
        "model_type": "smolvlm",
        "pad_token_id": 128002,
        "scale_factor": new["scale_factor"],
        "text_config": {
            "_flash_attn_2_enabled": True,
            "_name_or_path": "None",
            "architectures": ["VLlama3ForCausalLM"],
            **pick(text, "head_dim", "hidden_size", "intermediate_size"),
            "is_llama_config": True,
            **pick(text, "max_position_embeddings"),
            "model_type": "llama",
            "neftune_noise_alpha": 0.0,
            **pick(text, "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "pad_token_id"),
            "perceiver_config": {
                "attention_dropout": 0.0, "hidden_act": "silu", "model_type": "vllama3", "num_key_value_heads": 1,
                "qk_layer_norms_perceiver": False, "resampler_depth": 6, "resampler_head_dim": 96, "resampler_n_heads": 16,
                "resampler_n_latents": 64, "transformers_version": "4.46.0",
            },
            "pixel_shuffle_factor": new["scale_factor"],
            "qk_layer_norms": False,
            "rms_norm_eps": text["rms_norm_eps"],
            "rope_interleaved": False,
            "rope_scaling": None,
            "rope_theta": text["rope_parameters"]["rope_theta"],
            "torch_dtype": "bfloat16",
            "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"}},
            "use_resampler": False,
            "vocab_size": text["vocab_size"],
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"}},
        "transformers_version": "4.47.1",
        "use_cache": False,
        "use_reentrant_checkpointing": False,
        "vision_config": {
            **pick(vision, "hidden_size", "image_size", "intermediate_size"),
            "max_image_size": image["max_image_size"],
            "model_type": "smolvlm_vision",
            **pick(vision, "num_attention_heads", "num_hidden_layers", "patch_size"),
            "size": image["size"],
            "tie_word_embeddings": False,
            "use_base_siglip": False,
        },
        "vocab_size": text["vocab_size"],
    }
    preprocessor = {
        "do_convert_rgb": True, "do_image_splitting": True, "do_normalize": True, "do_pad": True, "do_rescale": True,
        "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "SmolVLMImageProcessor",
        "image_std": [0.5, 0.5, 0.5], "max_image_size": image["max_image_size"], "processor_class": "SmolVLMProcessor",
        "resample": 1, "rescale_factor": RESCALE, "size": image["size"],
        "video_sampling": {"fps": 1, "max_frames": 64, "video_size": image["max_image_size"]},
    }
    tokenizer = tokenizer_config(
        "smolvlm", add_prefix_space=False, additional_special_tokens=["<fake_token_around_image>", "<image>", "<end_of_utterance>"],
        legacy=False, model_max_length=8192, tokenizer_class="GPT2Tokenizer", truncation_side="left", vocab_size=text["vocab_size"])
    return {
        "source": ["HuggingFaceTB/SmolVLM-256M-Instruct", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"],
        "files": {
            "config.json": config, "preprocessor_config.json": preprocessor,
            "processor_config.json": pick(processor, "image_seq_len") | {"processor_class": "SmolVLMProcessor"},
            "tokenizer_config.json": tokenizer, "chat_template.json": template("smolvlm"),
            "generation_config.json": generation_config("smolvlm", "4.47.1", _from_model_config=True, bos_token_id=0),
        },
        "layouts": {"hub": []},
    }


def rename(name, pairs):
    return next((to + name[len(old):] for old, to in pairs if name.startswith(old)), name)


def check(family, entry):
    """Opens the family in each layout with transformers; True if prompts, pixels and logits are the golden ones."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    from levels import load_golden

    from make import encode

    torch.set_grad_enabled(False)
    fine = True
    tensors, golden = load_file(HERE / family / "model.safetensors"), load_golden(HERE / family)
    cases = read(family, "inputs.json")["cases"]
    for layout, pairs in entry["layouts"].items():
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            shutil.copyfile(HERE / family / "tokenizer.json", folder / "tokenizer.json")
            save_file({rename(k, pairs): v for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
            for name, content in entry["files"].items():
                (folder / name).write_text(json.dumps(content, indent=2))
            processor = transformers.AutoProcessor.from_pretrained(folder)
            model, info = transformers.AutoModelForImageTextToText.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
            odd = {k: sorted(v) for k, v in info.items() if k in ("missing_keys", "unexpected_keys", "mismatched_keys") and v}
            report = [str(odd)] if odd else []
            worst = 0.0
            for case in cases:
                inputs, prompt = encode(processor, case, [HERE / "images"])
                name = case["name"]
                if prompt != case["prompt"] or inputs["input_ids"][0].tolist() != case["input_ids"]:
                    report.append(f"{name}: another prompt: {prompt!r} {inputs['input_ids'][0].tolist()}")
                pixels = golden.get(f"{name}.pixel_values")
                if pixels is not None and not torch.equal(pixels, inputs["pixel_values"]):
                    report.append(f"{name}: other pixels")
                logits = model.eval()(**inputs).logits[0, -8:]
                worst = max(worst, float((logits - golden[f"{name}.logits_last8"]).abs().max()))
            if worst > 2e-4:
                report.append(f"logits differ by {worst:.2e}")
            fine &= not report
            print(f"{family}, {layout}: logits within {worst:.2e}", *report, sep="\n  ", flush=True)
    return fine


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--check", action="store_true", help="open everything with transformers and compare")
    args = ap.parse_args()
    families = {"llava": llava(), "qwen2_vl": qwen2_vl(), "qwen2_5_vl": qwen2_5_vl(), "qwen3_vl": qwen3_vl(), "glm4v": glm4v(),
                "gemma3": gemma3(), "smolvlm": smolvlm()}
    (HERE / "published.json").write_text(json.dumps(families, indent=1, ensure_ascii=False) + "\n")
    if args.check and not all([check(name, entry) for name, entry in families.items()]):
        sys.exit("error: transformers computes something else from the published spelling")


if __name__ == "__main__":
    main()
