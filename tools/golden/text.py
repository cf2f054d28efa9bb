"""The tiny tokenizer, and the rules by which LLaVA turns text into ids."""
import io
import os
import re

import sentencepiece

from golden.common import IMAGE, write_json

SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. "
          "The assistant gives helpful, detailed, and polite answers to the user's questions.")

SENTENCES = [
    SYSTEM, "USER: What is in the picture? ASSISTANT: A red square on a green field.",
    "USER: Is the sky blue? ASSISTANT: Yes, it is.", "the cat sat on the mat and the dog sat near the door",
    "there are three boats on the lake and one of them is white", "what colour is the house on the hill?",
    "a man is holding a small umbrella in the rain", "the picture shows a table with two cups of tea",
    "describe the picture in one short sentence.", "it is a photo of a street at night with many lights",
    "the children are playing with a ball in the garden", "how many birds are sitting on the wire?",
    "the train is standing at the station", "an answer in a single word is enough",
    "she is reading a book near the window",
]


def train_tokenizer():
    """SentencePiece BPE with byte fallback and LLaMA's settings: identity, spaces kept, digits split"""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4), model_writer=model, model_type="bpe", vocab_size=320,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True, allow_whitespace_only_pieces=True, character_coverage=0.985, unk_id=0,
        bos_id=1,
        eos_id=2, pad_id=-1, num_threads=1, minloglevel=2)
    return model.getvalue()


class Tokenizer:
    """The rules of transformers 4.37's slow LlamaTokenizer, over SentencePiece.

    legacy: every stretch of text between special tokens gets SentencePiece's dummy prefix.
    not legacy: only the start of the text gets a prefix; a stretch that starts with a space keeps it."""

    def __init__(self, model, legacy, added=()):
        self.legacy = legacy
        self.added = {"<unk>": 0, "<s>": 1, "</s>": 2}
        self.added.update(added)
        # A second normalizer_spec merges into the first: {add_dummy_prefix: false}.
        model = model if legacy else model + b"\x1a\x02\x18\x00"
        self.sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        longest_first = sorted(self.added, key=len, reverse=True)
        self.split = re.compile("(" + "|".join(re.escape(s) for s in longest_first) + ")")

    def stretch(self, text):
        if self.legacy or not text.startswith(("\u2581", " ")):
            return self.sp.encode(text)
        return self.sp.encode("<unk>" + text)[len(self.sp.encode("<unk>")):]

    def encode(self, text):
        """ids with BOS"""
        if not self.legacy and text:
            text = "\u2581" + text.replace("\u2581", " ")
        ids = []
        for part in self.split.split(text):
            if part:
                ids += [self.added[part]] if part in self.added else self.stretch(part)
        prefix = self.sp.piece_to_id("\u2581")
        if not self.legacy and len(ids) > 1 and ids[0] == prefix and ids[1] in self.added.values():
            ids = ids[1:]
        return [1] + ids

    def encode_image(self, prompt):
        """LLaVA's tokenizer_image_token: each chunk by itself, -200 between.  Where `<image>` is a token
        of the tokenizer, as in llava-hf's, the prompt is one text and that token becomes -200."""
        if "<image>" in self.added:
            return [IMAGE if i == self.added["<image>"] else i for i in self.encode(prompt)]
        ids = [1]
        for n, chunk in enumerate(prompt.split("<image>")):
            ids += ([IMAGE] if n else []) + self.encode(chunk)[1:]
        return ids


def write_tokenizer(folder, model, legacy, extra=()):
    with open(os.path.join(folder, "tokenizer.model"), "wb") as f:
        f.write(model)
    token = lambda s: {"__type": "AddedToken", "content": s, "lstrip": False, "normalized": False,
                       "rstrip": False,
                       "single_word": False}
    config = {"add_bos_token": True, "add_eos_token": False, "bos_token": token("<s>"),
              "clean_up_tokenization_spaces": False, "eos_token": token("</s>"), "legacy": legacy,
              "model_max_length": 2048, "pad_token": None, "padding_side": "right", "sp_model_kwargs": {},
              "tokenizer_class": "LlamaTokenizer", "unk_token": token("<unk>")}
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    if extra:
        names = ["<unk>", "<s>", "</s>"]
        rows = list(enumerate(names)) + [(i, s) for s, i in extra]
        config["added_tokens_decoder"] = {str(i): {"content": s, "lstrip": False, "normalized": False,
                                                   "rstrip": False,
                                                   "single_word": False, "special": True} for i, s in rows}
        for name in ("bos_token", "eos_token", "unk_token"):
            config[name] = config[name]["content"]
        config.update(pad_token="<pad>", processor_class="LlavaProcessor")
        special["pad_token"] = "<pad>"
        write_json(os.path.join(folder, "added_tokens.json"), dict(extra))
    write_json(os.path.join(folder, "tokenizer_config.json"), config)
    write_json(os.path.join(folder, "special_tokens_map.json"), special)
