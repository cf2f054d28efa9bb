"""One function per checkpoint layout: random weights, expected values, then the folder."""
import json
import os
import shutil

import numpy as np
import torch

from golden.common import (
    IMAGE, MEAN, STD, attempt, fresh, notes, opt, relative, write_json, write_safetensors)
from golden.expected import Model, Q1, READING, SEEING, SQUARE, T1, TALL, THIN, WIDE, all_rows, build, record
from golden.forward import clip_config, llm_config, spatial_merge
from golden.layouts import (
    generation_json, llama_json, mm_json, sharded, torch_save, write_clip_flat, write_clip_whole)
from golden.pictures import anyres_tiles, clip_normalise, open_rgb
from golden.text import Tokenizer, write_tokenizer
from golden.training import training
from golden.weights import (
    Random, clip_shape, clip_weights, llava_weights, llm_shape, llm_weights, projector_weights)


def liuhaotian(spm, shared):
    """1: as liuhaotian/llava-v1.5: f16 .bin shards, inv_freq tensors, the tower in ./clip"""
    c, v = llm_shape(), clip_shape(28, 16, 2)
    mm = mm_json("./clip", v["hidden_size"], "pad")
    kept = {}

    def make(seed):
        r = Random(seed, torch.float16)
        kept["w"] = llava_weights(c, v, r)
        kept["cw"] = clip_weights(v, r)
        return Model("llava-liuhaotian", c, kept["w"], Tokenizer(spm, False), mm, v, kept["cw"])

    two = "USER: <image>\n<image>\nWhich is red? ASSISTANT:"
    cases = all_rows(SEEING) + [([], T1, 1), ([WIDE, SQUARE], two, 1), ([THIN], Q1, 1)]
    model, out = build(make, cases, 100)
    folder = fresh(opt.out, "models", model.name)
    w = {}
    for k, t in kept["w"].items():
        w[k] = t
        if k.endswith("self_attn.o_proj.weight"):
            w[k.replace("o_proj.weight", "rotary_emb.inv_freq")] = 10000.0 ** -(torch.arange(0, 16,
                                                                                             2).float() / 16)
    sharded(folder, w, lambda k: int(not k.startswith(("model.embed", "model.layers.0."))), "pytorch_model",
            "bin", torch_save)
    write_json(os.path.join(folder, "config.json"),
               llama_json(c, "llava", "LlavaLlamaForCausalLM", _name_or_path="llava-v1.5-tiny",
                          max_length=512, **mm))
    generation_json(folder)
    write_tokenizer(folder, spm, False)
    write_clip_flat(os.path.join(folder, "clip"), v, kept["cw"])
    record(model, out, cases)


def hf_names(w, cw, on_disk=True):
    """LLaVA's names to llava-hf's (transformers 4.3x on disk)"""
    out = {"vision_tower." + k: t for k, t in (cw or {}).items()}
    for k, t in w.items():
        if "mm_projector" in k:
            k = k.replace("model.mm_projector.0", "multi_modal_projector.linear_1")
            out[k.replace("model.mm_projector.2", "multi_modal_projector.linear_2")] = t
        else:
            out["language_model." + k] = t
    return out


def from_hf_names(sd):
    """what LlavaForConditionalGeneration holds in memory, to LLaVA's names: (weights, clip weights)"""
    w, cw = {}, {}
    for k, t in sd.items():
        k = k[len("model."):] if k.startswith("model.") else k
        if k.startswith("vision_tower."):
            k = k[len("vision_tower."):]
            cw[k if k.startswith("vision_model.") else "vision_model." + k] = t
        elif k.startswith("multi_modal_projector."):
            w[k.replace("multi_modal_projector.linear_1", "model.mm_projector.0")
               .replace("multi_modal_projector.linear_2", "model.mm_projector.2")] = t
        elif k.startswith("language_model."):
            w["model." + k[len("language_model."):]] = t
        else:
            w[k] = t
    return w, {k: t for k, t in cw.items() if not k.endswith("position_ids")}


HF_TOKENS = (("<image>", 320), ("<pad>", 321))


def hf_llava_logits(model, ids, pixels, count):
    """LlavaForConditionalGeneration itself, the image token repeated as its processor does"""
    wide = sum(([320] * count if i == IMAGE else [i] for i in ids), [])
    out = model(input_ids=torch.tensor([wide]), pixel_values=pixels,
                attention_mask=torch.ones(1, len(wide), dtype=torch.long),
                use_cache=False)
    return out.logits[0].float()


