#!/usr/bin/env python3
"""llava convert and llava merge: layouts, round trips, types, shards, towers, tokenizer files, and what fails."""
import json
import os
import resource
import shutil
import sys

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import (LLAVA, ROOT, as_f32, config, finish, forward, model, ok, one_line, place, read_tensors,  # noqa: E402
                 run, same, write_tensors)

TEXT = "USER: Is the sky blue? ASSISTANT:"
PICTURE = "USER: <image>\nWhat is this? ASSISTANT:"


def convert(source, to, name, *more):
    out = place(name)
    rc, _, err = run("convert", "--model-path", source, "--to", to, "--output", out, *more)
    ok(rc == 0 and err == "", f"{os.path.basename(source)} to {to} {' '.join(more[:1])}", err)
    return out


def equal_numbers(a, b, prompt, picture=None):
    x, why = forward(a, prompt, picture)
    y, whynot = forward(b, prompt, picture)
    if x is None or y is None:
        return False, why + whynot
    n = min(x["logits"].shape[1], y["logits"].shape[1])
    good = all(x[k].tobytes() == y[k].tobytes() for k in x if k != "logits")
    return good and x["logits"][:, :n].tobytes() == y["logits"][:, :n].tobytes(), "numbers differ"


def canonical(t, cut=None):
    """Tensors of a transformers folder under LLaVA's names."""
    out = {}
    for k, v in t.items():
        k = k.replace("language_model.model.", "model.").replace("language_model.lm_head", "lm_head")
        k = k.replace("multi_modal_projector.linear_1", "model.mm_projector.0")
        k = k.replace("multi_modal_projector.linear_2", "model.mm_projector.2")
        if k == "image_newline":
            k = "model.image_newline"
        if k.startswith("vision_tower.") and "vision_model" not in k:
            k = k.replace("vision_tower.", "vision_tower.vision_model.")
        out[k.replace("vision_tower.vision_model", "vision_model")] = v
    return out


def round_trip(name):
    """llava -> hf -> llava, llava -> hf5 -> llava: the same bits."""
    plain = convert(model(name), "llava", name)
    first = read_tensors(plain)
    for layout in ("hf", "hf5"):
        there = convert(plain, layout, f"{name}-{layout}")
        back = convert(there, "llava", f"{name}-{layout}-back")
        again = read_tensors(back)
        ok(first.keys() == again.keys() and all(same(first[k], again[k]) for k in first),
           f"{name}: {layout} and back: same bits",
           sorted(first.keys() ^ again.keys())[:5])
        a, b = (read_tensors(os.path.join(d, "vision_tower")) for d in (plain, back))
        if a:
            ok(a.keys() == b.keys() and all(same(a[k], b[k]) for k in a), f"{name}: {layout} and back: same tower")
        good, why = equal_numbers(model(name), back, PICTURE, "wide-37x23.png")
        ok(good, f"{name}: {layout} and back: same logits with a picture", why)
        good, why = equal_numbers(model(name), there, TEXT)
        ok(good, f"{name}: {layout}: same logits for text", why)
        x, y = forward(model(name), PICTURE, "wide-37x23.png")[0], forward(there, PICTURE, "wide-37x23.png")[0]
        ok(x and y and x["image_features"].tobytes() == y["image_features"].tobytes(),
           f"{name}: {layout}: same features")
        old, new = config(plain), config(back)
        keys = [k for k in new if k in old and k not in ("model_type", "architectures", "pad_token_id",
                                                            "tokenizer_padding_side")]
        ok(all(old[k] == new[k] for k in keys if not k.startswith("tokenizer_model")),
           f"{name}: {layout}: same config",
           [(k, old[k], new[k]) for k in keys if old[k] != new[k]])


