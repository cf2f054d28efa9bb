"""Questions and answers about emoji pictures, and the texts that their vocabulary is made from."""
import random

SYSTEMS = [
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
]

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

    def __init__(self, things, seed, far=0.4):
        """far: share of the wrong answers, where they need not be hard, that are any thing's name"""
        self.things, self.rng, self.members, self.far = things, random.Random(seed), {}, far
        for i, t in enumerate(things):
            self.members.setdefault(t["group"], []).append(i)

    def other(self, c, hard=None):
        """A different thing: a neighbour in emoji order, one of the same group, or any (hard: same group)."""
        rng, draw = self.rng, 0.5 if hard else self.rng.random()
        while True:
            if draw < 0.15:
                o = c + rng.randint(-8, 8)
            elif draw < 1 - self.far:
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
        """A training conversation: rounds until an answer would give the next one away."""
        rng, out = self.rng, []
        if rng.random() < 0.2:
            out.append(self.ask(c, "group"))
        for _ in range(rng.choices([0, 1, 2, 3], [40, 24, 20, 16])[0]):
            out.append(self.ask(c, "yes_no"))
            if out[-1][1] == "Yes":
                return out
        return out + [self.ask(c, rng.choices(["name", "choice", "describe"], [50, 38, 12])[0])]


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
