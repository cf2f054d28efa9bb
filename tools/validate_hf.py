#!/usr/bin/env python3
"""Checks `llava forward` against transformers on a random LLaVA-1.5 of real shapes, in each checkpoint layout.

    validate_hf.py --llava build/llava --tokenizer tokenizer.model --picture waterview.jpg --work DIR [--size 7b]

Needs PyTorch with a GPU (the reference runs there in float32, without TF32, and in bfloat16), transformers and 30 GB of
disk. The model is made once; each layout is written, read by our program on the CPU, compared and removed:
    transformers   what save_pretrained writes (bf16 safetensors)
    llava-hf       the older names with vision_model., sharded, with an index
    llava          LLaVA's own: float16 torch.save shards, the tower in its own folder
The rule: float32 within 1e-5 of PyTorch's float32 is what tiny models must reach; here the reference sums in another order
over 32 layers on another device, so the figure that decides is bf16: our error against PyTorch's float32 may be at most
twice that of PyTorch's own bfloat16. Both figures are printed, one line a layout and type, and a last line "ok" or "FAILED".
"""
import argparse, json, os, shutil, struct, subprocess, sys, time

import numpy as np
import torch

SIZES = {"tiny": (256, 688, 4, 4), "1b": (2048, 5632, 22, 16), "7b": (4096, 11008, 32, 32)}
PROMPT = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
          "and polite answers to the user's questions. USER: <image>\nWhat are the things I should be cautious about when "
          "I visit here? ASSISTANT:")


def read_safetensors(path):
    raw = open(path, "rb").read()
    n = struct.unpack("<Q", raw[:8])[0]
    kinds = {"F32": "<f4", "I64": "<i8"}
    return {k: np.frombuffer(raw, kinds[t["dtype"]], offset=8 + n + t["data_offsets"][0],
                             count=int(np.prod(t["shape"]))).reshape(t["shape"])
            for k, t in json.loads(raw[8:8 + n]).items() if k != "__metadata__"}


def build(size):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
    h, f, l, n = SIZES[size]
    vision = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                              image_size=336, patch_size=14, projection_dim=768)
    text = LlamaConfig(vocab_size=32064, hidden_size=h, intermediate_size=f, num_hidden_layers=l, num_attention_heads=n,
                       num_key_value_heads=n, max_position_embeddings=4096, rms_norm_eps=1e-5)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000, image_seq_length=576,
                         vision_feature_layer=-2, vision_feature_select_strategy="default")
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model = model.to(torch.bfloat16).to_empty(device="cuda").eval()
    g = torch.Generator(device="cuda").manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name and p.dim() == 1:
                p.fill_(0 if name.endswith("bias") else 1)
            else:
                p.normal_(0, 0.02, generator=g)
        for name, b in model.named_buffers():
            if "position_ids" in name:
                b.copy_(torch.arange(b.numel(), device="cuda").view_as(b))
            elif "inv_freq" in name:
                b.data = (1.0 / 10000.0 ** (torch.arange(0, 2 * b.numel(), 2).float() / (2 * b.numel()))).cuda()
    return model


def restore_frequencies(model):
    """a cast to bf16 must not touch the rotary frequencies, which transformers keeps in float32"""
    for name, b in model.named_buffers():
        if "inv_freq" in name:
            b.data = (1.0 / 10000.0 ** (torch.arange(0, 2 * b.numel(), 2).float() / (2 * b.numel()))).cuda()


def save_transformers(model, folder, tokenizer):
    model.save_pretrained(folder, max_shard_size="5GB")


def save_llava_hf(model, folder, tokenizer):
    from safetensors.torch import save_file
    rename = (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."),
              ("model.multi_modal_projector.", "multi_modal_projector."),
              ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
              ("model.vision_tower.", "vision_tower.vision_model."))
    shards, where, total = [{}], {}, 0
    for name, t in model.state_dict().items():
        for a, b in rename:
            if name.startswith(a):
                name = b + name[len(a):]
                break
        if sum(x.nbytes for x in shards[-1].values()) + t.nbytes > 5e9:
            shards.append({})
        shards[-1][name] = t.contiguous()
        where[name], total = len(shards), total + t.nbytes
    names = {i + 1: f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))}
    for i, s in enumerate(shards):
        save_file({k: v.cpu() for k, v in s.items()}, f"{folder}/{names[i + 1]}", {"format": "pt"})
    json.dump({"metadata": {"total_size": total}, "weight_map": {k: names[v] for k, v in where.items()}},
              open(f"{folder}/model.safetensors.index.json", "w"))
    model.config.save_pretrained(folder)