def llava_hf_old(spm, shared):
    """2: llava-hf's names of transformers 4.3x, sharded safetensors, rows beyond the tokenizer's"""
    c, v = llm_shape(vocab_size=384, hidden_size=48, num_attention_heads=3, num_key_value_heads=3,
                     intermediate_size=64), clip_shape(28, 16, 2)
    kept = {}

    def make(seed):
        r = Random(seed, torch.float16)
        w = llava_weights(c, v, r)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):   # added rows: near the mean of the old
            old = w[name][:320].float()
            w[name][320:] = (old.mean(0) + 1e-3 * r.normal(64, c["hidden_size"]).float()).half()
        kept.update(w=w, cw=clip_weights(v, r))
        return Model("llava-hf-old", c, w, Tokenizer(spm, False, HF_TOKENS), {}, v, kept["cw"])

    model, out = build(make, SEEING, 200)
    folder = fresh(opt.out, "models", model.name)
    sharded(folder, hf_names(kept["w"], kept["cw"]),
            lambda k: int(k.startswith(("language_model.model.layers.1", "language_model.lm"))),
            "model", "safetensors", write_safetensors)
    text = {"_name_or_path": "vicuna-tiny", "architectures": ["LlamaForCausalLM"],
            "hidden_size": c["hidden_size"],
            "intermediate_size": c["intermediate_size"],
            "max_position_embeddings": c["max_position_embeddings"],
            "model_type": "llama", "num_attention_heads": 3, "num_hidden_layers": 2, "num_key_value_heads": 3,
            "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "torch_dtype": "float16", "vocab_size": 384}
    vision = {"model_type": "clip_vision_model", "projection_dim": 16, "vocab_size": 320, **v}
    write_json(os.path.join(folder, "config.json"),
               {"architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100,
                "image_token_index": 320,
                "model_type": "llava", "pad_token_id": 321, "projector_hidden_act": "gelu",
                "text_config": text,
                "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.36.0.dev0",
                "vision_config": vision, "vision_feature_layer": -2,
                "vision_feature_select_strategy": "default",
                "vocab_size": 384})
    size = v["image_size"]
    write_json(os.path.join(folder, "preprocessor_config.json"),
               {"crop_size": {"height": size, "width": size}, "do_center_crop": True, "do_convert_rgb": True,
                "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": MEAN,
                "image_processor_type": "CLIPImageProcessor", "image_std": STD,
                "processor_class": "LlavaProcessor",
                "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": size}})
    generation_json(folder)
    write_tokenizer(folder, spm, False, HF_TOKENS)
    record(model, out, SEEING)
    if not opt.plain:
        check_hf(folder, model, out)


def check_hf(folder, model, out):
    """the folder as transformers reads it: the same logits, and its own ids and pixels for comparison"""
    import transformers as tf
    hf, info = tf.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32,
                                                                attn_implementation="eager",
                                                                output_loading_info=True)
    note = notes["llava_for_conditional_generation"].setdefault(model.name, {})
    note["loading_info"] = {k: sorted(map(str, v))[:4] for k, v in info.items() if v}
    pixels = pixels_of(out["c0.crop_u8"])
    with torch.no_grad():
        got = hf_llava_logits(hf.eval(), out["c0.input_ids"].tolist(), pixels,
                              out["c0.image_features"].shape[0])
    note["logits_relative"] = relative(got[-len(out["c0.logits"]):], out["c0.logits"])
    attempt(note, "processor", lambda: processor_view(folder, out))
    assert note["logits_relative"] < 2e-6, note


def pixels_of(crops):
    return torch.from_numpy(np.stack([clip_normalise(c) for c in crops.numpy()]))


def processor_view(folder, out):
    import transformers as tf
    processor = tf.AutoProcessor.from_pretrained(folder)
    view = {"class": type(processor).__name__, "tokenizer": type(processor.tokenizer).__name__,
            "image_processor": type(processor.image_processor).__name__}
    for n, (names, prompt, _) in enumerate(SEEING):
        try:
            got = processor.tokenizer(prompt)["input_ids"]
            got = [IMAGE if i == 320 else i for i in got]
            want = out[f"c{n}.input_ids"].tolist()
            view[f"c{n} ids"] = "equal" if got == want else \
                "equal but for the prefix before the first word" if [1] + want[2:] == got else "differ"
            im = open_rgb(os.path.join(opt.out, "pictures", names[0]))
            px = processor.image_processor(im, return_tensors="pt")["pixel_values"]
            view[f"c{n} pixels max difference"] = float((px - pixels_of(out[f"c{n}.crop_u8"])).abs().max())
        except Exception as e:
            view[f"c{n}"] = repr(e)
    return view


