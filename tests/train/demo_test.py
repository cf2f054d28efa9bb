"""tools/train_demo.py, very small: what it makes of a few pictures is a whole model, examined and in fewer bits."""
import json
import os
import random
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import ENV, LLAVA, PICTURE, ROOT, Temp, config, finish, llava, ok  # noqa: E402

DEMO, DRAWN = os.path.join(ROOT, "models/demo"), os.path.join(ROOT, "tests/golden/demo")


def pictures(work):
    """twelve things in three styles; one style to learn, two to be asked about"""
    facts = []
    for n, name in enumerate(sorted(f for f in os.listdir(DRAWN) if f.endswith(".png"))[:12]):
        for style, split in (("noto", "train"), ("twemoji", "test"), ("openmoji", "hard")):
            os.makedirs(os.path.join(work, "pictures", style), exist_ok=True)
            shutil.copy(os.path.join(DRAWN, name), os.path.join(work, "pictures", style, name))
            varied = n == 2 and style == "noto"
            facts.append({"image": f"{style}/{name}", "style": style, "emoji": "", "name": f"thing {n}", "split": split,
                          "group": ("Objects", "Flags")[n % 2], "keywords": ["word"], "varied": int(varied)})
            if varied:
                shutil.copy(os.path.join(DRAWN, name), os.path.join(work, "pictures", style, name[:-4] + ".v1.webp"))
    with open(os.path.join(work, "pictures/facts.jsonl"), "w", encoding="utf-8") as f:
        f.writelines(json.dumps(fact) + "\n" for fact in facts)


def shapes(work):
    """of the demo, but for two layers of half the width and pictures in 49 patches"""
    os.makedirs(os.path.join(work, "shapes"))
    for name in ("generation_config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.model"):
        shutil.copy(os.path.join(DEMO, name), os.path.join(work, "shapes"))
    small = config(DEMO)
    small["image_seq_length"] = 49
    small["text_config"].update(hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
                                num_key_value_heads=2)
    small["vision_config"].update(hidden_size=128, intermediate_size=192, num_hidden_layers=3, num_attention_heads=2,
                                  patch_size=16)
    with open(os.path.join(work, "shapes/config.json"), "w", encoding="utf-8") as f:
        json.dump(small, f)


def varied():
    """vary.py, by what it makes of a drawing with a gradient, two shapes and a path that only cuts"""
    sys.path.insert(0, os.path.join(ROOT, "tools/demo"))
    import vary
    svg = ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64"><defs><linearGradient id="a">'
           '<stop offset="0" stop-color="#ff0000"/><stop offset="1" stop-color="#cc0000"/></linearGradient>'
           '<clipPath id="c"><path d="M0 0h64v64H0z"/></clipPath></defs><path clip-path="url(#c)" fill="url(#a)" d="M1 1h9v9z"/>'
           '<circle cx="40" cy="40" r="9" fill="#fff"/></svg>')
    made = [vary.vary(svg, f"{k}", free=True) for k in range(60)]
    ok(made[7] == vary.vary(svg, "7", free=True) and len(set(made)) == 60, "one drawing for a key, others for others", made[:3])
    ok(10 < sum("stroke-linejoin" in m for m in made) < 40 and 20 < sum('fill="url(#a)"' not in m for m in made) < 60,
       "some have outlines, most are flat", made[:9])
    reds = [vary.Palette(random.Random(k), free=False).move((0.9, 0.1, 0.1)) for k in range(200)]
    ok(all(r > 0.5 and r > 2 * g and r > 2 * b for r, g, b in reds), "what colours say stays", sorted(reds)[:3])
    blacks = [vary.Palette(random.Random(k), free=True).move((0, 0, 0)) for k in range(50)]
    ok(all(sum(c) < 0.01 for c in blacks), "black stays black", blacks)


def tool(work, *args):
    return subprocess.run([sys.executable, os.path.join(ROOT, "tools/train_demo.py"), "--work", work, "--llava", LLAVA, "--tiny",
                           "--device", "cpu", "--workers", "2", *args], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=500)


def whole(tmp):
    work = os.path.join(tmp.path, "work")
    os.makedirs(work)
    pictures(work)
    shapes(work)
    ran = tool(work)
    ok(ran.returncode == 0, "every step", ran.stdout)
    with open(os.path.join(work, "records/tune.json"), encoding="utf-8") as f:
        records = [json.loads(line) for line in f]
    ok(len(records) == 24 and all(r["image"].startswith("noto/") for r in records), "only the style to learn is trained on",
       records)
    ok({tuple(r["augment"]) for r in records} == {("recolour",), ()}, "flags keep their colours", records[:3])
    with open(os.path.join(work, "result.json"), encoding="utf-8") as f:
        result = json.load(f)
    ok(all(0 <= result[s][k] <= 1 for s in ("twemoji", "openmoji") for k in ("name", "group", "yes_no", "choice")),
       "an examination", result)
    for name in ("model", "model-8bit", "model-4bit"):
        run = llava("run", "--model-path", os.path.join(work, name), "--image-file", PICTURE, "--query", "What is this?",
                    "--quiet")
        ok(run.code == 0, f"{name} answers", run.text)
    with open(os.path.join(work, "groups.svg"), encoding="utf-8") as f:
        ok(f.read().rstrip().endswith("</svg>"), "a picture of the groups")
    before = os.path.getmtime(os.path.join(work, "tune1/model.safetensors"))
    ran = tool(work, "--only", "pictures,words,pretrain,tune")
    ok(ran.returncode == 0 and os.path.getmtime(os.path.join(work, "tune1/model.safetensors")) == before,
       "what is there is not made again", ran.stdout)


with Temp() as temp:
    varied()
    whole(temp)
finish()
