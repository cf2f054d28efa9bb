"""The three commands of the tutorial (and of LLaVA's scripts/v1_5) word for word, with only the first words changed, on small
models that stand under the large ones' names in a Hugging Face cache; stage 1's projector goes into the others, and what comes
out answers."""
import json
import os
import shlex
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../help"))
from cli import ENV, GOLDEN, ROOT, Temp, finish, llava, model, ok  # noqa: E402

FIRST = "deepspeed llava/train/train_mem.py "
STAGE1 = FIRST + """--deepspeed ./scripts/zero2.json --model_name_or_path lmsys/vicuna-13b-v1.5 --version plain \
  --data_path DIR/blip_laion_cc_sbu_558k.json --image_folder DIR/images --vision_tower openai/clip-vit-large-patch14-336 \
  --mm_projector_type mlp2x_gelu --tune_mm_mlp_adapter True --mm_vision_select_layer -2 --mm_use_im_start_end False \
  --mm_use_im_patch_token False --bf16 True --output_dir ./checkpoints/llava-v1.5-13b-pretrain --num_train_epochs 1 \
  --per_device_train_batch_size 32 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1 --evaluation_strategy no \
  --save_strategy steps --save_steps 24000 --save_total_limit 1 --learning_rate 1e-3 --weight_decay 0. --warmup_ratio 0.03 \
  --lr_scheduler_type cosine --logging_steps 1 --tf32 True --model_max_length 2048 --gradient_checkpointing True \
  --dataloader_num_workers 4 --lazy_preprocess True --report_to wandb"""
STAGE2 = FIRST + """--deepspeed ./scripts/zero3.json --model_name_or_path lmsys/vicuna-13b-v1.5 --version v1 \
  --data_path DIR/llava_v1_5_mix665k.json --image_folder DIR --vision_tower openai/clip-vit-large-patch14-336 \
  --pretrain_mm_mlp_adapter ./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin --mm_projector_type mlp2x_gelu \
  --mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False --image_aspect_ratio pad \
  --group_by_modality_length True --bf16 True --output_dir ./checkpoints/llava-v1.5-13b --num_train_epochs 1 \
  --per_device_train_batch_size 16 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1 --evaluation_strategy no \
  --save_strategy steps --save_steps 50000 --save_total_limit 1 --learning_rate 2e-5 --weight_decay 0. --warmup_ratio 0.03 \
  --lr_scheduler_type cosine --logging_steps 1 --model_max_length 2048 --gradient_checkpointing True \
  --dataloader_num_workers 4 --lazy_preprocess True --report_to wandb"""
LORA = STAGE2.replace(FIRST, FIRST + "--lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 ").replace(
    "--learning_rate 2e-5", "--learning_rate 2e-4").replace("llava-v1.5-13b --", "llava-v1.5-13b-lora --")
FOLDERS = ("coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2")


def cache(home, name, source):
    """a repository of the hub as huggingface_hub keeps it"""
    repo = os.path.join(home, "hub", "models--" + name.replace("/", "--"))
    os.makedirs(os.path.join(repo, "refs"))
    with open(os.path.join(repo, "refs/main"), "w", encoding="ascii") as f:
        f.write("0" * 40)
    shutil.copytree(source, os.path.join(repo, "snapshots", "0" * 40))


def make_data(folder):
    """a few records of each kind that the two files have, and their pictures where they lie there"""
    picture = os.path.join(GOLDEN, "pictures/wide-37x23.png")
    os.makedirs(os.path.join(folder, "images/00453"))
    captions, talks = [], []
    for i in range(70):
        shutil.copy(picture, os.path.join(folder, f"images/00453/{i}.jpg"))
        captions.append({"id": f"{i:09d}", "image": f"00453/{i}.jpg", "conversations": [
            {"from": "human", "value": ("Describe it.\n<image>", "<image>\nWhat is it?")[i % 2]},
            {"from": "gpt", "value": f"select luxury furniture {i} - inch gel memory foam"}]})
    for i in range(40):
        where = FOLDERS[i % len(FOLDERS)]
        talk = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "It is green."},
                {"from": "human", "value": "Answer in one word."}, {"from": "gpt", "value": "Green" * (i % 5 + 1)}]
        talks.append({"id": f"{i:012d}", "image": f"{where}/{i}.jpg", "conversations": talk})
        os.makedirs(os.path.join(folder, where), exist_ok=True)
        shutil.copy(picture, os.path.join(folder, where, f"{i}.jpg"))
        if i % 4 == 0:
            talks[-1] = {"id": f"wg{i}_0", "model": "", "conversations": [
                {"from": "human", "value": "Is the sky blue?"}, {"from": "gpt", "value": "Yes, it is."}]}
    for name, records in (("blip_laion_cc_sbu_558k.json", captions), ("llava_v1_5_mix665k.json", talks)):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            json.dump(records, f)