def transformers5(spm, shared):
    """3: what transformers 5 writes"""
    if opt.plain:
        return
    import transformers as tf
    c = llm_shape(vocab_size=322, hidden_size=48, num_attention_heads=3, num_key_value_heads=3,
                  intermediate_size=64)
    v = clip_shape(28, 16, 2)
    kept = {}

    def make(seed):
        r = Random(seed, torch.bfloat16)
        kept["w"] = llava_weights(c, v, r)
        kept["cw"] = clip_weights(v, r)
        return Model("llava-transformers5", c, kept["w"], Tokenizer(spm, False, HF_TOKENS), {}, v, kept["cw"])

    model, out = build(make, SEEING, 300)
    config = tf.LlavaConfig(vision_config=clip_config(v), text_config=llm_config(c), image_token_index=320,
                            vision_feature_layer=-2, vision_feature_select_strategy="default",
                            image_seq_length=4)
    hf = tf.LlavaForConditionalGeneration(config)
    own = hf.state_dict()
    state = {}
    for k in own:
        w, cw = from_hf_names({k: own[k]})
        name = next(iter({**w, **cw}), None)
        state[k] = {**kept["w"], **kept["cw"]}[name].float() if name else own[k]
    hf.load_state_dict(state, strict=True)
    folder = fresh(opt.out, "models", model.name)
    hf.to(torch.bfloat16).save_pretrained(folder)
    note = notes["llava_for_conditional_generation"].setdefault(model.name, {})
    attempt(note, "processor_saved", lambda: save_processor(folder, spm, v["image_size"]))
    note["files"] = sorted(os.listdir(folder))
    if "tokenizer.model" not in note["files"]:
        with open(os.path.join(folder, "tokenizer.model"), "wb") as f:
            f.write(spm)
        note["tokenizer.model"] = "added by tools/golden.py: transformers writes tokenizer.json only"
    record(model, out, SEEING)
    check_hf(folder, model, out)


def save_processor(folder, spm, size):
    import transformers as tf
    plain = fresh(opt.out, "tmp-tokenizer")
    write_tokenizer(plain, spm, False, HF_TOKENS)
    tok = tf.AutoTokenizer.from_pretrained(plain)
    image = tf.CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    template = ("{% for m in messages %}{% if m['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
                "{{ m['content'] }}{% endfor %}")
    processor = tf.LlavaProcessor(image_processor=image, tokenizer=tok, patch_size=14, chat_template=template,
                                  vision_feature_select_strategy="default", num_additional_image_tokens=1)
    processor.save_pretrained(folder)
    shutil.rmtree(plain)
    return type(tok).__name__


def self_trained(spm, shared):
    """4: as LLaVA's own training saves it: f32 safetensors with the tower inside; the training fixture too"""
    c = llm_shape(hidden_size=32, num_attention_heads=2, num_key_value_heads=2, intermediate_size=48)
    v = clip_shape(28, 16, 2)
    mm = mm_json("./clip", v["hidden_size"], "pad")
    kept = {}

    def make(seed):
        r = Random(seed, torch.float32)
        kept["w"] = llava_weights(c, v, r)
        kept["cw"] = clip_weights(v, r)
        return Model("llava-self-trained", c, kept["w"], Tokenizer(spm, False), mm, v, kept["cw"])

    model, out = build(make, SEEING, 400)
    folder = fresh(opt.out, "models", model.name)
    w = {**kept["w"], **{"model.vision_tower.vision_tower." + k: t for k, t in kept["cw"].items()}}
    write_safetensors(os.path.join(folder, "model.safetensors"), w)
    write_json(os.path.join(folder, "config.json"),
               llama_json(c, "llava_llama", "LlavaLlamaForCausalLM", **mm, torch_dtype="float32",
                          rope_theta=10000.0,
                          transformers_version="4.37.2", attention_dropout=0.0, mm_patch_merge_type="flat",
                          mm_projector_lr=None, tokenizer_model_max_length=512,
                          tokenizer_padding_side="right"))
    generation_json(folder)
    write_tokenizer(folder, spm, False)
    write_clip_flat(os.path.join(folder, "clip"), v, None)
    record(model, out, SEEING)
    training(model, spm)


