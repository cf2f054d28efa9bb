#!/usr/bin/python3
"""Token ids and text against python3-sentencepiece and a restatement of transformers' slow LlamaTokenizer.

Runs build/main/tests/unit/text_lines (or the program named by TEXT_LINES) on generated strings. Models: tok512.model,
one trained here, and with LLAVA_TEST_DATA the LLaMA tokenizer and llama.cpp's vectors for it.
"""
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile

import sentencepiece as spm

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../help"))
from cli import BUILD, finish, ok  # noqa: E402
from reference import SPACE, Slow  # noqa: E402

PROGRAM = os.environ.get('TEXT_LINES', os.path.join(BUILD, 'tests/unit/text_lines'))
SMALL = os.path.join(HERE, '../data/tok512.model')
DATA = os.environ.get('LLAVA_TEST_DATA')
N_STRINGS = int(os.environ.get('TEXT_STRINGS', '10000' if DATA else '3000'))
SEED = 20240512


def ask(model, mode, requests):
    out = subprocess.run([PROGRAM, model, mode], input='\n'.join(requests) + '\n', capture_output=True, text=True,
                         timeout=600)
    lines = out.stdout.split('\n')[:-1]
    if len(lines) != len(requests):
        raise RuntimeError(f'{len(lines)} answers to {len(requests)} requests: {out.stderr[-500:]} {lines[-1:]}')
    return lines


def ids_of(line):
    return [int(x) for x in line.split()] if not line.startswith('error') else line


def compare(name, requests, got, want):
    bad = [i for i in range(len(want)) if got[i] != want[i]]
    ok(not bad, f'{name}: {len(want)}', bad and f'{len(bad)} differ, first {requests[bad[0]]!r}: {got[bad[0]]!r}, '
       f'wanted {want[bad[0]]!r}')


# ---- strings

RANGES = [(0x20, 0x7e)] * 6 + [(0xa0, 0x24f), (0x370, 0x52f), (0x590, 0x6ff), (0x900, 0x97f), (0xe00, 0xe7f),
          (0x1100, 0x11ff), (0x2000, 0x206f), (0x2190, 0x27bf), (0x3000, 0x30ff), (0x4e00, 0x9fff), (0xac00, 0xd7a3),
          (0xe000, 0xe010), (0xfb00, 0xfeff), (0xfff0, 0xffff), (0x1f300, 0x1faff), (0x20000, 0x2a6df), (0x10fff0, 0x10ffff),
          (0x1, 0x1f), (0x7f, 0xa0), (0x300, 0x36f), (0x1e00, 0x1fff)]
WORDS = ('the of and USER: ASSISTANT: Hello world image <image> </s> <s> <unk> ### [INST] [/INST] <0x0A> <|im_end|> \n \n\n '
         '\t   ' + SPACE + ' ' + SPACE * 3 + ' </ s> <s < 1234 0.5 don\'t déjà Привет 你好 こんにちは 안녕 مرحبا 👩‍👩‍👧‍👦 🦙 é')


def string(rng):
    parts = []
    for _ in range(rng.randint(0, 8)):
        kind = rng.random()
        if kind < 0.35:
            parts.append(rng.choice(WORDS.split(' ')) + rng.choice(['', ' ', ' ', '  ']))
        elif kind < 0.8:
            low, high = rng.choice(RANGES)
            parts.append(''.join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 12))))
        elif kind < 0.9:
            parts.append(rng.choice('a \n\t=.-あ🙂' + SPACE) * rng.randint(1, 70))
        elif kind < 0.95:
            parts.append(' ' * rng.randint(1, 20))
        else:
            parts.append('\0' if rng.random() < 0.3 else '\r\n')
    return ''.join(c for c in ''.join(parts) if not 0xd800 <= ord(c) < 0xe000)


# ---- tests

def hexed(text):
    return text.encode().hex()