def rows_of_new_tokens():
    hf, first = place("llava-liuhaotian-hf"), read_tensors(place("llava-liuhaotian"))
    t, c = canonical(read_tensors(hf)), config(hf)
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = as_f32(first[key]), as_f32(t[key])
        mean = old.astype(np.float64).mean(0).astype(np.float32).astype(np.float16).astype(np.float32)
        ok(new.shape[0] == 384 and (new[:320] == old).all() and (new[320:] == mean).all(),
           f"{key}: 64 rows more, the mean")
    ok(c["image_token_index"] == 320 and c["pad_token_id"] == 321 and c["text_config"]["vocab_size"] == 384,
       "ids in config")
    tok = config(hf, "tokenizer_config.json")
    ok(tok["added_tokens_decoder"]["320"]["content"] == "<image>" and
       tok["added_tokens_decoder"]["1"]["content"] == "<s>" and
       tok["pad_token"] == "<pad>", "tokens in tokenizer_config.json")
    ok(config(hf, "added_tokens.json") == {"<image>": 320, "<pad>": 321}, "added_tokens.json")
    ok(config(hf, "processor_config.json")["patch_size"] == config(hf)["vision_config"]["patch_size"],
       "processor_config.json")
    back = place("llava-liuhaotian-hf-back")
    tok = config(back, "tokenizer_config.json")
    ok("320" not in tok["added_tokens_decoder"] and tok["pad_token"] == "<unk>" and
       config(back, "added_tokens.json") == {},
       "and gone on the way back")
    # a tokenizer that has the tokens: rows stay as they are
    again = convert(hf, "hf5", "hf-hf5")
    a, b = canonical(read_tensors(hf)), canonical(read_tensors(again))
    ok(a.keys() == b.keys() and all(same(a[k], b[k]) for k in a), "hf to hf5 changes names only")
    ok("rope_parameters" in config(again)["text_config"] and "rope_theta" not in config(again)["text_config"] and
       "dtype" in config(again), "hf5's keys")


def fast_tokenizer():
    """A folder with tokenizer.model alone gets the tokenizer.json that transformers 5 wrote of that model."""
    demo, source = os.path.join(ROOT, "models/demo"), place("demo")
    shutil.copytree(demo, source, ignore=shutil.ignore_patterns("pictures*", "expected*", "tokenizer.json"))
    want, got = (config(d, "tokenizer.json") for d in (demo, convert(source, "hf5", "demo-hf5")))
    ok(list(got["model"]["vocab"].items()) == list(want["model"]["vocab"].items()), "tokenizer.json: the pieces")
    merges = [" ".join(m) for m in want["model"]["merges"]]
    ok(got["model"]["merges"] == merges, "tokenizer.json: the merges, in their order",
       [(a, b) for a, b in zip(got["model"]["merges"], merges) if a != b][:5])
    ok([got[k] for k in ("decoder", "post_processor")] == [want[k] for k in ("decoder", "post_processor")],
       "tokenizer.json: what goes around a text", got)
    ok([t for t in got["added_tokens"] if t["content"] != "<pad>"] == want["added_tokens"], "tokenizer.json: added tokens",
       got["added_tokens"])
    for name in ("llava-liuhaotian-hf", "llava-mistral-hf5"):
        both, alone = place(name), place(name + "-fast")
        shutil.copytree(both, alone, ignore=shutil.ignore_patterns("tokenizer.model"))
        for prompt in (TEXT, PICTURE, "  two  spaces </s> USER:</s>USER: naïve \t你好 <s>x"):
            good, why = equal_numbers(both, alone, prompt, "wide-37x23.png" if "<image>" in prompt else None)
            ok(good, f"{name}: the same ids by tokenizer.json alone", why)