def read_json(*path):
    with open(os.path.join(*path), encoding="utf-8") as f:
        return json.load(f)


with Temp() as tmp:
    home, work = os.path.join(tmp.path, "hf"), os.path.join(tmp.path, "work")
    cache(home, "lmsys/vicuna-13b-v1.5", model("vicuna-base"))
    cache(home, "openai/clip-vit-large-patch14-336", model("clip-tiny"))
    make_data(os.path.join(work, "DIR"))
    shutil.copytree(os.path.join(ROOT, "scripts"), os.path.join(work, "scripts"))
    there = {"cwd": work, "env": {**ENV, "HF_HOME": home}}
    for name, command, steps, files in (
            ("-pretrain", STAGE1, 3, {"config.json", "mm_projector.bin"}),
            ("", STAGE2, 3, {"config.json", "generation_config.json", "model.safetensors", "tokenizer.model"}),
            ("-lora", LORA, 3, {"config.json", "adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"})):
        out = os.path.join(work, "checkpoints/llava-v1.5-13b" + name)
        ran = llava("train", *shlex.split(command.replace(FIRST, "")), **there)
        left = set(os.listdir(out)) if os.path.isdir(out) else set()
        ok(ran.code == 0 and files | {"trainer_state.json", "loss.svg", "runs"} <= left and "wandb sync" in ran.err,
           f"llava-v1.5-13b{name}", f"{left}\n{ran.text}")
        state = read_json(out, "trainer_state.json")
        ok(state["global_step"] == steps and len([x for x in state["log_history"] if "loss" in x]) == steps,
           f"llava-v1.5-13b{name}: {steps} steps", state["log_history"])
        ok("ZeRO stage" in ran.err and "gradients are not clipped" in ran.err and ("--lazy_preprocess" in ran.err),
           f"llava-v1.5-13b{name}: what is different is said", ran.err)
    config = read_json(work, "checkpoints/llava-v1.5-13b/config.json")
    ok(config["mm_vision_tower"] == "openai/clip-vit-large-patch14-336" and config["image_aspect_ratio"] == "pad" and
       config["model_type"] == "llava_llama", "config.json names the tower as it was given", config)
    ok(read_json(work, "checkpoints/llava-v1.5-13b-lora/adapter_config.json")["base_model_name_or_path"] ==
       "lmsys/vicuna-13b-v1.5", "the adapter names its base as it was given")
    for name, base in (("", []), ("-lora", ["--model-base", "lmsys/vicuna-13b-v1.5"])):
        ran = llava("run", "--model-path", "checkpoints/llava-v1.5-13b" + name, *base, "--image-file", "DIR/gqa/images/1.jpg",
                    "--query", "What is this?", "--temperature", "0", "--max-new-tokens", "4", **there)
        ok(ran.code == 0, f"llava-v1.5-13b{name} answers", ran.text)
    merged = llava("merge", "--model-path", "checkpoints/llava-v1.5-13b-lora", "--model-base", "lmsys/vicuna-13b-v1.5",
                   "--save-model-path", "merged", **there)
    ran = llava("run", "--model-path", "merged", "--image-file", "DIR/gqa/images/1.jpg", "--query", "What?", "--temperature", "0",
                "--max-new-tokens", "4", **there)
    ok(merged.code == 0 and ran.code == 0, "merged it answers", merged.text + ran.text)
finish()