def test_model(name, path, strings, rng):
    raw = spm.SentencePieceProcessor(model_file=path)
    plain = [s for s in strings if not re.search('<s>|</s>|<unk>', s)]
    got = [ids_of(a) for a in ask(path, 'legacy', ['r ' + hexed(s) for s in plain])]
    compare(f'{name}: raw SentencePiece', plain, got, [raw.encode(s) for s in plain])
    n = raw.get_piece_size()
    lists = [[rng.randrange(n) if rng.random() < 0.5 else rng.randrange(min(n, 262)) for _ in range(rng.randint(0, 40))]
             for _ in range(3000)]
    for mode in 'legacy', 'new', '431':
        slow = Slow(path, mode)
        got = [ids_of(a) for a in ask(path, mode, ['e ' + hexed(s) for s in strings])]
        compare(f'{name}: {mode}', strings, got, [slow.encode(s) for s in strings])
        got = [ids_of(a) for a in ask(path, mode, ['p ' + hexed(s) for s in strings])]
        compare(f'{name}: {mode}, image prompts', strings, got, [slow.encode_prompt(s) for s in strings])
        back = lists + [slow.encode(s) for s in strings[:3000]]
        for what, skip in ('d', False), ('k', True):
            got = ask(path, mode, [f"{what} {' '.join(map(str, ids))}" for ids in back])
            compare(f"{name}: {mode}, decoding {'without' if skip else 'with'} special tokens", back,
                    [bytes.fromhex(g).decode() for g in got], [slow.decode(ids, skip) for ids in back])


def test_stream(name, path, strings):
    """All that a stream gives is what decode gives, indented lines too."""
    slow = Slow(path, 'new')
    lists = [slow.encode(s) for s in strings[:1000] + ['def f(x):\n    if x:\n        return 1\n\n  - a\n \n b']]
    got = ask(path, 'new', ['s ' + ' '.join(map(str, ids)) for ids in lists])
    want = [slow.decode(ids, True) for ids in lists]
    got = [bytes.fromhex(g.replace('|', '').strip()).decode() for g in got]
    compare(f'{name}: streams', lists, got, want)


def write_folder(folder, path, config=None, copy=True):
    if copy:
        with open(path, 'rb') as a, open(os.path.join(folder, 'tokenizer.model'), 'wb') as b:
            b.write(a.read())
    if config is not None:
        with open(os.path.join(folder, 'tokenizer_config.json'), 'w') as f:
            json.dump(config, f)


def test_added(name, path, strings, rng):
    """A folder in llava-hf's manner, and one with tokens that stand apart."""
    n = spm.SentencePieceProcessor(model_file=path).get_piece_size()
    rows = [('<image>', n, True, False), ('<pad>', n + 1, True, True), ('<ima', n + 2, False, False),
            ('word', n + 3, False, False)]
    config = {'legacy': False, 'pad_token': '<pad>', 'added_tokens_decoder': {
        str(i): {'content': text, 'special': special, 'lstrip': False, 'rstrip': False, 'normalized': False,
                 'single_word': False} for text, i, special, _ in rows}}
    strings = [s + rng.choice(['', '<ima', 'word', '<image>', ' words ', '<pad>']) + s[:5] for s in strings]
    with tempfile.TemporaryDirectory() as folder:
        write_folder(folder, path, config)
        for mode in 'new', 'legacy':
            slow = Slow(path, mode, rows)
            want = [slow.encode(s) for s in strings]
            got = [ids_of(a) for a in ask(folder, mode, ['e ' + hexed(s) for s in strings])]
            compare(f'{name}: added tokens, {mode}', strings, got, want)
            got = [ids_of(a) for a in ask(folder, mode, ['p ' + hexed(s) for s in strings])]
            compare(f'{name}: own <image>, {mode}', strings, got, [[-200 if i == n else i for i in ids] for ids in want])
            lists = want + [[rng.choice([0, 1, 2, n, n + 1, n + 2, n + 3, rng.randrange(3, n)]) for _ in range(12)]
                            for _ in range(2000)]
            for what, skip in ('d', False), ('k', True):
                got = ask(folder, mode, [f"{what} {' '.join(map(str, ids))}" for ids in lists])
                compare(f'{name}: added tokens, {mode}, decoding {what}', lists,
                        [bytes.fromhex(g).decode() for g in got], [slow.decode(ids, skip) for ids in lists])


