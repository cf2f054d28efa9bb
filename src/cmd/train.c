/* llava train: pretraining of the projector, fine-tuning, adapters. The work is train/trainer.c's. */
#include <stdio.h>
#include <string.h>

#include "cmd/cmd.h"
#include "train/trainer.h"

static void help(void)
{
    printf("Usage: llava train --model_name_or_path M --data_path F --output_dir D [...]\n"
           "Trains as `deepspeed llava/train/train_mem.py` does, with the same options.\n\n"
           "Stage 1, the projector alone:\n"
           "  llava train --model_name_or_path lmsys/vicuna-13b-v1.5 --version plain \\\n"
           "      --data_path blip_laion_cc_sbu_558k.json --image_folder images \\\n"
           "      --vision_tower openai/clip-vit-large-patch14-336 \\\n"
           "      --mm_projector_type mlp2x_gelu --tune_mm_mlp_adapter True \\\n"
           "      --mm_vision_select_layer -2 --mm_use_im_patch_token False --bf16 True \\\n"
           "      --output_dir pretrain --num_train_epochs 1 --learning_rate 1e-3 \\\n"
           "      --per_device_train_batch_size 32 --lr_scheduler_type cosine \\\n"
           "      --warmup_ratio 0.03 --model_max_length 2048 --gradient_checkpointing True\n"
           "Stage 2: --version v1 --pretrain_mm_mlp_adapter pretrain/mm_projector.bin\n"
           "--image_aspect_ratio pad instead of --version plain --tune_mm_mlp_adapter True.\n"
           "Adapters: as stage 2 with --lora_enable True --lora_r 128 --lora_alpha 256.\n\n"
           "BOOL is True or False, and True when left out. An option may be cut to a unique\n"
           "beginning, - may stand for _, and --no_x for --x False.\n");
    train_args_help(stdout);
    printf("\n" CMD_EXIT_STATUS "\n"
           "130 stopped by SIGINT or SIGTERM after a step, which is saved.\n");
}

int cmd_train(int argc, char **argv)
{
    struct train_args a;
    struct err e = { 0 };
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return help(), 0;
    if (train_args_parse(&a, argc, argv, &e) < 0) {
        fprintf(stderr, "llava train: %s\nTry `llava train --help' for more information.\n", e.msg);
        return 2;
    }
    const int rc = train_run(&a, &e);
    return rc < 0 ? cmd_fail(e.msg) : rc == TRAIN_STOPPED ? 130 : 0;
}