def towers():
    plain = place("llava-liuhaotian")
    ok(config(plain)["mm_vision_tower"] == "./vision_tower", "a tower beside the model goes along")
    t = read_tensors(os.path.join(plain, "vision_tower"))
    ok("vision_model.pre_layrnorm.weight" in t and config(os.path.join(plain, "vision_tower"))["model_type"] ==
       "clip_vision_model" and os.path.exists(os.path.join(plain, "vision_tower", "preprocessor_config.json")),
       "as a CLIP folder")
    inside = convert(plain, "llava", "with-tower", "--with-tower")
    names = read_tensors(inside)
    ok(sum(k.startswith("model.vision_tower.vision_tower.vision_model.") for k in names) == len(t),
       "--with-tower: inside")
    ok(sorted(os.listdir(os.path.join(inside, "vision_tower"))) == ["config.json", "preprocessor_config.json"],
       "and beside only what says how it is built")
    named = place("named")
    shutil.copytree(plain, named)
    shutil.rmtree(os.path.join(named, "vision_tower"))
    text = open(os.path.join(named, "config.json")).read()
    text = text.replace("./vision_tower", "openai/clip-vit-large-patch14-336")
    open(os.path.join(named, "config.json"), "w").write(text)
    out = convert(named, "llava", "named-out", "--dtype", "bf16")
    ok(config(out)["mm_vision_tower"] == "openai/clip-vit-large-patch14-336",
       "a tower of the hub is not opened, only named")
    rc, _, err = run("convert", "--model-path", named, "--to", "hf", "--output", place("x1"),
                     env={**os.environ, "HF_HUB_OFFLINE": "1",
                     "HF_HOME": place("nowhere")})
    ok(rc == 1 and one_line(err) and "vision tower" in err and not os.path.exists(place("x1")),
       "hf wants the tower itself", err)
    out = convert(named, "hf", "named-hf", "--vision-tower", os.path.join(plain, "vision_tower"))
    good, why = equal_numbers(out, place("llava-liuhaotian-hf"), TEXT)
    ok(good, "--vision-tower", why)


def name_tower(path, name):
    c = config(path)
    c["mm_vision_tower"] = name
    with open(os.path.join(path, "config.json"), "w", encoding="utf-8") as f:
        json.dump(c, f)


def opens(name, path, *more):
    got, why = forward(path, PICTURE, "wide-37x23.png", *more)
    ok(got is not None, f"{name}: opens alone", why)


def towers_in_reach_of_the_old_folder():
    """What is written opens wherever it lies, whatever mm_vision_tower said of where the model was."""
    source = model("llava-self-trained")  # "./clip", whose weights are in the checkpoint
    out = convert(source, "llava", "self-trained")
    ok(any("vision_tower" in k for k in read_tensors(out)), "a tower in LLaVA's checkpoint stays inside")
    good, why = equal_numbers(source, out, PICTURE, "wide-37x23.png")
    ok(good, "and opens", why)
    out = place("inside-quantised")
    rc, _, err = run("quantize", "--model-path", source, "--bits", "8", "--output", out)
    ok(rc == 0 and err == "", "quantize with the tower inside", err)
    opens("quantised", out)
    lora = place("lora-inside")
    rc, _, err = run("train", "--model_name_or_path", source, "--data_path",
                     os.path.join(ROOT, "tests/golden/training/lora.json"), "--image_folder",
                     os.path.join(ROOT, "tests/golden/pictures"), "--lora_enable", "True", "--output_dir", lora,
                     "--max_steps", "1", "--model_max_length", "512", "--report_to", "none", "--version", "v1",
                     "--mm_use_im_patch_token", "False", "--per_device_train_batch_size", "1")
    ok(rc == 0, "an adapter", err)
    name_tower(lora, "./clip")  # which is in the base's folder
    rc, _, err = run("merge", "--model-path", lora, "--model-base", source, "--save-model-path", place("inside-merged"))
    ok(rc == 0 and err == "", "merge with the tower inside the base", err)
    opens("merged", place("inside-merged"))
    for name in ("towers/clip", "/no/such/place/clip"):  # found by its whole name, and by its last
        moved = place("moved" + name.replace("/", "-"))
        shutil.copytree(model("llava-liuhaotian"), moved)
        if name[0] != "/":
            os.mkdir(os.path.join(moved, os.path.dirname(name)))
            os.rename(os.path.join(moved, "clip"), os.path.join(moved, name))
        name_tower(moved, name)
        opens(f"{name} itself", moved)
        opens(f"{name} converted", convert(moved, "llava", os.path.basename(moved) + "-out"))
    shutil.rmtree(os.path.join(moved, "clip"))
    rc, _, err = run("convert", "--model-path", moved, "--to", "llava", "--output", place("no-tower"))
    ok(rc == 0 and "warning" in err and "/no/such/place/clip" in err and os.path.exists(place("no-tower")),
       "a tower that is nowhere is said", err)
    fails("--vision-tower that is nowhere", 1, "no vision tower './nowhere'", "convert", "--model-path", moved, "--to",
          "llava", "--vision-tower", "./nowhere", "--output", place("x2"), absent=place("x2"))
    out = convert(moved, "llava", "given", "--vision-tower", os.path.relpath(os.path.join(model("llava-liuhaotian"), "clip")))
    ok(config(out)["mm_vision_tower"] == "./vision_tower", "--vision-tower by a relative path goes along", config(out))