def base_model(spm, shared):
    """the plain Vicuna-like Llama that LoRA and projector folders build on; text only"""
    c = llm_shape()
    kept = {}

    def make(seed):
        kept["w"] = llm_weights(c, Random(seed, torch.float16))
        return Model("vicuna-base", c, kept["w"], Tokenizer(spm, True))

    model, out = build(make, READING, 500)
    folder = fresh(opt.out, "models", model.name)
    torch_save(os.path.join(folder, "pytorch_model.bin"), kept["w"])
    write_json(os.path.join(folder, "config.json"), llama_json(c, "llama", "LlamaForCausalLM"))
    generation_json(folder)
    write_tokenizer(folder, spm, True)
    record(model, out, READING)
    shared["base"] = (c, kept["w"])


def clip_tiny(spm, shared):
    """the sibling folder that several variants name as their tower"""
    v, r = clip_shape(42), Random(7, torch.float16)
    shared["clip"] = (v, clip_weights(v, r))
    path = os.path.join(opt.out, "models", "clip-tiny")
    shutil.rmtree(path, ignore_errors=True)
    write_clip_whole(path, *shared["clip"], r)


def lora(spm, shared):
    """5: adapters written by peft: f32 safetensors on all linear layers, and bf16 .bin on q and v"""
    if opt.plain:
        return
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora_folder(spm, shared, "llava-lora", 4, 8, every, torch.float32, False, 600)
    lora_folder(spm, shared, "llava-lora-bin", 6, 3, ["q_proj", "v_proj"], torch.bfloat16, True, 650)


def lora_folder(spm, shared, name, rank, alpha, targets, dtype, as_bin, seed):
    import peft
    import transformers as tf
    (c, base), (v, cw) = shared["base"], shared["clip"]
    mm = mm_json("clip-tiny", v["hidden_size"], "pad")
    kept = {}

    def make(seed):
        r = Random(seed, dtype)
        kept["projector"] = projector_weights("mlp2x_gelu", v["hidden_size"], c["hidden_size"], r)
        lm = tf.LlamaForCausalLM(llm_config(c))
        lm.load_state_dict({k: t.float() for k, t in base.items()})
        settings = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.05,
                                   bias="none",
                                   task_type="CAUSAL_LM")
        pm = peft.get_peft_model(lm, settings)
        for key, p in pm.named_parameters():
            if "lora_" in key:
                p.data = r.normal(*p.shape, std=0.15).float()
        if dtype != torch.float32:
            for key, p in pm.named_parameters():
                if "lora_" in key:
                    p.data = p.data.to(dtype)
        folder = fresh(opt.out, "models", name)
        pm.peft_config["default"].base_model_name_or_path = "vicuna-base"
        pm.save_pretrained(folder, save_embedding_layers=False)
        for key, p in pm.named_parameters():
            p.data = p.data.float()
        merged = {k: t.clone() for k, t in pm.eval().merge_and_unload().state_dict().items()}
        return Model(name, c, {**merged, **kept["projector"]}, Tokenizer(spm, True), mm, v, cw)

    model, out = build(make, SEEING, seed)
    folder = os.path.join(opt.out, "models", name)
    if os.path.exists(os.path.join(folder, "README.md")):
        os.remove(os.path.join(folder, "README.md"))
    sort_targets(os.path.join(folder, "adapter_config.json"))
    from safetensors.torch import load_file
    stored = load_file(os.path.join(folder, "adapter_model.safetensors"))
    check_merge(model.w, base, stored, alpha / rank)
    if as_bin:
        torch_save(os.path.join(folder, "adapter_model.bin"), stored)
        os.remove(os.path.join(folder, "adapter_model.safetensors"))
    torch_save(os.path.join(folder, "non_lora_trainables.bin"),
               {"base_model.model." + k: t for k, t in kept["projector"].items()})
    write_json(os.path.join(folder, "config.json"),
               llama_json(c, "llava_llama", "LlavaLlamaForCausalLM", **mm, _name_or_path="vicuna-base",
                          mm_patch_merge_type="flat", mm_projector_lr=2e-5, tokenizer_model_max_length=512,
                          tokenizer_padding_side="right", torch_dtype="bfloat16"))
    record(model, out, SEEING, base="models/vicuna-base")