def save_llava(model, folder, tokenizer):
    rename = (("model.language_model.", "model."), ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
              ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."))
    shards, tower, where = [{}, {}], {}, {}
    for name, t in model.state_dict().items():
        t = t.half().cpu()
        if "vision_tower" in name:
            name = name.replace("model.vision_tower.", "").replace("vision_model.", "")
            tower["vision_model." + name] = t
            continue
        for a, b in rename:
            name = b + name[len(a):] if name.startswith(a) else name
        k = 1 if name.startswith("model.layers.") and int(name.split(".")[2]) >= 20 or "norm" in name[:12] else 0
        shards[k][name], where[name] = t, f"pytorch_model-{k + 1:05}-of-00002.bin"
    for k in (0, 1):
        torch.save(shards[k], f"{folder}/pytorch_model-{k + 1:05}-of-00002.bin")
    json.dump({"metadata": {}, "weight_map": where}, open(f"{folder}/pytorch_model.bin.index.json", "w"))
    os.makedirs(f"{folder}/clip")
    torch.save(tower, f"{folder}/clip/pytorch_model.bin")
    v, t = model.config.vision_config.to_dict(), model.config.text_config
    json.dump({"model_type": "clip_vision_model", **{k: v[k] for k in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
        "hidden_act", "layer_norm_eps")}}, open(f"{folder}/clip/config.json", "w"))
    json.dump({"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "hidden_size": t.hidden_size,
               "intermediate_size": t.intermediate_size, "num_hidden_layers": t.num_hidden_layers,
               "num_attention_heads": t.num_attention_heads, "num_key_value_heads": t.num_key_value_heads,
               "vocab_size": t.vocab_size, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
               "image_aspect_ratio": "pad", "mm_hidden_size": 1024, "mm_projector_type": "mlp2x_gelu",
               "mm_use_im_patch_token": False, "mm_use_im_start_end": False, "mm_vision_select_feature": "patch",
               "mm_vision_select_layer": -2, "mm_vision_tower": "./clip", "torch_dtype": "float16"},
              open(f"{folder}/config.json", "w"))


def reference(model, got):
    """logits and picture features from our ids and pixels: on the language model's side the same input"""
    ids = [x for i in got["input_ids"] for x in ([32000] * 576 if i == -200 else [int(i)])]
    px = torch.tensor(got["pixel_values"]).cuda().to(model.dtype)
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]).cuda(), pixel_values=px, attention_mask=torch.ones(1, len(ids)).cuda())
        feats = model.model.get_image_features(pixel_values=px)
    feats = getattr(feats, "pooler_output", feats)
    feats = torch.cat(list(feats)) if isinstance(feats, (list, tuple)) else feats
    return out.logits[0].float().cpu().numpy(), feats.reshape(-1, feats.shape[-1]).float().cpu().numpy()


def error(a, b):
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64)))


def run(a, folder, dtype):
    out, start = f"{a.work}/out.safetensors", time.time()
    subprocess.run([a.llava, "forward", "--model-path", folder, "--image-file", a.picture, "--prompt", PROMPT,
                    "--dtype", dtype, "--context", "1024", "--out", out], check=True)
    return read_safetensors(out), time.time() - start


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("llava", "tokenizer", "picture", "work"):
        ap.add_argument("--" + name, required=True)
    ap.add_argument("--size", default="7b", choices=SIZES)
    ap.add_argument("--layouts", default="transformers,llava,llava-hf")
    a = ap.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    start, good = time.time(), True
    model = build(a.size)
    print(f"# {a.size} made, {time.time() - start:.0f} s", flush=True)
    for layout in a.layouts.split(","):
        folder = f"{a.work}/{layout}"
        os.makedirs(folder)
        save = {"transformers": save_transformers, "llava-hf": save_llava_hf, "llava": save_llava}[layout]
        save(model, folder, a.tokenizer)
        shutil.copy(a.tokenizer, f"{folder}/tokenizer.model")
        json.dump({"legacy": False, "add_bos_token": True, "tokenizer_class": "LlamaTokenizer"},
                  open(f"{folder}/tokenizer_config.json", "w"))
        print(f"# {layout} written, {time.time() - start:.0f} s", flush=True)
        got32, s32 = run(a, folder, "f32")
        got16, s16 = run(a, folder, "bf16")
        shutil.rmtree(folder)
        model.float()
        restore_frequencies(model)
        logits, feats = reference(model, got32)
        model.to(torch.bfloat16)
        restore_frequencies(model)
        logits16, feats16 = reference(model, got32)
        row = {"layout": layout, "positions": len(logits),
               "f32_logits": error(got32["logits"], logits), "f32_features": error(got32["image_features"], feats),
               "bf16_logits": error(got16["logits"], logits), "torch_bf16_logits": error(logits16, logits),
               "bf16_features": error(got16["image_features"], feats), "torch_bf16_features": error(feats16, feats),
               "same_argmax_f32": float((got32["logits"].argmax(1) == logits.argmax(1)).mean()), "f32_s": s32, "bf16_s": s16}
        ok = (row["f32_logits"] <= 1e-4 and row["f32_features"] <= 1e-4 and row["bf16_logits"] <= 2 * row["torch_bf16_logits"]
              and row["bf16_features"] <= 2 * row["torch_bf16_features"])
        good &= ok
        print(json.dumps({**row, "ok": bool(ok), "at_s": time.time() - start}), flush=True)
    print("ok" if good else "FAILED")
    sys.exit(not good)


if __name__ == "__main__":
    main()
