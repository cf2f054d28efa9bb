#!/usr/bin/env python3
"""Write trained weights as a Hugging Face LLaVA folder (bf16), and check that transformers agrees with what was trained.

usage: export.py WEIGHTS.pt TOKENIZER.model PICTURES.npz OUT_DIR
"""
import json
import os
import random
import shutil
import sys

import torch

import model as M
import pictures
import words
from train import VOCAB

SPECIAL = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def write_json(facts, path):
    with open(path, "w") as f:
        json.dump(facts, f, indent=2)
        f.write("\n")


def tokenizer_folder(model_file, out):
    """tokenizer.model, and the files transformers makes of it, <image> added. Returns (tokenizer, its settings)."""
    from transformers import AddedToken, AutoTokenizer
    os.makedirs(out, exist_ok=True)
    shutil.copy(model_file, os.path.join(out, "tokenizer.model"))
    settings = dict(tokenizer_class="LlamaTokenizer", legacy=True, add_bos_token=True, add_eos_token=False,
                    clean_up_tokenization_spaces=False, model_max_length=1024, pad_token="</s>", **SPECIAL)
    path = os.path.join(out, "tokenizer_config.json")
    write_json(settings, path)
    tok = AutoTokenizer.from_pretrained(out)
    tok.add_tokens(AddedToken("<image>", normalized=False, special=True), special_tokens=True)
    tok.save_pretrained(out)
    write_json(settings, path)
    return AutoTokenizer.from_pretrained(out), settings


def check_tokenizer(tok, tokens, things, count=3000):
    """How many of count random conversations transformers tokenizes differently from LLaVA's rule."""
    asker, rng, bad = words.Asker(things, 5), random.Random(5), 0
    for _ in range(count):
        rounds = asker.rounds(rng.randrange(len(things)))
        text = rng.choice(words.SYSTEMS) + words.HEAD + "<image>\n"
        text += "USER: ".join(f"{q} ASSISTANT: {a}</s>" for q, a in rounds)
        head = text.split("<image>")[0][:-len(words.HEAD)]
        want = tokens.head(head) + [tokens.image] + tokens.branch(rounds)[0]
        got = tok(text).input_ids
        if got != want:
            bad += 1
            if bad <= 2:
                print("differs:", repr(text[-120:]), "\n want", want, "\n got ", got)
    return bad


def config(image):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    vision = CLIPVisionConfig(hidden_size=M.WIDTH, intermediate_size=M.VISION_MLP, num_hidden_layers=M.VISION_LAYERS,
                              num_attention_heads=M.WIDTH // M.HEAD_DIM, image_size=M.SIDE, patch_size=M.PATCH,
                              hidden_act="quick_gelu", projection_dim=M.WIDTH)
    text = LlamaConfig(vocab_size=VOCAB, hidden_size=M.WIDTH, intermediate_size=M.TEXT_MLP, rms_norm_eps=1e-5,
                       num_hidden_layers=M.TEXT_LAYERS, num_attention_heads=M.WIDTH // M.HEAD_DIM,
                       num_key_value_heads=M.WIDTH // M.HEAD_DIM, max_position_embeddings=1024, rope_theta=10000.0,
                       bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=False)
    return LlavaConfig(vision_config=vision, text_config=text, image_token_id=image, image_seq_length=M.TOKENS,
                       vision_feature_layer=-2, vision_feature_select_strategy="default", projector_hidden_act="gelu",
                       tie_word_embeddings=False)


def model_folder(weights, image, out):
    """config.json, generation_config.json, model.safetensors."""
    from transformers import LlavaForConditionalGeneration
    net = LlavaForConditionalGeneration(config(image)).to(torch.bfloat16)
    have, state = net.state_dict(), {}
    for name, value in weights.items():
        spots = [name, "model." + name, "model." + name.replace("vision_tower.", "vision_tower.vision_model.")]
        spot = [s for s in spots if s in have]
        if not spot or have[spot[0]].shape != value.shape:
            sys.exit(f"export: no place for '{name}' {list(value.shape)}")
        state[spot[0]] = value
    missing = [k for k in have if k not in state and not k.endswith(("position_ids", "inv_freq"))]
    if missing:
        sys.exit(f"export: transformers also wants {missing}")
    net.load_state_dict(state, strict=False)
    net.generation_config.bos_token_id, net.generation_config.eos_token_id = 1, 2
    net.generation_config.pad_token_id, net.generation_config.do_sample = 2, False
    net.save_pretrained(out)
    path = os.path.join(out, "config.json")
    facts = json.load(open(path))
    facts["image_aspect_ratio"] = "square"
    write_json(facts, path)


def processor_files(tok, settings, out):
    """preprocessor_config.json as CLIP's, and the processor that AutoProcessor opens."""
    from transformers import CLIPImageProcessor, LlavaProcessor
    size = M.SIDE
    image = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}, resample=3,
                               image_mean=pictures.MEAN, image_std=pictures.STD)
    LlavaProcessor(image, tok, patch_size=M.PATCH, vision_feature_select_strategy="default",
                   num_additional_image_tokens=1).save_pretrained(out)
    plain = dict(image_processor_type="CLIPImageProcessor", do_convert_rgb=True, do_resize=True, do_center_crop=True,
                 do_rescale=True, do_normalize=True, size={"shortest_edge": size},
                 crop_size={"height": size, "width": size}, resample=3, rescale_factor=1 / 255,
                 image_mean=pictures.MEAN, image_std=pictures.STD)
    write_json(plain, os.path.join(out, "preprocessor_config.json"))
    write_json({**settings, "processor_class": "LlavaProcessor"}, os.path.join(out, "tokenizer_config.json"))


@torch.no_grad()
def compare(weights, out, tokens):
    """Largest logit difference between our model and transformers', both fp32 with the bf16 weights."""
    from transformers import LlavaForConditionalGeneration
    ours, theirs = M.Llava(VOCAB).eval(), LlavaForConditionalGeneration.from_pretrained(
        out, dtype=torch.float32, attn_implementation="eager").eval()
    ours.load_state_dict({k: v.float() for k, v in weights.items()})
    x = pictures.normalise(torch.rand(2, 3, M.SIDE, M.SIDE))
    head = torch.tensor([tokens.head(s) for s in words.SYSTEMS])
    ids = torch.tensor([tokens.question("What is this?")]).expand(2, -1)
    places, mask = M.layout(head.shape[1], [ids.shape[1]], "cpu")
    a = ours.logits(ours.vision_tower(x), head, ids, places, mask[None, None])
    all_ids = torch.cat([head, torch.full((2, M.TOKENS), tokens.image), ids], 1)
    b = theirs(input_ids=all_ids, pixel_values=x, attention_mask=torch.ones_like(all_ids)).logits[:, -ids.shape[1]:]
    return (a - b).abs().max().item(), b.abs().max().item()


def main():
    weights, model_file, packed, out = sys.argv[1:5]
    weights, tokens = torch.load(weights), words.Tokens(model_file)
    tok, settings = tokenizer_folder(model_file, out)
    print("tokenizer:", type(tok).__name__, len(tok), "<image> =", tok.convert_tokens_to_ids("<image>"))
    things, _ = words.load_things(pictures.load_facts(packed))
    print(check_tokenizer(tok, tokens, things), "of 3000 conversations tokenized differently")
    model_folder(weights, tokens.image, out)
    processor_files(tok, settings, out)
    difference, scale = compare(weights, out, tokens)
    print(f"largest logit difference {difference:.2e} of {scale:.1f}")
    if difference > 1e-3 * max(1, scale):
        sys.exit("export: transformers computes something else")


if __name__ == "__main__":
    main()