def sort_targets(path):
    """peft writes a set in the order of its hashes"""
    with open(path, encoding="utf-8") as f:
        config = json.load(f)
    config["target_modules"].sort()
    write_json(path, config)


def check_merge(merged, base, adapter, scale):
    """merge_and_unload is W + (alpha/r) B A"""
    for key in adapter:
        if ".lora_A." in key:
            name = key[len("base_model.model."):].replace(".lora_A", "")
            a, b = adapter[key].float(), adapter[key.replace("lora_A", "lora_B")].float()
            assert relative(base[name].float() + scale * (b @ a), merged[name]) < 1e-6, name


def projector_only(spm, shared):
    """6: a pretrained projector over the base, mlp2x_gelu in bf16 and linear in f16"""
    for kind, dtype, aspect, seed in (("mlp2x_gelu", torch.bfloat16, "square", 700),
                                      ("linear", torch.float16, "pad", 750)):
        projector_folder(spm, shared, kind, dtype, aspect, seed)


def projector_folder(spm, shared, kind, dtype, aspect, seed):
    (c, base), (v, cw) = shared["base"], shared["clip"]
    mm = {**mm_json("clip-tiny", v["hidden_size"], aspect, kind), "tune_mm_mlp_adapter": True}
    kept = {}

    def make(seed):
        kept["w"] = projector_weights(kind, v["hidden_size"], c["hidden_size"], Random(seed, dtype))
        return Model("llava-projector-" + kind.split("2")[0], c, {**base, **kept["w"]}, Tokenizer(spm, True),
                     mm, v, cw)

    model, out = build(make, SEEING, seed)
    folder = fresh(opt.out, "models", model.name)
    torch_save(os.path.join(folder, "mm_projector.bin"), kept["w"])
    write_json(os.path.join(folder, "config.json"),
               llama_json(c, "llava_llama", "LlavaLlamaForCausalLM", **mm, _name_or_path="vicuna-base",
                          tokenizer_model_max_length=512, tokenizer_padding_side="right"))
    record(model, out, SEEING, base="models/vicuna-base")


def anyres(spm, shared):
    """7: llava-v1.6: tiles, spatial_unpad, image_newline"""
    v, cw = shared["clip"]
    c = llm_shape(intermediate_size=48)
    tile = v["image_size"]
    mm = {**mm_json("clip-tiny", v["hidden_size"], "anyres"), "mm_patch_merge_type": "spatial_unpad",
          "image_grid_pinpoints": [[tile * a, tile * b] for a, b in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))],
          "image_crop_resolution": 224, "image_split_resolution": 224, "mm_vision_tower_lr": 2e-6}
    kept = {}

    def make(seed):
        r = Random(seed, torch.float16)
        kept["w"] = {**llava_weights(c, v, r), "model.image_newline": r.normal(c["hidden_size"])}
        return Model("llava-anyres", c, kept["w"], Tokenizer(spm, False), mm, v, cw)

    cases = SEEING + [([SQUARE], Q1, 1), ([THIN], Q1, 1)]
    model, out = build(make, cases, 800)
    folder = fresh(opt.out, "models", model.name)
    write_safetensors(os.path.join(folder, "model.safetensors"), kept["w"])
    write_json(os.path.join(folder, "config.json"),
               llama_json(c, "llava", "LlavaLlamaForCausalLM", **mm, tokenizer_model_max_length=512,
                          tokenizer_padding_side="right", transformers_version="4.36.2"))
    generation_json(folder)
    write_tokenizer(folder, spm, False)
    record(model, out, cases)
    if not opt.plain:
        newline = kept["w"]["model.image_newline"].float()
        attempt(notes, "anyres_vs_llava_next", lambda: llava_next_view(mm, v, newline))