def fast_json(path, legacy, pairs):
    """A tokenizer.json as transformers writes it: all pairs of pieces that make a piece, best score first."""
    sp = spm.SentencePieceProcessor(model_file=path)
    n = sp.get_piece_size()
    vocab = {sp.id_to_piece(i): i for i in range(n)}
    merges = []
    for piece, i in vocab.items():
        if sp.is_byte(i) or sp.is_control(i) or sp.is_unknown(i):
            continue
        merges += [(-sp.get_score(i), vocab[piece[:k]], piece[:k], piece[k:]) for k in range(1, len(piece))
                   if piece[:k] in vocab and piece[k:] in vocab]
    merges.sort()
    merges = [[m[2], m[3]] if pairs else f'{m[2]} {m[3]}' for m in merges]
    added = [{'id': i, 'content': t, 'special': True, 'lstrip': False, 'rstrip': False, 'single_word': False}
             for i, t in enumerate(['<unk>', '<s>', '</s>'])]
    norm = {'type': 'Sequence', 'normalizers': [{'type': 'Prepend', 'prepend': SPACE}, {
        'type': 'Replace', 'pattern': {'String': ' '}, 'content': SPACE}]} if legacy else None
    return {'added_tokens': added, 'normalizer': norm, 'pre_tokenizer': None if legacy else
            {'type': 'Metaspace', 'replacement': SPACE, 'prepend_scheme': 'first', 'split': False},
            'model': {'type': 'BPE', 'unk_token': '<unk>', 'fuse_unk': True, 'byte_fallback': True, 'vocab': vocab,
                      'merges': merges}}


def test_fast(name, path, strings):
    """Made from a model that keeps spaces as they are, which is all that a tokenizer.json of this kind can say."""
    for legacy in False, True:
        with tempfile.TemporaryDirectory() as folder:
            keeps = os.path.join(folder, 'keeps')
            with open(path, 'rb') as a, open(keeps, 'wb') as b:
                b.write(a.read() + b'\x1a\x02\x20\x00')
            with open(os.path.join(folder, 'tokenizer.json'), 'w') as f:
                json.dump(fast_json(keeps, legacy, not legacy), f)
            slow = Slow(keeps, 'legacy' if legacy else 'new')
            got = [ids_of(a) for a in ask(folder, 'file', ['e ' + hexed(s) for s in strings])]
            compare(f'{name}: tokenizer.json, legacy {legacy}', strings, got, [slow.encode(s) for s in strings])


def test_vectors():
    folder = os.path.join(DATA, 'tokenizer')
    texts = open(os.path.join(folder, 'llama-vectors.inp'), encoding='utf-8', newline='').read()
    texts = texts.split('\n__ggml_vocab_test__\n')
    want = [[int(x) for x in line.split()] for line in open(os.path.join(folder, 'llama-vectors.out'))]
    texts = texts[:len(want)]
    path = os.path.join(folder, 'llama.model')
    got = [ids_of(a) for a in ask(path, 'legacy', ['r ' + hexed(t) for t in texts])]
    compare("llama: llama.cpp's vectors", texts, got, want)


def trained(folder):
    """A small BPE model with byte fallback, and SentencePiece's default of squeezing spaces."""
    rng = random.Random(SEED)
    words = ['image', 'answer', 'question', 'the', 'what', 'is', 'in', 'picture', 'cat', 'dog', 'naïve', '你好', 'Привет']
    text = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(' '.join(rng.choice(words) for _ in range(12)) for _ in range(300)), model_writer=text,
        model_type='bpe', vocab_size=340, byte_fallback=True, character_coverage=0.98, normalization_rule_name='identity',
        minloglevel=2)
    path = os.path.join(folder, 'trained.model')
    with open(path, 'wb') as f:
        f.write(text.getvalue())
    return path


def main():
    if not os.path.exists(PROGRAM):
        print(f'1..0 # SKIP no {os.path.basename(PROGRAM)}')
        return 0
    rng = random.Random(SEED)
    print(f'# seed {SEED}')
    strings = [string(rng) for _ in range(N_STRINGS)]
    with tempfile.TemporaryDirectory() as folder:
        models = [('small', SMALL), ('trained', trained(folder))]
        if DATA:
            models.append(('llama', os.path.join(DATA, 'tokenizer', 'llama.model')))
        for name, path in models:
            few = strings if name == 'llama' or not DATA else strings[:2000]
            test_model(name, path, few, rng)
            test_stream(name, path, few)
            test_added(name, path, few[:2000], rng)
            test_fast(name, path, few[:4000])
    if DATA:
        test_vectors()
    finish()


if __name__ == '__main__':
    main()
