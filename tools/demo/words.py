"""Questions and answers about emoji pictures, and the tokenizer they are written in.

A branch is what follows the picture in a vicuna_v1 prompt: "\nQUESTION ASSISTANT: ANSWER</s>", with a second round
for some. Text is tokenized the way LLaVA does it: each piece between "<image>" or "</s>" on its own, each with
SentencePiece's dummy prefix (the tokenizer's legacy=True).
"""
import random

SYSTEMS = [
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
]
HEAD = " USER: "

NAME = ["What is this?", "What emoji is this?", "What is in this picture?", "Name the object in the picture.",
        "What does this picture show?", "What do you see?", "What's this?", "What is in the image?"]
GROUP = ["Which group is this in?", "What group does this belong to?", "What kind of thing is this?"]
YES_NO = ["Is this {a}?", "Does this picture show {a}?", "Is it {a}?"]
CHOICE = ["Which of these is it: {0}, {1}, {2} or {3}?", "Is this {0}, {1}, {2} or {3}?",
          "Choose one: {0}, {1}, {2}, {3}."]
DESCRIBE = ["Describe the picture.", "Describe the picture in a sentence.", "Describe the image.",
            "What can you tell me about this picture?", "Describe this image in detail."]
KINDS = ["name", "group", "yes_no", "choice"]


def article(name):
    """'a red apple', 'an owl', 'the flag of Japan': a name as it stands in a yes/no question."""
    if name.startswith("flag "):
        return "the flag of " + name[5:]
    return ("an " if name[0] in "aeiouAEIOU" else "a ") + name


def load_things(facts):
    """The classes, in emoji order: [{"name", "group", "keywords"}], and each picture's class index."""
    index, things = {}, []
    for f in facts:
        if f["name"] not in index:
            index[f["name"]] = len(things)
            words = [w for w in f["keywords"] if "_" not in w and w.isascii() and w.isalpha()]
            words = [w for w in dict.fromkeys(words) if w.lower() not in f["name"].lower().split()][:3]
            things.append(dict(name=f["name"], group=f["group"], keywords=words))
    return things, [index[f["name"]] for f in facts]


class Asker:
    """Makes rounds (question, answer) about thing number c, from its own random stream."""

    def __init__(self, things, seed):
        self.things, self.rng, self.members = things, random.Random(seed), {}
        for i, t in enumerate(things):
            self.members.setdefault(t["group"], []).append(i)

    def other(self, c, hard=None):
        """A different thing: a neighbour in emoji order, one of the same group, or any (hard: same group)."""
        rng, draw = self.rng, 0.5 if hard else self.rng.random()
        while True:
            if draw < 0.15:
                o = c + rng.randint(-8, 8)
            elif draw < 0.6:
                o = rng.choice(self.members[self.things[c]["group"]])
            else:
                o = rng.randrange(len(self.things))
            if o != c and 0 <= o < len(self.things):
                return o

    def ask(self, c, kind, plain=False):
        """One round. plain: the first wording and hard wrong answers, as evaluation uses."""
        t, rng = self.things[c], self.rng
        wording = lambda forms: forms[0] if plain else rng.choice(forms)
        if kind == "name":
            return wording(NAME), t["name"]
        if kind == "group":
            return wording(GROUP), t["group"]
        if kind == "yes_no":
            yes = rng.random() < 0.5
            about = t if yes else self.things[self.other(c, plain)]
            return wording(YES_NO).format(a=article(about["name"])), "Yes" if yes else "No"
        if kind == "choice":
            four = [c]
            while len(four) < 4:
                o = self.other(c, plain)
                if o not in four:
                    four.append(o)
            rng.shuffle(four)
            return wording(CHOICE).format(*(self.things[o]["name"] for o in four)), t["name"]
        words = ", ".join(t["keywords"])
        return wording(DESCRIBE), f"The picture shows {t['name']} ({t['group']})" + (f": {words}." if words else ".")

    def rounds(self, c):
        """A training conversation: one round, sometimes two."""
        kinds = self.rng.choices(KINDS + ["describe"], [2, 1.5, 4, 3, 2], k=1 if self.rng.random() < 0.75 else 2)
        return [self.ask(c, k) for k in kinds]


def texts(things):
    """Lines of text that a vocabulary is made from."""
    asker, lines = Asker(things, 1), list(SYSTEMS) * 200
    for c, t in enumerate(things):
        lines += [t["name"]] * 4
        for kind in KINDS + ["describe"]:
            q, a = asker.ask(c, kind)
            lines += [f"USER: {q} ASSISTANT: {a}"]
    for forms in (NAME, GROUP, YES_NO, CHOICE, DESCRIBE):
        lines += forms * 20
    return lines


def train_tokenizer(things, prefix, pieces=1472):
    """Write prefix.model: BPE with byte fallback, set up like Llama's."""
    import sentencepiece as spm
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts(things)), model_prefix=prefix, vocab_size=pieces, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False,
        character_coverage=1.0, split_digits=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1,
        minloglevel=1)


class Tokens:
    """Prompt and branch ids through python3-sentencepiece."""

    def __init__(self, path):
        import sentencepiece as spm
        self.sp = spm.SentencePieceProcessor(model_file=path)
        self.bos, self.eos, self.size = 1, 2, self.sp.get_piece_size()
        self.image = self.size

    def head(self, system):
        """Ids before the picture, BOS first."""
        return [self.bos] + self.sp.encode(system + HEAD)

    def question(self, q):
        return self.sp.encode(f"\n{q} ASSISTANT:")

    def branch(self, rounds):
        """Ids after the picture and, for each, whether the model is to learn it."""
        ids, learn = [], []
        for i, (q, a) in enumerate(rounds):
            ask = self.sp.encode(f"\n{q} ASSISTANT:" if i == 0 else f"USER: {q} ASSISTANT:")
            say = self.sp.encode(a) + [self.eos]
            ids += ask + say
            learn += [0] * len(ask) + [1] * len(say)
        return ids, learn

    def text(self, ids):
        return self.sp.decode([int(i) for i in ids if i < self.size])