def llava_next_view(mm, v, newline):
    """transformers' LLaVA-NeXT functions on the same tiles: the choice of grid and the unpadding"""
    from transformers.models.llava_next import modeling_llava_next as next_
    view, side = {}, v["image_size"] // v["patch_size"]
    pinpoints = [[h, w] for w, h in mm["image_grid_pinpoints"]]          # transformers has (height, width)
    for name in sorted(os.listdir(os.path.join(opt.out, "pictures"))):
        im = open_rgb(os.path.join(opt.out, "pictures", name))
        w, h = im.size
        tiles, grid = anyres_tiles(im, mm["image_grid_pinpoints"], v["image_size"])
        gh, gw = next_.get_anyres_image_grid_shape((h, w), pinpoints, v["image_size"])
        row = {"grid equal": (gw, gh) == grid}
        x = torch.randn(len(tiles), side * side, newline.shape[0], generator=torch.Generator().manual_seed(5))
        ours = spatial_merge(x, grid, (w, h), newline, "spatial_unpad")
        y = x[1:].view(gh, gw, side, side, -1).permute(4, 0, 2, 1, 3).contiguous().flatten(1, 2).flatten(2, 3)
        y = next_.unpad_image(y, (h, w))
        y = torch.cat((y, newline[:, None, None].expand(*y.shape[:-1], 1)), dim=-1).flatten(1, 2).transpose(0,
                                                                                                            1)
        theirs = torch.cat((x[0], y))
        row["merge equal"] = bool(theirs.shape == ours.shape and torch.equal(theirs, ours))
        row["rows"] = [ours.shape[0], theirs.shape[0]]
        view[name] = row
    return view


def mistral(spm, shared):
    """8: llava_mistral: two KV heads for four, head_dim apart from hidden/heads, rope base 1e6"""
    v, cw = shared["clip"]
    c = llm_shape(mistral=True, hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                  intermediate_size=80, rope={"rope_type": "default", "rope_theta": 1000000.0})
    mm = mm_json("clip-tiny", v["hidden_size"], "pad")
    kept = {}

    def make(seed):
        r = Random(seed, torch.bfloat16)
        kept["w"] = llava_weights(c, v, r)
        return Model("llava-mistral", c, kept["w"], Tokenizer(spm, True), mm, v, cw)

    prompts = [([WIDE], "[INST] <image>\nWhat is in the picture? [/INST]", 0),
               ([TALL], "[INST] <image>\nIs it red? [/INST] Yes. </s>[INST] Why? [/INST]", 1)]
    model, out = build(make, prompts, 900)
    folder = fresh(opt.out, "models", model.name)
    write_safetensors(os.path.join(folder, "model.safetensors"), kept["w"])
    write_json(os.path.join(folder, "config.json"),
               llama_json(c, "llava_mistral", "LlavaMistralForCausalLM", **mm, head_dim=16,
                          rope_theta=1000000.0,
                          sliding_window=None, torch_dtype="bfloat16", tokenizer_model_max_length=512,
                          tokenizer_padding_side="left", transformers_version="4.37.2",
                          mm_patch_merge_type="flat"))
    generation_json(folder)
    write_tokenizer(folder, spm, True)
    record(model, out, prompts)


def llama_tied(spm, shared):
    """9: text only, tied embeddings, one KV head for two, rope scalings, as transformers 5 writes them"""
    default = {"rope_type": "default", "rope_theta": 10000.0}
    kinds = {"llama-tied": default, "llama-linear": {**default, "rope_type": "linear", "factor": 4.0},
             "llama-llama3": {**default, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                              "high_freq_factor": 4.0,
                              "original_max_position_embeddings": 64, "rope_theta": 500000.0}}
    for n, (name, rope) in enumerate(kinds.items()):
        tied_folder(spm, name, rope, 1000 + 50 * n)


def tied_folder(spm, name, rope, seed):
    c = llm_shape(hidden_size=32, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48,
                  tie_word_embeddings=True, rope=rope)
    kept, cases = {}, all_rows(READING) if name == "llama-tied" else READING

    def make(seed):
        kept["w"] = llm_weights(c, Random(seed, torch.bfloat16))
        return Model(name, c, kept["w"], Tokenizer(spm, False))

    model, out = build(make, cases, seed)
    folder = fresh(opt.out, "models", name)
    if opt.plain:
        write_safetensors(os.path.join(folder, "model.safetensors"), kept["w"])
        write_json(os.path.join(folder, "config.json"), {**llama_json(c, "llama", "LlamaForCausalLM"),
                                                         "rope_parameters": rope,
                                                         "tie_word_embeddings": True})
    else:
        import transformers as tf
        lm = tf.LlamaForCausalLM(llm_config(c))
        state = {k: t.float() for k, t in kept["w"].items()}
        lm.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]})
        lm.to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder, spm, False)
    record(model, out, cases)
