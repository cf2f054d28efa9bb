"""What the reference does with text, restated: transformers' slow LlamaTokenizer (4.37.2, and 4.31), LLaVA's conversation
templates, and preprocess_* of llava/train/train.py with the collator's cut."""
import re

import sentencepiece as spm

SPACE = '\u2581'
IMAGE, IGNORE = -200, -100

class Slow:
    def __init__(self, path, mode, added=()):
        """added: (text, id, special, named)"""
        proto = open(path, 'rb').read()
        self.mode = mode
        self.sp = spm.SentencePieceProcessor()
        self.sp.LoadFromSerializedProto(proto + (b'\x1a\x02\x18\x00' if mode == 'new' else b''))
        rows = [('<s>', 1, True, True), ('</s>', 2, True, True), ('<unk>', 0, True, True)] + list(added)
        self.added = {text: i for text, i, _, _ in rows}
        self.special = {text for text, _, special, _ in rows if special}
        self.inline = {text for text, _, _, named in rows if named}
        self.text_of = {i: text for text, i in self.added.items()}
        longest = sorted(self.added, key=len, reverse=True)
        self.cut = re.compile('(' + '|'.join(map(re.escape, longest)) + ')')
        self.id = {self.sp.id_to_piece(i): i for i in range(self.sp.get_piece_size())}
        self.unk_length = len(self.sp.encode('<unk>', out_type=str))

    def part(self, text):
        encode = lambda s: self.sp.encode(s, out_type=str)
        if self.mode == 'legacy':
            return encode(text)
        if self.mode == 'new':
            if not text.startswith((SPACE, ' ')):
                return encode(text)
            pieces = encode('<unk>' + text)
            return pieces[self.unk_length:] if len(pieces) >= self.unk_length else pieces
        first = text.startswith(SPACE)
        text = text[1:] if first else text
        pieces = encode(text)
        if not first and not text.startswith(' ') and pieces and pieces[0].startswith(SPACE):
            pieces = ([pieces[0][1:]] if len(pieces[0]) > 1 else []) + pieces[1:]
        return pieces

    def encode(self, text):
        if self.mode != 'legacy' and text:
            text = SPACE + text.replace(SPACE, ' ')
        pieces = []
        for part in self.cut.split(text):
            if part in self.added:
                pieces.append(part)
            elif part:
                pieces += self.part(part)
        if self.mode == 'new' and len(pieces) > 1 and pieces[0] == SPACE and pieces[1] in self.special:
            pieces = pieces[1:]
        return [1] + [self.added[p] if p in self.added else self.id.get(p, 0) for p in pieces]

    def encode_prompt(self, text):
        """tokenizer_image_token"""
        ids = []
        for i, chunk in enumerate(text.split('<image>')):
            ids += ([-200] if i else [1]) + self.encode(chunk)[1:]
        return ids

    def join(self, pieces):
        pieces = list(pieces)
        if pieces[0].startswith(SPACE):
            pieces[0] = pieces[0][1:]
        run, out, after = [], '', False
        for i, piece in enumerate(pieces):
            if piece in self.inline:
                if not after and i and self.mode == 'legacy':
                    out += ' '
                out += self.sp.decode(run) + piece
                run, after = [], True
            else:
                run.append(piece)
                after = False
        return out + self.sp.decode(run)

    def decode(self, ids, skip):
        parts, run = [], []
        for i in ids:
            piece = self.text_of[i] if i in self.text_of else self.sp.id_to_piece(i)
            if skip and piece in self.special:
                continue
            if piece in self.added and piece not in self.inline:
                if run:
                    text = self.join(run)
                    if text:
                        parts.append(text)
                    run = []
                parts.append(piece)
            else:
                run.append(piece)
        if run:
            parts.append(self.join(run))
        return ' '.join(parts)


# ---- templates: style, roles, sep, sep2, system

HUMAN = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, " \
        "and polite answers to the human's questions."
USER = HUMAN.replace('human', 'user')
TAGS = 'A chat between a curious user and an artificial intelligence assistant. The assistant is able to understand the ' \
       'visual content that the user provides, and assist the user with a variety of tasks using natural language.The ' \
       'visual content will be provided with the following format: <Image>visual content</Image>.'
VISION = 'You are a helpful language and vision assistant. You are able to understand the visual content that the user ' \
         'provides, and assist the user with a variety of tasks using natural language.'
SAFETY = "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  Your " \
         "answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. Please " \
         "ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not make any sense, " \
         "or is not factually coherent, explain why instead of answering something not correct. If you don't know the answer " \
         "to a question, please don't share false information."
TEMPLATES = {
    'v1': ('two', 'USER', 'ASSISTANT', ' ', '</s>', USER),
    'llava_v1': ('two', 'USER', 'ASSISTANT', ' ', '</s>', HUMAN),
    'v1_mmtag': ('two', 'USER', 'ASSISTANT', ' ', '</s>', TAGS),
    'llama_2': ('llama_2', 'USER', 'ASSISTANT', '<s>', '</s>', SAFETY),
    'llava_llama_2': ('llama_2', 'USER', 'ASSISTANT', '<s>', '</s>', VISION),
    'mistral_instruct': ('llama_2', 'USER', 'ASSISTANT', '', '</s>', ''),
    'chatml_direct': ('mpt', '<|im_start|>user\n', '<|im_start|>assistant\n', '<|im_end|>', None,
                      '<|im_start|>system\nAnswer the questions.'),
    'plain': ('plain', '', '', '\n', None, ''),
    'llava_v0': ('signals', 'Human', 'Assistant', '###', None, HUMAN),
    'v0_mmtag': ('signals', 'Human', 'Assistant', '###', None, TAGS),
}