def types_and_shards():
    source = read_tensors(place("llava-liuhaotian"))
    for name, kind, torch_type in (("bf16", "BF16", torch.bfloat16), ("f32", "F32", torch.float32)):
        out = convert(place("llava-liuhaotian"), "llava", f"as-{name}", "--dtype", name)
        t = read_tensors(out)
        good = t.keys() == source.keys()
        for k, v in t.items():
            want = torch.from_numpy(as_f32(source[k]).copy()).to(torch_type).float().numpy()
            good = good and v[0] == kind and (as_f32(v) == want).all()
        ok(good, f"--dtype {name}: as torch rounds")
        ok(config(out)["torch_dtype"] == {"bf16": "bfloat16", "f32": "float32"}[name], f"torch_dtype for {name}")
    out = convert(place("llava-liuhaotian"), "llava", "shards", "--max-shard-size", "50kB")
    names = [n for n in os.listdir(out) if n.endswith(".safetensors")]
    t = read_tensors(out)
    ok(len(names) > 3 and "model.safetensors.index.json" in os.listdir(out) and all(same(t[k], source[k])
                                                                                    for k in source),
       "--max-shard-size", names)
    good, why = equal_numbers(place("llava-liuhaotian"), out, TEXT)
    ok(good, "shards open again", why)


def projector():
    source = read_tensors(place("llava-liuhaotian"))
    out = convert(place("llava-liuhaotian"), "projector", "projector")
    d = torch.load(os.path.join(out, "mm_projector.bin"))
    want = {k for k in source if "mm_projector" in k}
    ok(set(d) == want and all((d[k].float().numpy() == as_f32(source[k])).all() for k in want),
       "projector: torch.load reads it")
    base = place("plain-llama")
    t = {k: v for k, v in source.items() if "mm_projector" not in k}
    os.mkdir(base)
    write_tensors(os.path.join(base, "model.safetensors"), t)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(os.path.join(place("llava-liuhaotian"), name), base)
    c = {k: v for k, v in config(place("llava-liuhaotian")).items() if "mm_" not in k}
    c["model_type"] = "llama"
    json.dump(c, open(os.path.join(base, "config.json"), "w"))
    both = convert(out, "llava", "projector-whole", "--model-base", base)
    again = read_tensors(both)
    ok(again.keys() == source.keys() and all(same(again[k], source[k]) for k in source),
       "projector and base make the model again")
    out = convert(model("llava-hf-old"), "projector", "projector-hf")
    ok(os.path.exists(os.path.join(out, "vision_tower", "model.safetensors")) and
       set(torch.load(os.path.join(out, "mm_projector.bin"))) == want,
       "projector of a transformers folder, with its tower")


