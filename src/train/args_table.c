/* The arguments of `llava train`, a row each. See args.h. */
#include <stddef.h>

#include "train/args.h"

#define HEAD(text) { .kind = ARG_HEAD, .help = text }
#define AT(field) .use = ARG_USED, .offset = offsetof(struct train_args, field)
/* Behind a help: SAME, for a going on from a checkpoint must say the same. */
#define STR(field, d, ...) { .name = #field, .kind = ARG_STR, AT(field), .def = d, .help = __VA_ARGS__ }
#define WORD(field, d, words, ...) \
    { .name = #field, .kind = ARG_STR, AT(field), .def = d, .choices = words, .help = __VA_ARGS__ }
#define BOOL(field, d, ...) { .name = #field, .kind = ARG_BOOL, AT(field), .def = d, .help = __VA_ARGS__ }
#define INT(field, d, ...) { .name = #field, .kind = ARG_INT, AT(field), .def = d, .help = __VA_ARGS__ }
#define REAL(field, d, ...) { .name = #field, .kind = ARG_REAL, AT(field), .def = d, .help = __VA_ARGS__ }
#define SAME .same = true
#define SKIP(name_, kind_) { .name = name_, .kind = kind_, .use = ARG_IGNORED }
#define ONLY(name_, kind_, d) { .name = name_, .kind = kind_, .use = ARG_ONLY, .def = d }
/* What a launcher of many processes says; its options may come along when only a command's first words are changed. */
#define LONE(name_, kind_, words) { .name = name_, .kind = kind_, .use = ARG_ONLY, .choices = words, .help = ALONE }

#define ALONE "a run is one process on one device; more --gradient_accumulation_steps make up for others"
#define PRECISE "Weights are bf16 with f32 masters; without --bf16 and --fp16 all numbers are f32"

const struct arg_row train_arg_rows[] = {
    HEAD("Model"),
    STR(model_name_or_path, "facebook/opt-125m", "Folder or hub name of the base: LLaMA, Vicuna, Mistral, or a LLaVA"),
    STR(version, "v0", "Conversation template of the prompts: plain, v1, llava_llama_2, mpt, ...", SAME),
    BOOL(random_start, "False", "Weights are drawn (--seed), not read: the folder has config.json and a tokenizer"),
    STR(vision_tower, NULL, "Folder or hub name of the CLIP tower; a LLaVA has one. Without a tower records are text"),
    INT(mm_vision_select_layer, "-1", "Hidden state of the tower that is used (a LLaVA's own unless given)", SAME),
    WORD(mm_vision_select_feature, "patch", "patch|cls_patch",
         "Without or with the class token (a LLaVA's own unless given)", SAME),
    STR(mm_projector_type, "linear", "linear, mlp2x_gelu, identity, ... of a projector that is made"),
    STR(pretrain_mm_mlp_adapter, NULL, "mm_projector.bin of stage 1"),
    BOOL(mm_use_im_start_end, "False", "<im_start>, <im_end> around each picture", SAME),
    BOOL(mm_use_im_patch_token, "True", "Add the token <im_patch> to the vocabulary"),
    WORD(mm_patch_merge_type, "flat", "flat|spatial|spatial_unpad", "Goes into config.json"),

    HEAD("What is trained (all but the vision tower, unless said otherwise)"),
    BOOL(tune_mm_mlp_adapter, "False", "Stage 1: the projector alone"),
    BOOL(freeze_mm_mlp_adapter, "False", "Not the projector"),
    BOOL(freeze_backbone, "False", "Not the language model, but its lm_head"),
    BOOL(unfreeze_mm_vision_tower, "False", "The vision tower too"),
    BOOL(lora_enable, "False", "Adapters on the linears of the language model instead of its weights"),
    INT(lora_r, "64", "Rank of an adapter"),
    INT(lora_alpha, "16", "The adapter's product is scaled by lora_alpha / lora_r"),
    REAL(lora_dropout, "0.05", "Share of an adapter's inputs that is zeroed", SAME),
    WORD(lora_bias, "none", "none|all|lora_only", "Biases trained beside adapters"),
    REAL(residual_dropout, "0.0",
         "Share of what each attention and MLP adds that is zeroed, but in a frozen tower", SAME),
    { .name = "bits", .kind = ARG_INT, AT(bits), .def = "16", .choices = "16|8|4",
      .help = "Bits of the language model's linears while they are frozen: under adapters, or in stage 1", SAME },

    HEAD("Data"),
    STR(data_path, NULL, "JSON array or JSON Lines of records; needed"),
    STR(image_folder, NULL, "Folder that the records' pictures are relative to"),
    WORD(image_aspect_ratio, "square", "square|pad|anyres", "pad: to a square with the mean colour", SAME),
    STR(cache_features, NULL, "Folder that keeps what a frozen tower makes of pictures, for later passes and runs"),
    BOOL(image_augment, "False",
         "In each pass pictures look a little different: size, place, light, lines, grain", SAME),
    REAL(patch_dropout, "0.0",
         "Share of a picture's patches that are not seen in training, other ones in each pass", SAME),
    INT(model_max_length, "512", "Longest record, pictures included; longer ones are cut", SAME),
    BOOL(group_by_modality_length, "False", "Micro-batches of one kind and of like lengths", SAME),
    BOOL(group_by_length, "False",
         "Micro-batches of like lengths, in transformers' order; --group_by_modality_length goes before it", SAME),
    BOOL(packing, "False", "Several micro-batches in one pass; the same loss", SAME),
    WORD(on_bad_record, "fail", "fail|skip", "What to do with records that cannot be used"),
    STR(eval_data_path, NULL, "Records that the loss is measured on and that are not learned"),
    INT(dataloader_num_workers, "0", "Threads that read ahead"),
    BOOL(dataloader_drop_last, "False", "Leave out a last micro-batch that is not full", SAME),
    INT(seed, "42", "Of the order, of fresh weights and of dropout", SAME),
    INT(data_seed, NULL, "Of the order, if it shall differ (default: --seed)", SAME),

    HEAD("Steps"),
    INT(per_device_train_batch_size, "8", "Records of a micro-batch", SAME),
    INT(per_device_eval_batch_size, "8", "Records of a micro-batch while evaluating"),
    INT(gradient_accumulation_steps, "1", "Micro-batches of a step", SAME),
    REAL(num_train_epochs, "3.0", "Passes over the data"),
    INT(max_steps, "-1", "Steps; above 0 it replaces num_train_epochs"),
    REAL(learning_rate, "5e-05", "Highest rate", SAME),
    REAL(mm_projector_lr, NULL, "Highest rate of the projector (default: --learning_rate)", SAME),
    REAL(mm_vision_tower_lr, NULL, "Highest rate of the vision tower (default: --learning_rate)", SAME),
    WORD(lr_scheduler_type, "linear",
         "linear|cosine|cosine_with_restarts|cosine_with_min_lr|polynomial|constant|constant_with_warmup|"
         "inverse_sqrt",
         "How the rate goes on after the warm-up", SAME),
    STR(lr_scheduler_kwargs, NULL,
        "JSON object for it: num_cycles of the cosines, min_lr or min_lr_rate of cosine_with_min_lr, lr_end and power "
        "of polynomial, timescale of inverse_sqrt", SAME),
    REAL(warmup_ratio, "0.0", "Share of the steps in which the rate rises from 0", SAME),
    REAL(warmup_steps, "0", "Steps of that; above 0 it replaces warmup_ratio; below 1: a share of all", SAME),
    REAL(weight_decay, "0.0", "Of all but norms and biases", SAME),
    WORD(optim, "adamw_torch",
         "adamw_torch|adamw_hf|adamw_torch_fused|adamw_apex_fused|paged_adamw_32bit|adamw_8bit|adamw_bnb_8bit|"
         "paged_adamw_8bit|muon",
         "The same AdamW all, but 8bit: moments of matrices that are no embeddings take 8 bits each; muon: Muon for "
         "the matrices of layers and projector"),
    BOOL(master_weights, "True",
         "f32 masters of rounded weights; False, with --bf16 and 8 bits: none, the weights are rounded at random",
         SAME),
    REAL(adam_beta1, "0.9", "Decay of the first moment", SAME),
    REAL(adam_beta2, "0.999", "Decay of the second moment", SAME),
    REAL(adam_epsilon, "1e-08", "Added to the root of the second moment", SAME),
    REAL(label_smoothing_factor, "0.0",
         "Share of every label's weight that all tokens get instead, in evaluation too", SAME),
    REAL(max_grad_norm, "1.0", "Gradients' norm is cut to it; 0: not. See --deepspeed", SAME),
    BOOL(bf16, "False", PRECISE),
    BOOL(fp16, "False", "Weights are f16 with f32 masters; gradients are f32, so losses need no scaling"),
    BOOL(gradient_checkpointing, "False",
         "Layers may run again on the way back, as many as memory demands: the same bits"),
    STR(deepspeed, NULL,
        "JSON file of DeepSpeed: clipping and precision are taken from it; without gradient_clipping in it "
        "(zero2.json, zero3.json) nothing is clipped, unless --max_grad_norm is given"),

    HEAD("Output"),
    STR(output_dir, NULL, "Folder for checkpoints and the result; needed"),
    BOOL(overwrite_output_dir, "False", "Begin anew although there are checkpoints"),
    STR(resume_from_checkpoint, NULL,
        "Folder of a checkpoint; True: the newest; False: none (default: the newest if any)"),
    WORD(save_strategy, "steps", "no|steps|epoch", "When to write a checkpoint"),
    REAL(save_steps, "500", "Steps between checkpoints; below 1: a share of all"),
    INT(save_total_limit, NULL, "Keep the newest so many (default: all)"),
    WORD(logging_strategy, "steps", "no|steps|epoch", "When to log"),
    REAL(logging_steps, "500", "Steps between logged lines; below 1: a share of all"),
    BOOL(logging_first_step, "False", "Log the first step too"),
    WORD(evaluation_strategy, "no", "no|steps|epoch", "When to evaluate (steps, if only --eval_data_path is given)"),
    REAL(eval_steps, NULL, "Steps between evaluations (default: --logging_steps)"),
    BOOL(load_best_model_at_end, "False",
         "The result is that of the checkpoint with the smallest evaluation loss, which is kept"),
    { .name = "report_to", .kind = ARG_LIST, AT(report_to), .def = "all",
      .help = "none, tensorboard, wandb, jsonl, all, or several of them" },
    STR(logging_dir, NULL, "Folder for TensorBoard's files (default: OUTPUT_DIR/runs/DATE_HOST)"),
    STR(run_name, NULL, "Title of loss.svg (default: OUTPUT_DIR's last part)"),
    BOOL(disable_tqdm, "False", "No progress bar"),

    HEAD("This program's own"),
    BOOL(dry_run, "False", "Print the plan: memory by name, data, steps, time; train nothing"),
    STR(device, "auto", "Where to compute: auto (a GPU if the build has one that works), cpu, cuda, cuda:1, hip, ..."),
    BOOL(use_cpu, "False", "--device cpu"),
    BOOL(no_cuda, "False", "--device cpu"),
    INT(threads, "0", "Threads, 0: as many as the machine gives"),
    STR(memory_limit, NULL,
        "Most memory to take, such as 48G (default: what is there); refused at the start if it does not suffice"),
    STR(host_memory_limit, NULL, "With a device: most of the host's memory to take"),
    WORD(offload, "auto", "auto|none|gradients|moments|both|activations",
         "What the host keeps for the device. auto: what is fastest within the limits; the same bits all"),
    BOOL(pageable, "False", "The host's share is not page-locked, for systems that refuse that: much slower"),
    BOOL(quiet, "False", "Errors and warnings only"),

    /* No effect here. */
    SKIP("cache_dir", ARG_STR), SKIP("lazy_preprocess", ARG_BOOL), SKIP("is_multimodal", ARG_BOOL),
    SKIP("remove_unused_columns", ARG_BOOL), SKIP("mpt_attn_impl", ARG_STR), SKIP("double_quant", ARG_BOOL),
    SKIP("quant_type", ARG_STR), SKIP("lora_weight_path", ARG_STR), SKIP("do_train", ARG_BOOL),
    SKIP("do_eval", ARG_BOOL), SKIP("do_predict", ARG_BOOL), SKIP("prediction_loss_only", ARG_BOOL),
    SKIP("eval_accumulation_steps", ARG_INT), SKIP("log_level", ARG_STR), SKIP("log_level_replica", ARG_STR),
    SKIP("log_on_each_node", ARG_BOOL), SKIP("logging_nan_inf_filter", ARG_BOOL), SKIP("save_safetensors", ARG_BOOL),
    SKIP("save_on_each_node", ARG_BOOL), SKIP("save_only_model", ARG_BOOL),
    SKIP("use_mps_device", ARG_BOOL), SKIP("jit_mode_eval", ARG_BOOL),
    SKIP("use_ipex", ARG_BOOL), SKIP("tf32", ARG_BOOL), SKIP("fp16_opt_level", ARG_STR),
    SKIP("half_precision_backend", ARG_STR), SKIP("bf16_full_eval", ARG_BOOL), SKIP("fp16_full_eval", ARG_BOOL),
    SKIP("ddp_backend", ARG_STR), SKIP("tpu_num_cores", ARG_INT), SKIP("tpu_metrics_debug", ARG_BOOL),
    SKIP("debug", ARG_STR), SKIP("past_index", ARG_INT), SKIP("label_names", ARG_LIST),
    SKIP("ignore_data_skip", ARG_BOOL),
    SKIP("fsdp_min_num_params", ARG_INT), SKIP("fsdp_config", ARG_STR),
    SKIP("fsdp_transformer_layer_cls_to_wrap", ARG_STR), SKIP("length_column_name", ARG_STR),
    SKIP("ddp_find_unused_parameters", ARG_BOOL), SKIP("ddp_bucket_cap_mb", ARG_INT),
    SKIP("ddp_broadcast_buffers", ARG_BOOL), SKIP("dataloader_pin_memory", ARG_BOOL),
    SKIP("dataloader_persistent_workers", ARG_BOOL), SKIP("skip_memory_metrics", ARG_BOOL),
    SKIP("use_legacy_prediction_loop", ARG_BOOL), SKIP("gradient_checkpointing_kwargs", ARG_STR),
    SKIP("include_inputs_for_metrics", ARG_BOOL), SKIP("full_determinism", ARG_BOOL), SKIP("torchdynamo", ARG_STR),
    SKIP("master_port", ARG_INT), SKIP("master_addr", ARG_STR),
    SKIP("ray_scope", ARG_STR), SKIP("ddp_timeout", ARG_INT), SKIP("torch_compile", ARG_BOOL),
    SKIP("torch_compile_backend", ARG_STR), SKIP("torch_compile_mode", ARG_STR), SKIP("dispatch_batches", ARG_BOOL),
    SKIP("split_batches", ARG_BOOL), SKIP("include_tokens_per_second", ARG_BOOL),
    SKIP("include_num_input_tokens_seen", ARG_BOOL), SKIP("hub_model_id", ARG_STR), SKIP("hub_strategy", ARG_STR),
    SKIP("hub_token", ARG_STR), SKIP("hub_private_repo", ARG_BOOL), SKIP("hub_always_push", ARG_BOOL),
    SKIP("fp16_backend", ARG_STR), SKIP("push_to_hub_model_id", ARG_STR), SKIP("push_to_hub_organization", ARG_STR),
    SKIP("push_to_hub_token", ARG_STR), SKIP("mp_parameters", ARG_STR),
    /* Newer than 4.37. */
    SKIP("dataloader_prefetch_factor", ARG_INT), SKIP("accelerator_config", ARG_STR),
    SKIP("eval_do_concat_batches", ARG_BOOL), SKIP("batch_eval_metrics", ARG_BOOL),
    SKIP("eval_use_gather_object", ARG_BOOL), SKIP("include_for_metrics", ARG_LIST),
    SKIP("restore_callback_states_from_checkpoint", ARG_BOOL), SKIP("torch_empty_cache_steps", ARG_INT),
    SKIP("use_liger_kernel", ARG_BOOL), SKIP("liger_kernel_config", ARG_STR), SKIP("hub_revision", ARG_STR),
    SKIP("average_tokens_across_devices", ARG_BOOL),

    /* Would change the result: only the default is done here. */
    ONLY("push_to_hub", ARG_BOOL, "False"),
    ONLY("neftune_noise_alpha", ARG_REAL, NULL), ONLY("fsdp", ARG_STR, ""), ONLY("optim_args", ARG_STR, NULL),
    ONLY("adafactor", ARG_BOOL, "False"), ONLY("auto_find_batch_size", ARG_BOOL, "False"),
    LONE("local_rank", ARG_INT, "-1|0"), LONE("num_gpus", ARG_INT, "1"), LONE("num_nodes", ARG_INT, "1"),
    LONE("nproc_per_node", ARG_STR, "1"), LONE("nnodes", ARG_STR, "1"),
    LONE("include", ARG_STR, "localhost:0|localhost"),
    { .name = "metric_for_best_model", .kind = ARG_STR, .use = ARG_ONLY, .choices = "loss|eval_loss",
      .help = "the loss is the only measure" },
    ONLY("greater_is_better", ARG_BOOL, "False"), ONLY("eval_delay", ARG_REAL, "0"),
    ONLY("eval_on_start", ARG_BOOL, "False"),
    ONLY("optim_target_modules", ARG_LIST, NULL),
};
const int train_arg_count = sizeof train_arg_rows / sizeof *train_arg_rows;
_Static_assert(sizeof train_arg_rows / sizeof *train_arg_rows <= TRAIN_ARGS_MAX, "train_args.given is too small");