def prompt_of(template, turns):
    style, *roles, sep, sep2, system = TEMPLATES[template]
    if style == 'two':
        return system + sep + ''.join(roles[i % 2] + (': ' + t + [sep, sep2][i % 2] if t else ':') for i, t in enumerate(turns))
    if style == 'mpt':
        return system + sep + ''.join(roles[i % 2] + (t + sep if t else '') for i, t in enumerate(turns))
    out = ''
    for i, text in enumerate(turns):
        if i == 0 and system:
            text = f'<<SYS>>\n{system}\n<</SYS>>\n\n' + text
        if text:
            out += f' {text} {sep2}' if i % 2 else f'{sep}[INST] {text} [/INST]'
    return out.lstrip(sep) if sep else out


# ---- preprocess_multimodal and preprocess_*

def picture(template, text, im_start_end):
    if '<image>' in text:
        text = ('<image>\n' + text.replace('<image>', '').strip()).strip()
        if 'mmtag' in template:
            text = text.replace('<image>', '<Image><image></Image>')
    return text.replace('<image>', '<im_start><image><im_end>') if im_start_end else text


def mask(labels, low, high):
    for i in range(min(low, len(labels)), min(high, len(labels))):
        labels[i] = IGNORE


def labels_by_rounds(slow, template, turns, image, limit):
    """preprocess_v1, _llama_2 and _mpt. Labels None: its sums do not come out, and it drops what the sample would teach, or,
    where the sample is longer than the limit, masks it in the wrong places.
    431 stands for transformers 4.31 with tokenizers 0.13, where the reference corrects nothing."""
    style, _, role, sep, sep2, _ = TEMPLATES[template]
    prompt = prompt_of(template, turns)
    encode = slow.encode_prompt if image else slow.encode
    ids = encode(prompt)
    total = sum(i != 0 for i in ids)
    ids = ids[:None if image else limit]
    labels = list(ids)
    if style == 'mpt':
        rounds, mark, at, less, change = prompt.split(sep), sep + role, 0, 1, int(slow.mode == 'legacy')
        rounds = [sep.join(rounds[:3])] + [sep.join(rounds[i:i + 2]) for i in range(3, len(rounds), 2)]
    else:
        rounds, mark, at, less = prompt.split(sep2), ' ASSISTANT: ' if style == 'two' else '[/INST] ', 1, 2
        change = -int(slow.mode == 'new' and style == 'two')
    mask(labels, 0, at)
    for i, text in enumerate(rounds):
        parts = text.split(mark)
        if text == '' or len(parts) != 2:
            break
        n, asked = len(encode(text)), len(encode(parts[0] + mark)) - less
        if i:
            n, asked = n + change, asked + change
        mask(labels, at, at + asked)
        at += n
    mask(labels, at, len(labels))
    return ids, labels if at == total else None


def labels_by_counts(slow, template, turns, image, limit):
    """preprocess for the first format, '### Human: '."""
    _, *roles, _, _, system = TEMPLATES[template]
    pieces = [system + '\n\n'] + [f"### {roles[i % 2]}: {t}\n" for i, t in enumerate(turns)]
    encode = slow.encode_prompt if image else lambda text: slow.encode(text)[:limit]
    ids = encode(''.join(pieces) + '### ')
    sizes = [len(encode(p)) if image else sum(i != 0 for i in encode(p)) for p in pieces]
    labels, at = list(ids), sizes[0]
    mask(labels, 0, at)
    for i, size in enumerate(sizes[1:]):
        if i % 2 == 0:
            mask(labels, at + 2, at + size)
        at += size
    return ids, labels


def labels_plain(slow, turns):
    ids = slow.encode_prompt('<image>' + turns[1] + '\n')
    labels = list(ids)
    mask(labels, 0, len(slow.encode_prompt('<image>')))
    return ids, labels


def preprocess(slow, template, turns, image, limit, im_start_end=False):
    """(ids, labels or None), not yet cut by the collator. turns: the texts, by turns of human and gpt."""
    if image:
        turns = [picture(template, t, im_start_end) for t in turns]
    style = TEMPLATES[template][0]
    if style == 'plain':
        return labels_plain(slow, turns)
    return (labels_by_counts if style == 'signals' else labels_by_rounds)(slow, template, turns, image, limit)


# ---- the collator, and what prepare_inputs_labels_for_multimodal makes of a row

def positions(ids, labels, limit, rows, pad=0):
    """[(id or None for a row of a picture, label)], and how many pictures have positions."""
    out, pictures = [], 0
    for i, label in list(zip(ids, labels))[:limit]:
        if i == IMAGE:
            pictures += len(out) < limit
            out += [(None, IGNORE)] * rows
        elif i != pad:
            out.append((i, label))
    return out[:limit], pictures