def merging():
    for name in ("llava-lora", "llava-lora-bin"):
        out = place(name + "-merged")
        rc, _, err = run("merge", "--model-path", model(name), "--model-base", model("vicuna-base"),
                         "--save-model-path", out)
        ok(rc == 0 and err == "", f"merge {name}", err)
        merged, base = read_tensors(out), torch.load(os.path.join(model("vicuna-base"), "pytorch_model.bin"))
        rc_config = config(model(name), "adapter_config.json")
        if name == "llava-lora":
            lora = {k: torch.from_numpy(as_f32(v).copy()) for k, v in
                    read_tensors(os.path.join(model(name), "adapter_model.safetensors")).items()}
        else:
            lora = torch.load(os.path.join(model(name), "adapter_model.bin"))
        scale, good, changed = rc_config["lora_alpha"] / rc_config["r"], True, 0
        for k, w in base.items():
            if k not in merged:
                good = good and "inv_freq" in k
                continue
            stem = "base_model.model." + k[:-len(".weight")]
            a, b = lora.get(stem + ".lora_A.weight"), lora.get(stem + ".lora_B.weight")
            if a is None:
                good = good and (as_f32(merged[k]) == w.float().numpy()).all()
                continue
            changed += 1
            exact = w.double() + scale * (b.double() @ a.double())
            got = torch.from_numpy(as_f32(merged[k]).copy()).double()
            ulp = 2.0 ** (torch.floor(torch.log2(exact.abs().clamp(min=2.0 ** -14))) - 10)
            slack = 1e-6 * (w.double().abs() + (exact - w.double()).abs())  # of sums in f32
            good = good and bool(((got - exact).abs() <= 0.5 * ulp + slack).all())
        ok(good and changed > 0, f"{name}: W + scale B A rounded once, the rest as it was", changed)
        other = torch.load(os.path.join(model(name), "non_lora_trainables.bin"))
        ok(all((as_f32(merged[k[len("base_model.model."):]]) == v.float().numpy()).all() for k,
               v in other.items()),
           f"{name}: the projector that was trained along")
        ok(config(out)["model_type"] == "llava_llama" and os.path.exists(os.path.join(out, "tokenizer.model")),
           f"{name}: config and tokenizer")
        alone, why = forward(out, PICTURE, "wide-37x23.png", "--vision-tower", model("clip-tiny"))
        pair, whynot = forward(model(name), PICTURE, "wide-37x23.png", "--model-base", model("vicuna-base"),
                               "--vision-tower",
                               model("clip-tiny"))
        ok(alone and pair and np.abs(alone["logits"] - pair["logits"]).max() < 2e-3 * np.abs(pair["logits"]).max(),
           f"{name}: opens without the base", why + whynot)
    out = place("merged-f32")
    rc, _, err = run("merge", "--model-path", model("llava-lora"), "--model-base", model("vicuna-base"),
                     "--save-model-path", out,
                     "--dtype", "f32")
    alone = forward(out, TEXT)[0]
    pair = forward(model("llava-lora"), TEXT, None, "--model-base", model("vicuna-base"))[0]
    ok(alone and pair and alone["logits"].tobytes() == pair["logits"].tobytes(),
       "merged in f32: the same logits as base and adapter")
    out = convert(model("llava-lora"), "hf", "lora-hf", "--model-base", model("vicuna-base"))
    ok("language_model.lm_head.weight" in read_tensors(out), "an adapter straight to hf")


def fails(name, code, part, *args, absent=None, **options):
    rc, out, err = run(*args, **options)
    clean = absent is None or not [n for n in os.listdir(os.path.dirname(absent))
                                   if n.startswith(os.path.basename(absent))]
    ok(rc == code and part in err and (code == 2 or one_line(err)) and clean, name, f"{rc} {err}")


