"""tools/train_demo.py, very small: what it makes of a few pictures is a whole model, examined and in fewer bits."""
import json
import os
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
            facts.append({"image": f"{style}/{name}", "style": style, "emoji": "", "name": f"thing {n}", "split": split,
                          "group": ("Objects", "Flags")[n % 2], "keywords": ["word"]})
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
    for name in ("tune", "tune-8bit", "tune-4bit"):
        run = llava("run", "--model-path", os.path.join(work, name), "--image-file", PICTURE, "--query", "What is this?",
                    "--quiet")
        ok(run.code == 0, f"{name} answers", run.text)
    with open(os.path.join(work, "groups.svg"), encoding="utf-8") as f:
        ok(f.read().rstrip().endswith("</svg>"), "a picture of the groups")
    before = os.path.getmtime(os.path.join(work, "tune/model.safetensors"))
    ran = tool(work, "--only", "pictures,words,pretrain,tune")
    ok(ran.returncode == 0 and os.path.getmtime(os.path.join(work, "tune/model.safetensors")) == before,
       "what is there is not made again", ran.stdout)


with Temp() as temp:
    whole(temp)
finish()
