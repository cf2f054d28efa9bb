"""Configuration files and containers as the various tools wrote them over the years."""
import os

import torch

from golden.common import MEAN, STD, write_json


def llama_json(c, model_type, architecture, **more):
    """config.json as transformers 4.31 to 4.37 wrote it"""
    v = {"architectures": [architecture], "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2,
         "hidden_act": "silu", "hidden_size": c["hidden_size"], "initializer_range": 0.02,
         "intermediate_size": c["intermediate_size"], "max_position_embeddings": c["max_position_embeddings"],
         "model_type": model_type, "num_attention_heads": c["num_attention_heads"],
         "num_hidden_layers": c["num_hidden_layers"], "num_key_value_heads": c["num_key_value_heads"],
         "pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps": c["rms_norm_eps"], "rope_scaling": None,
         "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.31.0",
         "use_cache": True,
         "vocab_size": c["vocab_size"]}
    v.update(more)
    return v


def mm_json(tower, hidden, aspect, projector="mlp2x_gelu"):
    return {"freeze_mm_mlp_adapter": False, "freeze_mm_vision_resampler": False, "image_aspect_ratio": aspect,
            "mm_hidden_size": hidden, "mm_projector_type": projector, "mm_resampler_type": None,
            "mm_use_im_patch_token": False, "mm_use_im_start_end": False, "mm_vision_select_feature": "patch",
            "mm_vision_select_layer": -2, "mm_vision_tower": tower, "tune_mm_mlp_adapter": False,
            "tune_mm_vision_resampler": False, "unfreeze_mm_vision_tower": False, "use_mm_proj": True}


def preprocessor_json(size):
    return {"crop_size": size, "do_center_crop": True, "do_normalize": True, "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": MEAN, "image_std": STD,
            "resample": 3,
            "size": size}


def generation_json(folder):
    write_json(os.path.join(folder, "generation_config.json"),
               {"bos_token_id": 1, "eos_token_id": 2, "max_length": 512, "pad_token_id": 0,
                "transformers_version": "4.31.0"})


def sharded(folder, tensors, cut, stem, suffix, save):
    """two shards and their index; cut(name) is the shard, 0 or 1"""
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    files = [f"{stem}-0000{n + 1}-of-00002.{suffix}" for n in (0, 1)]
    for n in (0, 1):
        save(os.path.join(folder, files[n]), {k: t for k, t in tensors.items() if cut(k) == n})
    write_json(os.path.join(folder, f"{stem}.{suffix}.index.json"),
               {"metadata": {"total_size": total}, "weight_map": {k: files[cut(k)] for k in tensors}})


def torch_save(path, tensors):
    torch.save({k: t.clone() for k, t in tensors.items()}, path)


def write_clip_flat(folder, c, w):
    """a CLIPVisionModel folder; w None: its configuration only, the weights being in the checkpoint"""
    os.makedirs(folder)
    write_json(os.path.join(folder, "config.json"),
               {"architectures": ["CLIPVisionModel"], "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
                "model_type": "clip_vision_model", "torch_dtype": "float16", "projection_dim": 16,
                "num_channels": 3, **c})
    write_json(os.path.join(folder, "preprocessor_config.json"), preprocessor_json(c["image_size"]))
    if w:
        torch_save(os.path.join(folder, "pytorch_model.bin"), w)


def write_clip_whole(folder, c, w, r):
    """a whole CLIP, as OpenAI's folder is: text half, position_ids and logit_scale are there to be skipped"""
    os.makedirs(folder)
    vision = {"dropout": 0.0, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-05,
              "model_type": "clip_vision_model",
              "projection_dim": 16, **c}
    text = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32,
            "vocab_size": 50,
            "model_type": "clip_text_model"}
    write_json(os.path.join(folder, "config.json"),
               {"architectures": ["CLIPModel"], "initializer_factor": 1.0, "logit_scale_init_value": 2.6592,
                "model_type": "clip", "projection_dim": 16, "text_config": text, "text_config_dict": text,
                "torch_dtype": "float16", "vision_config": vision, "vision_config_dict": vision})
    write_json(os.path.join(folder, "preprocessor_config.json"),
               {**preprocessor_json(c["image_size"]), "size": {"shortest_edge": c["image_size"]},
                "do_convert_rgb": True,
                "do_rescale": True, "rescale_factor": 1 / 255, "image_processor_type": "CLIPImageProcessor",
                "crop_size": {"height": c["image_size"], "width": c["image_size"]}})
    n = w["vision_model.embeddings.position_embedding.weight"].shape[0]
    more = {"logit_scale": torch.tensor(2.6592, dtype=torch.float16),
            "text_projection.weight": r.linear(16, 16),
            "text_model.embeddings.position_ids": torch.arange(8)[None],
            "text_model.embeddings.token_embedding.weight": r.normal(50, 16),
            "visual_projection.weight": r.linear(16, c["hidden_size"]),
            "vision_model.embeddings.position_ids": torch.arange(n)[None]}
    torch_save(os.path.join(folder, "pytorch_model.bin"), {**more, **w})