def errors():
    source = place("llava-liuhaotian")
    full, out = place("full"), place("out-x")
    os.mkdir(full)
    open(os.path.join(full, "mine.txt"), "w").write("precious")
    fails("a folder with something in it", 1, "not empty", "convert", "--model-path", source, "--to", "hf",
          "--output", full)
    ok(os.listdir(full) == ["mine.txt"], "which is left alone")
    empty = place("empty")
    os.mkdir(empty)
    rc, _, err = run("convert", "--model-path", source, "--to", "hf", "--output", empty + "/")
    ok(rc == 0 and os.path.exists(os.path.join(empty, "config.json")), "an empty folder is fine", err)
    rc, _, err = run("convert", "--model-path", source, "--to", "hf", "--output", place("new/deep"))
    ok(rc == 0 and os.path.exists(place("new/deep/config.json")), "folders above are made", err)
    under = os.path.join(full, "mine.txt", "x")
    fails("a file above", 1, "mine.txt", "convert", "--model-path", source, "--to", "hf", "--output", under)
    fails("no such model", 1, "no folder", "convert", "--model-path", place("none"), "--to", "hf", "--output",
          out, absent=out)
    fails("no tower: hf", 1, "no vision tower", "convert", "--model-path", model("vicuna-base"), "--to", "hf",
          "--output", out,
          absent=out)
    fails("no projector", 1, "no projector", "convert", "--model-path", model("vicuna-base"), "--to",
          "projector", "--output",
          out, absent=out)
    fails("linear projector: hf", 1, "mlp2x_gelu", "convert", "--model-path", model("llava-projector-linear"),
          "--model-base",
          model("vicuna-base"), "--to", "hf", "--output", out, absent=out)
    fails("adapter without base", 1, "--model-base", "convert", "--model-path", model("llava-lora"), "--to",
          "llava", "--output",
          out, absent=out)
    fails("merge without adapter", 1, "neither an adapter", "merge", "--model-path", source, "--model-base",
          model("vicuna-base"), "--save-model-path", out, absent=out)
    for args in (["--to", "gguf"], ["--dtype", "int8", "--to", "hf"], ["--max-shard-size", "-3", "--to", "hf"], [],
                 ["--to", "hf", "--with-tower"], ["--to", "hf", "--tokenizer", "x"], ["--to", "hf", "extra"]):
        fails(f"usage: {' '.join(args) or 'no --to'}", 2, "llava convert", "convert", "--model-path", source,
              "--output", out,
              *args, absent=out)
    fails("usage: merge needs three", 2, "are needed", "merge", "--model-path", source)
    for command in ("convert", "merge"):
        rc, text, _ = run(command, "--help")
        ok(rc == 0 and "Exit status" in text and "Example" in text, f"{command} --help")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))
    for to in ("llava", "hf", "projector"):
        size = 60000 if to != "projector" else 8000
        fails(f"disk full: {to}", 1, "cannot write", "convert", "--model-path", source, "--to", to, "--output",
              out, absent=out,
              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    fails("disk full: merge", 1, "cannot write", "merge", "--model-path", model("llava-lora"), "--model-base",
          model("vicuna-base"), "--save-model-path", out, absent=out, preexec_fn=limit)


def llama2c():
    data = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data")
    binary, tok = os.path.join(data, "stories260K.bin"), os.path.join(data, "tok512.model")
    out = place("stories")
    rc, _, err = run("convert", "--from", "llama2c", "--model-path", binary, "--tokenizer", tok, "--output", out)
    ok(rc == 0 and err == "", "llama2c", err)
    t, raw = read_tensors(out), np.fromfile(binary, "<f4")[7:]
    q = raw[512 * 64 + 5 * 64:][:64 * 64].reshape(8, 4, 2, 64)  # heads, pairs, of a pair, in
    ok((t["model.layers.0.self_attn.q_proj.weight"][1] == q.transpose(0, 2, 1, 3).reshape(64, 64)).all(),
       "llama2c: rows of q_proj")
    ok("lm_head.weight" not in t and config(out)["tie_word_embeddings"] is True, "llama2c: tied")
    cut, bad = place("cut.bin"), place("bad.bin")
    open(cut, "wb").write(open(binary, "rb").read()[:-4])
    open(bad, "wb").write(b"\xff" * 100)
    no = place("no-x")
    for name, path, part in (("cut short", cut, "bytes"), ("nonsense", bad, "no llama2.c"),
                             ("a tokenizer", tok, "llama2.c"),
                             ("nothing", place("none.bin"), "No such file")):
        fails(f"llama2c: {name}", 1, part, "convert", "--from", "llama2c", "--model-path", path, "--output", no,
              absent=no)
    fails("llama2c: no tokenizer model", 1, "", "convert", "--from", "llama2c", "--model-path", binary,
          "--tokenizer", binary,
          "--output", no, absent=no)
    fails("llama2c: usage", 2, "llama2c", "convert", "--from", "llama2c", "--model-path", binary, "--to", "hf",
          "--output", no)


if not os.path.exists(LLAVA):
    print("1..0 # SKIP no program at", LLAVA)
else:
    for each in ("llava-liuhaotian", "llava-mistral", "llava-anyres"):
        round_trip(each)
    rows_of_new_tokens()
    fast_tokenizer()
    towers()
    towers_in_reach_of_the_old_folder()
    types_and_shards()
    projector()
    merging()
    errors()
    llama2c()
    finish()
