#!/usr/bin/env python3
"""LoRA on records of real lengths: `llava bench train`, which fills its passes with records end to end, and PyTorch with
transformers and peft, which pad a batch to its longest record, as LLaVA's collator does. The same records, so many a step.

    train_padded.py [--llava build/cuda/llava] [--size 13b|7b|tiny] [--records 128] [--batch 16] [--pass 8] [--seq 2048]
                    [--memory-limit 60GB] [--orders come,kind,length] [--no-peer]

Ours makes the records (text of lognormal length, 85% with a picture), measures a step of them in passes of PASS x SEQ
positions, and lists their lengths; the peer takes these in batches of BATCH. Orders of the peer:
    come      as they come
    kind      those with pictures and those without apart (LLaVA's --group_by_modality_length, on one card)
    length    sorted (transformers' group_by_length at its very best, which no longer mixes records)
Weights are random, of the real shapes. The peer has what is fastest there and fits: bf16 throughout, fused AdamW, gradient
checkpointing, flash attention through sdpa and therefore no mask (records are padded behind, where causal attention needs none).
Needs a GPU, PyTorch, transformers and peft. One JSON object a measurement; records a second and ratios last.
"""
import argparse
import gc
import json
import random
import subprocess
import time

import torch

SIZES = {"tiny": (256, 688, 4, 4), "7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}   # width, wide, layers, heads
ROWS, PICTURE, IGNORE, BEFORE = 576, 32000, -100, 35
LINEARS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def ours(a):
    """the figures, with the records in them"""
    args = [a.llava, "bench", "train", "--device", "cuda", "--random", a.size, "--stage", "lora", "--mix665k", "--list",
            "--batch", str(a.fill), "--accum", str(a.records // a.fill), "--seq", str(a.seq),
            "--steps", "1"] + (["--memory-limit", a.memory_limit] if a.memory_limit else [])
    ran = subprocess.run(args, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout)


def model(size):
    """LLaVA-1.5 with adapters of rank 128 in every linear of the language model, and what is trained of it"""
    from peft import LoraConfig, get_peft_model
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
    width, wide, layers, heads = SIZES[size]
    tower = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                             image_size=336, patch_size=14, projection_dim=768)
    text = LlamaConfig(vocab_size=PICTURE + 64, hidden_size=width, intermediate_size=wide, num_hidden_layers=layers,
                       num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=4096)
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=PICTURE, image_seq_length=ROWS,
                         vision_feature_layer=-2, vision_feature_select_strategy="default")
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"), torch.no_grad():
        m = LlavaForConditionalGeneration(config)
        for name, p in m.named_parameters():
            if "norm" not in name:
                p.normal_(0, 0.02)
    m.requires_grad_(False)
    m.model.language_model.config.use_cache = False
    peft = get_peft_model(m, LoraConfig(r=128, lora_alpha=256, lora_dropout=0.05, bias="none", target_modules=LINEARS))
    m.model.multi_modal_projector.requires_grad_(True)
    peft.train()
    peft.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = [p for p in peft.parameters() if p.requires_grad]
    for p in trained:
        p.data = p.data.to(torch.bfloat16)
    return peft, trained


def positions(record):
    return record[0] + ROWS * record[1]


def batches(records, size, order, rng):
    """lists of records"""
    cut = lambda x: [x[i:i + size] for i in range(0, len(x), size)]
    if order == "come":
        return cut(records)
    if order == "length":
        return cut(sorted(records, key=positions, reverse=True))
    whole, rest = [], []
    for pictures in (1, 0):
        kind = cut(rng.sample(x := [r for r in records if r[1] == pictures], len(x)))
        whole += kind[:-1]
        rest += kind[-1] if kind else []
    return rng.sample(whole, len(whole)) + cut(rest)


def tensors(batch):
    """ids, labels and pixels of a batch, padded to its longest"""
    T = max(map(positions, batch))
    ids, labels = torch.zeros(len(batch), T, dtype=torch.long), torch.full((len(batch), T), IGNORE)
    for k, (text, picture) in enumerate(batch):
        n = positions((text, picture))
        ids[k, :n] = torch.randint(3, PICTURE - 100, (n,))
        if picture:
            at = min(BEFORE, text // 2)
            ids[k, at:at + ROWS] = PICTURE
        labels[k, n - text // 2:n] = ids[k, n - text // 2:n]
    pictures = sum(p for _, p in batch)
    pixels = torch.randn(pictures, 3, 336, 336, device="cuda", dtype=torch.bfloat16) if pictures else None
    return dict(input_ids=ids.cuda(), labels=labels.cuda(), pixel_values=pixels)


def step(m, trained, opt, inputs):
    for x in inputs:
        (m(**x).loss / len(inputs)).backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    opt.step()
    opt.zero_grad(set_to_none=True)
    torch.cuda.synchronize()


def warm(m, trained, opt, a, longest):
    """the largest micro-batch that fits"""
    size = a.batch
    while size:
        try:
            step(m, trained, opt, [tensors([longest] * size)])
            return size
        except torch.OutOfMemoryError:
            pass
        opt.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()
        print(json.dumps({"peer": f"batches of {size}", "error": "out of memory"}), flush=True)
        size //= 2
    raise SystemExit("the peer does not fit")


def theirs(a, records):
    """order -> records a second"""
    m, trained = model(a.size)
    opt = torch.optim.AdamW(trained, lr=2e-4, fused=True)
    size = warm(m, trained, opt, a, max(records, key=positions))
    real, rates = sum(map(positions, records)), {}
    for order in a.orders.split(","):
        made = batches(records, size, order, random.Random(1))
        inputs = [tensors(b) for b in made]
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        step(m, trained, opt, inputs)
        s = time.perf_counter() - start
        rates[order] = len(records) / s
        print(json.dumps({"peer": order, "batch": size, "step_s": s, "samples_s": rates[order], "tok_s": real / s,
                          "positions_s": sum(x["input_ids"].numel() for x in inputs) / s,
                          "positions_a_batch": [x["input_ids"].shape[1] for x in inputs],
                          "peak_bytes": torch.cuda.max_memory_allocated()}), flush=True)
    return rates


def main():
    p = argparse.ArgumentParser()
    for name, value in (("llava", "build/cuda/llava"), ("size", "13b"), ("memory-limit", ""), ("orders", "come,kind,length")):
        p.add_argument("--" + name, default=value)
    for name, value in (("records", 128), ("batch", 16), ("seq", 2048)):
        p.add_argument("--" + name, type=int, default=value)
    p.add_argument("--pass", type=int, default=8, dest="fill")
    p.add_argument("--no-peer", action="store_true")
    a = p.parse_args()
    mine = ours(a)
    records = [tuple(r) for r in mine.pop("records")]
    print(json.dumps(mine), flush=True)
    print(f"{len(records)} records, {sum(p for _, p in records)} with a picture, {sum(map(positions, records))} positions",
          flush=True)
    if a.no_peer:
        return
    rates = theirs(a, records)
    print(f"packed            {mine['samples_s']:.2f} records/s   (torch {torch.__version__}, {torch.cuda.get_device_name()})")
    for order, rate in rates.items():
        print(f"padded, {order:8}  {rate:.2f} records/s   ratio {mine['samples_s'] / rate:.2f}")


main()
